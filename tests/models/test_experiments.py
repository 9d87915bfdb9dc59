"""The papers' tables: error bars by hand, every row and run on a small data set, and what is refused."""

import csv
import dataclasses
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from tritoncrf.models import checkpoints, config, data, tuning
from tritoncrf.models.__main__ import main
from tritoncrf.models.experiments import defaults, lattice_error, runs, searched, synthetic_task, trained
from tritoncrf.models.experiments.dot_plot import dots
from tritoncrf.models.experiments.statistics import (
    Estimate,
    accuracy,
    in_blocks,
    jackknife,
    miou_occurring,
    miou_present,
    over_seeds,
    student,
)
from tritoncrf.models.experiments.tables import EXPERIMENTS, PUBLISHED, Claim, Experiment, Row
from tritoncrf.synthetic import noisy_scores

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CPU = torch.device("cpu")
TOML = """
[network]
name = "ResNetFCN"
depth = 18
width = 0.125

[data]
format = "folder"
held_out = 2
workers = 0

[[phases]]
name = "{phase}"
train = "{phase}"
epochs = 1
batch = 2
{split}
[phases.optimizer]
name = "adam"
lr = 0.01
"""
CRF = """
[crf]
name = "ConvCRF"
window_size = 3
blur = 1
"""


# Error bars -----------------------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_the_standard_error_of_the_mean():
    x = np.random.default_rng(0).normal(size=(12, 2))
    first, second = jackknife(x, lambda total: total / 12)
    # left out one at a time, the sum is divided by n, not by n - 1: the mean's own jackknife scaled by (n - 1) / n
    for estimate, values in ((first, x[:, 0]), (second, x[:, 1])):
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.error == pytest.approx(values.std(ddof=1) / 12**0.5 * 11 / 12)


def test_the_jackknife_of_a_ratio_by_hand():
    # 7, 8 and 9 of 10 pixels: shares 0.85, 0.80 and 0.75 without one each, sqrt(2/3 (2 x 0.05^2)) = 0.0577
    [share] = jackknife(np.array([[7, 10], [8, 10], [9, 10]]), lambda total: [total[0] / total[1]])
    assert share.value == pytest.approx(0.8)
    assert share.error == pytest.approx((2 / 3 * 2 * 0.05**2) ** 0.5)


def test_one_image_has_no_error_bar():
    [share] = jackknife(np.array([[7, 10]]), lambda total: [total[0] / total[1]])
    assert share.percent() == "70.00" and share.difference() == "+70.00"


@pytest.mark.parametrize(
    "estimate, text",
    [
        (Estimate(0.021, 0.01, 99), "**+2.10 ± 1.00**"),
        (Estimate(-0.021, 0.01, 99), "**-2.10 ± 1.00**"),
        (Estimate(0.021, 0.01, 5), "+2.10 ± 1.00"),  # t is 2.57
        (Estimate(0.026, 0.01, 5), "**+2.60 ± 1.00**"),
        (Estimate(0.12, 0.01, 1), "+12.00 ± 1.00"),  # t is 12.7
        (Estimate(0.9, 0.01, 0), "+90.00 ± 1.00"),
        (Estimate(0.0, 0.0, 99), "+0.00 ± 0.00"),
    ],
)
def test_bold_is_beyond_students_t(estimate, text):
    assert estimate.difference() == text


@pytest.mark.parametrize(
    "freedom, quantile",
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (9, 2.2622), (30, 2.0423), (1000, 1.9623)],
)
def test_students_t_as_in_the_tables(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, abs=1e-4)
    assert student(freedom + 0.5) < student(freedom)


SHARE = [[[7, 10], [8, 10], [9, 10]], [[6, 10], [7, 10], [8, 10]]]  # right of all, by seed and image


def share(total):
    return [total[0] / total[1]]


def test_seeds_add_their_spread_by_hand():
    # Of the mean over seeds, 0.65, 0.75 and 0.85 of 10 pixels: as one seed, 0.0577. Seeds: 0.8 and 0.7, 0.05 of the mean.
    [found] = over_seeds(np.array(SHARE), share)
    assert found.value == pytest.approx(0.75)
    images, seeds = 2 / 3 * 2 * 0.05**2, 0.1**2 / 2 / 2
    assert found.error == pytest.approx((images + seeds) ** 0.5)
    assert found.freedom == pytest.approx((images + seeds) ** 2 / (images**2 / 2 + seeds**2 / 1))


def test_one_seed_is_the_jackknife_and_equal_ones_add_nothing():
    [alone], [once], [twice] = (
        jackknife(np.array(SHARE[0]), share), over_seeds(np.array(SHARE[:1]), share), over_seeds(np.array(SHARE[:1] * 2), share)
    )  # fmt: skip
    assert (once.value, once.error, once.freedom) == pytest.approx((alone.value, alone.error, 2))
    assert (twice.value, twice.error, twice.freedom) == pytest.approx((alone.value, alone.error, 2))


def test_rows_that_do_not_differ_are_not_told_apart():
    counts = np.stack([np.array(SHARE)] * 2, 2)  # the same twice
    [found] = over_seeds(counts, lambda pair: [pair[0, 0] / pair[0, 1] - pair[1, 0] / pair[1, 1]])
    assert (found.value, found.error) == (0, 0) and not found.clear


def test_error_bars_with_seeds_cover_what_they_should():
    """Simulated: of values with a spread over images and one over seeds, 95 % of the intervals hold the true mean."""
    random = np.random.default_rng(0)
    held, trials = 0, 400
    for _ in range(trials):
        images, seeds = random.normal(0, 1, (1, 20)), random.normal(0, 0.5, (3, 1))
        values = 5 + images + seeds + random.normal(0, 0.2, (3, 20))
        [found] = over_seeds(np.stack([values, np.ones_like(values)], -1), share)
        held += abs(found.value - 5) <= student(found.freedom) * found.error
    assert 0.92 <= held / trials <= 0.99


def test_blocks_are_stretches_and_keep_the_sum():
    counts = np.arange(23)[:, None] * np.ones((1, 2), dtype=int)
    blocks = in_blocks(counts)
    assert blocks.shape == (10, 2) and (blocks.sum(0) == counts.sum(0)).all()
    assert blocks[0, 0] == 0 + 1 + 2 and blocks[-1, 0] == 21 + 22
    assert (in_blocks(counts[:4]) == counts[:4]).all()


def test_measures_by_hand():
    # class 0: 3 right of 4, one taken for class 2, which is not there; class 1: 2 of 2
    confusion = np.array([[3, 0, 1], [0, 2, 0], [0, 0, 0]])
    both = np.stack([confusion, np.diag([4, 2, 0])])  # another seed: all right
    assert accuracy(both) == pytest.approx((5 / 6 + 1) / 2)
    assert miou_present(both) == pytest.approx(((3 / 4 + 1) / 2 + 1) / 2)
    assert miou_occurring(both) == pytest.approx(((3 / 4 + 1 + 0) / 3 + 1) / 2)


# Synthetic ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_voc(shapes, tmp_path):
    """A folder of data with "voc" alone, three images of 32 x 40 in it."""
    (tmp_path / "data" / "voc").mkdir(parents=True)
    for name in ("images", "labels"):
        shutil.copytree(shapes / "val" / name, tmp_path / "data" / "voc" / name)
    shutil.copy(shapes / "classes.txt", tmp_path / "data" / "voc")
    return tmp_path / "data"


def test_every_comparison_names_rows_that_there_are():
    rows = synthetic_task.METHODS | synthetic_task.EXACT
    for pair in synthetic_task.EFFECTS.values():
        assert set(pair) <= set(rows)
    assert set(synthetic_task.PUBLISHED) <= set(rows)
    assert len({(m.key, m.unary, m.weights) for m in rows.values()}) == len(rows)  # no row twice


def test_a_window_over_the_whole_image_is_the_exact_sum():
    torch.manual_seed(0)
    image, scores = torch.randint(0, 256, (1, 3, 12, 14), dtype=torch.uint8), torch.rand(1, 3, 12, 14)
    exact = synthetic_task.Method("exact")
    window = synthetic_task.Method("window", window_size=27, blur=1)
    labels = [m.refined(scores, image, m.filters(image)) for m in (exact, window)]
    assert torch.equal(*labels)
    assert not torch.equal(labels[0], scores[0].argmax(0))  # the CRF did something


def test_released_rows_are_the_layer_and_fullcrf_is_refine():
    torch.manual_seed(0)
    image, scores = torch.randint(0, 256, (1, 3, 12, 14), dtype=torch.uint8), torch.rand(1, 3, 12, 14)
    conv, full = synthetic_task.METHODS["ConvCRF 5, released"], synthetic_task.METHODS["equal: lattice"]
    layer = tc.ConvCRF(3, window_size=5, blur=4, preset="released")
    assert torch.equal(conv.refined(scores, image, []), layer(scores, image)[0].argmax(0))
    expected = tc.refine(image[0], logits=(scores[0] + 1e-20).log(), **tc.PARAMETERS["densecrf"]).argmax(0)
    assert torch.equal(full.refined(scores, image, full.filters(image)), expected)


def test_void_counts_as_in_the_paper_or_not_at_all(small_voc):
    [maps] = synthetic_task.label_maps(small_voc, small=True)
    assert maps.void_counts and len(maps.pairs) == 3
    for _, _, known, truth in maps.scored():
        assert (known == truth).all() and known.max() == 2
    others = list(dataclasses.replace(maps, void_counts=False).scored())
    assert any((truth == 255).any() for _, _, _, truth in others)
    assert all((known[truth == 255] == 0).all() for _, _, known, truth in others)


def test_the_synthetic_report(small_voc, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_task, "CROP", (16, 16))
    monkeypatch.setattr(synthetic_task, "SEEDS", (0, 1))
    monkeypatch.setitem(synthetic_task.FOLDERS, "voc", synthetic_task.Folder("folder", "all", images=2, crops=1))
    out = tmp_path / "out"
    out.mkdir()
    synthetic_task.run(small_voc, out, CPU)
    text = (out / "synthetic.md").read_text()
    assert "## voc: 2 images, 3 classes" in text and "## voc, 16 x 16: 1 images" in text
    assert all(f"| {name} " in text for name in synthetic_task.METHODS | synthetic_task.EXACT)
    assert all(title in text for title in synthetic_task.EFFECTS)
    with open(out / "synthetic.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(synthetic_task.METHODS) + 2 * len(synthetic_task.CROPPED)
    # The table's accuracy is the sum's; images of one size have one weight.
    unary = [float(row["accuracy"]) for row in rows if row["method"] == "unary" and row["set"] == "voc"]
    row = next(line for line in text.splitlines() if line.startswith("| unary "))
    assert row.split("|")[2].strip().startswith(f"{100 * np.mean(unary):.2f} ")
    assert {p.name for p in out.iterdir()} == {
        "synthetic.md", "synthetic.csv", "synthetic.png", "synthetic-effects.png",
    }  # fmt: skip


def test_without_data_there_is_the_demos_photo():
    [maps] = synthetic_task.label_maps(None, small=True)
    assert maps.pairs[0][1].shape[:2] == maps.pairs[0][2].shape


def test_folders_without_any_of_the_data_are_refused(tmp_path, capsys):
    assert main(["experiments", "synthetic", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "expected a folder with some of voc, camvid, coco_stuff" in capsys.readouterr().err


# Defaults -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(small_voc):
    """Beside "voc", whose class 15 is the house, a network's foreground of it; and an empty "camvid"."""
    (small_voc / "camvid").mkdir()
    (small_voc / "network_scores" / "voc").mkdir(parents=True)
    for path in (small_voc / "voc" / "labels").glob("*.png"):
        truth = np.array(Image.open(path))
        Image.fromarray(np.where(truth == 1, defaults.PERSON, truth).astype(np.uint8)).save(path)
        sure = np.where(truth == 1, 0.8, 0.1).astype(np.float16)
        np.savez(small_voc / "network_scores" / "voc" / f"{path.stem}.npz", foreground=sure)
    return small_voc


def test_score_sets_are_of_the_photos_there(scored):
    people, labels, masks = defaults.person(scored), defaults.noisy(scored), defaults.masks(scored)
    assert [len(found.items) for found in (people, labels, masks)] == [3, 3, 3]
    for item in people.items:
        assert ((item.scores["foreground"] > 0.5) == (item.truth == 1))[item.truth != 255].all()
        assert set(np.unique(item.truth)) == {0, 1, 255} or set(np.unique(item.truth)) == {0, 1}
    for item in labels.items:
        found = item.scores["labels"]
        assert found.shape == item.truth.shape and set(np.unique(found)) <= {0, 2, 15}
        assert 0.5 < np.mean((found == item.truth)[item.truth != 255]) < 0.95
        assert (found[:8, :8] == found[0, 0]).all()
    assert [half.items for half in (people.half(False), people.half(True))] == [people.items[:1], people.items[1:]]


def test_coarse_scores_keep_their_mean_and_lose_their_detail():
    logits = np.random.default_rng(0).normal(size=(3, 32, 48)).astype(np.float32)
    item = defaults.Scored(np.zeros((32, 48, 3)), {"logits": logits}, np.zeros((32, 48), int))
    found = defaults.coarse(defaults.ScoreSet("net", [item], 3), 8)
    [rough] = [item.scores["logits"] for item in found.items]
    assert found.name == "net, stride 8" and rough.shape == logits.shape
    assert rough.mean() == pytest.approx(logits.mean(), abs=0.02) and rough.std() < logits.std() / 4


def test_the_scores_of_a_training_are_those_of_its_last_epoch(shapes, tmp_path, monkeypatch):
    settings = config.parse(tomllib.loads(TOML.format(phase="unary", split="")), "here")
    network, asked = config.build(settings, 3, "here").eval(), []

    def trained(path, device):
        asked.append(path)
        return checkpoints.Trained(network, settings, ("ground", "house", "tree"))

    monkeypatch.setattr(defaults.checkpoints, "trained", trained)
    monkeypatch.setattr(defaults.data, "camvid", data.folder)
    found = defaults.camvid("small", runs.Place(shapes, tmp_path, large=False), every=2)
    assert asked == [tmp_path / "runs" / "small" / "seed_0" / "last.pt"]
    assert len(found.items) == 2 and found.num_classes == 3
    photo = torch.as_tensor(found.items[1].image).permute(2, 0, 1)
    with torch.no_grad():
        assert np.array_equal(found.items[1].scores["logits"], network(photo[None])[0].numpy())


def test_the_report_of_defaults(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defaults, "train", lambda names, place: None)
    monkeypatch.setattr(defaults, "STAGES", {})
    assert main(["experiments", "defaults", "--data", str(scored), "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "defaults.md").read_text()
    assert text.count("| no CRF ") == 3 and text.count("| refine, defaults ") == 3
    assert text.count("| CRFRNN ") == 1  # of the network's scores alone
    with open(tmp_path / "out" / "defaults.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (len(defaults.WAYS) + 2 * (len(defaults.WAYS) - 3))
    for row in rows:
        if row["method"] == "no CRF":
            assert float(row["difference"]) == 0 and 0 < float(row["value"]) <= 1
    assert (tmp_path / "out" / "defaults.png").stat().st_size > 1000


def test_defaults_need_all_of_the_data(small_voc, tmp_path, capsys):
    assert main(["experiments", "defaults", "--data", str(small_voc), "-o", str(tmp_path / "out")]) == 2
    assert "expected a folder with camvid, network_scores and voc, got none of camvid" in capsys.readouterr().err


# The lattice ----------------------------------------------------------------------------------------------------------


def test_the_distance_is_from_the_dense_matrix(monkeypatch):
    """All pixels of a small picture: the errors that are reported, computed again."""
    random = np.random.default_rng(0)
    picture, labels = random.integers(0, 256, (9, 13, 3), np.uint8), random.integers(0, 5, (9, 13))
    monkeypatch.setattr(lattice_error, "THETAS", [(80, 13)])
    monkeypatch.setattr(lattice_error, "AT_ONCE", 50)
    (row,) = lattice_error.measured(synthetic_task.Labelled("noise", [("a", picture, labels)], 5), CPU, pixels=117)
    f = tc.features.bilateral(torch.from_numpy(picture).permute(2, 0, 1)[None], 80, 13)
    points = f.double()[0].flatten(1).T
    k = torch.exp(-torch.cdist(points, points).square() / 2)
    x = torch.from_numpy(noisy_scores(labels, 5))[None]
    mean = x.double()[0].flatten(1) @ (k / k.sum(1, keepdim=True)).T
    difference = tc.filters.Lattice(f, normalization="after")(x)[0].flatten(1).double() - mean
    ratio = tc.filters.Lattice(f)(torch.ones_like(x[:, :1])).flatten() / k.sum(1)
    assert row["relative L2"] == pytest.approx((difference.norm() / mean.norm()).item(), rel=1e-4)
    assert row["largest"] == pytest.approx(difference.abs().max().item(), rel=1e-4)
    assert row["r / exact r"] == pytest.approx(ratio.mean().item(), rel=1e-4)


def test_the_lattice_report(small_voc, tmp_path):
    out = tmp_path / "out"
    assert main(["experiments", "lattice", "--data", str(small_voc), "-o", str(out)]) == 0
    with open(out / "lattice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(lattice_error.THETAS) and {row["size"] for row in rows} == {"32x40"}
    for row in rows:
        assert 0 < float(row["relative L2"]) < 1 and 0 < float(row["largest"]) < 2
        assert 0.3 < float(row["r / exact r"]) < 1.1
        assert float(row["bar"]) == (0.06 if "," in row["thetas"] else 0.02)
    text = (out / "lattice.md").read_text()
    assert "experiments lattice --data DATA -o OUT\n" in text and text.count("| voc | 3 ") == len(lattice_error.THETAS)


# Trained --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, table", [("camvid", EXPERIMENTS), ("voc", PUBLISHED)])
def test_every_row_has_its_run_and_every_claim_its_rows(format, table):
    place = runs.Place(None, None, format=format)
    assert table.keys() == EXPERIMENTS.keys()
    for experiment in table.values():
        assert {row.run for row in experiment.rows.values()} <= set(place.runs)
        assert {title for claim in experiment.claims for title in (claim.first, claim.second)} <= set(experiment.rows)
        for row in experiment.rows.values():
            settings = config.load(place.runs[row.run].config, place.settings(row.run))
            has_crf = settings.crf is not None or settings.network.get("guidance") is True
            assert row.crf != "search" or not has_crf and settings.data.held_out
    for name in place.runs:
        lineage = place.lineage(name)
        assert lineage[-1] == name and all(place.runs[b].start == a for a, b in pairwise(lineage))


STAGED = {name: height for height, names in runs.STAGES.items() for name in names if name != "unary"}
AT_ALL_SIZES = [(name, large) for name in runs.RUNS for large in (False, True)[: 1 if name in STAGED else 2]]


@pytest.mark.parametrize("name, large", AT_ALL_SIZES)
def test_every_run_is_a_configuration_of_its_own(name, large):
    def settings_of(run):
        return config.load(runs.RUNS[run].config, runs.Place(None, None, large).settings(run, 7))

    settings, height = settings_of(name), STAGED.get(name, 90)
    assert settings.data.format == "camvid" and settings.seed == 7
    assert settings.data.resize == ((360, 480) if large else (height, runs.WIDTHS[height]))
    assert settings.network["depth"] == (101 if large else 18)
    if settings.augment:
        size = settings.augment["crop"]
        assert all(n <= m for n, m in zip(size, settings.data.resize))
    if large and settings.crf and settings.crf["name"] == "ConvCRF":
        assert settings.crf["theta_space"] == 40  # a quarter of it, at a quarter of the size
    if not large:
        config.build(settings, 11, name)
    assert settings not in [settings_of(other) for other in runs.RUNS if other != name]


@pytest.mark.parametrize("name", runs.PUBLISHED_RUNS)
def test_the_papers_own_runs_start_from_a_network_of_their_kind(name):
    place = runs.Place(None, None, format="voc")
    settings = config.load(place.runs[name].config, place.settings(name))
    own, start = place.runs[name], place.runs[name].start
    assert settings.data.format == "voc"
    assert (own.weights is None) == (start is not None)
    if start is not None:
        before = config.load(place.runs[start].config, place.settings(start))
        assert {**before.network, "dropout": 0} == {**settings.network, "dropout": 0}
    else:
        assert own.weights == ("vgg16" if settings.network["name"] == "FCN8s" else "resnet101")


@pytest.mark.parametrize(
    "files, problem",
    [
        (None, r"--weights: expected a folder with torchvision's resnet101\*.pth, got none"),
        ((), r"--weights: expected a folder .* got 0 of that name in "),
        (("resnet101-1.pth", "resnet101-2.pth"), r"--weights: expected a folder .* got 2 of that name in "),
        (("resnet101-63fe2227.pth", "vgg16.pth"), None),
    ],
)
def test_the_papers_own_runs_want_weights(tmp_path, files, problem):
    for name in files or ():
        (tmp_path / name).touch()
    place = runs.Place(None, tmp_path, format="voc", weights=None if files is None else tmp_path)
    if problem is None:
        assert place.start("unary", 0) == tmp_path / "resnet101-63fe2227.pth"
        assert place.start("convcrf", 1) == tmp_path / "runs" / "unary" / "seed_1" / "best.pt"
    else:
        with pytest.raises(runs.CommandError, match=problem):
            place.start("unary", 0)


@pytest.fixture
def tiny(shapes, tmp_path, monkeypatch):
    """An experiment of two runs on `shapes`, and where it goes."""
    network = TOML.format(phase="unary", split="")
    (tmp_path / "network.toml").write_text(network)
    (tmp_path / "crf.toml").write_text(TOML.format(phase="crf", split='split = "held_out"') + CRF)
    changed = {
        "network": runs.Run(str(tmp_path / "network.toml")),
        "crf": runs.Run(str(tmp_path / "crf.toml"), "network"),
    }
    rows = {
        "alone": Row("network", "none"),
        "fixed": Row("network", "search"),
        "trained": Row("crf"),
        "trained, its network": Row("crf", "none"),
        "at two scales": Row("crf", testing={"scales": (1.0, 1.5), "flip": True}),
    }
    claims = (Claim("trained", "alone", 1.0), Claim("trained, its network", "alone", -1.0), Claim("trained", "fixed"))
    monkeypatch.setattr(runs, "RUNS", changed)
    monkeypatch.setitem(trained.EXPERIMENTS, "tiny", Experiment("Tiny", rows, claims, "No paper has this."))
    (tmp_path / "out").mkdir()
    return runs.Place(shapes, tmp_path / "out", seeds=2)


def test_a_crf_is_searched_for_once(shapes, tmp_path, monkeypatch):
    """Until the scores or the code are others."""
    monkeypatch.setenv("TRITONCRF_COMMIT", "one")
    network, searches = tc.models.ResNetFCN(3, depth=18, width=0.125).eval(), []
    images = data.Images(data.folder(shapes, "val"))

    def disconnected(scored, num_classes, device):
        searches.append(len(scored))
        return tuning.Found({"theta_space": 4.0, "weight_smooth": 0.1 + 0.2}, ("theta_space",), 0.5, 0.5, ())

    monkeypatch.setattr(tuning, "disconnected", disconnected)
    first, again = (searched.with_best_crf(network, images, CPU, tmp_path / "crf.json") for _ in range(2))
    assert searches == [len(images)]
    assert again[1] == first[1] == "theta_space 4, weight_smooth 0.3 (theta_space on the edge of what was searched)"
    for name, parameter in first[0].crf.named_parameters():
        assert torch.equal(parameter, dict(again[0].crf.named_parameters())[name]), name

    with torch.no_grad():
        next(network.parameters())[0] += 1.0
    searched.with_best_crf(network, images, CPU, tmp_path / "crf.json")
    for commit, count in ("another", 3), ("another-dirty", 4), ("another-dirty", 5):
        monkeypatch.setenv("TRITONCRF_COMMIT", commit)
        searched.with_best_crf(network, images, CPU, tmp_path / "crf.json")
        assert len(searches) == count


@pytest.mark.slow
def test_an_experiment_from_its_trainings_to_its_report(tiny):
    trained.run("tiny", tiny, CPU)
    text = (tiny.out / "tiny.md").read_text()
    with open(tiny.out / "tiny.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 3 and {row["seed"] for row in rows} == {"0", "1"}
    titles = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert titles[:6] == ["", "alone", "fixed", "trained", "trained, its network", "at two scales"]
    assert text.count(", chosen on the held-out images.") == 2 and "fixed, seed 1: " in text
    claimed = text.split("## What the papers claim")[1].split("## Differences")[0]
    assert "| -1.00 " in claimed and "| +0.00 ± 0.00 | 0.00 " in claimed and "| cannot tell |" in claimed
    assert "trained \N{MINUS SIGN} fixed" not in claimed  # no paper has it
    # The CRF learnt on a network that stayed as it was.
    difference = next(line for line in text.splitlines() if line.startswith("| trained, its network \N{MINUS SIGN}"))
    assert "+0.00 ± 0.00" in difference
    assert "experiments tiny --data CAMVID --seeds 2 -o OUT\n" in text
    assert all(commit in text for name in ("network", "crf") for commit in tiny.commits(name))

    pairs = [(name, seed) for name in ("network", "crf") for seed in (0, 1)]
    best = {pair: tiny.best(*pair).stat().st_mtime_ns for pair in pairs}
    trained.run("tiny", tiny, CPU)  # nothing is trained again
    assert best == {pair: tiny.best(*pair).stat().st_mtime_ns for pair in pairs}
    assert (tiny.out / "tiny.md").read_text().split("|")[4:] == text.split("|")[4:]


def test_a_training_that_fails_is_one_error_that_names_it(tiny, monkeypatch):
    own = runs.RUNS["network"]
    monkeypatch.setitem(runs.RUNS, "network", runs.Run(own.config, changes=("phases.unary.batch=999",)))
    with pytest.raises(
        runs.CommandError, match="run 'network', seed 0: the training failed: .*batch: expected at most the"
    ):
        trained.run("tiny", dataclasses.replace(tiny, seeds=1), CPU)
    assert not (tiny.out / "tiny.md").exists()


def test_experiments_need_the_data(tmp_path, capsys):
    assert main(["experiments", "decoupled", "--data", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
    assert "none: expected a folder, got no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (
            ["--set", "seed=1"],
            "--set seed: expected none, since every run is trained with several; --seeds says how many",
        ),
        (["--data-format", "voc", "--full-size"], "--full-size: expected none with --data-format voc"),
        (["--weights", "here"], "--weights: expected none with --data-format camvid"),
        (["--data-format", "ade20k"], "--data-format: "),
    ],
)
def test_what_tables_refuse(shapes, tmp_path, capsys, options, problem):
    assert main(["experiments", "decoupled", "--data", str(shapes), "-o", str(tmp_path / "out"), *options]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_times_of_the_parts():
    text = trained.part_times(CPU, size=(32, 48), depth=18)
    assert [f"| {part} " in text for part in (*runs.PARTS, "the guidance CRF alone, at 1/4")] == [True] * 5


# Figures --------------------------------------------------------------------------------------------------------------


def test_dots_have_a_panel_for_each_set_and_a_point_for_each_estimate():
    found = {
        "voc": {"accuracy": {"a": Estimate(0.9, 0.01, 5), "b": Estimate(0.8, float("nan"), 1)}},
        "camvid": {"accuracy": {"b": Estimate(0.7, 0.02, 5)}, "mIoU": {"b": Estimate(0.5, 0.02, 5)}},
    }
    figure = dots(found, differences=True)
    assert len(figure.axes) == 2
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["a", "b"]
    assert len(left.containers) == 1 and len(right.containers) == 2
    assert left.containers[0].lines[0].get_xdata().tolist() == [90.0, 80.0]
    assert right.get_legend() is not None and left.get_legend() is None

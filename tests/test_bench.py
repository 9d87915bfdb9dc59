"""The benchmarks' own plumbing, at tiny sizes: what is counted, who is compared with whom, and what the reports say."""

import json
import math
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
import tritoncrf.densecrf
from assertions import assert_close
from bench import accuracy, floors, gpu, methods, peers, pipelines, providers, report
from bench import test_crf as benchmarks
from bench.memory import peak_on_cpu
from bench.providers import errors, facts, runner
from bench.workloads import (
    GROWTH,
    ConvCRFWork,
    CRFWork,
    ExactWork,
    GrowthPoint,
    GuidedWork,
    Inputs,
    LatticeWork,
    gaussian_features,
    growth_points,
    live_share,
)
from tritoncrf.models import FCN8sCRFRNN, ResNetConvCRF, SegModel, config
from tritoncrf.reference import exact as reference

SIZE = (24, 32)
CPU = torch.device("cpu")

# Floors -----------------------------------------------------------------------------------------------------------


def test_a_lattice_filter_is_counted():
    """21 classes, 10 pixels in simplices of 3 corners, 4 vertices."""
    gathered = 4 * 21 * (2 * 10 * 3 + 4 * 4 * 3)
    counted = floors.Work(2 * 21 * 10 * 4, 21 * (10 * 3 * 4 + 4 * 3 * 3), 0, gathered=gathered)
    assert floors.lattice_filter(21, 10, 3, 4) == counted
    assert floors.lattice_build(10, 3).bytes == 4 * (10 * 2 + 3 * 10 * 3)


def test_an_exact_filter_is_counted():
    counted = floors.exact_filter(21, 10, 5, 0.25)
    assert counted == floors.Work(2 * 21 * 10 * 4, 0, 25, 2 * 26 * 25)


def test_a_step_reads_u_and_q_and_writes_q():
    filters = [floors.lattice_filter(2, 10, 3, 4), floors.lattice_filter(2, 10, 6, 7)]
    step = floors.full_step(filters, 2, 10)
    assert step.bytes == 3 * 2 * 10 * 4 and step.exponentials == 20
    assert step.operations == sum(f.operations for f in filters)
    backward = {learns: floors.full_step_backward(filters, 2, 10, learns) for learns in ("weights", "features")}
    assert backward["weights"].operations == step.operations + 2 * 2 * 20
    assert backward["features"].operations == 3 * step.operations + 2 * 2 * 20


def test_a_guided_filter_is_counted():
    """2 classes, 10 pixels, a guide of 3 channels: 6 entries of A, 4 coefficients, box sums of 5 operations a field."""
    numbers = 2 * 20 + 2 * 4 * 20 + (2 * 3 + 3 + 6) * 10
    filtered = floors.guided_filter(2, 10, 3)
    assert filtered == floors.Work(4 * numbers, 20 * (3 + 6 + 18 + 6 + 6 + 2 * 5 * 4), 0)
    assert floors.guided_step(2, 10, 3) == filtered + floors.Work(4 * 20, 2 * 20, 20)
    backward = {learns: floors.guided_step_backward(2, 10, 3, learns) for learns in ("weights", "features")}
    assert backward["weights"] == filtered + floors.Work(4 * 3 * 20, 4 * 20, 0)
    assert backward["features"].operations == 3 * filtered.operations + (4 + 2 * (4 * 3 + 2 * 6)) * 20
    assert backward["features"].bytes == backward["weights"].bytes + 4 * (2 * 2 * 4 * 20 + (2 * 3 + 6) * 10)
    assert floors.guided_statistics(10, 3) == floors.Work(4 * 12 * 10, (6 + 5 * 9 + 27 + 12) * 10, 0)
    assert floors.guided_statistics_backward(10, 3).bytes == 4 * (2 * (3 + 3 + 6)) * 10


def test_the_floor_is_the_slowest_unit():
    rates = floors.Rates(bytes=1.0, operations=2.0, exponentials=4.0, products=8.0)
    for work, seconds in [((8, 1, 1, 1), 8), ((1, 8, 1, 1), 4), ((1, 1, 8, 1), 2), ((0, 0, 0, 8), 1)]:
        assert floors.Work(*work, gathered=1000).floor(rates) == seconds


# Works and providers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LatticeWork, ExactWork])
def test_stages_add_up(kind):
    work = kind(size=SIZE, classes=3, batch=2)
    found = facts(work, CPU)
    counts = {stage: work.counts(found, stage) for stage in ("smooth", "appearance", "loop", "kept", "total")}
    assert counts["kept"] == counts["appearance"] + counts["loop"]
    assert counts["total"] == counts["smooth"] + counts["kept"]
    assert work.counts(found, "loop", "weights").operations > counts["loop"].operations
    assert all(c.bytes > 0 for c in counts.values())


def test_stages_of_a_guidance_crf_add_up():
    work = GuidedWork(size=SIZE, batch=2)
    assert facts(work, CPU) == {}
    for learns in (None, "weights", "features"):
        counts = {stage: work.counts({}, stage, learns) for stage in ("build", "loop", "total")}
        assert counts["total"] == counts["build"] + counts["loop"]
        assert counts["total"] == replace(work, batch=1).counts({}, "total", learns) * 2


def test_vertices_are_counted_per_image():
    one, two = (facts(LatticeWork(size=SIZE, batch=b), CPU) for b in (1, 2))
    assert one["vertices"][0] == two["vertices"][0]  # positions serve both images
    assert [m / math.prod(SIZE) for m in one["vertices"]] == one["vertices_per_pixel"]
    # The second image is the first one, shifted: about as many vertices, not twice as many.
    assert two["vertices"][1] == pytest.approx(one["vertices"][1], rel=0.2)


def test_live_share_of_all_pairs_and_of_few():
    f = torch.linspace(0, 1, 400).view(1, 1, -1)
    assert live_share(tc.filters.Exact(f, rtol=0)) == 1
    apart = torch.arange(400.0).view(1, 1, -1) * 100
    blocks = -(-400 // reference.TILE)
    assert live_share(tc.filters.Exact(apart)) == pytest.approx(1 / blocks)


@pytest.mark.parametrize("kind", [LatticeWork, ExactWork, GuidedWork])
def test_the_stages_compute_the_same(kind):
    inputs = Inputs(kind(size=SIZE, classes=3), CPU)
    total = runner("tritoncrf", inputs)()
    assert torch.equal(runner("tritoncrf", inputs, "loop")(), total)
    if kind is LatticeWork:
        assert torch.equal(runner("tritoncrf", inputs, "kept")(), total)
    if kind is GuidedWork:
        assert [f.size for f in runner("tritoncrf", inputs, "build")()] == [SIZE]
        return
    for stage in ("smooth", "appearance"):
        assert runner("tritoncrf", inputs, stage)().size == SIZE


@pytest.mark.parametrize("learns", [None, "weights"])
@pytest.mark.parametrize("work, builds", [
    (LatticeWork(size=SIZE, classes=3), {"loop": 2, "total": 4, "kept": 3}), (ExactWork(size=SIZE, classes=3), {"total": 4}),
    (ConvCRFWork(3, size=SIZE, classes=3), {"total": 4}), (GuidedWork(size=SIZE, classes=3), {"loop": 1, "total": 2}),
])  # fmt: skip
def test_what_waits_for_the_device_is_not_captured(work, builds, learns, monkeypatch):
    """Filters are built once for the capture, and by each call before the replay; those of windows and guides within."""
    built = []
    monkeypatch.setattr(providers, "replayed", lambda call: call)
    for name in ("filters",) if work.filter == "guided" else ("smooth", "appearance"):
        build = getattr(type(work), name)
        monkeypatch.setattr(type(work), name, lambda *args, build=build: built.append(args) or build(*args))
    inputs = Inputs(work, CPU, learns=learns or ("features" if work.filter == "window" else None))
    for stage, count in builds.items():
        built.clear()
        call = providers.graphed(inputs, stage)
        call()
        if not work.follows_picture and stage == "total":
            call()
        assert len(built) == count


@pytest.mark.parametrize("kind, learns, count", [
    (LatticeWork, "weights", 3), (LatticeWork, "features", 6), (GuidedWork, "weights", 2), (GuidedWork, "features", 4),
])  # fmt: skip
def test_a_training_step_gives_every_gradient(kind, learns, count):
    inputs = Inputs(kind(size=SIZE, classes=3), CPU, learns=learns)
    gradients = runner("tritoncrf", inputs)()
    assert len(gradients) == len(inputs.learnt) == count
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("kind", [LatticeWork, GuidedWork])
def test_errors_are_those_of_float32(kind):
    work = kind(size=SIZE, classes=3, iterations=2)
    found = errors(work, CPU, None)
    assert 0 < found["step_rms"] < 1e-5 and 0 < found["loop_max"] < 1e-4
    assert 0 < errors(work, CPU, "weights")["gradient_rms"] < 1e-4


def test_pydensecrf_is_called_as_its_own_shape_asks(monkeypatch):
    """Run through tritoncrf.densecrf, which has pydensecrf's face, and its order of axes: columns first."""
    monkeypatch.setitem(sys.modules, "pydensecrf", tritoncrf)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", tritoncrf.densecrf)
    inputs = Inputs(LatticeWork(size=SIZE, classes=3), CPU)
    work = inputs.work
    smooth, appearance = work.smooth_features(inputs)[:, [1, 0]], work.appearance_features(inputs)[:, [1, 0, 2, 3, 4]]
    filters = [tc.filters.Lattice(f, normalization="symmetric") for f in (smooth, appearance)]
    expected = tc.mean_field(inputs.logits, filters, inputs.weights, iterations=work.iterations)[0].flatten(1)
    q = torch.from_numpy(runner("pydensecrf", inputs)())
    assert torch.equal(q, torch.from_numpy(runner("pydensecrf", inputs, "loop")()))
    assert_close("Q", q, expected)
    for stage in ("smooth", "appearance"):
        runner("pydensecrf", inputs, stage)()


@pytest.mark.parametrize("radius", [1, 3, 9])
def test_torch_boxes_compute_the_guidance_crf(radius):
    """The same in float64, values and what is timed of the gradients, with windows wider than the image among them."""
    work = GuidedWork(size=(15, 17), classes=3, batch=2, radius=radius)
    inputs = Inputs(work, CPU, torch.float64)
    assert_close("S", runner("torch_boxes", inputs)(), runner("tritoncrf", inputs)())
    assert torch.equal(runner("torch_boxes", inputs, "loop")(), runner("torch_boxes", inputs)())
    inputs = Inputs(work, CPU, torch.float64, learns="weights")
    gradients = [runner(provider, inputs)() for provider in ("torch_boxes", "tritoncrf")]
    for name, *pair in zip(("logits", "weight"), *gradients, strict=True):
        assert_close(name, *pair)


def test_kornia_filters_as_we_do():
    """Beyond the image it has zeros: the same everywhere with constant boxes, and else inside."""
    pytest.importorskip("kornia", reason="kornia: not installed")
    work = GuidedWork(size=SIZE, classes=3)
    inputs = Inputs(work, CPU, torch.float64)
    guide, values = work.guide(inputs), inputs.logits.softmax(1)
    found = peers.guided_blur(guide, values, work.radius, *work.thetas)
    for box, inside in ("constant", ...), ("count", (..., *[slice(2 * work.radius, -2 * work.radius)] * 2)):
        expected = tc.filters.Guided(guide, work.radius, *work.thetas, box=box)(values)
        assert_close(box, found[inside], expected[inside])
    filter = tc.filters.Guided(guide, work.radius, *work.thetas, box="constant")
    expected = tc.mean_field(inputs.logits, [filter], work.weights, iterations=work.iterations, output="logits")
    assert_close("S", runner("kornia", inputs)(), expected)


@pytest.mark.slow  # it compiles
def test_keops_computes_the_exact_crf():
    pytest.importorskip("pykeops", reason="pykeops: not installed")
    inputs = Inputs(ExactWork(size=(16, 16), classes=3, iterations=2), CPU)
    assert_close("S", runner("pykeops", inputs)(), runner("tritoncrf", inputs)(), rms=1e-4, worst=1e-3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_measured_in_a_process_of_its_own():
    assert peak_on_cpu("tritoncrf", LatticeWork(size=(64, 64)), "loop", "weights") > 0
    assert peak_on_cpu("torch_boxes", GuidedWork(size=(64, 64)), "total", "weights") > 0


@pytest.mark.parametrize("filter", GROWTH)
def test_growth_points_are_made_and_counted(filter, monkeypatch):
    assert {point[0] for point in growth_points("cpu")} == {"window", "lattice", "guided"}
    monkeypatch.setitem(GROWTH[filter][0], "side", 20)
    for axis, value in (("side", 16), ("features", 1), ("features", 7)):
        grown = GrowthPoint(filter, axis, value, CPU)
        assert grown.features.shape[1] == grown.point["features"]
        assert grown.apply().shape == grown.values.shape
        assert all(c.bytes > 0 for c in grown.counts.values())


# Reports ----------------------------------------------------------------------------------------------------------


def row(work: CRFWork, provider: str, median: float, **others) -> dict:
    """As a benchmark writes it."""
    about = {"work": work.id, "filter": work.filter, "picture": "p", "provider": provider, "mode": "eager"}
    measured = {"median": median, "iqr": 0.0, "floor": None, "copy_bandwidth": None, "peak_memory": 1000}
    return asdict(work) | about | measured | asdict(floors.Work(10, 20, 0)) | others


def test_a_report_names_its_peers_and_compares_with_them():
    work = LatticeWork(size=SIZE)
    rows = [
        row(work, "tritoncrf", 1.0, stage="total", vertices_per_pixel=[0.1, 0.25]),
        row(work, "tritoncrf", 0.5, stage="kept"),
        row(work, "tritoncrf", 0.1, stage="loop"),
        row(work, "pydensecrf", 3.0, stage="total"),
        row(replace(work, iterations=10), "tritoncrf", 1.0, stage="total"),
    ]
    environment = {"device": "a processor", "date": "today", "torch": "2.0", "peers": {"pydensecrf": "not installed"}}
    text = report.markdown(environment, rows)
    assert "pydensecrf: not installed" in text and "torch 2.0" in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    header, *lines = table
    found = [dict(zip(header, line)) for line in lines]
    assert [line["faster"] for line in found] == ["3 x", "6 x", "", "", ""]
    assert found[0]["M/N"] == "0.1, 0.25" and found[0]["T"] == "5" and "k" not in header


def test_a_row_with_two_peers_is_compared_with_both():
    work = GuidedWork(size=SIZE)
    rows = [
        row(work, provider, median, stage="total")
        for provider, median in (("tritoncrf", 1.0), ("torch_boxes", 3.0), ("kornia", 8.0))
    ]
    ours, *others = (report.cells(row, report.peers_of(row, report.peers(rows))) for row in rows)
    assert ours["faster"] == "3 x, 8 x" and ours["memory"] == "1 x, 1 x" and ours["r"] == "3"
    assert all(other["faster"] == "" for other in others)


def test_works_that_differ_in_any_number_are_told_apart():
    works = [GuidedWork(size=SIZE), GuidedWork(size=SIZE, radius=8), LatticeWork(size=SIZE), ConvCRFWork(3, size=SIZE)]
    assert len({report.key(row(work, "tritoncrf", 1.0)) for work in works}) == len(works)


def test_a_report_from_before_guided_filters_still_compares(tmp_path):
    rows = [row(LatticeWork(size=SIZE), "tritoncrf", median) for median in (2.0, 1.0)]
    for name, found in zip(("before", "after"), rows):
        environment = {"device": "a processor", "commit": name}
        (tmp_path / name).write_text(json.dumps({"environment": environment, "rows": [found]}))
    assert "2 x" in report.compare(tmp_path / "before", tmp_path / "after")


def test_a_row_that_does_not_name_its_filter_is_of_a_window():
    assert report.key({"work": "W1"}) == report.key({"work": "W1", "filter": "window", "learns": "features"})


def test_peers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(peers, "OPTIONAL", ("no_such_peer",))
    assert peers.versions() == {"no_such_peer": "not installed"}
    assert not peers.installed("no_such_peer") and peers.installed("im2col")


def test_quick_benchmarks_take_the_lattice_and_its_peer():
    quick, whole = ([benchmarks.name(run) for run in benchmarks.forward(q)] for q in (True, False))
    assert set(quick) < set(whole) and len(set(whole)) == len(whole)
    for provider in ("tritoncrf", "pydensecrf"):
        assert f"lattice-batch1-T5-total-grace_hopper-{provider}-eager" in quick
    assert "exact-batch1-T5-total-grace_hopper-pykeops-eager" in whole
    assert not any(run.startswith("exact") for run in quick)
    for provider in ("tritoncrf", "torch_boxes", "kornia"):
        assert f"guided-r3-500x500-batch1-T3-total-grace_hopper-{provider}-eager" in quick
        assert f"guided-r3-256x512-batch1-T3-total-grace_hopper-{provider}-eager" in whole
    # Only who builds a filter apart has these stages.
    assert "guided-r3-500x500-batch1-T3-loop-grace_hopper-torch_boxes-eager" in quick
    assert not any("kornia" in run and "-total-" not in run for run in whole)
    assert not any("pykeops" in run and "-total-" not in run for run in whole)


# Accuracy ---------------------------------------------------------------------------------------------------------


def test_the_distance_is_from_the_dense_matrix():
    """All pixels of a small picture: the error that is reported, computed again."""
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    (row,) = accuracy.measure("noise", picture, "cpu", thetas=[(80, 13)], pixels=117)
    f = gaussian_features(torch.from_numpy(picture).permute(2, 0, 1)[None], (80, 13))
    points = f.double()[0].flatten(1).T
    k = torch.exp(-torch.cdist(points, points).square() / 2)
    labels = accuracy.brightness_bands(picture, accuracy.CLASSES)
    scores = accuracy.noisy_scores(labels, accuracy.CLASSES, seed=accuracy.SEED)
    x = torch.from_numpy(scores)[None]
    mean = x.double()[0].flatten(1) @ (k / k.sum(1, keepdim=True)).T
    difference = tc.filters.Lattice(f, normalization="after")(x)[0].flatten(1).double() - mean
    assert row["relative_l2"] == pytest.approx((difference.norm() / mean.norm()).item(), rel=1e-4)
    assert row["largest"] == pytest.approx(difference.abs().max().item(), rel=1e-4)


def test_an_accuracy_report(tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "wide.png")
    monkeypatch.setattr(accuracy, "SIZE", SIZE)
    assert accuracy.run(photos, tmp_path / "out") == 0
    (text,), (data,) = (list((tmp_path / "out").glob(pattern)) for pattern in ("accuracy-*.md", "accuracy-*.json"))
    assert text.read_text() in capsys.readouterr().out
    rows = json.loads(data.read_text())["rows"]
    assert len(rows) == 2 * len(accuracy.THETAS)
    assert {row["picture"]: row["size"] for row in rows} == {"grace_hopper": [24, 32], "wide": [15, 500]}
    for found in rows:
        assert 0 < found["relative_l2"] < 1 and 0 < found["largest"] < 2 and 0.3 < found["row_sum_ratio"] < 1.1
        assert found["bar"] == (0.02 if len(found["thetas"]) == 1 else 0.06)


# Methods ----------------------------------------------------------------------------------------------------------


def test_methods_are_drawn_and_told(tmp_path, monkeypatch, capsys):
    """On a detail of the photo. The picture is small enough to be read on a page."""
    detail = slice(60, 140), slice(150, 250)
    image, truth = methods.photo()[detail], methods.mask()[detail]
    monkeypatch.setattr(methods, "photo", lambda: image)
    monkeypatch.setattr(methods, "mask", lambda: truth)
    assert methods.run(tmp_path / "methods.png") == 0
    with Image.open(tmp_path / "methods.png") as drawn:
        assert drawn.width == pytest.approx(methods.WIDTH, abs=1)
    printed = capsys.readouterr().out
    assert "50 x 40 pixels" in printed
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    found = {name: dict(zip(rows[0], [name, *rest])) for name, *rest in rows[1:]}
    assert set(found) == {"input", *methods.METHODS}
    assert found["guided"]["settings"] == "radius 8" and found["exact"]["unlike exact"] == "0.0%"


# Pipelines --------------------------------------------------------------------------------------------------------


def test_pipelines_are_timed_with_and_without_their_crf(tmp_path, monkeypatch, capsys):
    """The networks themselves at a tenth of their width; the report says what the rows say."""
    options = {"network": {"width": 0.1}, "crf": {"iterations": 1}}
    tiny = {
        "FCN-8s": (lambda c: FCN8sCRFRNN(c, **options), (24, 32)),
        "ResNet": (lambda c: ResNetConvCRF(c, network={"depth": 18, "width": 0.1}), (40, 48)),
        "SegModel": (lambda c: SegModel(c, 18, 0.1), (40, 50)),
    }
    monkeypatch.setattr(pipelines, "PIPELINES", tiny)
    monkeypatch.setattr(pipelines, "ROUNDS", 1)
    assert pipelines.run(tmp_path) == 0
    (found,) = tmp_path.glob("pipelines-*.json")
    rows = json.loads(found.read_text())["rows"]
    assert [row["pipeline"] for row in rows] == list(tiny)
    assert all(row["network"] > 0 for row in rows)
    assert found.with_suffix(".md").read_text() in capsys.readouterr().out + "\n"
    model = tiny["SegModel"][0](pipelines.CLASSES)
    network, crf = pipelines.seconds(model, pipelines.picture((40, 50), 2, CPU), "training step")
    assert network > 0 and network + crf > 0


def test_a_line_of_a_pipeline():
    row = {"pipeline": "P", "size": (4, 5), "batch": 8, "mode": "forward", "network": 0.3, "crf": 0.1}
    assert pipelines.line(row) == ["P", "4x5", "8", "forward", "300", "100", "25.0%", "20"]


@pytest.mark.parametrize("name", gpu.TRAINED)
def test_the_runs_of_the_gpu_stage_are_configurations(name):
    found = config.load(name, [*gpu.FULL_SIZE, *gpu.TRAINED[name]])
    with torch.device("meta"):
        config.build(found, 11, name)
    config.augmentation(found, name)

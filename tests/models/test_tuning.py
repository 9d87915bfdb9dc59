"""Searches for settings: what they find, what they are judged by, that they go on where they were, and bad input."""

import itertools
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from covering import covering
from tritoncrf import cli, refine
from tritoncrf.files import FileError
from tritoncrf.models import metrics, tuning
from tritoncrf.models.scored import Scored
from tritoncrf.models.tuning import descent
from tritoncrf.models.tuning.grid import WIDEST, climbed
from tritoncrf.models.tuning.slopes import LEARNED, slopes

optuna = pytest.importorskip("optuna", reason="needs Optuna, the extra `tune`")

pytestmark = pytest.mark.extras
BUDGET = 4


def problem(noise=0.35, count=4, seed=0):
    """Photos of two halves, a probability of the right one that noise blurs, and the halves."""
    draw = np.random.default_rng(seed)
    truths = [np.repeat([[0, 1]], 10, 0).repeat(6, 1) for _ in range(count)]
    truths = [np.roll(truth, n, 1) for n, truth in enumerate(truths)]
    images = [(90 * t[..., None] + draw.integers(30, 50, (*t.shape, 3))).astype(np.uint8) for t in truths]
    p = [np.clip(0.5 + 0.2 * (2 * t - 1) + noise * draw.normal(size=t.shape), 0.01, 0.99) for t in truths]
    return images, [x.astype(np.float32) for x in p], truths


def tuned(images, foreground, truths, **options):
    return tc.tune(images, foreground=foreground, truths=truths, **{"budget": BUDGET, **options})


def miou(images, foreground, truths, which, parameters):
    found = [
        metrics.confusion_matrix((refine(images[n], foreground=foreground[n], **parameters) > 0.5) * 1, truths[n], 2)
        for n in which
    ]
    return metrics.mean_iou(sum(found))


def test_what_it_finds_and_what_it_is_judged_by():
    given = problem()
    found = tuned(*given)
    everything = range(len(given[0]))
    assert [fold.images for fold in found.folds] == [(0, 2), (1, 3)]
    assert found.alone.value == miou(*given, everything, {"iterations": 0})
    counts = np.zeros((2, 2), int)
    for fold in found.folds:
        seen = [n for n in everything if n not in fold.images]
        assert len(fold.trials) == BUDGET
        for trial in fold.trials:
            assert trial.value == miou(*given, seen, trial.parameters)
        assert miou(*given, seen, fold.parameters) >= miou(*given, seen, {})
        for n in fold.images:
            q = refine(given[0][n], foreground=given[1][n], **fold.parameters)
            counts += metrics.confusion_matrix((q > 0.5) * 1, given[2][n], 2)
    assert found.refined.value == metrics.mean_iou(counts)
    assert found.gain.value == pytest.approx(found.refined.value - found.alone.value) and found.gain.value > 0.1
    assert found.helps and found.parameters["method"] in ("lattice", "guided")


def test_a_trial_wins_where_it_is_clearly_ahead():
    """Edges of two grey levels, which Gaussian settings with a name smooth over; of few images nothing is told."""

    def found(count):
        _, p, truths = problem(count=count)
        images = [(2 * t[..., None] + 100).astype(np.uint8).repeat(3, 2) for t in truths]
        return tuned(images, p, truths, budget=24, theta_smooth="0.3%")

    many, few = found(8), found(6)
    assert all(fold.chosen.startswith("trial") for fold in many.folds)
    assert many.parameters in [{"theta_smooth": "0.3%", **fold.parameters} for fold in many.folds]
    assert not any(fold.chosen.startswith("trial") for fold in few.folds)


def test_where_scores_are_right_no_crf_is_best():
    images, _, truths = problem()
    found = tuned(images, [np.clip(t, 0.2, 0.8) for t in truths], truths)
    assert not found.helps and found.parameters == {"method": "lattice", "iterations": 0} and found.gain.value == 0
    assert "no CRF is best" in str(found)


@pytest.mark.parametrize("method", tuning.SPACES)
def test_every_method_and_kind_of_scores(method):
    images, p, truths = problem()
    kinds = {
        "logits": [np.stack([0 * x, np.log(x / (1 - x))]) for x in p],
        "labels": [(x > 0.5).astype(np.uint8) for x in p],
        "mask": [torch.from_numpy(x > 0.5) for x in p],
    }
    name = ["logits", "labels", "mask"][len(method) % 3]
    options = {"num_classes": 2} if name == "labels" else {}
    found = tc.tune(
        images, **{name: kinds[name]}, truths=truths, method=method, budget=2, measure="accuracy", **options
    )
    space = tuning.SPACES[method]
    for trial in found.folds[0].trials:
        assert set(trial.parameters) == {"method", *space} and trial.parameters["method"] == method
    refine(images[0], **{name: kinds[name][0]}, **found.parameters)
    assert found.figure().axes


def test_arguments_that_are_given_stay():
    found = tuned(*problem(), iterations=2, theta_color=30.0)
    for trial in found.folds[0].trials:
        assert "iterations" not in trial.parameters and "theta_color" not in trial.parameters
    assert found.parameters["iterations"] == 2 and found.parameters["theta_color"] == 30.0
    images, _, truths = problem()
    none = tuned(images, [np.clip(t, 0.2, 0.8) for t in truths], truths, iterations=2)
    assert none.parameters["iterations"] == 0  # no CRF is no CRF
    found = tuned(*problem(), method="guided", radius=2, budget=2)
    assert found.parameters["method"] == "guided" and found.parameters["radius"] == 2


def test_where_it_ran_is_no_setting(tmp_path):
    found = tuned(*problem(), budget=1, device="cpu")
    (tmp_path / "p.toml").write_text(found.toml())
    assert "device" not in found.parameters and tc.load_parameters(tmp_path / "p.toml") == found.parameters


def test_the_seed_decides():
    given = problem()
    first, again, other = (tuned(*given, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.folds[0].trials != other.folds[0].trials


# On a grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [(0,), (3,), (-2, 1), (1, -4, 2), (9, 0)])
def test_the_best_of_the_grid_has_no_better_neighbour(peak):
    """A single peak is found wherever it is, or the edge nearest to it; each point is measured once."""
    found = list(climbed(len(peak), lambda point: -sum((a - b) ** 2 for a, b in zip(point, peak))))
    points = [point for point, _ in found]
    assert max(found, key=lambda pair: pair[1])[0] == tuple(min(p, WIDEST) for p in peak)
    assert len(points) == len(set(points)) and max(abs(x) for point in points for x in point) <= WIDEST
    neighbours = set(itertools.product((-1, 0, 1), repeat=len(peak)))
    assert set(points[: 3 ** len(peak)]) == neighbours


def test_where_all_is_equal_the_start_stays():
    assert max(climbed(2, lambda point: 0.5), key=lambda pair: pair[1])[0] == (0, 0)
    assert len(list(climbed(2, lambda point: 0.5))) == 9


@pytest.mark.parametrize(
    "method, names", [("lattice", ("theta_space", "weight_appearance")), ("guided", ("radius", "eps"))]
)
def test_a_grid_starts_at_the_defaults_and_ends_before_the_budget(method, names):
    given = problem(count=2)
    fixed = {"theta_color": 5.0} if method == "lattice" else {"weight_appearance": 10.0}
    found = tuned(*given, method=method, search="grid", budget=200, iterations=2, **fixed)
    for fold in found.folds:
        [seen] = {0, 1} - set(fold.images)
        assert 9 <= len(fold.trials) < 200
        assert set(fold.trials[0].parameters) == {"method", *names}
        assert fold.trials[0].value == miou(*given, [seen], {"method": method, "iterations": 2, **fixed})
        last = fold.trials[-1]
        assert last.value == miou(*given, [seen], {**last.parameters, "iterations": 2, **fixed})


# By gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["foreground", "labels"])
@pytest.mark.parametrize("method", ["lattice", "exact", "window"])
def test_slopes_are_those_of_the_cross_entropy(method, kind):
    """By differences, of the settings as `refine` takes them; the lattice's jump, so for it of its weights and costs."""
    [image, *_], [p, *_], [truth, *_] = problem()
    truth = truth.copy()
    truth[:2] = 255
    scores = {"foreground": p.astype(np.float64)} if kind == "foreground" else {"labels": (p > 0.5) * 1}
    image = image / 255.0  # in float64
    given = {
        "method": method, "theta_space": (5.0, 4.0), "theta_color": 40.0, "theta_smooth": "9%", "weight_smooth": 0.4,
        "weight_appearance": 0.7, "compatibility": [[-1.0, 0.2], [0.1, -0.9]], "iterations": 2,
    }  # fmt: skip

    def loss(changes):
        q = refine(image, **scores, **{**given, **changes})
        q = np.stack([1 - q, q]) if kind == "foreground" else q
        known = truth != 255
        return -np.log(np.take_along_axis(q, np.where(known, truth, 0)[None], 0)[0][known].astype(float)).mean()

    found = slopes(Scored(image, scores, truth), given)
    step = 1e-3 if kind == "foreground" else 1e-2
    wanted = []
    for name in LEARNED:
        low, high = ({name: _scaled(given[name], np.exp(sign * step))} for sign in (-1, 1))
        wanted.append((loss(high) - loss(low)) / 2 / step)
    for row, column in np.ndindex(2, 2):
        low, high = (np.array(given["compatibility"]) for _ in range(2))
        low[row, column] -= step
        high[row, column] += step
        wanted.append((loss({"compatibility": high}) - loss({"compatibility": low})) / 2 / step)
    n = 3 if method == "lattice" else 0
    assert np.abs(wanted[n:]).max() > 0.01
    np.testing.assert_allclose(found[n:], wanted[n:], rtol=0.02, atol=2e-4)


def _scaled(value, factor):
    if isinstance(value, str):
        return f"{float(value[:-1]) * factor}%"
    return tuple(v * factor for v in value) if isinstance(value, tuple) else value * factor


@pytest.mark.parametrize("method", ["lattice", "exact", "window"])
def test_gradients_lower_the_cross_entropy_and_what_they_find_is_refines(method, tmp_path):
    images, p, truths = problem(noise=0.6)
    draw = np.random.default_rng(0)
    given = [draw.integers(0, 256, image.shape, dtype=np.uint8) for image in images], p, truths  # nothing to see
    small = {"window_size": 3, "blur": 1} if method == "window" else {}
    found = tuned(*given, method=method, search="gradient", budget=8, **small)
    for fold in found.folds:
        seen = [n for n in range(4) if n not in fold.images]
        assert len(fold.trials) == 8
        for trial in fold.trials:
            assert set(trial.parameters) == {"method", *LEARNED, "compatibility", "iterations"}
            assert trial.value == miou(*given, seen, trial.parameters | small)
        losses = [cross_entropy(*given, seen, trial.parameters | small) for trial in fold.trials]
        assert losses[-1] < 0.95 * losses[0]
    parameters = found.folds[0].trials[-1].parameters
    found = replace(found, parameters=parameters)
    (tmp_path / "p.toml").write_text(found.toml())
    assert tc.load_parameters(tmp_path / "p.toml") == found.parameters
    assert found.figure().axes and "compatibility" in str(found)


def cross_entropy(images, foreground, truths, which, parameters):
    losses = []
    for n in which:
        q = refine(images[n], foreground=foreground[n], **parameters)
        losses.append(-np.log(np.where(truths[n] == 1, q, 1 - q).clip(1e-12)).mean())
    return np.mean(losses)


def test_gradients_leave_what_is_given():
    found = tuned(*problem(), search="gradient", theta_color=30.0, compatibility="potts", iterations=1)
    for trial in found.folds[0].trials:
        assert not {"theta_color", "compatibility", "iterations"} & set(trial.parameters)
    thetas = [trial.parameters["theta_space"] for trial in found.folds[0].trials]
    assert len(set(thetas)) == BUDGET


def test_gradients_end_where_the_measure_no_longer_grows(monkeypatch):
    monkeypatch.setattr(descent, "PATIENCE", 2)
    images, _, truths = problem()
    sure = [np.clip(t, 0.01, 0.99).astype(np.float32) for t in truths]  # nothing to gain
    found = tuned(images, sure, truths, search="gradient", budget=50)
    assert [len(fold.trials) for fold in found.folds] == [3, 3]


@pytest.mark.parametrize("stop, search", covering([2, BUDGET + 1], tuning.SEARCHES, at_once=1))
def test_a_search_that_was_stopped_goes_on_to_the_same_end(tmp_path, stop, search):
    given, seen = problem(), []

    def killed(line):
        seen.append(line)
        if sum("trial" in line for line in seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(*given, search=search, study=tmp_path / "s.sqlite", progress=killed)
    counted = []
    found = tuned(*given, search=search, study=tmp_path / "s.sqlite", progress=counted.append)
    assert found == tuned(*given, search=search)
    study = optuna.load_study(study_name="fold 0", storage=f"sqlite:///{tmp_path / 's.sqlite'}")
    assert len(study.trials) == BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("search", tuning.SEARCHES)
def test_processes_change_no_bit(search):
    given = problem()
    assert tuned(*given, search=search, jobs=2) == tuned(*given, search=search)


def test_a_study_of_another_search_is_refused(tmp_path):
    given, path = problem(), tmp_path / "s.sqlite"
    tuned(*given, study=path, budget=1)
    with pytest.raises(ValueError, match="^study: expected the file of this search, got .*s.sqlite, with other images"):
        tuned(*problem(seed=1), study=path)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="^study: expected the file of a search, or a new file"):
        tuned(*given, study=path)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tritoncrf\[tune\]"'):
        tuned(*problem())


IMAGES, P, TRUTHS = problem()


@pytest.mark.parametrize("change, error, message", [
    ({"foreground": None}, TypeError, "^tune: expected exactly one of logits=.*got none"),
    ({"mask": P}, TypeError, "^tune: expected exactly one of .*got mask and foreground"),
    ({"truths": TRUTHS[1:]}, ValueError, "^truths: expected one for each of 4 images, got 3"),
    ({"foreground": P[:2]}, ValueError, "^foreground: expected one for each of 4 images, got 2"),
    ({"images": np.stack(IMAGES)}, TypeError, "^images: expected a list"),
    ({"truths": [t[1:] for t in TRUTHS]}, ValueError, r"^truths\[0\]: expected the size of foreground\[0\], \[10, 12\]"),
    ({"truths": [t * 1.0 for t in TRUTHS]}, ValueError, r"^truths\[0\]: expected integers \[H, W\]"),
    ({"truths": [t * 2 for t in TRUTHS]}, ValueError, r"^truths\[0\]: expected classes from 0 to 1, or 255"),
    ({"truths": [t * 255 for t in TRUTHS]}, ValueError, "^truths: expected labels other than 0 and 255.*truth > 0"),
    ({"images": IMAGES[:1], "foreground": P[:1], "truths": TRUTHS[:1]}, ValueError, "^images: expected 2 or more"),
    ({"budget": 0}, ValueError, "^budget: expected an int from 1"),
    ({"folds": 5}, ValueError, "^folds: expected an int from 2 to 4, got 5"),
    ({"folds": 1}, ValueError, "^folds: expected an int from 2 to 4, got 1"),
    ({"measure": "dice"}, ValueError, "^measure: expected one of 'miou'"),
    ({"search": "random"}, ValueError, "^search: expected one of 'tpe', 'grid', 'gradient', got 'random'"),
    ({"search": "gradient", "method": "guided"}, ValueError, "^search: expected 'tpe' or 'grid' with method='guided'"),
    ({"method": "magic"}, ValueError, "^method: expected one of 'lattice'"),
    ({"jobs": -1}, ValueError, "^jobs: expected an int from 0"),
    ({"theta": 3}, TypeError, "^theta: expected arguments of refine"),
])  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        tc.tune(**{"images": IMAGES, "foreground": P, "truths": TRUTHS, "budget": 1, **change})


# Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "photos", "scores", "truth":
        (tmp_path / name).mkdir()
    for n, (image, p, truth) in enumerate(zip(*problem())):
        Image.fromarray(image).save(f"photos/{n}.png")
        np.save(f"scores/{n}.npy", p)
        Image.fromarray(truth.astype(np.uint8)).save(f"truth/{n}.png")
    return tmp_path


COMMAND = "tune", "photos", "--foreground", "scores", "--truth", "truth", "-o", "tuned.toml"


def test_the_command_from_folders_to_a_file_that_refine_takes(folders, capsys):
    assert cli.main([*COMMAND, "--budget", "2", "--study", "s.sqlite", "--figure", "search.png"]) == 0
    images, p, truths = problem()
    expected = tuned(images, p, truths, budget=2)
    assert "wrote tuned.toml" in capsys.readouterr().out and (folders / "search.png").read_bytes()[1:4] == b"PNG"
    parameters = tc.load_parameters("tuned.toml")
    assert parameters == expected.parameters
    assert (
        cli.main(["photos/0.png", "--foreground", "scores/0.npy", "-o", "out.npy", "--parameters", "tuned.toml"]) == 0
    )
    assert np.array_equal(np.load("out.npy"), refine(images[0], foreground=p[0], **parameters))


@pytest.mark.parametrize("change, message", [
    (lambda: os.rename("scores/2.npy", "scores/9.npy"), "--foreground: expected a file for each photo, got none for 2.png"),
    (lambda: os.remove("truth/1.png"), "--truth: expected a file for each photo, got none for 1.png"),
    (lambda: np.save("scores/2.npy", np.zeros((3, 3))), "--foreground: expected the size of photos/2.png, 10 x 12, got 3 x 3"),
    (lambda: np.savez("scores/2.npz", np.zeros((10, 12))), "--foreground: expected one file for each name, got 2.npy and 2.npz"),
    (lambda: Image.new("L", (12, 9)).save("truth/0.png"), "--truth: expected the size of photos/0.png, 10 x 12, got 9 x 12"),
])  # fmt: skip
def test_bad_folders(folders, capsys, change, message):
    change()
    assert cli.main([*COMMAND, "--budget", "1"]) == 2
    assert message in capsys.readouterr().err and not (folders / "tuned.toml").exists()


@pytest.mark.parametrize("text, message", [
    ("theta = 3", "expected method, theta_space, .*, got theta"),
    ('method = "magic"', "method: expected one of lattice"),
    ("iterations = [[1]]", "iterations: expected a number, a word or a list of numbers"),
    ("iterations = ", "expected a TOML file, unreadable"),
    ("a = " + "[" * 5000 + "]" * 5000, "expected arguments of refine, got tables nested too deep|expected"),
])  # fmt: skip
def test_bad_parameter_files(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(FileError, match=f"p.toml: {message}"):
        tc.load_parameters(tmp_path / "p.toml")


def test_no_parameter_file(tmp_path, capsys):
    with pytest.raises(FileError, match="none.toml: expected a TOML file, got no such file"):
        tc.load_parameters(tmp_path / "none.toml")


def test_toml_of_all_that_is_found(tmp_path):
    parameters = {"method": "window", "theta_space": "12.5%", "theta_color": 3.25, "window_size": 7, "blur": 1}
    found = tuning.Tuned(parameters, "miou", *[tuning.Estimate(0.5, 0.1, 4)] * 3, ())
    (tmp_path / "p.toml").write_text(found.toml())
    assert tc.load_parameters(tmp_path / "p.toml") == parameters and json.dumps(parameters)

"""The published systems against their forms in NumPy, and the report of it."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.published import derivatives, report
from bench.published.cases import Case, Network
from bench.published.systems import SYSTEMS

# Of the scores, where a guide's covariances, whose largest eigenvalue is a thousand times eps, amplify rounding; and of
# the gradients, where those of the bandwidths are sums of terms of both signs, which cancel.
BOUNDS = {torch.float64: (1e-13, 1e-11), torch.float32: (2e-6, 5e-4)}


def small(system):
    """Its second size; layers at a smaller one."""
    return (5, 6) if system.kind is Case else system.sizes[1]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_its_form(name):
    system = SYSTEMS[name]
    case = system.case(name, small(system), 2)
    for dtype, (forward, gradients) in BOUNDS.items():
        for quantity, error in case.errors(dtype).items():
            bound = forward if quantity in report.FORWARD else gradients
            assert error <= bound, f"{quantity} in {dtype}: {error:.2g}"


# The measure itself ---------------------------------------------------------------------------------------------------


def cubic(x, a):
    return np.sum(a**3 * x, axis=1, keepdims=True)


def test_complex_steps_are_the_derivatives():
    x, a = np.array([[1.0, -2.0], [0.5, 3.0]])[None, :, None], np.array([[2.0], [0.1]])
    a = a[None, :, :, None]
    cotangent = np.array([[[[2.0, -1.0]]]])
    found = derivatives.gradients(cubic, {"x": x, "a": a}, cotangent, ["x"])
    np.testing.assert_allclose(found["x"], a**3 * cotangent, rtol=1e-15)
    np.testing.assert_allclose(found["a"], 3 * a**2 * (x * cotangent).sum(3, keepdims=True), rtol=1e-15)


class Scaled(nn.Module):
    """scale x + shift, with gradients of the shift that are `wrong` times as long."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.scale, self.shift, self.wrong = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.ones(3, 1, 1)), wrong

    def forward(self, x):
        shift = self.shift
        return self.scale * x + shift + self.wrong * (shift - shift.detach())


def scaled(x, scale, shift):
    return scale * x + shift


def made(kind, wrong=0.0, form=scaled):
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32).astype(np.float64)
    return kind("scaled", (4, 5), None, Scaled(wrong), {"x": x}, form)


@pytest.mark.parametrize("kind", [Case, Network])
def test_equal_functions_have_no_error(kind):
    assert all(error < 1e-15 for error in made(kind).errors(torch.float64).values())


@pytest.mark.parametrize("kind", [Case, Network])
def test_scores_that_differ_are_seen(kind):
    errors = made(kind, form=lambda **arguments: (1 + 1e-6) * scaled(**arguments)).errors(torch.float64)
    assert errors["scores"] == pytest.approx(1e-6, rel=1e-3)


def test_a_gradient_that_differs_is_seen():
    errors = made(Case, wrong=1e-6).errors(torch.float64)
    assert errors["shift"] == pytest.approx(1e-6, rel=1e-3)
    assert all(errors[name] < 1e-15 for name in ("scores", "scale", "x"))


def test_a_gradient_of_a_network_that_differs_is_seen():
    errors = made(Network, wrong=1e-6).errors(torch.float64)
    assert errors["scores"] < 1e-15 and 1e-7 < errors["gradients"] < 1e-5


def test_a_whole_network_s_gradient_that_is_wrongly_zero_is_found():
    assert made(Network, wrong=-1.0).errors(torch.float64)["gradients"] > 0.1


# The report -----------------------------------------------------------------------------------------------------------


def rows():
    """Of two systems, one without T; the first's second size is the worse, and the second's gradient is NaN."""
    quantities = {"layer": ("scores", "logits"), "network": ("scores", "pool1", "gradients")}
    found = []
    for system, names in quantities.items():
        for size, factor in ("8 x 8", 1), ("7 x 9", 2):
            for precision, error in ("float64", 1e-15), ("float32", 1e-7):
                for n, name in enumerate(names, 1):
                    wrong = float("nan") if name == "gradients" else factor * n * error
                    t = 5 if system == "layer" else ""
                    place = {"system": system, "size": size, "T": t, "precision": precision}
                    found.append({**place, "quantity": name, "error": wrong})
    return found


def test_the_overview_has_the_worst_errors():
    lines = report.overview(rows(), ["layer", "network"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert cells == [
        ["worst error", "float64: forward", "float64: gradients", "float32: forward", "float32: gradients"],
        ["layer", "2.0e-15", "4.0e-15", "2.0e-07", "4.0e-07"],
        ["network", "4.0e-15", "nan", "4.0e-07", "nan"],
    ]


def test_the_details_have_a_line_for_each_precision_size_and_t():
    lines = report.details(rows(), "layer").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert cells == [
        ["precision", "size", "T", "scores", "logits"],
        ["float64", "8 x 8", "5", "1.0e-15", "2.0e-15"],
        ["float64", "7 x 9", "5", "2.0e-15", "4.0e-15"],
        ["float32", "8 x 8", "5", "1.0e-07", "2.0e-07"],
        ["float32", "7 x 9", "5", "2.0e-07", "4.0e-07"],
    ]


def test_a_survey_goes_through_sizes_iterations_and_precisions():
    system = replace(SYSTEMS["Guidance CRF, released"], sizes=((2, 4), (3, 3)))
    found = report.survey({"guidance": system}, iterations=(1, 2))
    assert len(found) == 2 * 2 * 2 * 3
    places = [(row["size"], row["T"], row["precision"]) for row in found if row["quantity"] == "logits"]
    assert places == [(s, t, p) for s in ("2 x 4", "3 x 3") for t in (1, 2) for p in ("float64", "float32")]


def test_the_command_prints_and_writes_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "survey", rows)
    assert main(["published", "-o", str(tmp_path)]) == 0
    (text,), (table,) = tmp_path.glob("*-published.md"), tmp_path.glob("*-published.csv")
    assert text.read_text() == capsys.readouterr().out.removesuffix("\n")
    assert "## layer\n" in text.read_text() and "python -m bench published" in text.read_text()
    with table.open() as lines:
        assert [row["quantity"] for row in csv.DictReader(lines)] == [row["quantity"] for row in rows()]


def test_a_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["published", "-o", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err

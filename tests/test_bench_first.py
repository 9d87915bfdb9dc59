"""The GPU's stage `first`, rehearsed: what it launches compiles, and its parts run as far as they can without a GPU."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as command
from bench import first, gpu
from bench.compiled import profile
from bench.compiled.compilation import compile_all, unique
from bench.compiled.reads import FORMS
from bench.workloads import ConvCRFWork, GuidedWork, Inputs
from tritoncrf.kernels.common import record_launches

pytestmark = pytest.mark.extras

SMALL = {
    "W1": (ConvCRFWork(3, size=(32, 32), classes=3, iterations=2), "features"),
    "W3": (GuidedWork(size=(32, 32), classes=3, iterations=2), "weights"),
}


def launches(works) -> list:
    """All that the parts launch of these works, and what they launch beside them."""
    found = []
    for work, learns in works.values():
        for kind in {learns, "weights"}:
            found += [k.launch for k in profile.kernels(Inputs(work, "cpu", learns=kind, backend="triton"), run=False)]
    with record_launches(run=False) as further:
        first.reads("cpu", lambda call: call() or 1.0)
        for _, call in first.splat_calls(first.works()["W2"][0], "cpu", "triton"):
            call()
    return unique(found + further)


def test_what_it_launches_beside_the_works_compiles():
    found = launches({})
    names = {launch.kernel.__name__ for launch in found}
    assert {"reads_kernel", "_splat_kernel", "_atomic_splat_kernel"} <= names
    binaries = compile_all(found, "sm_90")
    assert not any(binary.spills for binary in binaries)
    reads = [binary for binary in binaries if binary.kernel == "reads_kernel"]
    assert len(reads) == 2 and all(binary.mix["ldg"] >= 8 for binary in reads)  # of 4 and of 8 bytes, not hoisted


@pytest.mark.slow
def test_all_that_it_launches_compiles():
    binaries = compile_all(launches(profile.WORKS), "sm_90")
    assert len(binaries) > 50 and not any(binary.spills for binary in binaries)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(first, "works", lambda: SMALL)


def test_errors_are_told_and_judged(few, monkeypatch, capsys):
    assert first.run_part("errors") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["work", "W1", "W3"] and "TOO LARGE" not in "".join(lines)
    monkeypatch.setattr(first, "STEP_ERROR", 1e-12)
    assert first.run_part("errors") == 1 and capsys.readouterr().out.count("TOO LARGE") == 2


def test_one_work_that_fails_leaves_the_others(few, monkeypatch, capsys):
    monkeypatch.setattr(first, "errors", lambda work, *_: 1 / 0 if work.id == "W1" else {"step_rms": 0.0})
    assert first.run_part("errors") == 1
    printed = capsys.readouterr().out
    assert "W1 FAILED" in printed and "ZeroDivisionError" in printed and "W3 FAILED" in printed


def test_times_of_works_and_peers(few, monkeypatch, capsys):
    monkeypatch.setattr(first, "exact_in_torch", lambda: None)
    monkeypatch.setattr(first, "median", lambda call, box=0: call() is None or 0.5)
    assert first.run_part("times") == 0
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["W1, forward", "W1, training", "W1, im2col", "W3, forward", "W3, training", "W3, torch_boxes"]


def test_an_exact_sum_in_torch(monkeypatch, capsys):
    work, learns = profile.WORKS["W4"]
    monkeypatch.setattr(first, "works", lambda: {"W4": (replace(work, size=(16, 16), classes=3), learns)})
    first.exact_in_torch()
    assert "they differ by 0" in capsys.readouterr().out  # both in PyTorch here


@pytest.mark.parametrize("takes, runs, inside", [(2**-10, 50, 10), (2**-3, 6, 1), (2.0, 3, 1)])
def test_the_median_of_a_call(takes, runs, inside, monkeypatch):
    """By a clock that the calls alone move: 50 runs if they are short, those of 0.7 s, and 3 if they are long."""
    calls = []
    now = SimpleNamespace(monotonic=lambda: takes * len(calls))
    monkeypatch.setattr(first, "time", now)
    monkeypatch.setattr(first, "clock", now.monotonic)
    assert first.median(lambda: calls.append(0)) == takes and len(calls) == 3 + runs * inside


@pytest.mark.parametrize("part", ["compile", "questions", "splat", "sanitize"])
def test_parts_that_need_a_gpu_say_so(part, monkeypatch, capsys):
    monkeypatch.setattr(first, "device_found", lambda: torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["bench", "first", part])
    assert command.main() == 0 and "GPU" in capsys.readouterr().out


def test_the_stage_runs_its_parts_in_order_within_its_time(tmp_path, monkeypatch):
    """A part that fails or has no time leaves the others theirs."""
    seen = []

    def box(command, seconds, log, environment):
        part = command[-1]
        seen.append((part, seconds))
        log.write_text(f"{part} printed\n")
        return {"errors": 3, "times": 124}.get(part, 0)

    monkeypatch.setattr(first, "run_boxed", box)
    assert gpu.run("first", tmp_path, "abc", None, minutes=9) == 1
    assert [part for part, _ in seen] == list(first.PARTS)
    assert all(seconds <= first.PARTS[part] for part, seconds in seen)
    text = (tmp_path / "first.md").read_text()
    assert text.startswith("commit abc") and "times printed" in text and "errors: red (status 3)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["first.md"]


def test_its_parts_fit_in_six_minutes():
    boxes = [seconds for part, seconds in first.PARTS.items() if part != "sanitize"]
    assert sum(boxes) + first.SAFE <= 60 * gpu.FIRST_MINUTES - gpu.RESERVE


def test_reads_are_told_by_what_is_read():
    seconds = iter(range(1, 1 + len(FORMS)))
    with record_launches(run=False) as launched:
        found = first.reads("cpu", lambda call: call() or next(seconds))
    assert list(found) == list(FORMS) and len(launched) == len(FORMS)
    assert {launch.arguments["shift"] for launch in launched} == {0, 1, 4, 8, 16}


def test_predictions_are_summed_by_passes(monkeypatch):
    rows = [{"predicted": 2.0, "launches": {"loop": 3}}, {"predicted": 1.0, "launches": {"loop": 1, "backward": 5}}]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        profile, "predictions", lambda folder, target, triton: {"W1": rows} if target == "sm_90" else {}
    )
    assert first.predicted_sums("W1", ("build", "loop")) == 7.0
    assert first.predicted_sums("W1", ("loop", "backward")) == 12.0 and first.predicted_sums("W2", ("loop",)) is None

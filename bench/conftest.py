"""Options of the benchmarks, and one line of results per benchmark, written at once."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import floors
from bench.peak_memory import peak_on_gpu
from bench.runs import Run
from bench.suite import TESTS_ON_GPU
from bench.timing import clock_rates
from tritoncrf.devices import device_found


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, help="file that receives one JSON line per benchmark")
    parser.addoption("--quick", action="store_true", help="the smallest useful set, with few repetitions")
    parser.addoption("--photos", type=Path, help="folder of photos for extra rows")


def pytest_configure(config):
    photos = config.getoption("--photos")
    if photos is not None and not photos.is_dir():
        raise pytest.UsageError(f"--photos: expected a folder, got {photos}")
    for filter in TESTS_ON_GPU:
        config.addinivalue_line("markers", f"{filter}: times the {filter} filter")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return device_found()


@pytest.fixture(scope="session")
def rates(device):
    return floors.measured_rates(device)


@pytest.fixture
def measure(benchmark, request, device, rates):
    """Time runs in turn, and write a row for each. pytest-benchmark's own table shows the first, of short graph replays
    ten together.

    A round calls each run once, so that whatever slows the machine for a while slows all of them, and ratios are taken
    within a round. There are as many rounds as fit the time box, at least three. The box is short for a point of a
    growth curve, since the exponent comes from many of them, and on a GPU, whose times scatter less.
    """

    def in_turn(*runs: Run):
        short = request.config.getoption("--quick") or runs[0].facts["work"] == "W7"
        box = 0.5 if short else 1.0 if device.type == "cuda" else 2.0
        for run in runs:
            run.warm_up(device)
            if run.memory is None and device.type == "cuda":
                run.memory = partial(peak_on_gpu, run.call)
        rounds = min(100, max(3, int(box * len(runs) / sum(run.took * run.repeats for run in runs))))
        shown, *others = runs

        def time_others():
            for run in others:
                run.times.append(run.once())

        # With a setup pytest-benchmark takes one call a round, so the repeats are in the call.
        benchmark.pedantic(shown.several, rounds=rounds, setup=time_others)
        shown.times = [time / shown.repeats for time in benchmark.stats.stats.data]
        clocks = clock_rates(device.type)
        rows = [run.row(rates) | {"clocks": clocks} for run in runs]
        benchmark.extra_info["rows"] = rows
        if path := request.config.getoption("--rows"):
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    return in_turn

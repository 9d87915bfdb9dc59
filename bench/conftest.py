"""Options of the benchmarks, and one line of results per benchmark, written at once."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import floors
from bench.peak_memory import peak_on_gpu
from bench.suite import TESTS_ON_GPU
from bench.timing import clock_rates, seconds
from tritoncrf.devices import device_found

LONG = 2.0  # seconds; on a CPU, which compiles nothing, a single call of this length is enough to warm up


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
    """Time `call`, add what is counted, and write the row.

    Two runs warm up; the second determines how many more fit into the time limit, at least three. A graph replay is
    short compared with a synchronisation, so ten replays share one. Times on a GPU scatter less, and a stage there has
    a time limit. For growth, the exponent comes from many points, so the limit is short.
    """

    def run(call, counts: floors.Work, memory=None, /, **facts):
        short = request.config.getoption("--quick") or facts["work"] == "W7"
        box = 0.5 if short else 1.0 if device.type == "cuda" else 2.0
        once = seconds(call)
        if device.type == "cuda" or once < LONG:
            once = seconds(call)
        iterations = 10 if facts.get("mode") == "graph" and once < 0.01 else 1
        benchmark.pedantic(call, rounds=min(100, max(3, int(box / once / iterations))), iterations=iterations)
        clocks, stats = clock_rates(device.type), benchmark.stats.stats
        if memory is None and device.type == "cuda":
            memory = lambda: peak_on_gpu(call)  # noqa: E731
        row = facts | {
            "median": stats.median, "iqr": stats.iqr, "min": stats.min, "rounds": stats.rounds, "clocks": clocks,
            **asdict(counts),
            "floor": (counts.floor(rates) or None) if rates else None,
            "copy_bandwidth": rates.bytes if rates else None,
            "peak_memory": memory() if memory else None,
        }  # fmt: skip
        benchmark.extra_info.update(row)
        if path := request.config.getoption("--rows"):
            with path.open("a") as file:
                print(json.dumps(row), file=file)

    return run

"""Fixtures of all tests: seeds, the device, and memory that shows when nobody wrote it."""

import importlib.util
import os
import random

import hypothesis
import numpy as np
import pytest
import torch

from memory import nan_filled

# cuBLAS reads this at its first product; without it deterministic mode (see memory.py) warns at every one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# The same examples in every run, and no limit on one example's time: a shared machine has slow moments.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

# Where there is no Triton, as on macOS and Windows: what compiles kernels.
HAS_TRITON = importlib.util.find_spec("triton") is not None
COMPILING = ["kernels", "test_bench_counts.py", "test_bench_first.py", "test_bench_reports.py", "test_ptxemu.py"]
collect_ignore = [] if HAS_TRITON else COMPILING


def pytest_report_header() -> list[str]:
    return [] if HAS_TRITON else [f"Triton is not installed, so these are left out: {', '.join(COMPILING)}"]


def pytest_addoption(parser) -> None:
    parser.addoption("--one-of-each", action="store_true", help="run each test with the first of its parameters alone")


@pytest.hookimpl(trylast=True)  # after `-m`: the first of those that it leaves
def pytest_collection_modifyitems(config, items) -> None:
    if config.getoption("one_of_each"):
        first = {}
        for item in items:
            first.setdefault((item.path, item.originalname), item)
        config.hook.pytest_deselected(items=list(set(items) - set(first.values())))
        items[:] = first.values()


@pytest.fixture(autouse=True)
def seeds():
    """Every test draws the same numbers whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """Where the tests run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def one_thread():
    """As in every process that refines data sets: the number of threads changes bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nan_memory():
    """An output nobody wrote is seen; on for every test in tests/kernels."""
    with nan_filled():
        yield


@pytest.fixture
def fresh_compiler():
    """No graph from another test, nor for the next one."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

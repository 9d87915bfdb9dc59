"""Several processes that share an image give the result of one."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import CASES, METHODS, WEIGHTS, image_of, photo, refine

from assertions import assert_close
from ranks import run_ranks
from tritoncrf.streaming import distributed

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def found(folder) -> list[dict]:
    """What each of two processes has."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    ranks = run_ranks([sys.executable, TESTS / "processes.py", folder], environment)
    assert all(status == 0 for status, _ in ranks), "\n".join(output for _, output in ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_bands_make_the_image(case, found):
    """Each process has its own tiles, of the lattice of the whole image."""
    image = image_of(case)
    own = [one[case][0] for one in found]
    there = [~q.isnan() for q in own]
    assert (there[0] ^ there[1]).all()
    assert_close("Q", torch.where(there[0], *own), image.in_memory(iterations=3, **WEIGHTS))
    for one in found:
        assert one[case][1] == [K.tensors[2].shape[1] - 1 for K in image.lattices()]


@pytest.mark.parametrize("method", METHODS)
def test_refine(method, folder, found):
    """Each process writes its own blocks."""
    expected = refine(*photo(), method=method)
    assert_close("Q", torch.from_numpy(np.load(folder / f"{method}.npy")), torch.from_numpy(expected))
    assert not any((folder / method).glob("*"))
    assert not [path for path in folder.iterdir() if path.name.startswith(f".{method}")]


def test_a_result_in_memory_is_refused(found):
    """Each process would have a band of it."""
    assert all(one["refused"].startswith("out: expected a file or an array with several processes") for one in found)


def test_bands_are_written_to_one_file(folder, found):
    """Nothing else is left."""
    bands = np.load(folder / "bands.npy")
    assert bands[:, :, 0].tolist() == [[0, 0, 1, 1]] * 2
    assert not [path for path in folder.iterdir() if "bands" in path.name and path.name != "bands.npy"]


def test_tensors_of_unequal_lengths_are_gathered(found):
    for one in found:
        assert [x.tolist() for x in one["gathered"]] == [[], [0, 1, 2]]


def test_the_least_number_is_agreed_upon(found):
    assert [one["agreed"] for one in found] == [4.5, 4.5]


def test_one_process_is_alone():
    with distributed.started(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert not distributed.together()
    assert [*distributed.share([1, 2, 3])] == [1, 2, 3]
    assert distributed.everywhere(True) and not distributed.everywhere(False)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_are_bands(processes, monkeypatch):
    """Side by side, each item once, and none with more than one above another's."""
    shares = []
    monkeypatch.setattr(distributed, "size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(range(5)))
    assert [item for share in shares for item in share] == [*range(5)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

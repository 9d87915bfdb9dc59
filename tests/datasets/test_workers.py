"""Items over processes: in order, whatever becomes of one of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from test_architecture import ROOT

from tritoncrf.datasets import pipeline, workers

pytestmark = pytest.mark.processes


@dataclass(frozen=True)
class Toy:
    """Squares numbers; what an item says goes wrong does."""

    keyed: bool = False
    together: list[int] = field(default_factory=list)

    def read(self, item: Any, device: torch.device) -> Any:
        if item == "unreadable":
            raise ValueError("unreadable: expected a number")
        return item

    def key(self, loaded: Any) -> Hashable:
        return isinstance(loaded, int) or None if self.keyed else None

    def refine(self, loaded: list[Any]) -> list[Any]:
        self.together.append(len(loaded))
        if "killed" in loaded:
            os.kill(os.getpid(), signal.SIGKILL)
        if 13 in loaded:
            raise RuntimeError("13: expected luck")
        return [x if isinstance(x, bytes) else (x * x, torch.get_num_threads(), os.getpid()) for x in loaded]

    def write(self, item: Any, refined: Any) -> Any:
        return refined


@pytest.mark.parametrize("jobs", [0, 2])
def test_results_come_in_the_order_of_items(jobs):
    found = list(workers.run(Toy(), range(7), jobs=jobs, devices=["cpu"]))
    assert [o.item for o in found] == list(range(7))
    assert [o.result[0] for o in found] == [n * n for n in range(7)]
    assert all(o.error is None and len(o.seconds) == 3 for o in found)
    if jobs:
        assert {o.result[1] for o in found} == {1} and os.getpid() not in {o.result[2] for o in found}


@pytest.mark.parametrize("jobs", [0, 1])
def test_an_item_that_fails_leaves_the_others(jobs):
    found = list(workers.run(Toy(), [1, "unreadable", 13, 2], jobs=jobs, devices=["cpu"]))
    assert [str(o.error) if o.error else o.result[0] for o in found] == [
        1, "unreadable: expected a number", "13: expected luck", 4,
    ]  # fmt: skip
    assert isinstance(found[1].error, ValueError)


def test_the_process_of_an_item_is_killed():
    found = list(workers.run(Toy(), [1, 2, "killed", 3, 4, 5], jobs=2, devices=["cpu"]))
    assert [o.result[0] for o in found if o.error is None] == [1, 4, 9, 16, 25]
    assert "ended by SIGKILL" in str(found[2].error)


def test_items_and_results_larger_than_a_pipe_holds_in_both_directions():
    items = [bytes([n]) * (1 << 22) for n in range(6)]
    assert [o.result for o in workers.run(Toy(), items, jobs=1, devices=["cpu"])] == items


def test_items_are_taken_as_results_are():
    taken = []
    results = workers.run(Toy(), (taken.append(n) or n for n in range(1000)), jobs=1, devices=["cpu"])
    next(results)
    time.sleep(0.1)
    assert len(taken) <= workers.WINDOW * 2 + 1
    results.close()


def test_what_other_processes_cannot_have():
    with pytest.raises(TypeError, match="^items: expected objects that can be sent to other processes"):
        list(workers.run(Toy(), [threading.Lock()], jobs=1, devices=["cpu"]))
    with pytest.raises(TypeError, match="^items: expected objects that can be sent to other processes"):
        list(workers.run(Toy(together=threading.Lock()), [1], jobs=1, devices=["cpu"]))


def test_an_error_of_the_items_is_the_callers():
    def items():
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(workers.run(Toy(), items(), jobs=1, devices=["cpu"]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"jobs": -1}, "jobs: expected"),
        ({"jobs": 1.5}, "jobs: expected"),
        ({"devices": []}, "devices: expected a list"),
        ({"devices": "cpu"}, "devices: expected a list"),
        ({"devices": ["cpu", "cpu"]}, "devices: expected the CPU once"),
        ({"devices": ["cuda:99"]}, "device: expected one that exists"),
    ],
)
def test_places_that_are_not_there(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        workers.run(Toy(), [1], **arguments)


UNGUARDED = """
import numpy as np
import tritoncrf as tc

items = [("a", np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), 0.5, np.float32))]
print([name for name, q in tc.refine_many(items, jobs=1, devices=["cpu"])])
"""


def test_a_script_without_its_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 1 and '`if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


@pytest.fixture
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(pipeline, "pace", lambda device: pipeline.Pace(ahead=5, together=3, behind=4, threads=2))


def test_items_of_one_key_are_refined_together(like_a_gpu):
    toy = Toy(keyed=True)
    found = list(workers.run(toy, range(20, 40), devices=["cpu"]))
    assert [o.result[0] for o in found] == [n * n for n in range(20, 40)]
    assert 1 < max(toy.together) <= 3


def test_of_those_that_fail_together_only_the_culprit_fails(like_a_gpu):
    found = list(workers.run(Toy(keyed=True), range(10, 20), devices=["cpu"]))
    assert [o.item for o in found if o.error] == [13]

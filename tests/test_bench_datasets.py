"""The benchmarks of data sets, at tiny sizes: the simulation by hand, what is measured, and what the report says."""

import math

import numpy as np
import pytest
import torch

from bench.datasets import costs, drawing, report, resident
from bench.datasets.simulation import Cost, Machines, simulate
from bench.workloads import GRACE_HOPPER

pytestmark = pytest.mark.extras

FREE = math.inf
QUICK = {"link": FREE, "storage": FREE, "latency": 0.0, "start": 0.0, "report": 0.0}

# (a cost, images, what is not free, machines, cores, processes of each, seconds by hand, what bounds it)
BY_HAND = [
    (Cost(2.0, 0, 0), 5, {}, 1, 1, 1, 10.0, "the cores"),
    (Cost(2.0, 0, 0), 5, {"start": 1.0}, 1, 1, 1, 11.0, "the cores"),
    (Cost(2.0, 0, 0), 6, {}, 1, 2, 2, 6.0, "the cores"),
    (Cost(2.0, 0, 0), 6, {}, 1, 1, 2, 12.0, "the cores"),
    (Cost(2.0, 0, 0), 6, {}, 2, 1, 1, 6.0, "the cores"),
    (Cost(2.0, 10, 0), 5, {"storage": 10.0}, 1, 1, 1, 11.0, "the cores"),  # fetched while it computes
    (Cost(1.0, 20, 0), 5, {"storage": 10.0}, 1, 1, 1, 11.0, "the storage"),
    (Cost(1.0, 20, 0), 4, {"link": 10.0}, 1, 2, 2, 9.0, "the network"),
    (Cost(1.0, 20, 0), 4, {"link": 10.0}, 2, 1, 1, 5.0, "the network"),  # a link each
    (Cost(1.0, 0, 20), 3, {"storage": 10.0}, 1, 1, 1, 9.0, "the storage"),  # stored before the next is computed
    (Cost(1.0, 0, 0), 4, {"latency": 0.5}, 1, 1, 1, 6.5, "the cores"),
    (Cost(1.0, 0, 0), 4, {"report": 3.0}, 1, 4, 4, 13.0, "the parent process"),
]


@pytest.mark.parametrize("cost, images, slow, count, cores, processes, seconds, bound", BY_HAND)
def test_the_simulation_by_hand(cost, images, slow, count, cores, processes, seconds, bound):
    found = simulate([cost], images, Machines(count, cores, processes, **QUICK | slow))
    assert found.seconds == pytest.approx(seconds) and found.bound == bound


def test_what_is_drawn_are_the_measured_costs_and_the_same_every_time():
    where = Machines(1, 1, 1, **QUICK)
    runs = [simulate([Cost(1.0, 0, 0), Cost(3.0, 0, 0)], 100, where) for _ in range(2)]
    assert runs[0] == runs[1] and 150 < runs[0].seconds < 250


@pytest.mark.parametrize("name", costs.KINDS)
def test_an_image_of_each_kind_is_refined_and_its_bytes_are_counted(name, tmp_path):
    kind = costs.KINDS[name]
    stages, tasks = costs.prepared(tmp_path / "set", kind, (40, 56), [GRACE_HOPPER])
    loaded = stages.read(tasks[0], torch.device("cpu"))
    assert loaded.problem.unary.shape == (kind.classes, 40, 56)
    stages.write(tasks[0], stages.refine([loaded])[0])
    fetched, stored = costs.traffic(stages, tasks[0])
    pixels = {"maps": 2 * 40 * 56 * 4, "logits": 81 * 5 * 7 * 2, "scores": 81 * 40 * 56 * 4}[name]
    assert pixels < fetched < pixels + 6000 and 0 < stored < 6000


def test_costs_are_those_after_the_first_image(tmp_path):
    found = costs.measure(tmp_path / "set", costs.KINDS["maps"], (24, 32), [GRACE_HOPPER])
    assert len(found.costs) == len(found.stages) == costs.KINDS["maps"].images - 1
    assert [cost.seconds for cost in found.costs] == [sum(seconds) for seconds in found.stages]
    assert found.start >= 0 and costs.noting(tmp_path, 3) > 0


def test_memory_is_weighed_after_each_image():
    found = np.array([*resident.weigh(6, 3)])
    assert found.shape == (6, 2) and (found[:, 0] < found[:, 1]).all() and found.min() > 1 << 20


def findings(memory: np.ndarray) -> report.Findings:
    one = costs.Measured([Cost(0.5, 1000, 10), Cost(0.7, 1000, 10)], [(0.1, 0.3, 0.1), (0.2, 0.3, 0.2)], 2.0)
    return report.Findings(dict.fromkeys(costs.KINDS, one), {1: 2.0, 2: 3.5}, 1e-4, None, memory)


def test_the_report_says_what_was_measured_and_what_is_predicted(monkeypatch):
    monkeypatch.setattr(report, "COCO", 2000)
    monkeypatch.setattr(drawing, "COCO", 2000)
    found = findings(np.full((20, 2), 100 << 20))
    assert "0.15" in report.costs_in_words(found, (4, 5)) and "| 2         | 3.5" in report.here_in_words(found)
    text = report.predictions_in_words(found)
    assert "Predicted" in text and text.count("the cores") >= 3 and len(report.rows(found)) == 9
    assert len(drawing.scaling(found).axes) == 2 and len(drawing.memory(found.memory, (20, 2)).axes) == 1


@pytest.mark.parametrize("each, flat", [(0, True), (1 << 20, False)])
def test_memory_that_grows_is_found(each, flat):
    memory = (100 << 20) + each * np.arange(40)[:, None] + np.zeros((40, 2))
    assert report.memory_in_words(memory, (40, 4))[1] is flat

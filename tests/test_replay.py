"""Graphs of calls, with a stand-in for CUDA's that records PyTorch's operations and repeats them on a CPU."""

import contextlib
import importlib
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from assertions import assert_close
from tritoncrf import checks, refine, replay

module = importlib.import_module("tritoncrf.problem")  # whose name the function has taken in the package

RANDOM = np.random.default_rng(0)
PHOTOS = RANDOM.integers(0, 256, (4, 12, 15, 3), dtype=np.uint8)
LOGITS = RANDOM.normal(size=(4, 3, 12, 15)).astype(np.float32)


@dataclass
class Graph(TorchDispatchMode):
    """What a CUDA graph does: the same operations on the same memory."""

    operations: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "waits for a value"
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.operations:
            for own, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                own.copy_(new)


class Stream:
    def wait_event(self, event):
        pass


class Event:
    def record(self):
        pass

    def synchronize(self):
        pass


@pytest.fixture
def captures(monkeypatch):
    """The captures that were made, on a CPU that passes for a GPU."""
    made, capturing = [], []

    @contextlib.contextmanager
    def capture(graph, pool, capture_error_mode):
        capturing.append(graph)
        try:
            with graph:
                yield
        finally:
            capturing.pop()
        made.append(graph)

    cuda = {
        "CUDAGraph": Graph, "graph": capture, "graph_pool_handle": lambda: (0, 1), "Event": Event,
        "current_stream": Stream, "device": contextlib.nullcontext,
    }  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    looked_at = checks.values_checked
    monkeypatch.setattr(checks, "values_checked", lambda x: looked_at(x) and not capturing)
    graphs = replay._Graphs()
    monkeypatch.setattr(module, "replayed", lambda key, function, *tensors: graphs.call(key, function, tensors))
    return made


OPTIONS = {"window": dict(window_size=5, blur=1), "blurred": dict(window_size=5, blur=2), "guided": dict(radius=2)}


@pytest.mark.parametrize("name", OPTIONS)
def test_photos_of_one_size_give_what_each_gives_alone(name, captures):
    options = OPTIONS[name] | {"method": "guided" if name == "guided" else "window"}
    alone = [
        refine(torch.tensor(p).movedim(2, 0) / 255, logits=torch.from_numpy(z), **options)
        for p, z in zip(PHOTOS, LOGITS)
    ]
    assert captures == []
    found = [refine(photo, logits=logits, **options) for photo, logits in zip(PHOTOS, LOGITS)]
    assert len(captures) == 1
    for own, expected in zip(found, alone, strict=True):
        assert_close("Q", torch.from_numpy(own), expected)


@pytest.mark.parametrize("change", [
    dict(weight_smooth=2.0), dict(theta_color=(12, 13, 14)), dict(iterations=2), dict(window_size=3),
])  # fmt: skip
def test_what_else_a_call_depends_on_is_another_graph(change, captures):
    options = OPTIONS["window"] | {"method": "window"}
    for changed in options, options | change:
        found = [refine(PHOTOS[0], logits=LOGITS[0], **changed) for _ in range(3)]
        assert np.array_equal(found[1], found[2])
        assert np.array_equal(found[0], found[1])
    assert len(captures) == 2


@pytest.mark.parametrize("change", [
    dict(method="lattice"), dict(method="exact"), dict(theta_space=torch.tensor(80.0)), dict(features=RANDOM.normal(size=(2, 12, 15))),
    dict(image=PHOTOS[0] / np.float32(255)), dict(return_trace=True),
])  # fmt: skip
def test_what_may_wait_is_never_captured(change, captures):
    options = {"image": PHOTOS[0]} | ({} if "method" in change else {"method": "window", "window_size": 3})
    for _ in range(3):
        refine(logits=LOGITS[0], **options | change)
    assert captures == []


def test_classes_that_are_ruled_out(captures):
    logits = LOGITS.copy()
    logits[:, 1, 3:5] = -np.inf
    for photo, scores in zip(PHOTOS, logits, strict=True):
        q = refine(photo, logits=scores, method="window", window_size=3)
        assert np.all(q[1, 3:5] == 0) and np.all(np.isfinite(q))


def test_a_result_stays_as_it_is(captures):
    first, second, third = (refine(PHOTOS[n], logits=LOGITS[n], method="guided") for n in range(3))
    kept = second.copy()
    refine(PHOTOS[3], logits=LOGITS[3], method="guided")
    assert np.array_equal(second, kept) and np.abs(second - third).max() > 0.1


def test_what_cannot_be_captured_runs_as_it_is(captures, monkeypatch):
    graphs = replay._Graphs()

    def function(x):
        return x * x.sum().item()

    found = []
    with pytest.warns(UserWarning, match="could not capture a CUDA graph"):
        monkeypatch.setattr(Graph, "__torch_dispatch__", _refuse)
        for n in range(3):
            found.append(graphs.call("key", function, (torch.full((2,), 1.0 + n),)))
    assert [x[0].item() for x in found] == [2, 8, 18]


def _refuse(self, function, types, args=(), kwargs=None):
    if function is torch.ops.aten._local_scalar_dense.default:
        raise RuntimeError("operation not permitted when stream is capturing")
    return function(*args, **(kwargs or {}))


def test_the_last_sizes_are_kept(captures):
    graphs = replay._Graphs()
    for n in [*range(replay.MOST), 0, replay.MOST, 0, 1]:  # 0 is used anew before 1 has to go
        for _ in range(2):
            graphs.call(n, torch.neg, (torch.zeros(1),))
    assert len(graphs.captured) == replay.MOST and len(captures) == replay.MOST + 2


def test_threads_take_turns(captures):
    graphs, found = replay._Graphs(), {}

    def work(n):
        found[n] = [graphs.call("key", torch.square, (torch.full((1000,), float(n)),)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.all(x == n * n) for n in range(4) for x in found[n]) and len(captures) == 1

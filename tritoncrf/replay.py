"""Calls of one shape as CUDA graphs: the second is captured, those that follow are replayed.

A call of `refine` on a GPU makes tens of launches, each of which takes Python's time; a replay is one. A graph reads
its inputs where they were when it was captured, so a call copies its own there, and its result out of the way of the
next.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

__all__ = ["clear", "replayed"]

MOST = 32  # graphs on one device, of as many sizes of images

_devices: dict[torch.device, "_Graphs"] = {}
_lock = threading.Lock()


def replayed(key: Hashable, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """function(*tensors), without autograd.

    Args:
        key: calls with one key differ in the values of their tensors alone, not in shapes, dtypes, device or in
            anything else that `function` looks at.
        function: of tensors on one device, whose values it never waits for.
    """
    device = tensors[0].device
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return function(*tensors)
    with _lock:
        if device not in _devices:
            _devices[device] = _Graphs()
        graphs = _devices[device]
    return graphs.call(key, function, tensors)


def clear() -> None:
    """Let go of all graphs and their memory."""
    with _lock:
        for graphs in _devices.values():
            graphs.done.synchronize()
        _devices.clear()


class _Graphs:
    """Those of one device. One is replayed at a time, so all share the memory of what lies between inputs and results:
    each waits for the one before, whatever stream that was on."""

    def __init__(self) -> None:
        self.captured: OrderedDict[Hashable, _Graph | None] = OrderedDict()  # None: called once
        self.works = True
        self.lock = threading.Lock()
        self.pool = torch.cuda.graph_pool_handle()
        self.done = torch.cuda.Event()

    def call(
        self, key: Hashable, function: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        with self.lock, torch.cuda.device(tensors[0].device), torch.inference_mode(False), torch.no_grad():
            graph = self._graph(key, function, tensors)
            if graph is None:
                return function(*tensors)
            torch.cuda.current_stream().wait_event(self.done)
            result = graph.replay(tensors)
            self.done.record()
            return result

    def _graph(
        self, key: Hashable, function: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...]
    ) -> "_Graph | None":
        """The graph of a key, captured now if it was called once; that call compiled its kernels."""
        graph = self.captured.get(key)
        if graph is None and key in self.captured and self.works:
            torch.cuda.current_stream().wait_event(self.done)
            try:
                graph = _Graph(function, tensors, self.pool)
            except RuntimeError as error:
                self.works = False
                warnings.warn(f"tritoncrf captures no CUDA graph, and goes on without: {error}", stacklevel=2)
        self.captured[key] = graph
        self.captured.move_to_end(key)
        if len(self.captured) > MOST:
            self.done.synchronize()
            self.captured.popitem(last=False)
        return graph


class _Graph:
    """One call, captured."""

    def __init__(self, function: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...], pool: Any) -> None:
        self.inputs = [t.clone() for t in tensors]
        self.graph = torch.cuda.CUDAGraph()
        # Of this thread: others may allocate meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function(*self.inputs)

    def replay(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.result.clone()

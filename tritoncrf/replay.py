"""Calls of the same shape as CUDA graphs: the second call is captured, later ones are replayed.

A call of `refine` on a GPU makes tens of launches, each of which costs time in Python; a replay is a single one. A
graph reads its inputs from the memory of the capture, so a call copies its own inputs there, and copies the result
before the next call overwrites it.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

__all__ = ["clear", "replayed"]

MOST = 32  # graphs per device, one for each size of image

_devices: dict[torch.device, "_Graphs"] = {}
_lock = threading.Lock()


def replayed(key: Hashable, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """function(*tensors), without autograd.

    Args:
        key: calls with the same key differ only in the values of their tensors, not in shapes, dtypes, device or
            anything else that `function` uses.
        function: a function of tensors on one device that never synchronises.
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
    """Free all graphs and their memory."""
    with _lock:
        for graphs in _devices.values():
            graphs.done.synchronize()
        _devices.clear()


class _Graphs:
    """The graphs of one device. Only one is replayed at a time, so all share the memory of intermediate results: each
    waits for the previous one on any stream."""

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
        """The graph of a key, captured now if it was called once before; that call compiled its kernels."""
        graph = self.captured.get(key)
        if graph is None and key in self.captured and self.works:
            torch.cuda.current_stream().wait_event(self.done)
            try:
                graph = _Graph(function, tensors, self.pool)
            except RuntimeError as error:
                self.works = False
                warnings.warn(f"tritoncrf could not capture a CUDA graph and continues without: {error}", stacklevel=2)
        self.captured[key] = graph
        self.captured.move_to_end(key)
        if len(self.captured) > MOST:
            self.done.synchronize()
            self.captured.popitem(last=False)
        return graph


class _Graph:
    """A captured call."""

    def __init__(self, function: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...], pool: Any) -> None:
        self.inputs = [t.clone() for t in tensors]
        self.graph = torch.cuda.CUDAGraph()
        # Only this thread's errors matter: others may allocate meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function(*self.inputs)

    def replay(self, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for own, tensor in zip(self.inputs, tensors, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self.result.clone()

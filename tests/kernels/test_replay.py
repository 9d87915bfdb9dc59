"""What `refine` captures in a CUDA graph: no operation waits for a value, nor makes a tensor whose size depends on one.
test_on_gpu.py replays it."""

import functools
import importlib

import numpy as np
import pytest
import torch
from torch._library import custom_ops
from torch.utils._python_dispatch import TorchDispatchMode

from tritoncrf import checks, filters
from tritoncrf.kernels.common import record_launches

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive,
    aten.unique_dim, aten.bincount, aten.repeat_interleave, aten.lift_fresh,
}  # fmt: skip
module = importlib.import_module("tritoncrf.refine")


class NoWaits(TorchDispatchMode):
    """Looks into this library's operators too, and keeps the names of what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        self.seen.add(name)
        if function.namespace == "tritoncrf":
            with self:
                return custom_ops.OPDEFS[function._schema.name]._init_fn(*args, **(kwargs or {}))
        assert function.overloadpacket not in WAITS, function
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), function
        return function(*args, **(kwargs or {}))


OPTIONS = {
    "window": dict(method="window", blur=1), "blurred": dict(method="window"), "guided": dict(method="guided"),
    "guided-long": dict(method="guided", radius=9),
}  # fmt: skip


@pytest.fixture
def on_gpu(monkeypatch):
    """The filters of `refine` run in Triton, and values are not looked at, as in a capture."""
    for kind in filters.Window, filters.Guided:
        monkeypatch.setattr(module.filters, kind.__name__, functools.partial(kind, backend="triton"))
    monkeypatch.setattr(checks, "values_checked", lambda x: False)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_that_is_captured_waits(name, on_gpu, monkeypatch):
    modes = []

    def watched(key, function, *tensors):
        modes.append(NoWaits())
        with record_launches(run=False) as launches, modes[0]:
            result = function(*tensors)
        assert len(launches) >= 5
        return result

    monkeypatch.setattr(module, "replayed", watched)
    image = np.random.default_rng(0).integers(0, 256, (24, 33, 3), dtype=np.uint8)
    module.refine(image, logits=np.zeros((3, 24, 33), np.float32), **OPTIONS[name])
    assert "mean_field" in modes[0].seen and "_softmax" in modes[0].seen

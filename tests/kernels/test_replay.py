"""What `refine` captures in a CUDA graph: no operation waits for a value, nor makes a tensor whose size depends on one.
test_on_gpu.py replays it."""

import functools
import importlib

import numpy as np
import pytest

import tritoncrf as tc
from tritoncrf import checks, filters
from tritoncrf.kernels.common import record_launches
from waits import watched

module = importlib.import_module("tritoncrf.problem")

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
    watches = []

    def replayed(key, function, *tensors):
        with record_launches(run=False) as launches, watched() as watch:
            result = function(*tensors)
        assert len(launches) >= 5
        watches.append(watch)
        return result

    monkeypatch.setattr(module, "replayed", replayed)
    image = np.random.default_rng(0).integers(0, 256, (24, 33, 3), dtype=np.uint8)
    tc.refine(image, logits=np.zeros((3, 24, 33), np.float32), **OPTIONS[name])
    (watch,) = watches
    assert not watch.waits and watch.seen >= {"mean_field", "exp_"}

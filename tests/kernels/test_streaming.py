"""The lattice of an image in tiles on the kernels: what is computed of a tile, and the blurs."""

import pytest
import torch
from tiled import Image, Streamed

from assertions import assert_close
from tritoncrf.kernels.lattice import LatticeStep
from tritoncrf.streaming import passes


@pytest.fixture
def on_kernels(monkeypatch):
    """Triton, where there is no GPU too; and the steps that were made."""
    served, kinds = passes._served, []

    def seen(mixing, like):
        backend, kind = served(mixing, like)
        kinds.append((backend, kind))
        return backend, kind

    monkeypatch.setattr(passes, "resolve", lambda backend, device, dtype: "triton")
    monkeypatch.setattr(passes, "_served", seen)
    return kinds


@pytest.mark.parametrize("valid", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_tiles_on_the_kernels(valid, on_kernels, device, tmp_path):
    """Five classes, which rows pad to eight."""
    image = Image.of((5, 9), classes=5, dtype=torch.float32)
    if valid:
        image.valid = torch.rand(5, 9) < 0.8
        image.valid[:, 6:] = False
    setting = (5, 6), {"weights": [1.5, 3.0], "iterations": 2, "damping": 0.2 if valid else 0.0}
    found = Streamed(image.to(device), *setting, tmp_path, keeps_tables=valid).run()
    assert on_kernels == [("triton", LatticeStep)]
    assert_close("Q", found.cpu(), image.in_memory(**setting[1]))


def test_more_classes_than_the_fused_step_has(on_kernels, device):
    """They are left to PyTorch."""
    image = Image.of((4, 5), classes=257, dtype=torch.float32)
    found = Streamed(image.to(device), (3, 5), {"weights": [1.5, 3.0]}).run()
    assert on_kernels[0][0] == "torch"
    assert_close("Q", found.cpu(), image.in_memory(iterations=3, weights=[1.5, 3.0]))

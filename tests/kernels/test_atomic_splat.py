"""The splat by atomic additions, which benchmarks compare with: the same sums in another order."""

import pytest
import torch

from assertions import assert_close
from bench.atomic_splat import atomic_splat
from cases import random_features
from tritoncrf.filters.lattice import TABLES, build
from tritoncrf.kernels import lattice as kernels
from tritoncrf.reference import lattice as reference


@pytest.mark.parametrize("size, d, classes, batch, images, scaled", [
    pytest.param((1,), 1, 1, 1, 1, False, marks=pytest.mark.interpreter),
    ((5, 7), 5, 21, 1, 1, True),
    ((4, 5), 2, 3, 2, 2, True),
    pytest.param((4, 5), 2, 5, 3, 1, True, marks=pytest.mark.interpreter),
    ((67,), 3, 70, 2, 1, False),
    ((4, 5), 2, 3, 0, 1, False),
])  # fmt: skip
def test_atomic_additions_give_the_sorted_sums(size, d, classes, batch, images, scaled, device):
    f = random_features(size, d, images).flatten(2) * 2
    lattice = reference.Lattice(*build(f.to(device, torch.float32), "triton", False)[:TABLES])
    scale = torch.rand(images, 1, f.shape[2], device=device) + 0.5 if scaled else None
    side = reference.ScaledLattice(lattice, scale)
    rows = kernels.rows_of(torch.randn(batch, classes, f.shape[2], device=device))
    found, expected = atomic_splat(rows, side), kernels.splat(rows, side)
    assert_close("v", found[:, :-1], expected[:, :-1], dtype=torch.float32)
    assert not found[:, -1].any()

"""Losses: cross-entropy over known pixels, and the choice of hard ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tritoncrf.models.losses import cross_entropy, hard_pixels


def test_by_hand():
    logits = torch.tensor([[[[0.0, 0.0, 5.0]], [[0.0, 1.0, -5.0]]]])  # [1, 2, 1, 3]
    labels = torch.tensor([[[0, 1, 255]]])
    total, count = cross_entropy(logits, labels)
    assert total.item() == pytest.approx(math.log(2) + math.log(1 + math.exp(-1)))
    assert count == 2


def test_nothing_known_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((1, 4, 5), 255), hard=0.5)
    total.backward()
    assert total == count == 0
    assert not logits.grad.any()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(1, 4, 32, 32).bfloat16()
    labels = torch.randint(0, 4, (1, 32, 32))
    total, _ = cross_entropy(logits, labels)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(F.cross_entropy(logits.double(), labels, reduction="sum").item(), rel=1e-6)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]))
def test_hard_pixels_are_the_largest_of_the_grid(rows, columns, share):
    """ceil(share n) of n distinct losses, on the grid of every fourth pixel."""
    losses = torch.randperm(2 * rows * columns).view(2, rows, columns).float()
    valid = torch.ones_like(losses, dtype=torch.bool)
    valid[0, 0, 0] = rows * columns == 1  # one unknown pixel, unless it is the only one
    grid = losses[:, ::4, ::4][valid[:, ::4, ::4]]
    kept = sorted(grid.tolist(), reverse=True)[: -int(-share * len(grid) // 1)]
    found = hard_pixels(losses, valid, share)
    chosen = losses[:, ::4, ::4][found[:, ::4, ::4]]
    assert sorted(chosen.tolist(), reverse=True) == kept


def test_a_hard_pixel_stands_for_its_block():
    losses = torch.zeros(1, 7, 9)
    losses[0, 4, 4] = 1.0
    valid = torch.ones_like(losses, dtype=torch.bool)
    valid[0, 5, 6] = False
    expected = torch.zeros_like(valid)
    expected[0, 4:7, 4:8] = True
    expected[0, 5, 6] = False
    assert torch.equal(hard_pixels(losses, valid, 0.1), expected)


def test_only_hard_pixels_learn():
    logits = torch.zeros(1, 2, 4, 8, requires_grad=True)
    labels = torch.zeros(1, 4, 8, dtype=torch.int64)
    with torch.no_grad():
        logits[0, 0, :, :4] = 3.0  # easy: the left block is right already
    total, count = cross_entropy(logits, labels, hard=0.5)
    total.backward()
    assert count == 16
    assert not logits.grad[..., :4].any()
    assert logits.grad[..., 4:].abs().min() > 0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_ties_count_together(share):
    assert hard_pixels(torch.ones(1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool), share).all()

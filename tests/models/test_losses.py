"""Losses: cross-entropy over known pixels, and the choice of hard ones."""

import math

import numpy as np
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


def released(probabilities, labels, share):
    """Which pixels count, in SegModel's released code, from the probabilities of their labels; loops over pixels."""
    batch, height, width = labels.shape
    grid = [(b, y, x) for b in range(batch) for y in range(0, height, 4) for x in range(0, width, 4)]
    known = [labels[place] != 255 for place in grid]
    ordered = sorted(probabilities[place] if k else 1.0 for place, k in zip(grid, known))
    threshold = ordered[min(int(sum(known) * share), len(grid) - 1)]
    flags = {place: not k or probabilities[place] < threshold for place, k in zip(grid, known)}
    found = np.zeros(labels.shape, bool)
    for b, y, x in np.ndindex(*labels.shape):
        found[b, y, x] = labels[b, y, x] != 255 and flags[b, y // 4 * 4, x // 4 * 4]
    return found


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("void", [0.0, 0.12, 1.0])
@pytest.mark.parametrize("size", [(32, 40), (4, 4)], ids=str)
def test_released_hard_pixels_are_the_codes(size, void, share):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 3, *size)))
    labels = torch.from_numpy(rng.integers(0, 3, (2, *size)))
    edges = rng.random((2, *(n // 4 for n in size))) < void  # whole blocks, and single pixels
    labels[torch.from_numpy(edges).repeat_interleave(4, 1).repeat_interleave(4, 2)] = 255
    labels[torch.from_numpy(rng.random((2, *size)) < void / 4)] = 255
    own = logits.softmax(1).gather(1, labels.where(labels != 255, 0)[:, None])[:, 0]
    expected = torch.from_numpy(released(own.numpy(), labels.numpy(), share))
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    assert torch.equal(hard_pixels(losses, labels != 255, share, "released"), expected)
    total, count = cross_entropy(logits, labels, share, "released")
    assert count == expected.sum()
    assert total.item() == pytest.approx(losses[expected].sum().item(), rel=1e-5)


def test_released_keeps_blocks_that_begin_at_a_void_pixel():
    losses, valid = torch.zeros(1, 4, 12), torch.ones(1, 4, 12, dtype=torch.bool)
    losses[..., :4] = 1.0
    valid[0, 0, 8] = False  # of the last block, which is easy, only the pixel on the grid is unknown
    kept = {kind: hard_pixels(losses, valid, 0.5, kind)[0].sum(0).tolist() for kind in ("known", "released")}
    assert kept == {"known": [4] * 4 + [0] * 8, "released": [4] * 4 + [0] * 4 + [3, 4, 4, 4]}

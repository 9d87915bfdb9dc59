"""Losses over pixels: cross-entropy over all labelled pixels or the hardest ones."""

import math

import torch
from torch.nn import functional as F

from tritoncrf.models.augment import VOID

STRIDE = 4  # of the grid on which hard pixels are looked for


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, hard: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over pixels of -log softmax(logits)[label], and how many pixels that are.

    Args:
        logits: [B, C, H, W].
        labels: int64 [B, H, W], 255 where unknown.
        hard: the fraction of pixels that count, those with the largest loss; all by default. See `hard_pixels`.

    Returns:
        (sum, count), both 0-d in float32.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")  # 0 where unknown
    counted = labels != VOID
    if hard is not None:
        counted = hard_pixels(losses.detach(), counted, hard)
        losses = losses * counted
    return losses.sum(), counted.sum().float()


def hard_pixels(losses: torch.Tensor, valid: torch.Tensor, share: float) -> torch.Tensor:
    """Where the loss is among the largest: a bool map [B, H, W] of about `share` of the valid pixels.

    Losses are compared on a grid of every fourth pixel over the whole batch, and each stands for the 4 x 4 pixels that
    begin at it (Shen et al. 2017, SegModel, in the released code). Of n valid pixels of the grid, ceil(share n) count,
    and all that tie with the last.
    """
    grid, known = losses[:, ::STRIDE, ::STRIDE], valid[:, ::STRIDE, ::STRIDE]
    compared = grid[known]
    if compared.numel() == 0:
        return valid
    kept = math.ceil(share * len(compared))
    threshold = compared.kthvalue(len(compared) - kept + 1).values
    chosen = known & (grid >= threshold)
    blocks = chosen.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    return blocks[:, : losses.shape[1], : losses.shape[2]] & valid

"""Losses over pixels: cross-entropy over all labelled pixels or the hardest ones."""

import math
from typing import Literal, TypeAlias

import torch
from torch.nn import functional as F

from tritoncrf.models.augment import VOID

Hardest: TypeAlias = Literal["known", "released"]
STRIDE = 4  # of the grid on which hard pixels are found


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, hard: float | None = None, hardest: Hardest = "known",
    robust: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Sum over pixels of -log(Q[label] + robust) with Q = softmax(logits), and the number of pixels.

    Args:
        logits: [B, C, H, W].
        labels: int64 [B, H, W], 255 where unknown.
        hard: the share of pixels that count, those with the largest loss; None for all. See `hard_pixels`.
        hardest: how they are chosen, see `hard_pixels`.
        robust: 0 for the cross-entropy; above 0 the robust log-likelihood, in which a pixel adds at most -log(robust),
            and its gradient decreases the farther its Q is below `robust`, so that wrong labels count little. It comes
            from the released code of Krähenbühl and Koltun (2013), whose example uses 0.01. CRF-as-RNN (Zheng et al.
            2015, section 6) tried it without a gain in accuracy or speed, and gives no number.

    Returns:
        (sum, count), both 0-d in float32.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")  # 0 where unknown
    counted = labels != VOID
    if hard is not None:
        counted = hard_pixels(losses.detach(), counted, hard, hardest)
        losses = losses * counted
    if robust:
        smallest = losses.new_tensor(robust).log()
        losses = torch.where(counted, -torch.logaddexp(-losses, smallest), 0)
    return losses.sum(), counted.sum().float()


def hard_pixels(
    losses: torch.Tensor, valid: torch.Tensor, share: float, hardest: Hardest = "known"
) -> torch.Tensor:  # fmt: skip
    """The pixels with the largest losses: a bool map [B, H, W] of about `share` of the valid pixels.

    Losses are compared on a grid of every fourth pixel over the whole batch, and each stands for the 4 x 4 pixels that
    begin at it (Shen et al. 2017, SegModel, in the released code).

    Args:
        losses: [B, H, W], not negative.
        valid: bool [B, H, W], where the label is known.
        share: in (0, 1].
        hardest: which blocks count, of a grid with n valid pixels. "known": those of the ceil(share n) largest losses,
            and all that tie with the last. "released", as in that code: those above the loss that comes after the
            floor(share n) largest, void ones coming last as 0; and all that begin at a void pixel, whatever their
            loss.
    """
    grid, known = losses[:, ::STRIDE, ::STRIDE], valid[:, ::STRIDE, ::STRIDE]
    compared = grid[known]
    if hardest == "released":
        ordered = torch.where(known, grid, 0).flatten().sort(descending=True).values
        chosen = ~known | (grid > ordered[min(math.floor(share * len(compared)), len(ordered) - 1)])
    elif compared.numel() == 0:
        return valid
    else:
        kept = math.ceil(share * len(compared))
        chosen = known & (grid >= compared.kthvalue(len(compared) - kept + 1).values)
    blocks = chosen.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    return blocks[:, : losses.shape[1], : losses.shape[2]] & valid

"""Sums over boxes, as in reference.box."""

from typing import Any

import torch
from torch.nn import functional as F


def box_sum(x: torch.Tensor, radii, dilation: int = 1) -> torch.Tensor:
    """box(x) for x [..., *S] and one radius per axis of S."""
    for axis, r in zip(range(-len(radii), 0), radii, strict=True):
        x = _along(x, axis, r, dilation) if r else x
    return x


def _along(x: torch.Tensor, axis: int, r: int, dilation: int) -> torch.Tensor:
    """Combine sums of 1, 2, 4, ... neighbours into windows of w pixels."""
    n, width, reach = x.shape[axis], 2 * r + 1, r * dilation
    power = F.pad(x, (0, 0) * (-1 - axis) + (reach, reach))
    length = n + 2 * reach
    total: Any = None
    start, taken = 0, 1  # total: the sum of the windows' first `start` pixels
    while True:
        if width & taken:
            part = power.narrow(axis, start * dilation, n)
            total = part if total is None else total + part
            start += taken
        if start == width:
            found: torch.Tensor = total
            return found
        length = length - taken * dilation
        power, taken = power.narrow(axis, 0, length) + power.narrow(axis, taken * dilation, length), 2 * taken

"""Windowed Gaussian sums as in reference.window: one shifted multiply-add per neighbour. Shapes are [B, C, Z, Y, X]."""

from typing import Any

import torch
from torch.nn import functional as F

from tritoncrf import reference
from tritoncrf.reference.window import half_window


class _Padded:
    """A tensor padded with zeros by the reach of a window."""

    def __init__(self, x: torch.Tensor, radii, dilation: int) -> None:
        self.size, self.reach = x.shape[2:], [r * dilation for r in radii]
        self.x = F.pad(x, [n for r in reversed(self.reach) for n in (r, r)])

    def at(self, offset) -> torch.Tensor:
        """The neighbour of every pixel at an offset."""
        found = self.x
        for axis, (n, r, o) in enumerate(zip(self.size, self.reach, offset, strict=True), 2):
            found = found.narrow(axis, r + o, n) if r else found
        return found


def window_weights(terms, radii, dilation: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """sum_m a_m s_mi s_mj k_m for the half window: for every tap the weights of the neighbours ahead and behind, [Bf,
    1, *S].

    terms: (features, scale or None, factor a) for each m.
    """
    offsets, found = half_window(radii, dilation), []
    padded: list[Any] = [
        (f, _Padded(f, radii, dilation), s, None if s is None else _Padded(s, radii, dilation), a) for f, s, a in terms
    ]
    for offset in offsets:
        total: Any = None
        for f, neighbours, s, scales, a in padded:
            k = (-0.5 * (f - neighbours.at(offset)).square().sum(1, keepdim=True)).exp() * a
            k = k if s is None else k * s * scales.at(offset)
            total = k if total is None else total + k
        found.append((total, _Padded(total, radii, dilation).at([-o for o in offset])))
    return found


def window_sum(x: torch.Tensor, features, radii, dilation: int, include_self: bool, weights=None) -> torch.Tensor:
    """K x; `weights` from `window_weights`, if kept, save the exponentials."""
    if weights is None:
        weights = window_weights([(features, None, 1.0)], radii, dilation)
    padded, total = _Padded(x, radii, dilation), x if include_self else torch.zeros_like(x)
    for offset, (ahead, behind) in zip(half_window(radii, dilation), weights, strict=True):
        total = total + padded.at(offset) * ahead + padded.at([-o for o in offset]) * behind
    return total


class MergedStep(reference.window.MergedStep):
    """The step with its kernels summed before they are applied."""

    window_sum = staticmethod(window_sum)
    window_weights = staticmethod(window_weights)

"""The guided filter, as in reference.guided: all classes at once. Shapes are [B, C, Z, Y, X]."""

import torch

from tritoncrf.reference import blur
from tritoncrf.reference.guided import Guide, packed


def guided_filter(x: torch.Tensor, guide: Guide, adjoint: bool) -> torch.Tensor:
    """K x; autograd derives its adjoint."""
    assert not adjoint
    channels, low_channels = guide.image.split(1, 1), guide.low.split(1, 1)
    low = blur.pool(guide.there(x), guide.factors, guide.spare > 0)
    means = _sums([low, *(low * channel for channel in low_channels)], guide)
    fields = _sums([guide.there(field) for field in _fitted([m / guide.area for m in means], guide)], guide)
    means = [blur.upsample(f / guide.area, x.shape[2:], guide.factors) for f in fields]
    total = means[0]
    for slope, channel in zip(means[1:], channels, strict=True):
        total = total + slope * channel
    return guide.there(total)


def _sums(fields: list[torch.Tensor], guide: Guide) -> list[torch.Tensor]:
    """box of fields [B, C, *S]."""
    return [*guide.sums(torch.cat(fields, 1)).split(fields[0].shape[1], 1)]


def _fitted(means: list[torch.Tensor], guide: Guide) -> list[torch.Tensor]:
    """[m(x), m(I x)] -> [offset, slope], the slope from the packed Cholesky factors."""
    own, factor = guide.mean.split(1, 1), guide.cholesky.split(1, 1)
    offset, slope = means[0], [m - mean * means[0] for m, mean in zip(means[1:], own, strict=True)]
    for e in range(len(slope)):
        for d in range(e):
            slope[e] = slope[e] - factor[packed(e, d)] * slope[d]
    for e in reversed(range(len(slope))):
        slope[e] = slope[e] * factor[packed(e, e)]
        for d in range(e + 1, len(slope)):
            slope[e] = slope[e] - factor[packed(e, d)] * slope[d]
    for a, mean in zip(slope, own, strict=True):
        offset = offset - a * mean
    return [offset, *slope]

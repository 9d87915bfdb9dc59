"""Windowed Gaussian sums in PyTorch, one shifted multiply-add per neighbour.

    (K x)_i = sum_delta k_i,delta x_{i+delta},   k_i,delta = exp(-|f_i - f_{i+delta}|^2 / 2)

with delta over a window of half-widths `radii` (times `dilation`), nothing outside the image (ConvCRF
paper, section 4). k is symmetric in its two pixels, so each weight is formed once, for the half of the
window that follows its centre, and serves both pixels. The work goes block by block, each small enough to stay
in cache: one pass over the whole image per neighbour is several times slower. A pixel's sum runs over its neighbours in
one order, i + delta and i - delta for each delta of the half window, independent of the blocks, so a part of an image
with all neighbours of a pixel gives it the identical result.

Everything here is shaped [B, C, Z, Y, X]; images have Z = 1, signals also Y = 1. Memory O(B C N), plus
half the window times N when the weights are kept.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch

from tritoncrf.reference import blur
from tritoncrf.step import Step, softmax_adjoint, to_3d

BLOCK_BYTES = 1 << 22  # of values: small enough for the cache, large enough that calls cost little
ROW_SHARE = 8  # a block's rows are this many times as long as its columns, since long rows cost less


def half_window(radii, dilation: int) -> list[tuple[int, ...]]:
    """The offsets of the window that follow its centre, in scan order."""
    taps = itertools.product(*(range(-r, r + 1) for r in radii))
    return [tuple(dilation * t for t in tap) for tap in taps if tap > (0, 0, 0)]


def _blocks(size, numbers: int):
    """The slices of blocks with at most this many pixels, at least one, with rows as long as possible."""
    extent = [*size]
    while math.prod(extent) > max(1, numbers):
        shares = [n / (ROW_SHARE if axis == 2 else 1) if n > 1 else 0 for axis, n in enumerate(extent)]
        longest = shares.index(max(shares))
        extent[longest] = -(-extent[longest] // 2)
    cuts = ([slice(s, min(s + e, n)) for s in range(0, n, e)] for n, e in zip(size, extent, strict=True))
    return itertools.product(*cuts)


class _Span(NamedTuple):
    """On one axis, or on all: the pixels of a block and their neighbours at an offset."""

    here: Any  # pixels whose neighbour ahead is in the image
    ahead: Any  # those neighbours
    there: Any  # pixels whose neighbour behind is in the image
    behind: Any  # those neighbours
    first: Any  # what holds `here` and `behind`, the earlier pixels of all pairs
    second: Any  # the later ones
    first_here: Any  # `here` in `first`
    first_behind: Any  # `behind` in `first`


@functools.lru_cache(maxsize=1 << 14)
def _span(start: int, stop: int, offset: int, n: int) -> _Span:
    """On one axis of n pixels, of the block start .. stop; slices that end where they start or before hold nothing."""
    here = max(start, -offset), min(stop, n - offset)
    behind = max(start - offset, 0, -offset), min(stop - offset, n, n - offset)
    there = [s for s in (here, behind) if s[0] < s[1]]
    low, high = min((s[0] for s in there), default=0), max((s[1] for s in there), default=0)
    moved = (here, offset), (behind, offset), ((low, high), offset), (here, -low), (behind, -low)
    ahead, back, second, first_here, first_behind = (slice(s[0] + o, s[1] + o) for s, o in moved)
    return _Span(slice(*here), ahead, back, slice(*behind), slice(low, high), second, first_here, first_behind)


def _spans(size, radii, dilation: int, channels: int, itemsize: int):
    """Yield (tap, spans of all axes, whether any pixel has a neighbour ahead, whether any has one behind)."""
    window = half_window(radii, dilation)
    for block in _blocks(size, BLOCK_BYTES // max(1, channels * itemsize)):
        for tap, offset in enumerate(window):
            spans = [_span(b.start, b.stop, o, n) for b, o, n in zip(block, offset, size, strict=True)]
            ahead = all(s.here.start < s.here.stop for s in spans)
            behind = all(s.behind.start < s.behind.stop for s in spans)
            if ahead or behind:
                yield tap, _Span(*((slice(None), *axes) for axes in zip(*spans, strict=True))), ahead, behind


def _pairs(size, radii, dilation: int, channels: int, itemsize: int):
    """Yield (tap, i, j): blocks of pixels i whose neighbour j = i + offset is in the image, as slices."""
    for tap, span, ahead, _ in _spans(size, radii, dilation, channels, itemsize):
        if ahead:
            yield tap, span.here, span.ahead


def _gaussian(features, i, j):
    """k of the pairs of pixels (i, j), [1, z, y, x]; the channels are summed in the same order for all, unlike in
    PyTorch's sum."""
    total, *others = (features[i] - features[j]).square_().unbind(0)
    for squares in others:
        total += squares
    return total[None].mul_(-0.5).exp_()


def window_weights(terms, radii, dilation: int):
    """sum_m a_m s_mi s_mj k_m for the half window, [Bf, taps, Z, Y, X]; zero where j is outside the image.

    terms: (features, scale or None, factor a) for each m. One sum of a ConvCRF's kernels serves them all.
    """
    batches = [f.shape[0] for f, _, _ in terms]
    batch = max(batches) if min(batches) else 0
    size = terms[0][0].shape[2:]
    weights = terms[0][0].new_zeros(batch, len(half_window(radii, dilation)), *size)
    for features, scale, factor in terms:
        for b in range(batch):
            shared = b % features.shape[0]
            f, s = features[shared], None if scale is None else scale[b % scale.shape[0]]
            for tap, i, j in _pairs(size, radii, dilation, f.shape[0], f.element_size()):
                k = _gaussian(f, i, j)
                if s is not None:
                    k.mul_(s[i]).mul_(s[j])
                weights[b, tap][i[1:]] += k[0].mul_(factor)
    return weights


def window_sum(x, features, radii, dilation: int, include_self: bool, weights=None):
    """K x, [B, C, Z, Y, X]; `weights` from `window_weights`, if kept, save the exponentials."""
    batch, channels, *size = x.shape
    out = x.clone() if include_self else torch.zeros_like(x)
    for b in range(batch):
        f = features[b % features.shape[0]]  # the batch may share one image's features
        x_b, out_b = x[b], out[b]
        for tap, span, ahead, behind in _spans(size, radii, dilation, channels, x.element_size()):
            if weights is None:
                k = _gaussian(f, span.first, span.second)
                k_ahead, k_behind = k[span.first_here], k[span.first_behind]
            else:
                k = weights[b % len(weights), tap]
                k_ahead, k_behind = k[span.here[1:]], k[span.behind[1:]]
            if ahead:
                out_b[span.here].addcmul_(x_b[span.ahead], k_ahead)
            if behind:
                out_b[span.there].addcmul_(x_b[span.behind], k_behind)
    return out


def window_feature_gradient(x, y, features, radii, dilation: int):
    """The gradient of <y, K x> with respect to the features, [Bf, D, Z, Y, X].

    df_i = sum_delta k (<y_i, x_j> + <y_j, x_i>) (f_j - f_i), j = i + delta.
    """
    batch, channels, *size = x.shape
    gradient = torch.zeros_like(features)
    for b in range(batch):
        shared = b % features.shape[0]
        x_b, y_b, f, g = x[b], y[b], features[shared], gradient[shared]
        for _, i, j in _pairs(size, radii, dilation, channels, x.element_size()):
            pull = torch.linalg.vecdot(y_b[i], x_b[j], dim=0).add_(torch.linalg.vecdot(y_b[j], x_b[i], dim=0))
            pull = _gaussian(f, i, j).mul_(pull) * (f[j] - f[i])
            g[i] += pull
            g[j] -= pull
    return gradient


class MergedStep(Step):
    """The step with its kernels summed before they are applied: K = sum_m a_m s_m K_m s_m.

    K is symmetric, and kept for all iterations. If messages of each filter are needed, the separate step is used.
    """

    window_sum = staticmethod(window_sum)
    window_weights = staticmethod(window_weights)

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary, unary_weight)
        self.window = operators[0]
        self.centre = sum(
            a if K.scale_in is None else a * to_3d(K.scale_in).square()
            for K, a in zip(operators, mixing, strict=True)
            if K.include_self
        )

    @functools.cached_property
    def weights(self):
        terms = [
            (K.features, None if K.scale_in is None else to_3d(K.scale_in), a)
            for K, a in zip(self.operators, self.mixing, strict=True)
        ]
        return self.window_weights(terms, self.window.radii, self.window.dilation)

    def scores(self, state):
        return self._filter(state, self.window.pool, blur.upsample).add_(self.weighted_unary)

    def backward(self, q, g, through_softmax: bool, messages: bool):
        if messages:
            return super().backward(q, g, through_softmax, messages)
        gradient = self._filter(g, blur.upsample_adjoint, blur.pool_adjoint)
        return softmax_adjoint(q, gradient) if through_softmax else gradient, None

    def _filter(self, x, down, up):
        full, K = to_3d(x), self.window
        low = down(full, K.factors)
        total = self.window_sum(low, K.features, K.radii, K.dilation, False, self.weights)
        total += low * self.centre
        return up(total, full.shape[2:], K.factors).reshape(x.shape)

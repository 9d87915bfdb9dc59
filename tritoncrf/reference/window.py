"""Windowed Gaussian sums in PyTorch, one shifted multiply-add per neighbour.

    (K x)_i = sum_delta k_i,delta x_{i+delta},   k_i,delta = exp(-|f_i - f_{i+delta}|^2 / 2)

with delta over a window of half-widths `radii` (times `dilation`), nothing outside the image (ConvCRF
paper, section 4). k is symmetric in its two pixels, so each weight is formed once, for the half of the
window that follows its centre, and serves both pixels. The work goes block by block of rows, small
enough to stay in cache: one pass over the whole image per neighbour is several times slower.

Everything here is shaped [B, C, Z, Y, X]; images have Z = 1, signals also Y = 1. Memory O(B C N), plus
half the window times N when the weights are kept.
"""

import functools
import itertools
import math

import torch

from tritoncrf.reference import blur
from tritoncrf.step import Step, softmax_adjoint, to_3d

BLOCK_BYTES = 1 << 21  # of values: small enough to stay in cache, large enough that calls cost little


def half_window(radii, dilation: int) -> list[tuple[int, ...]]:
    """The offsets of the window that follow its centre, in scan order."""
    taps = itertools.product(*(range(-r, r + 1) for r in radii))
    return [tuple(dilation * t for t in tap) for tap in taps if tap > (0, 0, 0)]


def _pairs(size, radii, dilation: int, channels: int, itemsize: int):
    """Yield (tap, i, j): blocks of pixels i whose neighbour j = i + offset is in the image, as slices."""
    axis = next((a for a, n in enumerate(size) if n > 1), 2)  # the outermost: offsets along it are >= 0
    row_bytes = max(1, channels * itemsize * math.prod(size) // max(1, size[axis]))
    block = max(1, BLOCK_BYTES // row_bytes)
    window = half_window(radii, dilation)
    for start in range(0, size[axis], block):
        for tap, offset in enumerate(window):
            low = [max(0, -o) for o in offset]
            high = [min(n, n - o) for n, o in zip(size, offset, strict=True)]
            low[axis] = max(low[axis], start)
            high[axis] = min(high[axis], start + block)
            if all(lo < hi for lo, hi in zip(low, high, strict=True)):
                i = (slice(None), *(slice(lo, hi) for lo, hi in zip(low, high, strict=True)))
                j = (slice(None), *(slice(lo + o, hi + o) for lo, hi, o in zip(low, high, offset, strict=True)))
                yield tap, i, j


def _gaussian(features, i, j):
    """k of the pixel pairs (i, j), [1, z, y, x]."""
    return (features[i] - features[j]).square_().sum(0, keepdim=True).mul_(-0.5).exp_()


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
    """K x, [B, C, Z, Y, X]; `weights` of `window_weights`, if kept, spare the exponentials."""
    batch, channels, *size = x.shape
    out = x.clone() if include_self else torch.zeros_like(x)
    for b in range(batch):
        shared = b % features.shape[0]  # features of one image serve the whole batch
        x_b, out_b = x[b], out[b]
        for tap, i, j in _pairs(size, radii, dilation, channels, x.element_size()):
            k = _gaussian(features[shared], i, j) if weights is None else weights[b % len(weights), tap][i[1:]]
            out_b[i].addcmul_(x_b[j], k)
            out_b[j].addcmul_(x_b[i], k)
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

    K is symmetric, and kept for all iterations. What needs the messages of each filter apart, composes.
    """

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
        return window_weights(terms, self.window.radii, self.window.dilation)

    def scores(self, state):
        return self._filter(state, blur.pool, blur.upsample).add_(self.weighted_unary)

    def backward(self, q, g, through_softmax: bool, messages: bool):
        if messages:
            return super().backward(q, g, through_softmax, messages)
        gradient = self._filter(g, blur.upsample_adjoint, blur.pool_adjoint)
        return softmax_adjoint(q, gradient) if through_softmax else gradient, None

    def _filter(self, x, down, up):
        full, K = to_3d(x), self.window
        low = down(full, K.factors)
        total = window_sum(low, K.features, K.radii, K.dilation, False, self.weights)
        total += low * self.centre
        return up(total, full.shape[2:], K.factors).reshape(x.shape)

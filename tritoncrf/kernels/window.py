"""Windowed Gaussian messages and the fused ConvCRF step (ConvCRF paper, section 4; symbols of docs/symbols.md).

    (K x)_i = sum_j k_ij x_j ,  k_ij = exp(-|f_i - f_j|^2 / 2) ,  j in a window around i, inside the image
    F_m = out_m . K_m (in_m . Q)                         in, out: per-pixel normalisation scales
    dL/df_i = sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i)        for the cotangent y of K x

K is symmetric, so the adjoint of F_m is the same sum with `in` and `out` exchanged: one kernel serves both directions,
and only its last lines, the epilogue, differ.

There are two implementations: images with few classes and features use 2 x 2 pixels per thread (quads.py, and
quads_gradient.py for the gradient of features), everything else goes tap by tap (taps.py). This module chooses between
them. Weights are computed anew in each iteration, since stored ones would take more bytes than Q.

Signals, images and volumes are all [B, C, Z, Y, X] here; missing axes have extent 1 and radius 0.
"""

import torch

from tritoncrf.kernels import quads_gradient, taps
from tritoncrf.kernels.planes import WindowFilter
from tritoncrf.kernels.quads import Quads
from tritoncrf.kernels.taps import FEW_REGISTERS, Taps
from tritoncrf.step import Step, contiguous, from_3d, mix_adjoint, stacked, to_3d

MAX_CLASSES = 256  # of one pass: beyond, the accumulators do not fit in registers
MAX_MATRIX_CLASSES = 32  # with C x C mixing: beyond, the operands of its dot push the sums out of registers


def form_of(
    size, radii, dilation: int, filters, shape, mix=None, unary_weight=None, precision="default", few: bool = False
):
    """The implementation for these windows and values [B, C, ..]: two columns of pixels per thread, or tap by tap.

    few: the images are too small to fill a GPU, so a thread takes fewer pixels or more registers."""
    if Quads.serve(size, radii, dilation, *shape[:2], filters, mix is not None and mix.ndim == 3):
        return Quads(size, radii, dilation, filters, mix, unary_weight, most_rows=1 if few else 2)
    return Taps(size, radii, dilation, filters, mix, unary_weight, precision, FEW_REGISTERS if few else None)


def window_sum(x, features, radii, dilation: int, include_self: bool):
    """K x: x [B, C, Z, Y, X], features [Bf, D, Z, Y, X]; Bf is B or 1."""
    if x.shape[1] > MAX_CLASSES:
        blocks = x.split(MAX_CLASSES, 1)
        return torch.cat([window_sum(b, features, radii, dilation, include_self) for b in blocks], 1)
    filters = [WindowFilter(features.contiguous(), include_self)]
    windows = form_of(x.shape[2:], radii, dilation, filters, x.shape)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    windows.run(windows.state(x), y, "sum")
    return y


def window_feature_gradient(x, y, features, radii, dilation: int):
    """The gradient of <y, K x> with respect to the features, [Bf, D, Z, Y, X]."""
    if quads_gradient.serves(x.shape[2:], radii, dilation, x.shape[:2].numel(), [features.shape[1]]):
        return quads_gradient.feature_gradients(x, y, [features], radii, dilation)[0]
    if x.shape[1] > MAX_CLASSES:
        blocks = zip(x.split(MAX_CLASSES, 1), y.split(MAX_CLASSES, 1), strict=True)
        return sum(window_feature_gradient(*block, features, radii, dilation) for block in blocks)
    return taps.feature_gradient(x, y, features, radii, dilation)


class WindowStep(Step):
    """The step of one or two windows at full resolution, in one launch."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        classes, first = unary.shape[1], operators[0]
        filters = [
            WindowFilter(
                K.features.contiguous(),
                K.include_self,
                contiguous(K.scale_in),
                contiguous(K.scale_out),
                K.positions,
                K.masked,
            )  # fmt: skip
            for K in operators
        ]
        self.mix = stacked(mixing, classes)
        self.windows = form_of(
            to_3d(unary).shape[2:], first.radii, first.dilation, filters, unary.shape, self.mix,
            self.unary_weight, first.precision,
        )  # fmt: skip

    def start(self, q):
        return self.windows.state(q)

    def next(self, state):
        return self.windows.next(state, self.unary)

    def damped(self, new, old, share):
        return self.windows.damped(new, old, share)

    def scores(self, state):
        y = torch.empty_like(self.unary)
        self.windows.run(state, y, "scores", unary=self.unary)
        return y

    def probabilities(self, state):
        return self.windows.image(state).view_as(self.unary)

    def backward(self, q, g, through_softmax: bool, messages: bool):
        y = torch.empty_like(self.unary)
        back = y.new_empty((len(self.operators), *y.shape)) if messages else None
        self.windows.run(
            self.windows.state(g), y, "softmax_adjoint" if through_softmax else "weighted",
            q=q.contiguous() if through_softmax else None, filtered=back, adjoint=True,
        )  # fmt: skip
        return y, back

    def gradients(self, q, g, needs):
        K = self.operators
        window = to_3d(q).shape[2:], K[0].radii, K[0].dilation
        alike = all(k.alike for k in K)
        served = quads_gradient.serves(*window, q.shape[:2].numel(), [k.features.shape[1] for k in K])
        if not (all(needs) and self.mix.shape[1:] == (1,) and alike and served):
            return super().gradients(q, g, needs)
        found = quads_gradient.feature_gradients(
            q, g, [k.features for k in K], *window[1:], [k.scale_in for k in K], self.mix
        )
        return [
            [from_3d(f, k.axes), *k.scale_gradients(q, mix_adjoint(a, g))]
            for f, k, a in zip(found, K, self.mixing, strict=True)
        ]

"""The feature gradient of one or two windows at once, 2 x 2 pixels a thread (symbols of docs/symbols.md).

    L = sum_m c_m <s_m . y, K_m (s_m . x)>            s: the scale of a symmetric normalisation, or 1
    dL/df_i = c s_i sum_j s_j k_ij S_ij (f_j - f_i) ,  S_ij = <y_i, x_j> + <x_i, y_j>          for each m

Form. Images lie in padded planes (planes.py). For a row of the window, or a part of it, a thread first sums S_ij of its
2 x 2 pixels with their neighbours, class after class, any number of them; then the filters' weights meet S_ij once.
Pixels of the upper row have no last row of these, those of the lower no first: their weights there are 2^-inf.
Cost O(N (C + D)) for each tap of the window, memory O(B C N).
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, launch
from tritoncrf.kernels.planes import (
    COLUMNS,
    UNKNOWN,
    WARPS,
    Planes,
    channels,
    exponent,
    halves,
    inside,
    neighbour_there,
    own_channels,
    part_of_row,
    quad_tile,
    scale_pair,
    suits,
)

MAX_CHANNELS = 9  # of all filters: a thread holds each ten times
ROWS = tl.constexpr(2)


@triton.jit
def _products(
    x_ptr, y_ptr, corner, p, C, ROW, R: tl.constexpr, PART: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """S_ij of a thread's left pixels with the neighbours of PART pairs from p on, then of its right pixels."""
    sums = ()
    for _ in tl.static_range(4 * PART):
        sums = sums + (tl.zeros((ROWS, 1, p.shape[2]), tl.float32),)
    plane = tl.full((), PLANE, tl.int64)
    for c in range(0, C):
        x = x_ptr + c * plane
        y = y_ptr + c * plane
        x_j = ()
        y_j = ()
        for k in tl.static_range(PART):
            x_j = x_j + halves(tl.load(x + p + k))
            y_j = y_j + halves(tl.load(y + p + k))
        longer = ()
        for s in tl.static_range(2):
            x_i = own_channels(x, corner, s, ROW, 1, R, ROWS, PLANE)[0]
            y_i = own_channels(y, corner, s, ROW, 1, R, ROWS, PLANE)[0]
            for t in tl.static_range(2 * PART):
                if PART <= R or inside(t - s, R):
                    longer = longer + (sums[2 * PART * s + t] + y_i * x_j[t] + x_i * y_j[t],)
                else:
                    longer = longer + (sums[2 * PART * s + t],)
        sums = longer
    return sums


@triton.jit
def _pulled(
    gradients, sums, f_ptrs, scale_ptrs, bases, own, p, begin, t0,
    D: tl.constexpr, R: tl.constexpr, PART: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Adds s_j k_ij S_ij (f_j - f_i) of PART pairs from p and column t0 on to each filter's gradients, of the left and
    of the right pixels; begin: of the exponent, by rows of pixels."""
    for k in tl.static_range(PART):
        features = ()
        scales = ()
        for m in tl.static_range(len(D)):
            features = features + (channels(f_ptrs[m] + bases[m] * D[m] + p, k, D[m], PLANE),)
            scales = scales + (scale_pair(scale_ptrs[m], bases[m] + p + k),)
        for h in tl.static_range(2):
            new = ()
            for m in tl.static_range(len(D)):
                of_filter = ()
                for s in tl.static_range(2):
                    longer = gradients[m][s]
                    if PART <= R or inside(2 * k + h - s, R):
                        there = neighbour_there(2 * k + h - s, t0, False, True, R, PART)
                        start = begin if there is None else tl.where(there, begin, float("-inf"))
                        weight = tl.exp2(exponent(start, own[m][s], features[m][h], D[m]))
                        pull = weight * scales[m][h] * sums[2 * PART * s + 2 * k + h]
                        longer = ()
                        for d in tl.static_range(len(own[m][s])):
                            longer = longer + (gradients[m][s][d] + pull * (features[m][h][d] - own[m][s][d]),)
                    of_filter = of_filter + (longer,)
                new = new + (of_filter,)
            gradients = new
    return gradients


@triton.jit(do_not_specialize=UNKNOWN)
def _window_quads_feature_gradient_kernel(
    # pointers: planes of x and y; of each filter: planes of features, planes of scales, gradient; c, of all
    x_ptr, y_ptr, f_ptrs, scale_ptrs, gradient_ptrs, mix_ptr,
    # sizes; ROW in pairs; EACH: 1 if a filter has features for each image, 0 if one image's serve all; ZERO: 0
    CLASSES, NY, NX, STEP, ROW, EACH_0, EACH_1, ZERO,
    # strides: filter of c
    stride_mm,
    # meta-parameters; PLANE in pairs; channels of each filter
    D: tl.constexpr, R: tl.constexpr, PART: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Each program owns the gradients of one tile of one phase of one image."""
    N = tl.full((), 1, tl.int64) * NY * NX
    b, phase, image, x, y, corner, i_y, m_y = quad_tile(NY, NX, STEP, ROW, ZERO, R, ROWS)
    o_r = tl.arange(0, ROWS)[:, None, None]
    x_ptr += image * CLASSES * PLANE
    y_ptr += image * CLASSES * PLANE
    bases = ()
    own = ()
    gradients = ()
    for m in tl.static_range(len(D)):
        bases = bases + ((b * (EACH_0 if m == 0 else EACH_1) * (STEP * STEP) + phase) * PLANE,)
        f = f_ptrs[m] + bases[m] * D[m]
        own = own + (
            (
                own_channels(f, corner, 0, ROW, D[m], R, ROWS, PLANE),
                own_channels(f, corner, 1, ROW, D[m], R, ROWS, PLANE),
            ),
        )
        zeros = ()
        for _ in tl.static_range(len(own[m][0])):
            zeros = zeros + (tl.zeros((ROWS, 1, x.shape[2]), tl.float32),)
        gradients = gradients + ((zeros, zeros),)

    for j in range(0, 2 * R + ROWS):
        begin = tl.where((j >= o_r) & (j <= 2 * R + o_r), 0.0, float("-inf"))
        for part in range(0, R + 1, PART):
            p = corner + j * ROW + part
            sums = _products(x_ptr, y_ptr, corner, p, CLASSES, ROW, R, PART, PLANE)
            gradients = _pulled(
                gradients, sums, f_ptrs, scale_ptrs, bases, own, p, begin, 2 * part, D, R, PART, PLANE,
            )  # fmt: skip

    for m in tl.static_range(len(D)):
        for s in tl.static_range(2):
            factor = 1.0
            if mix_ptr is not None:
                factor = tl.load(mix_ptr + m * stride_mm)
            if scale_ptrs[m] is not None:
                factor = factor * own_channels(scale_ptrs[m] + bases[m], corner, s, ROW, 1, R, ROWS, PLANE)[0]
            for d in tl.static_range(len(own[m][s])):
                o_g = (b * D[m] + d) * N + i_y[s]
                tl.store(gradient_ptrs[m] + o_g, gradients[m][s][d] * factor, mask=m_y[s])


def serves(size, radii, dilation: int, images: int, channels) -> bool:
    """Whether these are windows of images, a plane for each class, and features that a thread can hold."""
    return sum(channels) <= MAX_CHANNELS and suits(size, radii, dilation, images)


def feature_gradients(x, y, features, radii, dilation: int, scales=(None, None), mix=None):
    """The gradient of sum_m c_m <s_m . y, K_m (s_m . x)> with respect to one or two filters' features [Bf, D, Z, Y, X].

    x, y [B, C, ..]; scales: s_m [Bf, 1, ..] or None; mix: c_m [M, 1], or 1.
    """
    batch, classes = x.shape[:2]
    layout = Planes(features[0].shape[3:], radii[2], dilation)
    pairs = [layout.of(t).view(torch.int64) for t in (x, y, *features)]
    scales = tuple(None if s is None else layout.of(s).view(torch.int64) for s in scales[: len(features)])
    gradients = [f.new_empty((batch, *f.shape[1:])) for f in features]
    each = [int(len(f) > 1) for f in features]
    rows = ROWS.value * WARPS
    tiles = ceil_div(layout.low[0], rows) * ceil_div(layout.low[1], 2 * COLUMNS.value)
    launch(
        _window_quads_feature_gradient_kernel, (tiles * layout.step**2 * batch,), num_warps=WARPS,
        x_ptr=pairs[0], y_ptr=pairs[1], f_ptrs=tuple(pairs[2:]), scale_ptrs=scales, gradient_ptrs=tuple(gradients),
        mix_ptr=mix, CLASSES=classes, NY=layout.size[0], NX=layout.size[1], STEP=layout.step, ROW=layout.row,
        EACH_0=each[0], EACH_1=each[-1], ZERO=0, stride_mm=0 if mix is None else mix.stride(0),
        D=tuple(f.shape[1] for f in features), R=layout.radius, PART=part_of_row(layout.radius, 6), PLANE=layout.plane,
    )  # fmt: skip
    return [d if len(f) == batch else d.sum(0, keepdim=True) for d, f in zip(gradients, features, strict=True)]

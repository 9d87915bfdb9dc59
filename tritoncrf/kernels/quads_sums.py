"""The sums of quads.py over a window, 2 x 2 pixels a thread: weights of pairs, and how a thread walks over rows.

A pair of neighbours is read once for all pixels of a thread, and its weight formed once for all classes. The rows of
the window are a loop; its columns are unrolled, or a loop over parts of them where that would be long. Of two rows of
pixels the upper has a first row of its window to itself, and the lower a last one: these two are read together.
Positions need no exponential: their weight is a row's times a column's.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.class_blocks import block, blocks, first_class
from tritoncrf.kernels.planes import (
    KAPPA,
    PIXELS,
    channels,
    exponent,
    halves,
    inside,
    neighbour_there,
    scale_pair,
)


@triton.constexpr_function
def distance(t, R):
    return abs(t - R)


@triton.jit
def of_steps(t, spacing):
    """The weight of two positions t steps apart."""
    t = t * spacing
    return tl.exp2(t * t * -KAPPA)


@triton.jit
def _weight(
    T: tl.constexpr, t0, there, own, features, scale, rho, start, gy, gx, spacing,
    D: tl.constexpr, SCALED: tl.constexpr, R: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """rho in_j k_ij of one filter, j in column t0 + T of the window of i, if it is there."""
    if D == 0:
        w = rho * gy
        if there is not None:
            w = tl.where(there, w, 0.0)
        if SCALED:
            w = w * scale
        if WHOLE:
            return w * gx[distance(T, R)]
        else:
            return w * of_steps(t0 + T - R, spacing)
    else:
        if there is not None:
            start = tl.where(there, start, float("-inf"))
        w = tl.exp2(exponent(start, own, features, D))
        if SCALED:
            w = w * scale
        return w * rho


@triton.jit
def _part_of_row(
    x_ptr, f_ptrs, in_ptrs, bases, p, here, t0, sums, own, rho, starts, gy, gx, spacings,
    C: tl.constexpr, D: tl.constexpr, SELF: tl.constexpr, R: tl.constexpr, MERGE: tl.constexpr, PART: tl.constexpr,
    PLANE: tl.constexpr,
):  # fmt: skip
    """Adds what PART pairs of a row of the window, from p and its column t0 on, give to each of a thread's pixels."""
    for k in tl.static_range(PART):
        values = ()
        for c in tl.static_range(blocks(C)):
            o_c = (first_class(C, c) + tl.arange(0, block(C, c)).to(tl.int64)) * PLANE + k
            values = values + (halves(tl.load(x_ptr + p + o_c[None, :, None])),)
        features = ()
        scales = ()
        for m in tl.static_range(len(D)):
            features = features + (channels(f_ptrs[m] + bases[m] * D[m] + p, k, D[m], PLANE),)
            scales = scales + (scale_pair(in_ptrs[m], bases[m] + p + k),)
        for h in tl.static_range(2):
            new = ()
            for s in tl.static_range(2):
                if PART == R + 1 and not inside(2 * k + h - s, R):
                    new = new + (sums[s],)
                else:
                    weights = ()
                    for m in tl.static_range(len(D)):
                        there = neighbour_there(2 * k + h - s, t0, here, SELF[m], R, PART)
                        w = _weight(
                            2 * k + h - s, t0, there, own[m][s], features[m][h], scales[m][h], rho[m][s], starts[m],
                            gy[m], gx[m], spacings[m][1], D[m], in_ptrs[m] is not None, R, PART == R + 1,
                        )  # fmt: skip
                        weights = weights + (w,)
                    if MERGE:
                        weights = (weights[0] + weights[1],)
                    longer = ()
                    for m in tl.static_range(len(weights)):
                        for c in tl.static_range(blocks(C)):
                            longer = longer + (sums[s][m * blocks(C) + c] + weights[m] * values[c][h],)
                    new = new + (longer,)
            sums = new
    return sums


@triton.jit
def _row_weights(dy, spacings, D: tl.constexpr):
    """Of positions: the weight of a row that is dy rows from a pixel's; for each filter, else 0."""
    gy = ()
    for m in tl.static_range(len(D)):
        gy = gy + (of_steps(dy, spacings[m][0]) if D[m] == 0 else 0.0,)
    return gy


@triton.jit
def window_sums(
    x_ptr, f_ptrs, in_ptrs, bases, corner, ROW, own, rho, starts, gx, spacings,
    C: tl.constexpr, D: tl.constexpr, SELF: tl.constexpr, R: tl.constexpr, MERGE: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """sum_j rho in_j k_ij x_j of a thread's left pixels and of its right ones: for each filter, of all in one if MERGE,
    and each block of classes, [ROWS, CB, P]."""
    o_r = tl.arange(0, ROWS)[:, None, None]
    sums = ()
    for _s in tl.static_range(2):
        zeros = ()
        for _m in tl.static_range(1 if MERGE else len(D)):
            for c in tl.static_range(blocks(C)):
                zeros = zeros + (tl.zeros((ROWS, block(C, c), PIXELS), tl.float32),)
        sums = sums + (zeros,)
    # Rows that lie in the windows of all rows of pixels; then the first one of the upper and the last one of the lower.
    for j in range(ROWS - 1, 2 * R + 1):
        gy = _row_weights(j - o_r - R, spacings, D)
        for part in range(0, R + 1, PART):
            sums = _part_of_row(
                x_ptr, f_ptrs, in_ptrs, bases, corner + j * ROW + part, j == R + o_r, 2 * part, sums, own, rho, starts,
                gy, gx, spacings, C, D, SELF, R, MERGE, PART, PLANE,
            )  # fmt: skip
    if ROWS == 2:
        gy = _row_weights(R, spacings, D)
        ends = corner + o_r * (2 * R + 1) * ROW
        for part in range(0, R + 1):
            sums = _part_of_row(
                x_ptr, f_ptrs, in_ptrs, bases, ends + part, False, 2 * part, sums, own, rho, starts,
                gy, gx, spacings, C, D, SELF, R, MERGE, 1, PLANE,
            )  # fmt: skip
    return sums

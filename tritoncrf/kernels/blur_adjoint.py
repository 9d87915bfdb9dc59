"""The backward pass of a blurred window's step (blur.py; symbols of docs/symbols.md): up^T, and the part after the
window.

    up^T       y_m = up^T(out_m g)                            [C, NY, NX] -> [C, LY, LX]
    backward   dQ = sum_m in_m pool^T(A_m^T G_m) ,  dS = Q (dQ - <Q, dQ>)

Form. For up^T a thread owns a low pixel of a few classes and sums the 2 BY x 2 BX pixels that read from it, a row at a
time: along x first, then times the row's weight. The window that it reads is shifted into the image, where pixels that
read elsewhere have weight 0: nothing is masked. Then a thread owns a piece of a block (pieces.py), and multiplies Q by
the messages of its low pixel. Bytes: g and y; Q, dS and messages of 1 / (BY BX) the size.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.class_blocks import blocks
from tritoncrf.kernels.common import ceil_div, image_base, launch, tile_and_image
from tritoncrf.kernels.pieces import (
    PIECES,
    UNKNOWN,
    by_piece,
    classes_of,
    launch_pieces,
    piece_of_block,
    place,
    scales,
    store_pooled,
)

P = tl.constexpr(128)  # low pixels of a program, one per thread
MAX_CLASSES = 4  # of a thread


@triton.jit
def _reach(i, low, n, pad, B: tl.constexpr):
    """The weight by which pixel i reads from `low`, along an axis of n low pixels: linear between their centres, and 1
    beyond the outermost ones."""
    off = (2 * (i + pad - low * B) + 1 - B) * (0.5 / B)  # from the centre of `low`, without the rounding of positions
    off = tl.where(low == 0, tl.maximum(off, 0.0), off)
    off = tl.where(low == n - 1, tl.minimum(off, 0.0), off)
    return tl.maximum(1.0 - tl.abs(off), 0.0)


@triton.jit(do_not_specialize=UNKNOWN)
def _upsample_adjoint_kernel(
    # pointers; of each filter: scales
    g_ptr, out_ptrs, state_ptr,
    # sizes; where low pixels go
    CLASSES, LY, LX, PY, PX, NY, NX, ROW, START, STEP,
    # strides: filter and class of the state
    stride_sm, low_step,
    # meta-parameters: CB classes a thread; W pixels a read; WIDE: rows are as wide as a window; LOW: from class to
    # class of the state, else low_step
    BY: tl.constexpr, BX: tl.constexpr, CB: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr, SHARED: tl.constexpr,
    LOW: tl.constexpr,
):  # fmt: skip
    """Each program owns P low pixels of a few classes of one image, of all filters."""
    low_step = LOW if low_step is None else low_step
    NX, PX = NX // W * W, PX // W * W
    RY: tl.constexpr = 2 * BY if BY > 1 else 1
    RX: tl.constexpr = 2 * BX if BX > 1 else 1
    N = tl.full((), 1, tl.int64) * NY * NX
    groups = tl.cdiv(CLASSES, CB)
    tile, group = tile_and_image(tl.cdiv(LY * LX, P))
    b = group // groups
    first = group % groups * CB
    low = tile * P + tl.arange(0, P)
    m_low = low < LY * LX
    low = tl.minimum(low, LY * LX - 1)
    y_low, x_low = low // LX, low % LX
    y = tl.maximum(tl.minimum(y_low * BY - PY - RY // 4, NY - RY), 0)
    x = tl.maximum(tl.minimum(x_low * BX - PX - RX // 4, NX - RX), 0)
    o_x = tl.arange(0, W)[None, :]
    across = ()
    for k in tl.static_range(RX // W):
        pixel = x[:, None] + o_x + k * W
        weight = _reach(pixel, x_low[:, None], LX, PX, BX)
        across = across + (weight if WIDE else tl.where(pixel < NX, weight, 0.0),)

    sums = ()
    for _ in tl.static_range(CB * len(SHARED)):
        sums = sums + (tl.zeros((P, W), tl.float32),)
    for row in range(0, tl.minimum(RY, NY)):
        start = (y + row) * NX + x
        if W > 1:
            start = tl.multiple_of(start, W)
        i = start[:, None] + o_x
        down = _reach(y + row, y_low, LY, PY, BY)[:, None]
        weights = ()
        for m in tl.static_range(len(SHARED)):
            of_row = ()
            for k in tl.static_range(RX // W):
                if out_ptrs[m] is None:
                    of_row = of_row + (across[k],)
                else:
                    there = None if WIDE else x[:, None] + o_x + k * W < NX
                    given = tl.load(out_ptrs[m] + image_base(b, N, SHARED[m]) + i + k * W, mask=there)
                    of_row = of_row + (across[k] * given,)
            weights = weights + (of_row,)
        longer = ()
        for c in tl.static_range(CB):
            g = g_ptr + (b * CLASSES + tl.minimum(first + c, CLASSES - 1)) * N + i
            values = ()
            for k in tl.static_range(RX // W):
                if WIDE:
                    values = values + (tl.load(g + k * W),)
                else:
                    values = values + (tl.load(g + k * W, mask=x[:, None] + o_x + k * W < NX, other=0.0),)
            for m in tl.static_range(len(SHARED)):
                total = weights[m][0] * values[0]
                for k in tl.static_range(1, RX // W):
                    total += weights[m][k] * values[k]
                longer = longer + (sums[c * len(SHARED) + m] + down * total,)
        sums = longer
    at = place(b, y_low, x_low, CLASSES, ROW, START, STEP, low_step)
    for c in tl.static_range(CB):
        for m in tl.static_range(len(SHARED)):
            o_y = m * stride_sm + (first + c) * low_step + at
            tl.store(state_ptr + o_y, tl.sum(sums[c * len(SHARED) + m], 1), mask=m_low & (first + c < CLASSES))


@triton.jit
def _back(g_ptr, mix_ptr, o_c, m: tl.constexpr, low, thread, stride_gm, low_step, C: tl.constexpr):
    """A_m^T G_m of a block of classes at the pieces' low pixels, [CB, PIECES, 1]."""
    g = tl.load(g_ptr + m * stride_gm + o_c * low_step + low)
    if mix_ptr is not None:
        g *= tl.load(mix_ptr + (m * C + o_c) * PIECES + thread)
    return g


@triton.jit
def _met(sums, q, g_ptr, mix_ptr, o_c, low, thread, stride_gm, low_step, C: tl.constexpr):
    """Adds <Q, A_m^T G_m> over a block of classes to the sum of each filter, [1, PIECES, W]."""
    longer = ()
    for m in tl.static_range(len(sums)):
        g = _back(g_ptr, mix_ptr, o_c, m, low, thread, stride_gm, low_step, C)
        longer = longer + (sums[m] + tl.sum(q * g, 0, keep_dims=True),)
    return longer


@triton.jit
def _store_back(
    o_c, q, along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first, thread, N, stride_gm, stride_pm,
    low_step, C: tl.constexpr, ROUND: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """dS, or dQ unless SOFTMAX, of a block of classes, and pool(in_m Q) if it is asked for."""
    dq = -along
    for m in tl.static_range(len(weights)):
        dq += weights[m] * _back(g_ptr, mix_ptr, o_c, m, low, thread, stride_gm, low_step, C)
    if SOFTMAX:
        dq *= q
    tl.store(y_ptr + o_c * N + i, dq, mask=m_i)
    if pooled_ptr is not None:
        store_pooled(pooled_ptr, None, o_c, q, weights, low, first, thread, stride_pm, low_step, C, ROUND)


@triton.jit(do_not_specialize=UNKNOWN)
def _blur_step_backward_kernel(
    # pointers: messages that come back; A, each number once for every thread; of each filter: scales; dS, pool(in_m Q)
    g_ptr, q_ptr, mix_ptr, in_ptrs, y_ptr, pooled_ptr,
    # sizes; ZERO: 0
    LY, LX, PY, PX, NY, NX, ZERO,
    # strides: filter of the messages and of pool(Q), class of both
    stride_gm, stride_pm, low_step,
    # meta-parameters as above; SOFTMAX: whether the gradient goes through it
    C: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
    HELD: tl.constexpr, SHARED: tl.constexpr, SOFTMAX: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of some low-resolution pixels of one image, all classes."""
    low_step = LOW if low_step is None else low_step
    N, b, y, x, share, first, o_y, o_x, i, m_i, thread = piece_of_block(
        NY, NX, LY, LX, PY, PX, ZERO, BY, BX, W, ROUND, ALIGNED
    )
    low = by_piece(y * LX + x, ZERO)
    given = scales(in_ptrs, b, i, m_i, N, SHARED)
    weights = ()
    for m in tl.static_range(len(SHARED)):
        weights = weights + (share * given[m],)
    g_ptr += b * C * low_step
    y_ptr += b * C * N
    if q_ptr is not None:
        q_ptr += b * C * N

    if pooled_ptr is not None:
        pooled_ptr += b * C * low_step

    sums = ()
    for _ in tl.static_range(len(SHARED)):
        sums = sums + (tl.zeros(i.shape, tl.float32),)
    values = ()
    if HELD:
        for n in tl.static_range(blocks(C)):
            q = 0.0
            if q_ptr is not None:
                q = tl.load(q_ptr + classes_of(C, n) * N + i, mask=m_i, other=0.0)
            if SOFTMAX:
                sums = _met(sums, q, g_ptr, mix_ptr, classes_of(C, n), low, thread, stride_gm, low_step, C)
            values = values + (q,)
    elif SOFTMAX:
        for c in range(0, C):
            o_c = tl.full((1, 1, 1), c, tl.int64)
            q = tl.load(q_ptr + o_c * N + i, mask=m_i, other=0.0)
            sums = _met(sums, q, g_ptr, mix_ptr, o_c, low, thread, stride_gm, low_step, C)
    along = tl.zeros(i.shape, tl.float32)  # <Q, dQ>
    for m in tl.static_range(len(SHARED)):
        along += weights[m] * sums[m]
    if HELD:
        for n in tl.static_range(blocks(C)):
            _store_back(
                classes_of(C, n), values[n], along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first,
                thread, N, stride_gm, stride_pm, low_step, C, ROUND, SOFTMAX,
            )  # fmt: skip
    else:
        for c in range(0, C):
            o_c = tl.full((1, 1, 1), c, tl.int64)
            q = 0.0
            if q_ptr is not None:
                q = tl.load(q_ptr + o_c * N + i, mask=m_i, other=0.0)
            _store_back(
                o_c, q, along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first, thread, N, stride_gm,
                stride_pm, low_step, C, ROUND, SOFTMAX,
            )  # fmt: skip


def _together(classes: int) -> int:
    """The classes per thread; in an incomplete last group, one is computed repeatedly."""
    return min(range(MAX_CLASSES, 0, -1), key=lambda n: ceil_div(classes, n) * (n + 1))


def upsample_adjoint(g, outs, grid, factors, **place):
    """up^T(out_m g) of g [B, C, ..], to where `place` says; outs: [Bs, 1, ..] or None, of each filter."""
    size, low, pad = grid
    batch, classes = g.shape[:2]
    width, together = 1, _together(classes)
    while width < 4 and all(n % (2 * width) == 0 for n in (size[1], pad[1], factors[1] // 2)) and factors[1] > 1:
        width *= 2
    tiles = ceil_div(low[0] * low[1], P.value)
    launch(
        _upsample_adjoint_kernel, (tiles * ceil_div(classes, together) * batch,), num_warps=P.value // 32,
        g_ptr=g, out_ptrs=tuple(outs), CLASSES=classes, LY=low[0], LX=low[1], PY=pad[0], PX=pad[1],
        NY=size[0], NX=size[1], BY=factors[0], BX=factors[1], CB=together, W=width,
        WIDE=size[1] >= 2 * factors[1] or factors[1] == 1,
        SHARED=tuple(s is None or len(s) == 1 for s in outs), **place,
    )  # fmt: skip


def back_through_step(g, q, mix, scales, y, pooled, grid, factors, softmax: bool, **class_step):
    """dS, or dQ unless `softmax`, to y [B, C, ..], of what comes back at low resolution, G [M, B, C, low]; mix: A_m for
    each thread, or None where they are in G; pool(in_m Q) to `pooled`, as G, or None."""
    launch_pieces(
        _blur_step_backward_kernel, grid, factors, y.shape, zip(scales), g_ptr=g, q_ptr=q, mix_ptr=mix,
        in_ptrs=tuple(scales), y_ptr=y, pooled_ptr=pooled, stride_gm=g.stride(0), stride_pm=g.stride(0),
        SOFTMAX=softmax, **class_step,
    )  # fmt: skip

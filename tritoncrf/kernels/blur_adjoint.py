"""up^T, the adjoint of a blurred window's upsampling (blur.py; symbols of docs/symbols.md).

    y_m = up^T(out_m g)          [C, NY, NX] -> [C, LY, LX]

Form. A thread owns a low pixel of a few classes and sums the 2 BY x 2 BX pixels that read from it, a row at a time:
along x first, then times the row's weight. The window of what it reads is shifted into the image, where weights are 0
of pixels that read elsewhere: nothing is masked. Bytes: g, and y of 1 / (BY BX) the size.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, image_base, launch, scale, tile_and_image

P = tl.constexpr(128)  # low pixels of a program, one a thread
MAX_CLASSES = 4  # of a thread

# Nothing is known of these, so that a new size makes no new binary.
UNKNOWN = ["CLASSES", "LY", "LX", "PY", "PX", "NY", "NX", "ROW", "START", "STEP", "stride_sm"]


@triton.jit
def place(b, y, x, C, ROW, START, STEP, STATE: tl.constexpr):
    """Where pixel (y, x) of image b, class 0, lies in a state of a window: `STATE` from class to class, pixels STEP apart
    in images of their own."""
    phase = y % STEP * STEP + x % STEP
    return (b * STEP * STEP + phase) * C * STATE + (START + y // STEP * ROW + x // STEP)


@triton.jit
def _reach(i, low, n, pad, B: tl.constexpr):
    """The weight by which pixel i reads from `low`, along an axis of n low pixels: up is at (g + 1/2) / B - 1/2 for
    pixel g of the grid, clamped to the low pixels' centres."""
    source = tl.minimum(tl.maximum((i + pad + 0.5) / B - 0.5, 0.0), n - 1.0)
    return tl.maximum(1.0 - tl.abs(source - low), 0.0)


@triton.jit(do_not_specialize=UNKNOWN)
def _upsample_adjoint_kernel(
    # pointers; of each filter: scales
    g_ptr, out_ptrs, state_ptr,
    # sizes; where low pixels go
    CLASSES, LY, LX, PY, PX, NY, NX, ROW, START, STEP,
    # strides: filter of the state
    stride_sm,
    # meta-parameters: CB classes a thread; W pixels a read; WIDE: rows are as wide as a window; STATE: from class to
    # class there
    BY: tl.constexpr, BX: tl.constexpr, CB: tl.constexpr, W: tl.constexpr, WIDE: tl.constexpr, SHARED: tl.constexpr,
    STATE: tl.constexpr,
):  # fmt: skip
    """Each program owns P low pixels of a few classes of one image, of all filters."""
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
    at = place(b, y_low, x_low, CLASSES, ROW, START, STEP, STATE)
    for c in tl.static_range(CB):
        for m in tl.static_range(len(SHARED)):
            o_y = m * stride_sm + (first + c) * STATE + at
            tl.store(state_ptr + o_y, tl.sum(sums[c * len(SHARED) + m], 1), mask=m_low & (first + c < CLASSES))


def _classes(classes: int) -> int:
    """How many a thread has: of those that are left over in the last group it computes one again and again."""
    return min(range(MAX_CLASSES, 0, -1), key=lambda n: ceil_div(classes, n) * (n + 1))


def upsample_adjoint(g, scales, grid, factors, **place):
    """up^T(out_m g) of g [B, C, ..], to where `place` says; scales: [Bs, 1, ..] or None, of each filter."""
    size, low, pad = grid
    batch, classes = g.shape[:2]
    width, together = 1, _classes(classes)
    while width < 4 and all(n % (2 * width) == 0 for n in (size[1], pad[1], factors[1] // 2)) and factors[1] > 1:
        width *= 2
    tiles = ceil_div(low[0] * low[1], P.value)
    launch(
        _upsample_adjoint_kernel, (tiles * ceil_div(classes, together) * batch,), num_warps=P.value // 32,
        g_ptr=g, out_ptrs=tuple(scales), CLASSES=classes, LY=low[0], LX=low[1], PY=pad[0], PX=pad[1],
        NY=size[0], NX=size[1], BY=factors[0], BX=factors[1], CB=together, W=width,
        WIDE=size[1] >= 2 * factors[1] or factors[1] == 1,
        SHARED=tuple(s is None or len(s) == 1 for s in scales), **place,
    )  # fmt: skip

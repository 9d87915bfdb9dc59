"""Pieces of blocks: the distribution of pixels over threads in a step around a blurred window (blur.py,
blur_adjoint.py).

A block is the BY x BX pixels that make one low pixel. A thread owns a piece of it, at most 4 pixels of a row, with all
their classes: tensors have the axes [classes, pieces, W], and the pieces of a block meet once, where it is pooled.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.class_blocks import block, first_class
from tritoncrf.kernels.common import ceil_div, image_base, launch, scale, tile_and_image

MAX_CLASSES = 24  # that a thread holds, or 22 with two filters; with more, some kernel spills
MAX_READS = 6  # blocks of classes times filters that are held; with more, compiling takes longer than 3 s
WARPS = 4
PIECES = tl.constexpr(32 * WARPS)  # of a program, one a thread

# Not specialised: a new size makes no new binary, and no thread gets two pieces.
UNKNOWN = ["CLASSES", "LY", "LX", "PY", "PX", "NY", "NX", "ZERO", "ROW", "START", "STEP"]
UNKNOWN += ["stride_hm", "stride_gm", "stride_pm", "stride_sm", "low_step"]


@triton.constexpr_function
def of_row(BX, W):
    """Pieces of a block's row, a power of two."""
    return triton.next_power_of_2(-(-BX // W))


@triton.jit
def by_piece(i, ZERO):
    """i, so that lanes of a warp hold pieces and a thread all their classes and pixels: contiguous, in Triton's eyes,
    but of no known alignment, and thus in no vectors."""
    return tl.max_contiguous(i + ZERO, (1, 2, 1))


@triton.jit
def classes_of(C: tl.constexpr, n: tl.constexpr):
    """The n-th block of classes, [CB, 1, 1]."""
    return (first_class(C, n) + tl.arange(0, block(C, n)).to(tl.int64))[:, None, None]


@triton.jit
def piece_of_block(
    NY, NX, LY, LX, PY, PX, ZERO,
    BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Pixels of an image; a program's image; of its pieces, [1, PIECES, 1]: low pixel (y, x), 1 / pixels of its block
    that are in the image, whether this piece is the block's first; offsets in the block, [1, PIECES, 1] and
    [1, PIECES, W]; pixels, [1, PIECES, W], and which are in the image; and the piece's thread. ROUND pieces make a
    block; if ALIGNED they begin where vectors do."""
    if ALIGNED:
        NX, PX = NX // BX * BX, 0  # the same numbers, in which the compiler sees it
    N = tl.full((), 1, tl.int64) * NY * NX
    P: tl.constexpr = PIECES // ROUND
    tile, b = tile_and_image(tl.cdiv(LY * LX, P))
    piece = tl.arange(0, PIECES)[None, :, None]
    low = tile * P + piece // ROUND
    there = low < LY * LX
    low = tl.minimum(low, LY * LX - 1)
    o_y = piece % ROUND // of_row(BX, W)
    o_x = piece % of_row(BX, W) * W + tl.arange(0, W)[None, None, :]
    y_low, x_low = low // LX, low % LX
    y = y_low * BY - PY
    x = x_low * BX - PX
    rows = tl.minimum(y + BY, NY) - tl.maximum(y, 0)
    columns = tl.minimum(x + BX, NX) - tl.maximum(x, 0)
    m_i = there & (o_y < BY) & (y + o_y >= 0) & (y + o_y < NY)
    if not ALIGNED:
        m_i = m_i & (o_x < BX) & (x + o_x >= 0) & (x + o_x < NX)
    i = (y + o_y) * NX + (x + o_x)
    if ALIGNED:
        i = tl.max_contiguous(i, (1, 2, W))
    else:
        i = by_piece(i, ZERO)
    first = there & (piece % ROUND == 0)
    share = tl.div_rn(1.0, (rows * columns).to(tl.float32))
    return N, b, y_low, x_low, share, first, o_y, o_x, i, m_i, by_piece(piece, ZERO)


@triton.jit
def scales(scale_ptrs, b, i, m_i, N, SHARED: tl.constexpr):
    """Of each filter at a program's pixels, [1, PIECES, W], or 1."""
    scales = ()
    for m in tl.static_range(len(SHARED)):
        scales = scales + (scale(scale_ptrs[m], i, m_i, image_base(b, N, SHARED[m])),)
    return scales


@triton.jit
def place(b, y, x, C, ROW, START, STEP, low_step):
    """Where pixel (y, x) of image b, class 0, lies in a state of a window, whose classes are low_step apart, and pixels
    STEP apart images of their own."""
    phase = y % STEP * STEP + x % STEP
    return (b * STEP * STEP + phase) * C * low_step + (START + y // STEP * ROW + x // STEP)


@triton.jit
def _sum_of_block(x, ROUND: tl.constexpr):
    """Of x [CB, PIECES, W] over a block, [CB, PIECES, 1], at each of its pieces."""
    x = tl.sum(x, 2)
    if ROUND > 1:
        x = x.reshape(x.shape[0], PIECES // ROUND, ROUND)
        x = (tl.sum(x, 2, keep_dims=True) + tl.zeros_like(x)).reshape(x.shape[0], PIECES)
    return x[:, :, None]


@triton.jit
def store_pooled(
    pooled_ptr, mix_ptr, o_c, q, weights, at, first, thread, stride_pm, low_step, C: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """pool(in_m Q), times A_m if that is given, of a block of classes, to where `at` is in a class; weights: in_m over
    counts."""
    for m in tl.static_range(len(weights)):
        mean = _sum_of_block(q * weights[m], ROUND)
        if mix_ptr is not None:
            mean *= tl.load(mix_ptr + (m * C + o_c) * PIECES + thread)
        tl.store(pooled_ptr + m * stride_pm + o_c * low_step + at, mean, mask=first)


def _held(classes: int, filters: int) -> bool:
    """Whether a thread holds all classes of its piece."""
    return classes <= MAX_CLASSES - 2 * (filters - 1) and classes.bit_count() * filters <= MAX_READS


def launch_pieces(kernel, grid, factors, shape, scales, **arguments):
    """Over the pieces of images of `shape` [B, C, ..]; grid: size, low size and padding of an image, (y, x) each;
    factors: (BY, BX); scales: of each filter, those that the kernel reads, [Bs, 1, ..] or None."""
    (ny, nx), (ly, lx), (py, px) = grid
    by, bx = factors
    width = min(triton.next_power_of_2(bx), 4)
    of_block = triton.next_power_of_2(by) * of_row(bx, width)
    shared = tuple(all(s is None or len(s) == 1 for s in of_filter) for of_filter in scales)
    launch(
        kernel, (ceil_div(ly * lx, PIECES.value // of_block) * shape[0],), num_warps=WARPS, **arguments, LY=ly, LX=lx,
        PY=py, PX=px, NY=ny, NX=nx, ZERO=0, C=shape[1], BY=by, BX=bx, W=width, ROUND=of_block,
        ALIGNED=bx % width == nx % bx == 0, HELD=_held(shape[1], len(shared)), SHARED=shared,
    )  # fmt: skip

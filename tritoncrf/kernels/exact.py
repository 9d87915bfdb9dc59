"""Gaussian messages between all pixels, in tiles as in flash attention (symbols of docs/symbols.md).

    (K x)_i = sum_j k_ij x_j ,   k_ij = exp(-|f_i - f_j|^2 / 2)           j in the blocks that i's block visits
    dL/df_i = sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i)            for the cotangent y of K x

Pixels are sorted so that a block of BLOCK of them is near in feature space (order), and a block visits itself and
those that are listed for it (starts, columns). The list is symmetric, so K is, and is its own adjoint.

Form. A program owns TI sorted pixels for a block of classes and walks over the columns that its block visits, TJ
pixels at a time. Their exponents are a matrix product of features (exponents.py), and the messages are another, k . x.
Both multiply float16 and add in float32: a number is the sum of a high and a low half (22 bits), and of the four
products of halves the lowest is left out, an error of 2^-22. Halves reach from 2^-24 to 65504: weights are multiplied
by 2^SHIFT, and the values of a class by a power of two that brings the largest to 2^14: what a class loses beside those
22 bits is 2^-39 of its largest value. tf32x3 would take twice the time in the matrix units, and split the values again
for every tile that reads them. A weight in one half alone would save a third of the messages' products, but is off by
2e-4 for values of either sign, where errors do not average out.

If a program's pixels are far apart, and between pixels of one block, exponents are computed from differences, so that a
pixel's own weight is exactly 1 and can be left out exactly.

Cost O(N^2 (D + C)) for the pairs visited; memory: values in halves, sorted features, the list.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import MOST_REGISTERS, OF_SIZE, ceil_div, launch, tile_and_image
from tritoncrf.kernels.exponents import (
    ROOT,
    WIDE,
    centred,
    channel,
    cut,
    dot_halves,
    from_differences,
    left_operand,
    matrix,
    right_operand,
    split,
    together,
    with_channel,
)

TILE = 128  # pixels that a program owns; a block is a power of two of them
MAX_DOT_FEATURES = 64  # beyond, the operands of the exponents' product do not fit in shared memory

# C counts the classes of all images if they share one image's features.
OF_BATCH = OF_SIZE | {"do_not_specialize": ["C"]}


def _class_block(classes: int, most: int) -> int:
    """Classes of one program: a power of two that a matrix instruction takes."""
    return min(most, triton.next_power_of_2(max(16, classes)))


@triton.constexpr_function
def _from_registers():
    """Whether products of matrices take both operands from registers: before compute capability 9.0."""
    return tl.target_info.is_cuda() and not tl.target_info.cuda_capability_geq(9)


@triton.constexpr_function
def _columns(TJ, CP, DP):
    """Pixels j of a product with the values."""
    return TJ // 2 if _from_registers() and CP + DP > 48 else TJ


@triton.constexpr_function
def _times(TJ, CP, DP):
    """Products of a step: two for their reads to overlap, but where there are no registers left."""
    if _from_registers() and CP + DP > 64:
        return 1
    return 2 * TJ // _columns(TJ, CP, DP)


@triton.constexpr_function
def _gradient_columns(TJ, DP):
    """Pixels j of a product with the feature gradient."""
    return TJ // 2 if _from_registers() and DP == 64 else TJ


@triton.jit(**OF_BATCH)
def _halves_kernel(
    # pointers
    x_ptr, order_ptr, scale_ptr, h_ptr,
    # sizes
    N, PADDED, C, CLASS_BLOCKS,
    # meta-parameters
    P: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Each program owns P sorted pixels of a block of CP classes of one image: a row of high halves, then low ones.
    Pixels and classes that fill up are 0."""
    tile, b = tile_and_image(PADDED // P)
    b, c = b // CLASS_BLOCKS, b % CLASS_BLOCKS
    o_p = tile * P + tl.arange(0, P)
    o_k = tl.arange(0, CP)
    o_c = c * CP + o_k
    m_p, m_c = o_p < N, o_c < C
    pixel = tl.load(order_ptr + b * N + o_p, mask=m_p, other=0)
    o_x = (b * C + o_c[None, :]) * N + pixel[:, None]
    x = tl.load(x_ptr + o_x, mask=m_p[:, None] & m_c[None, :], other=0.0)
    high, low = split(x * tl.load(scale_ptr + b * C + o_c, mask=m_c, other=0.0)[None, :])
    row = (b * CLASS_BLOCKS + c) * PADDED + o_p
    o_h = row[:, None] * (2 * CP) + o_k[None, :]
    tl.store(h_ptr + o_h, high)
    tl.store(h_ptr + o_h + CP, low)


@triton.jit
def _own(turn_ptr, starts_ptr, columns_ptr, PADDED, CLASS_BLOCKS, BLOCK: tl.constexpr, TI: tl.constexpr):
    """A program's image, block of classes and block of pixels, the first of its sorted pixels, the other blocks that it
    visits and their number."""
    tile, b = tile_and_image(PADDED // TI)
    b, c = b // CLASS_BLOCKS, b % CLASS_BLOCKS
    blocks = PADDED // BLOCK
    block = tl.load(turn_ptr + b * blocks + tile // (BLOCK // TI))
    starts_ptr += b * (blocks + 1) + block
    first = tl.load(starts_ptr)
    i = block.to(tl.int64) * BLOCK + tile % (BLOCK // TI) * TI
    return b, c, block, i, columns_ptr + first, (tl.load(starts_ptr + 1) - first).to(tl.int32)


@triton.jit
def _visited(columns_ptr, step, BLOCK: tl.constexpr, P: tl.constexpr):
    """The first of P sorted pixels in a step through the blocks that a block visits, BLOCK / P steps to each."""
    j = tl.load(columns_ptr + step // (BLOCK // P)).to(tl.int64) * BLOCK
    return j + step % (BLOCK // P) * P


@triton.jit
def _visited_or_own(columns_ptr, block, step, BLOCK: tl.constexpr, P: tl.constexpr):
    """As `_visited`, the block itself coming first."""
    visit = step // (BLOCK // P)
    j = tl.load(columns_ptr + visit - 1, mask=visit > 0, other=block).to(tl.int64) * BLOCK
    return j + step % (BLOCK // P) * P


@triton.jit
def _halves(h_ptr, ROW, P: tl.constexpr, CP: tl.constexpr):
    """High and low halves of the values of P pixels, [P, CP]."""
    return tl.load(matrix(h_ptr, ROW, P, CP)), tl.load(matrix(h_ptr + CP, ROW, P, CP))


@triton.jit(**OF_BATCH)
def _exact_kernel(
    # pointers
    h_ptr, f_ptr, order_ptr, turn_ptr, starts_ptr, columns_ptr, scale_ptr, y_ptr,
    # sizes: pixels, with those that fill the last block, classes and their blocks, features
    N, PADDED, C, CLASS_BLOCKS, D,
    # meta-parameters
    SELF: tl.constexpr, FAST: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr, TI: tl.constexpr,
    TJ: tl.constexpr, TE: tl.constexpr, CP: tl.constexpr, DP: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Each program owns TI sorted pixels of a block of CP classes of one image."""
    b, c, block, i, columns_ptr, visits = _own(turn_ptr, starts_ptr, columns_ptr, PADDED, CLASS_BLOCKS, BLOCK, TI)
    ROW: tl.constexpr = 2 * CP
    o_i = tl.arange(0, TI)
    f_ptr += b * PADDED * DP
    h_ptr += (b * CLASS_BLOCKS + c) * PADDED * ROW

    apart = visits  # those that are computed by differences, beside the block itself
    if DOT:
        centre, t, row = centred(f_ptr + i * DP, TI, DP)
        apart = tl.where(tl.min(row, 0) < -WIDE, visits, 0)
    total = tl.zeros((TI, CP), tl.float32)
    for step in range(0, (apart + 1) * (BLOCK // TE)):
        j = _visited_or_own(columns_ptr, block, step, BLOCK, TE)
        k = tl.exp2(from_differences(f_ptr + i * DP, f_ptr + j * DP, D, TI, TE, DP) + SHIFT)
        if not SELF:
            k = tl.where((i - j) + o_i[:, None] == tl.arange(0, TE)[None, :], 0.0, k)
        x_high, x_low = _halves(h_ptr + j * ROW, ROW, TE, CP)
        high, low = split(k)
        total = tl.dot(high, x_high, total) if FAST else dot_halves(high, low, x_high, x_low, total)
    if DOT:
        i_high, i_low, row, centre = left_operand(t, row, centre, SHIFT, DP)
        P: tl.constexpr = _columns(TJ, CP, DP)
        TIMES: tl.constexpr = _times(TJ, CP, DP)
        x_ptrs, f_ptrs = matrix(h_ptr, ROW, P, CP), matrix(f_ptr, DP, P, DP)
        STEPS: tl.constexpr = BLOCK // (TIMES * P)  # to a visit
        columns_ptr += apart
        for step in range((visits - apart) * STEPS):
            j = tl.load(columns_ptr).to(tl.int64) * BLOCK + step % STEPS * (TIMES * P)
            columns_ptr += (step + 1) // STEPS - step // STEPS
            x_j_ptrs, f_j_ptrs = x_ptrs + j * ROW, f_ptrs + j * DP
            for n in tl.static_range(TIMES):
                x_high, x_low = tl.load(x_j_ptrs + n * P * ROW), tl.load(x_j_ptrs + (n * P * ROW + CP))
                j_high, j_low, column = right_operand(f_j_ptrs + n * P * DP, centre, DP)
                k = tl.exp2(together(i_high, i_low, row, j_high, j_low, column, DP))
                if FAST:
                    total = tl.dot(k.to(tl.float16), x_high, total)
                else:
                    high, low = cut(k, DP)
                    total = dot_halves(high, low, x_high, x_low, total)

    o_c = c * CP + tl.arange(0, CP)
    m_i, m_c = i + o_i < N, o_c < C
    pixel = tl.load(order_ptr + b * N + i + o_i, mask=m_i, other=0)
    total *= tl.load(scale_ptr + b * C + o_c, mask=m_c, other=0.0)[None, :]
    tl.store(y_ptr + (b * C + o_c[None, :]) * N + pixel[:, None], total, mask=m_i[:, None] & m_c[None, :])


@triton.jit
def _pull(k, x_i_high, x_i_low, y_i_high, y_i_low, x_ptr, y_ptr, ROW, CP: tl.constexpr):
    """k_ij (<x_i, y_j> + <y_i, x_j>), [TI, TJ]."""
    x_high, x_low = _halves(x_ptr, ROW, k.shape[1], CP)
    y_high, y_low = _halves(y_ptr, ROW, k.shape[1], CP)
    products = tl.zeros_like(k)
    products = dot_halves(x_i_high, x_i_low, tl.trans(y_high), tl.trans(y_low), products)
    products = dot_halves(y_i_high, y_i_low, tl.trans(x_high), tl.trans(x_low), products)
    return k * products


@triton.jit(**OF_BATCH)
def _exact_feature_gradient_kernel(
    # pointers
    x_ptr, y_ptr, f_ptr, order_ptr, turn_ptr, starts_ptr, columns_ptr, scale_ptr, gradient_ptr,
    # sizes
    N, PADDED, CLASS_BLOCKS, D,
    # meta-parameters
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, TI: tl.constexpr, TJ: tl.constexpr,
    TE: tl.constexpr, CP: tl.constexpr, DP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Each program owns what a block of CP classes adds to the feature gradient of TI sorted pixels of one image.

    sum_j p_ij (f_j - f_i) = sum_j p_ij t_j - t_i sum_j p_ij, with p_ij = k_ij (<x_i, y_j> + <y_i, x_j>).
    """
    b, c, block, i, columns_ptr, visits = _own(turn_ptr, starts_ptr, columns_ptr, PADDED, CLASS_BLOCKS, BLOCK, TI)
    ROW: tl.constexpr = 2 * CP
    o_i = tl.arange(0, TI)
    o_d = tl.arange(0, DP)
    f_ptr += b * PADDED * DP
    x_ptr += (b * CLASS_BLOCKS + c) * PADDED * ROW
    y_ptr += (b * CLASS_BLOCKS + c) * PADDED * ROW

    apart = visits
    if DOT:
        centre, t, row = centred(f_ptr + i * DP, TI, DP)
        apart = tl.where(tl.min(row, 0) < -WIDE, visits, 0)
    x_high, x_low = _halves(x_ptr + i * ROW, ROW, TI, CP)
    y_high, y_low = _halves(y_ptr + i * ROW, ROW, TI, CP)
    gradient = tl.zeros((TI, DP), tl.float32)
    for step in range(0, (apart + 1) * (BLOCK // TE)):
        j = _visited_or_own(columns_ptr, block, step, BLOCK, TE)
        k = tl.exp2(from_differences(f_ptr + i * DP, f_ptr + j * DP, D, TI, TE, DP) + SHIFT)
        pull = _pull(k, x_high, x_low, y_high, y_low, x_ptr + j * ROW, y_ptr + j * ROW, ROW, CP)
        for d in range(D):
            difference = channel(f_ptr + j * DP, d, TE, DP)[None, :] - channel(f_ptr + i * DP, d, TI, DP)[:, None]
            gradient += tl.where(o_d[None, :] == d, tl.sum(pull * difference, 1)[:, None], 0.0)
    if DOT:
        i_high, i_low, row, centre = left_operand(t, row, centre, SHIFT, DP)
        P: tl.constexpr = _gradient_columns(TJ, DP)
        f_ptrs = matrix(f_ptr, DP, P, DP)
        moved = tl.zeros((TI, 16 if DP == 8 else DP), tl.float32)
        pulled = tl.zeros((TI,), tl.float32)
        for step in range(apart * (BLOCK // P), visits * (BLOCK // P)):
            j = _visited(columns_ptr, step, BLOCK, P)
            j_high, j_low, column = right_operand(f_ptrs + j * DP, centre, DP)
            k = tl.exp2(together(i_high, i_low, row, j_high, j_low, column, DP))
            pull = _pull(k, x_high, x_low, y_high, y_low, x_ptr + j * ROW, y_ptr + j * ROW, ROW, CP)
            high, low = cut(pull, DP)
            if DP == 8:
                moved = tl.dot(low, j_high, tl.dot(high, j_high, moved))
            else:
                moved = dot_halves(high, low, j_high, j_low, moved)
                pulled += tl.sum(pull, 1)
        if DP == 8:  # the last channel of every j is ONE, its high half 1
            halves = tl.permute(tl.reshape(moved, (TI, 4, 2, 2)), (0, 1, 3, 2))
            moved, low = tl.split(tl.reshape(halves, (TI, 8, 2)))
            pulled = tl.sum(with_channel(tl.zeros_like(moved), 7, moved), 1)
            moved += low
        gradient += (moved - t * pulled[:, None]) * (1 / ROOT)

    m_i = i + o_i < N
    pixel = tl.load(order_ptr + b * N + i + o_i, mask=m_i, other=0)
    o_g = ((b * CLASS_BLOCKS + c) * D + o_d[None, :]) * N + pixel[:, None]
    tl.store(gradient_ptr + o_g, gradient * tl.load(scale_ptr + b), mask=m_i[:, None] & (o_d < D)[None, :])


def _visits(features, order, starts, columns) -> dict:
    """The arguments of both kernels for features [B, D, PADDED] in sorted order and for the visited blocks."""
    images, dimensions, padded = features.shape
    # Up to 6 channels leave two of 8 to the exponents' product.
    stored = 8 if dimensions <= 6 else triton.next_power_of_2(max(16, dimensions))
    rows = torch.nn.functional.pad(features.mT, (0, stored - dimensions)).contiguous()
    # The longest rows of blocks first, so that none remains when the others are done.
    turn = starts.diff(dim=1).argsort(dim=1, descending=True).int()
    return dict(
        f_ptr=rows, order_ptr=order.contiguous(), turn_ptr=turn, starts_ptr=starts.contiguous(), columns_ptr=columns,
        N=order.shape[1], PADDED=padded, D=dimensions, BLOCK=padded // turn.shape[1], TE=16, DP=stored,
        DOT=stored <= MAX_DOT_FEATURES,
    )  # fmt: skip


def _power(x, dims):
    """Powers of two that bring the largest |x| over `dims` to 2^13 or more, but not over 2^14."""
    largest = torch.linalg.vector_norm(x, torch.inf, dims, keepdim=True)
    return torch.exp2(14 - torch.frexp(largest).exponent.clamp(-100, 127).float())


def _in_halves(x, scale, order, padded: int, classes: int):
    """scale x [B, C, N] in sorted order, [B, blocks of classes, PADDED, high and low, `classes`]."""
    images, total, pixels = x.shape
    blocks = ceil_div(total, classes)
    halves = torch.empty((images, blocks, padded, 2, classes), dtype=torch.float16, device=x.device)
    launch(
        _halves_kernel, (padded // TILE * blocks * images,), num_warps=4,
        x_ptr=x.contiguous(), order_ptr=order, scale_ptr=scale.expand(images, total, 1).contiguous(), h_ptr=halves,
        N=pixels, PADDED=padded, C=total, CLASS_BLOCKS=blocks, P=TILE, CP=classes,
    )  # fmt: skip
    return halves


def exact_sum(x, features, order, starts, columns, include_self: bool, precision: str):
    """K x: x [B, C, N], features [B, D, PADDED] in sorted order, and the blocks visited (reference.exact.prepare)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return y
    visits, classes = _visits(features, order, starts, columns), _class_block(x.shape[1], 64)
    scale = _power(x, 2)
    halves = _in_halves(x, scale, visits["order_ptr"], features.shape[2], classes)
    shift = 15  # k <= 1 becomes 2^15
    launch(
        _exact_kernel, (features.shape[2] // TILE * halves.shape[1] * x.shape[0],), num_warps=8,
        registers_before_90=MOST_REGISTERS,
        h_ptr=halves, **visits, scale_ptr=2.0**-shift / scale, y_ptr=y,
        C=x.shape[1], SELF=include_self, FAST=precision == "fast", SHIFT=shift, TI=TILE, TJ=64,
        CLASS_BLOCKS=halves.shape[1], CP=classes,
    )  # fmt: skip
    return y


def exact_feature_gradient(x, y, features, order, starts, columns):
    """The gradient of <y, K x> with respect to the features, [B, D, N], for x and y [B, C, N]."""
    images, dimensions, padded = features.shape
    if x.numel() == 0:
        return features.new_zeros(images, dimensions, order.shape[1])
    visits, classes = _visits(features, order, starts, columns), _class_block(x.shape[1], 32)
    scales = [_power(v, (1, 2)) for v in (x, y)]
    x, y = (_in_halves(v, s, visits["order_ptr"], padded, classes) for v, s in zip((x, y), scales))
    blocks = x.shape[1]
    shift = 14 - 28 - classes.bit_length()  # of k times 2 C products of two numbers up to 2^14: 2^14 at most
    gradient = features.new_empty(images, blocks, dimensions, order.shape[1])
    rows = TILE if visits["DOT"] else TILE // 2  # the gradient of more features takes more registers
    launch(
        _exact_feature_gradient_kernel, (padded // rows * blocks * images,), num_warps=8,
        registers_before_90=MOST_REGISTERS,
        x_ptr=x, y_ptr=y, **visits, scale_ptr=2.0**-shift / scales[0] / scales[1], gradient_ptr=gradient,
        SHIFT=shift, TI=rows, TJ=64 if visits["DP"] <= 16 else 32, CLASS_BLOCKS=blocks, CP=classes,
    )  # fmt: skip
    return gradient[:, 0] if blocks == 1 else gradient.sum(1)

"""Exponents of the exact sum: log2 k between a program's pixels i and pixels j that it visits (symbols of
docs/symbols.md).

    log2 k_ij = t_i . t_j - |t_i|^2 / 2 - |t_j|^2 / 2 ,   t = sqrt(log2 e) (f - centre)

A matrix product of float16: a number is the sum of a high and a low half (22 bits), and of the four products of halves
the lowest is left out, an error of 2^-22. Up to 6 features lie in 8 channels with two more, as one product alone,

    (t_i, -1/2, -|t_i|^2 / 2) . (t_j, |t_j|^2, 1)

whose four products of halves fill 32 slots, and nothing is added to it.

The product rounds like |t|^2. Where pixels are far apart (WIDE), the differences are taken one channel at a time.
"""

import math

import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))  # exp(e) = 2^(LOG2E e)
ROOT = tl.constexpr(math.sqrt(math.log2(math.e)))  # exp(-|f|^2 / 2) = 2^(-|ROOT f|^2 / 2)
ONE = tl.constexpr(1 + 2.0**-11)  # whose halves are 1 and 2^-11
WIDE = tl.constexpr(18.0)  # |t|^2 / 2 from where log k is off by more than 2e-6
FARTHEST = tl.constexpr(31.0)  # of a t_j that is multiplied: its weight is 0, and a half must hold |t_j|^2


@triton.jit
def split(x):
    """x as the sum of two halves."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def cut(k, DP: tl.constexpr):
    """As `split`. Of 8 channels, whose log2 k is exact enough for it, the high half is cut off, not rounded: bits are
    masked in place of a half that is read back, which takes half an instruction more."""
    if DP == 8:
        high = (k.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # 11 of 24 bits
        return high.to(tl.float16), (k - high).to(tl.float16)
    else:
        return split(k)


@triton.jit
def _alternating(a, b):
    """Two [P, DP] as [P, 2 DP], in turn two columns of each, which lie in one register."""
    P: tl.constexpr = a.shape[0]
    DP: tl.constexpr = a.shape[1]
    pairs = tl.join(tl.reshape(a, (P, DP // 2, 2)), tl.reshape(b, (P, DP // 2, 2)))  # [P, DP / 2, 2, a or b]
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (P, 2 * DP))


@triton.jit
def _side_by_side(a, b):
    """Two [P, DP] as [P, 2 DP], one after the other."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def dot_halves(a_high, a_low, b_high, b_low, total):
    total = tl.dot(a_high, b_high, total)
    total = tl.dot(a_high, b_low, total)
    return tl.dot(a_low, b_high, total)


@triton.jit
def channel(f_ptr, d, P: tl.constexpr, DP: tl.constexpr):
    """One channel of the features of P pixels."""
    return tl.load(f_ptr + tl.arange(0, P) * DP + d)


@triton.jit
def matrix(ptr, ROW, P: tl.constexpr, COLUMNS: tl.constexpr):
    """Where P rows lie, [P, COLUMNS]."""
    return ptr + tl.arange(0, P)[:, None] * ROW + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def from_differences(i_ptr, j_ptr, D, TI: tl.constexpr, TJ: tl.constexpr, DP: tl.constexpr):
    """log2 k, [TI, TJ], from differences."""
    distance = tl.zeros((TI, TJ), tl.float32)
    for d in range(D):
        difference = channel(i_ptr, d, TI, DP)[:, None] - channel(j_ptr, d, TJ, DP)[None, :]
        distance += difference * difference
    return distance * (-0.5 * LOG2E)


@triton.jit
def _scaled(f_ptrs, centre):
    """t, of the features at f_ptrs; one rounding, so that origins far away cost nothing."""
    f = tl.load(f_ptrs)
    return tl.fma(f, tl.full(f.shape, ROOT, tl.float32), tl.zeros_like(f) - centre[None, :])


@triton.jit
def centred(i_ptr, TI: tl.constexpr, DP: tl.constexpr):
    """Features of a program's pixels: their centre [DP], t [TI, DP], -|t|^2 / 2 [TI]."""
    i_ptrs = matrix(i_ptr, DP, TI, DP)
    centre = tl.sum(tl.load(i_ptrs), 0) * (ROOT / TI)
    t = _scaled(i_ptrs, centre)
    return centre, t, -0.5 * tl.sum(t * t, 1)


@triton.jit
def with_channel(t, c, value):
    """t [P, DP] with another channel c."""
    return tl.where(tl.arange(0, t.shape[1])[None, :] == c, value, t)


@triton.jit
def left_operand(t, row, centre, SHIFT: tl.constexpr, DP: tl.constexpr):
    """The row operand of `together`; its part of log2 k, -|t|^2 / 2 + SHIFT [TI]; the centre of the column operand.

    Of 8 channels the halves of (t, -1/2, row), high ones twice and low ones twice; of the row, which meets ONE = 1 and
    2^-11 twice, three halves: SHIFT, and what is left, high and low. |t_j|^2 will hold ONE^2 too."""
    high, low = split(t)
    if DP == 8:
        row_high, row_low = split((row + 0.5 * ONE * ONE)[:, None])
        zero = tl.zeros_like(row_low)
        high, low = with_channel(high, 6, zero - 0.5), with_channel(low, 6, zero)
        high, low = (
            _alternating(with_channel(high, 7, zero + SHIFT), with_channel(high, 7, row_low * 2048)),
            _alternating(with_channel(low, 7, row_high), with_channel(low, 7, zero)),
        )
        return _side_by_side(high, low), low, row, tl.where(tl.arange(0, 8) == 7, -ONE, centre)
    else:
        return high, low, row + SHIFT, centre


@triton.jit
def right_operand(j_ptrs, centre, DP: tl.constexpr):
    """The column operand, halves of t, and its part of log2 k, -|t|^2 / 2 [TJ]. Of 8 channels (t, |t|^2, ONE), high and
    low halves in turn."""
    t = tl.clamp(_scaled(j_ptrs, centre), -FARTHEST, FARTHEST)
    norm = tl.sum(t * t, 1)
    if DP == 8:
        high, low = split(with_channel(t, 6, norm[:, None]))
        return _alternating(high, low), low, norm
    else:
        high, low = split(t)
        return high, low, -0.5 * norm


@triton.jit
def together(i_high, i_low, row, j_high, j_low, column, DP: tl.constexpr):
    """log2 k, [TI, TJ]."""
    if DP == 8:
        return tl.dot(i_high, tl.trans(_side_by_side(j_high, j_high)))
    else:
        return dot_halves(i_high, i_low, tl.trans(j_high), tl.trans(j_low), row[:, None] + column[None, :])

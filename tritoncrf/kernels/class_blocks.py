"""Classes in blocks of powers of two (21 = 16 + 4 + 1), so that a thread with all classes has no padding.

Data of classes is a tuple of tensors, one for each block, the largest first.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.planes import PIXELS


@triton.constexpr_function
def blocks(C):
    """The number of powers of two that sum to C."""
    return bin(C).count("1")


@triton.constexpr_function
def block(C, n):
    """The n-th power of two, the largest first."""
    return [1 << bit for bit in range(C.bit_length() - 1, -1, -1) if C >> bit & 1][n]


@triton.constexpr_function
def first_class(C, n):
    return sum([1 << bit for bit in range(C.bit_length() - 1, -1, -1) if C >> bit & 1][:n])


@triton.jit
def offsets(first, stride, i, C: tl.constexpr, c: tl.constexpr):
    """Of pixels i in the classes of block c, `stride` apart, class 0 at `first` strides."""
    o_c = first + first_class(C, c) + tl.arange(0, block(C, c)).to(tl.int64)
    return (o_c * stride)[None, :, None] + i


@triton.jit
def per_class(ptr, row, o_p, C: tl.constexpr):
    """A number of each class from a table's row, in blocks [1, CB, P]: every thread holds them all, as it does sums."""
    found = ()
    for c in tl.static_range(blocks(C)):
        found = found + (tl.load(ptr + offsets(row * C, PIXELS, o_p, C, c)),)
    return found


@triton.jit
def softmax(scores):
    """Softmax over the classes of blocks [ROWS, CB, P]."""
    top = tl.max(scores[0], 1, keep_dims=True)
    for c in tl.static_range(1, len(scores)):
        top = tl.maximum(top, tl.max(scores[c], 1, keep_dims=True))
    powers = ()
    total = tl.zeros_like(top)
    for c in tl.static_range(len(scores)):
        power = tl.exp(scores[c] - top)
        total += tl.sum(power, 1, keep_dims=True)
        powers = powers + (power,)
    q = ()
    for c in tl.static_range(len(scores)):
        q = q + (powers[c] / total,)
    return q

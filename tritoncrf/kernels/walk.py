"""Sums over the windows of two columns, by a thread that moves down two rows at a time (guided_planes.py).

Two windows in a row share 2 RX numbers, and two windows in a column share 2 RY rows, which are summed once. With
a_t, b_t the sums of the t-th pair of rows that it reads and s_t = a_t + b_t, the next two windows are

    (s_{t-R} + ... + s_{t-1}) + a_t      and      (b_{t-R} + s_{t-R+1} + ... + s_{t-1}) + s_t

about RX + 1 / 2 additions for each number of a row, and R / 2 + 3 / 2 a pixel; it keeps the last R of s and of b.
Nothing is ever subtracted.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.planes import halves


@triton.jit
def _numbers(pairs, R: tl.constexpr):
    """The 2 R + 2 numbers under the two windows of a row, the first of which begins at `pairs`."""
    found = ()
    for m in tl.static_range(R + 1):
        found = found + halves(tl.load(pairs + m))
    return found


@triton.jit
def _two_sums(v, R: tl.constexpr):
    """Of 2 R + 2 numbers, the sum of all but the last and of all but the first."""
    if R == 0:
        return v
    else:
        middle = v[1] + v[2]
        for n in tl.static_range(3, 2 * R + 1):
            middle += v[n]
        return v[0] + middle, middle + v[2 * R + 1]


@triton.jit
def sums_of(pairs, R: tl.constexpr):
    return _two_sums(_numbers(pairs, R), R)


@triton.jit
def fields_of(x, guide, PLANE, D: tl.constexpr, R: tl.constexpr, SCALED: tl.constexpr):
    """Of a row of x (of x / area if SCALED), and of each of D channels times it, the sums over both windows."""
    values = _numbers(x, R)
    if SCALED:
        share = _numbers(guide, R)
        scaled = ()
        for n in tl.static_range(2 * R + 2):
            scaled = scaled + (values[n] * share[n],)
        values = scaled
    sums = _two_sums(values, R)
    for d in tl.static_range(D):
        channel = _numbers(guide + (d + 1) * PLANE, R)
        products = ()
        for n in tl.static_range(2 * R + 2):
            products = products + (values[n] * channel[n],)
        sums = sums + _two_sums(products, R)
    return sums


@triton.jit
def no_rows(like, COUNT: tl.constexpr):
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (tl.zeros(like.shape, tl.float32),)
    return found


@triton.jit
def part(numbers, BEGIN: tl.constexpr, END: tl.constexpr):
    """Those from BEGIN to before END."""
    found = ()
    for n in tl.static_range(BEGIN, END):
        found = found + (numbers[n],)
    return found


@triton.jit
def windows(kept, above, below, R: tl.constexpr, W: tl.constexpr):
    """From the sums of two more rows, those of two windows, W numbers each, and what to keep for the next: of the last
    R pairs of rows both their sum and the lower row's, the oldest pair first."""
    if R == 0:
        return above + below
    else:
        first = ()
        second = ()
        both = ()
        for w in tl.static_range(W):
            pair = above[w] + below[w]
            both = both + (pair,)
            upper = kept[w]
            lower = kept[W + w]
            if R > 1:
                common = kept[2 * W + w]
                for n in tl.static_range(2, R):
                    common += kept[2 * n * W + w]
                upper += common
                lower += common
            first = first + (upper + above[w],)
            second = second + (lower + pair,)
        return first + second + part(kept, 2 * W, 2 * R * W) + both + below

"""Padded planes, and threads that own pixels of two columns and one or two rows in them: the common part of `quads.py`
and `quads_gradient.py`.

A plane holds a class or a channel of an image, surrounded by zeros as wide as a window reaches: pixel (y, x) stands in
row y + R and column x + R. Window reads need no masks, and one path serves the inside and the border. Two
neighbours of a row, a pair, are read as one integer of 64 bits, whose halves are floats at no cost.

Taps STEP pixels apart see only every STEP-th pixel along either axis: these STEP^2 grids, the phases, are images by
themselves, in planes of their own.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, tile_and_image

MAX_STEP = 8  # beyond, the phases' halos are larger than the image
FEW = 1 << 22  # numbers in planes that may be nearly empty
WHOLE_ROW = 7  # pairs of a window's row that are unrolled at once: more take long to compile

WARPS = 4
PIXELS = tl.constexpr(32 * WARPS)  # threads of a program, each with pixels of two columns
COLUMNS = tl.constexpr(32)  # pairs of columns in a program's tile: those of a warp, which reads a row
KAPPA = tl.constexpr(0.7213475204444817)  # 1 / (2 ln 2)

# Not specialised, so that a new size makes no new binary, and no thread gets neighbouring pixels or classes.
UNKNOWN = ["NY", "NX", "CLASSES", "EACH_0", "EACH_1", "ZERO", "stride_tm", "stride_mm", "stride_yc"]


@triton.constexpr_function
def inside(t, R):
    """Whether a window has a column t: the pairs at its ends hold a neighbour too many."""
    return 0 <= t <= 2 * R


@triton.jit
def halves(pair):
    """The two floats of an integer of 64 bits."""
    return pair.to(tl.int32).to(tl.float32, bitcast=True), (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def pair_of(left, right):
    """Two floats as such an integer."""
    low = left.to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (right.to(tl.uint32, bitcast=True).to(tl.int64) << 32)


@triton.jit
def scale_pair(ptr, o):
    """Normalisation scales of a pair of pixels, or 1 where there are none."""
    if ptr is None:
        return 1.0, 1.0
    else:
        return halves(tl.load(ptr + o))


@triton.jit
def channels(p_ptr, k: tl.constexpr, D: tl.constexpr, PLANE: tl.constexpr):
    """D channels of the k-th pairs after those at p_ptr: of their left pixels, and of their right ones. A constant that
    is added last is part of the instruction."""
    left = ()
    right = ()
    for d in tl.static_range(D):
        both = halves(tl.load(p_ptr + (d * PLANE + k)))
        left = left + (both[0],)
        right = right + (both[1],)
    return left, right


@triton.jit
def exponent(start, a, b, D: tl.constexpr):
    """start - |b - a|^2 / (2 ln 2)."""
    t = b[0] - a[0]
    square = t * t
    for d in tl.static_range(1, D):
        t = b[d] - a[d]
        square += t * t
    return start - square * KAPPA


@triton.jit
def by_pixel(i, ZERO):
    """i, so that lanes of a warp hold pixels and a thread all classes, as it does sums: contiguous, in Triton's eyes
    (3.6.0 gives classes to lanes where neither axis is), but of no known alignment, and thus in no vectors."""
    return tl.max_contiguous(i + ZERO, (1, 1, 2))


@triton.jit
def quad_tile(NY, NX, STEP, ROW, ZERO, R: tl.constexpr, ROWS: tl.constexpr):
    """A program's image, its phase, a thread's pair of columns and first row, where its windows begin in a plane; of
    its left and its right pixels: index, and whether they are in the image.

    Axes are those of sums, [ROWS, CB, P]: a 1-D tensor would change its layout wherever it meets them.
    """
    TILE: tl.constexpr = ROWS * (PIXELS // COLUMNS)
    tiles_x = tl.cdiv(tl.cdiv(NX, STEP), 2 * COLUMNS)
    tile, image = tile_and_image(tiles_x * tl.cdiv(tl.cdiv(NY, STEP), TILE))
    phase = image % (STEP * STEP)
    o_p = tl.arange(0, PIXELS)[None, None, :]
    o_r = tl.arange(0, ROWS)[:, None, None]
    x = tile % tiles_x * COLUMNS + o_p % COLUMNS
    y = tile // tiles_x * TILE + o_p // COLUMNS * ROWS
    i_y = ()
    m_y = ()
    for s in tl.static_range(2):
        row = (y + o_r) * STEP + (phase // STEP).to(tl.int32)
        column = (2 * x + s) * STEP + (phase % STEP).to(tl.int32)
        i_y = i_y + (by_pixel(row * NX + column, ZERO),)
        m_y = m_y + ((row < NY) & (column < NX),)
    # ZERO is 0, unknown to the compiler, which would otherwise give a thread several neighbouring pairs.
    return image // (STEP * STEP), phase, image, x, y, y * ROW + x + ZERO, i_y, m_y


@triton.jit
def own_channels(
    ptr, corner, s: tl.constexpr, ROW, D: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, PLANE: tl.constexpr
):
    """D channels of a thread's left (s 0) or right pixels, [ROWS, 1, P] each."""
    o_r = tl.arange(0, ROWS)[:, None, None]
    return channels(ptr + (corner + (R + o_r) * ROW), (R + s) // 2, D, PLANE)[(R + s) % 2]


@triton.jit
def neighbour_there(T: tl.constexpr, t0, here, SELF: tl.constexpr, R: tl.constexpr, PART: tl.constexpr):
    """Whether column t0 + T of a row of the window of i is one, and not i itself unless it sees itself; here: whether i
    is in the row. None where that is known: only the row's ends hold a neighbour too many."""
    there = None
    if PART <= R and T == -1:
        there = t0 > 0
    if PART <= R and T == 2 * PART - 1:
        there = t0 + T <= 2 * R
    if not SELF and (PART <= R or T == R):
        other = (t0 + T != R) | (here == 0)
        there = other if there is None else there & other
    return there


def _ladder(n: int) -> int:
    """n or somewhat more: four sizes an octave, and few small ones, so that many images share a binary."""
    step = 1 << max(13, n.bit_length() - 3)
    return ceil_div(n, step) * step


def suits(size, radii, dilation: int, images: int) -> bool:
    """Whether windows are of images, a plane for each of `images`, and planes not nearly empty, if there are many."""
    if size[0] > 1 or radii[0] > 0 or radii[1] != radii[2] or radii[2] == 0 or min(dilation, max(size)) > MAX_STEP:
        return False
    layout = Planes(size[1:], radii[2], dilation)
    numbers = 2 * layout.plane * layout.step**2
    return images * numbers <= FEW or numbers <= 8 * size[1] * size[2]


class Planes:
    """Where the pixels of an image [NY, NX] lie in planes that a window's reach of zeros surrounds, one for each
    phase."""

    def __init__(self, size, radius: int, dilation: int):
        self.size, self.radius, self.step = size, radius, min(dilation, max(size))
        self.low = [ceil_div(n, self.step) for n in size]  # of a phase
        rows, columns = (ceil_div(n, t) * t + 2 * radius for n, t in zip(self.low, (2 * WARPS, 2 * COLUMNS.value)))
        self.row = ceil_div(columns, 32) * 16  # pairs; rows start at cache lines
        self.plane = _ladder(rows * self.row)

    def empty(self, like):
        """Planes for a tensor [B, C, ..]: zeros [B, phases, C, plane]."""
        return like.new_zeros((len(like), self.step**2, like.shape[1], 2 * self.plane))

    def inner(self, planes):
        """The pixels of planes, [B, STEP, STEP, C, NY / STEP, NX / STEP], the last two rounded up."""
        strides = (*planes.stride()[:3], 2 * self.row, 1)
        inner = planes.as_strided((*planes.shape[:3], *self.low), strides, self.radius * (2 * self.row + 1))
        return inner.unflatten(1, (self.step, self.step))

    def fill(self, planes, x):
        """x [B, C, Z, NY, NX], Z being 1, into planes whose halo is zero."""
        x, step = x.reshape(*x.shape[:2], *self.size), self.step
        if step > 1:
            missing = [n * step - whole for n, whole in zip(self.low, self.size)]
            x = torch.nn.functional.pad(x, (0, missing[1], 0, missing[0]))
        x = x.unflatten(3, (self.low[1], step)).unflatten(2, (self.low[0], step))
        self.inner(planes).copy_(x.permute(0, 3, 5, 1, 2, 4))
        return planes

    def of(self, x):
        return self.fill(self.empty(x), x)

    def image(self, planes):
        """The pixels of planes, [B, C, NY, NX]."""
        whole = self.inner(planes).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
        return whole[:, :, : self.size[0], : self.size[1]].contiguous()


@dataclass(frozen=True)
class WindowFilter:
    """What a kernel sums by; positions: features are those of pixels at even distances, by which nothing is read;
    masked: scales may be 0."""

    features: torch.Tensor  # [Bf, D, Z, Y, X]
    include_self: bool
    scale_in: torch.Tensor | None = None
    scale_out: torch.Tensor | None = None
    positions: bool = False
    masked: bool = False

    @property
    def channels(self) -> int:
        return 0 if self.positions else self.features.shape[1]


def part_of_row(radius: int, whole: int = WHOLE_ROW) -> int:
    """The number of pairs of a window's row that are unrolled at once: all, or a divisor of them."""
    pairs = radius + 1
    return pairs if pairs <= whole else max(n for n in range(1, whole) if pairs % n == 0)

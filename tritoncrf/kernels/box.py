"""Box sums along one axis, whose time does not depend on the radius (van Herk 1992; Gil and Werman 1993), and the
statistics of a guide's windows, once per image (He, Sun and Tang 2013; symbols of docs/symbols.md).

    box(x)_o = sum of x_j over |j - o| <= R                                      o: a pixel of the axis

Outputs are cut into blocks of 2 R + 1. The window of the k-th output of a block reaches over the last inputs from
first - R + k on, and over the first k of those behind them:

    box(x)_{first + k} = sum_{l >= k} x_{first - R + l}  +  sum_{0 < l <= k} x_{first + R + l}

the tail of one block and the head of the next: two scans, and about two reads per output for any R. Nothing is ever
subtracted, so every sum has only the rounding errors of its own pixels. box is symmetric, so it is its own adjoint.

A tile is [TN, TL] for an axis with other lines inside it, [TL, TN] for the innermost, TN the power of two from 2 R + 1
on; what is beyond is masked, at most half. A dilation d makes d times as many lines of an axis 1 / d as long.
Sums are in the dtype of x. Exact but for rounding.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import MOST_REGISTERS, OF_SIZE, ceil_div, launch, tile_and_image

MAX_RADIUS = 255  # of a tile: 512 x 4 numbers
TILE = 1024  # numbers, 8 for each of 128 threads; twice as many of both for long windows
FEW = tl.constexpr(4)  # channels of a guide, whose products are unrolled; with more, compiling takes longer than 3 s


def tile(radius: int) -> tuple[int, int, int]:
    """TN, TL and warps; up to TN = 256 the lines fill a sector of 32 bytes."""
    width = triton.next_power_of_2(2 * radius + 1)
    lines = max(min(8, 2 * TILE // width), TILE // width)
    return width, lines, 4 * width * lines // TILE


@triton.jit
def places(first, o_n, R, n):
    """The places of the inputs of a block's tails and heads, and which of them exist."""
    m_n = o_n < 2 * R + 1
    tail = first - R + o_n
    head = first + R + o_n
    return tail, m_n & (tail >= 0) & (tail < n), head, m_n & (o_n > 0) & (head < n)


@triton.jit
def window_sums(tails, heads, AXIS: tl.constexpr):
    """The window sums from the inputs at `places` along an axis of the tile."""
    return tl.cumsum(tails, AXIS, reverse=True) + tl.cumsum(heads, AXIS)


@triton.jit
def area(z, y, x, NZ, NY, NX, RZ, RY, RX, AREA, COUNT: tl.constexpr):
    """Area of the windows around pixels, above 0 outside the image too."""
    if COUNT:
        nz = tl.minimum(z + RZ, NZ - 1) - tl.maximum(z - RZ, 0) + 1
        ny = tl.minimum(y + RY, NY - 1) - tl.maximum(y - RY, 0) + 1
        nx = tl.minimum(x + RX, NX - 1) - tl.maximum(x - RX, 0) + 1
        return (tl.maximum(nz, 1) * tl.maximum(ny, 1) * tl.maximum(nx, 1)).to(tl.float32)
    else:
        return tl.full((), AREA, tl.float32)


@triton.jit
def area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT: tl.constexpr):
    """Area of the windows around pixels by their flat index."""
    return area(i // (NY * NX), i // NX % NY, i % NX, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)


@triton.jit(**OF_SIZE)
def _box_kernel(
    # pointers
    x_ptr, y_ptr,
    # sizes: of the axis; lines side by side; numbers of a plane
    n, lines, length, R,
    # meta-parameters
    INNERMOST: tl.constexpr, TN: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Each program owns one block of outputs of TL lines of one plane."""
    blocks, tiles = tl.cdiv(n, 2 * R + 1), tl.cdiv(lines, TL)
    program = tl.program_id(0)
    first = program // tiles % blocks * (2 * R + 1)
    plane = (program // tiles // blocks).to(tl.int64) * length
    AXIS: tl.constexpr = 1 if INNERMOST else 0
    if INNERMOST:
        o_n = tl.arange(0, TN)[None, :]
        line = program % tiles * TL + tl.arange(0, TL)[:, None]
        step, line_step = 1, n
    else:
        o_n = tl.arange(0, TN)[:, None]
        line = program % tiles * TL + tl.arange(0, TL)[None, :]
        step, line_step = lines, 1
    tail, m_tail, head, m_head = places(first, o_n, R, n)
    offset = line.to(tl.int64) * line_step
    o_tail, o_head, o_y = offset + tail * step, offset + head * step, offset + (first + o_n) * step
    # A dilated axis need not fill its last row of lines.
    tails = tl.load(x_ptr + plane + o_tail, mask=m_tail & (line < lines) & (o_tail < length), other=0.0)
    heads = tl.load(x_ptr + plane + o_head, mask=m_head & (line < lines) & (o_head < length), other=0.0)
    m_y = (o_n < 2 * R + 1) & (first + o_n < n) & (line < lines) & (o_y < length)
    tl.store(y_ptr + plane + o_y, window_sums(tails, heads, AXIS), mask=m_y)


@triton.jit(**OF_SIZE)
def _products_kernel(
    # pointers
    x_ptr, guide_ptr, y_ptr,
    # sizes
    C, NZ, NY, NX, RZ, RY, RX, AREA,
    # strides: the batch of the guide (0: one serves all)
    stride_gb,
    # meta-parameters
    D: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr, DTYPE: tl.constexpr,
    TN: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Each program owns one block of outputs along the innermost axis, of TL rows of one class: the sums of x and of
    I x, y [B, 1 + D, C, N]; of x / area if SCALED."""
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    lines = NZ * NY
    tiles = tl.cdiv(lines, TL)
    program, plane = tile_and_image(tiles * tl.cdiv(NX, 2 * RX + 1))
    b, c = plane // C, plane % C
    first = program // tiles * (2 * RX + 1)
    o_n = tl.arange(0, TN)[None, :]
    line = program % tiles * TL + tl.arange(0, TL)[:, None]
    tail, m_tail, head, m_head = places(first, o_n, RX, NX)
    m_tail, m_head = m_tail & (line < lines), m_head & (line < lines)
    i_tail, i_head = line * NX + tail, line * NX + head
    x_ptr += (b * C + c) * N
    tails = tl.load(x_ptr + i_tail, mask=m_tail, other=0.0).to(DTYPE)
    heads = tl.load(x_ptr + i_head, mask=m_head, other=0.0).to(DTYPE)
    if SCALED:
        tails /= area_of(i_tail, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
        heads /= area_of(i_head, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
    m_y = (o_n < 2 * RX + 1) & (first + o_n < NX) & (line < lines)
    y_ptr += (b * (D + 1) * C + c) * N + line * NX + first + o_n
    tl.store(y_ptr, window_sums(tails, heads, 1), mask=m_y)
    guide_ptr += b * stride_gb
    for d in tl.range(0, D, loop_unroll_factor=D if D <= FEW else 1):
        t = tails * tl.load(guide_ptr + d * N + i_tail, mask=m_tail, other=0.0).to(DTYPE)
        h = heads * tl.load(guide_ptr + d * N + i_head, mask=m_head, other=0.0).to(DTYPE)
        tl.store(y_ptr + (d + 1) * C * N, window_sums(t, h, 1), mask=m_y)


@triton.jit(**OF_SIZE)
def _statistics_kernel(
    # pointers
    sums_ptr, eps_ptr, mean_ptr, cholesky_ptr,
    # sizes
    floor, NZ, NY, NX, RZ, RY, RX, AREA,
    # meta-parameters
    D: tl.constexpr, COUNT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns mean and Cholesky factors of P pixels of one guide, from its sums [Bf, 1 + D, D, N], by
    reference.guided.factored in registers."""
    tile, b = tile_and_image(tl.cdiv(NZ * NY * NX, P))
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    share = 1.0 / area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT).to(tl.float64)
    sums_ptr += b * (D + 1) * D * N + i
    mean = ()
    matrix = ()
    for e in tl.static_range(D):
        mean = mean + (tl.load(sums_ptr + e * N, mask=m_i, other=0.0) * share,)
        tl.store(mean_ptr + (b * D + e) * N + i, mean[e], mask=m_i)
        for d in tl.static_range(e + 1):
            moment = tl.load(sums_ptr + ((d + 1) * D + e) * N, mask=m_i, other=0.0) * share
            entry = moment - mean[e] * mean[d]
            matrix = matrix + (entry + tl.maximum(tl.load(eps_ptr), floor * moment) if e == d else entry,)
    for k in tl.static_range(D):
        pivot = 1.0 / matrix[k * (k + 1) // 2 + k]
        rest = ()
        for e in tl.static_range(D):
            for d in tl.static_range(e + 1):
                entry = matrix[e * (e + 1) // 2 + d]
                if d > k:
                    entry -= matrix[e * (e + 1) // 2 + k] * matrix[d * (d + 1) // 2 + k] * pivot
                elif d == k:
                    entry = pivot if e == k else entry * pivot
                rest = rest + (entry,)
        matrix = rest
    for n in tl.static_range(D * (D + 1) // 2):
        tl.store(cholesky_ptr + (b * (D * (D + 1) // 2) + n) * N + i, matrix[n], mask=m_i)


def box_sum(x: torch.Tensor, radii, dilation: int = 1) -> torch.Tensor:
    """box(x) for x [B, C, Z, Y, X]; a launch for each axis with a radius, at most MAX_RADIUS."""
    x = x.contiguous()
    for axis, r in enumerate(radii, 2):
        r = min(r, (x.shape[axis] - 1) // dilation)  # a larger radius reaches nothing else in the image
        if r > 0:
            x = _along(x, axis, r, dilation)
    return x


def _along(x, axis: int, radius: int, dilation: int):
    y = torch.empty_like(x)
    n, inner = x.shape[axis], x[(0,) * (axis + 1)].numel() if x.numel() else 1
    innermost = inner == dilation == 1
    if innermost:  # all lines of all planes are contiguous
        length, lines = x.numel(), x.numel() // n
    else:
        length, lines, n = n * inner, inner * dilation, ceil_div(n, dilation)
    width, across, warps = tile(radius)
    planes = x.numel() // max(1, length)
    launch(
        _box_kernel, (planes * ceil_div(n, 2 * radius + 1) * ceil_div(lines, across),), warps,
        x_ptr=x, y_ptr=y, n=n, lines=lines, length=length, R=radius, INNERMOST=innermost, TN=width, TL=across,
    )  # fmt: skip
    return y


def geometry_of(size, radii, box: str) -> dict:
    """Sizes and radii of an image, and the area if it is constant."""
    area = math.prod(min(2 * r + 1, n) for r, n in zip(radii, size))
    names = "NZ", "NY", "NX", "RZ", "RY", "RX"
    return {**dict(zip(names, (*size, *radii))), "AREA": float(area), "COUNT": box == "count"}


def batch_stride(x) -> int:
    return 0 if len(x) == 1 else x.stride(0)


def product_sums(x, image, geometry: dict, scaled: bool, dtype=torch.float32):
    """The sums of x and of I x along the innermost axis: [B, 1 + D, C, *S]."""
    batch, classes, *size = x.shape
    d = image.shape[1]
    y = x.new_empty((batch, 1 + d, classes, *size), dtype=dtype)
    width, across, warps = tile(geometry["RX"])
    tiles = ceil_div(size[2], 2 * geometry["RX"] + 1) * ceil_div(size[0] * size[1], across)
    launch(
        _products_kernel, (tiles * classes * batch,), warps, registers_before_90=MOST_REGISTERS,
        x_ptr=x, guide_ptr=image, y_ptr=y, C=classes, **geometry,
        stride_gb=batch_stride(image), D=d, SCALED=scaled, TN=width, TL=across,
        DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
    )  # fmt: skip
    return y


def statistics(guide, eps, floor: float, radii, box: str):
    """mean and packed Cholesky factors of the windows, as reference.guided, in float32, of a guide [Bf, D, Z, Y, X]."""
    guide = guide.contiguous()
    images, d, *size = guide.shape
    geometry = geometry_of(size, radii, box)
    sums = product_sums(guide, guide, geometry, scaled=False, dtype=torch.float64)
    sums = box_sum(sums.flatten(0, 1), (*radii[:2], 0))
    mean = torch.empty_like(guide)
    cholesky = guide.new_empty((images, d * (d + 1) // 2, *size))
    launch(
        _statistics_kernel, (ceil_div(math.prod(size), 128) * images,), num_warps=4,
        sums_ptr=sums, eps_ptr=eps.double(), mean_ptr=mean, cholesky_ptr=cholesky, floor=floor, **geometry, D=d, P=128,
    )  # fmt: skip
    return mean, cholesky

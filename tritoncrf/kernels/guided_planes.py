"""The guided filter of images with short windows, in padded planes: equations and symbols of guided.py.

Form. Values, guide and z lie in padded planes (guided_layout.py). A thread owns 2 columns of some rows, a warp 64, and
walks down them, two rows at a time, with the sums of its windows (walk.py). The warps of a program take its classes in
turn, so that few pixels occupy a GPU too.

K^T scales its values by 1 / area as they are read, and not its messages. The first pass writes the zeros around z and
around the planes that the second one writes. Cost O(N C D R), memory (1 + D) Q. Exact but for rounding.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.box import batch_stride
from tritoncrf.kernels.common import ceil_div, launch, tile_and_image
from tritoncrf.kernels.epilogue import end_step
from tritoncrf.kernels.guided_layout import LANES, SIZES, Planes, clear_frame
from tritoncrf.kernels.planes import halves, pair_of
from tritoncrf.kernels.walk import fields_of, no_rows, part, sums_of, windows

SHORT = 7  # longest radius
MOST = 80  # RY (1 + D)^2: beyond, a thread's numbers do not fit in registers, or compiling takes long
WARPS = 1024  # that fill a large GPU: eight on each of 132 multiprocessors


@triton.jit
def _own(ptr, i, m_right, EVEN: tl.constexpr):
    """The numbers of two neighbouring pixels, the first at i; as a pair if rows are EVEN."""
    if EVEN:
        return halves(tl.load(ptr + i))
    else:
        return tl.load(ptr + i), tl.load(ptr + i + 1, mask=m_right, other=0.0)


@triton.jit
def fit(sums, share, mean, cholesky, D: tl.constexpr):
    """(offset, slope) of windows from box(x) and box(I x), 1 / area, mean and cholesky."""
    offset = sums[0] * share
    solved = ()
    for e in tl.static_range(D):
        entry = sums[1 + e] * share - mean[e] * offset
        for d in tl.static_range(e):
            entry -= cholesky[e * (e + 1) // 2 + d] * solved[d]
        solved = solved + (entry,)
    slopes = ()
    for e in tl.static_range(D - 1, -1, -1):
        slope = solved[e] * cholesky[e * (e + 3) // 2]
        for d in tl.static_range(e + 1, D):
            slope -= cholesky[d * (d + 1) // 2 + e] * slopes[d - e - 1]
        slopes = (slope,) + slopes
        offset -= mean[e] * slope
    return (offset,) + slopes


@triton.jit(**SIZES)
def _fit_kernel(
    # pointers; x, guide and z as pairs, mean and cholesky if EVEN; what the second pass will write, as numbers
    x_ptr, guide_ptr, mean_ptr, cholesky_ptr, z_ptr, y_ptr,
    # sizes: ROW pairs of a padded row, ROWS of a program's
    C, NY, NX, ROW, ROWS,
    # strides: the batch of guide, mean, and cholesky (0: one serves all)
    stride_gb, stride_mb, stride_lb,
    # meta-parameters
    D: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, G: tl.constexpr, SCALED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Each program owns offset and slope, z, of 64 x ROWS pixels of G classes of one image, and a share of the frames
    of z and of y, which the second pass will not write."""
    W: tl.constexpr = 2 * (1 + D)
    tiles_x = tl.cdiv(NX, 2 * LANES)
    tiles = tiles_x * tl.cdiv(NY, ROWS)
    blocks = tl.cdiv(C, G)
    program, b = tile_and_image(tiles * blocks)
    tile = program // blocks
    o = tl.arange(0, LANES * G)
    c = program % blocks * G + o // LANES
    own, first = tile % tiles_x * LANES + o % LANES, tile // tiles_x * ROWS
    xp = tl.minimum(own, (NX - 1) // 2)  # threads beyond the image read its last pixels
    m_z = (own == xp) & (c < C)
    c = tl.minimum(c, C - 1).to(tl.int64)
    m_right = 2 * xp + 1 < NX
    rows = tl.minimum(ROWS, NY - first)
    PLANE = tl.full((), 1, tl.int64) * (NY + NY % 2 + 2 * RY) * ROW
    N = tl.full((), 1, tl.int64) * NY * NX
    corner = first * ROW + xp
    i = first * NX + 2 * xp
    step = NX
    if EVEN:
        N //= 2
        i //= 2
        step //= 2
    x = x_ptr + b * C * PLANE + c * PLANE + corner
    guide = guide_ptr + b * stride_gb + corner
    mean_ptr += b * stride_mb
    cholesky_ptr += b * stride_lb
    z = z_ptr + (b * (D + 1) * C + c) * PLANE + (corner + RY * ROW + (RX + 1) // 2)
    kept = no_rows(o, 2 * RY * W)
    for row in range(0, rows + 2 * RY, 2):
        above = fields_of(x, guide, PLANE, D, RX, SCALED)
        below = fields_of(x + ROW, guide + ROW, PLANE, D, RX, SCALED)
        boxes = windows(kept, above, below, RY, W)
        kept = part(boxes, 2 * W, 2 * W + 2 * RY * W)
        if row >= 2 * RY:
            for k in tl.static_range(2):
                there = row - 2 * RY + k < rows
                i_k = i + tl.where(there, k * step, 0)
                shares = ()
                for right in tl.static_range(2):
                    share = tl.load(guide + ((k - RY) * ROW + (RX + right) // 2))
                    shares = shares + (halves(share)[(RX + right) % 2],)
                means = ()
                for d in tl.static_range(D):
                    means = means + _own(mean_ptr + d * N, i_k, m_right, EVEN)
                factors = ()
                for n in tl.static_range(D * (D + 1) // 2):
                    factors = factors + _own(cholesky_ptr + n * N, i_k, m_right, EVEN)
                found = ()
                for right in tl.static_range(2):
                    sums = ()
                    mean = ()
                    cholesky = ()
                    for f in tl.static_range(D + 1):
                        sums = sums + (boxes[k * W + 2 * f + right],)
                    for d in tl.static_range(D):
                        mean = mean + (means[2 * d + right],)
                    for n in tl.static_range(D * (D + 1) // 2):
                        cholesky = cholesky + (factors[2 * n + right],)
                    found = found + fit(sums, shares[right], mean, cholesky, D)
                for f in tl.static_range(D + 1):
                    last = found[D + 1 + f] if EVEN else tl.where(m_right, found[D + 1 + f], 0.0)
                    tl.store(z + f * C * PLANE + k * ROW, pair_of(found[f], last), mask=m_z & there)
            z += 2 * ROW
            i += 2 * step
        x += 2 * ROW
        guide += 2 * ROW

    z_ptr += (b * (D + 1) * C + c) * PLANE
    for f in tl.static_range(D + 1):
        clear_frame(z_ptr + f * C * PLANE, o % LANES, tile, tiles, (RX + 1) // 2, ROW, (NX + 1) // 2, NY, PLANE, RY)
    if y_ptr is not None:
        clear_frame(y_ptr + (b * C + c) * (2 * PLANE), o % LANES, tile, tiles, RX, 2 * ROW, NX, NY, 2 * PLANE, RY)


@triton.jit(**SIZES)
def _planes_step_kernel(
    # pointers; z and guide as pairs; messages [B, C, *], which may be y
    z_ptr, guide_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, message_ptr, y_ptr,
    # sizes: ROW pairs of a padded row, ROWS of a program's; of messages, q and y a row's numbers, the image's first
    C, NY, NX, ROW, ROWS, pitch, origin,
    # strides: a class of messages, q and y; the batch of the guide (0: one serves all), a's and A's
    stride_p, stride_gb, stride_a, stride_ml, stride_mk,
    # meta-parameters
    D: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, G: tl.constexpr, SCALED: tl.constexpr,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr, CP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of 64 x ROWS pixels of one image, G at a time, and ends the step for P of them at a
    time."""
    W: tl.constexpr = 2 * (1 + D)
    S: tl.constexpr = RX % 2
    tiles_x = tl.cdiv(NX + S, 2 * LANES)
    tile, b = tile_and_image(tiles_x * tl.cdiv(NY, ROWS))
    PLANE = tl.full((), 1, tl.int64) * (NY + NY % 2 + 2 * RY) * ROW
    o = tl.arange(0, LANES * G)
    own, first = tile % tiles_x * LANES + o % LANES, tile // tiles_x * ROWS
    xp = tl.minimum(own, (NX - 1 + S) // 2)  # as above
    left = 2 * xp - S
    rows = tl.minimum(ROWS, NY - first)
    corner = first * ROW + xp
    z_ptr += b * (D + 1) * C * PLANE
    guide_ptr += b * stride_gb + (corner + RY * ROW + RX // 2)
    image = b * C * stride_p + origin
    for start in range(0, C, G):
        c = start + o // LANES
        m_left = (own == xp) & (c < C) & (left >= 0)
        m_right = (own == xp) & (c < C) & (left + 1 < NX)
        c = tl.minimum(c, C - 1).to(tl.int64)
        z = z_ptr + c * PLANE + corner
        guide = guide_ptr
        message = message_ptr + (image + c * stride_p + first.to(tl.int64) * pitch + left)
        kept = no_rows(o, 2 * RY * W)
        for row in range(0, rows + 2 * RY, 2):
            above = ()
            below = ()
            for d in tl.static_range(D + 1):
                above = above + sums_of(z + d * C * PLANE, RX)
                below = below + sums_of(z + d * C * PLANE + ROW, RX)
            boxes = windows(kept, above, below, RY, W)
            kept = part(boxes, 2 * W, 2 * W + 2 * RY * W)
            if row >= 2 * RY:
                for k in tl.static_range(2):
                    there = row - 2 * RY + k < rows
                    own_guide = guide + k * ROW
                    total = boxes[k * W], boxes[k * W + 1]
                    for d in tl.static_range(D):
                        channel = halves(tl.load(own_guide + (d + 1) * PLANE))
                        total = (
                            total[0] + boxes[k * W + 2 * d + 2] * channel[0],
                            total[1] + boxes[k * W + 2 * d + 3] * channel[1],
                        )
                    if SCALED:
                        share = halves(tl.load(own_guide))
                        total = total[0] * share[0], total[1] * share[1]
                    tl.store(message + k * pitch, total[0], mask=m_left & there)
                    tl.store(message + k * pitch + 1, total[1], mask=m_right & there)
                message += 2 * pitch
                guide += 2 * ROW
            z += 2 * ROW

    if EPILOGUE != "sum":
        tl.debug_barrier()  # the messages that this program's other threads have written
        N = tl.full((), 1, tl.int64) * NY * NX
        stride_y = tl.full((), 1, tl.int64) * stride_p
        top = tl.full((), 1, tl.int64) * first
        for p in range(0, rows * 2 * LANES, P):
            row = (p + tl.arange(0, P)) // (2 * LANES)
            column = tile % tiles_x * 2 * LANES - S + (p + tl.arange(0, P)) % (2 * LANES)
            end_step(
                message_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, image + top * pitch, b * C * N + top * NX,
                row * pitch + column, row * NX + column, (row < rows) & (column >= 0) & (column < NX),
                C, stride_y, N, stride_a, stride_ml, stride_mk, EPILOGUE, MATRIX, PRECISION, CP,
            )  # fmt: skip


NO_STEP = {
    "mix_ptr": None, "unary_ptr": None, "a_ptr": None, "q_ptr": None, "stride_a": 0, "stride_ml": 0, "stride_mk": 0,
    "MATRIX": False, "PRECISION": "default",
}  # fmt: skip


def step_tile(classes: int, warps: int, step: dict) -> dict:
    """The number of pixels that end their step at a time, and, for a matrix, the padded number of classes."""
    if not step.get("MATRIX", False):
        return {"CP": 1, "P": 256 * warps}
    columns = max(16, triton.next_power_of_2(classes))
    return {"CP": columns, "P": max(16, min(128, 128 * warps // columns))}


def is_short(size, radii, channels: int) -> bool:
    """Whether windows of these radii on an image [Z, Y, X] are summed in planes."""
    return size[0] == 1 and max(radii) <= SHORT and radii[1] * (1 + channels) ** 2 <= MOST


def _pairs(x):
    """Numbers side by side as one."""
    return x.view(torch.int64)


def _groups(classes: int, idle: float) -> int:
    """The classes of a program at a time, one per warp: as many as leave at most this share of the warps idle."""
    return max(g for g in (1, 2, 4) if -classes % g <= idle * classes)


def _tiles(width: int, height: int, warps: int) -> tuple[int, int]:
    """Rows of a program, of `warps` for each tile of 64 columns, and tiles: tall ones read fewer rows twice, but a
    large GPU wants WARPS."""
    across = ceil_div(width, 2 * LANES.value)
    rows = max([8, *(r for r in (16, 32, 64) if across * ceil_div(height, r) * warps >= WARPS)])
    return rows, across * ceil_div(height, rows)


def fitted(x, planes: Planes, guide, mean, cholesky, adjoint: bool, y=None):
    """z of x, or of x / area, in planes [B, 1 + D, C, *shape]; x and guide in planes of their own. Of y, planes that
    the second pass will write, the frame is made zero."""
    batch, classes = x.shape[:2]
    d, even, groups = guide.shape[1] - 1, planes.size[1] % 2 == 0, _groups(classes, 1 / 16)
    blocks = ceil_div(classes, groups) * batch
    rows, tiles = _tiles(planes.size[1], planes.size[0], groups * blocks)
    z = x.new_empty((batch, 1 + d, classes, *planes.shape))
    mean, cholesky = (t.contiguous() for t in (mean, cholesky))
    launch(
        _fit_kernel, (tiles * blocks,), num_warps=groups, registers=planes.registers(d, 192),
        x_ptr=_pairs(x), guide_ptr=_pairs(guide), mean_ptr=_pairs(mean) if even else mean,
        cholesky_ptr=_pairs(cholesky) if even else cholesky, z_ptr=_pairs(z), y_ptr=y, C=classes,
        **planes.arguments(), stride_gb=batch_stride(guide) // 2, stride_mb=batch_stride(mean) // (1 + even),
        stride_lb=batch_stride(cholesky) // (1 + even), ROWS=rows, D=d, G=groups, SCALED=adjoint, EVEN=even,
    )  # fmt: skip
    return z


def combined(z, planes: Planes, guide, adjoint: bool, epilogue: str, y, message, in_planes: bool, **step) -> None:
    """K x or K^T x, from z of x, into `message`, and the step into `y`: both planes or both images."""
    batch, fields, classes = z.shape[:3]
    (ny, nx), (ry, rx), groups = planes.size, planes.radii, _groups(classes, 1 / 4)
    rows, tiles = _tiles(nx + rx % 2, ny, groups * batch)
    shape = planes.shape if in_planes else planes.size
    launch(
        _planes_step_kernel, (tiles * batch,), num_warps=groups, registers=planes.registers(fields - 1, 168),
        z_ptr=_pairs(z), guide_ptr=_pairs(guide), message_ptr=message, y_ptr=y, C=classes, **planes.arguments(),
        ROWS=rows, pitch=shape[1], origin=ry * shape[1] + rx if in_planes else 0, stride_p=math.prod(shape),
        stride_gb=batch_stride(guide) // 2, D=fields - 1, G=groups, SCALED=not adjoint, EPILOGUE=epilogue,
        **(NO_STEP | step), **step_tile(classes, groups, step),
    )  # fmt: skip

"""The guided filter and its fused mean-field step (He, Sun and Tang 2013; SegModel's guidance CRF; symbols of
docs/symbols.md).

    s = box(x) / area ,  cov = box(I x) / area - mean s ,  (Sigma + eps) slope = cov ,  offset = s - slope . mean
    (K x)_i = (box(slope)_i . I_i + box(offset)_i) / area_i

box sums over the window of 2 R + 1 pixels a side, area is how many of them the image has ("count") or a constant; mean
and the Cholesky factors of Sigma + eps (see reference.guided) of the guide I are made once per image (box.py,
`statistics`). K divides by the area at its end; K^T divides what comes in instead: one pair of kernels serves both
directions.

Form. One pass writes z = (offset, slope), [B, 1 + D, C, N]; a second sums z over the windows, combines it with the
guide, and carries the step. Both own a tile of rows and columns for some classes at a time, [TN, CB, TL].

Short windows of images are summed tap by tap: each row under the window is summed once, 2 R + 1 reads a number, and
then added to all rows of the tile that see it, which halves the work. A row's neighbours are read again from the
cache: shifting them in registers takes more instructions. Long windows are summed along one axis after the other as
in box.py, the tile's last.

The second pass leaves its messages F where the result goes, class by class; when all are there, the program reads
them back, all classes of some pixels at once, and ends the step. So any D and long windows fit in registers.

Volumes take three axes. Cost O(N C D) for any R, memory (1 + D) Q, twice for long windows. Exact but for rounding.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.box import (
    MAX_RADIUS,
    TILE,
    area,
    area_of,
    batch_stride,
    box_sum,
    geometry_of,
    places,
    product_sums,
    statistics,
    tile,
    window_sums,
)
from tritoncrf.kernels.common import OF_SIZE, ceil_div, launch, tile_and_image
from tritoncrf.kernels.epilogue import epilogue, mixed
from tritoncrf.step import Step, stacked, to_3d

__all__ = ["MAX_RADIUS", "GuidedStep", "guided_filter", "statistics"]

MAX_CLASSES = 256  # of a step: beyond, the classes of some pixels do not fit in registers
MAX_MATRIX_CLASSES = 32  # with C x C mixing: beyond, the operands of its dot do not
SHORT = 7  # longest radius that is summed tap by tap: beyond, two passes more move fewer bytes through the cache


@triton.jit
def _axis(NZ, NY, NX, RZ, RY, VOLUME: tl.constexpr):
    """The tile's axis: its length, the numbers inside it, and its radius."""
    if VOLUME:
        return NZ, NY * NX, RZ
    else:
        return NY, NX, RY


@triton.jit
def _tile_places(column, rows, n, lines, TN: tl.constexpr, TL: tl.constexpr):
    """A program's tile: its first row and line, rows [TN, 1, 1], columns [1, 1, TL], and its pixels i [TN, 1, TL], the
    nearest for those that do not exist: what is read needs no mask."""
    first = tl.program_id(1) * rows
    line = column * TL
    o_n = tl.arange(0, TN)[:, None, None]
    o_l = line + tl.arange(0, TL)[None, None, :]
    return first, line, o_n, o_l, tl.minimum(first + o_n, n - 1) * lines + tl.minimum(o_l, lines - 1)


@triton.jit
def _short_products(
    x_ptr, guide_ptr, first, o_n, o_l, o_c, C, N, NZ, NY, NX, RZ, RY, RX, AREA,
    D: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """box(x) and box(I x) of a tile, 1 + D tiles [TN, CB, TL]; of x / area if SCALED."""
    sums = ()
    for _ in tl.static_range(D + 1):
        sums = sums + (tl.zeros((TN, o_c.shape[1], o_l.shape[2]), tl.float32),)
    for y in range(tl.maximum(first - RY, 0), tl.minimum(first + TN + RY, NY)):
        row = ()
        for _ in tl.static_range(D + 1):
            row = row + (tl.zeros((1, o_c.shape[1], o_l.shape[2]), tl.float32),)
        for x in range(-RX, RX + 1):
            x = o_l + x
            m_i = (x >= 0) & (x < NX)
            i = y * NX + x
            value = tl.load(x_ptr + o_c * N + i, mask=m_i & (o_c < C), other=0.0)
            if SCALED:
                value /= area(0, y, x, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
            longer = (row[0] + value,)
            for d in tl.static_range(D):
                longer = longer + (row[1 + d] + value * tl.load(guide_ptr + d * N + i, mask=m_i, other=0.0),)
            row = longer
        near = (tl.abs(first + o_n - y) <= RY).to(tl.float32)
        longer = ()
        for d in tl.static_range(D + 1):
            longer = longer + (sums[d] + near * row[d],)
        sums = longer
    return sums


@triton.jit
def _short_sums(f_ptr, first, o_n, o_l, m_c, NY, NX, RY, RX, TN: tl.constexpr):
    """box of one field of some classes, f_ptr [1, CB, 1]: its sums of a tile, [TN, CB, TL]."""
    sums = tl.zeros((TN, m_c.shape[1], o_l.shape[2]), tl.float32)
    for y in range(tl.maximum(first - RY, 0), tl.minimum(first + TN + RY, NY)):
        row = tl.zeros((1, m_c.shape[1], o_l.shape[2]), tl.float32)
        for x in range(-RX, RX + 1):
            x = o_l + x
            row += tl.load(f_ptr + (y * NX + x), mask=(x >= 0) & (x < NX) & m_c, other=0.0)
        sums += (tl.abs(first + o_n - y) <= RY).to(tl.float32) * row
    return sums


@triton.jit
def _long_sums(f_ptr, first, o_n, o_l, n, lines, R):
    """Of one field [n, lines], whose other axes are summed already: its sums of a tile, [TN, 1, TL]."""
    tail, m_tail, head, m_head = places(first, o_n, R, n)
    m_l = o_l < lines
    tails = tl.load(f_ptr + tail * lines + o_l, mask=m_tail & m_l, other=0.0)
    heads = tl.load(f_ptr + head * lines + o_l, mask=m_head & m_l, other=0.0)
    return window_sums(tails, heads, 0)


@triton.jit(**OF_SIZE)
def _coefficients_kernel(
    # pointers
    x_ptr, guide_ptr, mean_ptr, cholesky_ptr, z_ptr,
    # sizes
    C, NZ, NY, NX, RZ, RY, RX, AREA,
    # strides: the batch of guide and mean, of cholesky (0: one serves all)
    stride_gb, stride_lb,
    # meta-parameters
    D: tl.constexpr, VOLUME: tl.constexpr, LONG: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr,
    TN: tl.constexpr, CB: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Each program owns offset and slope of one tile, for CB classes of one image. x: values, if LONG what
    `product_sums` gives, [B, 1 + D, C, N]."""
    n, lines, R = _axis(NZ, NY, NX, RZ, RY, VOLUME)
    rows = 2 * R + 1 if LONG else TN
    columns = tl.cdiv(lines, TL)
    program, b = tile_and_image(columns * tl.cdiv(C, CB))
    c = program // columns * CB
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_n, o_l, i = _tile_places(program % columns, rows, n, lines, TN, TL)
    o_c = c + tl.arange(0, CB)[None, :, None]
    mean_ptr += b * stride_gb
    cholesky_ptr += b * stride_lb
    if LONG:
        x_ptr += (b * (D + 1) * C + c) * N
        sums = ()
        for d in tl.static_range(D + 1):
            sums = sums + (_long_sums(x_ptr + d * C * N, first, o_n, o_l, n, lines, R),)
    else:
        sums = _short_products(
            x_ptr + b * C * N, guide_ptr + b * stride_gb, first, o_n, o_l, o_c, C, N, NZ, NY, NX, RZ, RY, RX, AREA,
            D, COUNT, SCALED, TN,
        )  # fmt: skip

    share = 1.0 / area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
    offset = sums[0] * share
    solved = ()
    for e in tl.static_range(D):
        entry = sums[1 + e] * share - tl.load(mean_ptr + e * N + i) * offset
        for d in tl.static_range(e):
            entry -= tl.load(cholesky_ptr + (e * (e + 1) // 2 + d) * N + i) * solved[d]
        solved = solved + (entry,)
    m_z = (o_n < rows) & (first + o_n < n) & (o_l < lines) & (o_c < C)
    z_ptr += b * (D + 1) * C * N
    slopes = ()
    for e in tl.static_range(D - 1, -1, -1):
        slope = solved[e] * tl.load(cholesky_ptr + (e * (e + 3) // 2) * N + i)
        for d in tl.static_range(e + 1, D):
            slope -= tl.load(cholesky_ptr + (d * (d + 1) // 2 + e) * N + i) * slopes[d - e - 1]
        slopes = (slope,) + slopes
        offset -= tl.load(mean_ptr + e * N + i) * slope
        tl.store(z_ptr + ((e + 1) * C + o_c) * N + i, slope, mask=m_z)
    tl.store(z_ptr + o_c * N + i, offset, mask=m_z)


@triton.jit(**OF_SIZE)
def _step_kernel(
    # pointers: z, or if LONG its sums along all other axes; messages [B, C, N], which may be y
    z_ptr, guide_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, message_ptr, y_ptr,
    # sizes
    C, channels, NZ, NY, NX, RZ, RY, RX, AREA,
    # strides: the batch of the guide (0: one serves all), a's and A's
    stride_gb, stride_a, stride_ml, stride_mk,
    # meta-parameters
    VOLUME: tl.constexpr, LONG: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr,
    TN: tl.constexpr, CB: tl.constexpr, TL: tl.constexpr, CP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of one image, and ends the step for P of its pixels at a time."""
    n, lines, R = _axis(NZ, NY, NX, RZ, RY, VOLUME)
    rows = 2 * R + 1 if LONG else TN
    program, b = tile_and_image(tl.cdiv(lines, TL))
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_n, o_l, i = _tile_places(program, rows, n, lines, TN, TL)
    guide_ptr += b * stride_gb
    z_ptr += b * (channels + 1) * C * N
    image = b * C * N
    for c in range(0, C, CB):
        o_c = c + tl.arange(0, CB)[None, :, None]
        total = tl.zeros((TN, CB, TL), tl.float32)
        for d in range(0, channels + 1):
            if LONG:
                sums = _long_sums(z_ptr + (d * C + c) * N, first, o_n, o_l, n, lines, R)
            else:
                sums = _short_sums(z_ptr + (d * C + o_c) * N, first, o_n, o_l, o_c < C, NY, NX, RY, RX, TN)
            total += sums * tl.where(d > 0, tl.load(guide_ptr + tl.maximum(d - 1, 0) * N + i), 1.0)
        if SCALED:
            total /= area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
        m_i = (o_n < rows) & (first + o_n < n) & (o_l < lines) & (o_c < C)
        tl.store(message_ptr + image + o_c * N + i, total, mask=m_i)

    if EPILOGUE != "sum":
        tl.debug_barrier()  # the messages that this program's other threads have written
        o_k = tl.arange(0, CP)
        for p in range(0, rows * TL, P):
            row = (p + tl.arange(0, P)) // TL
            column = line + (p + tl.arange(0, P)) % TL
            m_p = (row < rows) & (first + row < n) & (column < lines)
            o_y = image + o_k[None, :] * N + ((first + row) * lines + column)[:, None]
            m_y = m_p[:, None] & (o_k < C)[None, :]
            messages = tl.load(message_ptr + o_y, mask=m_y, other=0.0)
            result = mixed(messages, mix_ptr, stride_ml, stride_mk, o_k, C, MATRIX, CP, PRECISION)
            result = epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, m_y, o_k, C, EPILOGUE)
            tl.store(y_ptr + o_y, result, mask=m_y)


def _tiling(guide) -> tuple[dict, int]:
    """How both passes cut an image, as arguments; and warps."""
    _, d, nz, ny, _ = guide.image.shape
    if nz == 1 and max(guide.radii) <= SHORT:
        rows = min(4 if d <= 4 else 2, triton.next_power_of_2(ny))
        return {"VOLUME": False, "LONG": False, "TN": rows, "TL": 128}, 4
    width, across, warps = tile(guide.radii[0 if nz > 1 else 1])
    if d > 4:  # each thread holds fewer numbers of every field
        across, warps = max(1, TILE // width // (1 if d == 5 else 2)), 4
    return {"VOLUME": nz > 1, "LONG": True, "TN": width, "TL": across}, warps


def _grid(guide, tiling, blocks: int, batch: int) -> tuple[int, int]:
    """Columns of the tiles, times blocks of classes and images, for there may be many; rows of the tiles."""
    nz, ny, nx = guide.image.shape[2:]
    n, lines, radius = (nz, ny * nx, guide.radii[0]) if tiling["VOLUME"] else (ny, nx, guide.radii[1])
    rows = 2 * radius + 1 if tiling["LONG"] else tiling["TN"]
    return ceil_div(lines, tiling["TL"]) * blocks * batch, ceil_div(n, rows)


def _class_block(classes: int, numbers: int) -> int:
    """Classes at a time: `numbers` of each and column stay in registers, 32 in all."""
    return max(1, min(8, triton.next_power_of_2(classes), 32 // triton.next_power_of_2(numbers)))


def _coefficients(x, guide, adjoint: bool):
    """z of x, or of x / area."""
    batch, classes, *size = x.shape
    image, cholesky, d = guide.image.contiguous(), guide.cholesky.contiguous(), guide.image.shape[1]
    geometry, (tiling, warps) = geometry_of(size, guide.radii, guide.box), _tiling(guide)
    if tiling["LONG"]:
        x = product_sums(x, image, geometry, adjoint)
        x = box_sum(x.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, 0))
        block = 1
        warps *= 1 if d <= 4 else 2
    else:
        if d > 6:  # else its numbers do not fit in registers
            tiling["TN"] = 1
        block = _class_block(classes, tiling["TN"] * (1 + d))
    z = image.new_empty((batch, 1 + d, classes, *size))
    launch(
        _coefficients_kernel, _grid(guide, tiling, ceil_div(classes, block), batch), num_warps=warps,
        x_ptr=x, guide_ptr=image, mean_ptr=guide.mean.contiguous(), cholesky_ptr=cholesky, z_ptr=z,
        C=classes, **geometry, **tiling, stride_gb=batch_stride(image), stride_lb=batch_stride(cholesky), D=d,
        SCALED=adjoint, CB=block,
    )  # fmt: skip
    return z


def _messages(z, guide, adjoint: bool, epilogue: str, y, message, **step) -> None:
    """K x or K^T x, from z of x, into `message`, and the step into `y`."""
    batch, fields, classes, *size = z.shape
    image, geometry = guide.image.contiguous(), geometry_of(size, guide.radii, guide.box)
    tiling, warps = _tiling(guide)
    if tiling["LONG"]:
        z = box_sum(z.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, guide.radii[2]))
    matrix, columns = step.get("MATRIX", False), triton.next_power_of_2(classes)
    columns = max(16 if matrix else 1, columns)  # 1: there may be no class
    pixels = max(16 if matrix else 1, min(128, 128 * warps // columns))  # 4 numbers for each thread
    arguments = {
        "mix_ptr": None, "unary_ptr": None, "a_ptr": None, "q_ptr": None, "stride_a": 0, "stride_ml": 0,
        "stride_mk": 0, "MATRIX": False, "PRECISION": "default",
    } | step  # fmt: skip
    launch(
        _step_kernel, _grid(guide, tiling, 1, batch), num_warps=warps,
        registers=128 if not tiling["LONG"] else 168 if tiling["TN"] == 64 and not matrix else None,
        z_ptr=z, guide_ptr=image, message_ptr=message, y_ptr=y, C=classes, channels=fields - 1, **geometry, **tiling,
        stride_gb=batch_stride(image), SCALED=not adjoint, EPILOGUE=epilogue, CP=columns, P=pixels,
        CB=1 if tiling["LONG"] else _class_block(classes, 4 * tiling["TN"]), **arguments,
    )  # fmt: skip


def _mixing(mix) -> dict:
    """A [], [1], [C] or [C, C] by its strides."""
    strides = (*mix.stride(), 0) if mix.ndim == 2 else (0 if len(mix) == 1 else mix.stride(0), 0)
    return {"mix_ptr": mix, "MATRIX": mix.ndim == 2, "stride_ml": strides[0], "stride_mk": strides[1]}


def guided_filter(x, guide, adjoint: bool):
    """K x for x [B, C, Z, Y, X] and a reference.guided.Guide, or K^T x, in 2 launches, 4 for long windows, 6 in 3-D."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _messages(_coefficients(x.contiguous(), guide, adjoint), guide, adjoint, "sum", y, y)
    return y


class GuidedStep(Step):
    """The step of one guided filter: its second box carries mixing, unary and softmax."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.guide, self.precision = operators[0].guide, operators[0].precision
        self.mix = stacked(mixing, unary.shape[1])[0]

    def next(self, state):
        return self._run(state, "softmax")

    def scores(self, state):
        return self._run(state, "scores")

    def _run(self, q, epilogue):
        y = torch.empty_like(self.unary)
        _messages(
            _coefficients(to_3d(q.contiguous()), self.guide, False), self.guide, False, epilogue, y, y,
            **_mixing(self.mix), unary_ptr=self.unary, a_ptr=self.unary_weight, stride_a=self.unary_weight.stride(0),
            PRECISION=self.precision,
        )  # fmt: skip
        return y

    def backward(self, q, g, through_softmax: bool, messages: bool):
        y, back = torch.empty_like(self.unary), torch.empty_like(self.unary) if messages else None
        mix = self.mix.mT if self.mix.ndim == 2 else self.mix
        _messages(
            _coefficients(to_3d(g.contiguous()), self.guide, True), self.guide, True,
            "softmax_adjoint" if through_softmax else "weighted", y, y if back is None else back,
            **_mixing(mix), q_ptr=q.contiguous() if through_softmax else None, PRECISION=self.precision,
        )  # fmt: skip
        return y, None if back is None else [back]

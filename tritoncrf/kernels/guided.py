"""The guided filter and its fused mean-field step (He, Sun and Tang 2013; SegModel's guidance CRF; symbols of
docs/symbols.md).

    s = box(x) / area ,  cov = box(I x) / area - mean s ,  (Sigma + eps) slope = cov ,  offset = s - slope . mean
    (K x)_i = (box(slope)_i . I_i + box(offset)_i) / area_i

box sums over the window of 2 R + 1 pixels a side, area is how many of them the image has ("count") or a constant; mean
and the Cholesky factors of Sigma + eps (see reference.guided) of the guide I are made once per image (box.py,
`statistics`). K divides by the area at its end, K^T at its beginning, so one pair of kernels serves both directions.

Form. One pass writes z = (offset, slope), [B, 1 + D, C, N]; a second sums z over the windows, combines it with the
guide, and does the step. Short windows of images have kernels of their own, in padded planes (guided_planes.py). Here,
for long windows and for volumes, windows are summed along one axis after the other as in box.py, the last by both
passes, each of which owns a tile of rows and columns, [TN, TL].

The second pass writes its messages F to the memory of the result, class by class; when all are written, the program
reads them back and ends the step. So any D and long windows fit in registers.

Volumes take three axes. Cost O(N C D) for any R, memory 2 (1 + D) Q. Exact but for rounding.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.box import (
    MAX_RADIUS,
    TILE,
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
from tritoncrf.kernels.common import MOST_REGISTERS, OF_SIZE, ceil_div, launch, tile_and_image
from tritoncrf.kernels.epilogue import end_step
from tritoncrf.kernels.guided_planes import NO_STEP, Planes, combined, fit, fitted, is_short, step_tile
from tritoncrf.step import Step, stacked, to_3d

__all__ = ["MAX_RADIUS", "GuidedStep", "guided_filter", "statistics", "step_of"]

MAX_MATRIX_CLASSES = 32  # of a step with C x C mixing: beyond, the operands of its dot do not fit in registers


@triton.jit
def _axis(NZ, NY, NX, RZ, RY, VOLUME: tl.constexpr):
    """The tile's axis: its length, the numbers inside it, and its radius."""
    if VOLUME:
        return NZ, NY * NX, RZ
    else:
        return NY, NX, RY


@triton.jit
def _tile_places(column, rows, n, lines, TN: tl.constexpr, TL: tl.constexpr):
    """A program's tile: its first row and line, rows [TN, 1], columns [1, TL], and its pixels i [TN, TL], replaced by
    the nearest if they do not exist, so that reads need no mask."""
    first = tl.program_id(1) * rows
    line = column * TL
    o_n = tl.arange(0, TN)[:, None]
    o_l = line + tl.arange(0, TL)[None, :]
    return first, line, o_n, o_l, tl.minimum(first + o_n, n - 1) * lines + tl.minimum(o_l, lines - 1)


@triton.jit
def _sums(f_ptr, first, o_n, o_l, n, lines, R):
    """Of one field [n, lines], whose other axes are summed already: its sums of a tile, [TN, TL]."""
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
    # strides: the batch of mean, of cholesky (0: one serves all)
    stride_gb, stride_lb,
    # meta-parameters
    D: tl.constexpr, VOLUME: tl.constexpr, COUNT: tl.constexpr, TN: tl.constexpr, TL: tl.constexpr,
):  # fmt: skip
    """Each program owns offset and slope of one tile, for one class of one image. x: what `product_sums` gives, summed
    along all axes but the tile's, [B, 1 + D, C, N]."""
    n, lines, R = _axis(NZ, NY, NX, RZ, RY, VOLUME)
    rows = 2 * R + 1
    columns = tl.cdiv(lines, TL)
    program, b = tile_and_image(columns * C)
    c = program // columns
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_n, o_l, i = _tile_places(program % columns, rows, n, lines, TN, TL)
    x_ptr += (b * (D + 1) * C + c) * N
    sums = ()
    for d in tl.static_range(D + 1):
        sums = sums + (_sums(x_ptr + d * C * N, first, o_n, o_l, n, lines, R),)
    mean_ptr += b * stride_gb
    cholesky_ptr += b * stride_lb
    mean = ()
    for d in tl.static_range(D):
        mean = mean + (tl.load(mean_ptr + d * N + i),)
    cholesky = ()
    for e in tl.static_range(D * (D + 1) // 2):
        cholesky = cholesky + (tl.load(cholesky_ptr + e * N + i),)
    z = fit(sums, 1.0 / area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT), mean, cholesky, D)
    m_z = (o_n < rows) & (first + o_n < n) & (o_l < lines)
    z_ptr += (b * (D + 1) * C + c) * N + i
    for d in tl.static_range(D + 1):
        tl.store(z_ptr + d * C * N, z[d], mask=m_z)


@triton.jit(**OF_SIZE)
def _step_kernel(
    # pointers: z's sums along all axes but the tile's; messages [B, C, N], which may be y
    z_ptr, guide_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, message_ptr, y_ptr,
    # sizes
    C, channels, NZ, NY, NX, RZ, RY, RX, AREA,
    # strides: the batch of the guide (0: one serves all), a's and A's
    stride_gb, stride_a, stride_ml, stride_mk,
    # meta-parameters
    VOLUME: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr,
    TN: tl.constexpr, TL: tl.constexpr, CP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of one image, and ends the step for P of its pixels at a time."""
    n, lines, R = _axis(NZ, NY, NX, RZ, RY, VOLUME)
    rows = 2 * R + 1
    program, b = tile_and_image(tl.cdiv(lines, TL))
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_n, o_l, i = _tile_places(program, rows, n, lines, TN, TL)
    m_i = (o_n < rows) & (first + o_n < n) & (o_l < lines)
    guide_ptr += b * stride_gb
    z_ptr += b * (channels + 1) * C * N
    image = b * C * N
    for c in range(0, C):
        total = tl.zeros((TN, TL), tl.float32)
        for d in range(0, channels + 1):
            sums = _sums(z_ptr + (d * C + c) * N, first, o_n, o_l, n, lines, R)
            total += sums * tl.where(d > 0, tl.load(guide_ptr + tl.maximum(d - 1, 0) * N + i), 1.0)
        if SCALED:
            total /= area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
        tl.store(message_ptr + image + c * N + i, total, mask=m_i)

    if EPILOGUE != "sum":
        tl.debug_barrier()  # the messages that this program's other threads have written
        for p in range(0, rows * TL, P):
            row = (p + tl.arange(0, P)) // TL
            column = line + (p + tl.arange(0, P)) % TL
            m_p = (row < rows) & (first + row < n) & (column < lines)
            o_p = (first + row) * lines + column
            end_step(
                message_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, image, image, o_p, o_p, m_p, C, N, N,
                stride_a, stride_ml, stride_mk, EPILOGUE, MATRIX, PRECISION, CP,
            )  # fmt: skip


def _tiling(guide) -> tuple[dict, int]:
    """How both passes cut an image or a volume, as arguments; and warps."""
    d, nz = guide.image.shape[1:3]
    width, across, warps = tile(guide.radii[0 if nz > 1 else 1])
    if d > 4:  # each thread holds fewer numbers of every field
        across, warps = max(1, TILE // width // (1 if d == 5 else 2 if d < 8 else 4)), 4
    return {"VOLUME": nz > 1, "TN": width, "TL": across}, warps


def _grid(guide, tiling, blocks: int) -> tuple[int, int]:
    """Columns of the tiles, times classes and images, for there may be many; rows of the tiles."""
    nz, ny, nx = guide.image.shape[2:]
    n, lines, radius = (nz, ny * nx, guide.radii[0]) if tiling["VOLUME"] else (ny, nx, guide.radii[1])
    return ceil_div(lines, tiling["TL"]) * blocks, ceil_div(n, 2 * radius + 1)


def _coefficients(x, guide, adjoint: bool):
    """z of x, or of x / area."""
    batch, classes, *size = x.shape
    image, cholesky, d = guide.image.contiguous(), guide.cholesky.contiguous(), guide.image.shape[1]
    geometry, (tiling, warps) = geometry_of(size, guide.radii, guide.box), _tiling(guide)
    x = product_sums(x, image, geometry, adjoint)
    x = box_sum(x.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, 0))
    z = image.new_empty((batch, 1 + d, classes, *size))
    launch(
        _coefficients_kernel, _grid(guide, tiling, classes * batch), num_warps=warps * (1 if d <= 4 else 2),
        registers=168 if tiling["TN"] == 1 else None,
        registers_before_90=MOST_REGISTERS if tiling["TN"] == 1 or warps > 4 else None,
        x_ptr=x, guide_ptr=image, mean_ptr=guide.mean.contiguous(), cholesky_ptr=cholesky, z_ptr=z,
        C=classes, **geometry, **tiling, stride_gb=batch_stride(image), stride_lb=batch_stride(cholesky), D=d,
    )  # fmt: skip
    return z


def _messages(z, guide, adjoint: bool, epilogue: str, y, message, **step) -> None:
    """K x or K^T x, from z of x, into `message`, and the step into `y`."""
    batch, fields, classes, *size = z.shape
    image, geometry = guide.image.contiguous(), geometry_of(size, guide.radii, guide.box)
    tiling, warps = _tiling(guide)
    z = box_sum(z.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, guide.radii[2]))
    launch(
        _step_kernel, _grid(guide, tiling, batch), num_warps=warps, registers_before_90=MOST_REGISTERS,
        z_ptr=z, guide_ptr=image, message_ptr=message, y_ptr=y, C=classes, channels=fields - 1, **geometry, **tiling,
        stride_gb=batch_stride(image), SCALED=not adjoint, EPILOGUE=epilogue, **(NO_STEP | step),
        **step_tile(classes, warps, step),
    )  # fmt: skip


def _mixing(mix) -> dict:
    """A [], [1], [C] or [C, C] by its strides."""
    strides = (*mix.stride(), 0) if mix.ndim == 2 else (0 if len(mix) == 1 else mix.stride(0), 0)
    return {"mix_ptr": mix, "MATRIX": mix.ndim == 2, "stride_ml": strides[0], "stride_mk": strides[1]}


def guided_filter(x, guide, adjoint: bool):
    """K x for x [B, C, Z, Y, X] and a reference.guided.Guide, or K^T x: 2 launches and 2 that pad; 4 for long windows,
    6 in 3-D."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if is_short(x.shape[2:], guide.radii, guide.image.shape[1]):
        planes = Planes(x.shape[2:], guide.radii, guide.box)
        image = planes.padded(guide.image, share=True)
        z = fitted(planes.padded(x), planes, image, guide.mean, guide.cholesky, adjoint)
        combined(z, planes, image, adjoint, "sum", y, y, in_planes=False)
    else:
        _messages(_coefficients(x.contiguous(), guide, adjoint), guide, adjoint, "sum", y, y)
    return y


class GuidedStep(Step):
    """The step of one guided filter: its second box includes mixing, unary and softmax."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.guide, self.precision = operators[0].guide, operators[0].precision
        self.mix = stacked(mixing, unary.shape[1])[0]

    def next(self, state):
        return self._run(state, False, "softmax", torch.empty_like(state), **self._forward())

    def scores(self, state):
        return self._run(state, False, "scores", torch.empty_like(self.unary), **self._forward())

    def _forward(self):
        return _mixing(self.mix) | {
            "unary_ptr": self.unary, "a_ptr": self.unary_weight, "stride_a": self.unary_weight.stride(0),
        }  # fmt: skip

    def backward(self, q, g, through_softmax: bool, messages: bool):
        y, back = torch.empty_like(g), torch.empty_like(g) if messages else None
        self._run(
            g, True, "softmax_adjoint" if through_softmax else "weighted", y, back,
            **_mixing(self.mix.mT if self.mix.ndim == 2 else self.mix),
            q_ptr=q.contiguous() if through_softmax else None,
        )  # fmt: skip
        return y, None if back is None else [back]

    def _run(self, x, adjoint: bool, epilogue: str, y, message=None, **step):
        """The step of K x, or of K^T x, into y, and the messages by themselves into `message` if there is one."""
        z = _coefficients(to_3d(x.contiguous()), self.guide, adjoint)
        _messages(
            z, self.guide, adjoint, epilogue, y, y if message is None else message, PRECISION=self.precision, **step
        )
        return y


class PlanesStep(GuidedStep):
    """The same for short windows. States, and what is kept of them, are Q in padded planes."""

    radii: tuple[int, ...]  # set in the subclass that `step_of` makes

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary, unary_weight)
        self.planes = Planes(to_3d(unary).shape[2:], self.guide.radii, self.guide.box)
        self.padded_guide = self.planes.padded(self.guide.image, share=True)

    @classmethod
    def kept_shape(cls, unary):
        return *unary.shape[:2], *Planes(to_3d(unary).shape[2:], cls.radii, "count").shape

    def arrange(self, x):
        return self.planes.padded(to_3d(x))

    def image(self, x):
        return self.planes.cropped(x).reshape(self.unary.shape)

    def _run(self, x, adjoint: bool, epilogue: str, y, message=None, **step):
        in_planes, guide = y.shape == x.shape, (self.planes, self.padded_guide)
        z = fitted(x, *guide, self.guide.mean, self.guide.cholesky, adjoint, y if in_planes else None)
        message = y if message is None else message
        combined(z, *guide, adjoint, epilogue, y, message, in_planes, PRECISION=self.precision, **step)
        return y


def step_of(size, radii, channels: int) -> type[GuidedStep]:
    """The step for windows of these radii on an image [Z, Y, X], for a guide with this number of channels."""
    return type("PlanesStep", (PlanesStep,), {"radii": radii}) if is_short(size, radii, channels) else GuidedStep

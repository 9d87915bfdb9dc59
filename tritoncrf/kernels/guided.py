"""The guided filter and its fused mean-field step (He, Sun and Tang 2013; SegModel's guidance CRF; symbols of step.py).

    s = P x / D ,  cov = P (I x) / D - mu s ,  a = A cov ,  b = s - a . mu ,      F_i = ((P a)_i . I_i + (P b)_i) / D_i

P sums over the window of 2 R + 1 pixels a side, D is how many of them the image has ("count") or a constant; mu and
A = (Sigma + eps)^-1 of the guide I are made once per image, in float64. F = W Q is divided by D at its end; going
back, B = W^T G divides G instead: one pair of kernels serves both directions.

Form. One pass writes z = (b, a), [B, 1 + D, C, N]; a second sums z over the windows, combines it with the guide, and
carries the step. Both own a tile of rows and columns for some classes at a time, [K, classes, P].

Short windows of images are summed tap by tap: each row under the window is summed once, 2 R + 1 reads a number, and
then added to all K = 4 rows of the tile that see it. At R = 3 that takes 18 reads and 45 instructions for a number of
z, against 49 and 98 without sharing rows. A row's neighbours are read again from the cache: shifting them in
registers, by scans and gathers of a tile that holds its halo, was written and compiled for sm_90: 110 instructions
for each number of the tile, 43 of them shuffles or shared memory. Long windows are summed along one axis after the
other as in box.py, the tile's last.

The second pass leaves its messages F where the result goes, class by class; when all are there, the program reads
them back, all classes of some pixels at once, and finishes the step. So any D and long windows fit in registers.

Volumes take three axes. Cost O(N C D) for any R, memory (1 + D) Q, twice for long windows. Exact but for rounding.
"""

import math

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
    tile,
    window_sums,
)
from tritoncrf.kernels.common import ceil_div, launch
from tritoncrf.kernels.step import finished, mixed
from tritoncrf.step import Step, stacked, to_3d

__all__ = ["MAX_RADIUS", "GuidedStep", "guided_filter", "guided_step", "guided_step_backward", "statistics"]

MAX_CLASSES = 256  # of a step: beyond, the classes of some pixels do not fit in registers
MAX_MATRIX_CLASSES = 32  # with C x C mixing: beyond, the operands of its dot do not
SHORT = 7  # longest radius that is summed tap by tap: beyond, two passes more move fewer bytes through the cache


@triton.jit
def _tile_places(column, rows, n, lines, K: tl.constexpr, P: tl.constexpr):
    """A program's tile: its first row and line, rows k [K, 1, 1], columns [1, 1, P], and its pixels i [K, 1, P], the
    nearest for those that do not exist: what is read needs no mask."""
    first = tl.program_id(1) * rows
    line = column * P
    o_k = tl.arange(0, K)[:, None, None]
    o_p = line + tl.arange(0, P)[None, None, :]
    return first, line, o_k, o_p, tl.minimum(first + o_k, n - 1) * lines + tl.minimum(o_p, lines - 1)


@triton.jit
def _short_products(
    x_ptr, guide_ptr, first, o_k, o_p, o_c, C, N, NZ, NY, NX, RZ, RY, RX, AREA,
    D: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """P x and P (I x) of a tile, 1 + D tiles [K, classes, P]; x / D if SCALED."""
    sums = ()
    for _ in tl.static_range(D + 1):
        sums = sums + (tl.zeros((K, o_c.shape[1], o_p.shape[2]), tl.float32),)
    for y in range(tl.maximum(first - RY, 0), tl.minimum(first + K + RY, NY)):
        row = ()
        for _ in tl.static_range(D + 1):
            row = row + (tl.zeros((1, o_c.shape[1], o_p.shape[2]), tl.float32),)
        for x in range(-RX, RX + 1):
            x = o_p + x
            inside = (x >= 0) & (x < NX)
            i = y * NX + x
            value = tl.load(x_ptr + o_c * N + i, mask=inside & (o_c < C), other=0.0)
            if SCALED:
                value /= area(0, y, x, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
            longer = (row[0] + value,)
            for d in tl.static_range(D):
                longer = longer + (row[1 + d] + value * tl.load(guide_ptr + d * N + i, mask=inside, other=0.0),)
            row = longer
        near = (tl.abs(first + o_k - y) <= RY).to(tl.float32)
        longer = ()
        for d in tl.static_range(D + 1):
            longer = longer + (sums[d] + near * row[d],)
        sums = longer
    return sums


@triton.jit
def _short_sums(f_ptr, first, o_k, o_p, m_c, NY, NX, RY, RX, K: tl.constexpr):
    """P of one field of some classes, f_ptr [1, classes, 1]: its sums of a tile, [K, classes, P]."""
    sums = tl.zeros((K, m_c.shape[1], o_p.shape[2]), tl.float32)
    for y in range(tl.maximum(first - RY, 0), tl.minimum(first + K + RY, NY)):
        row = tl.zeros((1, m_c.shape[1], o_p.shape[2]), tl.float32)
        for x in range(-RX, RX + 1):
            x = o_p + x
            row += tl.load(f_ptr + (y * NX + x), mask=(x >= 0) & (x < NX) & m_c, other=0.0)
        sums += (tl.abs(first + o_k - y) <= RY).to(tl.float32) * row
    return sums


@triton.jit
def _long_sums(f_ptr, first, o_k, o_p, n, lines, R):
    """Of one field [n, lines], whose other axes are summed already: its sums of a tile, [K, 1, P]."""
    tail, m_tail, head, m_head = places(first, o_k, R, n)
    m_p = o_p < lines
    tails = tl.load(f_ptr + tail * lines + o_p, mask=m_tail & m_p, other=0.0)
    heads = tl.load(f_ptr + head * lines + o_p, mask=m_head & m_p, other=0.0)
    return window_sums(tails, heads, 0)


@triton.jit
def _coefficients_kernel(
    # pointers
    x_ptr, guide_ptr, mu_ptr, inverse_ptr, z_ptr,
    # sizes: of the image; of the tile's axis and what is inside it; rows of the tile; radii, R that of the axis
    C, channels, NZ, NY, NX, n, lines, rows, RZ, RY, RX, R, AREA,
    # strides: the batch of guide and mu, of the inverse (0: one serves all)
    stride_gb, stride_ib,
    # meta-parameters
    D: tl.constexpr, LONG: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr,
    K: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the b and a of one tile, for CB classes of one image. x: values, if LONG what
    `product_sums` gives, [B, 1 + D, C, N]."""
    b = tl.program_id(2).to(tl.int64)
    columns = tl.cdiv(lines, P)
    c = tl.program_id(0) // columns * CB
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_k, o_p, i = _tile_places(tl.program_id(0) % columns, rows, n, lines, K, P)
    o_c = c + tl.arange(0, CB)[None, :, None]
    mu_ptr += b * stride_gb
    inverse_ptr += b * stride_ib
    if LONG:
        x_ptr += (b * (D + 1) * C + c) * N
        sums = ()
        for d in tl.static_range(D + 1):
            sums = sums + (_long_sums(x_ptr + d * C * N, first, o_k, o_p, n, lines, R),)
    else:
        sums = _short_products(
            x_ptr + b * C * N, guide_ptr + b * stride_gb, first, o_k, o_p, o_c, C, N, NZ, NY, NX, RZ, RY, RX, AREA,
            D, COUNT, SCALED, K,
        )  # fmt: skip

    share = 1.0 / area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
    s = sums[0] * share
    cov = ()
    for d in tl.static_range(D):
        cov = cov + (sums[1 + d] * share - tl.load(mu_ptr + d * N + i) * s,)
    inside = (o_k < rows) & (first + o_k < n) & (o_p < lines) & (o_c < C)
    z_ptr += b * (D + 1) * C * N
    for e in range(0, channels):  # not unrolled: all of A at once would not fit in registers
        a = tl.zeros_like(s)
        for d in tl.static_range(D):
            entry = tl.maximum(e, d) * (tl.maximum(e, d) + 1) // 2 + tl.minimum(e, d)
            a += tl.load(inverse_ptr + entry * N + i) * cov[d]
        s -= tl.load(mu_ptr + e * N + i) * a
        tl.store(z_ptr + ((e + 1) * C + o_c) * N + i, a, mask=inside)
    tl.store(z_ptr + o_c * N + i, s, mask=inside)


@triton.jit
def _step_kernel(
    # pointers: z, or if LONG its sums along all other axes; F or B [B, C, N], which may be y
    z_ptr, guide_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, message_ptr, y_ptr,
    # sizes: as above
    C, channels, NZ, NY, NX, n, lines, rows, RZ, RY, RX, R, AREA,
    # strides: the batch of the guide (0: one serves all), a's and A's
    stride_gb, stride_a, stride_ml, stride_mk,
    # meta-parameters
    LONG: tl.constexpr, COUNT: tl.constexpr, SCALED: tl.constexpr,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr,
    K: tl.constexpr, CB: tl.constexpr, P: tl.constexpr, CP: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of one image."""
    b = tl.program_id(2).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    first, line, o_k, o_p, i = _tile_places(tl.program_id(0), rows, n, lines, K, P)
    guide_ptr += b * stride_gb
    z_ptr += b * (channels + 1) * C * N
    image = b * C * N
    for c in range(0, C, CB):
        o_c = c + tl.arange(0, CB)[None, :, None]
        total = tl.zeros((K, CB, P), tl.float32)
        for d in range(0, channels + 1):
            if LONG:
                sums = _long_sums(z_ptr + (d * C + c) * N, first, o_k, o_p, n, lines, R)
            else:
                sums = _short_sums(z_ptr + (d * C + o_c) * N, first, o_k, o_p, o_c < C, NY, NX, RY, RX, K)
            total += sums * tl.where(d > 0, tl.load(guide_ptr + tl.maximum(d - 1, 0) * N + i), 1.0)
        if SCALED:
            total /= area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT)
        inside = (o_k < rows) & (first + o_k < n) & (o_p < lines) & (o_c < C)
        tl.store(message_ptr + image + o_c * N + i, total, mask=inside)

    if EPILOGUE != "sum":
        tl.debug_barrier()  # the messages that this program's other threads have written
        o_l = tl.arange(0, CP)
        for p in range(0, rows * P, PIXELS):
            k = (p + tl.arange(0, PIXELS)) // P
            column = line + (p + tl.arange(0, PIXELS)) % P
            m_p = (k < rows) & (first + k < n) & (column < lines)
            o_y = image + o_l[None, :] * N + ((first + k) * lines + column)[:, None]
            m_y = m_p[:, None] & (o_l < C)[None, :]
            messages = tl.load(message_ptr + o_y, mask=m_y, other=0.0)
            result = mixed(messages, mix_ptr, stride_ml, stride_mk, o_l, C, MATRIX, CP, PRECISION)
            result = finished(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, m_y, o_l, C, EPILOGUE)
            tl.store(y_ptr + o_y, result, mask=m_y)


@triton.jit
def _statistics_kernel(
    # pointers
    sums_ptr, eps_ptr, mu_ptr, inverse_ptr,
    # sizes
    NZ, NY, NX, RZ, RY, RX, AREA,
    # meta-parameters
    D: tl.constexpr, COUNT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns mu and A of P pixels of one guide, from its sums [Bf, 1 + D, D, N]. Sweeps (see
    reference.guided.inverse) in registers."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    share = 1.0 / area_of(i, NZ, NY, NX, RZ, RY, RX, AREA, COUNT).to(tl.float64)
    sums_ptr += b * (D + 1) * D * N + i
    mu = ()
    matrix = ()
    for e in tl.static_range(D):
        mu = mu + (tl.load(sums_ptr + e * N, mask=inside, other=0.0) * share,)
        tl.store(mu_ptr + (b * D + e) * N + i, mu[e], mask=inside)
        for d in tl.static_range(e + 1):
            moment = tl.load(sums_ptr + ((d + 1) * D + e) * N, mask=inside, other=0.0) * share
            entry = moment - mu[e] * mu[d]
            matrix = matrix + (entry + tl.load(eps_ptr) if e == d else entry,)
    for k in tl.static_range(D):
        pivot = 1.0 / matrix[k * (k + 1) // 2 + k]
        swept = ()
        for e in tl.static_range(D):
            for d in tl.static_range(e + 1):
                entry = matrix[e * (e + 1) // 2 + d]
                row_e = matrix[e * (e + 1) // 2 + k if e > k else k * (k + 1) // 2 + e]
                row_d = matrix[d * (d + 1) // 2 + k if d > k else k * (k + 1) // 2 + d]
                if e == k and d == k:
                    swept = swept + (-pivot,)
                elif e == k or d == k:
                    swept = swept + (entry * pivot,)
                else:
                    swept = swept + (entry - row_e * row_d * pivot,)
        matrix = swept
    for n in tl.static_range(D * (D + 1) // 2):
        tl.store(inverse_ptr + (b * (D * (D + 1) // 2) + n) * N + i, -matrix[n], mask=inside)


def _tiling(guide) -> dict:
    """How both passes cut an image: n, lines, rows, R, LONG, K, P; and warps."""
    _, d, nz, ny, nx = guide.image.shape
    if nz == 1 and max(guide.radii) <= SHORT:
        rows = min(4 if d <= 4 else 2, triton.next_power_of_2(ny))
        axis = {"n": ny, "lines": nx, "rows": rows, "R": 0, "LONG": False}
        return {**axis, "K": rows, "P": 128, "num_warps": 4}
    n, lines, radius = (ny, nx, guide.radii[1]) if nz == 1 else (nz, ny * nx, guide.radii[0])
    width, across, warps = tile(radius)
    if d > 4:  # each thread holds fewer numbers of every field
        across, warps = TILE // width, 4
    axis = {"n": n, "lines": lines, "rows": 2 * radius + 1, "R": radius, "LONG": True}
    return {**axis, "K": width, "P": across, "num_warps": warps}


def _grid(tiling, blocks: int, batch: int) -> tuple[int, int, int]:
    """Columns of the tiles, times blocks of classes, for there may be many; rows of the tiles; images."""
    return ceil_div(tiling["lines"], tiling["P"]) * blocks, ceil_div(tiling["n"], tiling["rows"]), batch


def _class_block(classes: int, numbers: int) -> int:
    """Classes at a time: `numbers` of each and column stay in registers, 32 in all."""
    return max(1, min(8, triton.next_power_of_2(classes), 32 // triton.next_power_of_2(numbers)))


def statistics(guide, eps, radii, box: str):
    """mu and the packed A of reference.guided, in float32, for a guide [Bf, D, Z, Y, X]."""
    guide = guide.contiguous()
    images, d, *size = guide.shape
    geometry = geometry_of(size, radii, box)
    sums = product_sums(guide, guide, geometry, scaled=False, dtype=torch.float64)
    sums = box_sum(sums.flatten(0, 1), (*radii[:2], 0))
    mu = torch.empty_like(guide)
    inverse = guide.new_empty((images, d * (d + 1) // 2, *size))
    launch(
        _statistics_kernel, (ceil_div(math.prod(size), 128), images), 4, sums_ptr=sums, eps_ptr=eps.double(), mu_ptr=mu,
        inverse_ptr=inverse, **geometry, D=d, P=128,
    )  # fmt: skip
    return mu, inverse


def _coefficients(x, guide, adjoint: bool):
    """z of x, or of x / D."""
    batch, classes, *size = x.shape
    image, inverse, d = guide.image.contiguous(), guide.inverse.contiguous(), guide.image.shape[1]
    geometry, tiling = geometry_of(size, guide.radii, guide.box), _tiling(guide)
    if tiling["LONG"]:
        x = product_sums(x, image, geometry, adjoint)
        x = box_sum(x.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, 0))
        block = 1
        tiling["num_warps"] *= 1 if d <= 4 else 2 if d == 5 else 4
    else:
        block = _class_block(classes, tiling["K"] * (1 + d))
    z = image.new_empty((batch, 1 + d, classes, *size))
    launch(
        _coefficients_kernel, _grid(tiling, ceil_div(classes, block), batch),
        x_ptr=x, guide_ptr=image, mu_ptr=guide.mu.contiguous(), inverse_ptr=inverse, z_ptr=z,
        C=classes, channels=d, **geometry, **tiling, stride_gb=batch_stride(image),
        stride_ib=batch_stride(inverse), D=d, SCALED=adjoint, CB=block,
    )  # fmt: skip
    return z


def _messages(z, guide, adjoint: bool, epilogue: str, y, message, **step) -> None:
    """F or B of z into `message`, and the step into `y`."""
    batch, fields, classes, *size = z.shape
    image, geometry, tiling = guide.image.contiguous(), geometry_of(size, guide.radii, guide.box), _tiling(guide)
    if tiling["LONG"]:
        z = box_sum(z.flatten(0, 1), (0, guide.radii[1] if size[0] > 1 else 0, guide.radii[2]))
    matrix, columns = step.get("MATRIX", False), triton.next_power_of_2(classes)
    columns = max(16 if matrix else 1, columns)  # 1: there may be no class
    pixels = max(16 if matrix else 1, min(128, 128 * tiling["num_warps"] // columns))  # 4 numbers for each thread
    arguments = {
        "mix_ptr": None, "unary_ptr": None, "a_ptr": None, "q_ptr": None, "stride_a": 0, "stride_ml": 0,
        "stride_mk": 0, "MATRIX": False, "PRECISION": "default",
    } | step  # fmt: skip
    launch(
        _step_kernel, _grid(tiling, 1, batch), registers=None if tiling["LONG"] else 128,
        z_ptr=z, guide_ptr=image, message_ptr=message, y_ptr=y, C=classes, channels=fields - 1, **geometry, **tiling,
        stride_gb=batch_stride(image), SCALED=not adjoint, EPILOGUE=epilogue, CP=columns, PIXELS=pixels,
        CB=1 if tiling["LONG"] else _class_block(classes, 4 * tiling["K"]), **arguments,
    )  # fmt: skip


def _mixing(mix) -> dict:
    """A [], [1], [C] or [C, C] by its strides."""
    strides = (*mix.stride(), 0) if mix.ndim == 2 else (0 if len(mix) == 1 else mix.stride(0), 0)
    return {"mix_ptr": mix, "MATRIX": mix.ndim == 2, "stride_ml": strides[0], "stride_mk": strides[1]}


def guided_filter(x, guide, adjoint: bool):
    """W x for x [B, C, Z, Y, X] and a reference.guided.Guide, or W^T x, in 2 launches, 4 for long windows, 6 in 3-D."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _messages(_coefficients(x.contiguous(), guide, adjoint), guide, adjoint, "sum", y, y)
    return y


def guided_step(q, guide, mix, unary, unary_weight, precision: str, last: bool):
    """S = a U + A W Q, its softmax unless `last`; mix and unary_weight as in window_step."""
    y = torch.empty_like(unary)
    _messages(
        _coefficients(q, guide, False), guide, False, "scores" if last else "softmax", y, y, **_mixing(mix),
        unary_ptr=unary, a_ptr=unary_weight, stride_a=unary_weight.stride(0), PRECISION=precision,
    )  # fmt: skip
    return y


def guided_step_backward(g, guide, mix, q, precision: str, filtered):
    """dS = Q (dQ - <Q, dQ>) for dQ = A^T B, or dQ where q is None; B = W^T G into `filtered` if that is there."""
    y = torch.empty_like(g)
    transposed = mix.mT if mix.ndim == 2 else mix
    _messages(
        _coefficients(g, guide, True), guide, True, "weighted" if q is None else "softmax_adjoint", y,
        y if filtered is None else filtered, **_mixing(transposed), q_ptr=q, PRECISION=precision,
    )  # fmt: skip
    return y


class GuidedStep(Step):
    """The step of one guided filter: its second box carries mixing, unary and softmax."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.guide, self.precision = operators[0].guide, operators[0].precision
        self.mix = stacked(mixing, unary.shape[1])[0]

    def next(self, state):
        return self._run(state, last=False)

    def scores(self, state):
        return self._run(state, last=True)

    def _run(self, q, last: bool):
        step = self.mix, to_3d(self.unary), self.unary_weight, self.precision, last
        return guided_step(to_3d(q.contiguous()), self.guide, *step).view(q.shape)

    def backward(self, q, g, through_softmax: bool, messages: bool):
        state = to_3d(q.contiguous()) if through_softmax else None
        back = torch.empty_like(self.unary) if messages else None
        step = self.mix, state, self.precision, None if back is None else to_3d(back)
        y = guided_step_backward(to_3d(g.contiguous()), self.guide, *step).view(g.shape)
        return y, None if back is None else [back]

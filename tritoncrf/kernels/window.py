"""Windowed Gaussian messages and the fused ConvCRF step (ConvCRF paper, section 4; symbols of step.py).

    (K x)_i = sum_j k_ij x_j ,  k_ij = exp(-|f_i - f_j|^2 / 2) ,  j in a window around i, inside the image
    F_m = out_m . K_m (in_m . Q)                         in, out: per-pixel normalisation scales
    dL/df_i = sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i)        for the cotangent y of K x

K is symmetric, so the adjoint of F_m is the same sum with `in` and `out` exchanged: one kernel serves
both directions, and only its last lines, the epilogue, differ.

Form. A program owns a small tile of pixels and walks over the window's taps. For each tap it forms the
weight of every pixel once, for all classes, and adds weight times the neighbour's values, class by class.
A pixel's classes sit in one thread's registers, so that the weight is not recomputed; neighbouring
threads hold neighbouring pixels, so that every read of a class is coalesced. The weights are recomputed
in each iteration: kept, they would be k^2 numbers per pixel, for k = 11 six times the bytes of Q.

The other form, weights of a small tile as a matrix [tile, halo] times the halo's values by `tl.dot`, was
written and counted. Compiled for sm_90 (k = 11, 21 classes, 2 + 5 features, tf32x3) it issues 180 to 230
instructions per pixel and tap for tiles of 4 x 4 to 8 x 8, since 21 to 54 % of the pairs that it computes
lie in the window and a pair's weight costs more than its 21 multiply-adds. This form issues 102.

Signals, images and volumes are all [B, C, Z, Y, X] here; axes that are not there have extent 1, radius 0.
Cost O(N k^2 (D + C)), memory O(B C N).
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, launch, scale
from tritoncrf.kernels.step import finished, mixed
from tritoncrf.step import Step, contiguous, stacked, to_3d

MAX_CLASSES = 256  # of one pass: beyond, the accumulators do not fit in registers
MAX_MATRIX_CLASSES = 32  # with C x C mixing: beyond, the operands of its dot push the sums out of registers


def _tile(size, registers: int) -> tuple[tuple[int, int, int], int]:
    """Tile (z, y, x) and warps, for the registers that one pixel's sums and features take.

    A warp takes 32 pixels of a row. Up to 64 registers a pixel stays in one thread, so that its weights
    are formed once; beyond, its classes spread over the warps. No launched configuration may spill.
    """
    rows = 4 if registers <= 64 else 2 if registers <= 128 else 1
    columns = 32 if registers <= 256 else 16
    return ((1, 1, columns * rows) if size[1] == 1 else (1, rows, columns)), 4 if registers <= 128 else 8


@triton.jit
def _tile_pixels(program, NZ, NY, NX, STEP, RZ: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
                 TY: tl.constexpr, TX: tl.constexpr):  # fmt: skip
    """A program's tile: coordinates z, y [P], x [P], which pixels exist, and whether all neighbours of all do."""
    tiles_x = tl.cdiv(NX, TX)
    tiles_y = tl.cdiv(NY, TY)
    x0 = program % tiles_x * TX
    y0 = program // tiles_x % tiles_y * TY
    z = program // tiles_x // tiles_y
    o_p = tl.arange(0, TY * TX)
    y, x = y0 + o_p // TX, x0 + o_p % TX
    reach_z, reach_y, reach_x = RZ * STEP, RY * STEP, RX * STEP
    interior = (z >= reach_z) & (z + reach_z < NZ) & (y0 >= reach_y) & (y0 + TY + reach_y <= NY)
    interior = interior & (x0 >= reach_x) & (x0 + TX + reach_x <= NX)
    return z, y, x, (y < NY) & (x < NX), interior


@triton.jit
def _row(row, z, y, m_p, NZ, NY, NX, STEP, RZ: tl.constexpr, RY: tl.constexpr):
    """Under this row of the window: flat index of the start of each pixel's image row, and whether it exists."""
    KY: tl.constexpr = 2 * RY + 1
    z = z + (row // KY - RZ) * STEP
    y = y + (row % KY - RY) * STEP
    return (z * NY + y) * NX, m_p & (z >= 0) & (z < NZ) & (y >= 0) & (y < NY)


@triton.jit
def _load(ptr, o, i, inside, N, C: tl.constexpr, MASKED: tl.constexpr):
    """Channels o < C of pixels i, [P, CP], from [C, N]; 0 elsewhere. In the interior only channels are masked:
    which is known at compile time, so that neither the padding's reads nor its zeros cost an instruction."""
    channels = (o < C)[None, :]
    o = o.to(tl.int64)[None, :] * N
    if MASKED:
        return tl.load(ptr + o + i[:, None], mask=inside[:, None] & channels, other=0.0)
    else:
        return tl.where(channels, tl.load(ptr + o + i[:, None], mask=channels), 0.0)


@triton.jit
def _gaussian(difference):
    """exp(-|f_i - f_j|^2 / 2) from f_j - f_i, [P, DP] -> [P]; as 2^(-d / (2 ln 2))."""
    return tl.exp2(tl.sum(difference * difference, 1) * -0.7213475204444817)


@triton.jit
def _window_sums(
    x_ptr, f0_ptr, f1_ptr, in0_ptr, in1_ptr, z_p, y_p, x_p, m_p, f0_p, f1_p, row0, row1, o_c, o_d0, o_d1,
    stride_xc, N, NZ, NY, NX, STEP,
    C: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, RZ: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
    SELF0: tl.constexpr, SELF1: tl.constexpr, FILTERS: tl.constexpr, MERGE: tl.constexpr, UNROLL: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """row_m . K_m (in_m . x) of a tile, [P, CP] for each filter m; their sum in the first if MERGE."""
    ROWS: tl.constexpr = (2 * RZ + 1) * (2 * RY + 1)
    sum0 = tl.zeros((x_p.shape[0], o_c.shape[0]), tl.float32)
    sum1 = tl.zeros((x_p.shape[0], o_c.shape[0]), tl.float32)
    for row in range(0, ROWS):
        start, m_row = _row(row, z_p, y_p, m_p, NZ, NY, NX, STEP, RZ, RY)
        for dx in tl.range(-RX, RX + 1, loop_unroll_factor=UNROLL):  # unrolled, the reads of a row share addresses
            j = start + x_p + dx * STEP
            inside = m_row & (x_p + dx * STEP >= 0) & (x_p + dx * STEP < NX)
            other = inside & ((row != ROWS // 2) | (dx != 0))
            k0 = _gaussian(_load(f0_ptr, o_d0, j, inside, N, D0, MASKED) - f0_p) * row0 * scale(in0_ptr, j, inside)
            if MASKED or not SELF0:
                k0 = tl.where(inside if SELF0 else other, k0, 0.0)
            if FILTERS == 2:
                k1 = _gaussian(_load(f1_ptr, o_d1, j, inside, N, D1, MASKED) - f1_p) * row1
                k1 *= scale(in1_ptr, j, inside)
                if MASKED or not SELF1:
                    k1 = tl.where(inside if SELF1 else other, k1, 0.0)
                if MERGE:
                    k0 += k1
            values = _load(x_ptr, o_c, j, inside, stride_xc, C, MASKED)  # [P, CP]
            sum0 += k0[:, None] * values
            if FILTERS == 2 and not MERGE:
                sum1 += k1[:, None] * values
    return sum0, sum1


@triton.jit
def _window_kernel(
    # pointers
    x_ptr, f0_ptr, f1_ptr, in0_ptr, in1_ptr, out0_ptr, out1_ptr, mix_ptr,
    unary_ptr, a_ptr, q_ptr, y_ptr, filtered_ptr,
    # sizes
    NZ, NY, NX, STEP,
    # strides: batch and class of x, the batch of features and scales (0: one serves all), A's
    stride_xb, stride_xc, stride_f0b, stride_f1b, stride_s0b, stride_s1b, stride_a, stride_mm, stride_ml, stride_mk,
    # meta-parameters
    C: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, RZ: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
    SELF0: tl.constexpr, SELF1: tl.constexpr, FILTERS: tl.constexpr, MERGE: tl.constexpr,
    MATRIX: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, CP: tl.constexpr, DP0: tl.constexpr, DP1: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of pixels of one image."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    z_p, y_p, x_p, m_p, interior = _tile_pixels(tl.program_id(0), NZ, NY, NX, STEP, RZ, RY, RX, TY, TX)
    i_p = (z_p * NY + y_p) * NX + x_p
    o_c = tl.arange(0, CP)
    m_c = o_c < C
    x_ptr += b * stride_xb
    f0_ptr += b * stride_f0b
    f1_ptr += b * stride_f1b
    in0_ptr = None if in0_ptr is None else in0_ptr + b * stride_s0b
    in1_ptr = None if in1_ptr is None else in1_ptr + b * stride_s1b
    out0_ptr = None if out0_ptr is None else out0_ptr + b * stride_s0b
    out1_ptr = None if out1_ptr is None else out1_ptr + b * stride_s1b

    o_d0 = tl.arange(0, DP0)
    o_d1 = tl.arange(0, DP1)
    f0_p = _load(f0_ptr, o_d0, i_p, m_p, N, D0, True)
    f1_p = _load(f1_ptr, o_d1, i_p, m_p, N, D1, True)
    row0 = scale(out0_ptr, i_p, m_p)
    row1 = scale(out1_ptr, i_p, m_p)
    if MERGE:  # scalar weights make one weight of the two kernels, before it meets the classes
        row0 *= tl.load(mix_ptr)
        if FILTERS == 2:
            row1 *= tl.load(mix_ptr + stride_mm)

    if interior:
        sum0, sum1 = _window_sums(
            x_ptr, f0_ptr, f1_ptr, in0_ptr, in1_ptr, z_p, y_p, x_p, m_p, f0_p, f1_p, row0, row1, o_c, o_d0, o_d1,
            stride_xc, N, NZ, NY, NX, STEP, C, D0, D1, RZ, RY, RX, SELF0, SELF1, FILTERS, MERGE, UNROLL, MASKED=False,
        )  # fmt: skip
    else:
        sum0, sum1 = _window_sums(
            x_ptr, f0_ptr, f1_ptr, in0_ptr, in1_ptr, z_p, y_p, x_p, m_p, f0_p, f1_p, row0, row1, o_c, o_d0, o_d1,
            stride_xc, N, NZ, NY, NX, STEP, C, D0, D1, RZ, RY, RX, SELF0, SELF1, FILTERS, MERGE, UNROLL, MASKED=True,
        )  # fmt: skip

    tile = m_p[:, None] & m_c[None, :]
    o_y = (b * C + o_c[None, :]) * N + i_p[:, None]
    if filtered_ptr is not None:
        tl.store(filtered_ptr + o_y, sum0, mask=tile)
        if FILTERS == 2:
            tl.store(filtered_ptr + tl.num_programs(1).to(tl.int64) * C * N + o_y, sum1, mask=tile)

    result = sum0
    if not MERGE and EPILOGUE != "sum":
        result = mixed(sum0, mix_ptr, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
        if FILTERS == 2:
            result += mixed(sum1, mix_ptr + stride_mm, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
    result = finished(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, tile, o_c, C, EPILOGUE)
    tl.store(y_ptr + o_y, result, mask=tile)


@triton.jit
def _feature_gradient(
    x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, o_c, o_d, stride_xc, stride_yc, N, NZ, NY, NX, STEP,
    C: tl.constexpr, D: tl.constexpr, RZ: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i) of a tile, [P, DP]."""
    i_p = (z_p * NY + y_p) * NX + x_p
    x_i = _load(x_ptr, o_c, i_p, m_p, stride_xc, C, MASKED)  # [P, CP]
    y_i = _load(y_ptr, o_c, i_p, m_p, stride_yc, C, MASKED)
    f_i = _load(f_ptr, o_d, i_p, m_p, N, D, MASKED)  # [P, DP]
    gradient = tl.zeros_like(f_i)
    for row in range(0, (2 * RZ + 1) * (2 * RY + 1)):
        start, m_row = _row(row, z_p, y_p, m_p, NZ, NY, NX, STEP, RZ, RY)
        for dx in range(-RX, RX + 1):
            j = start + x_p + dx * STEP
            inside = m_row & (x_p + dx * STEP >= 0) & (x_p + dx * STEP < NX)
            x_j = _load(x_ptr, o_c, j, inside, stride_xc, C, MASKED)
            y_j = _load(y_ptr, o_c, j, inside, stride_yc, C, MASKED)
            difference = _load(f_ptr, o_d, j, inside, N, D, MASKED) - f_i
            pull = _gaussian(difference) * tl.sum(y_i * x_j + x_i * y_j, 1)  # 0 outside, where x_j and y_j are
            gradient += pull[:, None] * difference
    return gradient


@triton.jit
def _window_feature_gradient_kernel(
    # pointers
    x_ptr, y_ptr, f_ptr, gradient_ptr,
    # sizes
    NZ, NY, NX, STEP,
    # strides: batch and class of x and y, the batch of features (0: one serves all)
    stride_xb, stride_xc, stride_yb, stride_yc, stride_fb,
    # meta-parameters
    C: tl.constexpr, D: tl.constexpr, RZ: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr,
    TY: tl.constexpr, TX: tl.constexpr, CP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Each program owns the feature gradient of one tile of pixels of one image."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    z_p, y_p, x_p, m_p, interior = _tile_pixels(tl.program_id(0), NZ, NY, NX, STEP, RZ, RY, RX, TY, TX)
    i_p = (z_p * NY + y_p) * NX + x_p
    o_c = tl.arange(0, CP)
    o_d = tl.arange(0, DP)
    x_ptr += b * stride_xb
    y_ptr += b * stride_yb
    f_ptr += b * stride_fb
    if interior:
        gradient = _feature_gradient(
            x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, o_c, o_d, stride_xc, stride_yc, N, NZ, NY, NX, STEP,
            C, D, RZ, RY, RX, MASKED=False,
        )  # fmt: skip
    else:
        gradient = _feature_gradient(
            x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, o_c, o_d, stride_xc, stride_yc, N, NZ, NY, NX, STEP,
            C, D, RZ, RY, RX, MASKED=True,
        )  # fmt: skip
    tile = m_p[:, None] & (o_d < D)[None, :]
    tl.store(gradient_ptr + (b * D + o_d[None, :]) * N + i_p[:, None], gradient, mask=tile)


def _geometry(size, radii, dilation: int, tile) -> tuple[int, dict]:
    """Number of tiles of one image, and the arguments that describe image, window and tile."""
    tiles = math.prod(ceil_div(n, t) for n, t in zip(size, tile, strict=True))
    names = ("N", size), ("R", radii)
    axes = {f"{name}{axis}": v for name, values in names for axis, v in zip("ZYX", values, strict=True)}
    return tiles, {**axes, "STEP": dilation, "TY": tile[1], "TX": tile[2]}


def _flat(x):
    """x [B, C, *S] as [B, C, N] with neighbouring pixels side by side in memory."""
    x = x.flatten(2)
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _shared(x) -> int:
    """Batch stride of contiguous features or scales; 0 where one image's serve the whole batch."""
    return 0 if x is None or x.shape[0] == 1 else x.stride(0)


def _launch_window(x, y, size, radii, dilation, filters, *, precision="default", epilogue="sum", mix=None,
                   q=None, unary=None, a=None, filtered=None):  # fmt: skip
    """x, y, q, unary [B, C, N]; filters: one or two of (features, include_self, scale_in, scale_out)."""
    batch, classes, _ = x.shape
    (f0, self0, in0, out0), (f1, self1, in1, out1) = (filters * 2)[:2]
    matrix = mix is not None and mix.ndim == 3
    padded = triton.next_power_of_2(max(classes, 16 if matrix else 1))  # a matrix instruction takes 16
    d0, d1 = f0.shape[1], f1.shape[1]
    dp0, dp1 = triton.next_power_of_2(d0), triton.next_power_of_2(d1)
    merge = mix is not None and mix.ndim == 2 and mix.shape[1] == 1
    sums = 1 if merge or len(filters) == 1 else 2
    registers = (sums + matrix) * padded + 2 * (dp0 + dp1 if len(filters) == 2 else dp0)
    tile, warps = _tile(size, registers)
    tiles, geometry = _geometry(size, radii, dilation, tile)
    # Unrolled, a row's reads share addresses and are in flight together, which takes registers for each.
    light = registers <= 64 and sums == 1 and radii[2] <= 6
    strides = (*(mix.stride() if mix is not None else ()), 0, 0, 0)
    launch(
        _window_kernel, (tiles, batch), num_warps=warps,
        x_ptr=x, f0_ptr=f0, f1_ptr=f1, in0_ptr=in0, in1_ptr=in1, out0_ptr=out0, out1_ptr=out1, mix_ptr=mix,
        unary_ptr=unary, a_ptr=a, q_ptr=q, y_ptr=y, filtered_ptr=filtered,
        C=classes, **geometry, stride_xb=x.stride(0), stride_xc=x.stride(1),
        stride_f0b=_shared(f0), stride_f1b=_shared(f1),
        stride_s0b=_shared(in0 if out0 is None else out0), stride_s1b=_shared(in1 if out1 is None else out1),
        stride_a=0 if a is None else a.stride(0),
        stride_mm=strides[0], stride_ml=strides[1], stride_mk=strides[2] if matrix else 0,
        D0=d0, D1=d1, SELF0=self0, SELF1=self1, FILTERS=len(filters),
        MERGE=merge, MATRIX=matrix, EPILOGUE=epilogue, PRECISION=precision, CP=padded, DP0=dp0, DP1=dp1,
        UNROLL=2 * radii[2] + 1 if light else 1,
    )  # fmt: skip


def window_sum(x, features, radii, dilation: int, include_self: bool):
    """K x: x [B, C, Z, Y, X], features [Bf, D, Z, Y, X]; Bf is B or 1."""
    size, flat = x.shape[2:], _flat(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    filters = [(features.contiguous(), include_self, None, None)]
    if x.shape[1] <= MAX_CLASSES:
        _launch_window(flat, y.flatten(2), size, radii, dilation, filters)
        return y
    blocks = [window_sum(block, features, radii, dilation, include_self) for block in x.split(MAX_CLASSES, 1)]
    return torch.cat(blocks, 1)


def window_step(q, y, size, radii, dilation, filters, precision, mix, unary, a, last: bool):
    """One fused step into y: Q = softmax(S), or S itself if `last`; S = a U + sum_m A_m F_m(q).

    `mix` holds the A_m: [M, 1] scalars, [M, C] or [M, C, C].
    """
    epilogue = "scores" if last else "softmax"
    _launch_window(q, y, size, radii, dilation, filters, precision=precision, epilogue=epilogue, mix=mix,
                   unary=unary, a=a)  # fmt: skip


def window_step_backward(g, y, size, radii, dilation, filters, precision, mix, q, filtered):
    """One step back into y: dQ = sum_m A_m^T B_m, through the softmax that made `q` if q is given.

    `filtered` [M, B, C, N], if given, receives the B_m = K_m^T g that the gradients of the A_m are made of.
    """
    filters = [(f, include_self, scale_out, scale_in) for f, include_self, scale_in, scale_out in filters]
    if mix.ndim == 3:
        mix = mix.transpose(1, 2)
    elif filtered is not None:  # the B_m are wanted one by one: no merging of scalars
        mix = mix.expand(-1, max(2, g.shape[1]))
    epilogue = "weighted" if q is None else "softmax_adjoint"
    _launch_window(g, y, size, radii, dilation, filters, precision=precision, epilogue=epilogue, mix=mix, q=q,
                   filtered=filtered)  # fmt: skip


def window_feature_gradient(x, y, features, radii, dilation: int):
    """The gradient of <y, K x> with respect to the features, [Bf, D, Z, Y, X]."""
    if x.shape[1] > MAX_CLASSES:
        blocks = zip(x.split(MAX_CLASSES, 1), y.split(MAX_CLASSES, 1), strict=True)
        return sum(window_feature_gradient(*block, features, radii, dilation) for block in blocks)
    size, x, y, features = x.shape[2:], _flat(x), _flat(y), features.contiguous()
    batch, classes, _ = x.shape
    padded, dimensions = triton.next_power_of_2(classes), triton.next_power_of_2(features.shape[1])
    tile, warps = _tile(size, padded + 2 * dimensions)
    tiles, geometry = _geometry(size, radii, dilation, tile)
    gradient = torch.empty((batch, *features.shape[1:]), dtype=features.dtype, device=features.device)
    launch(
        _window_feature_gradient_kernel, (tiles, batch), num_warps=warps,
        x_ptr=x, y_ptr=y, f_ptr=features, gradient_ptr=gradient,
        C=classes, **geometry, stride_xb=x.stride(0), stride_xc=x.stride(1), stride_yb=y.stride(0),
        stride_yc=y.stride(1), stride_fb=_shared(features),
        D=features.shape[1], CP=padded, DP=dimensions,
    )  # fmt: skip
    return gradient if features.shape[0] == batch else gradient.sum(0, keepdim=True)


class WindowStep(Step):
    """The step of one or two windows at full resolution, in one launch."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.mix = stacked(mixing, unary.shape[1])
        self.window = to_3d(unary).shape[2:], operators[0].radii, operators[0].dilation
        self.filters = [
            (K.features.contiguous(), K.include_self, contiguous(K.scale_in), contiguous(K.scale_out))
            for K in operators
        ]
        self.precision = operators[0].precision

    def next(self, state):
        return self._run(state, last=False)

    def scores(self, state):
        return self._run(state, last=True)

    def _run(self, q, last: bool):
        y = torch.empty_like(self.unary)
        window_step(
            q.contiguous().flatten(2), y, *self.window, self.filters, self.precision, self.mix,
            self.unary.flatten(2), self.unary_weight, last,
        )  # fmt: skip
        return y

    def backward(self, q, g, through_softmax: bool, messages: bool):
        y = torch.empty_like(self.unary)
        back = y.new_empty((len(self.filters), *y.flatten(2).shape)) if messages else None
        window_step_backward(
            g.contiguous().flatten(2), y, *self.window, self.filters, self.precision, self.mix,
            q.contiguous().flatten(2) if through_softmax else None, back,
        )  # fmt: skip
        return y, None if back is None else back.view(len(self.filters), *y.shape)

"""Window sums tap by tap (equations and symbols of window.py): signals, volumes, many classes, C x C weights.

    F_m = out_m . K_m (in_m . Q) ,  S = a U + sum_m A_m F_m ,  Q = softmax(S)
    dL/df_i = sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i)        for the cotangent y of K x

Form. A program owns a small tile of pixels and walks over the window's taps. For each tap it forms the weight of every
pixel once, for all classes, and adds weight times the neighbour's values, class by class. A pixel's classes sit in one
thread's registers, so that the weight is not formed again; neighbouring threads hold neighbouring pixels, so that every
read of a class is coalesced. Products of matrices, weights [tile, halo] times the halo's values, would mostly multiply
pairs outside the window. Cost O(N (D + C)) for each tap of the window, memory O(B C N).
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, image_base, launch, product, scale, tile_and_image
from tritoncrf.kernels.epilogue import epilogue, mixed

# Registers per thread if there are few programs or many classes: by default ptxas spills some to fit one more program.
FEW_REGISTERS = 224

PIXELS = tl.constexpr(128)  # of the largest tile: a thread has one, with all its channels; of others lanes share one

# If it knew that sizes and strides are multiples of 16, Triton would give a thread neighbouring pixels, and spread each
# sum over channels across the threads of a warp.
UNALIGNED = ["NZ", "NY", "NX", "STEP", "stride_xb", "stride_xc", "stride_yb", "stride_yc", "stride_tm", "stride_a",
             "stride_mm", "stride_ml", "stride_mk"]  # fmt: skip


def _tile(size, registers: int) -> tuple[tuple[int, int, int], int]:
    """Tile (z, y, x) and warps, for the registers that one pixel's sums and features take.

    A warp takes 32 pixels of a row. Up to 64 registers a pixel stays in one thread, so that its weights are formed
    once; beyond, its classes spread over the warps. No launched configuration may spill.
    """
    rows = PIXELS.value // 32 if registers <= 64 else 2 if registers <= 128 else 1
    columns = 32 if registers <= 256 else 16
    return ((1, 1, columns * rows) if size[1] == 1 else (1, rows, columns)), 4 if registers <= 128 else 8


@triton.jit
def _tile_pixels(NZ, NY, NX, STEP, R: tl.constexpr, TYX: tl.constexpr):
    """A program's image and tile: coordinates z, y [P], x [P], which pixels exist, and whether all neighbours of all
    do."""
    tiles_x = tl.cdiv(NX, TYX[1])
    tiles_y = tl.cdiv(NY, TYX[0])
    program, b = tile_and_image(tiles_x * tiles_y * NZ)
    x0 = program % tiles_x * TYX[1]
    y0 = program // tiles_x % tiles_y * TYX[0]
    z = program // tiles_x // tiles_y
    o_p = tl.arange(0, TYX[0] * TYX[1])
    y, x = y0 + o_p // TYX[1], x0 + o_p % TYX[1]
    reach_z, reach_y, reach_x = R[0] * STEP, R[1] * STEP, R[2] * STEP
    interior = (z >= reach_z) & (z + reach_z < NZ) & (y0 >= reach_y) & (y0 + TYX[0] + reach_y <= NY)
    interior = interior & (x0 >= reach_x) & (x0 + TYX[1] + reach_x <= NX)
    return b, z, y, x, (y < NY) & (x < NX), interior


@triton.jit
def _row(row, z, y, m_p, NZ, NY, NX, STEP, R: tl.constexpr):
    """Under this row of the window: flat index of the start of each pixel's image row, and whether it exists."""
    z = z + (row // (2 * R[1] + 1) - R[0]) * STEP
    y = y + (row % (2 * R[1] + 1) - R[1]) * STEP
    z_p = z + tl.zeros_like(y)  # Triton 3.9's interpreter makes integers of a comparison of scalars, which are no mask
    return (z * NY + y) * NX, m_p & (z_p >= 0) & (z_p < NZ) & (y >= 0) & (y < NY)


@triton.jit
def _load(ptr, i, m_i, stride, C: tl.constexpr, CP: tl.constexpr, MASKED: tl.constexpr):
    """The C channels of pixels i, [P, CP], from [C, N]; 0 elsewhere. In the interior only channels are masked:
    which is known at compile time, so that neither the padding's reads nor its zeros cost an instruction."""
    o_c = tl.arange(0, CP)
    m_c = (o_c < C)[None, :]
    o = o_c.to(tl.int64)[None, :] * stride + i[:, None]
    if MASKED:
        return tl.load(ptr + o, mask=m_i[:, None] & m_c, other=0.0)
    else:
        return tl.where(m_c, tl.load(ptr + o, mask=m_c), 0.0)


@triton.jit
def _features(f_ptr, i, m_i, N, D: tl.constexpr, MASKED: tl.constexpr):
    """Features of pixels i, [P, DP]."""
    return _load(f_ptr, i, m_i, N, D, triton.next_power_of_2(D), MASKED)


@triton.jit
def _gaussian(difference):
    """exp(-|f_i - f_j|^2 / 2) from f_j - f_i, [P, DP] -> [P]; as 2^(-d / (2 ln 2))."""
    if difference.shape[0] < PIXELS:
        squares = product(difference, difference)
    else:
        squares = difference * difference
    return tl.exp2(tl.sum(squares, 1) * -0.7213475204444817)


@triton.jit
def _window_sums(
    x_ptr, f_ptrs, in_ptrs, bases, z_p, y_p, x_p, m_p, f_p, out_p, stride_xc, N, NZ, NY, NX, STEP,
    C: tl.constexpr, D: tl.constexpr, R: tl.constexpr, SELF: tl.constexpr, CP: tl.constexpr,
    MERGE: tl.constexpr, UNROLL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """out_m . K_m (in_m . x) of a tile, [P, CP] for each filter m; their sum alone if MERGE."""
    ROWS: tl.constexpr = (2 * R[0] + 1) * (2 * R[1] + 1)
    sums = ()
    for _ in tl.static_range(1 if MERGE else len(D)):
        sums = sums + (tl.zeros((x_p.shape[0], CP), tl.float32),)
    for row in range(0, ROWS):
        start, m_row = _row(row, z_p, y_p, m_p, NZ, NY, NX, STEP, R)
        for dx in tl.range(-R[2], R[2] + 1, loop_unroll_factor=UNROLL):  # unrolled, a row's reads share addresses
            j = start + x_p + dx * STEP
            m_j = m_row & (x_p + dx * STEP >= 0) & (x_p + dx * STEP < NX)
            m_other = tl.where((row != ROWS // 2) | (dx != 0), m_j, False)
            weights = ()
            for m in tl.static_range(len(D)):
                difference = _features(f_ptrs[m] + bases[m] * D[m], j, m_j, N, D[m], MASKED) - f_p[m]
                k = _gaussian(difference) * out_p[m] * scale(in_ptrs[m], j, m_j, bases[m])
                if MASKED or not SELF[m]:
                    k = tl.where(m_j if SELF[m] else m_other, k, 0.0)
                weights = weights + (k,)
            if MERGE and len(D) == 2:
                weights = (weights[0] + weights[1],)
            values = _load(x_ptr, j, m_j, stride_xc, C, CP, MASKED)  # [P, CP]
            longer = ()
            for m in tl.static_range(len(sums)):
                longer = longer + (sums[m] + weights[m][:, None] * values,)
            sums = longer
    return sums


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _window_kernel(
    # pointers; of each filter: features, scales
    x_ptr, f_ptrs, in_ptrs, out_ptrs, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, filtered_ptr,
    # sizes
    NZ, NY, NX, STEP,
    # strides: batch and class of x, filter of filtered, a's and A's
    stride_xb, stride_xc, stride_tm, stride_a, stride_mm, stride_ml, stride_mk,
    # meta-parameters; of each filter: channels, whether its features serve all images, whether a pixel sees itself
    C: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, SELF: tl.constexpr, R: tl.constexpr,
    MERGE: tl.constexpr, MATRIX: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    TYX: tl.constexpr, CP: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of pixels of one image."""
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    b, z_p, y_p, x_p, m_p, interior = _tile_pixels(NZ, NY, NX, STEP, R, TYX)
    i_p = (z_p * NY + y_p) * NX + x_p
    x_ptr += b * stride_xb
    bases = ()
    f_p = ()
    out_p = ()
    for m in tl.static_range(len(D)):
        base = image_base(b, N, SHARED[m])
        bases = bases + (base,)
        f_p = f_p + (_features(f_ptrs[m] + base * D[m], i_p, m_p, N, D[m], True),)
        out = scale(out_ptrs[m], i_p, m_p, base)
        if MERGE:  # scalar weights make one weight of the two kernels, before it meets the classes
            out *= tl.load(mix_ptr + m * stride_mm)
        out_p = out_p + (out,)

    if interior:
        sums = _window_sums(
            x_ptr, f_ptrs, in_ptrs, bases, z_p, y_p, x_p, m_p, f_p, out_p, stride_xc, N, NZ, NY, NX, STEP,
            C, D, R, SELF, CP, MERGE, UNROLL, MASKED=False,
        )  # fmt: skip
    else:
        sums = _window_sums(
            x_ptr, f_ptrs, in_ptrs, bases, z_p, y_p, x_p, m_p, f_p, out_p, stride_xc, N, NZ, NY, NX, STEP,
            C, D, R, SELF, CP, MERGE, UNROLL, MASKED=True,
        )  # fmt: skip

    o_c = tl.arange(0, CP)
    m_y = m_p[:, None] & (o_c < C)[None, :]
    o_y = (b * C + o_c[None, :]) * N + i_p[:, None]
    result = sums[0]
    for m in tl.static_range(len(sums)):
        if filtered_ptr is not None:
            tl.store(filtered_ptr + m * stride_tm + o_y, sums[m], mask=m_y)
        if not MERGE and EPILOGUE != "sum":
            weighted = mixed(sums[m], mix_ptr + m * stride_mm, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
            result = weighted if m == 0 else result + weighted
    result = epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, o_y, m_y, o_c, C, EPILOGUE)
    tl.store(y_ptr + o_y, result, mask=m_y)


@triton.jit
def _feature_gradient(
    x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, stride_xc, stride_yc, N, NZ, NY, NX, STEP,
    C: tl.constexpr, D: tl.constexpr, R: tl.constexpr, CP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i) of a tile, [P, DP]."""
    i_p = (z_p * NY + y_p) * NX + x_p
    x_i = _load(x_ptr, i_p, m_p, stride_xc, C, CP, MASKED)  # [P, CP]
    y_i = _load(y_ptr, i_p, m_p, stride_yc, C, CP, MASKED)
    f_i = _features(f_ptr, i_p, m_p, N, D, MASKED)  # [P, DP]
    gradient = tl.zeros_like(f_i)
    for row in range(0, (2 * R[0] + 1) * (2 * R[1] + 1)):
        start, m_row = _row(row, z_p, y_p, m_p, NZ, NY, NX, STEP, R)
        for dx in range(-R[2], R[2] + 1):
            j = start + x_p + dx * STEP
            m_j = m_row & (x_p + dx * STEP >= 0) & (x_p + dx * STEP < NX)
            x_j = _load(x_ptr, j, m_j, stride_xc, C, CP, MASKED)
            y_j = _load(y_ptr, j, m_j, stride_yc, C, CP, MASKED)
            difference = _features(f_ptr, j, m_j, N, D, MASKED) - f_i
            pull = _gaussian(difference) * tl.sum(y_i * x_j + x_i * y_j, 1)  # 0 outside, where x_j and y_j are
            gradient += pull[:, None] * difference
    return gradient


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def _window_feature_gradient_kernel(
    # pointers
    x_ptr, y_ptr, f_ptr, gradient_ptr,
    # sizes
    NZ, NY, NX, STEP,
    # strides: batch and class of x and y
    stride_xb, stride_xc, stride_yb, stride_yc,
    # meta-parameters; SHARED: one image's features serve all
    C: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, R: tl.constexpr, TYX: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Each program owns the feature gradient of one tile of pixels of one image."""
    N = tl.full((), 1, tl.int64) * NZ * NY * NX
    b, z_p, y_p, x_p, m_p, interior = _tile_pixels(NZ, NY, NX, STEP, R, TYX)
    i_p = (z_p * NY + y_p) * NX + x_p
    x_ptr += b * stride_xb
    y_ptr += b * stride_yb
    f_ptr += image_base(b, N, SHARED) * D
    if interior:
        gradient = _feature_gradient(
            x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, stride_xc, stride_yc, N, NZ, NY, NX, STEP, C, D, R, CP, False
        )
    else:
        gradient = _feature_gradient(
            x_ptr, y_ptr, f_ptr, z_p, y_p, x_p, m_p, stride_xc, stride_yc, N, NZ, NY, NX, STEP, C, D, R, CP, True
        )
    o_d = tl.arange(0, gradient.shape[1])
    m_g = m_p[:, None] & (o_d < D)[None, :]
    tl.store(gradient_ptr + (b * D + o_d[None, :]) * N + i_p[:, None], gradient, mask=m_g)


def _geometry(size, radii, dilation: int, tile) -> tuple[int, dict]:
    """Number of tiles of one image, and the arguments that describe image, window and tile."""
    tiles = math.prod(ceil_div(n, t) for n, t in zip(size, tile, strict=True))
    sizes = dict(zip(("NZ", "NY", "NX"), size, strict=True))
    step = min(dilation, max(size))  # taps farther apart are outside the image as well, and int32 may not hold them
    return tiles, {**sizes, "STEP": step, "R": tuple(radii), "TYX": tile[1:]}


def _flat(x):
    """x [B, C, *S] as [B, C, N] with neighbouring pixels side by side in memory."""
    x = x.flatten(2)
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


class Taps:
    """The windows of one or two filters, tap by tap: what `quads.Quads` does, for any windows, classes and channels."""

    def __init__(
        self, size, radii, dilation: int, filters, mix=None, unary_weight=None, precision="default", registers=None
    ):
        self.registers = registers
        self.window, self.filters = (size, radii, dilation), filters
        self.mix, self.unary_weight, self.precision = mix, unary_weight, precision
        self.class_step = {"LOW": None, "low_step": math.prod(size)}

    def state(self, x):
        """x [B, C, ..] as `run` reads it."""
        return _flat(x)

    def blank(self, like):
        """A state of as many images and classes as `like` [B, C, ..], to be written."""
        return like.new_empty((*like.shape[:2], math.prod(self.window[0])))

    def place(self, state):
        """A state's memory, and where pixels lie in it."""
        return state, {"ROW": self.window[0][2], "START": 0, "STEP": 1}

    def image(self, state):
        return state.contiguous()

    def next(self, state, unary):
        """The state of softmax(a U + sum_m A_m F_m)."""
        y = torch.empty_like(unary)
        self.run(state, y, "softmax", unary=unary)
        return self.state(y)

    def damped(self, new, old, share: float):
        return torch.lerp(new, old, share)

    def run(self, state, y, epilogue: str, unary=None, q=None, filtered=None, adjoint: bool = False):
        """F_m of a state [B, C, N], or of its adjoint, to y as `epilogue` says, and each by itself to `filtered`."""
        size, radii, dilation = self.window
        batch, classes, _ = state.shape
        mix, ins, outs = self.mix, [f.scale_in for f in self.filters], [f.scale_out for f in self.filters]
        matrix = mix is not None and mix.ndim == 3
        if adjoint:
            ins, outs, mix = outs, ins, mix.mT if matrix else mix
        merge = mix is not None and mix.ndim == 2 and mix.shape[1] == 1 and filtered is None
        channels = tuple(f.features.shape[1] for f in self.filters)
        padded = triton.next_power_of_2(max(classes, 16 if matrix else 1))  # a matrix instruction takes 16
        sums = 1 if merge else len(self.filters)
        registers = (sums + matrix) * padded + 2 * sum(map(triton.next_power_of_2, channels))
        tile, warps = _tile(size, registers)
        tiles, geometry = _geometry(size, radii, dilation, tile)
        # Unrolled, a row's reads share addresses and are in flight together, which takes registers for each.
        light = registers <= 64 and sums == 1 and radii[2] <= 6
        a = self.unary_weight
        strides = (0, 0, 0) if mix is None else (*mix.stride(), 0)
        launch(
            _window_kernel, (tiles * batch,), num_warps=warps, registers=self.registers,
            registers_before_90=FEW_REGISTERS if padded > 32 or matrix else None,
            x_ptr=state, f_ptrs=tuple(f.features for f in self.filters), in_ptrs=tuple(ins), out_ptrs=tuple(outs),
            mix_ptr=mix, unary_ptr=unary, a_ptr=a, q_ptr=q, y_ptr=y, filtered_ptr=filtered,
            C=classes, **geometry, stride_xb=state.stride(0), stride_xc=state.stride(1),
            stride_tm=0 if filtered is None else filtered.stride(0),
            stride_a=0 if a is None else a.stride(0),
            stride_mm=strides[0], stride_ml=0 if mix is None or mix.shape[1] == 1 else strides[1],
            stride_mk=strides[2] if matrix else 0,
            D=channels, SHARED=tuple(len(f.features) == 1 for f in self.filters),
            SELF=tuple(f.include_self for f in self.filters),
            MERGE=merge, MATRIX=matrix, EPILOGUE=epilogue, PRECISION=self.precision, CP=padded,
            UNROLL=2 * radii[2] + 1 if light else 1,
        )  # fmt: skip


def feature_gradient(x, y, features, radii, dilation: int):
    """The gradient of <y, K x>, x and y [B, C, Z, Y, X], with respect to the features, [Bf, D, Z, Y, X]."""
    size, x, y, features = x.shape[2:], _flat(x), _flat(y), features.contiguous()
    batch, classes, _ = x.shape
    padded = triton.next_power_of_2(classes)
    tile, warps = _tile(size, padded + 2 * triton.next_power_of_2(features.shape[1]))
    tiles, geometry = _geometry(size, radii, dilation, tile)
    gradient = torch.empty((batch, *features.shape[1:]), dtype=features.dtype, device=features.device)
    launch(
        _window_feature_gradient_kernel, (tiles * batch,), num_warps=warps,
        x_ptr=x, y_ptr=y, f_ptr=features, gradient_ptr=gradient,
        C=classes, **geometry, stride_xb=x.stride(0), stride_xc=x.stride(1), stride_yb=y.stride(0),
        stride_yc=y.stride(1), D=features.shape[1], SHARED=len(features) == 1, CP=padded,
    )  # fmt: skip
    return gradient if features.shape[0] == batch else gradient.sum(0, keepdim=True)

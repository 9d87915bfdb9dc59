"""The fused step around a window at low resolution (ConvCRF's `blur`; ConvCRF paper, section 4, released code).

    forward    F_m = K_m pool(in_m Q)        S = a U + sum_m A_m out_m up(F_m),  Q = softmax(S),  pool(in_m Q)
    backward   B_m = K_m up^T(out_m G)       dQ = sum_m A_m in_m pool^T(B_m),    dS = Q (dQ - <Q, dQ>)

The left column is window.py at low resolution. The right one is here: one launch forward, one backward,
and one for up^T. A_m is a scalar or a vector over the classes. pool averages over blocks of BY x BX pixels
those that are in the image; up is bilinear with half-pixel centres. Blocks tile a grid that begins
`pad` pixels before the image.

A program owns a few low-resolution pixels with all pixels of their blocks, [P, BLOCK]: neighbouring
threads hold neighbouring pixels of a block. It walks over the classes twice, once for the softmax's
normaliser (or <Q, dQ>) and once for the result, so that any number of classes fits; the second reading
comes from cache. Images and signals (one row); bytes: U, Q and M messages of 1 / (BY BX) the size.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, launch, scale
from tritoncrf.kernels.window import window_sum
from tritoncrf.step import Step, contiguous, to_3d

MAX_BLUR = 16  # of the fused step: the pixels of a larger block do not fit in registers
PROGRAM_PIXELS = 512  # of full resolution: four or so for each of 128 threads


@triton.jit
def _axis(low, offset, n, pad, B: tl.constexpr):
    """Along one axis, for the pixel at `offset` in a block: position, two low neighbours, the second's weight.

    Bilinear position (g + 1/2) / B - 1/2 for grid pixel g, clamped to the low pixels' centres.
    """
    source = tl.minimum(tl.maximum(low + (offset + 0.5) / B - 0.5, 0.0), n - 1.0)
    first = tl.floor(source).to(tl.int32)
    return low * B + offset - pad, first, tl.minimum(first + 1, n - 1), source - first


@triton.jit
def _block(LY, LX, PY, PX, NY, NX, BY: tl.constexpr, BX: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr):
    """A program's low pixels [P] and, [P, BLOCK] each: pixel index, whether in the image, low neighbours, weights."""
    i_low = tl.program_id(0) * P + tl.arange(0, P)
    m_low = i_low < LY * LX
    o = tl.arange(0, BLOCK)[None, :]
    y, y0, y1, wy = _axis((i_low // LX)[:, None], o // BX, LY, PY, BY)
    x, x0, x1, wx = _axis((i_low % LX)[:, None], o % BX, LX, PX, BX)
    inside = m_low[:, None] & (o < BY * BX) & (y >= 0) & (y < NY) & (x >= 0) & (x < NX)
    return i_low, m_low, y * NX + x, inside, y0 * LX, y1 * LX, x0, x1, wy, wx


@triton.jit
def _upsampled(f_ptr, y0, y1, x0, x1, wy, wx, inside):
    """Bilinear reading of one class at low resolution, [P, BLOCK]."""
    top = (
        tl.load(f_ptr + y0 + x0, mask=inside, other=0.0) * (1 - wx)
        + tl.load(f_ptr + y0 + x1, mask=inside, other=0.0) * wx
    )
    low = (
        tl.load(f_ptr + y1 + x0, mask=inside, other=0.0) * (1 - wx)
        + tl.load(f_ptr + y1 + x1, mask=inside, other=0.0) * wx
    )
    return top * (1 - wy) + low * wy


@triton.jit
def _score(
    c, unary_ptr, a_ptr, f0_ptr, f1_ptr, w_ptr, out0, out1, i, inside, y0, y1, x0, x1, wy, wx, N, n,
    stride_a, stride_wm, stride_wc, FILTERS: tl.constexpr,
):  # fmt: skip
    """S_c = a_c U_c + sum_m w_mc out_m up(F_m)_c, [P, BLOCK]."""
    s = tl.load(a_ptr + c * stride_a) * tl.load(unary_ptr + c * N + i, mask=inside, other=0.0)
    s += tl.load(w_ptr + c * stride_wc) * out0 * _upsampled(f0_ptr + c * n, y0, y1, x0, x1, wy, wx, inside)
    if FILTERS == 2:
        w = tl.load(w_ptr + stride_wm + c * stride_wc)
        s += w * out1 * _upsampled(f1_ptr + c * n, y0, y1, x0, x1, wy, wx, inside)
    return s


@triton.jit
def _blur_step_kernel(
    # pointers
    f_ptr, unary_ptr, a_ptr, w_ptr, in0_ptr, in1_ptr, out0_ptr, out1_ptr, y_ptr, pooled_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m and batch of the messages; the batch of scales (0: one serves all); a and A
    stride_fm, stride_s0b, stride_s1b, stride_a, stride_wm, stride_wc,
    # meta-parameters
    BY: tl.constexpr, BX: tl.constexpr, FILTERS: tl.constexpr, LAST: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of P low-resolution pixels of one image, all classes."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NY * NX
    n = tl.full((), 1, tl.int64) * LY * LX
    i_low, m_low, i, inside, y0, y1, x0, x1, wy, wx = _block(LY, LX, PY, PX, NY, NX, BY, BX, P, BLOCK)
    unary_ptr += b * C * N
    y_ptr += b * C * N
    f0_ptr = f_ptr + b * C * n
    f1_ptr = f0_ptr + stride_fm
    out0 = scale(out0_ptr, b * stride_s0b + i, inside)
    out1 = scale(out1_ptr, b * stride_s1b + i, inside)

    if LAST:
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f0_ptr, f1_ptr, w_ptr, out0, out1, i, inside, y0, y1, x0, x1, wy, wx,
                       N, n, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            tl.store(y_ptr + c * N + i, s, mask=inside)
    else:
        top = tl.full((P, BLOCK), float("-inf"), tl.float32)
        total = tl.zeros((P, BLOCK), tl.float32)
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f0_ptr, f1_ptr, w_ptr, out0, out1, i, inside, y0, y1, x0, x1, wy, wx,
                       N, n, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            higher = tl.maximum(top, s)
            total = total * tl.exp(top - higher) + tl.exp(s - higher)
            top = higher
        in0 = scale(in0_ptr, b * stride_s0b + i, inside)
        in1 = scale(in1_ptr, b * stride_s1b + i, inside)
        count = tl.maximum(tl.sum(inside.to(tl.float32), 1), 1.0)  # 0 only beyond the last low pixel
        pooled_ptr += b * C * n + i_low
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f0_ptr, f1_ptr, w_ptr, out0, out1, i, inside, y0, y1, x0, x1, wy, wx,
                       N, n, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            q = tl.where(inside, tl.exp(s - top) / total, 0.0)
            tl.store(y_ptr + c * N + i, q, mask=inside)
            tl.store(pooled_ptr + c * n, tl.sum(q * in0, 1) / count, mask=m_low)
            if FILTERS == 2:
                tl.store(pooled_ptr + stride_fm + c * n, tl.sum(q * in1, 1) / count, mask=m_low)


@triton.jit
def _back(c, back0_ptr, back1_ptr, w_ptr, in0, in1, m_low, n, stride_wm, stride_wc, FILTERS: tl.constexpr):
    """dQ_c = sum_m w_mc in_m B_mc, where B is the block's value over its count already."""
    dq = tl.load(w_ptr + c * stride_wc) * in0 * tl.load(back0_ptr + c * n, mask=m_low, other=0.0)[:, None]
    if FILTERS == 2:
        w = tl.load(w_ptr + stride_wm + c * stride_wc)
        dq += w * in1 * tl.load(back1_ptr + c * n, mask=m_low, other=0.0)[:, None]
    return dq


@triton.jit
def _blur_step_backward_kernel(
    # pointers
    back_ptr, q_ptr, w_ptr, in0_ptr, in1_ptr, y_ptr, filtered_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m of back; of filtered; the batch of scales (0: one serves all); A
    stride_bm, stride_tm, stride_s0b, stride_s1b, stride_wm, stride_wc,
    # meta-parameters
    BY: tl.constexpr, BX: tl.constexpr, FILTERS: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of P low-resolution pixels of one image, all classes."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NY * NX
    n = tl.full((), 1, tl.int64) * LY * LX
    i_low, m_low, i, inside, y0, y1, x0, x1, wy, wx = _block(LY, LX, PY, PX, NY, NX, BY, BX, P, BLOCK)
    count = tl.maximum(tl.sum(inside.to(tl.float32), 1), 1.0)[:, None]
    in0 = scale(in0_ptr, b * stride_s0b + i, inside) / count
    in1 = scale(in1_ptr, b * stride_s1b + i, inside) / count
    back0_ptr = back_ptr + b * C * n + i_low
    back1_ptr = back0_ptr + stride_bm
    image = b * C * N + i

    product = tl.zeros((P, BLOCK), tl.float32)  # <Q, dQ>
    if q_ptr is not None:
        for c in range(0, C):
            dq = _back(c, back0_ptr, back1_ptr, w_ptr, in0, in1, m_low, n, stride_wm, stride_wc, FILTERS)
            product += dq * tl.load(q_ptr + image + c * N, mask=inside, other=0.0)
    for c in range(0, C):
        dq = _back(c, back0_ptr, back1_ptr, w_ptr, in0, in1, m_low, n, stride_wm, stride_wc, FILTERS)
        if q_ptr is not None:
            dq = tl.load(q_ptr + image + c * N, mask=inside, other=0.0) * (dq - product)
        tl.store(y_ptr + image + c * N, dq, mask=inside)
        if filtered_ptr is not None:
            b0 = in0 * tl.load(back0_ptr + c * n, mask=m_low, other=0.0)[:, None]
            tl.store(filtered_ptr + image + c * N, b0 + tl.zeros_like(product), mask=inside)
            if FILTERS == 2:
                b1 = in1 * tl.load(back1_ptr + c * n, mask=m_low, other=0.0)[:, None]
                tl.store(filtered_ptr + stride_tm + image + c * N, b1 + tl.zeros_like(product), mask=inside)


@triton.jit
def _reach(low, offset, n, pad, B: tl.constexpr):
    """Along one axis: the offset-th pixel that reads from `low`, and up's weight for that pair."""
    g = low * B - B // 2 + offset
    source = tl.minimum(tl.maximum((g + 0.5) / B - 0.5, 0.0), n - 1.0)
    return g - pad, tl.maximum(1.0 - tl.abs(source - low), 0.0)


@triton.jit
def _upsample_adjoint_kernel(
    # pointers
    g_ptr, out0_ptr, out1_ptr, y_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m of y; the batch of scales (0: one serves all)
    stride_ym, stride_s0b, stride_s1b,
    # meta-parameters: WY, WX pixels read from one low pixel, 2 B of a blurred axis, 1 of another
    BY: tl.constexpr, BX: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr,
    FILTERS: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns P low-resolution pixels of one image, all classes: y_m = up^T(out_m g)."""
    b = tl.program_id(1).to(tl.int64)
    N = tl.full((), 1, tl.int64) * NY * NX
    n = tl.full((), 1, tl.int64) * LY * LX
    i_low = tl.program_id(0) * P + tl.arange(0, P)
    m_low = i_low < LY * LX
    o = tl.arange(0, BLOCK)[None, :]
    y, wy = _reach((i_low // LX)[:, None], o // WX, LY, PY, BY)
    x, wx = _reach((i_low % LX)[:, None], o % WX, LX, PX, BX)
    inside = m_low[:, None] & (o < WY * WX) & (y >= 0) & (y < NY) & (x >= 0) & (x < NX)
    i = y * NX + x
    weight0 = wy * wx * scale(out0_ptr, b * stride_s0b + i, inside)
    weight1 = wy * wx * scale(out1_ptr, b * stride_s1b + i, inside)
    g_ptr += b * C * N
    y_ptr += b * C * n + i_low
    for c in range(0, C):
        g = tl.load(g_ptr + c * N + i, mask=inside, other=0.0)
        tl.store(y_ptr + c * n, tl.sum(g * weight0, 1), mask=m_low)
        if FILTERS == 2:
            tl.store(y_ptr + stride_ym + c * n, tl.sum(g * weight1, 1), mask=m_low)


def _launch_blur(kernel, block: int, batch: int, size, low, pad, blur, scales, **arguments):
    """Launch over low pixels: size, low, pad, blur are (y, x); scales two [Bs, 1, *S] or None, by kernel name."""
    padded = triton.next_power_of_2(block)
    pixels = max(1, PROGRAM_PIXELS // padded)
    given = {f"{name}{m}_ptr": s for name, pair in scales.items() for m, s in enumerate(pair)}
    pairs = [[pair[m] for pair in scales.values() if pair[m] is not None] for m in (0, 1)]
    strides = {f"stride_s{m}b": s[0].stride(0) if s and s[0].shape[0] > 1 else 0 for m, s in enumerate(pairs)}
    launch(
        kernel, (ceil_div(low[0] * low[1], pixels), batch), num_warps=4, **arguments, **given, **strides,
        LY=low[0], LX=low[1], PY=pad[0], PX=pad[1], NY=size[0], NX=size[1], BY=blur[0], BX=blur[1],
        P=pixels, BLOCK=padded,
    )  # fmt: skip


def blur_step(messages, unary, a, weights, scales_in, scales_out, grid, y, pooled):
    """S into y if `pooled` is None, else Q into y and pool(in_m Q) into pooled.

    messages, pooled [M, B, C, *low]; unary, y [B, C, *S]; weights [M, C]; scales: one or None per filter;
    grid: (size, low, pad, blur), each (y, x).
    """
    blur = grid[3]
    _launch_blur(
        _blur_step_kernel, blur[0] * blur[1], unary.shape[0], *grid, {"in": _two(scales_in), "out": _two(scales_out)},
        f_ptr=messages, unary_ptr=unary, a_ptr=a, w_ptr=weights, y_ptr=y, pooled_ptr=pooled, C=unary.shape[1],
        stride_fm=messages.stride(0), stride_a=a.stride(0), stride_wm=weights.stride(0), stride_wc=weights.stride(1),
        FILTERS=messages.shape[0], LAST=pooled is None,
    )  # fmt: skip


def blur_step_backward(back, q, weights, scales_in, grid, y, filtered):
    """dQ into y, through the softmax that made `q` if given; the B_m = in_m pool^T(back) into `filtered` if given."""
    blur = grid[3]
    _launch_blur(
        _blur_step_backward_kernel, blur[0] * blur[1], y.shape[0], *grid, {"in": _two(scales_in)},
        back_ptr=back, q_ptr=q, w_ptr=weights, y_ptr=y, filtered_ptr=filtered, C=y.shape[1],
        stride_bm=back.stride(0), stride_tm=0 if filtered is None else filtered.stride(0),
        stride_wm=weights.stride(0), stride_wc=weights.stride(1), FILTERS=back.shape[0],
    )  # fmt: skip


def upsample_adjoint(g, scales_out, grid, y):
    """up^T(out_m g) into y [M, B, C, *low]."""
    blur = grid[3]
    reach = [2 * b if b > 1 else 1 for b in blur]
    _launch_blur(
        _upsample_adjoint_kernel, reach[0] * reach[1], g.shape[0], *grid, {"out": _two(scales_out)},
        g_ptr=g, y_ptr=y, C=g.shape[1], stride_ym=y.stride(0), WY=reach[0], WX=reach[1], FILTERS=y.shape[0],
    )  # fmt: skip


def _two(scales):
    return (*scales, None)[:2]


class BlurStep(Step):
    """The step of one or two blurred windows of an image, in two launches: the window at low resolution, both filters
    as one batch; then upsampling, step and the pooling of the new Q. A state is Q and the pooled Q, [M, B, C, *low]."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.weights = torch.stack([a.expand(unary.shape[1]) for a in mixing])
        self.scales_in = [contiguous(K.scale_in) for K in operators]
        self.scales_out = [contiguous(K.scale_out) for K in operators]
        self.grid = operators[0].grid(to_3d(unary).shape[2:])
        self.window = operators[0].radii, operators[0].dilation, operators[0].include_self
        # Filters side by side in the batch need equally many features: a channel of zeros changes no distance.
        widest = max(K.features.shape[1] for K in operators)
        self.features = torch.cat([
            torch.nn.functional.pad(K.features, (0, 0) * 3 + (0, widest - K.features.shape[1])).expand(
                len(unary), *(-1,) * 4
            )
            for K in operators
        ])  # fmt: skip

    def start(self, q):
        return q, torch.stack([K.enter(q) for K in self.operators])

    def next(self, state):
        _, pooled = state
        return self._run(pooled, torch.empty_like(pooled))

    def scores(self, state):
        return self._run(state[1], None)[0]

    def probabilities(self, state):
        return state[0].contiguous()

    def _run(self, pooled, next_pooled):
        y = torch.empty_like(self.unary)
        blur_step(
            self._sum(pooled), self.unary, self.unary_weight, self.weights, self.scales_in, self.scales_out, self.grid,
            y, next_pooled,
        )  # fmt: skip
        return y, next_pooled

    def backward(self, q, g, through_softmax: bool, messages: bool):
        filters, low = len(self.operators), self.features.shape[2:]
        entered = g.new_empty((filters, *g.shape[:2], *low))
        upsample_adjoint(g.contiguous(), self.scales_out, self.grid, entered)
        y = torch.empty_like(self.unary)
        back = g.new_empty((filters, *g.shape)) if messages else None
        q = q.contiguous() if through_softmax else None
        blur_step_backward(self._sum(entered), q, self.weights, self.scales_in, self.grid, y, back)
        return y, back

    def _sum(self, x):
        """K_m x_m for x [M, B, C, *low]."""
        return window_sum(x.flatten(0, 1), self.features, *self.window).view(x.shape)

"""The fused step around a window at low resolution (ConvCRF's `blur`; ConvCRF paper, section 4, released code; symbols
of docs/symbols.md).

    forward    F_m = K_m pool(in_m Q)        S = a U + sum_m A_m out_m up(F_m),  Q = softmax(S),  pool(in_m Q)
    backward   G_m = K_m up^T(out_m G)       dQ = sum_m A_m in_m pool^T(G_m),    dS = Q (dQ - <Q, dQ>)

The left column is window.py at low resolution. The right one is here: one launch forward, one backward, and one for
up^T. A_m is a scalar or a vector over the classes. pool averages over blocks of BY x BX pixels those that are in the
image; up is bilinear with half-pixel centres. Blocks tile a grid that begins `pad` pixels before the image.

A program owns P low-resolution pixels with all pixels of their blocks, [P, BLOCK]: neighbouring threads hold
neighbouring pixels of a block. It walks over the classes twice, once for the softmax's normaliser (or <Q, dQ>) and
once for the result, so that any number of classes fits; the second reading comes from cache. Images and signals (one
row); bytes: U, Q and M messages of 1 / (BY BX) the size.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import OF_SIZE, ceil_div, image_base, launch, product, scale, tile_and_image
from tritoncrf.kernels.window import window_sum
from tritoncrf.step import Step, contiguous, to_3d

MAX_BLUR = 16  # of the fused step: the pixels of a larger block do not fit in registers
UNALIGNED = OF_SIZE | {"do_not_specialize_on_alignment": [*OF_SIZE["do_not_specialize_on_alignment"], "NX"]}
PROGRAM_PIXELS = 512  # of full resolution: four or so for each of 128 threads


@triton.jit
def _axis(low, offset, n, pad, BLUR: tl.constexpr):
    """Along one axis, for the pixel at `offset` in a block: position, two low neighbours, the second's weight.

    Bilinear position (g + 1/2) / BLUR - 1/2 for grid pixel g, clamped to the low pixels' centres.
    """
    source = tl.minimum(tl.maximum(low + (offset + 0.5) / BLUR - 0.5, 0.0), n - 1.0)
    first = tl.floor(source).to(tl.int32)
    return low * BLUR + offset - pad, first, tl.minimum(first + 1, n - 1), source - first


@triton.jit
def _row_sizes(NX, LX, PX, ALIGNED: tl.constexpr):
    """The same numbers; if ALIGNED the compiler sees that rows of 16 pixels begin where vectors do."""
    if ALIGNED:
        return NX // 16 * 16, LX // 16 * 16, 0
    else:
        return NX, LX, PX


@triton.jit
def _block(tile, LY, LX, PY, PX, NY, NX, BY: tl.constexpr, BX: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr):
    """A program's low pixels [P], which exist, and [P, BLOCK] each: pixels, which are in the image, how up reads
    them."""
    low = tile * P + tl.arange(0, P)
    m_low = low < LY * LX
    o = tl.arange(0, BLOCK)[None, :]
    y, y0, y1, wy = _axis((low // LX)[:, None], o // BX, LY, PY, BY)
    x, x0, x1, wx = _axis((low % LX)[:, None], o % BX, LX, PX, BX)
    m_i = m_low[:, None] & (o < BY * BX) & (y >= 0) & (y < NY) & (x >= 0) & (x < NX)
    return low, m_low, y * NX + x, m_i, (y0 * LX, y1 * LX, x0, x1, wy, wx)


@triton.jit
def _upsampled(f_ptr, reading, m_i):
    """Bilinear reading of one class at low resolution, [P, BLOCK]."""
    y0, y1, x0, x1, wy, wx = reading
    top = tl.load(f_ptr + y0 + x0, mask=m_i, other=0.0) * (1 - wx) + tl.load(f_ptr + y0 + x1, mask=m_i, other=0.0) * wx
    low = tl.load(f_ptr + y1 + x0, mask=m_i, other=0.0) * (1 - wx) + tl.load(f_ptr + y1 + x1, mask=m_i, other=0.0) * wx
    return top * (1 - wy) + low * wy


@triton.jit
def _scales(scale_ptrs, b, i, m_i, N, SHARED: tl.constexpr):
    """Of each filter at a program's pixels, [P, BLOCK]."""
    scales = ()
    for m in tl.static_range(len(SHARED)):
        scales = scales + (scale(scale_ptrs[m], i, m_i, image_base(b, N, SHARED[m])) + tl.zeros(i.shape, tl.float32),)
    return scales


@triton.jit
def _score(
    c, unary_ptr, a_ptr, f_ptr, w_ptr, out, i, m_i, reading, N, N_LOW,
    stride_fm, stride_a, stride_wm, stride_wc, FILTERS: tl.constexpr,
):  # fmt: skip
    """S_c = a_c U_c + sum_m w_mc out_m up(F_m)_c, [P, BLOCK]."""
    s = tl.load(a_ptr + c * stride_a) * tl.load(unary_ptr + c * N + i, mask=m_i, other=0.0)
    for m in tl.static_range(FILTERS):
        w = tl.load(w_ptr + m * stride_wm + c * stride_wc)
        s += w * out[m] * _upsampled(f_ptr + m * stride_fm + c * N_LOW, reading, m_i)
    return s


@triton.jit(**UNALIGNED)
def _blur_step_kernel(
    # pointers; of each filter: scales
    f_ptr, unary_ptr, a_ptr, w_ptr, in_ptrs, out_ptrs, y_ptr, pooled_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m of the messages; a and A
    stride_fm, stride_a, stride_wm, stride_wc,
    # meta-parameters; of each filter: whether one image's scales serve all
    BY: tl.constexpr, BX: tl.constexpr, ALIGNED: tl.constexpr, SHARED: tl.constexpr, LAST: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of P low-resolution pixels of one image, all classes."""
    NX, LX, PX = _row_sizes(NX, LX, PX, ALIGNED)
    tile, b = tile_and_image(tl.cdiv(LY * LX, P))
    N = tl.full((), 1, tl.int64) * NY * NX
    N_LOW = tl.full((), 1, tl.int64) * LY * LX
    FILTERS: tl.constexpr = len(SHARED)
    low, m_low, i, m_i, reading = _block(tile, LY, LX, PY, PX, NY, NX, BY, BX, P, BLOCK)
    unary_ptr += b * C * N
    y_ptr += b * C * N
    f_ptr += b * C * N_LOW
    out = _scales(out_ptrs, b, i, m_i, N, SHARED)

    if LAST:
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f_ptr, w_ptr, out, i, m_i, reading, N, N_LOW,
                       stride_fm, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            tl.store(y_ptr + c * N + i, s, mask=m_i)
    else:
        top = tl.full((P, BLOCK), float("-inf"), tl.float32)
        total = tl.zeros((P, BLOCK), tl.float32)
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f_ptr, w_ptr, out, i, m_i, reading, N, N_LOW,
                       stride_fm, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            higher = tl.maximum(top, s)
            total = total * tl.exp(top - higher) + tl.exp(s - higher)
            top = higher
        scales = _scales(in_ptrs, b, i, m_i, N, SHARED)
        count = tl.maximum(tl.sum(m_i.to(tl.float32), 1), 1.0)  # 0 only beyond the last low pixel
        pooled_ptr += b * C * N_LOW + low
        for c in range(0, C):
            s = _score(c, unary_ptr, a_ptr, f_ptr, w_ptr, out, i, m_i, reading, N, N_LOW,
                       stride_fm, stride_a, stride_wm, stride_wc, FILTERS)  # fmt: skip
            q = tl.where(m_i, tl.exp(s - top) / total, 0.0)
            tl.store(y_ptr + c * N + i, q, mask=m_i)
            for m in tl.static_range(FILTERS):
                mean = tl.sum(product(q, scales[m]), 1) / count
                tl.store(pooled_ptr + m * stride_fm + c * N_LOW, mean, mask=m_low)


@triton.jit
def _back(c, back_ptr, w_ptr, scales, m_low, N_LOW, stride_bm, stride_wm, stride_wc, FILTERS: tl.constexpr):
    """dQ_c = sum_m w_mc in_m G_mc, and the in_m G_mc, where the scales are over the block's count already."""
    dq = tl.zeros(scales[0].shape, tl.float32)
    back = ()
    for m in tl.static_range(FILTERS):
        g = scales[m] * tl.load(back_ptr + m * stride_bm + c * N_LOW, mask=m_low, other=0.0)[:, None]
        dq += tl.load(w_ptr + m * stride_wm + c * stride_wc) * g
        back = back + (g,)
    return dq, back


@triton.jit(**UNALIGNED)
def _blur_step_backward_kernel(
    # pointers; of each filter: scales
    back_ptr, q_ptr, w_ptr, in_ptrs, y_ptr, filtered_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m of back and of filtered; A
    stride_bm, stride_tm, stride_wm, stride_wc,
    # meta-parameters; of each filter: whether one image's scales serve all
    BY: tl.constexpr, BX: tl.constexpr, ALIGNED: tl.constexpr, SHARED: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of P low-resolution pixels of one image, all classes."""
    NX, LX, PX = _row_sizes(NX, LX, PX, ALIGNED)
    tile, b = tile_and_image(tl.cdiv(LY * LX, P))
    N = tl.full((), 1, tl.int64) * NY * NX
    N_LOW = tl.full((), 1, tl.int64) * LY * LX
    FILTERS: tl.constexpr = len(SHARED)
    low, m_low, i, m_i, _ = _block(tile, LY, LX, PY, PX, NY, NX, BY, BX, P, BLOCK)
    count = tl.maximum(tl.sum(m_i.to(tl.float32), 1), 1.0)[:, None]
    given = _scales(in_ptrs, b, i, m_i, N, SHARED)
    scales = ()
    for m in tl.static_range(FILTERS):
        scales = scales + (given[m] / count,)
    back_ptr += b * C * N_LOW + low
    image = b * C * N + i

    along = tl.zeros((P, BLOCK), tl.float32)  # <Q, dQ>
    if q_ptr is not None:
        for c in range(0, C):
            dq = _back(c, back_ptr, w_ptr, scales, m_low, N_LOW, stride_bm, stride_wm, stride_wc, FILTERS)[0]
            along += dq * tl.load(q_ptr + image + c * N, mask=m_i, other=0.0)
    for c in range(0, C):
        dq, back = _back(c, back_ptr, w_ptr, scales, m_low, N_LOW, stride_bm, stride_wm, stride_wc, FILTERS)
        if q_ptr is not None:
            dq = tl.load(q_ptr + image + c * N, mask=m_i, other=0.0) * (dq - along)
        tl.store(y_ptr + image + c * N, dq, mask=m_i)
        if filtered_ptr is not None:
            for m in tl.static_range(FILTERS):
                tl.store(filtered_ptr + m * stride_tm + image + c * N, back[m], mask=m_i)


@triton.jit
def _reach(low, offset, n, pad, BLUR: tl.constexpr):
    """Along one axis: the offset-th pixel that reads from `low`, and up's weight for that pair."""
    g = low * BLUR - BLUR // 2 + offset
    source = tl.minimum(tl.maximum((g + 0.5) / BLUR - 0.5, 0.0), n - 1.0)
    return g - pad, tl.maximum(1.0 - tl.abs(source - low), 0.0)


@triton.jit(**UNALIGNED)
def _upsample_adjoint_kernel(
    # pointers; of each filter: scales
    g_ptr, out_ptrs, y_ptr,
    # sizes
    C, LY, LX, PY, PX, NY, NX,
    # strides: filter m of y
    stride_ym,
    # meta-parameters: WY, WX pixels read from one low pixel, 2 B of a blurred axis, 1 of another; as above
    BY: tl.constexpr, BX: tl.constexpr, WY: tl.constexpr, WX: tl.constexpr,
    ALIGNED: tl.constexpr, SHARED: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program owns P low-resolution pixels of one image, all classes: y_m = up^T(out_m g)."""
    NX, LX, PX = _row_sizes(NX, LX, PX, ALIGNED)
    tile, b = tile_and_image(tl.cdiv(LY * LX, P))
    N = tl.full((), 1, tl.int64) * NY * NX
    N_LOW = tl.full((), 1, tl.int64) * LY * LX
    low = tile * P + tl.arange(0, P)
    m_low = low < LY * LX
    o = tl.arange(0, BLOCK)[None, :]
    y, wy = _reach((low // LX)[:, None], o // WX, LY, PY, BY)
    x, wx = _reach((low % LX)[:, None], o % WX, LX, PX, BX)
    m_i = m_low[:, None] & (o < WY * WX) & (y >= 0) & (y < NY) & (x >= 0) & (x < NX)
    i = y * NX + x
    given = _scales(out_ptrs, b, i, m_i, N, SHARED)
    weights = ()
    for m in tl.static_range(len(SHARED)):
        weights = weights + (wy * wx * given[m],)
    g_ptr += b * C * N
    y_ptr += b * C * N_LOW + low
    for c in range(0, C):
        g = tl.load(g_ptr + c * N + i, mask=m_i, other=0.0)
        for m in tl.static_range(len(SHARED)):
            tl.store(y_ptr + m * stride_ym + c * N_LOW, tl.sum(product(g, weights[m]), 1), mask=m_low)


class BlurStep(Step):
    """The step of one or two blurred windows of an image, in two launches: the window at low resolution, both filters
    as one batch; then upsampling, step and the pooling of the new Q. A state is Q and the pooled Q, [M, B, C, *low]."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        self.weights = torch.stack([a.expand(unary.shape[1]) for a in mixing])  # [M, C]
        self.scales_in = [contiguous(K.scale_in) for K in operators]
        self.scales_out = [contiguous(K.scale_out) for K in operators]
        self.grid, self.factors = operators[0].grid(to_3d(unary).shape[2:]), operators[0].factors[1:]
        self.window = operators[0].radii, operators[0].dilation, operators[0].include_self
        # Filters side by side in the batch need equally many features: a channel of zeros changes no distance.
        widest = max(K.features.shape[1] for K in operators)
        wide = [torch.nn.functional.pad(K.features, (0, 0) * 3 + (0, widest - K.features.shape[1])) for K in operators]
        self.features = torch.cat([f.expand(len(unary), *f.shape[1:]) for f in wide])

    def start(self, q):
        return q, torch.stack([K.enter(q) for K in self.operators])

    def next(self, state):
        _, pooled = state
        return self._run(pooled, torch.empty_like(pooled))

    def damped(self, new, old, share):
        return tuple(torch.lerp(a, b, share) for a, b in zip(new, old))

    def scores(self, state):
        return self._run(state[1], None)[0]

    def probabilities(self, state):
        return state[0].contiguous()

    def _run(self, pooled, next_pooled):
        y, messages = torch.empty_like(self.unary), self._sum(pooled)
        self._launch(
            _blur_step_kernel, math.prod(self.factors), {"in_ptrs": self.scales_in, "out_ptrs": self.scales_out},
            f_ptr=messages, unary_ptr=self.unary, a_ptr=self.unary_weight, w_ptr=self.weights, y_ptr=y,
            pooled_ptr=next_pooled, stride_fm=messages.stride(0), stride_a=self.unary_weight.stride(0),
            **self._weight_strides(), LAST=next_pooled is None,
        )  # fmt: skip
        return y, next_pooled

    def backward(self, q, g, through_softmax: bool, messages: bool):
        entered = g.new_empty((len(self.operators), *g.shape[:2], *self.features.shape[2:]))  # up^T(out_m g)
        reach = [2 * b if b > 1 else 1 for b in self.factors]
        self._launch(
            _upsample_adjoint_kernel, math.prod(reach), {"out_ptrs": self.scales_out}, g_ptr=g.contiguous(),
            y_ptr=entered, stride_ym=entered.stride(0), WY=reach[0], WX=reach[1],
        )  # fmt: skip
        y, back = torch.empty_like(self.unary), self._sum(entered)
        filtered = g.new_empty((len(self.operators), *g.shape)) if messages else None
        self._launch(
            _blur_step_backward_kernel, math.prod(self.factors), {"in_ptrs": self.scales_in},
            back_ptr=back, q_ptr=q.contiguous() if through_softmax else None, w_ptr=self.weights, y_ptr=y,
            filtered_ptr=filtered, stride_bm=back.stride(0), stride_tm=0 if filtered is None else filtered.stride(0),
            **self._weight_strides(),
        )  # fmt: skip
        return y, filtered

    def _weight_strides(self):
        return {"stride_wm": self.weights.stride(0), "stride_wc": self.weights.stride(1)}

    def _sum(self, x):
        """K_m x_m for x [M, B, C, *low]."""
        return window_sum(x.flatten(0, 1), self.features, *self.window).view(x.shape)

    def _launch(self, kernel, block: int, scales, **arguments):
        """Over low pixels, with `block` pixels of each; scales [Bs, 1, *S] or None of each filter, by name."""
        size, low, pad = self.grid
        padded = triton.next_power_of_2(block)
        pixels = max(1, PROGRAM_PIXELS // padded)
        filters = zip(*scales.values(), strict=True)
        shared = tuple(all(s is None or len(s) == 1 for s in of_filter) for of_filter in filters)
        batch, classes = self.unary.shape[:2]
        launch(
            kernel, (ceil_div(low[0] * low[1], pixels) * batch,), num_warps=4, **arguments,
            **{name: tuple(given) for name, given in scales.items()}, C=classes, LY=low[0], LX=low[1], PY=pad[0],
            PX=pad[1], NY=size[0], NX=size[1], BY=self.factors[0], BX=self.factors[1],
            ALIGNED=size[1] % 16 == low[1] % 16 == pad[1] == 0, SHARED=shared, P=pixels,
            BLOCK=padded,
        )  # fmt: skip

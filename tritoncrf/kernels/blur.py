"""The fused step around a window at low resolution (ConvCRF's `blur`; ConvCRF paper, section 4, released code; symbols
of docs/symbols.md).

    forward    H_m = A_m K_m pool(in_m Q)       S = a U + sum_m out_m up(H_m) ,  Q = softmax(S) ,  pool(in_m Q)
    backward   G_m = K_m up^T(out_m G)          dQ = sum_m in_m pool^T(A_m^T G_m) ,  dS = Q (dQ - <Q, dQ>)

The left column is window.py and quads.py at low resolution. The right one is here: one launch forward, one backward; up^T
stands in blur_adjoint.py. pool averages over blocks of BY x BX pixels those that are in the image; up is bilinear with
half-pixel centres. Blocks tile a grid that begins `pad` pixels before the image.

A_m acts on classes, pool and up on pixels: they exchange, and all A_m act at low resolution. Filters without scales
share pool(Q) and are one sum there. Of two filters of which one has scales each has its own pooled Q, times its A_m, a
number for each class; both are one batch of the window. Only those with a scale `out` are upsampled by themselves.

Form. A thread owns a piece, at most 4 pixels of a row of a block, with all its classes: what up reads there are three
columns of two rows, interpolated first along y, and pieces of a block meet once to be pooled. Classes come in blocks of
powers of two; where they do not fit in registers they are walked over twice, the second reading coming from cache.
Images and signals (one row); bytes: U, Q (in training) and messages of 1 / (BY BX) the size.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.blur_adjoint import place, upsample_adjoint
from tritoncrf.kernels.common import ceil_div, image_base, launch, scale, tile_and_image
from tritoncrf.kernels.planes import WindowFilter, ladder
from tritoncrf.kernels.quads import block, blocks, first_class
from tritoncrf.kernels.window import form_of
from tritoncrf.step import Step, contiguous, mix, outer, stacked, to_3d

MAX_BLUR = 16  # of the fused step: the pieces of a larger block are more than a program's threads
MAX_HELD = 96  # numbers of all classes of a piece that a thread holds

WARPS = 4
PIECES = tl.constexpr(32 * WARPS)  # of a program, one a thread
LOG2E = tl.constexpr(1.4426950408889634)

# Nothing is known of these: a new size makes no new binary, and no thread gets two pieces.
UNKNOWN = [
    "LY",
    "LX",
    "PY",
    "PX",
    "NY",
    "NX",
    "ZERO",
    "ROW",
    "START",
    "STEP",
    "stride_hm",
    "stride_gm",
    "stride_pm",
    "stride_sm",
]


@triton.constexpr_function
def of_row(BX, W):
    """Pieces of a block's row, a power of two."""
    return triton.next_power_of_2(-(-BX // W))


@triton.jit
def _by_piece(i, ZERO):
    """i, so that lanes of a warp hold pieces and a thread all their classes and pixels: contiguous, in Triton's eyes, but
    of no known alignment, and thus in no vectors."""
    return tl.max_contiguous(i + ZERO, (1, 2, 1))


@triton.jit
def _classes(C: tl.constexpr, n: tl.constexpr):
    """The n-th block of classes, [CB, 1, 1]."""
    return (first_class(C, n) + tl.arange(0, block(C, n)).to(tl.int64))[:, None, None]


@triton.jit
def _block(
    NY, NX, LY, LX, PY, PX, ZERO,
    BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """A program's image; of its pieces, [1, PIECES, 1]: low pixel (y, x), 1 / pixels of its block that are in the image,
    whether this piece is the block's first; and offsets in the block, [1, PIECES, 1] and [1, PIECES, W], the pixels,
    and which are in the image. ROUND pieces a block."""
    P: tl.constexpr = PIECES // ROUND
    tile, b = tile_and_image(tl.cdiv(LY * LX, P))
    piece = tl.arange(0, PIECES)[None, :, None]
    low = tile * P + piece // ROUND
    there = low < LY * LX
    low = tl.minimum(low, LY * LX - 1)
    o_y = piece % ROUND // of_row(BX, W)
    o_x = piece % of_row(BX, W) * W + tl.arange(0, W)[None, None, :]
    y_low, x_low = low // LX, low % LX
    y = y_low * BY - PY
    x = x_low * BX - PX
    rows = tl.minimum(y + BY, NY) - tl.maximum(y, 0)
    columns = tl.minimum(x + BX, NX) - tl.maximum(x, 0)
    m_i = there & (o_y < BY) & (y + o_y >= 0) & (y + o_y < NY)
    if not ALIGNED:
        m_i = m_i & (o_x < BX) & (x + o_x >= 0) & (x + o_x < NX)
    i = (y + o_y) * NX + (x + o_x)
    if ALIGNED:
        i = tl.max_contiguous(i, (1, 2, W))
    else:
        i = _by_piece(i, ZERO)
    first = there & (piece % ROUND == 0)
    return b, y_low, x_low, 1.0 / (rows * columns).to(tl.float32), first, o_y, o_x, i, m_i


@triton.jit
def _aligned(NX, PX, BX: tl.constexpr, ALIGNED: tl.constexpr):
    """The same numbers; if ALIGNED the compiler sees that pieces begin where vectors do."""
    if ALIGNED:
        return NX // BX * BX, 0
    else:
        return NX, PX


@triton.jit
def _scales(scale_ptrs, b, i, m_i, N, SHARED: tl.constexpr):
    """Of each filter at a program's pixels, [1, PIECES, W], or 1."""
    scales = ()
    for m in tl.static_range(len(SHARED)):
        scales = scales + (scale(scale_ptrs[m], i, m_i, image_base(b, N, SHARED[m])),)
    return scales


@triton.jit
def _reading(y, x, o_y, o_x, LY, LX, ZERO, BY: tl.constexpr, BX: tl.constexpr):
    """How up reads: three low pixels of the piece's row and of the nearest other one, the other's weight, the weights
    of the left and right columns. Beyond the border lies what is at it."""
    other = tl.minimum(tl.maximum(y + tl.where(2 * o_y + 1 < BY, -1, 1), 0), LY - 1) * LX
    y = y * LX
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, LX - 1)
    near = (_by_piece(y + left, ZERO), _by_piece(y + x, ZERO), _by_piece(y + right, ZERO))
    far = (_by_piece(other + left, ZERO), _by_piece(other + x, ZERO), _by_piece(other + right, ZERO))
    shift = (o_x + 0.5) / BX - 0.5
    return near, far, tl.abs((o_y + 0.5) / BY - 0.5), tl.maximum(-shift, 0.0), tl.maximum(shift, 0.0)


@triton.jit
def _columns(h_ptr, near, far, weight, BY: tl.constexpr):
    """Three columns around the piece, between its two rows, [CB, PIECES, 1] each."""
    found = ()
    for k in tl.static_range(3):
        h = tl.load(h_ptr + near[k])
        if BY > 1:
            h += weight * (tl.load(h_ptr + far[k]) - h)
        found = found + (h,)
    return found


@triton.jit
def _score(
    o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm,
    BY: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """S_c = a_c U_c + sum_m out_m up(H_m)_c of a block of classes, [CB, PIECES, W]."""
    near, far, weight, left, right = reading
    s = tl.load(a_ptr + o_c * PIECES + thread) * tl.load(unary_ptr + o_c * N + i, mask=m_i, other=0.0)
    h_ptr += o_c * LOW
    SCALED: tl.constexpr = out_ptrs[0] is not None or out_ptrs[len(out) - 1] is not None
    l, h, r = _columns(h_ptr, near, far, weight, BY)
    for m in tl.static_range(len(out)):
        if m > 0:
            other = _columns(h_ptr + m * stride_hm, near, far, weight, BY)
            if SCALED:
                l, h, r = other
            else:
                l, h, r = l + other[0], h + other[1], r + other[2]
        if SCALED or m == len(out) - 1:
            s += out[m] * (h + left * (l - h) + right * (r - h))
    return s


@triton.jit
def _sum_of_block(x, ROUND: tl.constexpr):
    """Of x [CB, PIECES, W] over a block, [CB, PIECES, 1], at each of its pieces."""
    x = tl.sum(x, 2)
    if ROUND > 1:
        x = x.reshape(x.shape[0], PIECES // ROUND, ROUND)
        x = (tl.sum(x, 2, keep_dims=True) + tl.zeros_like(x)).reshape(x.shape[0], PIECES)
    return x[:, :, None]


@triton.jit
def _store_pooled(
    pooled_ptr, mix_ptr, o_c, q, weights, at, first, thread, stride_pm,
    C: tl.constexpr, ROUND: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """A_m pool(in_m Q) of a block of classes, or without A_m, to where `at` is in a class; weights: in_m over counts."""
    for m in tl.static_range(len(weights)):
        mean = _sum_of_block(q * weights[m], ROUND)
        if mix_ptr is not None:
            mean *= tl.load(mix_ptr + (m * C + o_c) * PIECES + thread)
        tl.store(pooled_ptr + m * stride_pm + o_c * STATE + at, mean, mask=first)


@triton.jit
def _store_q(
    o_c, power, inverse, weights, y_ptr, pooled_ptr, mix_ptr, i, m_i, at, first, thread, N, stride_pm,
    C: tl.constexpr, ROUND: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Q of a block of classes, if it is asked for, and pooled."""
    if y_ptr is not None:
        tl.store(y_ptr + o_c * N + i, power * inverse, mask=m_i)
    _store_pooled(pooled_ptr, mix_ptr, o_c, power, weights, at, first, thread, stride_pm, C, ROUND, STATE)


@triton.jit(do_not_specialize=UNKNOWN)
def _blur_step_kernel(
    # pointers: H; a and A, each number once for every thread; of each filter: scales; Q, pool(Q) as the window's state, without which y is S
    h_ptr, unary_ptr, a_ptr, mix_ptr, in_ptrs, out_ptrs, y_ptr, state_ptr,
    # sizes; ZERO: 0; where pooled pixels go: see place
    LY, LX, PY, PX, NY, NX, ZERO, ROW, START, STEP,
    # strides: filter of H and of pool(Q)
    stride_hm, stride_sm,
    # meta-parameters; of each filter: whether one image's scales serve all; LOW, STATE: from class to class in H, pool(Q)
    C: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
    HELD: tl.constexpr, SHARED: tl.constexpr, LOW: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of some low-resolution pixels of one image, all classes."""
    NX, PX = _aligned(NX, PX, BX, ALIGNED)
    N = tl.full((), 1, tl.int64) * NY * NX
    b, y, x, share, first, o_y, o_x, i, m_i = _block(NY, NX, LY, LX, PY, PX, ZERO, BY, BX, W, ROUND, ALIGNED)
    thread = _by_piece(tl.arange(0, PIECES)[None, :, None], ZERO)
    reading = _reading(y, x, o_y, o_x, LY, LX, ZERO, BY, BX)
    unary_ptr += b * C * N
    h_ptr += b * C * LOW
    out = _scales(out_ptrs, b, i, m_i, N, SHARED)
    if y_ptr is not None:
        y_ptr += b * C * N
    if state_ptr is not None:
        at = _by_piece(place(b, y, x, C, ROW, START, STEP, STATE), ZERO)

    top = tl.full(i.shape, float("-inf"), tl.float32)
    total = tl.zeros(i.shape, tl.float32)
    scores = ()
    powers = ()
    if HELD:
        for n in tl.static_range(blocks(C)):
            o_c = _classes(C, n)
            s = _score(o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, BY, LOW)
            if state_ptr is None:
                tl.store(y_ptr + o_c * N + i, s, mask=m_i)
            scores = scores + (s,)
            top = tl.maximum(top, tl.max(s, 0, keep_dims=True))
        for n in tl.static_range(blocks(C)):
            powers = powers + (tl.exp2(scores[n] * LOG2E - top * LOG2E),)
            total += tl.sum(powers[n], 0, keep_dims=True)
    else:
        for c in range(0, C):
            o_c = tl.full((1, 1, 1), c, tl.int64)
            s = _score(o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, BY, LOW)
            if state_ptr is None:
                tl.store(y_ptr + o_c * N + i, s, mask=m_i)
            else:
                e = tl.exp2(tl.abs(s - top) * -LOG2E)
                total = tl.where(s > top, total * e + 1.0, total + e)
                top = tl.maximum(top, s)
    if state_ptr is not None:
        at = _by_piece(place(b, y, x, C, ROW, START, STEP, STATE), ZERO)
        inverse = tl.where(m_i, 1.0 / total, 0.0)
        given = _scales(in_ptrs, b, i, m_i, N, SHARED)
        weights = ()
        for m in tl.static_range(len(SHARED)):
            weights = weights + (inverse * share * given[m],)
        if HELD:
            for n in tl.static_range(blocks(C)):
                _store_q(
                    _classes(C, n), powers[n], inverse, weights, y_ptr, state_ptr, mix_ptr, i, m_i, at, first, thread,
                    N, stride_sm, C, ROUND, STATE,
                )  # fmt: skip
        else:
            for c in range(0, C):
                o_c = tl.full((1, 1, 1), c, tl.int64)
                s = _score(o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, BY, LOW)
                _store_q(
                    o_c, tl.exp2((s - top) * LOG2E), inverse, weights, y_ptr, state_ptr, mix_ptr, i, m_i, at,
                    first, thread, N, stride_sm, C, ROUND, STATE,
                )  # fmt: skip


@triton.jit
def _given_back(
    o_c, g_ptr, mix_ptr, weights, low, thread, stride_gm, C: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """dQ_c = sum_m in_m A_mc G_mc over the block's count, of a block of classes; weights: in_m over counts."""
    found = 0.0
    for m in tl.static_range(len(weights)):
        g = tl.load(g_ptr + m * stride_gm + o_c * LOW + low)
        if mix_ptr is not None:
            g *= tl.load(mix_ptr + (m * C + o_c) * PIECES + thread)
        found += weights[m] * g
    return found


@triton.jit
def _store_back(
    o_c, q, along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first, thread, N, stride_gm, stride_pm,
    C: tl.constexpr, ROUND: tl.constexpr, SOFTMAX: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """dS, or dQ unless SOFTMAX, of a block of classes, and pool(in_m Q) if it is asked for."""
    dq = _given_back(o_c, g_ptr, mix_ptr, weights, low, thread, stride_gm, C, LOW)
    if SOFTMAX:
        dq = q * (dq - along)
    tl.store(y_ptr + o_c * N + i, dq + tl.zeros(i.shape, tl.float32), mask=m_i)
    if pooled_ptr is not None:
        _store_pooled(pooled_ptr, None, o_c, q, weights, low, first, thread, stride_pm, C, ROUND, LOW)


@triton.jit(do_not_specialize=UNKNOWN)
def _blur_step_backward_kernel(
    # pointers: messages that come back; A, each number once for every thread; of each filter: scales; dS, pool(in_m Q)
    g_ptr, q_ptr, mix_ptr, in_ptrs, y_ptr, pooled_ptr,
    # sizes; ZERO: 0
    LY, LX, PY, PX, NY, NX, ZERO,
    # strides: filter of the messages and of pool(Q)
    stride_gm, stride_pm,
    # meta-parameters as above; SOFTMAX: whether the gradient goes through it
    C: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
    HELD: tl.constexpr, SHARED: tl.constexpr, SOFTMAX: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of some low-resolution pixels of one image, all classes."""
    NX, PX = _aligned(NX, PX, BX, ALIGNED)
    N = tl.full((), 1, tl.int64) * NY * NX
    b, y, x, share, first, o_y, o_x, i, m_i = _block(NY, NX, LY, LX, PY, PX, ZERO, BY, BX, W, ROUND, ALIGNED)
    thread = _by_piece(tl.arange(0, PIECES)[None, :, None], ZERO)
    low = _by_piece(y * LX + x, ZERO)
    given = _scales(in_ptrs, b, i, m_i, N, SHARED)
    weights = ()
    for m in tl.static_range(len(SHARED)):
        weights = weights + (share * given[m],)
    g_ptr += b * C * LOW
    y_ptr += b * C * N
    if q_ptr is not None:
        q_ptr += b * C * N

    if pooled_ptr is not None:
        pooled_ptr += b * C * LOW

    along = tl.zeros(i.shape, tl.float32)  # <Q, dQ>
    values = ()
    if HELD:
        for n in tl.static_range(blocks(C)):
            q = 0.0
            if q_ptr is not None:
                q = tl.load(q_ptr + _classes(C, n) * N + i, mask=m_i, other=0.0)
            if SOFTMAX:
                dq = _given_back(_classes(C, n), g_ptr, mix_ptr, weights, low, thread, stride_gm, C, LOW)
                along += tl.sum(q * dq, 0, keep_dims=True)
            values = values + (q,)
        for n in tl.static_range(blocks(C)):
            _store_back(
                _classes(C, n), values[n], along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first, thread,
                N, stride_gm, stride_pm, C, ROUND, SOFTMAX, LOW,
            )  # fmt: skip
    else:
        if SOFTMAX:
            for c in range(0, C):
                o_c = tl.full((1, 1, 1), c, tl.int64)
                dq = _given_back(o_c, g_ptr, mix_ptr, weights, low, thread, stride_gm, C, LOW)
                along += dq * tl.load(q_ptr + o_c * N + i, mask=m_i, other=0.0)
        for c in range(0, C):
            o_c = tl.full((1, 1, 1), c, tl.int64)
            q = 0.0
            if q_ptr is not None:
                q = tl.load(q_ptr + o_c * N + i, mask=m_i, other=0.0)
            _store_back(
                o_c, q, along, g_ptr, y_ptr, pooled_ptr, mix_ptr, weights, i, m_i, low, first, thread, N, stride_gm,
                stride_pm, C, ROUND, SOFTMAX, LOW,
            )  # fmt: skip


class BlurStep(Step):
    """The step of one or two blurred windows of images, in two launches: the window at low resolution; then upsampling,
    step and the pooling of the new Q. A state is Q, if anybody asks for it, and pooled Q as the window reads it."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        (batch, classes), first = unary.shape[:2], operators[0]
        self.factors, self.grid = first.factors[1:], first.grid(to_3d(unary).shape[2:])
        self.scales_in = [contiguous(K.scale_in) for K in operators]
        self.scales_out = [contiguous(K.scale_out) for K in operators]
        scaled = any(s is not None for s in (*self.scales_in, *self.scales_out))
        self.apart = scaled and len(operators) > 1
        self.low = ladder(math.prod(self.grid[1]))  # from class to class at low resolution
        self.unary_table, self.mix_table = _for_each_thread(self.unary_weight), None
        window = (1, *self.grid[1]), first.radii, first.dilation
        if self.apart:
            self.mix_table = _for_each_thread(torch.stack([a.expand(classes) for a in mixing]))
            filters = [WindowFilter(_side_by_side([K.features for K in operators], batch), first.include_self)]
            self.windows = form_of(*window, filters, (batch * len(operators), classes))
        else:
            if not scaled:  # one pooled Q serves both, and one sum comes back
                self.scales_in, self.scales_out = [None], [None]
            filters = [WindowFilter(K.features.contiguous(), K.include_self) for K in operators]
            weights = stacked(mixing, classes), self.unary_weight, first.precision
            self.windows = form_of(*window, filters, (batch, classes), *weights)

    def start(self, q):
        pooled = [K.enter(q) for K in self.operators[: len(self.scales_in)]]
        if self.apart:
            pooled = [mix(a, x) for a, x in zip(self.mixing, pooled)]
        return q, self.windows.state(torch.cat(pooled))

    def next(self, state):
        q, messages = torch.empty_like(self.unary) if self.keeps else None, self._filtered(state[1])
        pooled = self.windows.blank(messages.flatten(0, 1))
        self._step(messages, q, **self._place(pooled))
        return q, pooled

    def damped(self, new, old, share):
        q = None if new[0] is None else torch.lerp(new[0], old[0], share)
        return q, self.windows.damped(new[1], old[1], share)

    def scores(self, state):
        y = torch.empty_like(self.unary)
        self._step(self._filtered(state[1]), y, state_ptr=None, stride_sm=0, ROW=0, START=0, STEP=1, STATE=0)
        return y

    def probabilities(self, state):
        return state[0].contiguous()

    def backward(self, q, g, through_softmax: bool, messages: bool):
        """The messages are of low resolution, those that come back and pooled Q."""
        y, pooled, low = torch.empty_like(self.unary), self._empty() if messages else None, math.prod(self.grid[1])
        entered = self.windows.blank(self._empty().flatten(0, 1))
        upsample_adjoint(g.contiguous(), self.scales_out, self.grid, self.factors, **self._place(entered))
        of_filters = y.new_empty((len(self.operators), *y.shape[:2], low)) if messages and not self.apart else None
        back = self._filtered(entered, of_filters, adjoint=True)
        self._launch(
            _blur_step_backward_kernel, zip(self.scales_in), g_ptr=back,
            q_ptr=q.contiguous() if through_softmax or messages else None, mix_ptr=self.mix_table,
            in_ptrs=tuple(self.scales_in), y_ptr=y, pooled_ptr=pooled, stride_gm=back.stride(0), stride_pm=back.stride(0),
            SOFTMAX=through_softmax,
        )  # fmt: skip
        return y, [back[..., :low] if of_filters is None else of_filters, pooled[..., :low]] if messages else None

    def mixing_gradients(self, q, messages):
        back, pooled = messages
        return [outer(b, x, a.ndim) for a, b, x in zip(self.mixing, back, pooled.expand_as(back))]

    def _empty(self):
        """For numbers of low resolution, [M, B, C, low]: of each filter, or of all in one."""
        return self.unary.new_empty((len(self.scales_in), *self.unary.shape[:2], self.low))

    def _place(self, state) -> dict:
        """Arguments that say where a kernel writes a state."""
        memory, place = self.windows.place(state)
        return {"state_ptr": memory, "stride_sm": memory.stride(0) * len(self.unary), **place}

    def _filtered(self, state, of_filters=None, adjoint: bool = False):
        found = self._empty()
        epilogue = "sum" if self.apart else "weighted"
        self.windows.run(state, found.flatten(0, 1), epilogue, filtered=of_filters, adjoint=adjoint)
        return found

    def _step(self, messages, y, **place):
        self._launch(
            _blur_step_kernel, zip(self.scales_in, self.scales_out), h_ptr=messages, unary_ptr=self.unary,
            a_ptr=self.unary_table, mix_ptr=self.mix_table, in_ptrs=tuple(self.scales_in),
            out_ptrs=tuple(self.scales_out), y_ptr=y, stride_hm=messages.stride(0), **place,
        )  # fmt: skip

    def _launch(self, kernel, scales, **arguments):
        """Over the blocks of low pixels."""
        size, low, pad = self.grid
        (by, bx), (batch, classes) = self.factors, self.unary.shape[:2]
        width = min(triton.next_power_of_2(bx), 4)
        pieces = triton.next_power_of_2(by) * of_row(bx, width)
        launch(
            kernel, (ceil_div(low[0] * low[1], PIECES.value // pieces) * batch,), num_warps=WARPS, **arguments,
            LY=low[0], LX=low[1], PY=pad[0], PX=pad[1], NY=size[0], NX=size[1], ZERO=0, C=classes, BY=by, BX=bx, W=width,
            ROUND=pieces, ALIGNED=bx % width == size[1] % bx == 0, HELD=classes * width <= MAX_HELD,
            SHARED=tuple(all(s is None or len(s) == 1 for s in given) for given in scales), LOW=self.low,
        )  # fmt: skip


def _for_each_thread(numbers):
    """Each number once for every thread, so that none gets it from another."""
    return numbers[..., None].expand(*numbers.shape, PIECES.value).contiguous()


def _side_by_side(features, batch: int):
    """Features of filters as those of one batch, [M B, D, ..]: a filter has equally many, and zeros change no distance."""
    widest = max(f.shape[1] for f in features)
    wide = [torch.nn.functional.pad(f, (0, 0) * 3 + (0, widest - f.shape[1])) for f in features]
    return torch.cat([f.expand(batch, *f.shape[1:]) for f in wide])

"""The fused step around a window at low resolution (ConvCRF's `blur`; ConvCRF paper, section 4, released code; symbols
of docs/symbols.md).

    forward    H_m = A_m K_m pool(in_m Q)       S = a U + sum_m out_m up(H_m) ,  Q = softmax(S) ,  pool(in_m Q)
    backward   G_m = K_m up^T(out_m G)          dQ = sum_m in_m pool^T(A_m^T G_m) ,  dS = Q (dQ - <Q, dQ>)

The left column is window.py and quads.py at low resolution. The right one is here and in blur_adjoint.py: one launch
forward, one backward, and one for up^T. pool averages over blocks of BY x BX pixels those that are in the image; up is
bilinear with half-pixel centres. Blocks tile a grid that begins `pad` pixels before the image.

A_m acts on classes, pool and up on pixels: they commute, and all A_m are applied at low resolution. Filters without
scales share pool(Q), and the window sums both in one pass. If one of two filters has scales, each has its own pooled Q,
times A_m, a number for each class, and both form one batch of the window. Only filters with a scale `out` are upsampled
separately.

Form. A thread owns a piece of a block (pieces.py) with all its classes: up reads three columns of two rows there,
interpolated along y first. Classes come in blocks of powers of two; if a thread cannot hold them, it reads them twice,
the second time from cache. Images and signals (one row); bytes: U, Q if requested, and messages of 1 / (BY BX) the
size.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels import quads_gradient
from tritoncrf.kernels.blur_adjoint import back_through_step, upsample_adjoint
from tritoncrf.kernels.class_blocks import blocks
from tritoncrf.kernels.pieces import (
    PIECES,
    UNKNOWN,
    by_piece,
    classes_of,
    launch_pieces,
    piece_of_block,
    place,
    scales,
    store_pooled,
)
from tritoncrf.kernels.planes import WindowFilter
from tritoncrf.kernels.window import form_of, window_feature_gradient
from tritoncrf.step import Step, contiguous, mix, mix_adjoint, outer, stacked, to_3d

MAX_BLUR = 16  # of the fused step: a larger block has more pieces than a program has threads
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _reading(y, x, o_y, o_x, LY, LX, ZERO, BY: tl.constexpr, BX: tl.constexpr):
    """The reads of up: three low pixels of the piece's row and of the nearest other row, the weight of the latter, and
    the weights of the left and right columns. Values are constant beyond the border."""
    other = tl.minimum(tl.maximum(y + tl.where(2 * o_y + 1 < BY, -1, 1), 0), LY - 1) * LX
    y = y * LX
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, LX - 1)
    near = (by_piece(y + left, ZERO), by_piece(y + x, ZERO), by_piece(y + right, ZERO))
    far = (by_piece(other + left, ZERO), by_piece(other + x, ZERO), by_piece(other + right, ZERO))
    down, shift = (2 * o_y + 1 - BY) * (0.5 / BY), (2 * o_x + 1 - BX) * (0.5 / BX)
    return near, far, tl.abs(down), tl.maximum(-shift, 0.0), tl.maximum(shift, 0.0)


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
    low_step, BY: tl.constexpr,
):  # fmt: skip
    """S_c = a_c U_c + sum_m out_m up(H_m)_c of a block of classes, [CB, PIECES, W]."""
    near, far, weight, left, right = reading
    s = tl.load(a_ptr + o_c * PIECES + thread) * tl.load(unary_ptr + o_c * N + i, mask=m_i, other=0.0)
    h_ptr += o_c * low_step
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
def _store_q(
    o_c, power, inverse, weights, y_ptr, pooled_ptr, mix_ptr, i, m_i, at, first, thread, N, stride_pm,
    low_step, C: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Store Q of a block of classes, if requested, and pool it."""
    if y_ptr is not None:
        tl.store(y_ptr + o_c * N + i, power * inverse, mask=m_i)
    store_pooled(pooled_ptr, mix_ptr, o_c, power, weights, at, first, thread, stride_pm, low_step, C, ROUND)


@triton.jit(do_not_specialize=UNKNOWN)
def _blur_step_kernel(
    # pointers: H; a and A, each number once for every thread; of each filter: scales; Q, and pool(Q) as the window's
    # state, without which y is S
    h_ptr, unary_ptr, a_ptr, mix_ptr, in_ptrs, out_ptrs, y_ptr, state_ptr,
    # sizes; ZERO: 0; where pooled pixels go: see place
    LY, LX, PY, PX, NY, NX, ZERO, ROW, START, STEP,
    # strides: filter of H and of pool(Q), class of both
    stride_hm, stride_sm, low_step,
    # meta-parameters; of each filter: whether one image's scales serve all; LOW: from class to class in H and in
    # the state, else low_step
    C: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, W: tl.constexpr, ROUND: tl.constexpr, ALIGNED: tl.constexpr,
    HELD: tl.constexpr, SHARED: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Each program owns the blocks of some low-resolution pixels of one image, all classes."""
    low_step = LOW if low_step is None else low_step
    N, b, y, x, share, first, o_y, o_x, i, m_i, thread = piece_of_block(
        NY, NX, LY, LX, PY, PX, ZERO, BY, BX, W, ROUND, ALIGNED
    )
    reading = _reading(y, x, o_y, o_x, LY, LX, ZERO, BY, BX)
    unary_ptr += b * C * N
    h_ptr += b * C * low_step
    out = scales(out_ptrs, b, i, m_i, N, SHARED)
    if y_ptr is not None:
        y_ptr += b * C * N

    top = tl.full(i.shape, float("-inf"), tl.float32)
    total = tl.zeros(i.shape, tl.float32)
    scores = ()
    powers = ()
    if HELD:
        for n in tl.static_range(blocks(C)):
            o_c = classes_of(C, n)
            s = _score(o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, low_step, BY)
            if state_ptr is None:
                tl.store(y_ptr + o_c * N + i, s, mask=m_i)
            scores = scores + (s,)
            top = tl.maximum(top, tl.max(s, 0, keep_dims=True))
        for n in tl.static_range(blocks(C)):
            powers = powers + (tl.exp2((scores[n] - top) * LOG2E),)
            total += tl.sum(powers[n], 0, keep_dims=True)
    else:
        for c in range(0, C):
            o_c = tl.full((1, 1, 1), c, tl.int64)
            s = _score(o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, low_step, BY)
            if state_ptr is None:
                tl.store(y_ptr + o_c * N + i, s, mask=m_i)
            else:
                e = tl.exp2(tl.abs(s - top) * -LOG2E)
                total = tl.where(s > top, total * e + 1.0, total + e)
                top = tl.maximum(top, s)
    if state_ptr is not None:
        at = by_piece(place(b, y, x, C, ROW, START, STEP, low_step), ZERO)
        inverse = tl.where(m_i, tl.div_rn(1.0, total), 0.0)
        given = scales(in_ptrs, b, i, m_i, N, SHARED)
        weights = ()
        for m in tl.static_range(len(SHARED)):
            weights = weights + (inverse * share * given[m],)
        if HELD:
            for n in tl.static_range(blocks(C)):
                _store_q(
                    classes_of(C, n), powers[n], inverse, weights, y_ptr, state_ptr, mix_ptr, i, m_i, at, first, thread,
                    N, stride_sm, low_step, C, ROUND,
                )  # fmt: skip
        else:
            for c in range(0, C):
                o_c = tl.full((1, 1, 1), c, tl.int64)
                s = _score(
                    o_c, unary_ptr, a_ptr, h_ptr, out_ptrs, out, i, m_i, reading, thread, N, stride_hm, low_step, BY
                )
                _store_q(
                    o_c, tl.exp2((s - top) * LOG2E), inverse, weights, y_ptr, state_ptr, mix_ptr, i, m_i, at,
                    first, thread, N, stride_sm, low_step, C, ROUND,
                )  # fmt: skip


class BlurStep(Step):
    """The step of one or two blurred windows of images, in two launches: the window at low resolution; then upsampling,
    step and the pooling of the new Q. A state is Q, if requested, and the pooled Q in the form that the window
    reads."""

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary.contiguous(), unary_weight.expand(unary.shape[1]))
        (batch, classes), first = unary.shape[:2], operators[0]
        self.factors, self.grid = first.factors[1:], first.grid(to_3d(unary).shape[2:])
        self.scales_in = [contiguous(K.scale_in) for K in operators]
        self.scales_out = [contiguous(K.scale_out) for K in operators]
        scaled = any(s is not None for s in (*self.scales_in, *self.scales_out))
        self.apart = scaled and len(operators) > 1
        self.unary_table, self.mix_table = _for_each_thread(self.unary_weight), None
        window = (1, *self.grid[1]), first.radii, first.dilation
        if self.apart:
            self.mix_table = _for_each_thread(torch.stack([a.expand(classes) for a in mixing]))
            filters = [WindowFilter(_side_by_side([K.features for K in operators], batch), first.include_self)]
            self.windows = form_of(*window, filters, (batch * len(operators), classes), few=True)
        else:
            if not scaled:  # both share one pooled Q and one sum
                self.scales_in, self.scales_out = [None], [None]
            filters = [WindowFilter(K.features.contiguous(), K.include_self) for K in operators]
            self.mix = stacked(mixing, classes)
            self.windows = form_of(
                *window, filters, (batch, classes), self.mix, self.unary_weight, first.precision, few=True
            )  # fmt: skip
        self.class_step = self.windows.class_step  # at low resolution: a compile-time constant, or a number

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
        self._step(self._filtered(state[1]), y, state_ptr=None, stride_sm=0, ROW=0, START=0, STEP=1)
        return y

    def probabilities(self, state):
        return state[0].contiguous()

    def backward(self, q, g, through_softmax: bool, messages: bool):
        """The messages have low resolution: those of the backward pass, and the pooled Q."""
        y, pooled = torch.empty_like(self.unary), self._empty() if messages else None
        entered = self.windows.blank(self._empty().flatten(0, 1))
        upsample_adjoint(
            g.contiguous(), self.scales_out, self.grid, self.factors, **self.class_step, **self._place(entered)
        )
        of_filters = self._empty(len(self.operators)) if messages and not self.apart else None
        back = self._filtered(entered, of_filters, adjoint=True)
        back_through_step(
            back, q.contiguous() if through_softmax or messages else None, self.mix_table, self.scales_in, y, pooled,
            self.grid, self.factors, through_softmax, **self.class_step,
        )  # fmt: skip
        return y, [back if self.apart else of_filters, pooled] if messages else None

    def mixing_gradients(self, q, messages):
        back, pooled = messages
        return [outer(b, x, a.ndim) for a, b, x in zip(self.mixing, back, pooled.expand_as(back))]

    def gradients(self, q, g, needs):
        K = self.operators
        if not all(needs) or any(k.scale_in is not None or k.scale_out is not None for k in K):
            return super().gradients(q, g, needs)
        (_, low, _), y = self.grid, self._empty()
        place = {"state_ptr": y, "stride_sm": 0, "ROW": low[1], "START": 0, "STEP": 1, **self.class_step}
        upsample_adjoint(g.contiguous(), self.scales_out, self.grid, self.factors, **place)
        x, y = K[0].enter(q), y[0].unflatten(2, (1, *low))
        window, features = (K[0].radii, K[0].dilation), [k.features for k in K]
        channels = [f.shape[1] for f in features]
        if self.mix.shape[1:] == (1,) and quads_gradient.serves(x.shape[2:], *window, x.shape[:2].numel(), channels):
            found = quads_gradient.feature_gradients(x, y, features, *window, mix=self.mix)
        else:
            found = [window_feature_gradient(x, mix_adjoint(a, y), f, *window) for f, a in zip(features, self.mixing)]
        return [[k.given(f)] for f, k in zip(found, K)]

    def _empty(self, filters: int | None = None):
        """Memory for low-resolution images, [M, B, C, N]: for each filter, or for all in one."""
        step = next(n for n in self.class_step.values() if n is not None)
        whole = self.unary.new_empty((filters or len(self.scales_in), *self.unary.shape[:2], step))
        return whole[..., : math.prod(self.grid[1])]

    def _place(self, state) -> dict:
        """The arguments for the place where a kernel writes a state."""
        memory, place = self.windows.place(state)
        return {"state_ptr": memory, "stride_sm": memory.stride(0) * len(self.unary), **place}

    def _filtered(self, state, of_filters=None, adjoint: bool = False):
        found = self._empty()
        epilogue = "sum" if self.apart else "weighted"
        self.windows.run(state, found.flatten(0, 1), epilogue, filtered=of_filters, adjoint=adjoint)
        return found

    def _step(self, messages, y, **place):
        launch_pieces(
            _blur_step_kernel, self.grid, self.factors, self.unary.shape, zip(self.scales_in, self.scales_out),
            h_ptr=messages, unary_ptr=self.unary, a_ptr=self.unary_table, mix_ptr=self.mix_table,
            in_ptrs=tuple(self.scales_in), out_ptrs=tuple(self.scales_out), y_ptr=y, stride_hm=messages.stride(0),
            **self.class_step, **place,
        )  # fmt: skip


def _for_each_thread(numbers):
    """Repeat each number for every thread, so that none gets it from another."""
    return numbers[..., None].expand(*numbers.shape, PIECES.value).contiguous()


def _side_by_side(features, batch: int):
    """Features of several filters as one batch, [M B, D, ..], padded with zeros, which change no distance."""
    widest = max(f.shape[1] for f in features)
    wide = [torch.nn.functional.pad(f, (0, 0) * 3 + (0, widest - f.shape[1])) for f in features]
    return torch.cat([f.expand(batch, *f.shape[1:]) for f in wide])

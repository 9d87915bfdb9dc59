"""Device helpers of the last pass of every filter, which includes the mean-field step.

    forward   S = a U + sum_m A_m F_m ,  Q = softmax(S)             F_m = K_m Q ,    A_m = -mu W_m, or W_m for Potts
    backward  dQ = sum_m A_m^T G_m ,     dS = Q (dQ - <Q, dQ>)      G_m = K_m^T G ,  G = dL/dS of the next S

A_m acts on the class axis: a scalar or a vector (rows of `mix`, read with stride 0 for a scalar), or a matrix. Tiles
are [P, CP], P pixels and the classes padded to CP; padding holds 0 in messages, -inf before a softmax.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.common import dot


@triton.jit
def mixed(
    messages, mix_ptr, stride_row, stride_column, o_c, C,
    MATRIX: tl.constexpr, CP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A F for a tile of messages F [P, CP]; A[l, k] at mix_ptr + l * stride_row + k * stride_column."""
    if MATRIX:
        m_c = o_c < C
        o_mix = o_c[:, None] * stride_column + o_c[None, :] * stride_row
        transposed = tl.load(mix_ptr + o_mix, mask=m_c[:, None] & m_c[None, :], other=0.0)  # [k, l]
        return dot(messages, transposed, tl.zeros_like(messages), PRECISION)
    else:
        return messages * tl.load(mix_ptr + o_c * stride_row, mask=o_c < C, other=0.0)[None, :]


@triton.jit
def softmax(scores, o_c, C):
    """Softmax over the classes of a tile [P, CP]; padding classes get probability 0."""
    scores = tl.where((o_c < C)[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    return scores / tl.sum(scores, 1)[:, None]


@triton.jit
def softmax_adjoint(q, gradient):
    """dS = Q (dQ - <Q, dQ>) for tiles [P, CP]."""
    return q * (gradient - tl.sum(q * gradient, 1)[:, None])


@triton.jit
def epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_u, o_q, m_y, o_c, C, EPILOGUE: tl.constexpr):
    """From weighted messages [P, CP], of pixels at offsets o_u of unary and o_q of q, what a step gives: S as "scores"
    or its "softmax", dS as "softmax_adjoint"; "weighted" is dQ, and "sum" the messages, as they are."""
    if EPILOGUE == "softmax" or EPILOGUE == "scores":
        a = tl.load(a_ptr + o_c * stride_a, mask=o_c < C, other=0.0)
        result += a[None, :] * tl.load(unary_ptr + o_u, mask=m_y, other=0.0)
        if EPILOGUE == "softmax":
            result = softmax(result, o_c, C)
    if EPILOGUE == "softmax_adjoint":
        result = softmax_adjoint(tl.load(q_ptr + o_q, mask=m_y, other=0.0), result)
    return result


@triton.jit
def end_step(
    message_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, base_y, base_u, o_y, o_u, m_p, C, stride_y, stride_u,
    stride_a, stride_row, stride_column,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """The step of pixels whose messages lie class by class in memory: messages, q and y at base_y + o_y, unary at
    base_u + o_u, o [P], a class every `stride`. The classes are walked over twice, so that any number fits; a matrix
    takes all at once."""
    LOG2E: tl.constexpr = 1.4426950408889634
    message_ptr += base_y
    y_ptr += base_y
    if q_ptr is not None:
        q_ptr += base_y
    if unary_ptr is not None:
        unary_ptr += base_u
    if MATRIX:
        o_c = tl.arange(0, CP)
        o_t = o_y[:, None] + o_c[None, :] * stride_y
        m_t = m_p[:, None] & (o_c < C)[None, :]
        result = mixed(
            tl.load(message_ptr + o_t, mask=m_t, other=0.0), mix_ptr, stride_row, stride_column, o_c, C, MATRIX, CP,
            PRECISION,
        )  # fmt: skip
        o_u = o_u[:, None] + o_c[None, :] * stride_u
        result = epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_u, o_t, m_t, o_c, C, EPILOGUE)
        tl.store(y_ptr + o_t, result, mask=m_t)
    else:
        top = tl.full(o_y.shape, float("-inf"), tl.float32)
        total = tl.zeros(o_y.shape, tl.float32)
        for c in range(0, C):
            value = tl.load(mix_ptr + c * stride_row) * tl.load(message_ptr + c * stride_y + o_y, mask=m_p, other=0.0)
            if EPILOGUE == "softmax" or EPILOGUE == "scores":
                value += tl.load(a_ptr + c * stride_a) * tl.load(unary_ptr + c * stride_u + o_u, mask=m_p, other=0.0)
            if EPILOGUE == "softmax":  # total: of exp(value - top), over the classes so far
                e = tl.exp2(tl.abs(value - top) * -LOG2E)
                total = tl.where(value > top, total * e + 1.0, total + e)
                top = tl.maximum(top, value)
            if EPILOGUE == "softmax_adjoint":
                total += value * tl.load(q_ptr + c * stride_y + o_y, mask=m_p, other=0.0)
            tl.store(y_ptr + c * stride_y + o_y, value, mask=m_p)
        if EPILOGUE == "softmax" or EPILOGUE == "softmax_adjoint":
            tl.debug_barrier()  # a thread may read what another has written
            if EPILOGUE == "softmax":
                total = 1.0 / total
            for c in range(0, C):
                value = tl.load(y_ptr + c * stride_y + o_y, mask=m_p, other=0.0)
                if EPILOGUE == "softmax":
                    value = tl.exp2((value - top) * LOG2E) * total
                else:
                    value = tl.load(q_ptr + c * stride_y + o_y, mask=m_p, other=0.0) * (value - total)
                tl.store(y_ptr + c * stride_y + o_y, value, mask=m_p)

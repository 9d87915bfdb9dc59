"""Device helpers of the last pass of every filter, which carries the mean-field step.

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
def epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, m_y, o_c, C, EPILOGUE: tl.constexpr):
    """From weighted messages [P, CP] at offsets o_y what a step gives: S as "scores" or its "softmax", dS as
    "softmax_adjoint"; "weighted" is dQ, and "sum" the messages, as they are."""
    if EPILOGUE == "softmax" or EPILOGUE == "scores":
        a = tl.load(a_ptr + o_c * stride_a, mask=o_c < C, other=0.0)
        result += a[None, :] * tl.load(unary_ptr + o_y, mask=m_y, other=0.0)
        if EPILOGUE == "softmax":
            result = softmax(result, o_c, C)
    if EPILOGUE == "softmax_adjoint":
        result = softmax_adjoint(tl.load(q_ptr + o_y, mask=m_y, other=0.0), result)
    return result

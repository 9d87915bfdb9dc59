"""The mean-field step composed of separate passes: what a fused step is, and is tested against.

    forward   S = a U + sum_m A_m F_m ,  Q = softmax(S)                  F_m = K_m Q
    backward  dQ = sum_m A_m^T B_m ,     dS = Q (dQ - <Q, dQ>)           B_m = K_m^T G,  G = dL/dS of the next S

A_m acts on the class axis: [], [C] or [C, C]. Scores and states are [B, C, *S].
"""

import torch

KEPT_STATES = 3  # what a loop's filters may keep between iterations, in states Q


class Step:
    """One step, composed: S = a U + sum_m A_m F_m by separate passes. Filters may offer a fused one."""

    def __init__(self, plans, prepared, mixing, unary, unary_weight):
        self.plans, self.prepared, self.mixing = plans, prepared, mixing
        self.weighted_unary = mix(unary_weight, unary)

    def forward(self, q, last: bool):
        """The next Q, or the scores S if `last`."""
        scores = None
        for plan, ready, a in zip(self.plans, self.prepared, self.mixing, strict=True):
            message = mix(a, plan.apply(q, ready))
            scores = message if scores is None else scores.add_(message)
        scores += self.weighted_unary
        return scores if last else torch.softmax(scores, 1)

    def backward(self, q, g, through_softmax: bool, filtered: bool):
        """dS_t (dQ_t unless `through_softmax`) from g = dL/dS_{t+1}, and the B_m if `filtered`."""
        back = [plan.adjoint(g, ready) for plan, ready in zip(self.plans, self.prepared, strict=True)]
        gradient = sum(mix_adjoint(a, b) for a, b in zip(self.mixing, back, strict=True))
        if through_softmax:
            gradient = softmax_adjoint(q, gradient)
        return gradient, back if filtered else None


def mix(a, x):
    """A x on the class axis of x [B, C, *S], for A of shape [], [C] or [C, C]."""
    if a.ndim == 2:
        return (a @ x.flatten(2)).view(x.shape)
    return x * a.view(-1, *(1,) * (x.ndim - 2))


def mix_adjoint(a, x):
    """A^T x on the class axis of x."""
    return mix(a.mT if a.ndim == 2 else a, x)


def scaled(x, scale):
    return x if scale is None else x * scale


def stacked(mixing, classes: int):
    """The A_m as one tensor: [M, 1] if all are scalars, else [M, C], or [M, C, C] if one is a matrix."""
    ndim = max(a.ndim for a in mixing)
    if ndim == 0:
        return torch.stack(mixing)[:, None]
    vectors = [a if a.ndim == 2 else a.expand(classes) for a in mixing]
    return torch.stack([torch.diag(a) if a.ndim < ndim else a for a in vectors])


def softmax_adjoint(q, gradient):
    return q * (gradient - (q * gradient).sum(1, keepdim=True))

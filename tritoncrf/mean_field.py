"""The mean-field loop and its backward, over any filters.

    S_0 = U,  Q_0 = softmax(S_0);   S_{t+1} = a U + sum_m A_m K_m Q_t,  Q_t = softmax(S_t)     T times

with A_m = W_m for the Potts model and A_m = -mu W_m for a compatibility cost mu. One state Q_t is kept
per iteration. Going back from G = dL/dS_{t+1}, everything follows from B_m = K_m^T G:

    dU += a G,   da += sum G U,   dQ = sum_m A_m^T B_m,   dA_m += sum B_m Q_t^T,   dS_t = Q_t (dQ - <Q_t, dQ>)

because K_m acts on pixels and A_m on classes. Autograd splits dA_m into those of W_m and mu. A filter's
own tensors get the gradient of <A_m^T G, K_m Q_t>.
"""

from collections.abc import Sequence
from typing import Any, get_args

import torch

from tritoncrf import checks
from tritoncrf.filters.base import (
    Context,
    Filter,
    MeanFieldStep,
    Plan,
    beside,
    compute_dtype,
    decode,
    encode,
    gradient_shape,
    gradients_or_none,
    refuse_second_derivative,
    without_autocast,
)
from tritoncrf.reference.step import KEPT_STATES, Step, mix, mix_adjoint
from tritoncrf.types import Compatibility, Initial, Output

OUTPUTS: tuple[Output, ...] = get_args(Output)
INITIALS: tuple[Initial, ...] = get_args(Initial)


def mean_field(
    logits: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor],
    compatibility: Compatibility = "potts", iterations: int = 5, unary_weight: float | torch.Tensor = 1.0,
    initial: Initial = "softmax", output: Output = "probabilities",
) -> torch.Tensor:  # fmt: skip
    r"""Mean-field inference in a dense CRF.

    .. math::
        Q \leftarrow \mathrm{softmax}\Big(a\,U - \mu \sum_m W_m K_m Q\Big)

    `iterations` times from Q = softmax(U) (Krähenbühl and Koltun 2011; CRF-as-RNN, section 4).

    Args:
        logits: U, minus the unary energies, [B, C, *S] with 1 to 3 spatial axes; floating. Half
            precision is accumulated in float32.
        filters: the pairwise filters K_m, see `tritoncrf.filters`.
        weights: one W_m per filter: a float, a 0-d tensor, per class [C], or [C, C] (row: the class that
            receives).
        compatibility: "potts" (mu = -I, which a softmax cannot tell from [l != l']), or a [C, C] tensor
            of costs: positive repels, row: the class that receives.
        iterations: number of updates, 0 or more.
        unary_weight: a, a float or [C].
        initial: what the first messages are computed from: "softmax" of U, or its "log_softmax" itself
            (the released ConvCRF).
        output: "probabilities", "logits" (the scores before the last softmax; only defined up to a
            constant per pixel) or "log_probabilities".

    Returns:
        [B, C, *S], dtype and device of `logits`. Gradients reach logits, the filters' features, weights,
        compatibility and unary_weight; once.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> K = tc.filters.Window(tc.features.spatial((20, 30), theta=3), window_size=7, normalization="symmetric")
        >>> tc.mean_field(torch.randn(1, 4, 20, 30), [K], weights=[3.0]).sum(1).allclose(torch.ones(()))
        True
    """
    checks.expect_choice("output", output, OUTPUTS)
    mixing, scale = checked(logits, filters, weights, compatibility, iterations, unary_weight, initial)

    dtype = compute_dtype(logits)
    tensors = [t for f in filters for t in f.tensors_in(dtype)]
    differentiable = [logits, scale, *mixing, *tensors]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    plans = encode([f.resolved(logits) for f in filters])
    scores = logits.to(dtype)
    if iterations > 0:
        scores, *_ = iterate(scores, scale, mixing, tensors, plans, iterations, initial, keep)
    if output == "probabilities":
        scores = torch.softmax(scores, 1)
    elif output == "log_probabilities":
        scores = torch.log_softmax(scores, 1)
    return scores.to(logits.dtype)


def checked(
    logits: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor],
    compatibility: Compatibility, iterations: int, unary_weight: float | torch.Tensor, initial: Initial,
) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """The A_m = -mu W_m and a as tensors beside the logits, or an error for whatever the loop cannot take."""
    checks.expect_tensor("logits", logits)
    checks.expect_spatial("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError(f"logits: expected at least one class, got shape {list(logits.shape)}")
    checks.expect_finite("logits", logits)
    _check_filters(filters, weights, logits)
    checks.expect_int("iterations", iterations, 0)
    checks.expect_choice("initial", initial, INITIALS)
    mixing = [_class_weight(f"weights[{m}]", w, logits, ndim=2) for m, w in enumerate(weights)]
    scale = _class_weight("unary_weight", unary_weight, logits, ndim=1)
    if not (isinstance(compatibility, str) and compatibility == "potts"):
        mu = _compatibility(compatibility, logits)
        # In float64, which autocast leaves alone, in the backward too.
        mixing = [(-mu.double() @ w.double()).to(mu.dtype) if w.ndim == 2 else -mu * w for w in mixing]
    return mixing, scale


def _check_filters(filters: Sequence[Filter], weights: Sequence[float | torch.Tensor], logits: torch.Tensor) -> None:
    for name, value in ("filters", filters), ("weights", weights):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: expected a list, one per filter, got {checks.kind_of(value)}")
    if not filters:
        raise ValueError("filters: expected at least one filter, got an empty list")
    if len(weights) != len(filters):
        raise ValueError(f"weights: expected one per filter, {len(filters)}, got {len(weights)}")
    for m, f in enumerate(filters):
        if not isinstance(f, Filter):
            raise TypeError(f"filters[{m}]: expected a filter of tritoncrf.filters, got {checks.kind_of(f)}")
        f.check_fits("logits", logits)


def _class_weight(name: str, value: float | torch.Tensor, logits: torch.Tensor, ndim: int) -> torch.Tensor:
    """A weight on the class axis as a tensor [], [C] or, for ndim 2, [C, C] beside the logits."""
    classes, dtype = logits.shape[1], compute_dtype(logits)
    if not isinstance(value, torch.Tensor):
        return torch.full((), checks.expect_number(name, value), dtype=dtype, device=logits.device)
    checks.expect_tensor(name, value, "a number or a floating-point torch.Tensor")
    shapes = [(), (classes,), (classes, classes)][: ndim + 1]
    if tuple(value.shape) not in shapes:
        wanted = ", ".join(str(list(s)) for s in shapes)
        raise ValueError(f"{name}: expected a shape of {wanted}, got {list(value.shape)}")
    _check_device(name, value, logits)
    checks.expect_finite(name, value)
    return value.to(dtype)


def _compatibility(value: Compatibility, logits: torch.Tensor) -> torch.Tensor:
    classes = logits.shape[1]
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"compatibility: expected 'potts' or a [C, C] tensor, got {checks.kind_of(value)}")
    checks.expect_tensor("compatibility", value)
    if value.shape != (classes, classes):
        raise ValueError(f"compatibility: expected shape [{classes}, {classes}], got {list(value.shape)}")
    _check_device("compatibility", value, logits)
    checks.expect_finite("compatibility", value)
    return value.to(compute_dtype(logits))


def _check_device(name: str, value: torch.Tensor, logits: torch.Tensor) -> None:
    if value.device != logits.device:
        raise ValueError(f"{name}: expected the device of logits, {logits.device}, got {value.device}")


def _prepared(
    plans: Sequence[Plan[Any]], tensors: list[torch.Tensor], mixing: list[torch.Tensor], unary: torch.Tensor,
    unary_weight: torch.Tensor,
) -> tuple[list[Any], MeanFieldStep]:  # fmt: skip
    """The filters made ready with their own tensors, and the step that runs them."""
    left, budget = iter(tensors), KEPT_STATES * unary.shape[1] / len(plans)
    prepared = [p.prepare([next(left) for _ in range(p.tensor_count)], budget) for p in plans]
    arguments = plans, prepared, mixing, unary, unary_weight
    return prepared, plans[0].fuse(*arguments) or Step(*arguments)


@torch.library.custom_op("tritoncrf::mean_field", mutates_args=())
def iterate(
    unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor], tensors: list[torch.Tensor],
    plans: str, iterations: int, initial: str, keep: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """[S_T], and Q_0 .. Q_{T-1} after it if `keep`."""
    unary = unary.contiguous()
    with without_autocast(unary):
        _, step = _prepared(decode(plans), tensors, mixing, unary, unary_weight)
        q = torch.softmax(unary, 1) if initial == "softmax" else torch.log_softmax(unary, 1)
        states = []
        for t in range(iterations):
            if keep:
                states.append(q.contiguous())
            q = step.forward(q, last=t == iterations - 1)
        return [q.contiguous(), *states]


@iterate.register_fake
def _(
    unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor], tensors: list[torch.Tensor],
    plans: str, iterations: int, initial: str, keep: bool,
) -> list[torch.Tensor]:  # fmt: skip
    scores = torch.empty(unary.shape, dtype=unary.dtype, device=unary.device)
    return [scores, *(torch.empty_like(scores) for _ in range(iterations if keep else 0))]


@torch.library.custom_op("tritoncrf::mean_field_backward", mutates_args=())
def iterate_backward(
    cotangent: torch.Tensor, unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor],
    tensors: list[torch.Tensor], states: list[torch.Tensor], plans: str, initial: str, needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of unary, unary_weight, each of mixing and of tensors; empty where `needs` says no.

    needs: unary, unary_weight, any of mixing, any of tensors.
    """
    needs_unary, needs_unary_weight, needs_mixing, needs_tensors = needs
    unary = unary.contiguous()
    decoded = decode(plans)
    with without_autocast(unary):
        prepared, step = _prepared(decoded, tensors, mixing, unary, unary_weight)
        d_mixing = [torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in mixing] if needs_mixing else []
        d_tensors: list[torch.Tensor] = []
        g, total = cotangent, torch.zeros_like(cotangent)  # total: sum of all dS_1 .. dS_T
        for t in reversed(range(len(states))):
            q = states[t]
            total += g
            if needs_tensors:
                found = []
                for plan, ready, a in zip(decoded, prepared, mixing, strict=True):
                    found += plan.gradients(q, mix_adjoint(a, g), ready)
                d_tensors = [d + f for d, f in zip(d_tensors, found, strict=True)] if d_tensors else found
            softmaxed = t > 0 or initial == "softmax"
            g, filtered = step.backward(q, g, softmaxed, needs_mixing)
            if filtered is not None:
                for d, b in zip(d_mixing, filtered, strict=True):
                    d += _outer(b, q, d.ndim)
        if initial == "log_softmax":
            g = g - torch.softmax(unary, 1) * g.sum(1, keepdim=True)
        return [
            (mix(unary_weight, total) + g).contiguous() if needs_unary else unary.new_empty(0),
            _outer(total, unary, unary_weight.ndim) if needs_unary_weight else unary.new_empty(0),
            *(d_mixing if needs_mixing else [a.new_empty(0) for a in mixing]),
            *beside(tensors, d_tensors, unary),
        ]


def _outer(b: torch.Tensor, q: torch.Tensor, ndim: int) -> torch.Tensor:
    """sum over batch and pixels of b q^T, of its diagonal, or of its trace: what dA needs for A's shape."""
    if ndim == 2:
        return (b.flatten(2) @ q.flatten(2).mT).sum(0)
    products = torch.linalg.vecdot(b.flatten(2), q.flatten(2)).sum(0)
    return products if ndim == 1 else products.sum()


@iterate_backward.register_fake
def _(
    cotangent: torch.Tensor, unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor],
    tensors: list[torch.Tensor], states: list[torch.Tensor], plans: str, initial: str, needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    groups = [unary], [unary_weight], mixing, tensors
    return [
        torch.empty(gradient_shape(t, needed), dtype=unary.dtype, device=unary.device)
        for group, needed in zip(groups, needs, strict=True)
        for t in group
    ]


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    unary, unary_weight, mixing, tensors, ctx.plans, ctx.iterations, ctx.initial, _ = inputs
    ctx.counts = len(mixing), len(tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(unary, unary_weight, *mixing, *tensors, *output[1:])


def _backward(ctx: Context, cotangents: list[torch.Tensor]) -> tuple[Any, ...]:
    unary, unary_weight, *rest = ctx.saved_tensors
    m, k = ctx.counts
    mixing, tensors, states = rest[:m], rest[m : m + k], rest[m + k :]
    needed = ctx.needs_input_grad
    needs = [needed[0], needed[1], any(needed[2]), any(needed[3])]
    found = iterate_backward(
        cotangents[0].contiguous(), unary, unary_weight, mixing, tensors, states, ctx.plans, ctx.initial, needs
    )
    d_unary, d_weight, rest = found[0], found[1], found[2:]
    return (
        d_unary if needs[0] else None,
        d_weight if needs[1] else None,
        rest[:m] if needs[2] else [None] * m,
        gradients_or_none(tensors, rest[m:], needs[3]),
        None, None, None, None,
    )  # fmt: skip


iterate.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(iterate_backward)

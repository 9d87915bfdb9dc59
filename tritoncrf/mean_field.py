"""The mean-field loop and its backward pass, for any filters.

    S_0 = U,  Q_0 = softmax(S_0);   S_{t+1} = a U + sum_m A_m K_m Q_t,  Q_t = softmax(S_t)     T times

with A_m = W_m for the Potts model and A_m = -mu W_m for a compatibility cost mu. One state Q_t is kept
per iteration. Going back from G = dL/dS_{t+1}, everything follows from G_m = K_m^T G:

    dU += a G,   da += sum G U,   dQ = sum_m A_m^T G_m,   dA_m += sum G_m Q_t^T,   dS_t = Q_t (dQ - <Q_t, dQ>)

because K_m acts on pixels and A_m on classes. Autograd splits dA_m into those of W_m and mu. A filter's
own tensors get the gradient of <A_m^T G, K_m Q_t>.

A temperature divides a and all A_m. Damped by d, with P_t = softmax(S_t),

    Q_t = (1 - d) P_t + d Q_{t-1} ;   dS_t = (1 - d) P_t (dQ_t - <P_t, dQ_t>) ,   dQ_{t-1} = sum_m A_m^T G_m + d dQ_t

and P_t is recovered from Q_t and Q_{t-1}, which are kept, up to rounding, even where it is almost 0.

With another activation than the softmax, or a filter given by a function, autograd records every operation.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from tritoncrf import checks
from tritoncrf.backends import compute_dtype, launches_run, without_autocast
from tritoncrf.filters.base import Filter
from tritoncrf.filters.plan import (
    Context,
    Plan,
    align_gradients,
    decode,
    encode,
    gradient_shape,
    gradients_or_none,
    operator,
    refuse_second_derivative,
)
from tritoncrf.step import KEPT_STATES, State, Step, mix, outer, rectified, softmax, softmax_adjoint
from tritoncrf.types import Activation, Compatibility, Initial, Output

OUTPUTS: tuple[Output, ...] = get_args(Output)
LEAST_LOGARITHM = -1e5  # of the probabilities in the first messages
LEAST_PROBABILITY = 1e-30  # whose logarithm a damped loop returns; it limits the gradient to 1e30
INITIALS: tuple[Initial, ...] = get_args(Initial)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
NOT_FINITE = "logits, filters, weights: expected values whose sums float32 holds, got NaN or infinity"


def mean_field(
    logits: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor],
    compatibility: Compatibility = "potts", iterations: int = 5, unary_weight: float | torch.Tensor = 1.0,
    initial: Initial = "softmax", output: Output = "probabilities", damping: float = 0.0,
    temperature: float | torch.Tensor = 1.0, activation: Activation = "softmax",
) -> torch.Tensor:  # fmt: skip
    r"""Mean-field inference in a dense CRF.

    .. math::
        Q \leftarrow (1 - d)\, \mathrm{softmax}\Big(\frac{1}{\tau}\Big(a\,U - \mu \sum_m W_m K_m Q\Big)\Big) + d\,Q

    `iterations` times from Q = softmax(U) (Krähenbühl and Koltun 2011; CRF-as-RNN, section 4).

    All pixels are updated in parallel. If each update lowers the free energy (see `trace`), Q converges. If not, with
    costs that are not semidefinite or kernels that leave out the pixel itself, Q may oscillate between two states. A
    damping d > 0 helps: with temperature 1 the damped update is that of a regularised Frank-Wolfe method with the
    entropy as its regulariser, a step of 1 - d towards the minimum of the linearised free energy (Lê-Huu and Alahari
    2021), and small enough steps descend. Krähenbühl and Koltun (2013) show that undamped updates descend where the
    pairwise term is concave.

    Args:
        logits: U, minus the unary energies, [B, C, *S] with C >= 2 and 1 to 3 spatial axes; floating. Half
            precision is accumulated in float32. A logit of -inf rules a class out at its pixel, where a > 0.
        filters: the pairwise filters K_m, see `tritoncrf.filters`.
        weights: one W_m per filter: a float, a 0-d tensor, per class [C], or [C, C] (row: the class that
            receives).
        compatibility: "potts" (mu = -I, which a softmax cannot tell from [l != l']), or a [C, C] tensor
            of costs: positive repels, row: the class that receives.
        iterations: number of updates, 0 or more.
        unary_weight: a, a float or [C].
        initial: what the first messages are computed from: "softmax" of U, or its "log_softmax" itself
            (the released ConvCRF).
        output: "probabilities", "logits" (the argument of the last softmax; defined only up to a constant per pixel) or
            "log_probabilities". With damping, both are log Q, with probabilities of at least 1e-30; with
            activation="relu" this always holds for the last one.
        damping: d, the fraction of the old Q that is kept, from 0 to below 1; above 0 only with initial="softmax".
        temperature: tau, a number above 0 or a 0-d tensor; above 1, Q is less certain.
        activation: what turns scores S into Q, here and for the first messages: "softmax", or "relu",
            max(S, 0) / sum_l max(S_l, 0), which gives most classes a Q of 0 (CRF-as-RNN, section 6, which reports 1 %
            of mean IoU less for it). Where no score is above 0, all classes that are not ruled out have the same Q, and
            no gradient passes; Q is discontinuous there. A constant per pixel matters, so that "potts" and the costs
            [l != l'] differ. Messages come from the filters' own kernels, the rest from PyTorch. Only with
            initial="softmax" and temperature=1, which would not change Q.

    Returns:
        [B, C, *S], dtype and device of `logits`. Gradients reach logits, the filters' features, weights,
        compatibility, unary_weight and temperature; first derivatives only.

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
    damping, tau = expect_update(damping, temperature, logits, initial)
    _expect_activation(activation, initial, tau)
    if tau is not None:
        mixing, scale = [a / tau for a in mixing], scale / tau

    scores = possible(logits)
    normalized = softmax if activation == "softmax" else functools.partial(rectified, open=scores > -checks.RULED_OUT)
    if iterations > 0 and (activation == "relu" or any(f.plan is None for f in filters)):
        scores = _unrolled(scores, scale, mixing, filters, iterations, initial, damping, normalized)
    elif iterations > 0:
        tensors = [t for f in filters for t in f.tensors_in(scores.dtype)]
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (logits, scale, *mixing, *tensors))
        plans = resolved(filters, scores)
        loop = iterate.on(plans[0].backend)
        scores, *_ = loop(scores, scale, mixing, tensors, encode(plans), iterations, initial, damping, keep)
    if checks.values_checked(scores) and launches_run() and not checks.all_finite(scores):
        raise ValueError(NOT_FINITE)
    if damping and iterations > 0:
        found = scores if output == "probabilities" else scores.clamp_min(LEAST_PROBABILITY).log()
        return found.to(logits.dtype)
    if output == "probabilities":
        scores = normalized(scores)
    elif output == "log_probabilities" and activation == "relu":
        scores = normalized(scores).clamp_min(LEAST_PROBABILITY).log()
    elif output == "log_probabilities":
        scores = torch.log_softmax(scores, 1)
    return scores.to(logits.dtype)


def checked(
    logits: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor],
    compatibility: Compatibility, iterations: int, unary_weight: float | torch.Tensor, initial: Initial,
) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """The A_m = -mu W_m and a as tensors on the device of the logits; raises an error for arguments that the loop
    cannot take."""
    checks.expect_tensor("logits", logits)
    checks.expect_spatial("logits", logits)
    checks.expect_classes("logits", logits)
    expect_filters(filters, weights, logits)
    checks.expect_int("iterations", iterations, 0, checks.MOST_ITERATIONS)
    checks.expect_choice("initial", initial, INITIALS)
    return algebra(logits, weights, compatibility, unary_weight)


def algebra(
    logits: torch.Tensor, weights: Sequence[float | torch.Tensor], compatibility: Compatibility,
    unary_weight: float | torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:  # fmt: skip
    """The A_m = -mu W_m and a as tensors on the device of the logits, [B, C, *S]."""
    mixing = [_class_weight(f"weights[{m}]", w, logits, ndim=2) for m, w in enumerate(weights)]
    scale = _class_weight("unary_weight", unary_weight, logits, ndim=1)
    if not (isinstance(compatibility, str) and compatibility == "potts"):
        mu = _compatibility(compatibility, logits)
        # In float64, which autocast does not change, nor in the backward pass.
        mixing = [(-mu.double() @ w.double()).to(mu.dtype) if w.ndim == 2 else -mu * w for w in mixing]
        for a in mixing:
            checks.expect_finite("compatibility times weights", a)
    checks.expect_no_tangents(logits, *mixing, scale)
    return mixing, scale


def expect_damping(damping: float) -> float:
    """A loop's damping, or an error."""
    number = checks.expect_number("damping", damping)
    if not 0 <= number < 1:
        raise ValueError(f"damping: expected a number from 0 to below 1, got {damping}")
    return number


def expect_update(
    damping: float, temperature: float | torch.Tensor, logits: torch.Tensor, initial: Initial
) -> tuple[float, torch.Tensor | None]:
    """A loop's damping, and its temperature [] on the device of the logits, None for 1; or an error."""
    damping = expect_damping(damping)
    if damping and initial != "softmax":
        raise ValueError(
            f"damping: expected 0 with initial={initial!r}, whose first messages are not probabilities, got {damping}"
        )
    checks.expect_positive_number("temperature", temperature)
    if not isinstance(temperature, torch.Tensor) and temperature == 1:
        return damping, None
    return damping, _class_weight("temperature", temperature, logits, ndim=0)


def _expect_activation(activation: Activation, initial: Initial, tau: torch.Tensor | None) -> None:
    checks.expect_choice("activation", activation, ACTIVATIONS)
    if activation == "relu" and initial != "softmax":
        raise ValueError(f"initial: expected 'softmax' with activation='relu', which replaces it, got {initial!r}")
    if activation == "relu" and tau is not None:
        raise ValueError(
            f"temperature: expected 1 with activation='relu', whose Q it does not change, got {tau.item()}"
        )


def expect_filters(
    filters: Sequence[Filter], weights: Sequence[float | torch.Tensor], values: torch.Tensor, name: str = "logits"
) -> None:
    """Raise an error unless these are filters for values [B, C, *S], called `name` in the message, and as many
    weights."""
    for argument, value in ("filters", filters), ("weights", weights):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{argument}: expected a list, one per filter, got {checks.kind_of(value)}")
    if not filters:
        raise ValueError("filters: expected at least one filter, got an empty list")
    for m, f in enumerate(filters):
        if not isinstance(f, Filter):
            raise TypeError(f"filters[{m}]: expected a filter of tritoncrf.filters, got {checks.kind_of(f)}")
        f.check_fits(name, values)
    if len(weights) != len(filters):
        raise ValueError(f"weights: expected one per filter, {len(filters)}, got {len(weights)}")


def _class_weight(name: str, value: float | torch.Tensor, logits: torch.Tensor, ndim: int) -> torch.Tensor:
    """A weight on the class axis as a tensor [], [C] or, for ndim 2, [C, C] on the device of the logits."""
    classes, dtype = logits.shape[1], compute_dtype(logits)
    if not isinstance(value, torch.Tensor):
        return torch.full((), checks.expect_number(name, value), dtype=dtype, device=logits.device)
    checks.expect_tensor(name, value, "a number or a floating-point torch.Tensor")
    shapes = [(), (classes,), (classes, classes)][: ndim + 1]
    if tuple(value.shape) not in shapes:
        wanted = ", ".join(str(list(s)) for s in shapes)
        raise ValueError(f"{name}: expected a shape of {wanted}, got {list(value.shape)}")
    _check_device(name, value, logits)
    value = value.to(dtype)
    checks.expect_finite(name, value)
    return value


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


def possible(logits: torch.Tensor) -> torch.Tensor:
    """Checked logits in the dtype of the loop, with large instead of infinite ones for classes that are ruled out."""
    ruled_out = checks.expect_logits("logits", logits, axis=1)
    found = logits.to(compute_dtype(logits))
    return torch.where(found == -math.inf, -checks.RULED_OUT, found) if ruled_out else found


def started(unary: torch.Tensor, initial: str) -> torch.Tensor:
    """The probabilities from which the first messages are computed."""
    return softmax(unary) if initial == "softmax" else torch.log_softmax(unary, 1).clamp_min(LEAST_LOGARITHM)


def resolved(filters: Sequence[Filter], values: torch.Tensor) -> list[Plan]:
    """The plans of filters with the backends for `values`; either all or none are graphs of standard operators."""
    plans = [f.resolved(values) for f in filters]
    if all(p.backend == "graph" for p in plans):
        return plans
    return [replace(p, backend="torch") if p.backend == "graph" else p for p in plans]


def _unrolled(
    unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor], filters: Sequence[Filter],
    iterations: int, initial: Initial, damping: float, normalized: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """The first result of `iterate`, by operations that autograd records, with another activation than the softmax."""
    with without_autocast(unary):
        q = normalized(unary) if initial == "softmax" else started(unary, initial)
        weighted = mix(unary_weight, unary)
        for t in range(iterations):
            scores = weighted
            for a, f in zip(mixing, filters, strict=True):
                scores = scores + mix(a, f.filtered(q))
            if damping:
                q = torch.lerp(normalized(scores), q, damping)
            elif t < iterations - 1:
                q = normalized(scores)
        return q if damping else scores


def _start(
    plans: Sequence[Plan], tensors: list[torch.Tensor], mixing: list[torch.Tensor], unary: torch.Tensor,
    unary_weight: torch.Tensor,
) -> Step:  # fmt: skip
    """The step that runs these filters, each prepared with its own tensors."""
    budget = KEPT_STATES * unary.shape[1] / len(plans)
    operators = [p.operator(own, budget) for p, own in zip(plans, _by_filter(plans, tensors), strict=True)]
    return plans[0].step(plans, mixing, unary)(operators, mixing, unary, unary_weight)


def _next(step: Step, state: State, damping: float) -> State:
    new = step.next(state)
    return step.damped(new, state, damping) if damping else new


@operator("mean_field")
def iterate(
    unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor], tensors: list[torch.Tensor],
    plans: str, iterations: int, initial: str, damping: float, keep: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """[S_T], or [Q_T] if damped, followed by Q_0 .. Q_{T-1} in the step's layout if `keep`."""
    unary = unary.contiguous()
    with without_autocast(unary):
        step = _start(decode(plans), tensors, mixing, unary, unary_weight)
        step.keeps = keep or damping > 0
        state = step.start(started(unary, initial))
        kept = [step.probabilities(state)] if keep else []
        for _ in range(iterations - 1):
            state = _next(step, state, damping)
            if keep:
                kept.append(step.probabilities(state))
        last = step.image(step.probabilities(_next(step, state, damping))) if damping else step.scores(state)
        del step, state  # free their memory before that of a copy is allocated
        return [last.contiguous(), *kept]


@iterate.register_fake
def _(
    unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor], tensors: list[torch.Tensor],
    plans: str, iterations: int, initial: str, damping: float, keep: bool,
) -> list[torch.Tensor]:  # fmt: skip
    decoded = decode(plans)
    shape = decoded[0].step(decoded, mixing, unary).kept_shape(unary)
    return [torch.empty(unary.shape, dtype=unary.dtype, device=unary.device)] + [
        torch.empty(shape, dtype=unary.dtype, device=unary.device) for _ in range(iterations if keep else 0)
    ]


@operator("mean_field_backward")
def iterate_backward(
    cotangent: torch.Tensor, unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor],
    tensors: list[torch.Tensor], states: list[torch.Tensor], plans: str, initial: str, damping: float,
    needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of unary, unary_weight, each of mixing and of tensors; empty where `needs` is false.

    states: Q_0 .. Q_{T-1} from `iterate`, followed by Q_T [B, C, *S] if damped.
    needs: unary, unary_weight, any of mixing; then each filter, whether any of its tensors.
    """
    needs_unary, needs_unary_weight, needs_mixing, *needs_filters = needs
    unary = unary.contiguous()
    decoded = decode(plans)
    with without_autocast(unary):
        step = _start(decoded, tensors, mixing, unary, unary_weight)
        d_mixing = [torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in mixing] if needs_mixing else []
        d_tensors: list[list[torch.Tensor]] = [[] for _ in decoded]
        g = step.arrange(cotangent)
        total = torch.zeros_like(g)  # the sum of dS_1 .. dS_T
        if damping:
            *states, last = states
            after = step.arrange(last)
        for t in reversed(range(len(states))):
            q = states[t]
            if damping:
                dq, p = g, (after - damping * q) / (1 - damping)
                g = step.arrange((1 - damping) * softmax_adjoint(step.image(p), step.image(dq))).contiguous()
            total += g
            if any(needs_filters):
                found = step.gradients(q, g, needs_filters)
                d_tensors = [[a + b for a, b in zip(*pair)] if pair[0] else pair[1] for pair in zip(d_tensors, found)]
            through_softmax = not damping and (t > 0 or initial == "softmax")
            g, back = step.backward(q, g, through_softmax, needs_mixing)
            if back is not None:
                for d, more in zip(d_mixing, step.mixing_gradients(q, back), strict=True):
                    d += more
            if damping:
                g, after = g + damping * dq, q
        g, total = step.image(g), step.image(total)
        if damping:
            g = softmax_adjoint(step.image(q), g)
        if initial == "log_softmax":
            g = torch.where(unary > -checks.RULED_OUT, g, 0)
            g = g - torch.softmax(unary, 1) * g.sum(1, keepdim=True)
        known = torch.where(unary > -checks.RULED_OUT, unary, 0) if needs_unary_weight else unary
        aligned = []
        for own, gradients in zip(_by_filter(decoded, tensors), d_tensors, strict=True):
            aligned += align_gradients(own, gradients, unary)
        return [
            (mix(unary_weight, total) + g).contiguous() if needs_unary else unary.new_empty(0),
            outer(total, known, unary_weight.ndim) if needs_unary_weight else unary.new_empty(0),
            *(d_mixing if needs_mixing else [a.new_empty(0) for a in mixing]),
            *aligned,
        ]


def _by_filter(plans: Sequence[Plan], items: Sequence[Any]) -> list[list[Any]]:
    """Group a list with one entry per tensor into one list per filter."""
    left = iter(items)
    return [[next(left) for _ in range(p.tensor_count)] for p in plans]


@iterate_backward.register_fake
def _(
    cotangent: torch.Tensor, unary: torch.Tensor, unary_weight: torch.Tensor, mixing: list[torch.Tensor],
    tensors: list[torch.Tensor], states: list[torch.Tensor], plans: str, initial: str, damping: float,
    needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    decoded = decode(plans)
    groups = [unary], [unary_weight], mixing, *_by_filter(decoded, tensors)
    return [
        torch.empty(gradient_shape(t, needed), dtype=unary.dtype, device=unary.device)
        for group, needed in zip(groups, needs, strict=True)
        for t in group
    ]


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    unary, unary_weight, mixing, tensors, ctx.plans, ctx.iterations, ctx.initial, ctx.damping, _ = inputs
    ctx.counts = len(mixing), len(tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(unary, unary_weight, *mixing, *tensors, *output[1:], *output[: 1 if ctx.damping else 0])


def _backward(ctx: Context, cotangents: list[torch.Tensor]) -> tuple[Any, ...]:
    unary, unary_weight, *rest = ctx.saved_tensors
    m, k = ctx.counts
    mixing, tensors, states = rest[:m], rest[m : m + k], rest[m + k :]
    needed = ctx.needs_input_grad
    by_filter = [any(tensors) for tensors in _by_filter(decode(ctx.plans), needed[3])]
    needs = [needed[0], needed[1], any(needed[2]), *by_filter]
    found = iterate_backward(
        cotangents[0].contiguous(),
        unary,
        unary_weight,
        mixing,
        tensors,
        states,
        ctx.plans,
        ctx.initial,
        ctx.damping,
        needs,
    )
    d_unary, d_weight, rest = found[0], found[1], found[2:]
    return (
        d_unary if needs[0] else None,
        d_weight if needs[1] else None,
        rest[:m] if needs[2] else [None] * m,
        gradients_or_none(tensors, rest[m:], needed[3]),
        None, None, None, None, None,
    )  # fmt: skip


iterate.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(iterate_backward)

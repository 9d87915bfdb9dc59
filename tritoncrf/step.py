"""One step of mean field: the algebra of the class axis, and the step composed of separate passes.

    forward   S = a U + sum_m A_m F_m ,  Q = softmax(S)                  F_m = K_m Q
    backward  dQ = sum_m A_m^T G_m ,     dS = Q (dQ - <Q, dQ>)           G_m = K_m^T G,  G = dL/dS of the next S

A_m acts on the class axis: a scalar [], a vector [C] or a matrix [C, C]. Scores and probabilities are [B, C, *S].
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch

FEW_NUMBERS = 1 << 21  # pixels times classes, or pixels times lattice vertices
KEPT_STATES = 3  # memory that a loop's filters may keep between iterations, in states Q
PART = 1 << 19  # numbers in float64 at a time: few calls, and 4 MB

State: TypeAlias = Any  # what a step passes to the next one, of any type


class Operator(Protocol):
    """A filter prepared for one image: the linear map K, the same for every class."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """K x for x [B, C, *S]."""

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """K^T y for y [B, C, *S]."""

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of <y, K x> with respect to each of the filter's floating-point tensors."""


class Step:
    """The step in separate passes, for any filters; the base class of the fused steps, which are tested against it.

    The loop calls `start` once, then `next`, and finally `scores`. A state has everything that one step passes to the
    next, so the result depends only on the state, not on earlier calls. The loop may keep the `probabilities` of each
    state, in the step's own layout: `arrange` and `image` convert from and to [B, C, *S], and `backward` and
    `gradients` use that layout.

    keeps: whether the loop reads `probabilities` of the states that `next` returns.
    operators: an `Operator` for each filter; a fused step also uses further methods of its own filter's operators.
    """

    keeps = True

    def __init__(
        self, operators: Sequence[Any], mixing: Sequence[torch.Tensor], unary: torch.Tensor,
        unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.operators, self.mixing, self.unary, self.unary_weight = operators, mixing, unary, unary_weight

    @staticmethod
    def kept_shape(unary: torch.Tensor) -> Sequence[int]:
        """The shape of the results of `arrange` and `probabilities`."""
        return unary.shape

    def arrange(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def image(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def start(self, q: torch.Tensor) -> State:
        """The state of Q [B, C, *S]."""
        return self.arrange(q)

    def next(self, state: State) -> State:
        """The state of softmax(a U + sum_m A_m K_m Q)."""
        return softmax(self.scores(state))

    def damped(self, new: State, old: State, share: float) -> State:
        """The state of (1 - share) Q' + share Q from the states of Q' and Q; `new` is overwritten."""
        return torch.lerp(new, old, share)

    def scores(self, state: State) -> torch.Tensor:
        """a U + sum_m A_m K_m Q, [B, C, *S]."""
        messages = (mix(a, K.apply(state)) for K, a in zip(self.operators, self.mixing, strict=True))
        total = next(messages)
        for message in messages:
            total.add_(message)
        return total.add_(self.weighted_unary)

    @functools.cached_property
    def weighted_unary(self) -> torch.Tensor:
        """a U; the backward pass does not need it."""
        return mix(self.unary_weight, self.unary)

    def probabilities(self, state: State) -> torch.Tensor:
        """The Q of a state, contiguous, in the step's layout."""
        q: torch.Tensor = state
        return q.contiguous()

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, messages: bool
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        """dS for Q (dQ unless `through_softmax`) from g = dL/dS of the next S; and, if `messages`, the G_m or what
        `mixing_gradients` takes instead."""
        back = [K.adjoint(g) for K in self.operators]
        gradient: torch.Tensor = sum(mix_adjoint(a, b) for a, b in zip(self.mixing, back, strict=True))  # type: ignore[assignment]
        return softmax_adjoint(q, gradient) if through_softmax else gradient, back if messages else None

    def mixing_gradients(self, q: torch.Tensor, messages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The contribution of this step to the gradients of the A_m: those of <A_m^T g, K_m Q>, from the messages of
        `backward`."""
        return [outer(self.image(b), self.image(q), a.ndim) for a, b in zip(self.mixing, messages, strict=True)]

    def gradients(self, q: torch.Tensor, g: torch.Tensor, needs: Sequence[bool]) -> list[list[torch.Tensor]]:
        """The contribution of this step to the gradients of the tensors of each filter that `needs` them: those of
        <A_m^T g, K_m Q>."""
        q, g = self.image(q), self.image(g)
        return [
            K.gradients(q, mix_adjoint(a, g)) if needed else []
            for K, a, needed in zip(self.operators, self.mixing, needs, strict=True)
        ]


def _parts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """x [B, C, *S] as [B, C, N], cut along its pixels into parts of at most PART numbers; in one piece for compilers,
    where sizes may be symbolic."""
    if torch.compiler.is_compiling():
        return (x.flatten(2),)
    return x.flatten(2).split(max(1, PART // max(1, x.shape[0] * x.shape[1])), 2)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """The softmax over the classes of x [B, C, *S]. On a CPU, the exact result of a pixel depends only on its own
    scores, not on its position: PyTorch uses another exponential for the last pixels of an image and of each thread's
    share."""
    recorded = torch.is_grad_enabled() and x.requires_grad
    if x.device.type != "cpu" or recorded or torch.compiler.is_compiling():
        return torch.softmax(x, 1)
    found = torch.empty(x.shape, dtype=x.dtype)
    for scores, part in zip(_parts(x), _parts(found), strict=True):
        torch.sub(scores, scores.amax(1, keepdim=True), out=part).exp_()
        part.div_(_class_sum(part))
    return found


def rectified(x: torch.Tensor, open: torch.Tensor) -> torch.Tensor:
    """max(x, 0) divided by its sum over the classes of x [B, C, *S]; where that is 0, equal for all classes in
    `open`."""
    found, possible = x.relu(), open.to(x.dtype)
    total = found.sum(1, keepdim=True)
    some = total > 0
    return torch.where(some, found / torch.where(some, total, 1), possible / possible.sum(1, keepdim=True))


def _class_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over classes, [B, 1, N], in the same order for every pixel, unlike PyTorch's sum."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        total = x[:, :half] + x[:, half : 2 * half]
        if x.shape[1] % 2:
            total[:, :1] += x[:, -1:]
        x = total
    return x


@contextlib.contextmanager
def few_threads(device: torch.device, numbers: int) -> Iterator[None]:
    """Run a block of many small operations, on this many numbers, in one thread of a CPU.

    PyTorch's threads wait for each other at each operation, for milliseconds if another process uses one of their
    cores. Only the size decides, never the load, because another number of threads may change the last bits. Only this
    thread's count changes, and that of threads that first use PyTorch meanwhile.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or numbers > FEW_NUMBERS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def mix(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A x on the class axis of x [B, C, *S], for A of shape [], [C] or [C, C]. A matrix multiplies in float64, which
    the TF32 setting does not affect."""
    if a.ndim == 2:
        return torch.cat([(a.double() @ part.double()).to(x.dtype) for part in _parts(x)], 2).view(x.shape)
    return x * a.view(-1, *(1,) * (x.ndim - 2))


def mix_adjoint(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A^T x on the class axis of x."""
    return mix(a.mT if a.ndim == 2 else a, x)


def outer(b: torch.Tensor, q: torch.Tensor, ndim: int) -> torch.Tensor:
    """b q^T [C, C], its diagonal [C] or its trace [], over batch and pixels: dL/dA for A with `ndim` axes. A matrix is
    summed in float64, as in `mix`."""
    if ndim == 2:
        products = (one.double() @ other.double().mT for one, other in zip(_parts(b), _parts(q), strict=True))
        return sum(product.sum(0) for product in products).to(b.dtype)  # type: ignore[union-attr]
    products = torch.linalg.vecdot(b.flatten(2), q.flatten(2)).sum(0)
    return products if ndim == 1 else products.sum()


def scaled(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return x if scale is None else x * scale


def stacked(mixing: Sequence[torch.Tensor], classes: int) -> torch.Tensor:
    """The A_m as one tensor: [M, 1] if all are scalars, else [M, C], or [M, C, C] if one is a matrix."""
    ndim = max(a.ndim for a in mixing)
    if ndim == 0:
        return torch.stack(list(mixing))[:, None]
    vectors = [a if a.ndim == 2 else a.expand(classes) for a in mixing]
    return torch.stack([torch.diag(a) if a.ndim < ndim else a for a in vectors])


def softmax_adjoint(q: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """dS = Q (dQ - <Q, dQ>) for Q and dQ [B, C, *S]."""
    return q * (gradient - (q * gradient).sum(1, keepdim=True))


def contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


def to_3d(x: torch.Tensor) -> torch.Tensor:
    """[B, C, *S] as [B, C, Z, Y, X], with missing axes of extent 1."""
    for _ in range(5 - x.ndim):
        x = x.unsqueeze(2)
    return x


def from_3d(x: torch.Tensor, axes: int) -> torch.Tensor:
    """[B, C, Z, Y, X] with only its last `axes` axes; the others have extent 1."""
    for _ in range(3 - axes):
        x = x.select(2, 0)
    return x


def per_axis(value: int, axes: int, missing: int) -> tuple[int, ...]:
    """`value` for each of the last `axes` of three axes, `missing` for the others."""
    return (missing,) * (3 - axes) + (value,) * axes

"""A pairwise filter from any linear map."""

from collections.abc import Callable
from typing import Any

import torch

from tritoncrf import checks
from tritoncrf.backends import without_autocast
from tritoncrf.filters.base import Filter
from tritoncrf.step import Operator

Map = Callable[[torch.Tensor], torch.Tensor]


class Function(Filter):
    r"""A filter K from a function that applies it: any map that is linear in its values and the same for every class.

    .. math::
        (K x)_c = K x_c \qquad \text{for every class } c

    The mean-field step around it runs in PyTorch. Gradients of the values, and of any tensors inside the function, are
    computed by autograd unless an adjoint is given.

    Args:
        apply: takes values [B, C, *S], float32 or float64, and returns the same shape and dtype.
        adjoint: K^T in the same form, for functions that autograd cannot differentiate (NumPy, SciPy, a compiled
            extension); gradients then reach only the values.

    Raises:
        TypeError: an argument is not a function; when called, it did not return a tensor of the values' dtype.
        ValueError: when called, it returned another shape.

    Example:
        >>> import torch, tritoncrf as tc
        >>> K = tc.filters.Function(lambda x: torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2))
        >>> tc.mean_field(torch.randn(1, 4, 20, 30), [K], weights=[3.0]).shape
        torch.Size([1, 4, 20, 30])
    """

    def __init__(self, apply: Map, adjoint: Map | None = None) -> None:
        for name, value in ("apply", apply), ("adjoint", adjoint):
            if not callable(value) and (value is not None or name == "apply"):
                raise TypeError(f"{name}: expected a function of values [B, C, *S], got {checks.kind_of(value)}")
        self.function, self.transposed = apply, adjoint

    def filtered(self, values: torch.Tensor) -> torch.Tensor:
        if self.transposed is None:
            return _checked("apply", self.function, values)
        found: torch.Tensor = _WithAdjoint.apply(values, self.function, self.transposed)
        return found

    def operator(self, values: torch.Tensor) -> Operator:
        return _Operator(self)

    def __repr__(self) -> str:
        return f"Function({self.function!r}{'' if self.transposed is None else f', adjoint={self.transposed!r}'})"


def _checked(name: str, function: Map, values: torch.Tensor) -> torch.Tensor:
    with without_autocast(values):
        found = function(values)
    if not isinstance(found, torch.Tensor) or found.dtype != values.dtype:
        raise TypeError(f"{name}: expected it to return a {values.dtype} tensor, got {checks.kind_of(found)}")
    if found.shape != values.shape:
        raise ValueError(f"{name}: expected it to return shape {list(values.shape)}, got {list(found.shape)}")
    return found


class _WithAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, function: Map, transposed: Map) -> torch.Tensor:
        ctx.transposed = transposed
        return _checked("apply", function, values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _checked("adjoint", ctx.transposed, cotangent.contiguous()), None, None


class _Operator:
    """The same without autograd, for callers that need only messages."""

    def __init__(self, filter: Function) -> None:
        self.filter = filter

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self.filter.filtered(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a Function is differentiated by autograd")

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError("a Function is differentiated by autograd")

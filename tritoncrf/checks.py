"""Argument checks, made once at the public boundary.

Shapes, dtypes and options are checked always. Values (NaN, ranges) cost a pass over the data and, on a
GPU, a synchronisation, so `values_checked` decides: CPU tensors in eager mode, or `check_values(True)`.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import forward_ad

from tritoncrf.types import Theta

Arguments = ParamSpec("Arguments")
Choice = TypeVar("Choice")
Result = TypeVar("Result")

_value_checks = contextvars.ContextVar("value_checks", default=False)


class check_values:
    """Also check values of CUDA tensors (NaN, image range, thetas, labels) in this thread; a call or a `with` block.

    By default values are looked at for CPU tensors in eager mode only: on CUDA a look costs a
    synchronisation. Never looked at while compiling, exporting or capturing a CUDA graph.

    Args:
        enabled: whether they are, from here on, or within the block.

    Example:
        >>> import tritoncrf as tc
        >>> with tc.check_values(True):
        ...     f = tc.features.spatial((4, 5), theta=3.0)
    """

    def __init__(self, enabled: bool) -> None:
        self.previous = _value_checks.get()
        _value_checks.set(bool(enabled))

    def __enter__(self) -> "check_values":
        return self

    def __exit__(self, *exception: object) -> None:
        _value_checks.set(self.previous)


def values_checked(x: torch.Tensor) -> bool:
    """Whether the values of `x` may be looked at here."""
    if torch.compiler.is_compiling():  # exporting too
        return False
    if isinstance(x, torch._subclasses.FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if x.device.type == "cpu":
        return True
    if x.device.type == "cuda":
        return _value_checks.get() and not torch.cuda.is_current_stream_capturing()
    return False


@contextlib.contextmanager
def renamed(name: str, to: str) -> Iterator[None]:
    """Errors about the argument `name` of what is called inside name `to` instead, which `name` was made of."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(f"{name}: "):
            raise
        raise ValueError(to + str(error).removeprefix(name)) from None


def old_names(**new: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A call with an argument's old name is a TypeError that says what took its place."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for old in new.keys() & kwargs.keys():
                raise TypeError(f"{old}: no longer an argument; use {new[old]}")
            return function(*args, **kwargs)

        return called

    return decorate


def kind_of(value: object) -> str:
    """What came, in the words of an error message."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {list(value.shape)} and dtype {value.dtype}"
    return f"{value!r} ({type(value).__name__})"


def expect_tensor(name: str, value: object, what: str = "a floating-point torch.Tensor") -> torch.Tensor:
    """`value` itself if it is a floating-point tensor, else a TypeError naming the argument."""
    if not isinstance(value, torch.Tensor):
        hint = "; torch.from_numpy(x) makes one" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{name}: expected {what}, got {kind_of(value)}{hint}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected {what}, got {kind_of(value)}")
    return value


def expect_no_tangents(*tensors: torch.Tensor) -> None:
    """An error where a tensor carries a tangent of forward-mode differentiation, which PyTorch's operators would drop
    without a word."""
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            "tritoncrf offers no forward-mode differentiation (jvp); reverse mode (backward) works"
        )


def expect_choice(name: str, value: Choice, choices: Iterable[Choice]) -> Choice:
    """`value` itself if it is one of `choices`, else a ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def expect_int(name: str, value: Any, least: int, most: int | None = None, odd: bool = False) -> int:
    """`value` as an int within the bounds, else a TypeError (not a whole number) or ValueError."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
    wanted = f"an {'odd ' if odd else ''}int {bounds}"
    plain = isinstance(value, (int, torch.SymInt))  # kept symbolic in a compiled or exported graph
    if isinstance(value, bool) or not (plain or hasattr(value, "__index__")):
        raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}")
    value = value if plain else value.__index__()
    if value < least or (most is not None and value > most) or (odd and value % 2 == 0):
        raise ValueError(f"{name}: expected {wanted}, got {value}")
    return value


def expect_bool(name: str, value: object) -> bool:
    """`value` itself if it is a bool, else a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {kind_of(value)}")
    return value


def expect_number(name: str, value: Any, positive: bool = False) -> float:
    """`value` as a finite float (above zero if `positive`), else an error."""
    wanted = "a finite number above 0" if positive else "a finite number"
    plain = isinstance(value, (int, float))  # asked first: a compiled graph's symbolic float has no hasattr
    single = plain or (hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0)
    if isinstance(value, (bool, str)) or not single:
        raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}")
    value = float(value)
    if not (0 if positive else -math.inf) < value < math.inf:
        raise ValueError(f"{name}: expected {wanted}, got {value}")
    return value


def expect_finite(name: str, value: torch.Tensor) -> None:
    """A ValueError if a value that may be looked at is NaN or infinite."""
    # A sum, much quicker, clears nearly all; of finite values it may overflow.
    if values_checked(value) and not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite of {value.numel()}")


def expect_spatial(name: str, value: torch.Tensor, axes: str = "[B, C, *S]") -> None:
    """A ValueError unless `value` has batch, classes (or channels) and 1 to 3 spatial axes."""
    if not 3 <= value.ndim <= 5:
        raise ValueError(f"{name}: expected {axes} with 1, 2 or 3 spatial axes, got shape {list(value.shape)}")
    if 0 in value.shape[2:]:
        raise ValueError(f"{name}: expected at least one pixel along every axis, got shape {list(value.shape)}")


def expect_positive(name: str, value: Theta, count: int, each: str = "axis") -> list[float | torch.Tensor]:
    """`value` as `count` numbers above 0: floats, or 0-d tensors whose gradients flow.

    `value` is one number or 0-d tensor for all, or one per `each` (a sequence or a 1-d tensor).
    """
    wanted = f"a finite number above 0, or one per {each} ({count})"
    if isinstance(value, (int, float)) or not (isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1):
        values = [value] * count
    else:
        values = list(value)
        if len(values) != count:
            raise ValueError(f"{name}: expected {wanted}, got {len(values)}")
    return [expect_positive_number(name, v, wanted) for v in values]


def expect_positive_number(name: str, value: object, wanted: str = "a finite number above 0") -> float | torch.Tensor:
    """`value` as a float above 0, or itself if it is a 0-d tensor, else an error."""
    if not isinstance(value, torch.Tensor):
        return expect_number(name, value, positive=True)
    expect_tensor(name, value, wanted)
    if value.ndim:
        raise ValueError(f"{name}: expected {wanted}, got {kind_of(value)}")
    if values_checked(value) and not (value > 0 and torch.isfinite(value)):
        raise ValueError(f"{name}: expected {wanted}, got {value.item()}")
    return value

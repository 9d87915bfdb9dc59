"""Argument checks, made once at the public boundary.

Shapes, dtypes and options are checked always. Values (NaN, ranges) cost a pass over the data and, on a
GPU, a synchronisation, so `values_checked` decides: CPU tensors in eager mode, or `check_values(True)`.
"""

import contextlib
import contextvars
import functools
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import forward_ad

from tritoncrf.types import Theta

Arguments = ParamSpec("Arguments")
Choice = TypeVar("Choice")
Result = TypeVar("Result")

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
MOST_CLASSES = 1 << 16
RULED_OUT = 1e30  # replaces an infinite score: gives a probability of 0 too, but no infinity minus infinity
MOST_ITERATIONS = 10_000
LEAST, GREATEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

MOST_SHOWN = 100  # characters of a value in a message

_SHORT = reprlib.Repr()  # does not build the whole text of a long value
_SHORT.maxlong = _SHORT.maxstring = _SHORT.maxother = MOST_SHOWN

_value_checks = contextvars.ContextVar("value_checks", default=False)


class check_values:
    """Also check values of CUDA tensors (NaN, image range, thetas, labels) in this thread, by a call or a `with` block.

    By default only values of CPU tensors in eager mode are checked, because a check on CUDA costs a synchronisation.
    Values are never checked while compiling, exporting or capturing a CUDA graph.

    Args:
        enabled: whether they are checked, from now on or within the block.

    Example:
        >>> import tritoncrf as tc
        >>> with tc.check_values(True):
        ...     f = tc.features.spatial((4, 5), theta=3.0)
    """

    def __init__(self, enabled: bool) -> None:
        self.previous = _value_checks.get()
        _value_checks.set(expect_bool("enabled", enabled))

    def __enter__(self) -> "check_values":
        return self

    def __exit__(self, *exception: object) -> None:
        _value_checks.set(self.previous)


def values_checked(x: torch.Tensor) -> bool:
    """Whether the values of `x` may be read here."""
    if torch.compiler.is_compiling():  # or exporting
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
    """Make errors about the argument `name` of a call inside the block name `to` instead, from which `name` was
    made."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(f"{name}: "):
            raise
        raise ValueError(to + str(error).removeprefix(name)) from None


def old_names(**new: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A call with an argument's old name raises a TypeError that gives the new name."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for old in new.keys() & kwargs.keys():
                raise TypeError(f"{old}: no longer an argument; use {new[old]}")
            return function(*args, **kwargs)

        return called

    return decorate


def shown(value: object) -> str:
    """`value` in a few words of one line, however long it is."""
    if isinstance(value, torch.Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        return kind_of(value)
    try:
        words = " ".join(_SHORT.repr(value).split())
        return words if len(words) <= MOST_SHOWN else f"{words[:MOST_SHOWN]}..."
    except Exception:  # a foreign repr may raise anything
        return f"<{type(value).__name__}>"


def kind_of(value: object) -> str:
    """A description of a value for an error message."""
    if isinstance(value, torch.Tensor):
        form = "nested " if value.is_nested else "masked " if _is_masked(value) else ""
        kind = f"{form}{str(value.dtype).removeprefix('torch.')} tensor"
        if value.is_nested:
            return f"a {kind}"
        layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        return f"a {layout}{kind} of shape {list(value.shape)} on {value.device}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {list(value.shape)} and dtype {value.dtype}"
    return f"{shown(value)} ({type(value).__name__})"


def expect_tensor(name: str, value: object, what: str = "a floating-point torch.Tensor") -> torch.Tensor:
    """`value` itself if it is a dense tensor of 16 to 64 bit floats, else a TypeError that names the argument."""
    if not isinstance(value, torch.Tensor):
        hint = "; torch.from_numpy(x) makes one" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{name}: expected {what}, got {kind_of(value)}{hint}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected {what}, got {kind_of(value)}")
    return expect_dense(name, value)


def _is_masked(value: torch.Tensor) -> bool:
    """Whether it is a tensor of torch.masked, which may not be imported."""
    return type(value).__name__ == "MaskedTensor"


def expect_dense(name: str, value: torch.Tensor) -> torch.Tensor:
    """`value` itself if it is a plain tensor, neither sparse, nested nor masked, else a TypeError."""
    plain = not value.is_nested and value.layout == torch.strided
    if not plain or _is_masked(value):
        hint = "; x.to_dense() makes one" if not plain and not value.is_nested else ""
        raise TypeError(f"{name}: expected a dense tensor, got {kind_of(value)}{hint}")
    return value


def expect_no_tangents(*tensors: torch.Tensor) -> None:
    """Raise an error if a tensor has a tangent of forward-mode differentiation, which PyTorch's operators would drop
    silently."""
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            "tritoncrf offers no forward-mode differentiation (jvp); reverse mode (backward) works"
        )


def expect_choice(name: str, value: Choice, choices: Iterable[Choice]) -> Choice:
    """`value` itself if it is one of `choices`, else a ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")
    return value


def expect_values(name: str, value: torch.Tensor) -> torch.Tensor:
    """`value` itself if it is a dense tensor that holds values, else an error."""
    if value.is_meta and not isinstance(value, torch._subclasses.FakeTensor):
        raise ValueError(f"{name}: expected values, got {kind_of(value)}")
    return expect_dense(name, value)


def expect_dtype(name: str, value: object, choices: Sequence[torch.dtype]) -> torch.dtype:
    """`value` itself if it is one of these dtypes, else a TypeError that lists them."""
    if not isinstance(value, torch.dtype) or value not in choices:
        raise TypeError(f"{name}: expected {' or '.join(map(str, choices))}, got {shown(value)}")
    return value


def expect_int(name: str, value: Any, least: int, most: int | None = None, odd: bool = False) -> int:
    """`value` as an int within the bounds, else a TypeError (not a whole number) or ValueError."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
    wanted = f"an {'odd ' if odd else ''}int {bounds}"
    if not isinstance(value, (int, torch.SymInt)):  # kept symbolic in a compiled or exported graph
        try:
            value = _no_bool(value).__index__()
        except Exception:  # a foreign __index__ may raise anything
            raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}") from None
    elif isinstance(value, bool):
        raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}")
    if value < least or (most is not None and value > most) or (odd and value % 2 == 0):
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    return value


def _no_bool(value: Any) -> Any:
    """`value` itself, or a TypeError for the truth values of NumPy and torch."""
    if str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError
    return value


def expect_num_classes(name: str, value: Any) -> int:
    """`value` as a number of classes; a softmax needs at least two."""
    try:
        return expect_int(name, value, 2, MOST_CLASSES)
    except ValueError as error:
        hint = "; a network with one logit z has two, torch.cat([-z / 2, z / 2], 1)" if value == 1 else ""
        raise ValueError(f"{error}{hint}") from None


def expect_bool(name: str, value: object) -> bool:
    """`value` itself if it is a bool, else a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {kind_of(value)}")
    return value


def expect_number(name: str, value: Any, positive: bool = False) -> float:
    """`value` as a float that float32 can hold (above zero if `positive`), else an error."""
    wanted = "a finite number above 0" if positive else "a finite number"
    if not isinstance(value, (int, float)):  # first, since the symbolic float of a compiled graph has no dtype
        kind = getattr(value, "dtype", None)
        complex_or_bool = isinstance(value, complex) or str(kind).removeprefix("torch.").startswith(("complex", "bool"))
        single = hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0
        if complex_or_bool or not single or getattr(kind, "kind", "f") not in "iuf":
            raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}")
    elif isinstance(value, bool):
        raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except Exception:  # a foreign __float__ may raise anything
        raise TypeError(f"{name}: expected {wanted}, got {kind_of(value)}") from None
    if not (0 if positive else -math.inf) < number < math.inf:
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    if abs(number) > GREATEST or (positive and number < LEAST):
        raise ValueError(f"{name}: expected {wanted} in the range of float32, got {number:.4g}")
    return number


def all_finite(value: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; it reads the values, so call it only where `values_checked`."""
    # A sum is much quicker and settles nearly all cases, but may overflow for finite values.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def expect_finite(name: str, value: torch.Tensor) -> None:
    """Raise a ValueError if a value that may be read is NaN or infinite."""
    if values_checked(value) and not all_finite(value):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} NaN or infinite of {value.numel()}")


def expect_probabilities(name: str, value: torch.Tensor, hint: str) -> None:
    """Raise a ValueError if a value is NaN or, beyond rounding, not from 0 to 1; `hint` suggests what to pass
    instead."""
    expect_finite(name, value)
    if not value.numel():
        return
    low, high = (v.item() for v in torch.aminmax(value.detach()))
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"{name}: expected 0 to 1, got {low:.4g} to {high:.4g}; {hint}")


def expect_logits(name: str, value: torch.Tensor, axis: int, sign: int = 1) -> bool:
    """Raise a ValueError if scores that may be read are neither finite nor rule a class out, or rule out all classes of
    a pixel.

    A class is ruled out by a logit of minus infinity; with sign = -1 by an energy of infinity. Returns False if all are
    known to be finite, so that no class is ruled out.
    """
    if not values_checked(value):
        return True
    if all_finite(value):
        return False
    ruled_out = value == -sign * math.inf
    if bad := int((~torch.isfinite(value) & ~ruled_out).sum()):
        infinity = "-inf" if sign > 0 else "inf"
        raise ValueError(
            f"{name}: expected finite values, or {infinity} for a class that is ruled out, got {bad} others that are "
            f"NaN or infinite, of {value.numel()}"
        )
    if none_left := int(ruled_out.all(axis).sum()):
        raise ValueError(f"{name}: expected a class that is not ruled out, got {none_left} pixels without one")
    return True


def expect_classes(name: str, value: torch.Tensor, axis: int = 1) -> None:
    """Raise a ValueError unless `value` has two classes or more on an axis."""
    if value.shape[axis] < 2:
        raise ValueError(
            f"{name}: expected at least 2 classes on axis {axis}, got shape {list(value.shape)}; a softmax of one "
            f"class is 1 everywhere: torch.cat([-z / 2, z / 2], {axis}) makes two of the logit z of a sigmoid"
        )


def expect_spatial(name: str, value: torch.Tensor, axes: str = "[B, C, *S]") -> None:
    """Raise a ValueError unless `value` has a batch axis, a class (or channel) axis and 1 to 3 spatial axes."""
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
    if values_checked(value):
        expect_number(name, value.item(), positive=True)
    return value

"""Plans, the static part of every filter, and the operators of `torch.library` that execute them.

A plan is a frozen dataclass of plain numbers. Together with the filter's tensors it creates an `Operator`, K. Compilers
and exporters see K as one opaque operator, with a fake implementation and a gradient, that takes the plan as a JSON
string.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

import torch

from tritoncrf.backends import to_onnx, without_autocast
from tritoncrf.step import Operator, Step

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

Context: TypeAlias = Any  # autograd's context, which accepts any attribute


@dataclass(frozen=True)
class Plan:
    """The static part of a filter; one subclass per kind, found by its class name."""

    precision: str
    backend: str

    kinds: ClassVar[dict[str, type["Plan"]]] = {}  # class name -> class
    in_graph: ClassVar[bool] = False  # whether there is a module for the filter in `graph`

    def __init_subclass__(cls) -> None:
        Plan.kinds[cls.__name__] = cls

    @property
    def tensor_count(self) -> int:
        """The number of tensors that `operator` takes."""
        raise NotImplementedError

    def operator(self, tensors: list[torch.Tensor], budget: float = 0) -> Operator:
        """K for one image; it may keep `budget` numbers per pixel to make repeated application faster."""
        raise NotImplementedError

    def reach(self, axes: int) -> tuple[int, ...] | None:
        """The largest distance of a message in pixels along each axis; None if it is unlimited."""
        return None

    @property
    def block(self) -> int:
        """The side of the averaged blocks of pixels, in a grid that is centred in the image."""
        return 1

    def step(self, plans: Sequence["Plan"], mixing: Sequence[torch.Tensor], unary: torch.Tensor) -> type[Step]:
        """The mean-field step for these plans, of which this is the first; a fused step if there is one for them.

        Only shapes and dtypes of the tensors are used.
        """
        return Step


def encode(plans: Iterable[Plan]) -> str:
    """Plans as JSON, a list of objects; written by hand because compilers cannot trace an encoder."""
    objects = []
    for plan in plans:
        members = [("kind", type(plan).__name__), *((f.name, getattr(plan, f.name)) for f in fields(plan))]
        objects.append("{" + ", ".join(f'"{name}": {_json(value)}' for name, value in members) + "}")
    return "[" + ", ".join(objects) + "]"


def _json(value: bool | int | str | tuple[int, ...] | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@functools.lru_cache(maxsize=1024)
def decode(text: str) -> tuple[Plan, ...]:
    """The plans of `encode`."""
    plans = []
    for members in json.loads(text):
        kind: Callable[..., Plan] = Plan.kinds[members.pop("kind")]
        plans.append(kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in members.items()}))
    return tuple(plans)


def fits_in_registers(kernels: ModuleType, mixing: Sequence[torch.Tensor], classes: int) -> bool:
    """Whether a kernel's fused step can keep this many classes, mixed by these A_m, in registers."""
    most: int = kernels.MAX_MATRIX_CLASSES if any(a.ndim == 2 for a in mixing) else kernels.MAX_CLASSES
    return classes <= most


class Registered:
    """An operator of `torch.library`, "tritoncrf::name", from a function of tensors; it does not support vmap.

    If nothing traces the call and no gradient is needed, the function itself is called, because the first call of an
    operator imports torch's compiler, which takes a second and 150 MB.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.registered: CustomOpDef = torch.library.custom_op(f"tritoncrf::{name}", function, mutates_args=())
        self.registered.register_vmap(_refuse_vmap)
        self.register_autograd = self.registered.register_autograd
        functools.update_wrapper(self, function)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the function that gives exporters and compilers the shapes of results; ONNX has no such operator."""

        def fake(*arguments: Any) -> Any:
            if to_onnx():
                raise NotImplementedError(
                    f"filters: expected Window or Guided in PyTorch for ONNX, got the operator tritoncrf::{self.name}, "
                    "which it does not have; GuidanceCRF and ConvCRF export to ONNX, torch.export takes every layer"
                )
            return function(*arguments)

        self.registered.register_fake(fake)
        return function

    def on(self, backend: str) -> Callable[..., Any]:
        """The function to call for a resolved backend; for graphs of standard operators it is the function itself."""
        return self.function if backend == "graph" else self

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments) if _unobserved(arguments) else self.registered(*arguments)


def _unobserved(arguments: Iterable[Any]) -> bool:
    """Whether these are plain tensors, and nothing records or transforms operations on them."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for argument in arguments:
        for x in argument if isinstance(argument, list) else [argument]:
            if isinstance(x, torch.Tensor):
                wanted = x.requires_grad and torch.is_grad_enabled()
                if wanted or type(x) not in (torch.Tensor, torch.nn.Parameter):
                    return False
    return True


def operator(name: str) -> Callable[[Callable[..., Any]], Registered]:
    """A decorator that makes a function of tensors the operator "tritoncrf::name"."""
    return functools.partial(Registered, name)


def _refuse_vmap(*arguments: Any) -> NoReturn:
    raise NotImplementedError("tritoncrf does not offer vmap: every operation takes a batch as its first axis")


def refuse_second_derivative(operator: Registered) -> None:
    """Make the differentiation of a backward operator a clear error."""

    def refuse(ctx: Context, *cotangents: Any) -> NoReturn:
        raise NotImplementedError("tritoncrf supports first derivatives only; a second one was requested")

    operator.register_autograd(refuse)


def contiguous_like(tensor: torch.Tensor) -> torch.Tensor:
    """The fake of a contiguous result with the shape of `tensor`."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def align_gradients(
    tensors: list[torch.Tensor], gradients: list[torch.Tensor], like: torch.Tensor
) -> list[torch.Tensor]:  # fmt: skip
    """One result for each tensor: the gradients of the floating-point ones in order, empty for all others."""
    left = iter(gradients)
    found = [next(left, None) if t.is_floating_point() else None for t in tensors]
    return [like.new_empty(0) if d is None else d.contiguous() for d in found]


def gradient_shape(tensor: torch.Tensor, needed: bool) -> Sequence[int]:
    """The shape of the result of `align_gradients` for a tensor."""
    return tensor.shape if needed and tensor.is_floating_point() else (0,)


def gradients_or_none(
    tensors: list[torch.Tensor], found: list[torch.Tensor], needed: Sequence[bool]
) -> list[torch.Tensor | None]:
    """The gradients that autograd expects for a list of tensors, from the results of `align_gradients`."""
    return [d if n and t.is_floating_point() else None for t, d, n in zip(tensors, found, needed, strict=True)]


@operator("filter")
def filter_apply(values: torch.Tensor, tensors: list[torch.Tensor], plan: str) -> torch.Tensor:
    (decoded,) = decode(plan)
    with without_autocast(values):
        return decoded.operator(tensors).apply(values).contiguous()


@filter_apply.register_fake
def _(values: torch.Tensor, tensors: list[torch.Tensor], plan: str) -> torch.Tensor:
    return contiguous_like(values)


@operator("filter_backward")
def filter_backward(
    values: torch.Tensor, cotangent: torch.Tensor, tensors: list[torch.Tensor], plan: str,
    needs_values: bool, needs_tensors: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients with respect to values and tensors; empty where they are not needed."""
    (decoded,) = decode(plan)
    with without_autocast(values):
        K = decoded.operator(tensors)
        d_values = K.adjoint(cotangent).contiguous() if needs_values else values.new_empty(0)
        d_tensors = K.gradients(values, cotangent) if needs_tensors else []
        return [d_values, *align_gradients(tensors, d_tensors, values)]


@filter_backward.register_fake
def _(
    values: torch.Tensor, cotangent: torch.Tensor, tensors: list[torch.Tensor], plan: str,
    needs_values: bool, needs_tensors: bool,
) -> list[torch.Tensor]:  # fmt: skip
    shapes = [gradient_shape(values, needs_values), *(gradient_shape(t, needs_tensors) for t in tensors)]
    return [torch.empty(shape, dtype=values.dtype, device=values.device) for shape in shapes]


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    values, tensors, ctx.plan = inputs
    ctx.save_for_backward(values, *tensors)


def _backward(ctx: Context, cotangent: torch.Tensor) -> tuple[Any, ...]:
    values, *tensors = ctx.saved_tensors
    needs_values, needs_tensors, _ = ctx.needs_input_grad
    d_values, *d_tensors = filter_backward(
        values, cotangent.contiguous(), tensors, ctx.plan, needs_values, any(needs_tensors)
    )
    return d_values if needs_values else None, gradients_or_none(tensors, d_tensors, needs_tensors), None


filter_apply.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(filter_backward)

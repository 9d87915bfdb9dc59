"""What every pairwise filter is: checked once, prepared once per image, applied many times.

A filter has two halves. `Filter` is what a user holds: it checks its arguments and owns the tensors that
gradients reach. Its `Plan` is the static rest: plain numbers that know how to apply the filter, its
adjoint, and its derivative. Plans travel through `torch.library` operators as a string, so compilers and
exporters see one opaque operator with a fake and a gradient, and never the loops inside.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, ClassVar, Generic, NoReturn, Protocol, TypeAlias, TypedDict, TypeVar, get_args

import torch

from tritoncrf import checks
from tritoncrf.reference import blur
from tritoncrf.types import Backend, Normalization, Precision

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read once, as triton does

Ready = TypeVar("Ready")  # what a plan prepares
Context: TypeAlias = Any  # autograd's, which takes any attribute
Filtered: TypeAlias = Sequence[torch.Tensor] | torch.Tensor | None  # the B_m of a step, where they are wanted


class MeanFieldStep(Protocol):
    """What a fused step offers, see `reference.step.Step`."""

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor: ...

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]: ...


@dataclass(frozen=True)
class Plan(Generic[Ready]):
    """The static half of a filter; one subclass per kind, found by its class name."""

    precision: str
    backend: str

    kinds: ClassVar[dict[str, type["Plan[Any]"]]] = {}  # class name -> class

    def __init_subclass__(cls) -> None:
        Plan.kinds[cls.__name__] = cls

    @property
    def tensor_count(self) -> int:
        """How many tensors `prepare` takes."""
        raise NotImplementedError

    def prepare(self, tensors: list[torch.Tensor], budget: float) -> Ready:
        """What `apply`, `adjoint` and `gradients` need; it may keep `budget` numbers per pixel to be faster."""
        raise NotImplementedError

    def apply(self, x: torch.Tensor, prepared: Ready) -> torch.Tensor:
        """K x for x [B, C, *S]."""
        raise NotImplementedError

    def adjoint(self, y: torch.Tensor, prepared: Ready) -> torch.Tensor:
        """K^T y for y [B, C, *S]."""
        raise NotImplementedError

    def gradients(self, x: torch.Tensor, y: torch.Tensor, prepared: Ready) -> list[torch.Tensor]:
        """The gradient of <y, K x> with respect to each of the filter's floating-point tensors."""
        raise NotImplementedError

    def fuse(
        self,
        plans: Sequence["Plan[Any]"],
        prepared: list[Any],
        mixing: list[torch.Tensor],
        unary: torch.Tensor,
        unary_weight: torch.Tensor,
    ) -> MeanFieldStep | None:
        """A fused mean-field step (see reference.step.Step) for these plans, or None where they do not fuse."""
        return None


def encode(plans: Iterable[Plan[Any]]) -> str:
    """Plans as a string that an operator can take: a line each, the class name and then the fields."""
    return "\n".join(" ".join([type(p).__name__, *(str(getattr(p, f.name)) for f in fields(p))]) for p in plans)


@functools.lru_cache(maxsize=1024)
def decode(text: str) -> tuple[Plan[Any], ...]:
    """The plans of `encode`."""
    plans = []
    for line in text.splitlines():
        name, *words = line.split()
        kind = Plan.kinds[name]
        plans.append(kind(*(_READERS[f.type](word) for f, word in zip(fields(kind), words, strict=True))))
    return tuple(plans)


_READERS: dict[Any, Callable[[str], Any]] = {bool: "True".__eq__, int: int, float: float, str: str}


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch" for tensors of this device and dtype; an error where "triton" cannot run."""
    supported = TRITON_INSTALLED and dtype != torch.float64
    if backend == "auto":
        return "triton" if supported and device.type == "cuda" else "torch"
    if backend == "triton":
        if not TRITON_INSTALLED:
            raise ValueError("backend: 'triton' needs the triton package, which is not installed here; use 'auto'")
        if dtype == torch.float64:
            raise ValueError("backend: expected 'torch' or 'auto' for float64, got 'triton' (its kernels are float32)")
        if device.type == "cpu" and not INTERPRETED and launches_run():
            raise ValueError(
                "backend: 'triton' runs on a GPU, and on CPU tensors only under TRITON_INTERPRET=1; "
                "got CPU tensors without it; use 'auto'"
            )
    return backend


def holds(kernels: ModuleType, mixing: list[torch.Tensor], classes: int) -> bool:
    """Whether a kernel's fused step holds that many classes in registers, mixed by these A_m."""
    return classes <= (kernels.MAX_MATRIX_CLASSES if any(a.ndim == 2 for a in mixing) else kernels.MAX_CLASSES)


def launches_run() -> bool:
    """False where launches are only recorded, and leave what they should write unwritten."""
    return not TRITON_INSTALLED or importlib.import_module("tritoncrf.kernels.common").launches_run()


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else: half precision is stored, never accumulated in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class without_autocast:
    """Run a block in the dtypes of its tensors, whatever autocast says outside."""

    def __init__(self, x: torch.Tensor) -> None:
        self.contexts = [
            torch.autocast(kind, enabled=False) for kind in {"cpu", x.device.type} & {"cpu", "cuda", "xpu", "mps"}
        ]

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*exception)


class Filter:
    """A pairwise filter K, linear in its values and the same for every class. Call it on values.

    Subclasses set `plan`, `tensors` (floating-point ones, which gradients reach, and integers beside them),
    `size` (the spatial shape) and `batch` (1: serves any batch) before use.
    """

    plan: Plan[Any]
    tensors: list[torch.Tensor]
    size: torch.Size
    batch: int
    source = "features"  # what errors call that which the filter was made from

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """K values: [B, C, *S] -> [B, C, *S], in the dtype of `values`; differentiable once.

        Raises:
            TypeError, ValueError: no floating-point tensor; another spatial size, batch or device than the filter's;
                NaN or infinity (looked at only where `check_values` says).
        """
        checks.expect_tensor("values", values)
        self.check_fits("values", values)
        checks.expect_finite("values", values)
        dtype = compute_dtype(values)
        return filter_apply(values.to(dtype), self.tensors_in(dtype), encode([self.resolved(values)])).to(values.dtype)

    def tensors_in(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The filter's tensors, floating-point ones in `dtype`."""
        return [t.to(dtype) if t.is_floating_point() else t for t in self.tensors]

    def row_sums(self) -> torch.Tensor:
        """r = K 1, [Bf, 1, *S], of the filter before it is normalised."""
        like = self.tensors[0]
        ones = torch.ones((self.batch, 1, *self.size), dtype=like.dtype, device=like.device)
        return filter_apply(ones, self.tensors, encode([self.resolved(ones)]))

    def normalize(self, normalization: str) -> None:
        """Append the scales of a normalisation to `tensors`, and say so in the plan's scaled_in and scaled_out."""
        self.tensors = [*self.tensors, *scales(normalization, self.row_sums)]
        self.plan = replace(  # type: ignore[call-arg]  # which of their plans have, but not all plans
            self.plan,
            scaled_in=normalization in ("before", "symmetric"),
            scaled_out=normalization in ("after", "symmetric"),
        )

    def resolved(self, values: torch.Tensor) -> Plan[Any]:
        """The plan with the backend that will serve `values`."""
        return replace(self.plan, backend=resolve_backend(self.plan.backend, values.device, values.dtype))

    def check_fits(self, name: str, values: torch.Tensor) -> None:
        """Raise unless `values` has this filter's spatial size, batch and device."""
        if values.ndim != len(self.size) + 2 or values.shape[2:] != self.size:
            batch = "B" if self.batch == 1 else self.batch
            expected = f"[{batch}, C, {', '.join(map(str, self.size))}]"
            raise ValueError(f"{name}: expected {expected} as the filter's {self.source}, got {list(values.shape)}")
        if self.batch not in (1, values.shape[0]):
            raise ValueError(
                f"{name}: expected a batch of {self.batch} as in the filter's {self.source}, got {list(values.shape)}"
            )
        if values.device != self.tensors[0].device:
            own = self.tensors[0].device
            raise ValueError(f"{name}: expected the device of the filter's {self.source}, {own}, got {values.device}")


def lifted(x: torch.Tensor) -> torch.Tensor:
    """[B, C, *S] as [B, C, Z, Y, X], missing axes of extent 1."""
    return x.reshape(*x.shape[:2], *(1,) * (5 - x.ndim), *x.shape[2:])


def unlifted(x: torch.Tensor, axes: int) -> torch.Tensor:
    """[B, C, Z, Y, X] with its last `axes` axes alone, the others being of extent 1."""
    return x.reshape(*x.shape[:2], *x.shape[5 - axes :])


def per_axis(value: int, axes: int, missing: int) -> tuple[int, ...]:
    """`value` for each of the last `axes` axes, `missing` for the others."""
    return (missing,) * (3 - axes) + (value,) * axes


def lowered(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Features averaged over blocks of `factor` a side, with as many axes as they came with."""
    axes = features.ndim - 2
    return unlifted(blur.pool(lifted(features), per_axis(factor, axes, 1)), axes)


def checked_features(features: torch.Tensor) -> torch.Tensor:
    """Features [B, D, *S] as float64 or float32, or an error that names them."""
    checks.expect_tensor("features", features)
    checks.expect_spatial("features", features, "[B, D, *S]")
    if features.shape[1] == 0:
        raise ValueError(f"features: expected at least one channel, got shape {list(features.shape)}")
    checks.expect_finite("features", features)
    return features if features.dtype == torch.float64 else features.float()


class Execution(TypedDict):
    """What `execution` gives."""

    precision: Precision
    backend: Backend


class SharedFields(Execution):
    """What `shared_fields` gives."""

    include_self: bool
    scaled_in: bool
    scaled_out: bool


def execution(precision: Precision, backend: Backend) -> Execution:
    """How a filter computes, checked; whether this backend serves its tensors `resolve_backend` knows."""
    return {
        "precision": checks.expect_choice("precision", precision, PRECISIONS),
        "backend": checks.expect_choice("backend", backend, BACKENDS),
    }


def shared_fields(
    features: torch.Tensor, include_self: bool, normalization: Normalization, precision: Precision, backend: Backend
) -> SharedFields:
    """What the plans of all Gaussian filters have, checked; `Filter.normalize` sets the scales."""
    checks.expect_choice("normalization", normalization, NORMALIZATIONS)
    how, include_self = execution(precision, backend), checks.expect_bool("include_self", include_self)
    resolve_backend(backend, features.device, features.dtype)
    return {**how, "include_self": include_self, "scaled_in": False, "scaled_out": False}


def scales(normalization: str, row_sums: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """The per-pixel scales of a normalisation (spec: n_out K n_in): [in, out], [in] or [out].

    With r = K 1: "before" 1/r on the input, "after" 1/r on the output, "symmetric" r^-1/2 on both.
    An isolated pixel (r = 0) keeps messages of 0.
    """
    if normalization == "none":
        return []
    r = row_sums().clamp_min(1e-18)  # 1 / r^2, of the gradient, stays in float32's range
    return [r.rsqrt()] * 2 if normalization == "symmetric" else [r.reciprocal()]


def summed(products: torch.Tensor, shared: bool) -> torch.Tensor:
    """Products [B, C, *S] summed to the gradient of a per-pixel factor [Bf, 1, *S]: over classes, and over a batch
    that shares the factor."""
    total = products.sum(1, keepdim=True)
    return total.sum(0, keepdim=True) if shared else total


@torch.library.custom_op("tritoncrf::filter", mutates_args=())
def filter_apply(values: torch.Tensor, tensors: list[torch.Tensor], plan: str) -> torch.Tensor:
    (decoded,) = decode(plan)
    with without_autocast(values):
        return decoded.apply(values, decoded.prepare(tensors, budget=0)).contiguous()


@filter_apply.register_fake
def _(values: torch.Tensor, tensors: list[torch.Tensor], plan: str) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


@torch.library.custom_op("tritoncrf::filter_backward", mutates_args=())
def filter_backward(
    values: torch.Tensor, cotangent: torch.Tensor, tensors: list[torch.Tensor], plan: str,
    needs_values: bool, needs_tensors: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients with respect to values and tensors; empty where they are not needed."""
    (decoded,) = decode(plan)
    with without_autocast(values):
        prepared = decoded.prepare(tensors, budget=0)
        d_values = decoded.adjoint(cotangent, prepared).contiguous() if needs_values else values.new_empty(0)
        d_tensors = decoded.gradients(values, cotangent, prepared) if needs_tensors else []
        return [d_values, *beside(tensors, d_tensors, values)]


def beside(tensors: list[torch.Tensor], gradients: list[torch.Tensor], like: torch.Tensor) -> list[torch.Tensor]:
    """One result for each tensor: the gradients of the floating-point ones in order, empty for all others."""
    left = iter(gradients)
    found = [next(left, None) if t.is_floating_point() else None for t in tensors]
    return [like.new_empty(0) if d is None else d.contiguous() for d in found]


def gradient_shape(tensor: torch.Tensor, needed: bool) -> tuple[int, ...]:
    """The shape of what `beside` gives for a tensor."""
    return tensor.shape if needed and tensor.is_floating_point() else (0,)


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
    needs_tensors = any(needs_tensors)
    d_values, *d_tensors = filter_backward(
        values, cotangent.contiguous(), tensors, ctx.plan, needs_values, needs_tensors
    )
    return d_values if needs_values else None, gradients_or_none(tensors, d_tensors, needs_tensors), None


def gradients_or_none(
    tensors: list[torch.Tensor], found: list[torch.Tensor], needed: bool
) -> list[torch.Tensor | None]:
    """What autograd takes for a list of tensors from the results of `beside`."""
    return [d if needed and t.is_floating_point() else None for t, d in zip(tensors, found, strict=True)]


filter_apply.register_autograd(_backward, setup_context=_setup_context)


def refuse_second_derivative(operator: Any) -> None:  # what custom_op gives, whose type is not public
    """Make differentiating a backward operator one clear error."""

    def refuse(ctx: Context, *cotangents: Any) -> NoReturn:
        raise NotImplementedError("tritoncrf offers first derivatives only; a second one was asked for")

    operator.register_autograd(refuse)


refuse_second_derivative(filter_backward)

"""The base of every pairwise filter, which is checked once, prepared once per image and applied many times.

A filter has two parts. `Filter` is the user's object: it checks its arguments and owns the tensors that gradients
reach. `Plan` is the static rest. `Gaussian` is the base of the three Gaussian filters and implements their
normalisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypedDict, get_args

import torch
from torch.nn import functional as F

from tritoncrf import checks
from tritoncrf.backends import compute_dtype, resolve, written_out
from tritoncrf.filters.plan import Plan, encode, filter_apply
from tritoncrf.reference.blur import pool
from tritoncrf.step import Operator, from_3d, per_axis, scaled, to_3d
from tritoncrf.types import Backend, Normalization, Precision

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FARTHEST = 1e18  # largest feature; squares of differences fit in float32


class Filter:
    """A pairwise filter K, linear in its values and the same for every class. Call it on values.

    The base class of all filters, for annotations and `isinstance`; `filters.Function` turns any linear map into one.
    A subclass sets `plan`, `tensors` (floating-point ones, which gradients reach, and integer tables), `size` (the
    spatial shape) and `batch` (1 for any batch), or overrides `filtered` and `operator` instead.
    """

    plan: Plan | None = None
    tensors: Sequence[torch.Tensor] = ()
    size: torch.Size | None = None
    batch = 1
    source = "features"  # the argument that the filter was made from, for error messages

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """K values: [B, C, *S] -> [B, C, *S], in the dtype of `values`; differentiable once.

        Raises:
            TypeError, ValueError: not a floating-point tensor; a spatial size, batch or device that differs from the
                filter's; NaN or infinity (checked only where `check_values` says so).
            NotImplementedError: forward-mode differentiation, vmap, or a second derivative.
        """
        checks.expect_tensor("values", values)
        self.check_fits("values", values)
        checks.expect_finite("values", values)
        checks.expect_no_tangents(values)
        dtype = compute_dtype(values)
        return self.filtered(values.to(dtype)).to(values.dtype)

    def filtered(self, values: torch.Tensor) -> torch.Tensor:
        """K x for checked values x in float32 or float64."""
        plan = self.resolved(values)
        return filter_apply.on(plan.backend)(values, self.tensors_in(values.dtype), encode([plan]))

    def operator(self, values: torch.Tensor) -> Operator:
        """The operator K for values like these, in float32 or float64, without autograd."""
        return self.resolved(values).operator([t.detach() for t in self.tensors_in(values.dtype)])

    def tensors_in(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The filter's tensors, floating-point ones in `dtype`."""
        return [t.to(dtype) if t.is_floating_point() else t for t in self.tensors]

    def resolved(self, values: torch.Tensor) -> Plan:
        """The plan with the backend that will serve `values`."""
        assert self.plan is not None
        backend = resolve(self.plan.backend, values.device, values.dtype)
        if self.plan.in_graph and written_out(self.plan.backend, backend):
            backend = "graph"
        return replace(self.plan, backend=backend)

    def check_fits(self, name: str, values: torch.Tensor) -> None:
        """Raise unless `values` has this filter's spatial size, batch and device."""
        if self.size is None:
            return
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

    def __repr__(self) -> str:
        if self.plan is None or self.size is None:
            return f"{type(self).__name__}()"
        settings = {f.name: getattr(self.plan, f.name) for f in fields(self.plan)}
        described = "".join(f", {name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}(size={list(self.size)}, batch={self.batch}{described})"


class Execution(TypedDict):
    """The result of `execution`."""

    precision: Precision
    backend: Backend


def execution(precision: Precision, backend: Backend) -> Execution:
    """Check how a filter computes; `backends.resolve` decides whether the backend can serve its tensors."""
    return {
        "precision": checks.expect_choice("precision", precision, PRECISIONS),
        "backend": checks.expect_choice("backend", backend, BACKENDS),
    }


class Gaussian(Filter):
    """A filter by exp(-|f_i - f_j|^2 / 2), normalised or not: n_out K n_in with r = K 1.

    "before" multiplies the input by 1 / r, "after" the output by 1 / r, "symmetric" both by r^-1/2.
    """

    size: torch.Size

    def prepare(
        self, plan: "GaussianPlan", features: torch.Tensor, tensors: list[torch.Tensor],
        ends: Sequence[torch.Tensor] = (),
    ) -> None:  # fmt: skip
        """Set a filter's plan and tensors without normalisation, then append the scales of the normalisation.

        ends: scales in and out, [Bf, 1, *S], that the filter has before normalisation; or none.
        """
        self.size, self.batch = features.shape[2:], features.shape[0]
        self.plan, self.tensors = replace(plan, normalization="none"), [*tensors, *ends]
        if plan.normalization != "none":
            r = self.row_sums().clamp_min(1e-18)  # keeps the gradient's 1 / r^2 in float32's range
            scale = r.rsqrt() if plan.normalization == "symmetric" else r.reciprocal()
            sides = plan.normalization != "after", plan.normalization != "before"
            if ends:
                scales = [end * scale if own else end for end, own in zip(ends, sides, strict=True)]
            else:
                scales = [scale] * sum(sides)
            self.tensors = [*tensors, *scales]
            self.plan = plan

    def row_sums(self) -> torch.Tensor:
        """r = K 1, [Bf, 1, *S], before normalisation; an isolated pixel's messages are 0."""
        first = self.tensors[0]
        return self.filtered(torch.ones((self.batch, 1, *self.size), dtype=first.dtype, device=first.device))


class GaussianFields(Execution):
    """The result of `gaussian_fields`."""

    include_self: bool
    normalization: Normalization


def gaussian_fields(
    features: torch.Tensor, include_self: bool, normalization: Normalization, precision: Precision, backend: Backend
) -> GaussianFields:
    """The checked fields that the plans of all Gaussian filters share."""
    checks.expect_choice("normalization", normalization, NORMALIZATIONS)
    how, include_self = execution(precision, backend), checks.expect_bool("include_self", include_self)
    resolve(backend, features.device, features.dtype)
    return {**how, "include_self": include_self, "normalization": normalization}


@dataclass(frozen=True)
class GaussianPlan(Plan):
    """The static half of a Gaussian filter; the scales in use are the last of its tensors."""

    include_self: bool
    normalization: str

    @property
    def scaled_in(self) -> bool:
        return self.normalization in ("before", "symmetric")

    @property
    def scaled_out(self) -> bool:
        return self.normalization in ("after", "symmetric")

    @property
    def scale_count(self) -> int:
        return self.scaled_in + self.scaled_out


class GaussianOperator:
    """n_out K n_in, from a subclass's K without normalisation."""

    def __init__(self, plan: GaussianPlan, tensors: list[torch.Tensor]) -> None:
        self.include_self, self.precision = plan.include_self, plan.precision
        self.images = tensors[0].shape[0]
        self.scale_in = tensors[-plan.scale_count] if plan.scaled_in else None  # [Bf, 1, *S]
        self.scale_out = tensors[-1] if plan.scaled_out else None

    @property
    def shared(self) -> bool:
        """Whether one image's features serve the whole batch."""
        return self.images == 1

    def bare(self, x: torch.Tensor, adjoint: bool) -> torch.Tensor:
        """K x, or K^T x, without normalisation, for x [B, C, *S]."""
        raise NotImplementedError

    def bare_gradients(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        """The gradients of <y, K x> with respect to all tensors except the scales; and functions that return K x and
        K^T y."""
        raise NotImplementedError

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(self.bare(scaled(x, self.scale_in), adjoint=False), self.scale_out)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return scaled(self.bare(scaled(y, self.scale_out), adjoint=True), self.scale_in)

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        found, forward, back = self.bare_gradients(scaled(x, self.scale_in), scaled(y, self.scale_out))
        return found + self._of_scales(x, y, forward, back)

    def scale_gradients(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """The part of `gradients` with respect to the scales."""
        return self._of_scales(
            x, y, lambda: self.bare(scaled(x, self.scale_in), adjoint=False),
            lambda: self.bare(scaled(y, self.scale_out), adjoint=True),
        )  # fmt: skip

    def _of_scales(
        self, x: torch.Tensor, y: torch.Tensor, forward: Callable[[], torch.Tensor], back: Callable[[], torch.Tensor]
    ) -> list[torch.Tensor]:
        found = []
        if self.scale_in is not None:
            found.append(summed(x * back(), self.shared))
        if self.scale_out is not None:
            found.append(summed(y * forward(), self.shared))
        return found


def summed(products: torch.Tensor, shared: bool) -> torch.Tensor:
    """Products [B, C, *S] summed to the gradient of a per-pixel factor [Bf, 1, *S]: over classes, and over a batch
    that shares the factor."""
    total = products.sum(1, keepdim=True)
    return total.sum(0, keepdim=True) if shared else total


def checked_features(features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Features [B, D, *S] as float64 or float32, or an error that names them; 0, unseen, at pixels off the mask."""
    checks.expect_tensor("features", features)
    checks.expect_spatial("features", features, "[B, D, *S]")
    features = features if mask is None else features.where(mask, 0.0)
    if features.shape[1] == 0:
        raise ValueError(f"features: expected at least one channel, got shape {list(features.shape)}")
    checks.expect_finite("features", checks.expect_values("features", features))
    if checks.values_checked(features) and features.numel():
        low, high = (v.item() for v in torch.aminmax(features.detach()))
        if max(-low, high) > FARTHEST:
            raise ValueError(f"features: expected at most {FARTHEST:.0e} in size, got {low:.4g} to {high:.4g}")
    checks.expect_no_tangents(features)
    return features.to(compute_dtype(features))


def mask_of(source: str, features: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor | None:
    """The mask of valid pixels, [B, 1, *S] for the batch of features or of `valid`, or None for all; or an error.

    source: the name of the features.
    """
    if valid is None:
        return None
    checks.expect_tensor(source, features)
    checks.expect_spatial(source, features, "[B, D, *S]")
    images, _, *size = features.shape

    def wanted() -> str:
        own, shared = (f"[{', '.join(map(str, (b, *size)))}]" for b in ("B" if images == 1 else images, 1))
        return f"a bool tensor {own} or {shared} as the {source}"

    if not isinstance(valid, torch.Tensor) or valid.dtype != torch.bool:
        raise TypeError(f"valid: expected {wanted()}, got {checks.kind_of(valid)}")
    checks.expect_dense("valid", valid)
    count = valid.shape[0]
    fits = valid.ndim == features.ndim - 1 and list(valid.shape[1:]) == size
    if not fits or (count != images and 1 not in (count, images)):
        raise ValueError(f"valid: expected {wanted()}, got shape {list(valid.shape)}")
    if valid.device != features.device:
        raise ValueError(f"valid: expected the device of the {source}, {features.device}, got {valid.device}")
    batch = images if count == 1 else count
    return valid[:, None].expand(batch, 1, *size)


def centred(features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """float64 features with the median of each channel of each image subtracted. Only differences matter, and float32,
    which values may require, would lose them far from 0. For float32 features a shift would not help."""
    if features.dtype != torch.float64:
        return features
    pixels = features.detach()
    if mask is None:
        ranked = pixels.flatten(2).sort(2).values
        middle = ranked[:, :, ranked.shape[2] // 2]  # robust against outliers
    else:
        ranked = pixels.where(mask, torch.nan).flatten(2).sort(2).values  # invalid pixels come last
        half = mask.flatten(2).sum(2, keepdim=True) // 2
        middle = ranked.gather(2, half.clamp_max(ranked.shape[2] - 1).expand(-1, features.shape[1], -1))[:, :, 0]
    shifted = features - middle.view(*middle.shape, *[1] * (features.ndim - 2))
    return shifted if mask is None else shifted.where(mask, 0.0)


def resized(x: torch.Tensor, axes: int, change: int) -> torch.Tensor:
    """x with `change` zeros appended to each of its last `axes` axes, or with that many pixels removed if negative."""
    return F.pad(x, (0, change) * axes).contiguous() if axes else x


def pooled(features: torch.Tensor, factor: int, spare: bool = False) -> torch.Tensor:
    """Features averaged over blocks of `factor` pixels a side, with the same number of axes; `spare` as in `pool`."""
    axes = features.ndim - 2
    return from_3d(pool(to_3d(features), per_axis(factor, axes, 1), spare), axes)

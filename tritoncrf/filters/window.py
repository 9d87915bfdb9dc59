"""The windowed Gaussian filter of ConvCRF: what a user calls, and its plan for both backends."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from tritoncrf import checks
from tritoncrf.filters.base import (
    Filter,
    MeanFieldStep,
    Plan,
    checked_features,
    holds,
    lifted,
    lowered,
    per_axis,
    shared_fields,
    summed,
    unlifted,
)
from tritoncrf.filters.window_step import (
    FusedBlurStep,
    FusedStep,
    MergedStep,
    blur_kernels,
    window_kernels,
)
from tritoncrf.reference import blur
from tritoncrf.reference import window as reference
from tritoncrf.reference.step import KEPT_STATES, scaled
from tritoncrf.types import Backend, Normalization, Precision

MAX_WINDOW = 31


class Window(Filter):
    r"""Exact Gaussian messages in a window around each pixel.

    .. math::
        (K x)_i = \sum_{\delta} k_{i, i + \delta}\, x_{i + \delta}, \qquad
        k_{ij} = \exp(-|f_i - f_j|^2 / 2)

    over :math:`\delta` in a square (cube) of `window_size` pixels a side, nothing outside the image, the
    same for all classes (Teichmann and Cipolla 2018, ConvCRF, section 4). With `blur` b > 1 features and values
    are averaged over b x b blocks, filtered at that resolution and upsampled bilinearly: a window of
    b * `window_size` pixels. With `normalization` and r = K 1: "before" K (x / r), "after" K x / r,
    "symmetric" r^-1/2 K (r^-1/2 x).

    Args:
        features: floating, [B, D, *S] or [1, D, *S], 1 to 3 spatial axes, already divided by the
            bandwidths (`tritoncrf.features` makes them). Gradients reach them.
        window_size: odd, 1 to 31, pixels a side.
        dilation: distance of neighbouring taps in pixels.
        blur: factor of the resolution that the window works at; 1 is full resolution.
        include_self: whether the window's centre, whose weight is 1, counts.
        normalization: "none", "before", "after" or "symmetric".
        precision: "default" keeps float32's accuracy; "fast" lets a [C, C] compatibility multiply in tf32 on a GPU,
            all that a window multiplies on matrix units.
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Memory O(B C N).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> K = tc.filters.Window(tc.features.bilateral(image, 80, 13), window_size=5)
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    def __init__(
        self, features: torch.Tensor, window_size: int, dilation: int = 1, blur: int = 1, include_self: bool = True,
        normalization: Normalization = "none", precision: Precision = "default", backend: Backend = "auto",
    ) -> None:  # fmt: skip
        features = checked_features(features)
        self.size, self.batch = features.shape[2:], features.shape[0]
        plan = WindowPlan(
            size=checks.expect_int("window_size", window_size, 1, MAX_WINDOW, odd=True),
            dilation=checks.expect_int("dilation", dilation, 1),
            blur=checks.expect_int("blur", blur, 1),
            **shared_fields(features, include_self, normalization, precision, backend),
        )
        self.plan, self.tensors = plan, [lowered(features, plan.blur)]
        self.normalize(normalization)


@dataclass
class Prepared:
    """One window filter ready for use: everything [B, C, Z, Y, X]."""

    features: torch.Tensor  # at the window's resolution
    scale_in: torch.Tensor | None
    scale_out: torch.Tensor | None
    radii: tuple[int, ...]  # of Z, Y, X
    dilation: int
    blur: tuple[int, ...]
    budget: float

    @functools.cached_property
    def weights(self) -> torch.Tensor | None:
        """reference.window_weights, where keeping them is within the budget."""
        if not self.affords(self.budget):
            return None
        return reference.window_weights([(self.features, None, 1.0)], self.radii, self.dilation)

    @property
    def shared(self) -> bool:
        """Whether one image's features serve the whole batch."""
        return self.features.shape[0] == 1

    def affords(self, budget: float) -> bool:
        """Whether half a window of weights is at most `budget` numbers per pixel of full resolution."""
        return len(reference.half_window(self.radii, self.dilation)) <= budget * math.prod(self.blur)


@dataclass(frozen=True)
class WindowPlan(Plan[Prepared]):
    """The static half of `Window`; its tensors are low-resolution features and the scales in use."""

    size: int
    dilation: int
    blur: int
    include_self: bool
    scaled_in: bool
    scaled_out: bool

    @property
    def tensor_count(self) -> int:
        return 1 + self.scaled_in + self.scaled_out

    def prepare(self, tensors: list[torch.Tensor], budget: float) -> Prepared:
        features, *scale = map(lifted, tensors)
        axes = tensors[0].ndim - 2
        return Prepared(
            features=features,
            scale_in=scale[0] if self.scaled_in else None,
            scale_out=scale[-1] if self.scaled_out else None,
            radii=per_axis(self.size // 2, axes, 0),
            dilation=self.dilation,
            blur=per_axis(self.blur, axes, 1),
            budget=budget,
        )

    def apply(self, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        return self._filter(x, prepared, prepared.scale_in, prepared.scale_out, blur.pool, blur.upsample)

    def adjoint(self, y: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        return self._filter(
            y, prepared, prepared.scale_out, prepared.scale_in, blur.upsample_adjoint, blur.pool_adjoint
        )

    def _filter(
        self, x: torch.Tensor, prepared: Prepared, scale_in: torch.Tensor | None, scale_out: torch.Tensor | None,
        down: Callable[..., torch.Tensor], up: Callable[..., torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """scale_out . up K down (scale_in . x): the filter, or its adjoint, in the same five passes."""
        shape, x = x.shape, lifted(x)
        size, factors = x.shape[2:], prepared.blur
        message = up(self._sum(down(scaled(x, scale_in), factors), prepared), size, factors)
        return scaled(message, scale_out).reshape(shape)

    def _sum(self, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        window = prepared.features, prepared.radii, self.dilation, self.include_self
        if self.backend == "triton":
            return window_kernels().window_sum(x, *window)
        return reference.window_sum(x, *window, prepared.weights)

    def gradients(self, x: torch.Tensor, y: torch.Tensor, prepared: Prepared) -> list[torch.Tensor]:
        """Of <y, K x>: features through the window, scales through the products that they are in."""
        scaled_x, scaled_y = scaled(lifted(x), prepared.scale_in), scaled(lifted(y), prepared.scale_out)
        low_x, low_y = blur.pool(scaled_x, prepared.blur), blur.upsample_adjoint(scaled_y, prepared.blur)
        window = prepared.features, prepared.radii, self.dilation
        if self.backend == "triton":
            gradients = [window_kernels().window_feature_gradient(low_x, low_y, *window)]
        else:
            gradients = [reference.window_feature_gradient(low_x, low_y, *window)]
        shape, factors = scaled_x.shape[2:], prepared.blur
        if prepared.scale_in is not None:
            back = blur.pool_adjoint(self._sum(low_y, prepared), shape, factors)
            gradients.append(summed(lifted(x) * back, prepared.shared))
        if prepared.scale_out is not None:
            message = blur.upsample(self._sum(low_x, prepared), shape, factors)
            gradients.append(summed(lifted(y) * message, prepared.shared))
        return [unlifted(g, x.ndim - 2) for g in gradients]

    def fuse(
        self, plans: Sequence[Plan[Any]], prepared: list[Any], mixing: list[torch.Tensor], unary: torch.Tensor,
        unary_weight: torch.Tensor,
    ) -> MeanFieldStep | None:  # fmt: skip
        """Windows of one geometry run as one: in Triton one or two in a launch per iteration, two with blur; in
        PyTorch any number whose weights are scalars, as one sum of their kernels."""
        windows = [p for p in plans if _same_geometry(p, self)]
        if len(windows) < len(plans):
            return None
        arguments = windows, prepared, mixing, unary, unary_weight
        classes, matrix = unary.shape[1], any(a.ndim == 2 for a in mixing)
        if self.backend == "torch":
            symmetric = all(p.scaled_in == p.scaled_out and (self.blur == 1 or not p.scaled_in) for p in windows)
            fits = prepared[0].affords(KEPT_STATES * classes) and all(a.ndim == 0 for a in mixing)
            return MergedStep(*arguments) if symmetric and fits else None
        if len(windows) > 2:
            return None
        if self.blur > 1:
            fits = unary.ndim < 5 and not matrix and self.blur <= blur_kernels().MAX_BLUR
            fits = fits and len({p.include_self for p in windows}) == 1
            return FusedBlurStep(*arguments) if fits else None
        return FusedStep(*arguments) if holds(window_kernels(), mixing, classes) else None


def _same_geometry(plan: Plan[Any], other: WindowPlan) -> TypeGuard[WindowPlan]:
    keys = "size", "dilation", "blur", "precision", "backend"
    return isinstance(plan, WindowPlan) and all(getattr(plan, key) == getattr(other, key) for key in keys)

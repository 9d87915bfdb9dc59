"""The guided filter: what a user calls, and its plan for both backends."""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from tritoncrf import checks
from tritoncrf.filters.base import (
    Context,
    Filter,
    Filtered,
    MeanFieldStep,
    Plan,
    compute_dtype,
    execution,
    holds,
    lifted,
    lowered,
    per_axis,
    refuse_second_derivative,
    resolve_backend,
    unlifted,
    without_autocast,
)
from tritoncrf.filters.box import BOXES, box_summer, capped, expect_radii
from tritoncrf.reference import guided as reference
from tritoncrf.reference.box import areas
from tritoncrf.reference.step import stacked
from tritoncrf.types import Backend, Box, Precision

MAX_CHANNELS = 8


class Guided(Filter):
    r"""The guided filter: in every window the values are fitted as a linear function of the guide.

    .. math::
        (W x)_i = \frac{1}{D_i} \sum_{k:\, i \in \omega_k} a_k \cdot I_i + b_k, \qquad
        a_k = (\Sigma_k + \epsilon)^{-1} \mathrm{cov}_k(I, x), \qquad b_k = \bar x_k - a_k \cdot \mu_k

    with :math:`\mu_k, \Sigma_k` the mean and the covariance of the guide I in the window :math:`\omega_k` of 2 r + 1
    pixels a side, the same for all classes (He, Sun and Tang 2013; SegModel, guidance CRF: Shen et al. 2017). Smooths
    where the guide is flat, keeps edges where the guide has them, in a time that does not depend on the radius. Weights
    may be negative, so that filtered probabilities leave 0..1 by a little; over the classes they sum to the rows of W.

    Args:
        guide: I, floating, [B, D, *S] or [1, D, *S], D from 1 to 8, 1 to 3 spatial axes, in any unit. Gradients
            reach it.
        radius: r, 1 or more; one int or one per axis. What reaches beyond the image counts as the whole image. A pixel
            hears from 2 r pixels in every direction.
        eps: what counts as an edge, in the guide's unit squared: variances below are smoothed away. A number
            above 0, or a 0-d tensor, which gradients reach.
        box: "count": windows at the border are averaged over their pixels inside the image; rows of W sum to 1, and
            adding a constant to the guide changes nothing. "constant": over min(2 r + 1, n) an axis everywhere, as
            SegModel's code released it; W is then symmetric, and its rows shrink at the border.
        subsample: s > 1 fits a and b at 1/s of the resolution, with the radius round(r / s), at least 1, and
            upsamples them bilinearly (fast guided filter: He and Sun 2015).
        precision: "default" keeps float32's accuracy; "fast" lets a [C, C] compatibility multiply in tf32 on a GPU.
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Means and inverse covariances of
    the guide are computed here, once, in float64. Memory O(B C D N), on a CPU O(B C N).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30)).float()
        >>> K = tc.filters.Guided(image, radius=3, eps=1.0)
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    source = "guide"

    def __init__(
        self, guide: torch.Tensor, radius: int | Sequence[int], eps: float | torch.Tensor, box: Box = "count",
        subsample: int = 1, precision: Precision = "default", backend: Backend = "auto",
    ) -> None:  # fmt: skip
        guide = checked_guide(guide)
        self.size, self.batch = guide.shape[2:], guide.shape[0]
        radii = expect_radii(radius, len(self.size))
        subsample = checks.expect_int("subsample", subsample, 1)
        radii = [max(1, round(r / subsample)) for r in radii]
        radius_z, radius_y, radius_x = [1] * (3 - len(radii)) + radii
        self.plan = GuidedPlan(
            radius_z=radius_z,
            radius_y=radius_y,
            radius_x=radius_x,
            box=checks.expect_choice("box", box, BOXES),
            subsample=subsample,
            **execution(precision, backend),
        )
        eps = checks.expect_positive_number("eps", eps)
        if isinstance(eps, torch.Tensor):
            eps = eps.to(guide)
        else:
            form = torch.finfo(guide.dtype)
            if not form.tiny <= eps <= form.max:
                raise ValueError(f"eps: expected a finite number above 0 in {guide.dtype}, got {eps}")
            eps = torch.full((), eps, dtype=guide.dtype, device=guide.device)
        resolved = resolve_backend(backend, guide.device, guide.dtype)
        if box == "count":
            # W is the same for any shift of the guide, and covariances are then no differences of large sums.
            guide = guide - guide.detach().mean(tuple(range(2, guide.ndim)), keepdim=True)
        low = lowered(guide, subsample)
        self.tensors = [guide, low, *statistics(low, eps, radii, box, resolved)]


def guided_filter(
    values: torch.Tensor, guide: torch.Tensor, radius: int | Sequence[int], eps: float | torch.Tensor,
    box: Box = "count", subsample: int = 1, backend: Backend = "auto",
) -> torch.Tensor:  # fmt: skip
    r"""Smooth `values` but for the edges of `guide`: the guided filter as a plain image filter.

    For matting, depth, haze, flash and no-flash photos, or, with the image as its own guide, to smooth it. Both in any
    unit. See `filters.Guided` for the equation and the arguments; hold on to one of those to filter several values by
    the same guide.

    Args:
        values: [B, C, *S], floating.
        guide: [B, D, *S] or [1, D, *S], floating, D from 1 to 8.
        radius, eps, box, subsample, backend: see `filters.Guided`. eps is in the guide's unit squared: 0.01 ** 2 to
            0.1 ** 2 are common for guides of 0..1.

    Returns:
        [B, C, *S], dtype of `values`. Gradients reach values, guide and eps.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> photo = torch.rand(1, 3, 20, 30)
        >>> smooth = tc.guided_filter(photo, photo, radius=4, eps=0.1**2)
    """
    return Guided(guide, radius, eps, box, subsample, backend=backend)(values)


def checked_guide(guide: torch.Tensor) -> torch.Tensor:
    """A guide [B, D, *S] as float64 or float32, or an error that names it."""
    checks.expect_tensor("guide", guide, "a floating-point torch.Tensor, as image.float() is")
    checks.expect_spatial("guide", guide, "[B, D, *S]")
    if not 1 <= guide.shape[1] <= MAX_CHANNELS:
        raise ValueError(f"guide: expected 1 to {MAX_CHANNELS} channels on axis 1, got shape {list(guide.shape)}")
    checks.expect_finite("guide", guide)
    return guide.to(compute_dtype(guide))


@torch.library.custom_op("tritoncrf::guided", mutates_args=())
def statistics(guide: torch.Tensor, eps: torch.Tensor, radii: list[int], box: str, backend: str) -> list[torch.Tensor]:
    """mu [Bf, D, *S] and the packed (Sigma + eps)^-1 [Bf, D (D + 1) / 2, *S] of the windows; see reference.guided."""
    with without_autocast(guide):
        full = lifted(guide)
        reach = _capped(radii, guide)
        if backend == "triton" and max(reach) <= guided_kernels().MAX_RADIUS:
            found = guided_kernels().statistics(full, eps, reach, box)
        else:
            found = reference.statistics(full.double(), eps.double(), *_windows(full, reach, box, backend))
        return [unlifted(t, guide.ndim - 2).to(guide.dtype).contiguous() for t in found]


@statistics.register_fake
def _(guide: torch.Tensor, eps: torch.Tensor, radii: list[int], box: str, backend: str) -> list[torch.Tensor]:
    images, d, *size = guide.shape
    return [guide.new_empty((images, n, *size)) for n in (d, d * (d + 1) // 2)]


@torch.library.custom_op("tritoncrf::guided_backward", mutates_args=())
def statistics_backward(
    guide: torch.Tensor, mu: torch.Tensor, inverse: torch.Tensor, d_mu: torch.Tensor, d_inverse: torch.Tensor,
    radii: list[int], box: str, backend: str,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients of guide and eps."""
    with without_autocast(guide):
        full, mu, inverse, d_mu, d_inverse = (lifted(t.double()) for t in (guide, mu, inverse, d_mu, d_inverse))
        windows = _windows(full, _capped(radii, guide), box, backend)
        d_guide, d_eps = reference.statistics_gradient(full, mu, inverse, d_mu, d_inverse, *windows)
        return [d_guide.reshape(guide.shape).to(guide.dtype).contiguous(), d_eps.to(guide.dtype)]


@statistics_backward.register_fake
def _(
    guide: torch.Tensor, mu: torch.Tensor, inverse: torch.Tensor, d_mu: torch.Tensor, d_inverse: torch.Tensor,
    radii: list[int], box: str, backend: str,
) -> list[torch.Tensor]:  # fmt: skip
    return [torch.empty(guide.shape, dtype=guide.dtype, device=guide.device), guide.new_empty(())]


def _capped(radii: list[int], guide: torch.Tensor) -> tuple[int, ...]:
    """Radii of the lifted axes, that reach no farther than the guide."""
    return capped([1] * (3 - len(radii)) + radii, lifted(guide).shape[2:])


def _windows(
    guide: torch.Tensor, radii: Sequence[int], box: str, backend: str
) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
    """D in float64, and P x."""
    area = areas(guide.shape[2:], radii, 1, box, dtype=torch.float64, device=guide.device)
    return area, functools.partial(box_summer(backend), radii=radii)


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    guide, _, *ctx.form = inputs
    ctx.save_for_backward(guide, *output)


def _backward(ctx: Context, cotangents: list[torch.Tensor]) -> tuple[Any, ...]:
    d_mu, d_inverse = (c.contiguous() for c in cotangents)
    return *statistics_backward(*ctx.saved_tensors, d_mu, d_inverse, *ctx.form), None, None, None


statistics.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(statistics_backward)


@dataclass(frozen=True)
class GuidedPlan(Plan[reference.Guide]):
    """The static half of `Guided`; its tensors are the guide, the guide at the windows' resolution (the same tensor
    if that is full), and what `statistics` gives. Radii are of the lifted axes, at the windows' resolution."""

    radius_z: int
    radius_y: int
    radius_x: int
    box: str
    subsample: int

    @property
    def tensor_count(self) -> int:
        return 4

    def prepare(self, tensors: list[torch.Tensor], budget: float) -> reference.Guide:
        image, low, mu, inverse = map(lifted, tensors)
        factors = per_axis(self.subsample, tensors[0].ndim - 2, 1)  # beyond the image nothing changes but memory
        return reference.Guide(
            image, low, mu, inverse,
            radii=capped((self.radius_z, self.radius_y, self.radius_x), low.shape[2:]),
            box=self.box,
            factors=tuple(map(min, factors, image.shape[2:])),
            box_sum=box_summer(self.backend),
        )  # fmt: skip

    def apply(self, x: torch.Tensor, prepared: reference.Guide) -> torch.Tensor:
        return self._filter(x, prepared, adjoint=False)

    def adjoint(self, y: torch.Tensor, prepared: reference.Guide) -> torch.Tensor:
        return self._filter(y, prepared, adjoint=True)

    def _filter(self, x: torch.Tensor, prepared: reference.Guide, adjoint: bool) -> torch.Tensor:
        if self._has_kernels(prepared):
            return guided_kernels().guided_filter(lifted(x), prepared, adjoint).view(x.shape)
        return reference.filtered(lifted(x), prepared, adjoint).view(x.shape)

    def gradients(self, x: torch.Tensor, y: torch.Tensor, prepared: reference.Guide) -> list[torch.Tensor]:
        return [unlifted(g, x.ndim - 2) for g in reference.gradients(lifted(x), lifted(y), prepared)]

    def _has_kernels(self, prepared: reference.Guide) -> bool:
        """Triton's kernels fit at full resolution, up to a radius; elsewhere passes of PyTorch share a kernel's box
        sums."""
        return self.backend == "triton" and self.subsample == 1 and max(prepared.radii) <= guided_kernels().MAX_RADIUS

    def fuse(
        self, plans: Sequence[Plan[Any]], prepared: list[Any], mixing: list[torch.Tensor], unary: torch.Tensor,
        unary_weight: torch.Tensor,
    ) -> MeanFieldStep | None:  # fmt: skip
        """A single guided filter runs as one step in Triton, its second box carrying the rest of the step."""
        if len(plans) > 1 or not self._has_kernels(prepared[0]):
            return None
        fits = holds(guided_kernels(), mixing, unary.shape[1])
        return GuidedStep(prepared[0], self.precision, mixing, unary, unary_weight) if fits else None


class GuidedStep:
    """The step of one guided filter in Triton; it stands in for reference.step.Step, which it is tested against."""

    def __init__(
        self, guide: reference.Guide, precision: str, mixing: list[torch.Tensor], unary: torch.Tensor,
        unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.guide, self.precision, self.shape = guide, precision, unary.shape
        self.mix = stacked(mixing, unary.shape[1])[0]
        self.unary, self.unary_weight = lifted(unary.contiguous()), unary_weight.expand(unary.shape[1])

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        step = self.mix, self.unary, self.unary_weight, self.precision
        return guided_kernels().guided_step(lifted(q.contiguous()), self.guide, *step, last).view(self.shape)

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        state = lifted(q.contiguous()) if through_softmax else None
        back = torch.empty_like(self.unary) if filtered else None
        step = self.mix, state, self.precision, back
        y = guided_kernels().guided_step_backward(lifted(g.contiguous()), self.guide, *step).view(self.shape)
        return y, None if back is None else [back.view(self.shape)]


def guided_kernels() -> ModuleType:
    """The Triton kernels, imported when first used: the package works without triton."""
    return importlib.import_module("tritoncrf.kernels.guided")

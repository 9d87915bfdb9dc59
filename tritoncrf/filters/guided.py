"""The guided filter: the user's filter, and its plan and operator for both backends."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tritoncrf import checks, kernels, reference
from tritoncrf.backends import compute_dtype, modules, without_autocast
from tritoncrf.filters.base import Filter, execution, mask_of, pooled, resized
from tritoncrf.filters.box import BOXES, box_summer, capped, expect_radii
from tritoncrf.filters.plan import (
    Context,
    Plan,
    contiguous_like,
    operator,
    refuse_second_derivative,
)
from tritoncrf.step import Step, from_3d, per_axis, to_3d
from tritoncrf.types import Backend, Box, Precision

MAX_CHANNELS = 8
# eps is at least this share of m(I^2), see reference.guided: a tenth of a rounding error in float32, where only the
# factors are rounded; in float64 Sigma is rounded too.
FLOORS = {torch.float32: 2.0**-26, torch.float64: 2.0**-48}
SAMPLE = 1021  # pixels from which the median is estimated; a prime, so that they never lie in one column


class Guided(Filter):
    r"""The guided filter: in every window the values are fitted as a linear function of the guide.

    .. math::
        (K x)_i = \frac{1}{|\omega_i|} \sum_{k:\, i \in \omega_k} a_k \cdot I_i + b_k, \qquad
        a_k = (\Sigma_k + \epsilon)^{-1} \mathrm{cov}_k(I, x), \qquad b_k = \bar x_k - a_k \cdot \mu_k

    with :math:`\mu_k, \Sigma_k` the mean and the covariance of the guide I in the window :math:`\omega_k` of 2 r + 1
    pixels a side, the same for all classes (He, Sun and Tang 2013; SegModel, guidance CRF: Shen et al. 2017). It
    smooths where the guide is flat and keeps its edges, in a time that does not depend on the radius. Weights may be
    negative, so filtered probabilities can lie slightly outside 0..1; over the classes they sum to the rows of K.

    Args:
        guide: I, floating, [B, D, *S] or [1, D, *S], D from 1 to 8, 1 to 3 spatial axes, in any unit. Gradients
            reach it.
        radius: r, 1 or more; one int or one per axis. A radius larger than the image means the whole image. A pixel
            receives messages from up to 2 r pixels away in every direction.
        eps: what counts as an edge, in the guide's unit squared: smaller variances are smoothed away. A number above 0,
            or a 0-d tensor, which gradients reach. In float32 it is at least 1.5e-8 of a channel's mean square in the
            window (from the channel's median, for "count"), because smaller variances are rounding errors.
        box: "count": windows at the border are averaged over their pixels inside the image; rows of K sum to 1, and
            adding a constant to the guide changes nothing. "constant": they are divided by min(2 r + 1, n) per axis
            everywhere, as in SegModel's released code; K is then symmetric, and its rows sum to less at the border.
        subsample: s > 1 fits a and b at 1/s of the resolution, with the radius round(r / s), at least 1, and
            upsamples them bilinearly (fast guided filter: He and Sun 2015).
        precision: "default" keeps float32's accuracy; "fast" multiplies a [C, C] compatibility in tf32 on a GPU.
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".
        valid: the pixels that contain data, bool, [B, *S] or [1, *S]; None for all. The others are treated as outside
            the image: they send nothing, receive messages of 0, are the centre of no window and part of no mean, and
            the guide is not read there. On a GPU the box sums run in Triton, the rest in PyTorch.

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Means and factored covariances
    of the guide are computed here, once, in float64. Memory O(B C D N), on a CPU O(B C N).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds.
        NotImplementedError: `valid` together with a `subsample` above 1.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30)).float()
        >>> K = tc.filters.Guided(image, radius=3, eps=1.0)
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    source = "guide"
    plan: "GuidedPlan"

    def __init__(
        self, guide: torch.Tensor, radius: int | Sequence[int], eps: float | torch.Tensor, box: Box = "count",
        subsample: int = 1, precision: Precision = "default", backend: Backend = "auto",
        valid: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        mask = mask_of("guide", guide, valid)
        guide = checked_guide(guide, mask)
        self.size, self.batch = guide.shape[2:], guide.shape[0]
        self.plan = GuidedPlan(
            radius=tuple(expect_radii(radius, len(self.size))),
            box=checks.expect_choice("box", box, BOXES),
            subsample=checks.expect_int("subsample", subsample, 1),
            channels=guide.shape[1],
            masked=mask is not None,
            spare=reference.blur.wants_spare(self.size, subsample),
            **execution(precision, backend),
        )
        if mask is not None and subsample > 1:
            raise NotImplementedError(
                f"valid: expected a subsample of 1 beside it, got {subsample}; blocks are means of all their pixels"
            )
        eps = checks.expect_positive_number("eps", eps)
        if isinstance(eps, torch.Tensor):
            checks.expect_no_tangents(eps)
            eps = eps.to(guide)
        else:
            eps = torch.full((), eps, dtype=guide.dtype, device=guide.device)
        if box == "count":
            # K does not change when the guide is shifted, and covariances are then not differences of large sums.
            guide = guide - _medians(guide.detach(), mask)
            guide = guide if mask is None else guide.where(mask, 0.0)
        low = pooled(guide, subsample, self.plan.spare)
        resolved, spare = self.resolved(guide).backend, len(self.size) if self.plan.spare else 0
        found = statistics.on(resolved)(low, eps, mask, self.plan.low_radii, box, resolved, spare)
        self.tensors = [guide, low, *found, *([] if mask is None else [mask.contiguous()])]


def guided_filter(
    values: torch.Tensor, guide: torch.Tensor, radius: int | Sequence[int], eps: float | torch.Tensor,
    box: Box = "count", subsample: int = 1, backend: Backend = "auto",
) -> torch.Tensor:  # fmt: skip
    r"""Smooth `values` while keeping the edges of `guide`: the guided filter as a plain image filter.

    Use it for matting, depth maps, haze removal, pairs of flash and no-flash photos, or, with the image as its own
    guide, for smoothing. Values and guide may be in any unit. See `filters.Guided` for the equation and the arguments;
    keep such a filter to filter several values with the same guide.

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


def checked_guide(guide: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """A guide [B, D, *S] as float64 or float32, or an error that names it; 0, unseen, at pixels off the mask."""
    checks.expect_tensor("guide", guide, "a floating-point torch.Tensor, as image.float() is")
    checks.expect_spatial("guide", guide, "[B, D, *S]")
    if not 1 <= guide.shape[1] <= MAX_CHANNELS:
        raise ValueError(f"guide: expected 1 to {MAX_CHANNELS} channels on axis 1, got shape {list(guide.shape)}")
    guide = guide if mask is None else guide.where(mask, 0.0)
    checks.expect_finite("guide", guide)
    checks.expect_no_tangents(guide)
    guide = guide.to(compute_dtype(guide))
    if checks.values_checked(guide) and guide.numel():
        largest, most = guide.detach().abs().max().item(), torch.finfo(guide.dtype).max ** 0.4  # gradients have squares
        if largest > most:
            raise ValueError(f"guide: expected values of at most {most:.1g} in size, got {largest:.3g}")
    return guide


def _medians(guide: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The median of every channel over a sample of valid pixels, robust against outliers: [Bf, D, 1, ...]."""
    pixels, order = guide.flatten(2), torch.arange(SAMPLE, device=guide.device)
    if mask is None:
        sample = pixels[..., order * pixels.shape[2] // SAMPLE]
    else:
        rank = mask.flatten(1).cumsum(1)  # rank of a pixel, from 1, among the valid ones
        chosen = torch.searchsorted(rank, order * rank[:, -1:] // SAMPLE + 1).clamp_max(pixels.shape[2] - 1)
        sample = pixels.gather(2, chosen[:, None].expand(-1, guide.shape[1], -1))
    return sample.sort(-1).values[..., SAMPLE // 2].reshape(*guide.shape[:2], *[1] * (guide.ndim - 2))


@operator("guided")
def statistics(
    guide: torch.Tensor, eps: torch.Tensor, mask: torch.Tensor | None, radii: list[int], box: str, backend: str,
    spare: int,
) -> list[torch.Tensor]:  # fmt: skip
    """mean [Bf, D, *S] and the packed Cholesky factors [Bf, D (D + 1) / 2, *S] of the windows; see reference.guided.

    spare: the axes, the last ones, on which the guide ends with a spare block; see reference.blur.
    """
    cut = 0 if backend == "graph" else spare
    with without_autocast(guide):
        full, floor = to_3d(resized(guide, cut, -1)), FLOORS[guide.dtype]
        reach = _capped(radii, full)
        if has_kernels(backend, reach, mask is not None):
            found = kernels.guided.statistics(full, eps, floor, reach, box)
        else:
            windows = _windows(full, mask, reach, box, backend, spare - cut)
            found = reference.guided.statistics(full.double(), eps.double(), floor, *windows)
        return [resized(from_3d(t, guide.ndim - 2).to(guide.dtype), cut, 1).contiguous() for t in found]


@statistics.register_fake
def _(
    guide: torch.Tensor, eps: torch.Tensor, mask: torch.Tensor | None, radii: list[int], box: str, backend: str,
    spare: int,
) -> list[torch.Tensor]:  # fmt: skip
    images, d, *size = guide.shape
    return [guide.new_empty((images, n, *size)) for n in (d, d * (d + 1) // 2)]


@operator("guided_backward")
def statistics_backward(
    guide: torch.Tensor, mean: torch.Tensor, d_mean: torch.Tensor, d_sigma: torch.Tensor, mask: torch.Tensor | None,
    radii: list[int], box: str, backend: str, spare: int,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradients of guide and eps from those of the mean and of Sigma, the latter in place of cholesky's."""
    with without_autocast(guide):
        full, mean, d_mean, d_sigma = (
            to_3d(resized(t.double(), spare, -1)) for t in (guide, mean, d_mean, d_sigma)
        )  # fmt: skip
        windows = _windows(full, mask, _capped(radii, full), box, backend)
        d_guide, d_eps = reference.guided.statistics_gradient(full, mean, d_mean, d_sigma, *windows)
        return [resized(d_guide, spare, 1).reshape(guide.shape).to(guide.dtype).contiguous(), d_eps.to(guide.dtype)]


@statistics_backward.register_fake
def _(
    guide: torch.Tensor, mean: torch.Tensor, d_mean: torch.Tensor, d_sigma: torch.Tensor, mask: torch.Tensor | None,
    radii: list[int], box: str, backend: str, spare: int,
) -> list[torch.Tensor]:  # fmt: skip
    return [contiguous_like(guide), guide.new_empty(())]


def has_kernels(backend: str, radii: Sequence[int], masked: bool) -> bool:
    """Whether Triton's kernels support windows of these radii; otherwise, and if `masked`, PyTorch computes the rest
    around the kernel's box sums."""
    return backend == "triton" and not masked and max(radii) <= kernels.guided.MAX_RADIUS


def _capped(radii: Sequence[int], guide: torch.Tensor) -> tuple[int, ...]:
    """Radii of the three axes, limited to the size of the guide."""
    return capped([1] * (3 - len(radii)) + [*radii], to_3d(guide).shape[2:])


def _windows(
    guide: torch.Tensor, mask: torch.Tensor | None, radii: Sequence[int], box: str, backend: str, spare: int = 0
) -> tuple[torch.Tensor, Callable[..., torch.Tensor]]:
    """The areas of the windows in float64, and box(x)."""
    summer, full = box_summer(backend), None if mask is None else to_3d(mask)
    area = reference.guided.window_areas(guide, full, radii, box, summer, spare)
    return area, functools.partial(summer, radii=radii)


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    guide, _, mask, *ctx.form = inputs
    ctx.save_for_backward(guide, output[0], mask)


def _backward(ctx: Context, cotangents: list[torch.Tensor]) -> tuple[Any, ...]:
    d_mean, d_sigma = (c.contiguous() for c in cotangents)
    guide, mean, mask = ctx.saved_tensors
    return *statistics_backward(guide, mean, d_mean, d_sigma, mask, *ctx.form), *[None] * (1 + len(ctx.form))


statistics.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(statistics_backward)


@dataclass(frozen=True)
class GuidedPlan(Plan):
    """The plan of `Guided`; its tensors are the guide, the guide at the windows' resolution (the same tensor at full
    resolution), the results of `statistics`, and, if `masked`, the mask of valid pixels.

    spare: the guide was averaged with symbolic sizes, and has a spare block on every axis; see `reference.blur`.
    """

    radius: tuple[int, ...]
    box: str
    subsample: int
    channels: int  # of the guide
    masked: bool
    spare: bool

    in_graph = True

    @property
    def tensor_count(self) -> int:
        return 4 + self.masked

    @property
    def low_radii(self) -> list[int]:
        """The radius along each axis at the windows' resolution."""
        return [max(1, round(r / self.subsample)) for r in self.radius]

    def reach(self, axes: int) -> tuple[int, ...]:
        """A pixel reads all windows that contain it, and these read their pixels; with blocks, also the blocks on
        either side."""
        blocks = (2 * r + (self.subsample > 1) for r in self.low_radii)
        return tuple(n * self.subsample for n in blocks)

    @property
    def block(self) -> int:
        return self.subsample

    def operator(self, tensors: list[torch.Tensor], budget: float = 0) -> "GuidedOperator":
        return GuidedOperator(self, tensors)

    def step(self, plans: Sequence[Plan], mixing: Sequence[torch.Tensor], unary: torch.Tensor) -> type[Step]:
        """A single guided filter runs as one fused step in Triton, in which its second box also does the rest of the
        step."""
        if self.backend != "triton":
            return Step
        reach = _capped(self.low_radii, unary)
        fits = mixing[0].ndim < 2 or unary.shape[1] <= kernels.guided.MAX_MATRIX_CLASSES
        if len(plans) == 1 and self.subsample == 1 and has_kernels(self.backend, reach, self.masked) and fits:
            found: type[Step] = kernels.guided.step_of(to_3d(unary).shape[2:], reach, self.channels)
            return found
        return Step


class GuidedOperator:
    """K, computed by the kernels if they support its windows at full resolution."""

    def __init__(self, plan: GuidedPlan, tensors: list[torch.Tensor]) -> None:
        axes = tensors[0].ndim - 2
        spare = axes if plan.spare else 0
        self.cut = 0 if plan.backend == "graph" else spare  # with known sizes the spare blocks are removed
        image, *mask = (to_3d(t) for t in (tensors[0], *tensors[4:]))
        low, mean, cholesky = (resized(to_3d(t), self.cut, -1) for t in tensors[1:4])
        factors = per_axis(plan.subsample, axes, 1)  # a larger factor than the image only costs memory
        self.guide = reference.guided.Guide(
            image, low, mean, cholesky,
            radii=_capped(plan.low_radii, low),
            box=plan.box,
            factors=reference.blur.inside(factors, image.shape[2:]),
            box_sum=box_summer(plan.backend),
            mask=mask[0] if mask else None,
            spare=spare - self.cut,
        )  # fmt: skip
        self.precision = plan.precision
        served = plan.subsample == 1 and has_kernels(plan.backend, self.guide.radii, plan.masked)
        self.filter = modules("torch" if plan.backend == "triton" and not served else plan.backend).guided.guided_filter

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.filter(to_3d(x), self.guide, adjoint=False)
        return found.view(x.shape)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.filter(to_3d(y), self.guide, adjoint=True)
        return found.view(y.shape)

    def gradients(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        image, *low = reference.guided.gradients(to_3d(x), to_3d(y), self.guide)
        return [from_3d(g, x.ndim - 2) for g in (image, *(resized(t, self.cut, 1) for t in low))]

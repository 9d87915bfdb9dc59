"""The fused mean-field steps of windows; each stands in for reference.step.Step, which it is tested against."""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from tritoncrf.filters.base import Filtered, lifted
from tritoncrf.reference import blur
from tritoncrf.reference import window as reference
from tritoncrf.reference.step import Step, scaled, softmax_adjoint, stacked

if TYPE_CHECKING:
    from tritoncrf.filters.window import Prepared, WindowPlan


class MergedStep(Step):
    """The composed step with its kernels summed before they are applied: K = sum_m a_m s_m K_m s_m.

    K is symmetric, and kept for all iterations. What needs the messages of each filter apart, composes.
    """

    def __init__(
        self, plans: Sequence["WindowPlan"], prepared: list["Prepared"], mixing: list[torch.Tensor],
        unary: torch.Tensor, unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        super().__init__(plans, prepared, mixing, unary, unary_weight)
        self.window = prepared[0]
        self.centre = sum(
            a if r.scale_in is None else a * r.scale_in.square()
            for p, r, a in zip(plans, prepared, mixing, strict=True)
            if p.include_self
        )

    @functools.cached_property
    def weights(self) -> torch.Tensor:
        terms = [(r.features, r.scale_in, a) for r, a in zip(self.prepared, self.mixing, strict=True)]
        return reference.window_weights(terms, self.window.radii, self.window.dilation)

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        scores = self._filter(q, blur.pool, blur.upsample)
        scores += self.weighted_unary
        return scores if last else torch.softmax(scores, 1)

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        if filtered:
            return super().backward(q, g, through_softmax, filtered)
        gradient = self._filter(g, blur.upsample_adjoint, blur.pool_adjoint)
        return (softmax_adjoint(q, gradient) if through_softmax else gradient), None

    def _filter(
        self, x: torch.Tensor, down: Callable[..., torch.Tensor], up: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        full, ready = lifted(x), self.window
        low = down(full, ready.blur)
        total = reference.window_sum(low, ready.features, ready.radii, ready.dilation, False, self.weights)
        total += low * self.centre
        return up(total, full.shape[2:], ready.blur).reshape(x.shape)


class FusedStep:
    """The step of one or two windows at full resolution, in one launch."""

    def __init__(
        self, plans: Sequence["WindowPlan"], prepared: list["Prepared"], mixing: list[torch.Tensor],
        unary: torch.Tensor, unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.size = lifted(unary).shape[2:]
        self.shape = unary.shape
        self.unary = unary.contiguous().flatten(2)
        self.unary_weight = unary_weight.expand(unary.shape[1])
        self.mix = stacked(mixing, unary.shape[1])
        self.window = self.size, prepared[0].radii, plans[0].dilation
        self.filters = [
            (r.features.contiguous(), p.include_self, _contiguous(r.scale_in), _contiguous(r.scale_out))
            for p, r in zip(plans, prepared, strict=True)
        ]
        self.precision = plans[0].precision

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        y = torch.empty_like(self.unary)
        window_kernels().window_step(
            q.contiguous().flatten(2), y, *self.window, self.filters, self.precision, self.mix,
            self.unary, self.unary_weight, last,
        )  # fmt: skip
        return y.view(self.shape)

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        y = torch.empty_like(self.unary)
        back = self.unary.new_empty((len(self.filters), *self.unary.shape)) if filtered else None
        window_kernels().window_step_backward(
            g.contiguous().flatten(2), y, *self.window, self.filters, self.precision, self.mix,
            q.contiguous().flatten(2) if through_softmax else None, back,
        )  # fmt: skip
        return y.view(self.shape), None if back is None else back.unflatten(3, self.shape[2:])


class FusedBlurStep:
    """The step of one or two blurred windows of an image, in two launches: the window at low resolution,
    both filters as one batch; then upsampling, step and the pooling of the new Q.

    Steps follow each other: the second launch leaves the pooled Q for the next `forward`, which is given that Q.
    """

    def __init__(
        self, plans: Sequence["WindowPlan"], prepared: list["Prepared"], mixing: list[torch.Tensor],
        unary: torch.Tensor, unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.unary, self.unary_weight = unary.contiguous(), unary_weight.expand(unary.shape[1])
        self.weights = torch.stack([a.expand(unary.shape[1]) for a in mixing])
        self.scales_in = [_contiguous(r.scale_in) for r in prepared]
        self.scales_out = [_contiguous(r.scale_out) for r in prepared]
        self.window = prepared[0].radii, plans[0].dilation, plans[0].include_self
        self.factors = prepared[0].blur
        size = lifted(unary).shape[2:]
        self.low = blur.low_size(size, self.factors)
        self.grid = size[1:], self.low[1:], blur.padding(size, self.factors)[1:], self.factors[1:]
        # Filters side by side in the batch need equally many features: a channel of zeros changes no distance.
        widest = max(r.features.shape[1] for r in prepared)
        features = [
            torch.nn.functional.pad(r.features, (0, 0) * 3 + (0, widest - r.features.shape[1])).expand(
                unary.shape[0], *(-1,) * 4
            )
            for r in prepared
        ]
        self.features = torch.cat(features)
        self.pooled: torch.Tensor | None = None  # the pooled Q that `forward` returned last

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        pooled = self.pooled
        if pooled is None:
            pooled = torch.stack([blur.pool(scaled(lifted(q), s), self.factors) for s in self.scales_in])
        messages = self._sum(pooled)
        y = torch.empty_like(self.unary)
        self.pooled = None if last else torch.empty_like(messages)
        blur_kernels().blur_step(
            messages, self.unary, self.unary_weight, self.weights, self.scales_in, self.scales_out, self.grid, y,
            self.pooled,
        )  # fmt: skip
        return y

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        filters, (batch, classes) = len(self.scales_in), g.shape[:2]
        low = g.new_empty((filters, batch, classes, *self.low))
        blur_kernels().upsample_adjoint(g.contiguous(), self.scales_out, self.grid, low)
        y = torch.empty_like(self.unary)
        back = g.new_empty((filters, *g.shape)) if filtered else None
        blur_kernels().blur_step_backward(
            self._sum(low),
            q.contiguous() if through_softmax else None,
            self.weights,
            self.scales_in,
            self.grid,
            y,
            back,
        )
        return y, back

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        """K_m x_m for x [M, B, C, *low]."""
        return window_kernels().window_sum(x.flatten(0, 1), self.features, *self.window).view(x.shape)


def window_kernels() -> ModuleType:
    """The Triton kernels, imported when first used: the package works without triton."""
    return importlib.import_module("tritoncrf.kernels.window")


def blur_kernels() -> ModuleType:
    return importlib.import_module("tritoncrf.kernels.blur")


def _contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()

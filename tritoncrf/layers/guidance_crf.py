"""GuidanceCRF: SegModel's CRF with the guided filter, as a layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import checks, features, filters, graph
from tritoncrf.backends import to_onnx
from tritoncrf.filters.base import Execution, execution
from tritoncrf.filters.box import BOXES, expect_radii
from tritoncrf.layers.base import Layer, as_precise, expect_inputs, expect_update, placed
from tritoncrf.mean_field import OUTPUTS, mean_field, possible
from tritoncrf.types import Backend, Box, Compatibility, Output, Precision

PRESETS = (None, "released")
UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}


class GuidedOptions(Execution):
    """The arguments of the layer for its filters, except eps."""

    radius: int | tuple[int, ...]
    box: Box
    subsample: int


class GuidanceCRF(Layer):
    r"""The guidance CRF: mean field with the guided filter, a kernel whose cost does not depend on its radius.

    .. math::
        S_{t+1} = U + \lambda\, W \mathrm{softmax}(S_t), \qquad S_0 = U

    with W the guided filter with the image as the guide, and lambda the `strength` (Shen et al. 2017, SegModel,
    guidance CRF). The scores may be smaller than the image: the image is then averaged down to their size, the CRF runs
    there, and the result is upsampled to the size of the image. SegModel does this at a quarter of the resolution.

    Args:
        num_classes: C.
        radius: r of the filter's windows, in pixels of the scores; one int or one per axis. Messages
            come from up to 2 r pixels away in every direction.
        eps: variance of the colour above which edges are kept, in 0..255 units squared for any dtype of the image. A
            number above 0.
        iterations: mean-field updates.
        strength: lambda, the weight of the messages.
        compatibility: learn a cost mu, [C, C], of the row's class near the column's class:
            S = U - lambda mu W softmax(S). It starts at -I, the Potts model; without it the layer is that model.
        box: how windows at the border are averaged, "count" or "constant", see `filters.Guided`; the preset is
            "constant".
        subsample: fit the filter's coefficients at 1 / `subsample` of the scores' resolution (fast guided filter: He
            and Sun 2015); 1 for full resolution.
        upsample: whether the result is upsampled to the size of the image, linearly along every axis, by PyTorch, whose
            backward pass on a GPU adds in no fixed order. Otherwise it has the size of the scores.
        damping, temperature: of the updates, see `mean_field`; not in a preset.
        preset: "released" computes what the authors' code does: S = U - lambda (sum_c g_c - g) with g = W softmax(S),
            "constant" boxes, and eps added to the covariances once more at every update, so that update t has t * eps.
            All other arguments may be chosen except compatibility and subsample. Gradients are those of this function;
            the authors' backward pass, which continues to add eps, is not reproduced.
        precision, backend: see `filters.Guided`.
        device, dtype: of the parameter.

    Parameters: compatibility [C, C] if requested, otherwise none. Gradients reach the logits and the image.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> crf = tc.GuidanceCRF(num_classes=4, compatibility=True)
        >>> image = torch.randint(0, 256, (2, 3, 80, 120), dtype=torch.uint8)
        >>> scores = crf(torch.randn(2, 4, 20, 30), image)
        >>> scores.shape
        torch.Size([2, 4, 80, 120])
        >>> torch.nn.functional.cross_entropy(scores, torch.randint(0, 4, (2, 80, 120))).backward()
    """

    @checks.old_names(fast="subsample, 1 where it was False")
    def __init__(
        self, num_classes: int, radius: int | Sequence[int] = 3, eps: float = 1.0, iterations: int = 3, *,
        strength: float = 2.0, compatibility: bool = False, box: Box = "count", subsample: int = 1,
        upsample: bool = True, damping: float = 0.0, temperature: float = 1.0,
        preset: Literal["released"] | None = None, precision: Precision = "default", backend: Backend = "auto",
        device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset: expected None or 'released', got {checks.shown(preset)}")
        self.preset = preset
        self.update = expect_update(damping, temperature, preset)
        self.num_classes = checks.expect_num_classes("num_classes", num_classes)
        self.eps = checks.expect_number("eps", eps, positive=True)
        self.iterations = checks.expect_int("iterations", iterations, 0, checks.MOST_ITERATIONS)
        self.strength = checks.expect_number("strength", strength)
        self.upsample = checks.expect_bool("upsample", upsample)
        checks.expect_bool("compatibility", compatibility)
        checks.expect_int("subsample", subsample, 1)
        for name, value, none in ("compatibility", compatibility, False), ("subsample", subsample, 1):
            if value != none and preset is not None:
                raise ValueError(
                    f"{name}: expected {none} with preset={preset!r}, which does not support it, got {value}"
                )
        checks.expect_choice("box", box, BOXES)
        radii = tuple(expect_radii(radius, len(radius) if isinstance(radius, (list, tuple)) else 1))
        self.guided: GuidedOptions = {
            "radius": radii if isinstance(radius, (list, tuple)) else radii[0],
            "box": box if preset is None else "constant",
            "subsample": subsample,
            **execution(precision, backend),
        }
        factory = placed(device, dtype)
        self.compatibility = nn.Parameter(-torch.eye(num_classes, **factory)) if compatibility else None

    def forward(
        self, logits: torch.Tensor, image: torch.Tensor | None = None, *,
        features: torch.Tensor | None = None, output: Output = "logits",
    ) -> torch.Tensor:  # fmt: skip
        """Refined scores [B, C, *S'], or [B, C, *S] without an image or with upsample=False; dtype of `logits`.

        Args:
            logits: U, [B, C, *S], floating; -inf rules a class out.
            image: [B or 1, channels, *S'], 1 to 8 channels, uint8 or floating-point in 0..1, see `tritoncrf.features`.
                Do not subtract the mean of ImageNet; on a GPU, where values are not checked, that would not raise an
                error. Along every axis at least as large as the scores, in any ratio.
            features: instead of an image, the guide, [B or 1, D, *S], D from 1 to 8, with eps in its unit squared.
            output: "logits", "probabilities" or "log_probabilities"; the last two of the scores at their final size.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        expect_inputs(self, logits, image, features, larger_image=True)
        checks.expect_choice("output", output, OUTPUTS)
        if features is None:
            assert image is not None
            name, guide = "image", self._guide(image, logits)
        else:
            name, guide = "features", checks.expect_tensor("features", features)
        with checks.renamed("guide", name):
            scores = self._scores(possible(logits), guide)
        if image is not None and self.upsample and not _same(image.shape[2:], logits.shape[2:]):
            scores = F.interpolate(scores, image.shape[2:], mode=UPSAMPLING[image.ndim - 2], align_corners=False)
        if output == "probabilities":
            scores = torch.softmax(scores, 1)
        elif output == "log_probabilities":
            scores = torch.log_softmax(scores, 1)
        return scores.to(logits.dtype)

    @property
    def cost(self) -> torch.Tensor:
        """mu, [C, C], the cost of the row's class near the column's class; negative values attract."""
        return -torch.eye(self.num_classes) if self.compatibility is None else self.compatibility

    def _guide(self, image: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The colours in 0..255 units, averaged to the size of the scores."""
        colors, size = features.color(as_precise(image, logits), 1.0), logits.shape[2:]
        if _same(colors.shape[2:], size):
            return colors
        if to_onnx() and graph.area.open_sizes(colors.shape[2:], size):
            return graph.area.averaged(colors, size)
        return F.interpolate(colors, size, mode="area")

    def _scores(self, logits: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """S_T at the size of the logits."""
        if self.preset is None:
            kernel = filters.Guided(guide, eps=self.eps, **self.guided)
            mu: Compatibility = "potts" if self.compatibility is None else self.compatibility
            return mean_field(logits, [kernel], [self.strength], mu, self.iterations, output="logits", **self.update)
        # mean_field keeps its filter, but here every update has its own eps. So it runs one update at a time, from the
        # previous scores, and the logits are added outside.
        cost, scores = 1 - torch.eye(self.num_classes, device=logits.device, dtype=logits.dtype), logits
        for t in range(1, self.iterations + 1):
            kernel = filters.Guided(guide, eps=t * self.eps, **self.guided)
            messages = mean_field(scores, [kernel], [self.strength], cost, 1, unary_weight=0.0, output="logits")
            scores = logits + messages
        return scores

    def extra_repr(self) -> str:
        names = "num_classes", "eps", "iterations", "strength", "upsample", "preset"
        shown = {name: getattr(self, name) for name in names} | self.guided | self.update
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _same(size: torch.Size, other: torch.Size) -> bool:
    """Whether two sizes are equal; False if an exported graph must work for both cases."""
    return graph.area.known_equal(size, other) if graph.area.open_sizes(size, other) else size == other

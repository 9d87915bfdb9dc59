"""The base class of all networks: from photos to logits of the same size, with or without the CRF."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args, overload

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import checks, features
from tritoncrf.layers.base import as_precise
from tritoncrf.published import MEANS

Pixels: TypeAlias = Literal["imagenet", "caffe", "vgg", "demo", "raw"]
BYTES = (1 / 255, 1 / 255, 1 / 255)  # as a deviation: 0..255
# Mean and standard deviation of red, green and blue in 0..1 that networks expect: those of torchvision; the means that
# CRF-RNN's codes subtract from 0..255; and 0..255 unchanged.
PIXELS: dict[Pixels, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    **{name: (tuple(m / 255 for m in mean), BYTES) for name, mean in MEANS.items()},
    "raw": ((0.0, 0.0, 0.0), BYTES),
}
Logits: TypeAlias = Literal["refined", "unary", "both"]
OUTPUTS: tuple[Logits, ...] = get_args(Logits)


class Segmenter(nn.Module):
    """A segmentation network. A subclass defines `scores`, and `finish` if layers follow the scores.

    Args:
        num_classes: C.
        pixels: the normalisation of the image. "imagenet": (x - mean) / std of ImageNet on 0..1, as torchvision's
            weights expect; "caffe", "vgg" or "demo": 0..255 minus the mean of this name, see `CRFRNN`; "raw": 0..255.

    `crf` is the CRF of the pipeline, or None; its parameters are those whose names begin with "crf.".
    `frozen` names the parameters that are never trained.
    """

    frozen: tuple[str, ...] = ()
    crf: nn.Module | None
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_classes: int, pixels: Pixels = "imagenet") -> None:
        super().__init__()
        self.num_classes = checks.expect_int("num_classes", num_classes, 1)
        mean, std = PIXELS[checks.expect_choice("pixels", pixels, PIXELS)]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.crf = None

    def normalized(self, image: torch.Tensor) -> torch.Tensor:
        """The image as the network's weights expect it; `features.color` checks and scales it."""
        colors = features.color(as_precise(image, self.mean), 255.0)
        return (colors.to(self.mean.dtype) - self.mean) / self.std

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """Logits before the CRF, at the resolution where it runs."""
        raise NotImplementedError

    def finish(self, scores: torch.Tensor, image: torch.Tensor, crf: bool) -> torch.Tensor:
        """Logits at the image's size from `scores`, refined by the CRF or not."""
        return scores

    def forward(
        self, image: torch.Tensor, output: Logits = "refined"
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, C, H, W].

        Args:
            image: [B, 3, H, W], uint8, or floating-point in 0..1.
            output: "refined" by the CRF (where there is one), the "unary" logits without it, or "both", a pair (unary,
                refined) for which the network runs once.

        Raises:
            TypeError, ValueError: an image of another shape or dtype, an unknown output, or an input that the CRF does
                not accept.
        """
        checks.expect_choice("output", output, OUTPUTS)
        if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image: expected photos [B, 3, H, W], got {checks.kind_of(image)}")
        scores = self.scores(image)
        if output == "both":
            return self.finish(scores, image, crf=False), self.finish(scores, image, crf=True)
        return self.finish(scores, image, crf=output == "refined")

    if TYPE_CHECKING:  # torch declares the result of a module's call as Any

        @overload
        def __call__(self, image: torch.Tensor, output: Literal["refined", "unary"] = "refined") -> torch.Tensor: ...
        @overload
        def __call__(self, image: torch.Tensor, output: Literal["both"]) -> tuple[torch.Tensor, torch.Tensor]: ...
        def __call__(
            self, image: torch.Tensor, output: Logits = "refined"
        ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


class WithCRF(Segmenter):
    """A segmentation network followed by a CRF layer, both trainable: S = crf(network(image), image).

    Args:
        network: a `Segmenter` without a CRF.
        crf: a layer with the same number of classes: `crf(logits, image)` returns logits.

    Raises:
        ValueError: the network already has a CRF, or the numbers of classes differ.
    """

    crf: nn.Module

    def __init__(self, network: Segmenter, crf: nn.Module) -> None:
        super().__init__(network.num_classes)
        if network.crf is not None:
            raise ValueError(f"network: expected one without a CRF, got {type(network).__name__} with its own")
        if crf.num_classes != network.num_classes:
            raise ValueError(f"crf: expected {network.num_classes} classes, as in the network, got {crf.num_classes}")
        self.network, self.crf = network, crf

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)

    def finish(self, scores: torch.Tensor, image: torch.Tensor, crf: bool) -> torch.Tensor:
        return self.crf(scores, image) if crf else scores


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """x [B, C, h, w] resized to `size` by bilinear interpolation between half-pixel centres."""
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)

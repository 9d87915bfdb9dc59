"""ResNetFCN and ResNetConvCRF: the network of the ConvCRF paper, without and with its CRF."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tritoncrf import ConvCRF, checks
from tritoncrf.models.blocks import crf_options, options
from tritoncrf.models.resnet import ResNet
from tritoncrf.models.segmenter import Pixels, Segmenter, WithCRF, resized


class ResNetFCN(Segmenter):
    r"""A fully convolutional network on a ResNet: scores at three resolutions, summed from coarse to fine.

    .. math::
        s = \mathrm{up}(\mathrm{up}(\mathrm{up}(W_4 x_4) + W_3 x_3) + W_2 x_2)

    with x the features of the stages layer2 to layer4, W 1x1 convolutions without bias, dropout of whole channels
    before W_4 only, and up the bilinear interpolation to the next size, finally to that of the image. It is the network
    that ConvCRF refines (Teichmann and Cipolla 2018, ConvCRF, experiments on PASCAL VOC), there called a simple FCN on
    a ResNet-101; its head follows the author's later framework. From coarse to fine, W have the initial variances 2 /
    n, 0.02 / n and 0.0002 / n for n channels of x, so that finer maps count little at first.

    Args:
        num_classes: C.
        depth, output_stride, width, checkpointing: see `ResNet`. Scores of stages with the same resolution are added
            directly.
        dropout: probability that a channel of x_4 is dropped in training.
        pixels: see `Segmenter`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import ResNetFCN
        >>> network = ResNetFCN(num_classes=4, depth=18, width=0.125)
        >>> network(torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)).shape
        torch.Size([2, 4, 50, 70])
    """

    score_layer2: nn.Conv2d
    score_layer3: nn.Conv2d
    score_layer4: nn.Conv2d

    def __init__(
        self, num_classes: int = 21, depth: int = 101, output_stride: int = 32, dropout: float = 0.5,
        width: float = 1.0, pixels: Pixels = "imagenet", checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, pixels)
        self.backbone = ResNet(depth, output_stride, width, checkpointing)
        self.dropout = nn.Dropout2d(checks.expect_number("dropout", dropout))
        variances = {"score_layer2": 2e-4, "score_layer3": 2e-2, "score_layer4": 2.0}
        for (name, variance), channels in zip(variances.items(), self.backbone.channels[1:]):
            score = nn.Conv2d(channels, num_classes, 1, bias=False)
            nn.init.normal_(score.weight, std=(variance / channels) ** 0.5)
            setattr(self, name, score)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        _, x2, x3, x4 = self.backbone(self.normalized(image))
        scores = self.score_layer4(self.dropout(x4))
        scores = resized(scores, x3.shape[2:]) + self.score_layer3(x3)
        scores = resized(scores, x2.shape[2:]) + self.score_layer2(x2)
        return resized(scores, image.shape[2:])


# The initial parameters of the layer in the paper.
PAPER = {"theta_space": 80.0, "theta_color": 13.0, "weight_smooth": 3.0, "weight_appearance": 10.0}


class ResNetConvCRF(WithCRF):
    """`ResNetFCN` with a `ConvCRF` on its scores: the pipeline of Teichmann and Cipolla 2018.

    Args:
        num_classes: C.
        network: options of `ResNetFCN`, a dict, or None for its defaults.
        crf: options of `ConvCRF`, likewise; its defaults are the paper's, window 11 at a quarter of the resolution.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import ResNetConvCRF
        >>> network = {"depth": 18, "width": 0.125}
        >>> model = ResNetConvCRF(num_classes=4, network=network, crf={"window_size": 5, "compatibility": True})
        >>> unary, refined = model(torch.rand(1, 3, 40, 60), output="both")
        >>> refined.shape
        torch.Size([1, 4, 40, 60])
    """

    def __init__(
        self, num_classes: int = 21, *, network: Mapping[str, Any] | None = None, crf: Mapping[str, Any] | None = None
    ) -> None:
        unary, given = ResNetFCN(num_classes, **options("network", network)), crf_options(crf, PAPER)
        if given.get("appearance_position") is False and "theta_space" not in (crf or {}):
            given.pop("theta_space", None)  # a kernel without positions has no bandwidth of positions
        super().__init__(unary, ConvCRF(num_classes, **given))

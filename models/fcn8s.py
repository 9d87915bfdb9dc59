"""FCN8s and FCN8sCRFRNN: the network of the CRF-RNN paper, without and with its CRF."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from tritoncrf import CRFRNN, checks
from tritoncrf.models.blocks import bilinear_, crf_options, msra_, options, recomputed, scaled
from tritoncrf.models.segmenter import Pixels, Segmenter, WithCRF

# Channels of VGG-16's 3x3 convolutions between its poolings, and where a pooling ends among the `features`.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLS = (5, 10, 17, 24, 31)
# Of the finer map, where the coarser one begins: what conv1_1's padding by 100 leaves at strides 16, 8 and 1.
OFFSETS = (5, 9, 31)
POOL4_SCALE, POOL3_SCALE = 0.01, 1e-4
Skips: TypeAlias = Literal["staged", "at_once"]
SKIPS: tuple[Skips, ...] = get_args(Skips)
ScoreInit: TypeAlias = Literal["zero", "msra"]
SCORE_INITS: tuple[ScoreInit, ...] = get_args(ScoreInit)


class FCN8s(Segmenter):
    r"""FCN-8s on VGG-16: scores at strides 32, 16 and 8, fused by learnt upsampling.

    .. math::
        s = \mathrm{up}_8(\mathrm{up}_2(\mathrm{up}_2(W_7 x_7) + W_4 x_4) + W_3 x_3)

    with x the features of fc7, pool4 and pool3, W 1x1 convolutions, and up transposed convolutions that mix classes and
    start bilinear: two of kernel 4 that learn, and one of kernel 16 that stays (Long et al. 2015, FCN, section 4.2;
    its use in Zheng et al. 2015, CRF as RNN, section 5). Images of any size: the first convolution pads by 100, and
    the sums and the result are cropped. At 21 classes 134,489,780 parameters.

    Args:
        num_classes: C.
        width: factor of all numbers of channels, at least 8 each.
        skips: "staged", where the network is trained from stride 32 on to 8; "at_once", which multiplies pool4 by 0.01
            and pool3 by 0.0001, for a training of all together.
        dropout: probability that a value behind the two last convolutions is dropped in training.
        pixels: see `Segmenter`.
        score_init: W at the start: "zero", as FCN has it, or "msra", normal of variance 2 / fan-in.
        checkpointing: keep for the backward pass only what the poolings give, and compute the rest once more.

    Parameters have torchvision's names where its VGG-16 has the same, features.* and classifier.*, the last two as
    convolutions. `frozen` names those that are never trained.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import FCN8s
        >>> network = FCN8s(num_classes=4, width=1 / 16)
        >>> network(torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)).shape
        torch.Size([1, 4, 50, 70])
    """

    frozen = ("upscore8.weight",)

    def __init__(
        self, num_classes: int = 21, width: float = 1.0, skips: Skips = "staged", dropout: float = 0.5,
        pixels: Pixels = "caffe", score_init: ScoreInit = "zero", checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, pixels)
        at_once = checks.expect_choice("skips", skips, SKIPS) == "at_once"
        self.pool4_scale, self.pool3_scale = (POOL4_SCALE, POOL3_SCALE) if at_once else (1.0, 1.0)
        checks.expect_choice("score_init", score_init, SCORE_INITS)
        self.checkpointing = checks.expect_bool("checkpointing", checkpointing)
        checks.expect_number("dropout", dropout)

        layers: list[nn.Module] = []
        inputs = 3
        for group in VGG16:
            for channels in (scaled(channels, width) for channels in group):
                padding = 1 if layers else 100
                layers += [msra_(nn.Conv2d(inputs, channels, 3, padding=padding)), nn.ReLU(inplace=True)]
                inputs = channels
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            msra_(nn.Conv2d(inputs, hidden, 7)), nn.ReLU(inplace=True), nn.Dropout(dropout),
            msra_(nn.Conv2d(hidden, hidden, 1)), nn.ReLU(inplace=True), nn.Dropout(dropout),
        )  # fmt: skip

        self.score_fr = nn.Conv2d(hidden, num_classes, 1)
        self.score_pool4 = nn.Conv2d(scaled(512, width), num_classes, 1)
        self.score_pool3 = nn.Conv2d(scaled(256, width), num_classes, 1)
        for score in (self.score_fr, self.score_pool4, self.score_pool3):
            msra_(score)
            if score_init == "zero":
                nn.init.zeros_(score.weight)
        self.upscore2 = bilinear_(nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2))
        self.upscore_pool4 = bilinear_(nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False))
        self.upscore8 = bilinear_(nn.ConvTranspose2d(num_classes, num_classes, 16, stride=8, bias=False))
        self.upscore8.requires_grad_(False)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        x, begin, pools = self.normalized(image), 0, []
        for end in POOLS:
            x = self._run(self.features[begin:end], x)
            pools.append(x)
            begin = end
        _, _, pool3, pool4, pool5 = pools
        scores = self.upscore2(self.score_fr(self._run(self.classifier, pool5)))
        scores = scores + cropped(self.score_pool4(self.pool4_scale * pool4), OFFSETS[0], scores.shape[2:])
        scores = self.upscore_pool4(scores)
        scores = scores + cropped(self.score_pool3(self.pool3_scale * pool3), OFFSETS[1], scores.shape[2:])
        return cropped(self.upscore8(scores), OFFSETS[2], image.shape[2:]).contiguous()

    def _run(self, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return recomputed(part, x) if self.checkpointing else part(x)


# What the layer starts from in the paper.
PAPER = {"theta_space": 160.0, "theta_color": 3.0, "weight_smooth": 3.0, "weight_appearance": 5.0}


class FCN8sCRFRNN(WithCRF):
    """`FCN8s` with a `CRFRNN` on its scores: the network of Zheng et al. 2015, CRF as RNN.

    Args:
        num_classes: C.
        network: options of `FCN8s`, a dict, or None for its defaults.
        crf: options of `CRFRNN`, likewise; its defaults are the paper's, its presets the published codes.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import FCN8sCRFRNN
        >>> model = FCN8sCRFRNN(num_classes=4, network={"width": 1 / 16}, crf={"iterations": 2})
        >>> unary, refined = model(torch.rand(1, 3, 40, 60), output="both")
        >>> refined.shape
        torch.Size([1, 4, 40, 60])
    """

    def __init__(
        self, num_classes: int = 21, *, network: Mapping[str, Any] | None = None, crf: Mapping[str, Any] | None = None
    ) -> None:
        unary = FCN8s(num_classes, **options("network", network))
        super().__init__(unary, CRFRNN(num_classes, **crf_options(crf, PAPER)))


def cropped(x: torch.Tensor, offset: int, size: Sequence[int]) -> torch.Tensor:
    """`size` of x [B, C, h, w], from `offset` on along both axes."""
    height, width = size
    return x[:, :, offset : offset + height, offset : offset + width]

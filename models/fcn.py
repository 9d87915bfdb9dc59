"""FCN32s, FCN16s, FCN8s and FCN8sCRFRNN: the networks of the FCN paper, and the network of the CRF-RNN paper."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import nn

from tritoncrf import CRFRNN, checks
from tritoncrf.models.blocks import bilinear_, crf_options, msra_, options, recomputed, scaled
from tritoncrf.models.segmenter import Pixels, Segmenter, WithCRF
from tritoncrf.published import CRFRNN_CODES, MEANS

# Channels of VGG-16's 3x3 convolutions between its poolings, and the end of each pooling in `features`.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLS = (5, 10, 17, 24, 31)
Skips: TypeAlias = Literal["staged", "at_once"]
SKIPS: tuple[Skips, ...] = get_args(Skips)
ScoreInit: TypeAlias = Literal["zero", "msra"]
SCORE_INITS: tuple[ScoreInit, ...] = get_args(ScoreInit)


class Stream(NamedTuple):
    """Scores of a finer feature map, which are added to the coarser ones.

    Attributes:
        pool: the pooling whose features it scores.
        upsampling, bias: the layer that brings the coarser scores to this resolution, and whether it has a bias.
        at_once: factor of the features if all streams are trained at once.
        offset: the place in its scores where the coarser ones begin, a result of conv1_1's padding by 100.
    """

    pool: int
    upsampling: str
    bias: bool
    at_once: float
    offset: int


class Last(NamedTuple):
    """The upsampling to the image's resolution, and the place in its result where the image begins."""

    upsampling: str
    stride: int
    offset: int


STREAMS = (Stream(4, "upscore2", True, 0.01, 5), Stream(3, "upscore_pool4", False, 1e-4, 9))
LAST = {32: Last("upscore", 32, 19), 16: Last("upscore16", 16, 27), 8: Last("upscore8", 8, 31)}


class FCN(Segmenter):
    """The common part of `FCN32s`, `FCN16s` and `FCN8s`; a subclass names the streams that are added, and the last
    upsampling."""

    streams: ClassVar[tuple[Stream, ...]]
    last: ClassVar[Last]

    def __init__(
        self, num_classes: int = 21, width: float = 1.0, skips: Skips = "staged", dropout: float = 0.5,
        pixels: Pixels = "caffe", score_init: ScoreInit = "zero", checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, pixels)
        at_once = checks.expect_choice("skips", skips, SKIPS) == "at_once"
        self.scales = [stream.at_once if at_once else 1.0 for stream in self.streams]
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

        scored = {"score_fr": hidden}
        scored |= {f"score_pool{s.pool}": scaled(VGG16[s.pool - 1][-1], width) for s in self.streams}
        scores = {name: nn.Conv2d(channels, num_classes, 1) for name, channels in scored.items()}
        for name, score in scores.items():
            self.add_module(name, msra_(score))
            if score_init == "zero":
                nn.init.zeros_(score.weight)
        for s in self.streams:
            deconv = nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=s.bias)
            self.add_module(s.upsampling, bilinear_(deconv))
        name, stride, _ = self.last
        deconv = nn.ConvTranspose2d(num_classes, num_classes, 2 * stride, stride=stride, bias=False)
        self.add_module(name, bilinear_(deconv).requires_grad_(False))

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        x, begin, pools = self.normalized(image), 0, []
        for end in POOLS:
            x = self._run(self.features[begin:end], x)
            pools.append(x)
            begin = end
        scores = self._layer("score_fr", self._run(self.classifier, x))
        for stream, scale in zip(self.streams, self.scales, strict=True):
            scores = self._layer(stream.upsampling, scores)
            finer = self._layer(f"score_pool{stream.pool}", scale * pools[stream.pool - 1])
            scores = scores + cropped(finer, stream.offset, scores.shape[2:])
        large = self._layer(self.last.upsampling, scores)
        return cropped(large, self.last.offset, image.shape[2:]).contiguous()

    def continued(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict with which this network continues the staged training of one with a larger stride.

        New streams and upsamplings keep the parameters of this network, initially zero and bilinear, so that it starts
        from the other network's scores, interpolated in more steps. A `state` without a larger stride is returned
        unchanged.
        """
        larger = {f"{last.upsampling}.weight" for last in LAST.values() if last.stride > self.last.stride}
        if not larger & state.keys():
            return dict(state)
        new = [name for s in self.streams for name in (f"score_pool{s.pool}", s.upsampling)] + [self.last.upsampling]
        own = {name: value for name, value in self.state_dict().items() if name.rpartition(".")[0] in new}
        return own | {name: value for name, value in state.items() if name not in larger}

    def _layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(name)(x)

    def _run(self, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return recomputed(part, x) if self.checkpointing else part(x)


class FCN32s(FCN):
    r"""FCN-32s on VGG-16: scores at stride 32, upsampled at once; the first stage of `FCN8s`.

    .. math::
        s = \mathrm{up}_{32}(W_7 x_7)

    with the symbols of `FCN8s` (Long et al. 2015, FCN, section 4.1). At 21 classes 136,152,917 parameters.

    Args:
        num_classes, width, dropout, pixels, score_init, checkpointing: see `FCN8s`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import FCN32s
        >>> network = FCN32s(num_classes=4, width=1 / 16)
        >>> network(torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)).shape
        torch.Size([1, 4, 50, 70])
    """

    streams, last = (), LAST[32]
    frozen = ("upscore.weight",)

    def __init__(
        self, num_classes: int = 21, width: float = 1.0, dropout: float = 0.5, pixels: Pixels = "caffe",
        score_init: ScoreInit = "zero", checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, width, "staged", dropout, pixels, score_init, checkpointing)


class FCN16s(FCN):
    r"""FCN-16s on VGG-16: scores at strides 32 and 16; the second stage of `FCN8s`.

    .. math::
        s = \mathrm{up}_{16}(\mathrm{up}_2(W_7 x_7) + W_4 x_4)

    with the symbols of `FCN8s` (Long et al. 2015, FCN, section 4.2). At 21 classes 134,816,015 parameters.

    Args:
        num_classes, width, skips, dropout, pixels, score_init, checkpointing: see `FCN8s`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import FCN16s
        >>> network = FCN16s(num_classes=4, width=1 / 16)
        >>> network(torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)).shape
        torch.Size([1, 4, 50, 70])
    """

    streams, last = STREAMS[:1], LAST[16]
    frozen = ("upscore16.weight",)


class FCN8s(FCN):
    r"""FCN-8s on VGG-16: scores at strides 32, 16 and 8, fused by learned upsampling.

    .. math::
        s = \mathrm{up}_8(\mathrm{up}_2(\mathrm{up}_2(W_7 x_7) + W_4 x_4) + W_3 x_3)

    with x the features of fc7, pool4 and pool3, W 1x1 convolutions, and up transposed convolutions that mix classes and
    start bilinear: two of kernel 4 that are trained, and one of kernel 16 that is fixed (Long et al. 2015, FCN, section
    4.2; its use in Zheng et al. 2015, CRF as RNN, section 5). Images of any size: the first convolution pads by 100,
    and the sums and the result are cropped. At 21 classes 134,489,780 parameters, of which 21 are the bias of the first
    upsampling: CRF-RNN's released network has it, while FCN's does not and fixes all upsamplings (freeze "upscore*").

    Args:
        num_classes: C.
        width: factor of all numbers of channels, which are at least 8.
        skips: "staged", to train the network from stride 32 down to 8 in stages; "at_once", which multiplies pool4 by
            0.01 and pool3 by 0.0001, to train all streams together.
        dropout: probability that an output of fc6 or fc7 is dropped in training.
        pixels: see `Segmenter`.
        score_init: initial W: "zero", as in FCN, or "msra", normal of variance 2 / fan-in.
        checkpointing: keep only the outputs of the poolings for the backward pass, and recompute the rest.

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

    streams, last = STREAMS, LAST[8]
    frozen = ("upscore8.weight",)


# The initial parameters of the layer in the paper.
PAPER = {"theta_space": 160.0, "theta_color": 3.0, "weight_smooth": 3.0, "weight_appearance": 5.0}


class FCN8sCRFRNN(WithCRF):
    """`FCN8s` with a `CRFRNN` on its scores: the network of Zheng et al. 2015, CRF as RNN.

    Args:
        num_classes: C.
        network: options of `FCN8s`, a dict, or None for its defaults.
        crf: options of `CRFRNN`, likewise; its defaults are the paper's, its presets the published codes. With a preset
            the network and the CRF subtract the same mean: if only one of network["pixels"] and crf["mean"] is given,
            the other is the same; if neither is, both are the code's.

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
        network, crf = options("network", network), crf_options(crf, PAPER)
        if crf.get("preset") is not None:
            code = CRFRNN_CODES[checks.expect_choice("preset", crf["preset"], CRFRNN_CODES)]
            pixels = network.get("pixels")
            crf = {"mean": pixels if pixels in [*MEANS] else code.mean, **crf}
        layer = CRFRNN(num_classes, **crf)
        network = network if layer.mean is None else {"pixels": layer.mean, **network}
        super().__init__(FCN8s(num_classes, **network), layer)


def cropped(x: torch.Tensor, offset: int, size: Sequence[int]) -> torch.Tensor:
    """x [B, C, h, w] cropped to `size`, from `offset` along both axes."""
    height, width = size
    return x[:, :, offset : offset + height, offset : offset + width]

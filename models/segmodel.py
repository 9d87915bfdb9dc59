"""SegModel: structured patch prediction, context, and the guidance CRF."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import GuidanceCRF, box_mean, checks, features
from tritoncrf.models.blocks import bilinear_, msra_, options, scaled
from tritoncrf.models.preactivation import PreActivationResNet
from tritoncrf.models.resnet import ResNet
from tritoncrf.models.segmenter import Pixels, Segmenter, resized

Context: TypeAlias = Literal["released", "paper", "none"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
Backbone: TypeAlias = Literal["resnet", "preactivation"]
BACKBONES: dict[Backbone, type[ResNet] | type[PreActivationResNet]] = {
    "resnet": ResNet,
    "preactivation": PreActivationResNet,
}
PRESETS = (None, "released")
STRIDE = 16
# Radius of the box and dilation of the 3x3 convolution after it, both in cells of 1/16.
CONTEXT_SIZES = ((2, 6), (4, 12))
POOLED, HIDDEN = 25, 128


class SegModel(Segmenter):
    r"""Scores in patches, refined by their context and by the image (Shen et al. 2017, SegModel, figure 4).

    .. math::
        s_1 = P(W_0 h) + \sum_r P(W_r\, \mathrm{box}_r(h)), \qquad s_2 = s_1 + L(s_1), \qquad
        s = \mathrm{up}_4(\mathrm{crf}(\mathrm{up}_2(s_2)))

    with h the features of a ResNet at 1/16 of the resolution, P the rearrangement of a patch of 2x2 scores per cell to
    1/8, L the context of the scores, up_2 a learned transposed convolution per class to 1/4, initially bilinear, and
    up_4 a fixed bilinear one. Images of any size: they are padded to multiples of 16 with the mean colour, and the
    scores are cropped. `models/README.md` lists where the paper, the released code and this class differ.

    Args:
        num_classes: C.
        depth, width, checkpointing: of the backbone, see `ResNet`.
        context: "released", as in the authors' code: 3x3 convolutions, dilated by 6 and 12, of the features' means in
            boxes of radius 2 and 4; L is a 7x7 and a 1x1 convolution of the scores' maximum over 25x25, normalised to
            length 1 over the classes. "paper": L is two such dilated convolutions of the means of the class
            probabilities, with boxes and dilations of the same size in the image. "none": only W_0 is used.
        patch: side n of the patch of n x n scores that a cell predicts, from 1 to 8. Unless n is 2, the scores are
            interpolated bilinearly from n/16 to 1/8. With 1 there are no patches. Without patches, context and guidance
            the network is the baseline "Unary", which has nothing to learn after W_0 and interpolates from 1/16 to the
            image at once.
        guidance: whether there is a guidance CRF, at 1/4.
        crf: options of `GuidanceCRF`, a dict, or None for its defaults or those of the preset.
        context_iterations: how often s_2 = s_1 + L(s_2) is applied with the same weights, starting from s_2 = s_1.
        pixels: see `Segmenter`; "raw" for a backbone that normalises the images itself.
        backbone: "resnet" for `ResNet`, or "preactivation" for `PreActivationResNet`, as in the authors' code.
        preset: "released" computes what the authors' code does: images are padded with black instead of the mean
            colour; up_4 has a learned bias; the new layers are initialised uniformly with variance 4 / (fan-in +
            fan-out) instead of normally with variance 2 / fan-in; and the guidance CRF uses its own preset of this
            name. The authors' backbone is "preactivation" on "raw" pixels.

    `frozen` names the parameters that are never trained.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models import SegModel
        >>> model = SegModel(num_classes=4, depth=18, width=0.125, crf={"iterations": 2})
        >>> model(torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)).shape
        torch.Size([1, 4, 50, 70])
    """

    frozen = ("up4.weight",)

    def __init__(
        self, num_classes: int = 21, depth: int = 101, width: float = 1.0, *,
        context: Context = "released", patch: int = 2, guidance: bool = True, crf: Mapping[str, Any] | None = None,
        context_iterations: int = 1, pixels: Pixels = "imagenet", checkpointing: bool = False,
        backbone: Backbone = "resnet", preset: Literal["released"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, pixels)
        if preset not in PRESETS:
            raise ValueError(f"preset: expected None or 'released', got {checks.shown(preset)}")
        self.preset = preset
        checks.expect_choice("context", context, CONTEXTS)
        self.patch = checks.expect_int("patch", patch, 1, 8)
        self.context_iterations = checks.expect_int("context_iterations", context_iterations, 1)
        if not checks.expect_bool("guidance", guidance) and crf is not None:
            raise ValueError(f"crf: expected None with guidance=False, got {crf!r}")
        kind = BACKBONES[checks.expect_choice("backbone", backbone, BACKBONES)]
        self.backbone = kind(depth, STRIDE, width, checkpointing)
        channels, outputs = self.backbone.channels[-1], num_classes * patch**2
        self.score = msra_(nn.Conv2d(channels, outputs, 1))
        self.feature_context: BoxContext | None = None
        self.label_context: nn.Module | None = None
        if context != "none":
            self.feature_context = BoxContext(channels, outputs)
        if context == "released":
            self.label_context = LabelContext(num_classes, scaled(HIDDEN, width))
        elif context == "paper":
            self.label_context = nn.Sequential(nn.Softmax(1), BoxContext(num_classes, num_classes, scale=2))
        if guidance:
            self.crf = GuidanceCRF(num_classes, upsample=False, **{"preset": preset} | options("crf", crf))
        self.up2: nn.ConvTranspose2d | None = None
        self.up4: nn.ConvTranspose2d | None = None
        if patch > 1 or guidance or context != "none":
            c = num_classes
            self.up2 = bilinear_(nn.ConvTranspose2d(c, c, 4, stride=2, padding=1, groups=c))
            up4 = nn.ConvTranspose2d(c, c, 8, stride=4, padding=2, groups=c, bias=preset == "released")
            self.up4 = bilinear_(up4)
            self.up4.weight.requires_grad_(False)
        if preset == "released":
            for part in (self.score, self.feature_context, self.label_context):
                for module in [] if part is None else part.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.xavier_uniform_(module.weight, gain=2**0.5)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the padded image at 1/4, or at 1/16 in the baseline "Unary"."""
        x = self.backbone(self._input(image))[-1]
        first = self.score(x)
        if self.feature_context is not None:
            first = first + self.feature_context(x)
        first = patch_shuffle(first, self.patch)
        if self.up2 is None:
            return first
        first = resized(first, [2 * n for n in x.shape[2:]])
        scores = first
        if self.label_context is not None:
            for _ in range(self.context_iterations):
                scores = first + self.label_context(scores)
        return self.up2(scores)

    def _input(self, image: torch.Tensor) -> torch.Tensor:
        """The padded image, normalised for the backbone."""
        if self.preset == "released":
            return self.normalized(_padded(image))
        return _padded(self.normalized(image))

    def _guide(self, image: torch.Tensor) -> torch.Tensor:
        """The same image in 0..1, padded with black in the preset, otherwise with the mean colour."""
        colors = features.color(image, 255.0)
        return _padded(colors) if self.preset == "released" else _padded(colors - self.mean) + self.mean

    def finish(self, scores: torch.Tensor, image: torch.Tensor, crf: bool) -> torch.Tensor:
        height, width = image.shape[2:]
        if crf and self.crf is not None:
            scores = self.crf(scores, self._guide(image))
        large = resized(scores, [STRIDE * n for n in scores.shape[2:]]) if self.up4 is None else self.up4(scores)
        return large[:, :, :height, :width].contiguous()


class BoxContext(nn.Module):
    """The sum of dilated 3x3 convolutions of the means in boxes, which is the context at several distances.

    Args:
        inputs, outputs: channels.
        scale: factor of boxes and dilations: 1 for maps at 1/16 of the image, 2 for 1/8.
    """

    def __init__(self, inputs: int, outputs: int, scale: int = 1) -> None:
        super().__init__()
        self.radii = [scale * radius for radius, _ in CONTEXT_SIZES]
        dilations = [scale * dilation for _, dilation in CONTEXT_SIZES]
        self.convs = nn.ModuleList(msra_(nn.Conv2d(inputs, outputs, 3, padding=d, dilation=d)) for d in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(conv(box_mean(x, radius, box="constant")) for radius, conv in zip(self.radii, self.convs))


class LabelContext(nn.Module):
    """Messages from the strongest neighbouring scores: two convolutions of the maximum, normalised over the classes."""

    def __init__(self, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = msra_(nn.Conv2d(num_classes, hidden, 7, padding=3))
        self.conv2 = msra_(nn.Conv2d(hidden, num_classes, 1))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(scores, POOLED, stride=1, padding=POOLED // 2)
        x = x / (x.square().sum(1, keepdim=True) + 1e-5).sqrt()
        return self.conv2(self.conv1(x))


def patch_shuffle(x: torch.Tensor, n: int) -> torch.Tensor:
    """Rearrange a patch of n x n scores per cell: [B, n n C, H, W] to [B, C, n H, n W].

    The order is position-major, as in SegModel's code: channel (dy n + dx) C + c goes to pixel (n h + dy, n w + dx) of
    class c.
    """
    batch, channels, height, width = x.shape
    classes = channels // n**2
    patches = x.view(batch, n, n, classes, height, width)
    return patches.permute(0, 3, 4, 1, 5, 2).reshape(batch, classes, n * height, n * width)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x [B, C, H, W] with zeros below and to the right, up to multiples of the backbone's stride."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))

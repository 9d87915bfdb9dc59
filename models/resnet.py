"""ResNet: the backbone of `ResNetFCN` and `SegModel`, with torchvision's parameter names."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import checks
from tritoncrf.models.blocks import expect_one_of, recomputed, scaled

STRIDES = (32, 16, 8)


class ResNet(nn.Module):
    r"""A residual network without its classifier: features at four resolutions.

    .. math::
        x \leftarrow \mathrm{relu}(x + f(x))

    with f two 3x3 convolutions (depth 18 and 34), or a 3x3 convolution between two 1x1 ones, of which the last has four
    times the channels (He et al. 2016, Deep residual learning, table 1). The stride of a stage is in its first 3x3
    convolution, as in torchvision's networks. Parameters have torchvision's names; "fc" is left out.

    Args:
        depth: 18, 34, 50, 101 or 152.
        output_stride: 32; or 16 or 8, with stride 1 in the last one or two stages and dilated convolutions after it,
            which give the features of stride 32 at more positions (Chen et al. 2018, DeepLab, section 3.1).
        width: factor of all numbers of channels, which are at least 8.
        checkpointing: keep only the inputs of the blocks for the backward pass, and recompute the rest.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models.resnet import ResNet
        >>> backbone = ResNet(depth=50, output_stride=16, width=0.125)
        >>> [list(x.shape) for x in backbone(torch.randn(1, 3, 64, 96))]
        [[1, 32, 16, 24], [1, 64, 8, 12], [1, 128, 4, 6], [1, 256, 4, 6]]
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self, depth: int = 101, output_stride: int = 32, width: float = 1.0, checkpointing: bool = False
    ) -> None:
        super().__init__()
        block, counts = DEPTHS[expect_one_of("depth", depth, DEPTHS)]
        self.checkpointing = checks.expect_bool("checkpointing", checkpointing)
        inputs = scaled(64, width)
        self.conv1 = conv(3, inputs, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.channels: list[int] = []
        made = stages(block, block.expansion, counts, inputs, width, output_stride, projected=block.expansion > 1)
        for n, (stage, channels) in enumerate(made, 1):
            setattr(self, f"layer{n}", stage)
            self.channels.append(channels)
        initialize(self)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of the stages layer1 to layer4, a list of [B, channels[k], H / s, W / s], rounded up.

        Args:
            x: normalised images, [B, 3, H, W].
        """
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return after_each((self.layer1, self.layer2, self.layer3, self.layer4), x, self.checkpointing)


class Block(nn.Module):
    """relu(residual(x) + x); if `projected`, a 1x1 convolution brings x to the shape of the residual."""

    expansion: int  # output channels / channels

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if projected:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """f(x)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.residual(x) + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(Block):
    """Two 3x3 convolutions, with one of `dilations` each; the first has the stride."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], projected: bool) -> None:
        super().__init__(inputs, channels, stride, projected)
        self.conv1 = conv(inputs, channels, 3, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(channels)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """1x1, 3x3 with the stride, and 1x1 convolutions; nothing spatial comes after the 3x3."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], projected: bool) -> None:
        outputs = channels * self.expansion
        super().__init__(inputs, outputs, stride, projected)
        self.conv1 = conv(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def strides(output_stride: int) -> list[tuple[int, tuple[int, int]]]:
    """For each of the four stages: its stride, and the dilations of its first 3x3 convolution and of the later ones."""
    expect_one_of("output_stride", output_stride, STRIDES)
    found, reached, dilation = [], 4, 1
    for stage in range(4):
        before, stride = dilation, 1
        if stage > 0 and reached < output_stride:
            stride, reached = 2, 2 * reached
        elif stage > 0:
            dilation *= 2
        found.append((stride, (before, dilation)))
    return found


def stages(
    block: Callable[..., nn.Module], expansion: int, counts: Sequence[int], inputs: int, width: float,
    output_stride: int, projected: bool,
) -> Iterator[tuple[nn.Sequential, int]]:  # fmt: skip
    """The four stages of a residual network, each with its number of channels.

    Args:
        block: a function that makes a block from (inputs, channels, stride, dilations, projected).
        expansion: output channels of a block / its channels.
        counts: number of blocks of each stage.
        inputs: number of input channels of the first stage.
        width, output_stride: see `ResNet`.
        projected: whether the first block of the first stage projects its input, as in all other stages.
    """
    for n, (count, (stride, (before, dilation))) in enumerate(zip(counts, strides(output_stride))):
        channels = scaled(64 << n, width)
        first = block(inputs, channels, stride, (before, dilation), projected=projected or n > 0)
        inputs = channels * expansion
        others = [block(inputs, channels, 1, (dilation, dilation), projected=False) for _ in range(1, count)]
        yield nn.Sequential(first, *others), inputs


def after_each(stages: Iterable[nn.Sequential], x: torch.Tensor, checkpointing: bool) -> list[torch.Tensor]:
    """The outputs of these stages, applied in order."""
    found = []
    for stage in stages:
        for block in stage:
            x = recomputed(block, x) if checkpointing else block(x)
        found.append(x)
    return found


def initialize(network: nn.Module) -> None:
    """Initialise convolutions with normal weights of variance 2 / fan-out (He et al. 2015, section 2.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def conv(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution whose output has the size of the input divided by the stride; without a bias, as batch norm
    follows."""
    padding = dilation * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, dilation=dilation, bias=False)

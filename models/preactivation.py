"""The ResNet that SegModel's released code starts from: batch norm and ReLU before every convolution."""

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from tritoncrf import checks
from tritoncrf.models.blocks import expect_one_of, scaled
from tritoncrf.models.resnet import DEPTHS, Bottleneck, after_each, conv, initialize, stages

# MXNet's names: the stage and the unit, counted from 1, if any; the layer; the parameter.
NAME = re.compile(r"(?:arg:|aux:)?(?:stage(\d+)_unit(\d+)_)?(\w+?)_(weight|bias|gamma|beta|moving_mean|moving_var)")
PARAMETERS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


class PreActivationResNet(nn.Module):
    r"""A residual network with identity mappings, without its classifier: features at four resolutions.

    .. math::
        x \leftarrow x + f(\mathrm{relu}(\mathrm{bn}(x)))

    with f the convolutions of a block of `ResNet`, batch norm and ReLU between them, and nothing after the sum (He et
    al. 2016, Identity mappings in deep residual networks, figure 1b). The first block of every stage adds a 1x1
    convolution of relu(bn(x)) instead of x. There is also a batch norm before the first convolution, which normalises
    the images, and a batch norm with a ReLU after the last block. The layers, and their names up to dots and "weight",
    are those of MXNet's networks and of SegModel's released prototxt, which has a depth of 101.

    Args:
        depth, output_stride, width, checkpointing: see `ResNet`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> from tritoncrf.models.preactivation import PreActivationResNet
        >>> backbone = PreActivationResNet(depth=50, output_stride=16, width=0.125)
        >>> [list(x.shape) for x in backbone(torch.randn(1, 3, 64, 96))]
        [[1, 32, 16, 24], [1, 64, 8, 12], [1, 128, 4, 6], [1, 256, 4, 6]]
    """

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self, depth: int = 101, output_stride: int = 32, width: float = 1.0, checkpointing: bool = False
    ) -> None:
        super().__init__()
        block, counts = DEPTHS[expect_one_of("depth", depth, DEPTHS)]
        unit = BottleneckUnit if block is Bottleneck else BasicUnit
        self.checkpointing = checks.expect_bool("checkpointing", checkpointing)
        inputs = scaled(64, width)
        self.bn_data = nn.BatchNorm2d(3)
        self.conv0 = conv(3, inputs, 7, stride=2)
        self.bn0 = nn.BatchNorm2d(inputs)
        self.channels: list[int] = []
        made = stages(unit, block.expansion, counts, inputs, width, output_stride, projected=True)
        for n, (stage, channels) in enumerate(made, 1):
            setattr(self, f"stage{n}", stage)
            self.channels.append(channels)
        self.bn1 = nn.BatchNorm2d(self.channels[-1])
        initialize(self)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of the stages stage1 to stage4, a list of [B, channels[k], H / s, W / s], rounded up.

        Those of stage4 are taken after the last batch norm and ReLU; the others are the sums that enter the next stage.

        Args:
            x: images, [B, 3, H, W], in any unit.
        """
        x = F.relu(self.bn0(self.conv0(self.bn_data(x))))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        *found, last = after_each((self.stage1, self.stage2, self.stage3, self.stage4), x, self.checkpointing)
        return [*found, F.relu(self.bn1(last))]


class Unit(nn.Module):
    """residual(relu(bn(x))) + x, or, if `projected`, + a 1x1 convolution of relu(bn(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.sc = conv(inputs, outputs, 1, stride) if projected else None

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """f(x)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.bn1(x))
        return self.residual(first) + (x if self.sc is None else self.sc(first))


class BasicUnit(Unit):
    """Two 3x3 convolutions, with one of `dilations` each; the first has the stride."""

    def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], projected: bool) -> None:
        super().__init__(inputs, channels, stride, projected)
        self.conv1 = conv(inputs, channels, 3, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, 1, dilations[1])

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.bn2(self.conv1(x))))


class BottleneckUnit(Unit):
    """1x1, 3x3 with the stride, and 1x1 convolutions; nothing spatial comes after the 3x3."""

    def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], projected: bool) -> None:
        outputs = channels * Bottleneck.expansion
        super().__init__(inputs, outputs, stride, projected)
        self.conv1 = conv(inputs, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride, dilations[0])
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, outputs, 1)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(F.relu(self.bn2(self.conv1(x))))
        return self.conv3(F.relu(self.bn3(x)))


def from_mxnet(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of an MXNet network with the names used here; other names are kept.

    Args:
        parameters: arrays by names such as "stage1_unit1_bn1_gamma", or "arg:stage1_unit1_bn1_gamma", as MXNet saves
            them.

    Example:
        >>> import torch
        >>> from tritoncrf.models.preactivation import from_mxnet
        >>> list(from_mxnet({"arg:stage3_unit23_conv2_weight": torch.ones(2), "aux:bn0_moving_var": torch.ones(2)}))
        ['stage3.22.conv2.weight', 'bn0.running_var']
    """
    found = {}
    for name, value in parameters.items():
        if match := NAME.fullmatch(str(name)):  # the caller rejects a name that is not a string
            stage, unit, layer, kind = match.groups()
            place = f"stage{stage}.{int(unit) - 1}." if stage else ""
            name = f"{place}{layer}.{PARAMETERS[kind]}"
        found[name] = value
    return found

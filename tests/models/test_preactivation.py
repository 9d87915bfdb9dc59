"""The pre-activation ResNet: layer by layer against NumPy, the released prototxt's numbers, dilation, checkpointing."""

import numpy as np
import pytest
import torch
from torch import nn

from assertions import assert_close
from tritoncrf.models.preactivation import PreActivationResNet

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def on_meta(*arguments, **options):
    with torch.device("meta"):
        return PreActivationResNet(*arguments, **options)


# Layer by layer ---------------------------------------------------------------------------------------------------


def convolved(x, weight, stride=1, dilation=1):
    """sum over taps and channels of weight x, zeros outside; in NumPy, [B, C, H, W] with weight [O, C, k, k]."""
    size = weight.shape[-1]
    pad = dilation * (size // 2)
    height, width = (-(-n // stride) for n in x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    found = 0.0
    for row in range(size):
        for column in range(size):
            rows = slice(dilation * row, dilation * row + stride * (height - 1) + 1, stride)
            columns = slice(dilation * column, dilation * column + stride * (width - 1) + 1, stride)
            found = found + np.einsum("oc,bchw->bohw", weight[:, :, row, column], x[:, :, rows, columns])
    return found


def pooled(x):
    """Maxima of 3 x 3 at every second pixel."""
    height, width = (-(-n // 2) for n in x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    taps = [x[:, :, r : r + 2 * height - 1 : 2, c : c + 2 * width - 1 : 2] for r in range(3) for c in range(3)]
    return np.max(taps, axis=0)


def relu(x):
    return np.maximum(x, 0)


class Form:
    """The network written out; in training with the batch's own averages."""

    def __init__(self, network):
        self.state = {name: value.double().numpy() for name, value in network.state_dict().items()}
        self.training = network.training

    def norm(self, name, x):
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        scale = self.state[f"{name}.weight"] / np.sqrt(variance + 1e-5)
        return scale[:, None, None] * (x - mean[:, None, None]) + self.state[f"{name}.bias"][:, None, None]

    def conv(self, name, x, **options):
        return convolved(x, self.state[f"{name}.weight"], **options)

    def __call__(self, x, depth, strides, dilations):
        """Features of the stages. `dilations` has for each stage those of its first unit's 3x3 and of all others'."""
        x = pooled(relu(self.norm("bn0", self.conv("conv0", self.norm("bn_data", x), stride=2))))
        found = []
        for stage, count in enumerate(UNITS[depth], 1):
            for unit in range(count):
                name = f"stage{stage}.{unit}"
                stride = strides[stage - 1] if unit == 0 else 1
                before, dilation = dilations[stage - 1]
                where = {"stride": stride, "dilation": before if unit == 0 else dilation}
                first = relu(self.norm(f"{name}.bn1", x))
                if depth >= 50:
                    y = relu(self.norm(f"{name}.bn2", self.conv(f"{name}.conv1", first)))
                    y = relu(self.norm(f"{name}.bn3", self.conv(f"{name}.conv2", y, **where)))
                    y = self.conv(f"{name}.conv3", y)
                else:
                    y = relu(self.norm(f"{name}.bn2", self.conv(f"{name}.conv1", first, **where)))
                    y = self.conv(f"{name}.conv2", y, dilation=dilation)
                x = y + (self.conv(f"{name}.sc", first, stride=stride) if unit == 0 else x)
            found.append(x)
        return [*found[:3], relu(self.norm("bn1", x))]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    "output_stride, strides, dilations",
    [
        (32, (1, 2, 2, 2), ((1, 1),) * 4),
        (16, (1, 2, 2, 1), ((1, 1), (1, 1), (1, 1), (1, 2))),  # of the released prototxt
        (8, (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))),
    ],
)
def test_layer_by_layer(output_stride, strides, dilations, depth, training):
    network = PreActivationResNet(depth, output_stride, width=0.125).double()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "bn" in name and value.is_floating_point():
                value.uniform_(0.5, 1.5)  # else batch norm does nothing in evaluation
    network.train(training)
    x = torch.randint(0, 256, (2, 3, 45, 70)).double()
    form = Form(network)
    with torch.no_grad():
        found = network(x)
    expected = form(x.numpy(), depth, strides, dilations)
    for stage, (features, wanted) in enumerate(zip(found, expected, strict=True), 1):
        assert_close(f"stage{stage}", features, torch.from_numpy(wanted), rms=1e-12, worst=1e-10)


# Sizes and names --------------------------------------------------------------------------------------------------


def counted(depth):
    """Weights of convolutions, and two numbers of batch norm for each channel that comes into one."""
    basic, expansion = depth < 50, 1 if depth < 50 else 4
    total, inputs = 2 * 3 + 3 * 64 * 49 + 2 * 64, 64
    for stage, count in enumerate(UNITS[depth]):
        n = 64 << stage
        outputs = expansion * n
        for unit in range(count):
            if basic:
                total += 2 * inputs + 9 * inputs * n + 2 * n + 9 * n * n
            else:
                total += 2 * inputs + inputs * n + 2 * n + 9 * n * n + 2 * n + n * outputs
            total += inputs * outputs * (unit == 0)
            inputs = outputs
    return total + 2 * inputs


@pytest.mark.parametrize("depth", UNITS)
def test_parameters_are_counted(depth):
    assert sum(p.numel() for p in on_meta(depth).parameters()) == counted(depth)


def test_parameters_of_depth_101_are_the_released_prototxts():
    """42,492,614 from bn_data to bn1, counted from the file."""
    assert sum(p.numel() for p in on_meta(101).parameters()) == counted(101) == 42_492_614


def test_names_are_those_of_the_released_layers():
    names = {name.rpartition(".")[0] for name in on_meta(101).state_dict()}
    layers = {"bn_data", "conv0", "bn0", "bn1"}
    for stage, count in enumerate(UNITS[101], 1):
        layers.add(f"stage{stage}.0.sc")
        for unit in range(count):
            layers |= {f"stage{stage}.{unit}.{kind}{n}" for kind in ("bn", "conv") for n in (1, 2, 3)}
    assert names == layers


@pytest.mark.parametrize("size, last", [(500, 16), (375, 12), (33, 2), (1, 1)])
def test_odd_sizes_are_rounded_up(size, last):
    found = on_meta(18, width=0.125).eval()(torch.empty(1, 3, size, size, device="meta"))
    assert list(found[-1].shape[2:]) == [last, last]


@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_computes_the_same_features_at_more_places(stride):
    coarse, fine = (PreActivationResNet(50, s, width=0.125).double().eval() for s in (32, stride))
    fine.load_state_dict(coarse.state_dict())
    x, step = torch.randn(1, 3, 75, 90, dtype=torch.float64), 32 // stride
    assert_close("stage4", fine(x)[3][:, :, ::step, ::step], coarse(x)[3])


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving-average", "cumulative"])
def test_checkpointing_changes_no_output_gradient_or_statistic(momentum):
    plain, thrifty = (
        PreActivationResNet(50, 16, 0.125, checkpointing=checkpointing) for checkpointing in (False, True)
    )
    thrifty.load_state_dict(plain.state_dict())
    x, cotangent = torch.randn(2, 3, 64, 64), torch.randn(2, 256, 4, 4)
    for network in (plain, thrifty):
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = momentum
        (network(x)[-1] * cotangent).sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert_close(f"{name}'s gradient", found.grad, expected.grad)
    for (name, expected), found in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert_close(name, found, expected)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"depth": 19}, ValueError, "depth: expected one of 18, 34, 50, 101, 152, got 19"),
        ({"output_stride": 4}, ValueError, "output_stride: expected one of 32, 16, 8, got 4"),
        ({"width": 0}, ValueError, "width: expected a finite number above 0, got 0"),
        ({"checkpointing": 1}, TypeError, "checkpointing: expected True or False"),
    ],
)
def test_bad_options_are_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        PreActivationResNet(**options)

"""ResNet: torchvision's parameters, the resolutions of its stages, dilation, and checkpointing."""

import pytest
import torch
from torch import nn

from assertions import assert_close
from tritoncrf.models.resnet import ResNet

TINY = {"depth": 18, "width": 0.125}
# Of torchvision's networks less their fc: 512 * 1000 + 1000, or 2048 * 1000 + 1000.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def torchvision_names(depth):
    """The keys of torchvision's state dict, less fc."""

    def norm(name):
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{kind}" for kind in kinds}

    names, convs = {"conv1.weight"} | norm("bn1"), 3 if depth >= 50 else 2
    for layer, count in enumerate(BLOCKS[depth], 1):
        for block in (f"layer{layer}.{index}" for index in range(count)):
            for conv in range(1, convs + 1):
                names |= {f"{block}.conv{conv}.weight"} | norm(f"{block}.bn{conv}")
        if layer > 1 or depth >= 50:
            names |= {f"layer{layer}.0.downsample.0.weight"} | norm(f"layer{layer}.0.downsample.1")
    return names


def on_meta(*arguments, **options):
    with torch.device("meta"):
        return ResNet(*arguments, **options)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_are_torchvisions(depth):
    network = on_meta(depth)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[depth]
    assert set(network.state_dict()) == torchvision_names(depth)


def test_shapes_of_some_parameters_and_where_the_stride_is():
    network = on_meta(50)
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    assert shapes["conv1.weight"] == [64, 3, 7, 7]
    assert shapes["layer3.0.conv1.weight"] == [256, 512, 1, 1]
    assert shapes["layer3.0.conv2.weight"] == [256, 256, 3, 3]
    assert shapes["layer3.0.conv3.weight"] == [1024, 256, 1, 1]
    assert shapes["layer3.0.downsample.0.weight"] == [1024, 512, 1, 1]
    block = network.layer3[0]
    assert [c.stride for c in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("stride, sizes", [(32, (16, 8, 4, 2)), (16, (16, 8, 4, 4)), (8, (16, 8, 8, 8))])
@pytest.mark.parametrize("depth", [18, 50])
def test_sizes_of_the_stages(depth, stride, sizes):
    network = on_meta(depth, stride)
    found = network(torch.empty(2, 3, 64, 64, device="meta"))
    channels = [64 << stage for stage in range(4)] if depth == 18 else [256 << stage for stage in range(4)]
    assert [list(x.shape) for x in found] == [[2, c, n, n] for c, n in zip(channels, sizes)]
    assert network.channels == channels


@pytest.mark.parametrize("size, last", [(500, 16), (375, 12), (33, 2), (1, 1)])
def test_odd_sizes_are_rounded_up(size, last):
    found = on_meta(**TINY).eval()(torch.empty(1, 3, size, size, device="meta"))
    assert list(found[-1].shape[2:]) == [last, last]


def test_dilations_of_a_bottleneck_are_those_of_torchvision():
    dilations = {s: [b.conv2.dilation[0] for b in on_meta(50, s).layer4] for s in (32, 16, 8)}
    assert dilations == {32: [1, 1, 1], 16: [1, 2, 2], 8: [2, 4, 4]}
    assert [b.conv2.dilation[0] for b in on_meta(50, 8).layer3] == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("depth", [18, 50])
def test_dilation_computes_the_same_features_at_more_places(depth, stride):
    coarse = ResNet(depth, 32, width=0.125).double().eval()
    fine = ResNet(depth, stride, width=0.125).double().eval()
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 3, 75, 90, dtype=torch.float64)
    step = 32 // stride
    assert_close("layer4", fine(x)[3][:, :, ::step, ::step], coarse(x)[3])


def test_width_scales_all_channels_and_keeps_the_structure():
    assert on_meta(50, width=0.5).channels == [128, 256, 512, 1024]
    narrow = on_meta(18, width=1e-3)
    assert narrow.channels == [8, 8, 8, 8]
    assert set(narrow.state_dict()) == torchvision_names(18)


def test_convolutions_start_with_the_variance_of_their_fan_out():
    weight = ResNet(18, width=0.5).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.02)


def trained_once(network, x):
    """Features, gradients and buffers after one pass forward and back."""
    features = network(x)
    torch.stack([(f * torch.linspace(-1, 1, f.numel()).view_as(f)).sum() for f in features]).sum().backward()
    gradients = {f"{name}'s gradient": p.grad for name, p in network.named_parameters()}
    return {f"layer{n}": f for n, f in enumerate(features, 1)} | gradients | dict(network.named_buffers())


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving-average", "cumulative"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_checkpointing_changes_no_output_gradient_or_statistic(training, momentum):
    plain, thrifty = (ResNet(50, 16, 0.125, checkpointing=checkpointing) for checkpointing in (False, True))
    thrifty.load_state_dict(plain.state_dict())
    for network in (plain, thrifty):
        network.train(training)
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = momentum
    x = torch.randn(2, 3, 64, 64)
    expected, found = trained_once(plain, x), trained_once(thrifty, x)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name])
    assert plain.bn1.num_batches_tracked == int(training)


def test_checkpointing_keeps_less():
    kept = {}
    for checkpointing in (False, True):
        network, sizes = ResNet(**TINY, checkpointing=checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            network(torch.randn(1, 3, 64, 64))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 2


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"depth": 19}, ValueError, "depth: expected one of 18, 34, 50, 101, 152, got 19"),
        ({"depth": "50"}, ValueError, "depth: expected one of 18, 34, 50, 101, 152, got '50'"),
        ({"output_stride": 4}, ValueError, "output_stride: expected one of 32, 16, 8, got 4"),
        ({"width": 0}, ValueError, "width: expected a finite number above 0, got 0"),
        ({"width": "wide"}, TypeError, "width: expected a finite number above 0"),
        ({"checkpointing": 1}, TypeError, "checkpointing: expected True or False"),
    ],
)
def test_bad_options_are_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        ResNet(**options)

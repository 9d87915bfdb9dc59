"""Published weights: torchvision's backbones as they are, and CRF-RNN's networks against an evaluation of their own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.models.fcn import FCN8s, FCN8sCRFRNN, FCN16s, FCN32s
from tritoncrf.models.preactivation import PreActivationResNet
from tritoncrf.models.resnet import DEPTHS, ResNet
from tritoncrf.models.resnet_fcn import ResNetConvCRF, ResNetFCN
from tritoncrf.models.segmodel import SegModel
from tritoncrf.models.weights import load_backbone, published_crfrnn
from tritoncrf.published import CRFRNN_CODES, MEANS

C = 3
RESNET = {"depth": 18, "width": 0.125}
WIDTH, CHANNELS, HIDDEN = 1 / 64, 8, 64  # of every 3x3 convolution, and of fc6 and fc7
BLOCKS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
PRESETS = ["released", "released-pytorch", "released-keras"]


# Backbones --------------------------------------------------------------------------------------------------------


def resnet_state(**options):
    """What torchvision would have saved: with its fc."""
    state = dict(ResNet(**(RESNET | options)).state_dict())
    return state | {"fc.weight": torch.randn(1000, 64), "fc.bias": torch.randn(1000)}


def vgg_state():
    state = {}
    for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        state |= {f"features.{n}.weight": torch.randn(CHANNELS, 3 if n == 0 else CHANNELS, 3, 3)}
        state |= {f"features.{n}.bias": torch.randn(CHANNELS)}
    for n, inputs, outputs in ((0, CHANNELS * 49, HIDDEN), (3, HIDDEN, HIDDEN), (6, HIDDEN, 1000)):
        state |= {f"classifier.{n}.weight": torch.randn(outputs, inputs), f"classifier.{n}.bias": torch.randn(outputs)}
    return state


def torchvision_resnet(depth, width):
    """Random weights by the names and of the shapes that torchvision has for a ResNet of this depth, made narrow."""
    counts, wide = DEPTHS[depth][1], 4 if depth >= 50 else 1
    state, inputs = {}, max(8, round(64 * width))

    def conv(name, norm, outputs, inputs, side):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side)
        state.update({f"{norm}.{kind}": torch.rand(outputs) for kind in ("weight", "bias", "running_mean")})
        state.update({f"{norm}.running_var": torch.rand(outputs), f"{norm}.num_batches_tracked": torch.tensor(1)})

    conv("conv1", "bn1", inputs, 3, 7)
    for stage, count in enumerate(counts, 1):
        channels = max(8, round(64 * 2 ** (stage - 1) * width))
        for block in (f"layer{stage}.{n}" for n in range(count)):
            before = inputs
            for n, side in enumerate((1, 3, 1) if wide > 1 else (3, 3), 1):
                outputs = channels * (wide if n == 3 else 1)
                conv(f"{block}.conv{n}", f"{block}.bn{n}", outputs, inputs, side)
                inputs = outputs
            if block.endswith(".0") and (stage > 1 or wide > 1):
                conv(f"{block}.downsample.0", f"{block}.downsample.1", inputs, before, 1)
    return state | {"fc.weight": torch.randn(1000, inputs), "fc.bias": torch.randn(1000)}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "model",
    [
        lambda options: ResNet(**options),
        lambda options: ResNetFCN(C, **options),
        lambda options: ResNetConvCRF(C, network=options),
        lambda options: SegModel(C, **options),
    ],
    ids=["ResNet", "ResNetFCN", "ResNetConvCRF", "SegModel"],
)
def test_a_resnet_is_loaded_as_it_is(model, depth):
    options = {"depth": depth, "width": 1 / 64}
    model, state = model(options), torchvision_resnet(**options)
    load_backbone(model, state)
    network = getattr(model, "network", model)
    backbone = getattr(network, "backbone", network)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


MXNET = {"running_mean": "moving_mean", "running_var": "moving_var", "bias": "beta"}


def mxnet_state():
    """What MXNet would have saved of a pre-activation ResNet: with its fc1, and no count of batches."""
    state = {"arg:fc1_weight": torch.randn(1000, 64), "arg:fc1_bias": torch.randn(1000)}
    for name, value in PreActivationResNet(**RESNET).state_dict().items():
        *place, layer, kind = name.split(".")
        if place:
            layer = f"{place[0]}_unit{int(place[1]) + 1}_{layer}"
        kind = MXNET.get(kind, "weight" if value.ndim == 4 else "gamma")
        if value.ndim:
            state[f"{'aux' if 'moving' in kind else 'arg'}:{layer}_{kind}"] = torch.randn_like(value)
    return state


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_preactivation_resnet_is_loaded_as_mxnet_has_it(prefixed):
    model, state = SegModel(C, **RESNET, backbone="preactivation"), mxnet_state()
    load_backbone(model, state if prefixed else {name.partition(":")[2]: value for name, value in state.items()})
    own = model.backbone.state_dict()
    assert len(state) == 2 + sum(value.ndim > 0 for value in own.values())
    for name, published in {
        "bn_data.weight": "arg:bn_data_gamma",
        "conv0.weight": "arg:conv0_weight",
        "stage1.0.sc.weight": "arg:stage1_unit1_sc_weight",
        "stage4.1.bn2.bias": "arg:stage4_unit2_bn2_beta",
        "stage4.1.bn2.running_var": "aux:stage4_unit2_bn2_moving_var",
        "bn1.running_mean": "aux:bn1_moving_mean",
    }.items():
        assert torch.equal(own[name], state[published]), name


def test_its_own_state_is_loaded_too_and_torchvisions_is_refused():
    network, other = PreActivationResNet(**RESNET), PreActivationResNet(**RESNET)
    load_backbone(network, other.state_dict())
    assert torch.equal(network.stage2[0].sc.weight, other.stage2[0].sc.weight)
    with pytest.raises(
        ValueError, match="^state: expected the parameters of this backbone, .* got bn_data.weight missing"
    ):
        load_backbone(network, resnet_state())


def test_old_weights_do_not_count_batches():
    state = {name: value for name, value in resnet_state().items() if not name.endswith("num_batches_tracked")}
    network = ResNet(**RESNET)
    load_backbone(network, state)
    assert torch.equal(network.layer4[1].bn2.weight, state["layer4.1.bn2.weight"])


@pytest.mark.parametrize("kind", [FCN32s, FCN16s, FCN8s, FCN8sCRFRNN])
def test_connected_layers_of_a_vgg_become_convolutions(kind):
    model = kind(C, network={"width": WIDTH}) if kind is FCN8sCRFRNN else kind(C, width=WIDTH)
    network, state = getattr(model, "network", model), vgg_state()
    load_backbone(model, state)
    assert torch.equal(network.features[28].weight, state["features.28.weight"])
    x = torch.randn(2, CHANNELS, 7, 7)
    expected = F.linear(x.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]).relu()
    expected = F.linear(expected, state["classifier.3.weight"], state["classifier.3.bias"]).relu()
    assert_close("fc7", network.classifier.eval()(x).flatten(1).detach(), expected)


def test_features_alone_leave_the_classifier_as_it_starts():
    state = {k: x * torch.nan if k.startswith("classifier") else x for k, x in vgg_state().items()}
    network = FCN8s(C, width=WIDTH)
    start = network.classifier[0].weight.clone()
    load_backbone(network, state)
    assert torch.equal(network.features[28].weight, state["features.28.weight"])
    assert torch.equal(network.classifier[0].weight, start)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    "state, message",
    [
        (lambda: resnet_state(depth=34), r"got layer1.2.conv1.weight unknown, .* and \d+ others"),
        (lambda: resnet_state(width=0.25), r"got conv1.weight of shape \[16, 3, 7, 7\] for \[8, 3, 7, 7\], bn1.weight"),
        (lambda: without(resnet_state(), "bn1.bias"), "got bn1.bias missing$"),
        (lambda: resnet_state() | {"conv1.weight": torch.full((8, 3, 7, 7), torch.nan)}, "conv1.weight with NaN"),
        (lambda: resnet_state() | {"bn1.bias": 1.0}, "got bn1.bias as 1.0"),
        (vgg_state, "got conv1.weight missing"),
        (lambda: 3, "a state dict, got 3"),
    ],
    ids=["depth", "width", "missing", "NaN", "number", "VGG", "int"],
)
def test_other_weights_are_one_clear_error_and_change_nothing(state, message):
    network = ResNet(**RESNET)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"^state: expected.*" + message):
        load_backbone(network, state())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_model_without_backbone_is_an_error():
    with pytest.raises(
        TypeError, match="model: expected a network on a VGG-16 or a ResNet of torchvision's form, got L"
    ):
        load_backbone(torch.nn.Linear(2, 2), {})
    model = ResNetConvCRF(C, network=RESNET)
    model.network.backbone = torch.nn.Sequential()
    with pytest.raises(TypeError, match="of torchvision's form, got ResNetFCN on Sequential$"):
        load_backbone(model, {})


# CRF-RNN's networks -----------------------------------------------------------------------------------------------


def published_layers():
    """Random [weight, bias] of every layer of a small FCN-8s that takes blue, green and red."""
    layers = {}
    for group, count in BLOCKS.items():
        for n in range(1, count + 1):
            inputs = 3 if (group, n) == (1, 1) else CHANNELS
            layers[f"conv{group}_{n}"] = [torch.randn(CHANNELS, inputs, 3, 3) / 6, torch.randn(CHANNELS)]
    layers["fc6"] = [torch.randn(HIDDEN, CHANNELS, 7, 7) / 20, torch.randn(HIDDEN)]
    layers["fc7"] = [torch.randn(HIDDEN, HIDDEN, 1, 1) / 8, torch.randn(HIDDEN)]
    for name, inputs in ("score_fr", HIDDEN), ("score_pool4", CHANNELS), ("score_pool3", CHANNELS):
        layers[name] = [torch.randn(C, inputs, 1, 1) / 8, torch.randn(C)]
    layers["upscore2"] = [torch.rand(C, C, 4, 4), torch.randn(C)]
    layers["upscore_pool4"] = [torch.rand(C, C, 4, 4)]
    layers["upscore8"] = [torch.rand(C, C, 16, 16) / 16]
    return layers


def published_scores(layers, x):
    """The published FCN-8s on blue, green and red minus their mean."""
    height, width = x.shape[2:]
    x, skips = F.pad(x, [99] * 4), {}
    for group, count in BLOCKS.items():
        for n in range(1, count + 1):
            x = F.conv2d(x, *layers[f"conv{group}_{n}"], padding=1).relu()
        x = skips[group] = F.max_pool2d(x, 2, ceil_mode=True)
    x = F.conv2d(F.conv2d(x, *layers["fc6"]).relu(), *layers["fc7"]).relu()
    x = F.conv_transpose2d(F.conv2d(x, *layers["score_fr"]), *layers["upscore2"], stride=2)
    x = x + F.conv2d(skips[4], *layers["score_pool4"])[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    x = F.conv_transpose2d(x, *layers["upscore_pool4"], stride=2)
    x = x + F.conv2d(skips[3], *layers["score_pool3"])[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    return F.conv_transpose2d(x, *layers["upscore8"], stride=8)[:, :, 31 : 31 + height, 31 : 31 + width]


def published_form(layers, crf, preset):
    """Layers and the CRF's three matrices as the network of a preset keeps them."""
    if preset == "released-pytorch":
        state = {f"{n}.{kind}": v for n, values in layers.items() for kind, v in zip(("weight", "bias"), values)}
        names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
        return state | {f"crfrnn.{name}": matrix for name, matrix in zip(names, crf)}
    renamed = {"upscore2": "score2", "upscore_pool4": "score4", "upscore8": "upsample"}
    layers = {renamed.get(n, n.replace("score_", "score-")): v for n, v in layers.items()}
    if preset == "released":
        arrays = {
            n: [v.numpy().reshape(v.shape if v.ndim == 4 else (1, 1, 1, -1)) for v in values]
            for n, values in layers.items()
        }
        return arrays | {"inference1": [matrix.numpy()[None, None] for matrix in crf]}
    mapping = {f"{n}/{n}/kernel:0": values[0].permute(2, 3, 1, 0).numpy() for n, values in layers.items()}
    mapping |= {f"{n}/{n}/bias:0": values[1].numpy() for n, values in layers.items() if len(values) == 2}
    names = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")
    return mapping | {f"crfrnn/crfrnn/{name}:0": matrix.numpy() for name, matrix in zip(names, crf)}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_published_network_computes_here_what_it_did(preset):
    layers, crf = published_layers(), [torch.eye(C) + 0.1 * torch.randn(C, C) for _ in range(3)]
    options = {"preset": preset, "iterations": 2, "test_iterations": 2}
    model = FCN8sCRFRNN(C, network={"width": WIDTH}, crf=options).eval()
    model.load_state_dict(published_crfrnn(published_form(layers, crf, preset), preset))

    image = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8)
    bgr = image.flip(1).float() - torch.tensor(MEANS[CRFRNN_CODES[preset].mean][::-1]).view(3, 1, 1)
    own_crf = tc.CRFRNN(C, **options).eval()
    own_crf.load_published(crf)
    with torch.no_grad():
        expected = published_scores(layers, bgr)
        unary, refined = model(image, output="both")
        assert_close("unary", unary, expected, rms=1e-5, worst=1e-4)
        assert_close("refined", refined, own_crf(unary, image))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_layer_too_few_or_too_many_is_one_clear_error(preset):
    crf = [torch.eye(C)] * 3
    layers = published_layers()
    fewer = published_form({n: v for n, v in layers.items() if n not in ("fc7", "conv3_2")}, crf, preset)
    with pytest.raises(
        ValueError,
        match=r"parameters: expected .* got fc7.weight missing, fc7.bias missing, conv3_2.weight missing and 1 others",
    ):
        published_crfrnn(fewer, preset)
    more = published_form(layers | {"fc8": layers["fc7"]}, crf, preset)
    with pytest.raises(ValueError, match=r"parameters: expected .* got fc8.weight unknown, fc8.bias unknown$"):
        published_crfrnn(more, preset)
    form = published_form(layers, [torch.eye(C), torch.eye(C), torch.eye(C + 1)], preset)
    with pytest.raises(ValueError, match=r"parameters\[.*expected shape \[3, 3\].*got \[.*4, 4\]"):
        published_crfrnn(form, preset)


def test_bad_arguments_are_one_clear_error():
    with pytest.raises(ValueError, match="preset: expected one of 'released', .*, got 'caffe'"):
        published_crfrnn({}, "caffe")
    with pytest.raises(TypeError, match="parameters: expected a dict of layers or arrays, got"):
        published_crfrnn(np.zeros(3), "released")
    with pytest.raises(ValueError, match="parameters: expected one layer of three arrays, the CRF's, got 0"):
        published_crfrnn({"fc7": [np.zeros(1)]}, "released")

"""Loading published weights: torchvision's backbones and the whole networks of CRF-RNN."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from tritoncrf import checks
from tritoncrf.models.fcn import FCN, POOLS, VGG16
from tritoncrf.models.preactivation import PreActivationResNet, from_mxnet
from tritoncrf.models.resnet import ResNet
from tritoncrf.models.segmenter import WithCRF
from tritoncrf.models.timm_fcn import TimmFCN
from tritoncrf.published import CRFRNN_CODES, Preset, crfrnn_parameters
from tritoncrf.types import Array

SHOWN = 3
UPSAMPLINGS = {"upscore2": ("weight", "bias"), "upscore_pool4": ("weight",), "upscore8": ("weight",)}
# Their names in the Caffe and the Keras network.
ALIASES = {"score2": "upscore2", "score4": "upscore_pool4", "upsample": "upscore8"}

DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip

# The CRF's parameters in the form that `crfrnn_parameters` takes, and all others by (layer, "weight" or "bias").
Read: TypeAlias = tuple[Mapping[str, Array] | Sequence[Array], dict[tuple[str, str], torch.Tensor]]


@torch.no_grad()
def load_backbone(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load torchvision's weights of a VGG-16 or ResNet, MXNet's of a pre-activation ResNet, or timm's weights.

    If any does not fit, it raises an error and loads none.

    Fully connected layers of VGG become convolutions. VGG's classifier.6 and ResNet's fc are skipped, and so are arrays
    that are all NaN, as the classifier is in torchvision's copy of the VGG authors' features. The weights expect images
    as in their training: pixels="imagenet" for torchvision's own, "caffe" for those of VGG's authors, "raw" for
    MXNet's. Of timm's weights, those after the features in use are skipped.

    Args:
        model: `FCN32s`, `FCN16s`, `FCN8s`, `ResNetFCN`, `SegModel` or `TimmFCN`, with or without a CRF; or a `ResNet`
            or `PreActivationResNet`.
        state: a state dict, as from torch.load(file, weights_only=True); MXNet's with names such as "arg:bn0_gamma".

    Raises:
        TypeError: the model has no such backbone.
        ValueError: parameters are missing, unknown, not finite, or have another shape, as with another depth or width.

    Example:
        >>> import torch
        >>> from tritoncrf.models.resnet import ResNet
        >>> from tritoncrf.models.weights import load_backbone
        >>> network, other = ResNet(depth=18, width=0.125), ResNet(depth=18, width=0.125)
        >>> load_backbone(network, other.state_dict())
        >>> torch.equal(network.conv1.weight, other.conv1.weight)
        True
    """
    network = model.network if isinstance(model, WithCRF) else model
    backbone = network if isinstance(network, FCN) else getattr(network, "backbone", network)
    if not isinstance(network, TimmFCN) and not isinstance(backbone, (FCN, ResNet, PreActivationResNet)):
        got = checks.kind_of(model) if backbone is model else f"{type(network).__name__} on {type(backbone).__name__}"
        raise TypeError(f"model: expected a network on a VGG-16 or a ResNet of torchvision's form, got {got}")
    if not isinstance(state, Mapping):
        raise ValueError(f"state: expected a state dict, got {checks.kind_of(state)}")
    own: dict[str, torch.Tensor] = backbone.state_dict()
    unused: tuple[str, ...] = ("fc.",)
    if isinstance(backbone, FCN):
        own = {name: value for name, value in own.items() if name.startswith(("features.", "classifier."))}
        unused = ("classifier.6.",)
    elif isinstance(backbone, PreActivationResNet):
        state, unused = from_mxnet(state), ("fc1",)
    elif isinstance(network, TimmFCN):
        own = network.backbone.model.state_dict()
        unused = tuple(network.published() - set(own))

    found, wrong = {}, []
    for name, value in own.items():
        given = state.get(name)
        if given is None:
            # Old weights (2016) have no counts of batches.
            wrong += [f"{name} missing"] * (not name.endswith("num_batches_tracked"))
        elif (kind := unusual(given)) is not None:
            wrong.append(f"{name} as {kind}")
        elif given.shape != value.shape and not (value.ndim == 4 and given.shape == value.flatten(1).shape):
            wrong.append(f"{name} of shape {list(given.shape)} for {list(value.shape)}")
        elif name.startswith("classifier.") and given.isnan().all():
            continue
        elif not torch.isfinite(given).all():
            wrong.append(f"{name} with NaN or infinity")
        else:
            found[name] = given
    wrong += [f"{name} unknown" for name in state if name not in own and not str(name).startswith(unused)]
    if wrong:
        raise ValueError(
            f"state: expected the parameters of this backbone, with its depth and width, got {some(wrong)}"
        )
    for name, given in found.items():
        own[name].copy_(given.reshape(own[name].shape))


def published_crfrnn(
    parameters: Mapping[str, Array] | Mapping[str, Sequence[Array]], preset: Preset
) -> dict[str, torch.Tensor]:
    """The state dict of a `FCN8sCRFRNN` with crf={"preset": preset} that computes what a published network does.

    These networks take images as blue, green and red minus a mean; the channels of the first convolution are reversed,
    so that red comes first. With the preset, the network and the CRF subtract the code's mean. The scripts beside the
    Caffe network use other means: crf={"preset": "released", "mean": "vgg"} computes what the Matlab script does, and
    "demo" what the Python script does. All pad images to 500 x 500 with the mean; do this yourself.

    Args:
        parameters: for "released", the Caffe network: a dict from names of layers to their arrays, [weight, bias] or
            [weight], and the three arrays of the CRF's layer under any name. For "released-pytorch": a state dict. For
            "released-keras": a mapping from "layer/kernel:0", "layer/bias:0" and the CRF's names to arrays, optionally
            with the name of a group in front. A layer may be called score-fr or score_fr, and upscore2, upscore_pool4
            and upscore8 may be called score2, score4 and upsample.
        preset: the code that they come from, see `CRFRNN`.

    Raises:
        TypeError, ValueError: not a mapping, missing or unknown layers, or parameters that `CRFRNN.load_published`
            rejects.
    """
    code = CRFRNN_CODES[checks.expect_choice("preset", preset, CRFRNN_CODES)]
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters: expected a dict of layers or arrays, got {checks.kind_of(parameters)}")
    crf, found = READERS[preset](parameters)
    names = _names()
    wrong = [f"{layer}.{kind} missing" for layer, kind in names if (layer, kind) not in found]
    wrong += [f"{layer}.{kind} unknown" for layer, kind in found if (layer, kind) not in names]
    if wrong:
        raise ValueError(f"parameters: expected the parameters of an FCN-8s with a CRF-RNN, got {some(wrong)}")
    found["conv1_1", "weight"] = found["conv1_1", "weight"].flip(1)
    state = {f"network.{own}": found[published] for published, own in names.items()}
    matrices = crfrnn_parameters(crf, len(found["score_fr", "weight"]), code)
    for name, matrix in zip(("weight_smooth", "weight_appearance", "compatibility"), matrices):
        state[f"crf.{name}"] = matrix.float()
    return state


def _names() -> dict[tuple[str, str], str]:
    """A dict from (layer, "weight" or "bias") of a published FCN-8s to the name in `FCN8s`."""
    layers = {"fc6": "classifier.0", "fc7": "classifier.3"}
    for group, (channels, end) in enumerate(zip(VGG16, POOLS), 1):
        for index in range(len(channels)):
            # In a group, which ends with the pooling at end - 1, a ReLU follows every convolution.
            layers[f"conv{group}_{index + 1}"] = f"features.{end - 1 - 2 * (len(channels) - index)}"
    layers |= {name: name for name in ("score_fr", "score_pool4", "score_pool3")}
    names = {(layer, kind): f"{own}.{kind}" for layer, own in layers.items() for kind in ("weight", "bias")}
    return names | {(layer, kind): f"{layer}.{kind}" for layer, kinds in UPSAMPLINGS.items() for kind in kinds}


def _caffe(parameters: Mapping[str, Sequence[Array]]) -> Read:
    """The CRF's arrays, and all others by (layer, kind)."""
    crf = [arrays for arrays in parameters.values() if len(arrays) == 3]
    if len(crf) != 1:
        raise ValueError(f"parameters: expected one layer of three arrays, the CRF's, got {len(crf)}")
    others = {layer: arrays for layer, arrays in parameters.items() if len(arrays) != 3}
    return list(crf[0]), {
        (_layer(layer), kind): _tensor(array).reshape(-1) if kind == "bias" else _tensor(array)
        for layer, arrays in others.items()
        for kind, array in zip(("weight", "bias"), arrays)
    }


def _pytorch(parameters: Mapping[str, Array]) -> Read:
    split = {name: name.rpartition(".") for name in parameters}
    kinds = ("weight", "bias")
    return parameters, {
        (_layer(layer), kind): _tensor(parameters[name]) for name, (layer, _, kind) in split.items() if kind in kinds
    }


def _keras(parameters: Mapping[str, Array]) -> Read:
    split = {name: name.removesuffix(":0").split("/")[-2:] for name in parameters}
    kernels = {(_layer(s[0]), "weight"): _tensor(parameters[n]) for n, s in split.items() if s[-1] == "kernel"}
    biases = {(_layer(s[0]), "bias"): _tensor(parameters[n]) for n, s in split.items() if s[-1] == "bias"}
    # [height, width, in, out], or [height, width, out, in] for a transposed convolution; the order here is reversed.
    return parameters, {key: kernel.permute(3, 2, 0, 1) for key, kernel in kernels.items()} | biases


READERS: dict[Preset, Callable[[Any], Read]] = {
    "released": _caffe,
    "released-pytorch": _pytorch,
    "released-keras": _keras,
}


def _layer(name: str) -> str:
    name = name.replace("-", "_")
    return ALIASES.get(name, name)


def _tensor(value: Array) -> torch.Tensor:
    return value.detach().cpu().float() if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value)).float()


def unusual(value: object) -> str | None:
    """A description of `value` if it is not a plain tensor of real numbers."""
    if not isinstance(value, torch.Tensor):
        return checks.kind_of(value)
    if value.is_nested or value.layout is not torch.strided or value.device.type == "meta":
        return f"a {'nested' if value.is_nested else value.layout} tensor on {value.device.type}"
    return None if value.dtype in DTYPES else checks.kind_of(value)


def some(wrong: list[str]) -> str:
    """The first of a list of errors, and the number of others."""
    others = f" and {len(wrong) - SHOWN} others" if len(wrong) > SHOWN else ""
    return ", ".join(wrong[:SHOWN]) + others

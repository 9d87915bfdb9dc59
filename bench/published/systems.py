"""The systems that are compared, at any size and number of updates: each a `Case`."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import tritoncrf as tc
from bench.published import convcrf, crfrnn, fcn8s, resnet, segmodel
from bench.published.cases import Case, Network, float32, relative
from tritoncrf.models import FCN8s, FCN8sCRFRNN, ResNetConvCRF, SegModel
from tritoncrf.published import CONVCRF_CONF, CONVCRF_NAMES, Preset

C = 3
STRIDE = 16  # of SegModel's features
POOLS = (5, 10, 17, 24, 31)  # where VGG-16's groups of layers end
Size = tuple[int, int]

# The authors' default but for a smaller window; and what else their configuration offers, all at once.
RELEASED = {**CONVCRF_CONF, "filter_size": 5, "trainable": True}
ALL_KEYS = {
    **RELEASED, "blur": 2, "norm": "sym", "merge": False, "weight": "scalar", "unary_weight": 1.5, "convcomp": True,
    "trainable_bias": True, "col_feats": {**CONVCRF_CONF["col_feats"], "use_bias": True},
}  # fmt: skip
NO_WEIGHT = {**RELEASED, "weight": None}


def released_conv_crf(size: Size, iterations: int, conf: Mapping[str, Any] = RELEASED) -> tuple:
    crf = disturbed(tc.ConvCRF.from_published(conf, C, size, iterations))
    theirs = {own: name for name, own in CONVCRF_NAMES.items()}

    def form(logits: np.ndarray, image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        named = {theirs[name]: value for name, value in parameters.items()}
        return convcrf.scores(logits, 255 * image, named, conf, iterations)

    return crf, problem(size), form


def paper_conv_crf(size: Size, iterations: int) -> tuple:
    """With all that the paper learns, +C and +T."""
    crf = disturbed(tc.ConvCRF(C, 5, 2, iterations, compatibility=True, learn_positions=size))

    def form(logits: np.ndarray, image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        return convcrf.paper(logits, 255 * image, parameters, 5, 2, iterations)

    return crf, problem(size), form


CRF_RNN_NAMES = dict(zip(("weight_smooth", "weight_appearance", "compatibility"), crfrnn.NAMES, strict=True))


def crf_rnn(size: Size, iterations: int, preset: Preset) -> tuple:
    """The gradients are those that the codes propagate back: there are none of the image."""
    crf = disturbed(tc.CRFRNN(C, iterations, preset=preset))

    def form(logits: np.ndarray, image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        return crfrnn.scores(logits, image, published_names(parameters), preset, iterations)

    def adjoint(
        cotangent: np.ndarray, logits: np.ndarray, image: np.ndarray, **parameters: np.ndarray
    ) -> dict[str, np.ndarray]:
        named = published_names(parameters)
        found = crfrnn.gradients(logits, image, named, preset, iterations, cotangent)
        return {"logits": found["logits"], **{own: found[name] for own, name in CRF_RNN_NAMES.items()}}

    return crf, {**problem(size), "image": around_the_means(size)}, form, adjoint


def fcn_crf_rnn(size: Size, iterations: int) -> tuple:
    """With scores so small that probabilities are between 0 and 1."""
    torch.manual_seed(0)
    network = {"width": 1 / 64, "dropout": 0.0, "score_init": "msra"}
    model = disturbed(FCN8sCRFRNN(C, network=network, crf={"preset": "released", "iterations": iterations}))
    for name, p in model.network.named_parameters():
        if name.startswith("score_"):
            p.data.div_(100)
    mean, std = (x.double().numpy() for x in (model.network.mean, model.network.std))

    def form(image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        network, crf = behind("network.", parameters), behind("crf.", parameters)
        unary = fcn8s.layers((image / 255 - mean) / std, network)["scores"]
        return crfrnn.scores(unary, image, published_names(crf), "released", iterations)

    return model, {"image": around_the_means(size)}, form


def published_names(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {CRF_RNN_NAMES[name]: value for name, value in parameters.items()}


def around_the_means(size: Size) -> np.ndarray:
    """A picture, bytes [1, 3, H, W], of two colours near the means and noise. Most of its vertices lie around 0, where
    pixels that fill up to four add some."""
    draws = np.random.default_rng(12)
    rows, columns = np.indices(size)
    halves = np.where(rows + columns < sum(size) / 2, 0, 6)
    image = np.array([122.7, 116.7, 104])[:, None, None] + halves + draws.normal(0, 6, (1, 3, *size))
    return image.round().astype(np.uint8)


def guidance_crf(size: Size, iterations: int, released: bool = False) -> tuple:
    crf = tc.GuidanceCRF(C, iterations=iterations, preset="released" if released else None)

    def form(logits: np.ndarray, image: np.ndarray) -> np.ndarray:
        return segmodel.guidance(logits, 255 * image, released, iterations)

    return crf, problem(size), form


def seg_model(size: Size, iterations: int, released: bool = False) -> tuple:
    """From the features of a backbone to the scores at the image's size."""
    torch.manual_seed(0)
    preset = "released" if released else None
    model = SegModel(C, 18, 1 / 8, preset=preset, crf={"iterations": iterations}).eval()
    cells = [-(-n // STRIDE) for n in size]
    model.backbone = Features(model.backbone.channels[-1], *cells)
    fill = np.zeros((3, 1, 1)) if released else model.mean.double().numpy()

    def form(image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        height, width = size
        padded = np.empty((1, 3, *(STRIDE * n for n in cells)), image.dtype)
        padded[:] = fill
        padded[:, :, :height, :width] = image
        features = parameters["backbone.features"]
        scores = segmodel.whole(features, 255 * padded, parameters, released, iterations)
        return scores[:, :, :height, :width]

    return disturbed(model), {"image": problem(size)["image"]}, form


class Features(nn.Module):
    """Stands for a backbone: gives features [1, D, h, w] that are a parameter."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        draws = np.random.default_rng(3)
        self.features = nn.Parameter(torch.tensor(draws.random((1, channels, height, width)), dtype=torch.float32))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.features]


def resnet_conv_crf(size: Size, iterations: int) -> tuple:
    """With statistics of batch norms that are none of a start."""
    torch.manual_seed(0)
    network = {"depth": 18, "width": 1 / 8}
    model = disturbed(ResNetConvCRF(C, network=network, crf={"window_size": 5, "blur": 2, "iterations": iterations}))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape))
    statistics = {name: buffer.double().numpy() for name, buffer in model.network.named_buffers()}

    def form(image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        network, crf = behind("network.", parameters), behind("crf.", parameters)
        unary = resnet.scores((image - statistics["mean"]) / statistics["std"], network, statistics)
        return convcrf.paper(unary, 255 * image, crf, 5, 2, iterations)

    return model.eval(), {"image": problem(size)["image"]}, form


def fcn(size: Size) -> tuple:
    torch.manual_seed(0)
    network = disturbed(FCN8s(C, width=1 / 64, dropout=0.0, score_init="msra"))
    mean, std = (x.double().numpy() for x in (network.mean, network.std))

    def form(image: np.ndarray, **parameters: np.ndarray) -> np.ndarray:
        return fcn8s.layers((image - mean) / std, parameters)["scores"]

    return network, {"image": problem(size)["image"]}, form


class FCNLayers(Network):
    """FCN-8s, whose errors are also those of every map between its layers."""

    def errors(self, dtype: torch.dtype) -> dict[str, float]:
        network, found = copy.deepcopy(self.module).to(dtype), {}
        watched = {f"pool{n}": network.features[end - 1] for n, end in enumerate(POOLS, 1)}
        watched |= {"fc6": network.classifier[1], "fc7": network.classifier[4]}
        for name, layer in watched.items():
            layer.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output}))
        mean, std = (x.double().numpy() for x in (network.mean, network.std))
        expected = fcn8s.layers((self.arguments["image"] - mean) / std, self.arguments)
        with torch.no_grad():
            network(torch.tensor(self.arguments["image"], dtype=dtype))
        maps = {name: relative(value.double().numpy(), expected[name]) for name, value in found.items()}
        return {**maps, **super().errors(dtype)}


def problem(size: Size) -> dict[str, np.ndarray]:
    """Scores, and a picture in 0..1 of two colours and a little noise, [1, 3, H, W] both."""
    draws = np.random.default_rng(0)
    rows, columns = np.indices(size)
    halves = np.where(rows + columns < sum(size) / 2, 0.4, 0.5)
    image = halves + draws.normal(0, 0.02, (1, 3, *size))
    return {"logits": float32(draws.standard_normal((1, C, *size))), "image": float32(image)}


def behind(part: str, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a part of a network, by their names in it."""
    return {name.removeprefix(part): value for name, value in parameters.items() if name.startswith(part)}


@torch.no_grad()
def disturbed(module: nn.Module) -> nn.Module:
    """The module with parameters a tenth away from where they start, so that none is zero or like another."""
    draws = torch.Generator().manual_seed(4)
    for p in module.parameters():
        noise = torch.randn(p.shape, generator=draws) / 10
        p.copy_(torch.where(p == 0, noise, p * (1 + noise)))
    return module


@dataclass(frozen=True)
class System:
    """How a system's case is made.

    Attributes:
        make: gives module, inputs, form and perhaps adjoint of a `Case`, from a size and T.
        kind: of the case.
        sizes: one with pixels that four divides, and one without.
        iterated: whether there is a T.
    """

    make: Callable[..., tuple]
    kind: type[Case] = Case
    sizes: tuple[Size, ...] = ((8, 8), (7, 9))
    iterated: bool = True

    def case(self, name: str, size: Size, iterations: int | None) -> Case:
        arguments = (size, iterations) if self.iterated else (size,)
        return self.kind(name, size, iterations, *self.make(*arguments))


RESNET_SIZES, SEGMODEL_SIZES, FCN_SIZES = ((32, 40), (33, 35)), ((32, 48), (30, 41)), ((16, 20), (17, 19))
SYSTEMS = {
    "ConvCRF, released": System(released_conv_crf),
    "ConvCRF, released, no weight": System(partial(released_conv_crf, conf=NO_WEIGHT)),
    "ConvCRF, released, all keys": System(partial(released_conv_crf, conf=ALL_KEYS)),
    "ConvCRF, paper, +C +T": System(paper_conv_crf),
    "ConvCRF on ResNet-18, paper": System(resnet_conv_crf, Network, RESNET_SIZES),
    "CRF-RNN, Caffe": System(partial(crf_rnn, preset="released")),
    "CRF-RNN, Keras": System(partial(crf_rnn, preset="released-keras")),
    "CRF-RNN, PyTorch": System(partial(crf_rnn, preset="released-pytorch")),
    "CRF-RNN on FCN-8s, Caffe": System(fcn_crf_rnn, Network, FCN_SIZES),
    "Guidance CRF, paper": System(guidance_crf),
    "Guidance CRF, released": System(partial(guidance_crf, released=True)),
    "SegModel behind its backbone, paper": System(seg_model, Network, SEGMODEL_SIZES),
    "SegModel behind its backbone, released": System(partial(seg_model, released=True), Network, SEGMODEL_SIZES),
    "FCN-8s": System(fcn, FCNLayers, FCN_SIZES, iterated=False),
}

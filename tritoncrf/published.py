"""Published settings: the CRF parameters of known pipelines, the CRF-RNN codes, and ConvCRF's configuration.

`PARAMETERS` has the arguments of `refine` that correspond to what these pipelines pass to pydensecrf, by name.
pydensecrf's kernels, symmetrically normalised, are those of `refine` with the lattice:

    densecrf   pydensecrf's README: 5 iterations; SimpleCRF's defaults are the same
    deeplab    deeplab-pytorch and CLIP-ES
    seam       SEAM, AFA, 1-stage-wseg and IRN on probabilities: densecrf with 10 iterations
    irn        SEAM and IRN on labels, which are trusted with probability 0.7, as by default
    cutler     CutLER: masks of two classes
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.options import PARAMETERS
from tritoncrf.types import Array

__all__ = [
    "CONVCRF_CONF",
    "CRFRNN_CODES",
    "MEANS",
    "PARAMETERS",
    "convcrf_arguments",
    "convcrf_parameters",
    "crfrnn_parameters",
]


Preset: TypeAlias = Literal["released", "released-keras", "released-pytorch"]
Mean: TypeAlias = Literal["caffe", "vgg", "demo"]
Numbers: TypeAlias = Array | Sequence[float]


@dataclass(frozen=True)
class Code:
    """A published CRF-RNN code: S = U + sign mu sum_m W_m F_m, with mu = sign I initially."""

    weights: tuple[float, float]  # initial weights, times I: smoothness, appearance
    sign: int
    mean: Mean  # subtracted from the image
    separator: str | None  # between the names of a layer and its parameter; Caffe has no names


# Means of red, green and blue in 0..255: the mean that CRF-RNN's notes give for the Caffe network, as in other Caffe
# networks; that of VGG's authors, also in the network's Matlab script; and that of its Python script, which subtracts
# VGG's mean of red from blue and that of blue from red.
MEANS: Mapping[Mean, tuple[float, float, float]] = MappingProxyType(
    {
        "caffe": (122.67891434, 116.66876762, 104.00698793),
        "vgg": (123.68, 116.779, 103.939),
        "demo": (103.939, 116.779, 123.68),
    }
)
CRFRNN_CODES: Mapping[Preset, Code] = MappingProxyType(
    {
        "released": Code((3.0, 5.0), -1, "caffe", None),
        "released-keras": Code((1.0, 1.0), -1, "vgg", "/"),
        "released-pytorch": Code((3.0, 5.0), 1, "vgg", "."),
    }
)
NAMES = "spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix"
FILES = "spatial.par", "bilateral.par"


def crfrnn_parameters(
    parameters: Mapping[str, Numbers] | Sequence[Numbers], num_classes: int, code: Code
) -> list[torch.Tensor]:
    """W_smooth, W_appearance and mu, each [C, C] in float64, from what a published code saved.

    Args:
        parameters: see `CRFRNN.load_published`.
        num_classes: C.
        code: the code that saved them, from CRFRNN_CODES.

    Raises:
        TypeError, ValueError: see `CRFRNN.load_published`.
    """
    square = [(num_classes, num_classes), (1, 1, num_classes, num_classes)]
    if isinstance(parameters, (list, tuple)):
        if len(parameters) != len(NAMES):
            raise ValueError(f"parameters: expected 3 arrays, {', '.join(NAMES)}, got {len(parameters)}")
        found = [_numbers(f"parameters[{n}]", array, square) for n, array in enumerate(parameters)]
        return [array.view(square[0]) for array in found]
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters: expected a dict of arrays, or a list of 3, got {checks.kind_of(parameters)}")
    if code.separator is None:
        _expect_names(parameters, FILES)
        weights = [_numbers(f"parameters[{name!r}]", parameters[name], [(num_classes,)]).diag() for name in FILES]
        return [*weights, code.sign * torch.eye(num_classes, dtype=torch.float64)]
    keys = _keys(parameters, code.separator)
    return [_numbers(f"parameters[{keys[name]!r}]", parameters[keys[name]], square[:1]) for name in NAMES]


def _keys(parameters: Mapping[str, Numbers], separator: str) -> dict[str, str]:
    """The key of each of NAMES, which may have the layer's name in front and be mixed with other layers."""
    layers: dict[str, dict[str, str]] = {}
    for key in parameters:
        layer, _, name = str(key).rpartition(separator)
        layers.setdefault(layer, {})[name.removesuffix(":0") if separator == "/" else name] = key
    found = {layer: keys for layer, keys in layers.items() if not set(NAMES).isdisjoint(keys)}
    if len(found) > 1:
        raise ValueError(f"parameters: expected {NAMES[0]} and the others of one layer, got layers {', '.join(found)}")
    keys: dict[str, str] = next(iter(found.values()), {})
    _expect_names(keys or parameters, NAMES)
    return keys


def _expect_names(found: Collection[str], names: Sequence[str]) -> None:
    missing, unknown = [name for name in names if name not in found], [str(key) for key in found if key not in names]
    if missing or unknown:
        got = ", ".join(unknown[:3]) + ("" if len(unknown) <= 3 else f" and {len(unknown) - 3} others")
        wrong = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{got} unknown"] * bool(unknown)
        raise ValueError(f"parameters: expected {', '.join(names)}, got {' and '.join(wrong)}")


def _numbers(name: str, value: Numbers, shapes: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """A finite array or tensor of one of these shapes, as float64 on the CPU."""
    if isinstance(value, torch.Tensor):
        value = checks.expect_values(name, value).detach().cpu()
        value = value if value.is_complex() else value.double().numpy()
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "iuf":
            raise ValueError
    except ValueError:  # also for rows of different lengths
        raise TypeError(f"{name}: expected an array or tensor of numbers, got {checks.kind_of(value)}") from None
    array = torch.from_numpy(given.astype(np.float64))
    if tuple(array.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {wanted}, got {list(array.shape)}")
    if not torch.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinite ones")
    return array


CONVCRF_CONF: Mapping[str, Any] = MappingProxyType(
    {
        "filter_size": 11, "blur": 4, "merge": True, "norm": "none", "weight": "vector", "unary_weight": 1,
        "weight_init": 0.2, "trainable": False, "convcomp": False, "logsoftmax": True, "softmax": True,
        "final_softmax": False, "trainable_bias": False, "pyinn": False,
        "pos_feats": MappingProxyType({"sdims": 3, "compat": 3}),
        "col_feats": MappingProxyType({"sdims": 80, "schan": 13, "compat": 10, "use_bias": False}),
    }
)  # fmt: skip
# Parameters of the authors' GaussCRF, and of `ConvCRF` in its preset.
CONVCRF_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "pos_sdims": "inverse_theta_smooth",
        "col_sdims": "inverse_theta_space",
        "col_schan": "inverse_theta_color",
        "pos_compat": "weight_smooth",
        "col_compat": "weight_appearance",
        "CRF.weight": "class_weight",
        "CRF.comp.weight": "compatibility",
        "mesh": "positions",
    }
)
NORMS = {"none": "none", "sym": "symmetric"}
MIXTURES = {None: "none", "scalar": "scalar", "vector": "class"}


def convcrf_arguments(conf: Mapping[str, Any], size: Sequence[int] | None = None) -> tuple[dict[str, Any], bool]:
    """Arguments of `ConvCRF` from a configuration of the authors' code, and whether the thetas and weights are trained.

    Args:
        conf: see `ConvCRF.from_published`.
        size: H and W of the images.

    Raises:
        TypeError, ValueError: see `ConvCRF.from_published`.
    """
    conf = _filled("conf", conf, CONVCRF_CONF)
    smooth, appearance = (_filled(f"conf['{k}']", conf[k], CONVCRF_CONF[k]) for k in ("pos_feats", "col_feats"))
    flags = "merge", "trainable", "convcomp", "logsoftmax", "softmax", "final_softmax", "trainable_bias", "pyinn"
    for key in flags:
        checks.expect_bool(f"conf['{key}']", conf[key])
    norm = NORMS[checks.expect_choice("conf['norm']", conf["norm"], NORMS)]
    weight = conf["weight"]
    if not isinstance(weight, (str, type(None))) or weight not in MIXTURES:
        raise ValueError(f"conf['weight']: expected None, 'scalar' or 'vector', got {checks.shown(weight)}")
    mixture = MIXTURES[weight]
    if conf["merge"] and norm != "none":
        raise ValueError("conf['merge']: expected False with norm='sym', since merged kernels have no norm, got True")
    if not conf["softmax"]:
        raise ValueError("conf['softmax']: expected True, since messages are computed from probabilities, got False")
    if conf["final_softmax"]:
        raise ValueError("conf['final_softmax']: expected False, got True; use crf(..., output='probabilities')")
    if conf["trainable_bias"] and size is None:
        raise ValueError("size: expected H and W of the images for trainable_bias=True, got None")

    def theta(feats: Mapping[str, Any], name: str, key: str) -> float:
        return checks.expect_number(f"conf['{name}']['{key}']", feats[key], positive=True)

    arguments = {
        "preset": "released",
        "window_size": checks.expect_int("conf['filter_size']", conf["filter_size"], 1, odd=True),
        "blur": checks.expect_int("conf['blur']", conf["blur"], 1),
        "theta_smooth": theta(smooth, "pos_feats", "sdims"),
        "theta_color": theta(appearance, "col_feats", "schan"),
        "weight_smooth": checks.expect_number("conf['pos_feats']['compat']", smooth["compat"]),
        "weight_appearance": checks.expect_number("conf['col_feats']['compat']", appearance["compat"]),
        "compatibility": conf["convcomp"],
        "learn_positions": size if conf["trainable_bias"] else None,
        "normalization": norm,
        "initial": "log_softmax" if conf["logsoftmax"] else "softmax",
        "mixture": mixture,
    }
    if checks.expect_bool("conf['col_feats']['use_bias']", appearance["use_bias"]):
        arguments["theta_space"] = theta(appearance, "col_feats", "sdims")
    if mixture != "none":
        arguments["unary_weight"] = checks.expect_number("conf['unary_weight']", conf["unary_weight"])
        arguments["weight_mixture"] = checks.expect_number("conf['weight_init']", conf["weight_init"])
    return arguments, conf["trainable"]


def _filled(name: str, given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with defaults for missing keys; an error for unknown keys."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a dict, got {checks.kind_of(given)}")
    if unknown := [str(key) for key in given if key not in default]:
        raise ValueError(f"{name}: expected keys of {', '.join(default)}, got {', '.join(unknown)}")
    return {**default, **given}


def convcrf_parameters(
    parameters: Mapping[str, Numbers], shapes: Mapping[str, Sequence[int]]
) -> dict[str, torch.Tensor]:
    """The parameters of a `ConvCRF` by their names in it, in float64, from the state dict of the authors' GaussCRF.

    Args:
        parameters: see `ConvCRF.load_published`.
        shapes: shapes of the layer's parameters, by name.

    Raises:
        TypeError, ValueError: see `ConvCRF.load_published`.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters: expected a dict of arrays, got {checks.kind_of(parameters)}")
    first = next(iter(CONVCRF_NAMES))
    layers = [str(key).removesuffix(first) for key in parameters if str(key).endswith(first)] or [""]
    if len(layers) > 1:
        raise ValueError(f"parameters: expected {first} of one layer, got {', '.join(n + first for n in layers)}")
    found = {key: value for key, value in parameters.items() if str(key).startswith(layers[0])}
    wanted = {layers[0] + theirs: own for theirs, own in CONVCRF_NAMES.items() if own in shapes}
    if "positions" not in shapes:
        _expect_pixels(layers[0] + "mesh", found.pop(layers[0] + "mesh", None))
    _expect_names(found, list(wanted))
    return {
        own: _numbers(f"parameters[{key!r}]", found[key], _saved(tuple(shapes[own]))).reshape(tuple(shapes[own]))
        for key, own in wanted.items()
    }


def _saved(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes that a saved parameter may have: those of the authors' code, and its own."""
    theirs = {0: (1,), 1: (1, *shape, 1, 1), 2: (*shape, 1, 1)}
    return [theirs.get(len(shape), shape), shape]


def _expect_pixels(key: str, mesh: Numbers | None) -> None:
    """Raise an error unless a saved mesh is the pixel grid; a layer that does not learn coordinates has no other."""
    if mesh is None:
        return
    given = np.asarray(mesh.detach().cpu() if isinstance(mesh, torch.Tensor) else mesh)
    if given.ndim != 3 or not np.array_equal(given, np.indices(given.shape[1:])):
        raise ValueError(
            f"parameters[{key!r}]: expected the pixels' coordinates, since the layer learns none, got others; use "
            "ConvCRF(learn_positions=(H, W))"
        )

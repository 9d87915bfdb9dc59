"""Published settings: the CRF parameters of known pipelines, and the CRF-RNN codes.

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
from typing import Literal, TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.options import PARAMETERS
from tritoncrf.types import Array

__all__ = ["CRFRNN_CODES", "PARAMETERS", "crfrnn_parameters"]


Preset: TypeAlias = Literal["released", "released-keras", "released-pytorch"]
Numbers: TypeAlias = Array | Sequence[float]


@dataclass(frozen=True)
class Code:
    """One of the published CRF-RNN codes: S = U + sign mu sum_m W_m F_m, with mu = sign I at the start."""

    weights: tuple[float, float]  # at the start, times I: smoothness, appearance
    sign: int
    mean: tuple[float, float, float]  # of red, green and blue, which it takes off the image in 0..255
    separator: str | None  # between a layer's name and its parameter's; Caffe names neither


CRFRNN_CODES: Mapping[Preset, Code] = MappingProxyType(
    {
        "released": Code((3.0, 5.0), -1, (122.679, 116.669, 104.007), None),
        "released-keras": Code((1.0, 1.0), -1, (123.68, 116.779, 103.939), "/"),
        "released-pytorch": Code((3.0, 5.0), 1, (123.68, 116.779, 103.939), "."),
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
        code: whose they are, from CRFRNN_CODES.

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
    """The key of each of NAMES: they may stand behind their layer's name, and among other layers."""
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
    """An array or tensor of one of these shapes, finite, as float64 on the CPU."""
    if isinstance(value, torch.Tensor):
        value = checks.expect_values(name, value).detach().cpu()
        value = value if value.is_complex() else value.double().numpy()
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "iuf":
            raise ValueError
    except ValueError:  # rows of different lengths too
        raise TypeError(f"{name}: expected an array or tensor of numbers, got {checks.kind_of(value)}") from None
    array = torch.from_numpy(given.astype(np.float64))
    if tuple(array.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {wanted}, got {list(array.shape)}")
    if not torch.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinite ones")
    return array

"""The initial parameters of a ConvCRF, from its arguments."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import nn

from tritoncrf import checks, features
from tritoncrf.layers.base import Placement, bandwidth
from tritoncrf.types import Theta

Preset: TypeAlias = Literal["released"]
Mixture: TypeAlias = Literal["class", "scalar", "none"]
MIXTURES: tuple[Mixture, ...] = get_args(Mixture)


class Start(NamedTuple):
    """The default bandwidths theta_space and theta_color, and the default weights of the kernels."""

    space: float
    color: float
    smooth: float
    appearance: float


# The defaults of `refine` for a network's scores, theta_space in pixels of a 375 x 500 photo; and the authors' values.
STARTS = {None: Start(30.0, 5.0, 1.0, 1.0), "released": Start(80.0, 13.0, 3.0, 10.0)}


def thetas(
    preset: Preset | None, smooth: Theta, space: Theta | None, color: Theta | None, appearance_position: bool | None
) -> dict[str, torch.Tensor]:
    """The bandwidths by name, theta_space only where the appearance kernel depends on the position."""
    if appearance_position is None:
        appearance_position = space is not None or preset is None
    if not checks.expect_bool("appearance_position", appearance_position) and space is not None:
        raise ValueError(f"theta_space: expected None with appearance_position=False, got {space!r}")
    start = STARTS[preset]
    found = {"theta_smooth": smooth, "theta_color": start.color if color is None else color}
    if appearance_position:
        found["theta_space"] = start.space if space is None else space
    return {name: bandwidth(name, theta) for name, theta in found.items()}


def weights(
    preset: Preset | None, smooth: float | None, appearance: float | None, classes: tuple[int, ...], factory: Placement
) -> dict[str, nn.Parameter]:
    """The kernels' weights by name, each of shape `classes`."""
    start = STARTS[preset]
    given = {"weight_smooth": (smooth, start.smooth), "weight_appearance": (appearance, start.appearance)}
    numbers = {name: own if w is None else checks.expect_number(name, w) for name, (w, own) in given.items()}
    return {name: nn.Parameter(torch.full(classes, w, **factory)) for name, w in numbers.items()}


def mixture_weight(
    preset: Preset | None, mixture: Mixture | None, weight: float | None, num_classes: int, factory: Placement
) -> nn.Parameter | None:
    """The initial w, or None without a mixture."""
    if preset is None:
        for name, value in ("mixture", mixture), ("weight_mixture", weight):
            if value is not None:
                raise ValueError(f"{name}: expected None without a preset, got {value!r}")
        return None
    if mixture is not None and checks.expect_choice("mixture", mixture, MIXTURES) == "none":
        if weight is not None:
            raise ValueError(f"weight_mixture: expected None with mixture='none', got {weight!r}")
        return None
    start = 0.2 if weight is None else checks.expect_number("weight_mixture", weight)
    return nn.Parameter(torch.full(() if mixture == "scalar" else (num_classes,), start, **factory))


def compatibility(num_classes: int, factory: Placement) -> nn.Parameter:
    """c, [C, C], the same for all: then it does not change the softmax."""
    return nn.Parameter(torch.full((num_classes, num_classes), 0.1 * math.sqrt(2 / num_classes), **factory))


def positions(size: Sequence[int], spacing: Theta | None, factory: Placement) -> nn.Parameter:
    """The coordinates of the pixels, [D, *S]."""
    if not isinstance(size, (list, tuple)) or not 1 <= len(size) <= 3:
        raise ValueError(f"learn_positions: expected 1 to 3 spatial sizes, got {checks.kind_of(size)}")
    size = [checks.expect_int("learn_positions", n, 1) for n in size]
    return nn.Parameter(features.spatial(size, 1.0, spacing, dtype=torch.float64)[0].to(**factory))

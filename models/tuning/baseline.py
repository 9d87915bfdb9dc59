"""Search for settings of a disconnected CRF for the scores of a network, on a grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.images import image_from
from tritoncrf.models.disconnected import KINDS, LAYERS, Kind
from tritoncrf.models.scored import Scored, counted
from tritoncrf.models.tuning import grid
from tritoncrf.models.tuning.grid import Point, climbed
from tritoncrf.models.tuning.problem import BY_NAME, Parameters, valued
from tritoncrf.models.tuning.studies import DIGITS, Trial

__all__ = ["Found", "disconnected"]

# The start of the search: the defaults of `refine` for the scores of a network, and those of the guidance CRF.
# Bandwidths of positions are in percent of the diagonal, and are converted to pixels for the layers.
SHARES = {"theta_space": 5.0, "theta_smooth": 0.5}
GAUSSIAN = {"theta_space": SHARES["theta_space"], "theta_color": 5.0, "weight_appearance": 1.0}
STARTS: dict[Kind, dict[str, float]] = {
    "lattice": GAUSSIAN, "window": GAUSSIAN, "guided": {"radius": 3.0, "eps": 1.0, "strength": 2.0},
}  # fmt: skip
# The arguments that the search does not change.
FIXED: dict[Kind, dict[str, float]] = {
    "lattice": {"theta_smooth": SHARES["theta_smooth"], "weight_smooth": 1.0},
    "window": {"theta_smooth": SHARES["theta_smooth"], "weight_smooth": 1.0},
    "guided": {},
}


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        settings: arguments of the layer, including the fixed ones; bandwidths of positions are in pixels.
        on_edge: the settings whose best value is at the limit of the search, so that better values may lie beyond. No
            other setting improves at half or double its value.
        score: the measure with these settings, on the images of the search.
        alone: the measure without a CRF.
        trials: all measured settings, in order.
    """

    settings: Parameters
    on_edge: tuple[str, ...]
    score: float
    alone: float
    trials: tuple[Trial, ...]


@torch.no_grad()
def disconnected(
    scored: Sequence[Scored], num_classes: int, method: Kind = "lattice", measure: str = "miou",
    device: torch.device | str = "cpu", **options: Any,
) -> Found:  # fmt: skip
    """The best settings of a CRF for a network's scores on these images, which should not be its training images.

    The layer is `CRFRNN`, `ConvCRF` or `GuidanceCRF`. The search is on a grid of two bandwidths and a weight, or of
    radius, eps and strength; see `grid`.

    Args:
        scored: images, each with its "logits" [C, H, W] and its truth.
        num_classes: C.
        method: "lattice", "window" or "guided".
        measure: as in `tune`.
        device: the device to compute on.
        options: further arguments of the layer, which are not searched.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    checks.expect_choice("method", method, KINDS)
    checks.expect_choice("measure", measure, tuple(BY_NAME))
    if not scored:
        raise ValueError("scored: expected one image or more, got none")
    start = {name: x for name, x in STARTS[method].items() if name not in options}
    diagonal = float(np.mean([math.hypot(*item.truth.shape) for item in scored]))
    inputs = [
        (image_from(item.image, torch.device(device))[0][None], torch.as_tensor(item.scores["logits"])[None].to(device))
        for item in scored
    ]

    def written(name: str, x: float) -> float | int:
        if name == "radius":
            return max(1, round(x))
        return float(f"{x * diagonal / 100 if name in SHARES else x:.{DIGITS}g}")

    fixed = {**{name: written(name, x) for name, x in FIXED[method].items()}, **options}

    def settings(point: Point) -> Parameters:
        return {name: written(name, x * 2.0**power) for (name, x), power in zip(start.items(), point)} | fixed

    def measured(given: Parameters | None) -> float:
        crf = None if given is None else LAYERS[method](num_classes, **given).to(device).eval()
        counts = [
            counted(logits[0] if crf is None else crf(logits, image)[0], item.truth, num_classes)
            for (image, logits), item in zip(inputs, scored)
        ]
        return valued(np.stack(counts), measure)

    found = list(climbed(len(start), lambda point: measured(settings(point))))
    best, score = max(found, key=lambda pair: pair[1])
    on_edge = tuple(name for name, power in zip(start, best) if abs(power) == grid.WIDEST)
    trials = tuple(Trial(settings(point), x) for point, x in found)
    return Found(settings(best), on_edge, score, measured(None), trials)

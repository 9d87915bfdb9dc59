"""Settings of a disconnected CRF for the scores of a network, by a search on a grid."""

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

# Where the search starts: the defaults of `refine` for the scores of a network, and of the guidance CRF. Bandwidths of
# positions in percent of the diagonal, for layers take pixels.
SHARES = {"theta_space": 5.0, "theta_smooth": 0.5}
GAUSSIAN = {"theta_space": SHARES["theta_space"], "theta_color": 5.0, "weight_appearance": 1.0}
STARTS: dict[Kind, dict[str, float]] = {
    "lattice": GAUSSIAN, "window": GAUSSIAN, "guided": {"radius": 3.0, "eps": 1.0, "strength": 2.0},
}  # fmt: skip
# What the search leaves as it is.
FIXED: dict[Kind, dict[str, float]] = {
    "lattice": {"theta_smooth": SHARES["theta_smooth"], "weight_smooth": 1.0},
    "window": {"theta_smooth": SHARES["theta_smooth"], "weight_smooth": 1.0},
    "guided": {},
}


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        settings: arguments of the layer, the fixed ones among them; bandwidths of positions in pixels.
        on_edge: the settings whose best value is the last that the search may try, of which better ones may lie
            beyond; none of the others has a better neighbour at half or double of its value.
        score: the measure with these settings, on the images of the search.
        alone: the same without a CRF.
        trials: all that was measured, in order.
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
    """The settings of a CRF that are best for a network's scores on these images, which it should not have learnt from.

    The layer is `CRFRNN`, `ConvCRF` or `GuidanceCRF`, on a grid of two bandwidths and a weight, or of radius, eps and
    strength; see `grid` for how it is searched.

    Args:
        scored: images, each with its "logits" [C, H, W] and its truth.
        num_classes: C.
        method: "lattice", "window" or "guided".
        measure: as of `tune`.
        device: where it is computed.
        options: further arguments of the layer, which stay as they are.

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

"""The error of the lattice against the exact sum that it approximates, on whole photos.

    y = K x / K 1 of `filters.Lattice` against sum_j k_ij x_j / sum_j k_ij over all pixels j

x are noisy scores of the photos' label maps, and the exact sum is computed at some pixels i. The error is only
reported; no test uses it as a tolerance.
"""

import math
from pathlib import Path
from typing import Any

import torch

import tritoncrf as tc
from tritoncrf import reports
from tritoncrf.models.experiments.runs import COMMAND
from tritoncrf.models.experiments.synthetic_task import Labelled, label_maps
from tritoncrf.synthetic import noisy_scores

THETAS: tuple[tuple[float, ...], ...] = ((3,), (80, 13), (50, 5), (160, 3), (67, 3))  # for positions, and for colours
BARS = {1: 0.02, 2: 0.06}  # by number of thetas: relative L2 errors measured on crops of 96 x 128 with three classes
PIXELS = 500  # of each photo
AT_ONCE = 32  # pixels whose weights are in memory at once


@torch.no_grad()
def measured(labelled: Labelled, device: torch.device, pixels: int = PIXELS) -> list[dict[str, Any]]:
    """One row per photo and Gaussian: the errors of the filtered scores, and the mean ratio of the row sums."""
    rows = []
    for n, (name, photo, known, _) in enumerate(labelled.scored()):
        scores = torch.from_numpy(noisy_scores(known, labelled.num_classes, seed=n)).to(device)
        values = torch.cat([scores, torch.ones_like(scores[:1])])  # the last gives the row sums
        image = torch.from_numpy(photo).to(device).permute(2, 0, 1)[None]
        chosen = torch.randperm(known.size, generator=torch.Generator().manual_seed(n))[:pixels].to(device)
        for theta in THETAS:
            features = gaussian_features(image, theta)
            found = tc.filters.Lattice(features)(values[None])[0].flatten(1)[:, chosen].double()
            exact = exact_at(chosen, values.flatten(1), features[0].flatten(1))
            mean = exact[:-1] / exact[-1]
            difference = found[:-1] / found[-1] - mean
            rows.append({
                "set": labelled.name, "image": name, "size": "x".join(map(str, known.shape)),
                "thetas": ", ".join(map(str, theta)), "relative L2": (difference.norm() / mean.norm()).item(),
                "bar": BARS[len(theta)], "largest": difference.abs().max().item(),
                "r / exact r": (found[-1] / exact[-1]).mean().item(),
            })  # fmt: skip
    return rows


def gaussian_features(image: torch.Tensor, thetas: tuple[float, ...]) -> torch.Tensor:
    """Positions for one theta, positions and colours for two; image [1, 3, H, W]."""
    if len(thetas) == 2:
        return tc.features.bilateral(image, *thetas)
    return tc.features.spatial(tuple(image.shape[2:]), *thetas, device=image.device)


def exact_at(pixels: torch.Tensor, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """sum_j k_ij x_j at some pixels i, [C, R] in float64: values [C, N], features [D, N]."""
    points, x = features.T.double(), values.T.double()
    sums = [torch.cdist(points[part], points).square_().mul_(-0.5).exp_() @ x for part in pixels.split(AT_ONCE)]
    return torch.cat(sums).T


def run(root: Path | None, out: Path, device: torch.device) -> None:
    """The experiment: out/lattice.md and .csv."""
    rows = []
    for labelled in label_maps(root, small=device.type == "cpu"):
        rows += measured(labelled, device)
        print(f"{labelled.name}: {len(labelled.pairs)} images", flush=True)
        reports.write(out, "lattice", _markdown(rows, "lattice" + (" --data DATA" if root else "")), rows)


def _markdown(rows: list[dict[str, Any]], arguments: str) -> str:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["set"], row["thetas"]), []).append(row)
    lines = []
    for (name, thetas), alike in found.items():
        errors = [row["relative L2"] for row in alike]
        numbers = (
            math.fsum(errors) / len(alike), max(errors), alike[0]["bar"], max(row["largest"] for row in alike),
            math.fsum(row["r / exact r"] for row in alike) / len(alike),
        )  # fmt: skip
        lines.append([name, str(len(alike)), thetas, *map(reports.number, numbers)])
    header = ["set", "photos", "thetas", "relative L2", "worst", "bar", "largest", "r / exact r"]
    return "\n".join([
        reports.head("The lattice against the exact sum", COMMAND.format(arguments)),
        f"Filtered noisy scores, divided by the row sum, at {PIXELS} pixels of each photo. Relative L2: mean, worst of "
        "the photos. Largest: the largest error of any score. r: mean ratio of the row sums. The bar is the limit for "
        "relative L2 errors.", "",
        reports.table(header, lines),
    ])  # fmt: skip

"""How far the lattice is from the exact sum it approximates, on photos: `python -m bench accuracy`.

    y = K x / K 1 of filters.Lattice against sum_j k_ij x_j / sum_j k_ij over all pixels j

x are noisy label probabilities, those that everything here has for scores. The exact sum is formed at some pixels of
the whole photo, in float64. Reported and never a test's tolerance: an approximation has no right value but its own.
"""

import math
from pathlib import Path

import torch
from PIL import Image

import tritoncrf as tc
from bench import report
from bench.timing import clock
from bench.workloads import (
    GRACE_HOPPER,
    SEED,
    brightness_bands,
    gaussian_features,
    lattice_of,
    load_picture,
    photographs,
)
from tritoncrf import reports
from tritoncrf.devices import device_found
from tritoncrf.reference.exact import exact_rows
from tritoncrf.synthetic import noisy_scores

THETAS = [(3,), (80, 13), (160, 3), (67, 3), (50, 5)]
BARS = {1: 0.02, 2: 0.06}  # by number of thetas: the relative L2 errors seen on crops of 96 x 128 with three classes
SIZE = (500, 334)
CLASSES = 21
PIXELS = 2000
LONGEST = 500  # side of a photo; larger ones are shrunk


def fitted(path: Path, longest: int = LONGEST):
    """A photo, its longest side at most `longest`: [H, W, 3] uint8."""
    with Image.open(path) as image:
        shrink = min(1, longest / max(image.size))
        return load_picture(path, [max(1, round(n * shrink)) for n in image.size[::-1]])


def measure(name: str, picture, device, thetas=THETAS, pixels: int = PIXELS) -> list[dict]:
    """A row for each kernel of one picture: the lattice's distance from the exact sum."""
    size = picture.shape[:2]
    x = torch.from_numpy(noisy_scores(brightness_bands(picture, CLASSES), CLASSES, seed=SEED)).to(device)[None]
    values = torch.cat([x, torch.ones_like(x[:, :1])], 1)  # the last gives the row sums
    image = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None]
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(math.prod(size), generator=generator)[:pixels].to(device)
    rows = []
    for theta in thetas:
        started = clock()
        f = gaussian_features(image, theta)
        with torch.no_grad():
            lattice = tc.filters.Lattice(f)
            found = lattice(values)[0].flatten(1)[:, chosen].double()
            exact = exact_rows(values[0].double().flatten(1), f[0].flatten(1), chosen)
        mean = exact[:-1] / exact[-1]
        difference = found[:-1] / found[-1] - mean
        rows.append({
            "picture": name, "size": list(size), "thetas": list(theta),
            "relative_l2": (difference.norm() / mean.norm()).item(), "largest": difference.abs().max().item(),
            "row_sum_ratio": (found[-1] / exact[-1]).mean().item(), "bar": BARS[len(theta)],
            "vertices_per_pixel": lattice_of(lattice).count / math.prod(size), "pixels": len(chosen),
            "seconds": clock() - started,
        })  # fmt: skip
    return rows


def markdown(environment: dict, rows: list[dict]) -> str:
    lines = [
        f"# Lattice against the exact sum: {environment['device']}, {environment['date']}", "",
        f"commit {environment['commit']}, torch {environment['torch']}; {rows[0]['pixels']} pixels of each photo.", "",
        reports.table(
            ["picture", "size", "thetas", "M/N", "relative L2", "bar", "largest", "r / exact r"],
            [
                [
                    row["picture"], "x".join(map(str, row["size"])), ", ".join(map(str, row["thetas"])),
                    reports.number(row["vertices_per_pixel"]),
                    *(reports.number(row[name]) for name in ("relative_l2", "bar", "largest", "row_sum_ratio")),
                ]
                for row in rows
            ],
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def run(photos: Path | None, out: Path | None) -> int:
    device, environment, rows = device_found(), report.environment(), []
    for path in [GRACE_HOPPER, *photographs(photos)]:
        picture = load_picture(path, SIZE) if path == GRACE_HOPPER else fitted(path)
        rows += measure(path.stem, picture, device)
        print(f"{path.stem}: {rows[-1]['size']}", flush=True)
    text = markdown(environment, rows)
    if out:
        report.write_both(out / f"accuracy-{reports.slug(environment)}", environment, rows, text)
    print(text)
    return 0

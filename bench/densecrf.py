"""`python -m bench densecrf`: the same lines of code with pydensecrf and with `tritoncrf.densecrf`, alternately.

The demo's photo at half its size, two Gaussian kernels as in pydensecrf's README, 5 iterations. A round runs every
combination once with each of the two, so that a temporary slowdown of the machine affects both. Ratios are within a
round; the table has their median and range.
"""

import importlib
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

import tritoncrf.densecrf as ours
from tritoncrf import reports
from tritoncrf.commands import CommandError
from tritoncrf.demo import photo

CLASSES = (2, 5, 21, 150)
THREADS = (1, 2)
ITERATIONS = 5
ROUNDS = 5


@dataclass(frozen=True)
class Times:
    """Seconds of a whole call, including the lattices, and of the 5 iterations alone with existing lattices."""

    whole: float
    loop: float


def energies(image: np.ndarray, classes: int) -> np.ndarray:
    """Energies of blocks of 16 x 16 pixels, each with one class that is more likely: float32, [C, H W]."""
    random, (height, width) = np.random.default_rng(classes), image.shape[:2]
    labels = random.integers(0, classes, (height // 16 + 1, width // 16 + 1)).repeat(16, 0).repeat(16, 1)
    logits = random.normal(0, 1, (classes, height, width))
    logits += 3 * (labels[:height, :width] == np.arange(classes)[:, None, None])
    logits -= np.log(np.exp(logits).sum(0))
    return np.ascontiguousarray(-logits.reshape(classes, -1), dtype=np.float32)


def timed(module: ModuleType, image: np.ndarray, unary: np.ndarray) -> Times:
    """Time one call of one of the two modules, which have the same names and arguments."""
    height, width = image.shape[:2]
    started = time.perf_counter()
    crf = module.DenseCRF2D(width, height, len(unary))
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    crf.inference(ITERATIONS)
    built = time.perf_counter()
    crf.inference(ITERATIONS)
    return Times(built - started, time.perf_counter() - built)


def run(out: Path | None, rounds: int = ROUNDS) -> int:
    """Print the report, and write it to `out` if given."""
    if importlib.util.find_spec("pydensecrf") is None:
        raise CommandError("pydensecrf: expected an installed package, got none")
    theirs = importlib.import_module("pydensecrf.densecrf")
    image = np.ascontiguousarray(photo()[::2, ::2])
    found: dict[tuple[int, int], list[tuple[Times, Times]]] = {}
    before = torch.get_num_threads()
    try:
        for turn in range(rounds + 1):  # the first one warms up
            for classes in CLASSES:
                unary = energies(image, classes)
                for threads in THREADS:
                    torch.set_num_threads(threads)
                    pair = timed(ours, image, unary), timed(theirs, image, unary)
                    found.setdefault((classes, threads), []).extend([pair] * (turn > 0))
    finally:
        torch.set_num_threads(before)
    text, rows = report(found, image.shape[:2])
    print(text)
    if out is not None:
        reports.write(out, f"{reports.slug(reports.environment())}-densecrf", text, rows)
    return 0


def report(
    found: dict[tuple[int, int], list[tuple[Times, Times]]], size: tuple[int, ...]
) -> tuple[str, list[dict[str, float]]]:
    """The table, and a row of numbers for every round."""
    lines, rows = [], []
    for (classes, threads), pairs in found.items():
        line = [str(classes), str(threads)]
        for part in "whole", "loop":
            own, other = (np.array([getattr(pair[n], part) for pair in pairs]) for n in (0, 1))
            ratio = other / own
            spread = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
            line += [reports.number(float(np.median(own)), 1e3), reports.number(float(np.median(other)), 1e3), spread]
        lines.append(line)
        rows += [
            {
                "classes": classes, "threads": threads, "round": n, "whole": own.whole, "loop": own.loop,
                "pydensecrf_whole": other.whole, "pydensecrf_loop": other.loop,
            }
            for n, (own, other) in enumerate(pairs)
        ]  # fmt: skip
    header = ["classes", "threads", "whole, ms", "pydensecrf", "ratio", "loop, ms", "pydensecrf", "ratio"]
    text = "\n".join([
        reports.head("A dense CRF beside pydensecrf", "python -m bench densecrf -o OUT"),
        f"The demo's photo at half its size, {size[0]} x {size[1]}, {ITERATIONS} iterations. Milliseconds of "
        "`tritoncrf.densecrf` and of pydensecrf, which uses one thread, alternately: medians of the rounds, and of the "
        "ratios within a round, with their range. Whole: building the lattices and iterating; loop: iterating on "
        "existing lattices.", "",
        reports.table(header, lines),
    ])  # fmt: skip
    return text, rows

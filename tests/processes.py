"""Run by test_distributed.py in each of several processes: an image's bands, and what came out in this one."""

import sys
from pathlib import Path

import numpy as np
import torch
from tiled import Image, Streamed

import tritoncrf as tc
from tritoncrf.streaming import distributed
from tritoncrf.streaming.outputs import Form, opened

WEIGHTS = {"weights": [1.5, 3.0], "damping": 0.3}
METHODS = "lattice", "window", "guided"
CASES = {"tiles": (5, 6), "one tile": (40, 40), "a band without pixels": (5, 6)}


def image_of(case: str) -> Image:
    torch.manual_seed(0)
    image = Image.of((15, 11))
    if case == "a band without pixels":
        image.valid = torch.arange(15)[:, None].expand(15, 11) >= 9
    return image


def photo():
    """An image, and probabilities of classes."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (40, 50, 3), np.uint8), random.dirichlet(np.ones(3), (40, 50)).astype(
        np.float32
    ).transpose(2, 0, 1)


def refine(image, probabilities, **options):
    own = {} if options["method"] == "guided" else {"theta_smooth": 2.0}
    if options["method"] == "lattice":
        own |= {"theta_space": 30.0, "theta_color": 60.0}
    return tc.refine(image, probabilities=probabilities, iterations=2, **own, **options)


def write_bands(folder: Path) -> None:
    """Each process's own rows of a file, whose numbers are those of the processes."""
    form = Form((4, 3), 2, np.dtype(np.float32))
    with opened(folder / "bands.npy", None, form, {}, "a run", None) as results:
        for n in distributed.share(range(4)):
            window = slice(n, n + 1), slice(0, 3)
            results.write(n, window, np.full((2, 1, 3), distributed.rank(), np.float32))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    with distributed.started(torch.device("cpu")):
        for case, shape in CASES.items():
            run = Streamed(image_of(case), shape, WEIGHTS, folder / case, keeps_tables=True)
            found[case] = run.run(), list(run.counts)
        write_bands(folder)
        for method in METHODS:
            refine(*photo(), method=method, out=folder / f"{method}.npy", max_memory="100MB", scratch=folder / method)
        try:
            refine(*photo(), method="window", max_memory="100MB")
        except ValueError as error:
            found["refused"] = str(error)
        found["agreed"] = distributed.agreed(5.5 - distributed.rank())
        found["gathered"] = distributed.gathered(torch.arange(distributed.rank() * 3))
        torch.save(found, folder / f"{distributed.rank()}.pt")
    assert not distributed.together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

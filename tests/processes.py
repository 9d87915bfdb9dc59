"""Run by test_distributed.py in each of several processes: an image's bands, and what came out in this one."""

import sys
from pathlib import Path

import numpy as np
import torch
from tiled import Image, Streamed

from tritoncrf.streaming import distributed
from tritoncrf.streaming.outputs import Form, opened

WEIGHTS = {"weights": [1.5, 3.0], "damping": 0.3}
CASES = {"tiles": (5, 6), "one tile": (40, 40), "a band without pixels": (5, 6)}


def image_of(case: str) -> Image:
    torch.manual_seed(0)
    image = Image.of((15, 11))
    if case == "a band without pixels":
        image.valid = torch.arange(15)[:, None].expand(15, 11) >= 9
    return image


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
        found["agreed"] = distributed.agreed(5.5 - distributed.rank())
        found["gathered"] = distributed.gathered(torch.arange(distributed.rank() * 3))
        torch.save(found, folder / f"{distributed.rank()}.pt")
    assert not distributed.together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

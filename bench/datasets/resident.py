"""The resident memory of a process that refines many images, after each image.

The process is a worker of `refine_many`, with its cache and reading ahead; for each image it returns its memory. Linux
only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bench.peak_memory import status
from tritoncrf.datasets import workers
from tritoncrf.datasets.many import Many, Refining
from tritoncrf.synthetic import noisy_scores

CLASSES = 5


@dataclass(frozen=True)
class Small(Dataset[tuple[str, np.ndarray, np.ndarray]]):
    """Different images of a given number of sizes."""

    images: int
    sizes: int

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, n: int) -> tuple[str, np.ndarray, np.ndarray]:
        generator = np.random.default_rng(n)
        kind = n % self.sizes
        size = 40 + kind, 40 + 7 * kind % self.sizes
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        return f"{n}", image, noisy_scores(generator.integers(0, CLASSES, size), CLASSES, seed=n)


@dataclass(frozen=True)
class Weighed(Many):
    """The stages of `refine_many`, which return the memory instead of the result."""

    def write(self, item: Any, refined: Any) -> tuple[int, int]:
        """The private memory in bytes, and the memory including shared parts, such as the libraries' code."""
        super().write(item, refined)
        return status("RssAnon"), status("VmRSS")


def weigh(images: int, sizes: int) -> Iterator[tuple[int, int]]:
    """The memory after each image."""
    stages = Weighed(Refining("probabilities", {"method": "lattice"}), Small(images, sizes))
    for outcome in workers.run(stages, range(images), jobs=1, devices=[torch.device("cpu")]):
        if outcome.error is not None:
            raise outcome.error
        yield outcome.result

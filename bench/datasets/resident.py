"""Resident memory of a process that refines many images, after each of them.

The process is one of `refine_many`'s own, with its cache and its reading ahead; what it sends back of an image is how
much memory it has. Linux only.
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
    """Images of so many sizes, one after the other, none like another."""

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
    """The stages of `refine_many`, which give the memory in place of the image."""

    def write(self, item: Any, refined: Any) -> tuple[int, int]:
        """Bytes of memory of its own, and with what it shares, such as the libraries' code."""
        super().write(item, refined)
        return status("RssAnon"), status("VmRSS")


def weigh(images: int, sizes: int) -> Iterator[tuple[int, int]]:
    """After each image."""
    stages = Weighed(Refining("probabilities", {"method": "lattice"}), Small(images, sizes))
    for outcome in workers.run(stages, range(images), jobs=1, devices=[torch.device("cpu")]):
        if outcome.error is not None:
            raise outcome.error
        yield outcome.result

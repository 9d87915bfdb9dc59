"""Labelled photos of one split: which there are, and reading them."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from tritoncrf.checks import expect_int, kind_of
from tritoncrf.files import FileError, read_image
from tritoncrf.models.augment import VOID
from tritoncrf.models.data.masks import Mask, file_of, read_mask

Entry: TypeAlias = tuple[str, Path, Mask]  # name, image, mask

MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Examples:
    """The labelled photos of one split.

    Args:
        entries: (name, image path, mask) of each, in order; a mask is a path, or `Regions` that are drawn.
        classes: the C class names.
        void: the values of the masks that mean unknown, none of them a class.
        table: the class of each value of the masks from 0 on, 255 for unknown; None where they are classes.

    Raises:
        ValueError: no entries, more than 255 classes, two of one name, a void value that is a class, or a table of
            something else.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    void: tuple[int, ...] = (VOID,)
    table: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("entries: expected at least one image, got none")
        count = expect_int("number of classes", len(self.classes), 1, VOID)
        name, times = Counter(self.classes).most_common(1)[0]
        if times > 1:
            raise ValueError(f"classes: expected different names, got {name!r} {times} times")
        for label in self.table or ():
            if label != VOID:
                expect_int("table", label, 0, count - 1)
        for value in self.void:
            if 0 <= expect_int("void", value, -(2**31), 2**31 - 1) < self._values:
                raise ValueError(f"void: expected a value that is no class, got {value} of {self._values} classes")

    @property
    def _values(self) -> int:
        """How many values of the masks are classes, or have a place in the table."""
        return len(self.classes if self.table is None else self.table)

    def __len__(self) -> int:
        return len(self.entries)

    def files(self) -> list[Path]:
        """All that is read."""
        return list(dict.fromkeys(path for _, image, mask in self.entries for path in (image, file_of(mask))))

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """A photo, RGB, and its labels, uint8 [H, W]: classes, and 255 where unknown.

        Raises:
            FileError: a file that is missing or broken, sizes that differ, or a label that is neither class nor void.
        """
        _, image_path, mask = self.entries[index]
        image, values, source = read_image(image_path).convert("RGB"), read_mask(mask), file_of(mask)
        if values.ndim != 2 or values.dtype.kind not in "biu":
            raise FileError(f"{source}: expected integers [H, W], got {kind_of(values)}")
        if values.shape != image.size[::-1]:
            raise FileError(
                f"{source}: expected {image.height} x {image.width} labels, the size of {image_path.name}, "
                f"got {values.shape[0]} x {values.shape[1]}"
            )
        unknown = np.isin(values, self.void)
        wrong = values[~unknown & ((values < 0) | (values >= self._values))]
        if wrong.size:
            void = " or void " + ", ".join(map(str, self.void)) if self.void else ""
            raise FileError(f"{source}: expected labels from 0 to {self._values - 1}{void}, got {wrong[0]}")
        table = np.array(range(self._values) if self.table is None else self.table, np.uint8)
        labels = table[np.where(unknown, 0, values)]
        labels[unknown] = VOID
        return image, labels

    def check(self, progress: bool = False) -> "Contents":
        """Reads every photo and mask once; FileError, as `read` raises it, for the first in order that is not sound.

        Args:
            progress: show a bar.
        """

        def seen(index: int) -> tuple[tuple[int, ...], list[int]]:
            labels = self.read(index)[1]
            return labels.shape, np.flatnonzero(np.bincount(labels.ravel())).tolist()

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            found = pool.map(seen, range(len(self)))
            shapes, labels = zip(*tqdm(found, "checking images", len(self), disable=not progress, leave=False))
        return Contents(set(shapes), set().union(*labels))


class Contents(NamedTuple):
    """What occurs in a split."""

    sizes: set[tuple[int, int]]  # (H, W)
    labels: set[int]  # classes, and 255 where unknown


def held_out(examples: Examples, count: int, seed: int = 0) -> tuple[Examples, Examples]:
    """Splits off `count` images chosen at random, the same ones every time: (rest, held out), both in order."""
    count = expect_int("count", count, 1, len(examples) - 1)
    chosen = set(np.random.default_rng(expect_seed(seed)).permutation(len(examples))[:count].tolist())
    parts: tuple[list[Entry], list[Entry]] = [], []
    for index, entry in enumerate(examples.entries):
        parts[index in chosen].append(entry)
    rest, apart = (replace(examples, entries=tuple(part)) for part in parts)
    return rest, apart


def expect_seed(seed: int) -> int:
    return expect_int("seed", seed, 0, MOST_SEED)

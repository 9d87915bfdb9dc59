"""The labelled photos of one split, and reading them."""

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
        void: the values in the masks that mark unknown pixels; no class may have one of them.
        table: the class of each value of the masks from 0 on, 255 for unknown; None where they are classes.

    Raises:
        ValueError: no entries, more than 255 classes, two classes of one name, a void value that is a class, or an
            invalid table.
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
                raise ValueError(f"void: expected a value that is not a class, got {value} with {self._values} classes")

    @property
    def _values(self) -> int:
        """The number of mask values that are classes or have an entry in the table."""
        return len(self.classes if self.table is None else self.table)

    def __len__(self) -> int:
        return len(self.entries)

    def files(self) -> list[Path]:
        """All files that are read."""
        return list(dict.fromkeys(path for _, image, mask in self.entries for path in (image, file_of(mask))))

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """A photo, RGB, and its labels, uint8 [H, W]: classes, and 255 where unknown.

        Raises:
            FileError: a file is missing or damaged, sizes differ, or a label is neither a class nor void.
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
        """Read every photo and mask once; raise the FileError of `read` for the first one that is not valid.

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
    """The labels and sizes that occur in a split."""

    sizes: set[tuple[int, int]]  # (H, W)
    labels: set[int]  # classes, and 255 where unknown


def held_out(examples: Examples, count: int, seed: int = 0) -> tuple[Examples, Examples]:
    """Split off `count` images chosen at random, always the same ones: (rest, held out), both in order."""
    count = expect_int("count", count, 1, len(examples) - 1)
    chosen = set(np.random.default_rng(expect_seed(seed)).permutation(len(examples))[:count].tolist())
    parts: tuple[list[Entry], list[Entry]] = [], []
    for index, entry in enumerate(examples.entries):
        parts[index in chosen].append(entry)
    rest, apart = (replace(examples, entries=tuple(part)) for part in parts)
    return rest, apart


def expect_seed(seed: int) -> int:
    return expect_int("seed", seed, 0, MOST_SEED)

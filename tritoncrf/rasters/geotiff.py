"""GeoTIFF with rasterio: bands are read and written in windows, and the georeference is kept."""

import contextlib
import errno
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from tritoncrf.commands import stderr_closed
from tritoncrf.files import FileError, placed
from tritoncrf.rasters.place import Place
from tritoncrf.rasters.windows import Source, Window, blocks

__all__ = ["GeoTiff", "found", "pages_of", "write"]

CACHE = 64  # MB of blocks that GDAL keeps; without a limit it takes 5 % of the memory
LOSSLESS = ("deflate", "lzw", "zstd", "packbits", "lzma")
BLOCK = 512  # of outputs if the image has no tiles
WRITTEN = 1 << 22  # pixels of a window to write
FULL = 1 << 20  # a disk with fewer free bytes counts as full


class GeoTiff:
    """A TIFF with one picture and any number of bands; see `windows.Raster`."""

    endings: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".npy", ".png")
    absent = True

    def __init__(self, path: Path) -> None:
        with _reading(path):
            self._file = _rasterio(path).open(path)
        self.path = path
        self.size: tuple[int, ...] = self._file.shape
        self.channels: int = self._file.count
        self.dtype = np.result_type(*self._file.dtypes)
        self.spacing = None
        self.block: tuple[int, ...] = self._file.block_shapes[0]
        alpha = _rasterio(path).enums.ColorInterp.alpha
        self.colors = tuple(n for n, kind in enumerate(self._file.colorinterp) if kind != alpha)

    @property
    def place(self) -> Place | None:
        """The positions of the upper left corners of pixels (row, column)."""
        if self._file.crs is None and self._file.transform.is_identity:
            return None
        a, b, c, d, e, f = self._file.transform[:6]
        system = "" if self._file.crs is None else self._file.crs.to_string()
        return Place("georeference", system, np.array([[b, a, c], [e, d, f], [0, 0, 1]]), self.size)

    def valid(self, channels: Sequence[int]) -> Source | None:
        """Where any channel differs from nodata, the file's mask is not 0, and the opacity is not 0 unless it is one of
        the channels."""
        flags = {flag.name for n in channels for flag in self._file.mask_flag_enums[n]}
        opaque = "alpha" in flags and not set(channels) <= set(self.colors)
        return None if "all_valid" in flags or opaque else _Valid(self, tuple(channels))

    def read(self, channels: Sequence[int], window: Window) -> np.ndarray:
        with _reading(self.path):
            return self._file.read([n + 1 for n in channels], window=_window(window))

    def masks(self, channels: Sequence[int], window: Window) -> np.ndarray:
        """The masks [C, *S] of a window: 0 where a channel has no data."""
        with _reading(self.path):
            return self._file.read_masks([n + 1 for n in channels], window=_window(window))

    def write(self, path: Path, pixels: Source, nodata: float | None, valid: Source | None) -> None:
        profile = self._file.profile
        points, system = self._file.gcps
        like = {"crs": self._file.crs or system, "gcps": points} if points else {"crs": self._file.crs}
        if not points and not self._file.transform.is_identity:
            like["transform"] = self._file.transform
        if profile.get("compress") in LOSSLESS:
            like["compress"] = profile["compress"]
        if profile.get("tiled"):
            like |= {"blockxsize": profile["blockxsize"], "blockysize": profile["blockysize"]}
        cloud = self._file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
        write(path, pixels, nodata, valid, like, cloud)

    def close(self) -> None:
        self._file.close()


class _Valid:
    """The valid pixels of a GeoTIFF, bool [H, W]."""

    def __init__(self, raster: GeoTiff, channels: tuple[int, ...]) -> None:
        self._raster, self._channels = raster, channels
        self.shape, self.dtype = raster.size, np.dtype(bool)

    def __getitem__(self, window: Window, /) -> np.ndarray:
        return np.asarray(self._raster.masks(self._channels, window).any(0))


def found() -> bool:
    """Whether rasterio is installed."""
    return find_spec("rasterio") is not None


def pages_of(path: Path) -> int:
    """The number of pictures (pages) in a TIFF."""
    with _reading(path), _rasterio(path).open(path) as file:
        return max(1, len(file.subdatasets))


def write(
    path: Path, pixels: Source, nodata: float | None = None, valid: Source | None = None,
    like: dict[str, Any] | None = None, cloud: bool = False,
) -> None:  # fmt: skip
    """Write pixels [H, W] or [C, H, W] as a tiled GeoTIFF, in windows, completely or not at all.

    Args:
        path: the file.
        pixels: the pixels to write.
        nodata: the value of pixels without data; None if there is no such value.
        valid: [H, W] bool, to be stored as the file's mask, or None.
        like: entries of rasterio's profile taken from the image.
        cloud: whether to write a cloud optimized GeoTIFF. Its driver keeps an output that is written in windows
            entirely in memory, but not one that it copies.
    """
    rasterio = _rasterio(path)
    count, (height, width) = (1 if len(pixels.shape) == 2 else pixels.shape[0]), pixels.shape[-2:]
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": width, "height": height, "count": count, "dtype": pixels.dtype, "nodata": nodata,
        "compress": "deflate", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "if_safer",
        **(like or {}),
    }  # fmt: skip
    windows = list(blocks((height, width), (profile["blockysize"], profile["blockxsize"]), WRITTEN // count))
    with placed(path) as final, _writing(path):
        tiled = final.with_name(f"{final.stem}.tiled.part") if cloud else final
        try:
            with rasterio.open(tiled, "w", **profile) as file:
                written = 0
                for window in windows:
                    data = np.asarray(pixels[window if len(pixels.shape) == 2 else (slice(0, count),) + window])
                    data = np.ascontiguousarray(data.reshape(count, *data.shape[-2:]))
                    file.write(data, window=_window(window))
                    written = zlib.crc32(data.tobytes(), written)
                    if valid is not None:
                        file.write_mask(np.asarray(valid[window]), window=_window(window))
            if cloud:
                kind = "average" if np.dtype(pixels.dtype).kind == "f" else "nearest"
                rasterio.shutil.copy(
                    tiled, final, driver="COG", compress=profile["compress"], blocksize=profile["blockxsize"],
                    overview_resampling=kind, bigtiff="if_safer",
                )  # fmt: skip
        finally:
            if cloud:
                tiled.unlink(missing_ok=True)
        with rasterio.open(final) as file:
            found = 0
            for window in windows:
                found = zlib.crc32(file.read(window=_window(window)), found)
        if found != written:  # GDAL does not report every write that fails on a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _rasterio(path: Path) -> ModuleType:
    try:
        import rasterio
        import rasterio.shutil
    except ImportError as error:
        raise ImportError(f"{path}: opening a GeoTIFF needs rasterio; `pip install 'tritoncrf[geo]'`") from error
    return rasterio


def _window(window: Window) -> tuple[tuple[int, int], ...]:
    return tuple((part.start, part.stop) for part in window)


@contextlib.contextmanager
def _limited(path: Path) -> Iterator[None]:
    """GDAL with a small cache, and without rasterio's warnings of pictures without a georeference."""
    rasterio = _rasterio(path)
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error of GDAL into one that names the file."""
    if not path.is_file():
        raise FileError(f"{path}: expected a GeoTIFF, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with _limited(path):
            yield
    except (ImportError, MemoryError, FileError):
        raise
    except Exception as error:
        raise FileError(f"{path}: expected a GeoTIFF, unreadable: {_reason(error)}") from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """The same for writing; GDAL reports a full disk in various ways, some only on stderr."""
    try:
        with _limited(path), stderr_closed():
            yield
    except Exception as error:
        if not type(error).__module__.startswith("rasterio"):
            raise
        if shutil.disk_usage(path.parent).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise FileError(f"{path}: GDAL could not write a GeoTIFF: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """GDAL's first message, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__

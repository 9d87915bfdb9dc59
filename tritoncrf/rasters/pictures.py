"""Pictures that Pillow reads, and arrays, when used together with rasters."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from tritoncrf.files import FileError, read_image, read_picture
from tritoncrf.rasters import geotiff, tiff
from tritoncrf.rasters.place import Place
from tritoncrf.rasters.windows import Source, Window
from tritoncrf.scores import upright

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Picture"]


class Picture:
    """A picture with 8 or 16 bits or floats, read as a whole; see `windows.Raster`.

    as_stored: ignore its EXIF orientation.
    """

    endings: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".npy", ".png")
    absent = geotiff.found()

    def __init__(self, path: Path, as_stored: bool = False) -> None:
        found = read_picture(path)
        if found.mode.startswith(("I", "F")):
            pixels = np.asarray(found if as_stored else upright(found))
        else:
            _expect_opaque(path, found)
            pixels = np.asarray(read_image(path, upright=not as_stored))
        self._pixels = np.moveaxis(np.atleast_3d(pixels), -1, 0)
        self.path = path
        self.size: tuple[int, ...] = self._pixels.shape[1:]
        self.channels = len(self._pixels)
        self.colors = tuple(range(self.channels))
        self.dtype: np.dtype[Any] = self._pixels.dtype
        self.block: tuple[int, ...] = (1, self.size[1])
        self.place: Place | None = None
        self.spacing = None

    def valid(self, channels: Sequence[int]) -> Source | None:
        return None

    def read(self, channels: Sequence[int], window: Window) -> np.ndarray:
        return self._pixels[list(channels)][(slice(None),) + window]

    def write(self, path: Path, pixels: Source, nodata: float | None, valid: Source | None) -> None:
        if geotiff.found():
            geotiff.write(path, pixels, nodata, valid)
        else:
            tiff.write(path, pixels, axes=2)

    def close(self) -> None:
        """Do nothing: the picture is already in memory."""


def _expect_opaque(path: Path, picture: "PIL.Image.Image") -> None:
    if picture.mode in ("LA", "RGBA") and cast(tuple[int, int], picture.getchannel("A").getextrema())[0] < 255:
        raise FileError(
            f"{path}: expected no transparency, got some; save the picture without it, and pass a mask of "
            "the opaque pixels as --valid"
        )

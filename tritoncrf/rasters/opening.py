"""Open a file with the right reader."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tritoncrf.files import FileError, decoded
from tritoncrf.rasters import geotiff, nifti
from tritoncrf.rasters.geotiff import GeoTiff, pages_of
from tritoncrf.rasters.nifti import Nifti
from tritoncrf.rasters.pictures import Picture
from tritoncrf.rasters.tiff import GEOREFERENCE, Stack
from tritoncrf.rasters.windows import Raster, View, blocks

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["TIFF", "chosen", "is_raster", "open_raster"]

TIFF = (".tif", ".tiff")
LOOKED_AT = 1 << 24  # pixels of a window
OPAQUE = 255
SAMPLES, BITS = 277, 258  # tags of TIFF: samples per pixel, and bits per sample


def is_raster(path: Path) -> bool:
    """Whether Pillow cannot read a file completely: a volume, a stack, or a TIFF with a georeference, with channels
    that are not colours, or without 8 bits per sample."""
    name = path.name.lower()
    if name.endswith(nifti.ENDINGS) or not name.endswith(TIFF) or not path.is_file():
        return name.endswith(nifti.ENDINGS)
    with _header(path) as image:
        if image is None or GEOREFERENCE & set(image.tag_v2) or getattr(image, "n_frames", 1) > 1:
            return True
        deep = image.mode.startswith(("I", "F")) or max(image.tag_v2.get(BITS, (1,))) > 8
        return deep or int(image.tag_v2.get(SAMPLES, 1)) != len(image.getbands())


@contextlib.contextmanager
def _header(path: Path) -> "Iterator[TiffImageFile | None]":
    """A TIFF opened by Pillow without reading its pixels; None if Pillow cannot."""
    from PIL import Image, UnidentifiedImageError
    from PIL.TiffImagePlugin import TiffImageFile

    with contextlib.ExitStack() as stack:
        image = None
        with contextlib.suppress(UnidentifiedImageError, Image.DecompressionBombError):
            image = stack.enter_context(Image.open(stack.enter_context(path.open("rb"))))
        yield image if isinstance(image, TiffImageFile) else None


def open_raster(
    path: Path, axes: int | None = None, as_stored: bool = False, content: Path | None = None
) -> Raster:  # fmt: skip
    """Open a file with the reader for its name and content.

    Args:
        path: the file.
        axes: number of axes of the grid, if another file determines it; further axes are channels.
        as_stored: for pictures, see `Picture`.
        content: the content of a compressed file, to be read instead.
    """
    name = path.name.lower()
    if name.endswith(nifti.ENDINGS):
        return Nifti(path, axes, content)
    if not name.endswith(TIFF):
        return Picture(path, as_stored)
    decoded(path, "a TIFF", lambda file: None)
    if geotiff.found() and pages_of(path) == 1:
        return GeoTiff(path)
    if find_spec("tifffile") is None:
        extra = "tiff" if geotiff.found() else "geo]' or, of a stack, 'tritoncrf[tiff"
        raise ImportError(f"{path}: a package that opens such a TIFF is missing; `pip install 'tritoncrf[{extra}]'`")
    stack = Stack(path, axes)
    if stack.georeferenced:
        stack.close()
        if not geotiff.found():
            raise ImportError(f"{path}: opening a GeoTIFF needs rasterio; `pip install 'tritoncrf[geo]'`")
        raise FileError(f"{path}: expected one picture in a GeoTIFF, got {pages_of(path)}")
    return stack


def _expect_opacity(raster: Raster) -> None:
    """Raise an error unless the opacity of a file is all or nothing: GDAL treats any fourth band of 8 bits as
    opacity."""
    for band in sorted(set(range(raster.channels)) - set(raster.colors)):
        for window in blocks(raster.size, raster.block, LOOKED_AT):
            values = raster.read((band,), window)
            if ((values > 0) & (values < OPAQUE)).any():
                every, others = map(_numbered, (range(raster.channels), raster.colors))
                raise FileError(
                    f"{raster.path}: expected --bands {every} or {others}, since the file declares band {band + 1} as "
                    "opacity, which has intermediate values; got none"
                )


def _numbered(channels: Iterable[int]) -> str:
    """Bands in the form of --bands."""
    return ",".join(str(channel + 1) for channel in channels)


def chosen(raster: Raster, bands: Sequence[int] | None) -> View:
    """The image [*S, M] of a raster: its colours, or the bands with these numbers, counted from 1."""
    if bands is None:
        _expect_opacity(raster)
        return View(raster, "last", raster.colors)
    if not bands or not all(1 <= band <= raster.channels for band in bands) or len(set(bands)) < len(bands):
        raise FileError(
            f"{raster.path}: expected --bands from 1 to {raster.channels}, each once, got {','.join(map(str, bands))}"
        )
    return View(raster, "last", tuple(band - 1 for band in bands))

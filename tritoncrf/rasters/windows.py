"""Sources that are read in windows: files and arrays with a shape, a dtype and slicing, and views of them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from tritoncrf.rasters.place import Place

__all__ = ["Combined", "Filled", "Made", "Raster", "Source", "View", "Window", "blocks", "whole"]

Window: TypeAlias = tuple[slice, ...]
Axis: TypeAlias = Literal["first", "last", "none"]


class Source(Protocol):
    """A source that is read in windows: an array or an array-like object."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, window: Window, /) -> np.ndarray: ...


class Raster(Protocol):
    """A file with channels on one grid.

    Attributes:
        endings: suffixes of the files that `write` can write.
        absent: whether such files can mark pixels without data.
        size: the size of the grid, S.
        channels: the number of channels.
        colors: the channels of the image, numbered from 0, without opacity.
        place: the georeference of the grid; None if the file has none.
        spacing: the distance of pixels along each axis; None for 1.
        valid: [*S] bool, the valid pixels; None if all are.
        block: the block size along each axis with which the file is read fastest.
    """

    endings: ClassVar[tuple[str, ...]]

    @property
    def absent(self) -> bool: ...
    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def colors(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def place(self) -> Place | None: ...
    @property
    def spacing(self) -> tuple[float, ...] | None: ...
    @property
    def block(self) -> tuple[int, ...]: ...

    def close(self) -> None: ...

    def valid(self, channels: Sequence[int]) -> Source | None:
        """The valid pixels of an image with these channels, bool [*S]; None if all are."""

    def read(self, channels: Sequence[int], window: Window) -> np.ndarray:
        """Read a window, [C, *S]."""

    def write(self, path: Path, pixels: Source, nodata: float | None, valid: Source | None) -> None:
        """Write pixels [*S] or [C, *S] into a file with this grid and place, completely or not at all.

        nodata: the value of pixels without data, which the file declares; None if there is no such value.
        valid: the valid pixels, for files in which no value is free for nodata.
        """


@dataclass(frozen=True)
class View:
    """Channels of a raster as an array: [*S, M] for an image, [C, *S] for scores, [*S] for a map."""

    raster: Raster
    axis: Axis
    channels: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        size, count = self.raster.size, len(self.channels)
        return {"first": (count, *size), "last": (*size, count), "none": size}[self.axis]

    @property
    def dtype(self) -> Any:
        return self.raster.dtype

    @property
    def path(self) -> Path:
        return self.raster.path

    @property
    def name(self) -> str:
        """Which array of the file it is."""
        return f"{self.axis} {self.channels}"

    def __getitem__(self, window: Window, /) -> np.ndarray:
        window = whole(window, self.shape)
        if self.axis == "none":
            return self.raster.read(self.channels, window)[0]
        if self.axis == "first":
            return self.raster.read(self.channels[window[0]], window[1:])
        return np.moveaxis(self.raster.read(self.channels[window[-1]], window[:-1]), 0, -1)


@dataclass(frozen=True)
class Made:
    """An array computed from the windows of sources, with the shape of the first one."""

    make: Callable[..., np.ndarray]
    sources: tuple[Source, ...]
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sources[0].shape

    def __getitem__(self, window: Window, /) -> np.ndarray:
        made = self.make(*(np.asarray(source[window]) for source in self.sources))
        return made.astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Filled:
    """Pixels [*S] or [C, *S] with a value in place of pixels without data.

    holes: replace only NaN.
    """

    pixels: Source
    valid: Source
    value: float
    holes: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    @property
    def dtype(self) -> Any:
        return self.pixels.dtype

    @property
    def path(self) -> Path | None:
        """The file of the pixels, if they come from one."""
        return getattr(self.pixels, "path", None)

    @property
    def name(self) -> str | None:
        """Which array of the file it is."""
        return getattr(self.pixels, "name", None)

    def __getitem__(self, window: Window, /) -> np.ndarray:
        values = np.array(self.pixels[window])
        absent = ~np.asarray(self.valid[window[len(window) - len(self.valid.shape) :]])
        values[absent & np.isnan(values) if self.holes else np.broadcast_to(absent, values.shape)] = self.value
        return values


@dataclass(frozen=True)
class Combined:
    """Images [*S, M] concatenated along their channels."""

    images: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.images[0].shape[:-1], sum(image.shape[-1] for image in self.images))

    @property
    def dtype(self) -> Any:
        return np.result_type(*(image.dtype for image in self.images))

    def __getitem__(self, window: Window, /) -> np.ndarray:
        window = whole(window, self.shape)
        parts = [np.asarray(image[window[:-1] + (slice(None),)]) for image in self.images]
        return np.concatenate(parts, axis=-1).astype(self.dtype, copy=False)[..., window[-1]]


def whole(window: Window | slice, shape: Sequence[int]) -> Window:
    """A window with an explicit slice for each axis."""
    window = window if isinstance(window, tuple) else (window,)
    window += (slice(None),) * (len(shape) - len(window))
    return tuple(slice(*part.indices(n)) for part, n in zip(window, shape))


def blocks(size: Sequence[int], block: Sequence[int], pixels: int) -> Iterator[Window]:
    """Windows over a grid, made of whole blocks, with about this many pixels, the last axis fastest."""
    shape = [min(side, n) for side, n in zip(block, size)]
    for axis in reversed(range(len(size))):
        count = max(1, pixels // math.prod(shape))
        shape[axis] = min(count * shape[axis], size[axis])
    for start in itertools.product(*(range(0, n, step) for n, step in zip(size, shape))):
        yield tuple(slice(at, min(at + step, n)) for at, step, n in zip(start, shape, size))

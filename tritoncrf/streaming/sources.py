"""Sources and outputs that are accessed in windows: anything with a shape, a dtype and slicing, and .npy files without
mapping them.

A window is a tuple of slices, one for each axis, with starts and stops inside the array.
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.files import errors_name
from tritoncrf.scores import as_tensor
from tritoncrf.types import Array

Window: TypeAlias = tuple[slice, ...]

__all__ = [
    "Npy", "Window", "extent", "identity", "kind_of_dtype", "path_of", "read", "relative", "same_memory", "write",
]  # fmt: skip

HASHED = 1 << 24  # bytes that are hashed at a time to identify an array


def extent(window: Window) -> tuple[int, ...]:
    """The shape of a window."""
    return tuple(s.stop - s.start for s in window)


def relative(inner: Window, outer: Window) -> Window:
    """The place of a window in one that contains it."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))


def expect_source(name: str, value: Any) -> None:
    """Raise an error unless `value` can be read in windows."""
    if isinstance(value, torch.Tensor):
        checks.expect_values(name, value)
    if isinstance(value, np.ma.MaskedArray):
        as_tensor(name, value)
    if not all(hasattr(value, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        file = isinstance(value, (str, os.PathLike))
        hint = "; np.load(path, mmap_mode='r') opens an .npy without reading it" if file else ""
        raise TypeError(
            f"{name}: expected an array, or what has shape, dtype and slicing, got {checks.kind_of(value)}{hint}"
        )


def kind_of_dtype(dtype: Any) -> str:
    """The kind of a dtype of NumPy or torch, as NumPy's letter: "f" for floats, "i" or "u" for integers."""
    text = str(dtype).removeprefix("torch.")
    return "f" if text.startswith(("float", "bfloat")) else np.dtype(text).kind


def read(name: str, source: Any, window: Window) -> np.ndarray:
    """The values of a window; bfloat16 becomes float32.

    Args:
        name: the name of the argument, for errors.
        source: an object with shape, dtype and slicing.
        window: the window, over all axes.
    """
    found = source[window]
    if isinstance(found, torch.Tensor):
        found = found.detach()
        found = (found.float() if found.dtype == torch.bfloat16 else found).cpu().numpy()
    if np.ma.is_masked(found):
        raise TypeError(f"{name}: expected numbers, got masked ones; valid= marks the valid pixels")
    array = np.asarray(found)
    if array.shape != extent(window):
        raise ValueError(f"{name}: expected shape {list(extent(window))} for a window, got {list(array.shape)}")
    return array.copy() if any(stride < 0 for stride in array.strides) else array  # torch does not accept negative ones


def write(target: Any, window: Window, values: np.ndarray) -> None:
    """Put values into a window of an array, cast to its dtype."""
    if isinstance(target, torch.Tensor):
        target.detach()[window] = torch.from_numpy(values).to(target.device, target.dtype)
    else:
        target[window] = values.astype(target.dtype, copy=False)


class Npy:
    """The array of an .npy file, read and written in windows with plain file accesses.

    Unlike a mapped file, it does not count towards the memory of the process.

    Args:
        path: the file.

    Raises:
        ValueError: not an .npy of numbers, or an incomplete one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, self.fortran, self.dtype = header(file)
            except ValueError as error:
                raise ValueError(f"{self.path}: expected an .npy file, unreadable: {error}") from None
            self.offset = file.tell()
            wanted, found = self.offset + math.prod(shape) * self.dtype.itemsize, os.fstat(file.fileno()).st_size
        if self.dtype.hasobject:
            raise ValueError(f"{self.path}: expected numbers, got dtype {self.dtype}")
        if found < wanted:
            raise ValueError(f"{self.path}: expected {wanted} bytes for {list(shape)} {self.dtype}, got {found}")
        self.shape: tuple[int, ...] = tuple(shape)

    @classmethod
    def create(cls, path: Path, shape: Sequence[int], dtype: np.dtype) -> "Npy":
        """Create a file of zeros, replacing any existing one."""
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        with open(path, "wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            file.truncate(file.tell() + math.prod(shape) * dtype.itemsize)
        return cls(path)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, window: Window) -> np.ndarray:
        window = self._stored(window)
        found = np.empty(extent(window), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for row, start in self._rows(found, window):
                file.seek(start)
                while row:
                    taken = file.readinto(row)
                    if not taken:
                        raise OSError(f"{self.path}: expected {len(row)} bytes more, got the end of the file")
                    row = row[taken:]
        return found.T if self.fortran else found

    def __setitem__(self, window: Window, values: np.ndarray) -> None:
        window = self._stored(window)
        values = np.broadcast_to(values, extent(window)[::-1] if self.fortran else extent(window))
        values = np.ascontiguousarray(values.T if self.fortran else values, self.dtype)
        with errors_name(self.path), open(self.path, "r+b", buffering=0) as file:
            for row, start in self._rows(values, window):
                file.seek(start)
                while row:
                    row = row[file.write(row) :]

    def flush(self) -> None:
        """Wait until everything that was written is on disk."""
        with errors_name(self.path), open(self.path, "r+b") as file:
            os.fsync(file.fileno())

    def _stored(self, window: Window) -> Window:
        """A window with one slice for each axis, in the order of the file."""
        if not isinstance(window, tuple):
            window = (window,)
        window = window + (slice(None),) * (self.ndim - len(window))
        found = tuple(slice(*s.indices(n)[:2]) for s, n in zip(window, self.shape, strict=True))
        return found[::-1] if self.fortran else found

    def _rows(self, values: np.ndarray, window: Window) -> Iterator[tuple[memoryview, int]]:
        """The contiguous runs of bytes in the file, and their places."""
        if values.size == 0:
            return
        shape = self.shape[::-1] if self.fortran else self.shape
        strides = [math.prod(shape[axis + 1 :]) * self.dtype.itemsize for axis in range(self.ndim)]
        outer = self.ndim - 1  # axes before the contiguous ones
        while outer > 0 and values.shape[outer] == shape[outer]:
            outer -= 1
        first = self.offset + sum(s.start * stride for s, stride in zip(window[outer:], strides[outer:]))
        indices = itertools.product(*(range(s.start, s.stop) for s in window[:outer]))
        for row, index in zip(values.reshape(math.prod(values.shape[:outer]), -1), indices, strict=True):
            yield row.view(np.uint8).data, first + sum(i * stride for i, stride in zip(index, strides))


def _mapped(source: np.ndarray) -> np.memmap | None:
    """The memmap that an array is or is a view of."""
    array: Any = source
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and not isinstance(array.base, np.ndarray):
            return array
        array = array.base
    return None


def path_of(source: Any) -> Path | None:
    """The file or folder of an array, if known: for memmaps, `Npy`, h5py, Zarr and rasters."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source)
    if isinstance(source, np.ndarray):
        mapped = _mapped(source)
        return None if mapped is None or mapped.filename is None else Path(mapped.filename)
    for store in getattr(source, "store", None), getattr(source, "file", None), source:
        for attribute in ("path", "filename", "root"):
            found = getattr(store, attribute, None)
            if isinstance(found, (str, os.PathLike)) and os.path.exists(found):
                return Path(found)
    return None


def _place(source: Any) -> Any:
    """Which array in a file this is."""
    if isinstance(source, np.ndarray) and (mapped := _mapped(source)) is not None:
        return [source.ctypes.data - mapped.ctypes.data + mapped.offset, list(source.strides)]
    return getattr(source, "name", None) or None


def _bytes(array: Array) -> tuple[str, int, int]:
    """The device of an array, its first byte, and the byte after its last."""
    if isinstance(array, torch.Tensor):
        place, start, item = str(array.device), array.data_ptr(), array.element_size()
        strides = [item * stride for stride in array.stride()]
    else:
        place, start, item, strides = "cpu", array.ctypes.data, array.itemsize, list(array.strides)
    ends = [(n - 1) * stride for n, stride in zip(array.shape, strides)]
    return place, start + sum(min(0, end) for end in ends), start + sum(max(0, end) for end in ends) + item


def same_memory(one: Any, other: Any) -> bool:
    """Whether two arrays or files are the same or overlap."""
    if one is other:
        return True
    arrays = np.ndarray, torch.Tensor
    if isinstance(one, arrays) and isinstance(other, arrays):
        (place, start, end), (its_place, its_start, its_end) = _bytes(one), _bytes(other)
        if place == its_place and start < its_end and its_start < end:
            return True
    paths = path_of(one), path_of(other)
    if None in paths or os.path.realpath(str(paths[0])) != os.path.realpath(str(paths[1])):
        return False
    plain = [value for value in (one, other) if isinstance(value, (str, os.PathLike, np.ndarray))]
    return bool(plain) or _place(one) == _place(other)


def identity(name: str, source: Any) -> list[Any]:
    """The identity of an array: shape and dtype, and its file with size and time, or otherwise its values."""
    form = [list(source.shape), str(source.dtype)]
    path = path_of(source)
    if path is not None:
        return [*form, os.path.realpath(path), str(_place(source)), *_stamps(path)]
    digest = hashlib.blake2b(digest_size=16)
    row = max(1, math.prod(source.shape[1:]) * np.dtype(np.float64).itemsize)
    step = max(1, HASHED // row)
    for start in range(0, source.shape[0], step):
        window = (slice(start, min(start + step, source.shape[0])), *(slice(0, n) for n in source.shape[1:]))
        digest.update(np.ascontiguousarray(read(name, source, window)).tobytes())
    return [*form, digest.hexdigest()]


def _stamps(path: Path) -> list[Any]:
    """Sizes and times of a file, or of all files in a folder."""
    if not path.is_dir():
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return sorted([str(p.relative_to(path)), *_stamps(p)] for p in path.rglob("*") if p.is_file())

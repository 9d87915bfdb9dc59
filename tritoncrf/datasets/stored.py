"""Files with the scores of many images by name: HDF5 and Zarr, local or remote."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from tritoncrf.files import Arrays, FileError, explained, is_local

__all__ = ["MANY", "Stored", "read_stored", "stored_names"]

Content = TypeVar("Content")

MANY = (".h5", ".hdf5", ".zarr")


@dataclass(frozen=True)
class Stored:
    """Scores in a file for many images: an array, or a group of arrays.

    Attributes:
        file: .h5, .hdf5 or .zarr.
        key: the key of the array or group in it, such as "day1/frame_3".
    """

    file: Path
    key: str

    def __str__(self) -> str:
        return f"{self.file}:{self.key}"


def stored_names(file: Path, recursive: bool = False) -> list[str]:
    """The arrays and groups at the first level of a file, or at every level if `recursive`."""

    def names(group: Any, above: str = "") -> Iterator[str]:
        for name in group:
            yield above + name
            if recursive and not _is_array(group[name]):
                yield from names(group[name], f"{above}{name}/")

    with explained(file, "scores by name"), _opened(file) as root:
        return [*names(root)]


def read_stored(stored: Stored, choose: Callable[[Arrays], Content]) -> Content:
    """What `choose` selects from the array or the group."""
    with explained(stored.file, "scores by name"), _opened(stored.file) as root:
        if stored.key not in root:
            raise FileError(f"{stored.file}: expected {stored.key}, got nothing of this name")
        node = root[stored.key]
        return choose(np.asarray(node) if _is_array(node) else {name: np.asarray(node[name]) for name in sorted(node)})


def _is_array(node: Any) -> bool:
    """Whether it is an array, not a group."""
    return hasattr(node, "shape")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The root group of a file; groups are read like dictionaries."""
    try:
        if file.suffix.lower() == ".zarr":
            import zarr

            options = None if is_local(file) else dict(cast(Any, file).storage_options)
            yield zarr.open_group(str(file), mode="r", storage_options=options)
            return
        import h5py
    except ImportError as error:
        raise ImportError(f"{file}: reading it needs h5py or zarr; `pip install 'tritoncrf[data]'`") from error
    with file.open("rb") as opened, h5py.File(opened, "r") as root:
        yield root

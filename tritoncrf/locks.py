"""Folders and files for one run at a time."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tritoncrf.files import FileError

if sys.platform != "win32":
    import fcntl

__all__ = ["locked"]

_held: set[int] = set()  # descriptors


@contextlib.contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Holds the lock of a folder or a file, to the end of this process at the latest; without one where a file system
    has none.

    Args:
        path: a folder, or a file that exists.
        shared: beside others that share it; otherwise alone.

    Raises:
        FileError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "folder" if path.is_dir() else "file"
            raise FileError(f"{path}: expected a {what} for this run alone, got one in use by another") from None
        except OSError:
            pass
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """A fork shares its parent's locks, and a loader's worker may outlive a run that is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

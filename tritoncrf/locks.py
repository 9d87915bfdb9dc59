"""Locks of folders and files, for one run at a time."""

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
    """Hold the lock of a folder or a file, at the latest until this process ends; no lock if the file system has none.

    Args:
        path: a folder, or a file that exists.
        shared: share the lock with others that do too; otherwise it is exclusive.

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
            raise FileError(f"{path}: expected a {what} for this run alone, got one in use by another run") from None
        except OSError:
            pass
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """Release inherited locks: a fork shares its parent's, and a loader's worker may outlive a killed run."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

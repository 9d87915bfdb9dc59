"""A folder for one run at a time."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tritoncrf.files import FileError

if sys.platform != "win32":
    import fcntl

_held: set[int] = set()  # descriptors


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, to the end of this process at the latest; without one where a file system has none.

    Raises:
        FileError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{folder}: expected a folder for this run alone, got one in use by another") from None
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

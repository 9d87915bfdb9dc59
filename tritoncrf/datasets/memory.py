"""The memory of a process that refines one image after another, where glibc manages it."""

import contextlib
import ctypes
import functools

__all__ = ["give_back", "keep_together"]

ARENA_MAX = -8  # mallopt's name of a setting


def keep_together() -> None:
    """Let all threads of this process take memory from one place, in which what one frees another finds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        _library().mallopt(ARENA_MAX, 1)


def give_back() -> None:
    """Hand freed memory back to the system: what the next stage of an image needs often does not fit its pieces. It
    takes some milliseconds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        _library().malloc_trim(0)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)

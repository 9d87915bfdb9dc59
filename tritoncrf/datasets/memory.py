"""The memory of a process that refines one image after another, where glibc manages it."""

import contextlib
import ctypes

__all__ = ["keep_together"]

ARENA_MAX = -8  # mallopt's name of a setting


def keep_together() -> None:
    """Let all threads of this process take memory from one place, in which what one frees another finds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)

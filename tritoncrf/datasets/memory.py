"""Settings of glibc's memory management for a process that refines many images."""

import contextlib
import ctypes

__all__ = ["keep_together"]

ARENA_MAX = -8  # a parameter of mallopt


def keep_together() -> None:
    """Let all threads of this process use one memory arena, so that each can reuse what another has freed."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)

"""Processes that start with this library loaded, and without the state of their parent.

If the system supports it, they are forked from Python's "forkserver", which has only imported everything, in parallel
with its parent. Otherwise each is spawned.
"""

import multiprocessing
import signal
import threading
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["begin", "context"]

LOADED = ["tritoncrf.datasets.file_stages"]


def context() -> Union["ForkServerContext", "SpawnContext"]:
    """The multiprocessing context that starts the processes."""
    if not _has_server():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(LOADED)
    return found


def begin() -> None:
    """Let the server import in its own process; it ignores Ctrl-C, which its parent handles."""
    if not _has_server():
        return
    from multiprocessing import forkserver

    context()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        forkserver.ensure_running()
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _has_server() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()

"""Processes that begin with this library loaded, and with none of the state of the one that starts them.

Where the system has it they are forked from a server that has imported everything and done nothing: Python's
"forkserver". It imports while the process that starts it goes on. Elsewhere each is spawned.
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
    """How processes are started."""
    if not _has_server():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(LOADED)
    return found


def begin() -> None:
    """Let the server import, which it does in a process of its own; Ctrl-C is for the one that starts it."""
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

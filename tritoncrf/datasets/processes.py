"""Processes that begin with this library loaded, and with none of the state of the one that starts them.

Where the system has it they are forked from a server that has imported everything and done nothing: Python's
"forkserver". It imports while the process that starts it goes on. Elsewhere each is spawned.
"""

import multiprocessing
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
    """Let the server import, which it does in a process of its own."""
    if _has_server():
        context()
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _has_server() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()

"""Processes that begin with this library loaded, and with none of the state of the one that starts them.

Where the system has it they are forked from a server that has imported everything and done nothing: Python's
"forkserver". It imports while the process that starts it goes on. Elsewhere each is spawned.
"""

import multiprocessing
from multiprocessing.context import BaseContext

__all__ = ["begin", "context"]

LOADED = ["tritoncrf.datasets.file_stages"]


def context() -> BaseContext:
    """How processes are started."""
    methods = multiprocessing.get_all_start_methods()
    found = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if found.get_start_method() == "forkserver":
        found.set_forkserver_preload(LOADED)
    return found


def begin() -> None:
    """Let the server import, which it does in a process of its own."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()

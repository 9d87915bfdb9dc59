"""Processes that work together, as torchrun starts them, without the process that torchrun itself is."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_ranks(command: Sequence[str | Path], environment: dict[str, str], count: int = 2) -> list[tuple[int, str]]:
    """The exit status of each rank and what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(count):
        own = {**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        ranks.append(subprocess.Popen(list(map(str, command)), env=own, text=True, **pipes))
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs)]

"""Stages that the processes of a cluster import: tests/datasets/test_cluster.py."""

import os
import signal
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Toy:
    """Doubles numbers; what an item says goes wrong does."""

    def read(self, item: Any, device: torch.device) -> Any:
        if item == "unreadable":
            raise ValueError("unreadable: expected a number")
        return item, str(device)

    def key(self, loaded: Any) -> Hashable:
        return None

    def refine(self, loaded: list[Any]) -> list[Any]:
        [(item, device)] = loaded
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return [(item * 2, device, torch.get_num_threads(), os.getpid())]

    def write(self, item: Any, refined: Any) -> Any:
        return refined

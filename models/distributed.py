"""The ranks of a run: one, or as many as torchrun started."""

import contextlib
import os
from dataclasses import dataclass

import torch
import torch.distributed


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of `x` over the ranks."""
        x = x.clone()
        if self.size > 1:
            torch.distributed.all_reduce(x)
        return x

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def world():
    """The world that torchrun's environment describes; one rank without it."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()

"""The ranks of a run: one, or those that torchrun started."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed


@dataclass(frozen=True)
class World:
    """This process among those that train a network together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of `x` over the ranks."""
        x = x.clone()
        if self.size > 1:
            torch.distributed.all_reduce(x)
        return x

    def first(self, action: Callable[[], object]) -> None:
        """Run `action` on the first rank before the others continue. If it fails, all ranks end, and one reports the
        error."""
        error = None
        if self.rank == 0:
            try:
                action()
            except Exception as found:
                error = found
        failed = self.total(torch.tensor(float(error is not None), device=self.device))
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """The world that torchrun's environment describes; one rank without it."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield World(device)
        return
    # One rank may take long to check a large data set while the others wait.
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=4))
    try:
        yield World(device, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()

"""Several processes that share an image: each has a band of it, and the values of vertices are summed over all.

They do if a process group of `torch.distributed` is initialised (as by `started` under torchrun). Sums have a fixed
order, so results are identical every time and in every process.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def together() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    return distributed.get_rank() if together() else 0


def size() -> int:
    return distributed.get_world_size() if together() else 1


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's share of a sequence, such as an image's tiles; neighbours stay together."""
    first, last = (n * len(items) // size() for n in (rank(), rank() + 1))
    return items[first:last]


def barrier() -> None:
    """Wait for the others."""
    everywhere(True)


def everywhere(one: bool) -> bool:
    """Whether it is true in all processes."""
    return bool(_reduced(torch.tensor([float(one)]), distributed.ReduceOp.MIN).item()) if together() else one


def least(x: torch.Tensor) -> torch.Tensor:
    """The elementwise minimum over all processes, on the CPU."""
    return _reduced(x, distributed.ReduceOp.MIN) if together() else x


def agreed(number: float) -> float:
    """The minimum of a number over all processes, so that all processes divide the work in the same way."""
    return least(torch.tensor(number, dtype=torch.float64)).item()


def summed(x: torch.Tensor) -> torch.Tensor:
    """The sum of a contiguous tensor over all processes, in place."""
    if together():
        distributed.all_reduce(x)
    return x


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """The tensors [n] of all processes, which may have different lengths, in the order of the processes."""
    if not together():
        return [x]
    counts = [int(n) for n in _reduced(_one_hot(len(x)), distributed.ReduceOp.SUM)]
    padded = x.new_zeros(max(counts))
    padded[: len(x)] = x
    carried = padded.to(_carrier())
    found = [torch.empty_like(carried) for _ in counts]
    distributed.all_gather(found, carried)
    return [other[:count].to(x.device) for other, count in zip(found, counts, strict=True)]


def _one_hot(value: int) -> torch.Tensor:
    """A vector with this process's value in its place, and 0 elsewhere."""
    found = torch.zeros(size(), dtype=torch.int64)
    found[rank()] = value
    return found


def _reduced(x: torch.Tensor, operation: "distributed.ReduceOp.RedOpType") -> torch.Tensor:
    carried = x.to(_carrier(), copy=True)
    distributed.all_reduce(carried, operation)
    return carried.cpu()


def _carrier() -> torch.device:
    """The device for tensors that the processes exchange."""
    cuda = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


@contextlib.contextmanager
def started(device: torch.device) -> Iterator[torch.device]:
    """Under torchrun, a block in which its processes share their work, with NCCL on GPUs and gloo elsewhere. Yields the
    device of this process, which is its own GPU of several; `device` for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()

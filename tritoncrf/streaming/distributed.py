"""Several processes that share an image: each has a band of it, and vertices add up over all of them.

Whether they do is decided by `torch.distributed`, where a process group is initialised (as `started` does under
torchrun). Sums are made in one order: the same bits every time, and in every process.
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
    """This process's own of a sequence, such as an image's tiles: what is side by side stays together."""
    first, last = (n * len(items) // size() for n in (rank(), rank() + 1))
    return items[first:last]


def barrier() -> None:
    """Wait for the others."""
    everywhere(True)


def everywhere(one: bool) -> bool:
    """Whether all processes say so."""
    return bool(_reduced(torch.tensor([float(one)]), distributed.ReduceOp.MIN).item()) if together() else one


def least(x: torch.Tensor) -> torch.Tensor:
    """The least of all processes' numbers, elementwise, on the CPU."""
    return _reduced(x, distributed.ReduceOp.MIN) if together() else x


def agreed(number: float) -> float:
    """The least of all processes' numbers: what is cut up by it is cut up alike everywhere."""
    return least(torch.tensor(number, dtype=torch.float64)).item()


def summed(x: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' contiguous tensors, in the memory of this one."""
    if together():
        distributed.all_reduce(x)
    return x


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """All processes' tensors [n], each of a length of its own, in the order of the processes."""
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
    """This process's value in its place, 0 in those of others."""
    found = torch.zeros(size(), dtype=torch.int64)
    found[rank()] = value
    return found


def _reduced(x: torch.Tensor, operation: "distributed.ReduceOp.RedOpType") -> torch.Tensor:
    carried = x.to(_carrier(), copy=True)
    distributed.all_reduce(carried, operation)
    return carried.cpu()


def _carrier() -> torch.device:
    """Where tensors must lie that the processes exchange."""
    cuda = "nccl" in distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


@contextlib.contextmanager
def started(device: torch.device) -> Iterator[torch.device]:
    """Under torchrun, a block in which its processes share their work: by NCCL on GPUs, by gloo elsewhere. Gives the
    device of this process, its own of several GPUs; `device` where there is one process."""
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

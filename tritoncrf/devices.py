"""Where things are computed."""

import torch

from tritoncrf import checks

__all__ = ["device_found", "expect_device"]


def device_found(device: torch.device | str | None = None) -> torch.device:
    """The device that is asked for; by default the GPU if this process can use one, else the CPU.

    In the forked workers of a pool the default works too: a fork cannot use CUDA again.

    Raises:
        TypeError, ValueError: no device, or one that is not here.
    """
    if device is not None:
        return expect_device(device)
    usable = torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
    return torch.device("cuda" if usable else "cpu")


def expect_device(device: torch.device | str) -> torch.device:
    """`device` as a torch.device if it is one that is here, else an error."""
    wanted = "device: expected a device of torch, such as 'cuda' or 'cpu'"
    if not isinstance(device, (torch.device, str)):
        raise TypeError(f"{wanted}, got {checks.shown(device)}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{wanted}, got {checks.shown(device)}") from None
    if found.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{wanted}, got {str(found)!r}, on which nothing here is tested")
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device: expected one that is here, got {str(found)!r} where there are {count} GPUs")
    return found

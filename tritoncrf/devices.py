"""The device to compute on."""

import torch

from tritoncrf import checks

__all__ = ["device_found", "expect_device"]


def device_found(device: torch.device | str | None = None) -> torch.device:
    """The requested device; by default the GPU if this process can use one, otherwise the CPU.

    The default also works in forked workers of a pool, which cannot use CUDA.

    Raises:
        TypeError, ValueError: not a device, or one that does not exist here.
    """
    if device is not None:
        return expect_device(device)
    usable = torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
    return torch.device("cuda" if usable else "cpu")


def expect_device(device: torch.device | str) -> torch.device:
    """`device` as a torch.device if it exists here, else an error."""
    wanted = "device: expected a device of torch, such as 'cuda' or 'cpu'"
    if not isinstance(device, (torch.device, str)):
        raise TypeError(f"{wanted}, got {checks.shown(device)}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{wanted}, got {checks.shown(device)}") from None
    if found.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{wanted}, got {str(found)!r}, on which this library is not tested")
    if found.type == "cuda" and (found.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device: expected one that exists, got {str(found)!r} with {count} GPUs")
    return found

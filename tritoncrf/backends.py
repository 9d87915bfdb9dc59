"""Which backend computes, and in which dtype: decided here and nowhere else."""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from tritoncrf import kernels, reference

TRITON_NEEDED = 3, 6
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read once, as triton does


def modules(backend: str) -> ModuleType:
    """The package that computes by a resolved backend: `kernels` or `reference`, with a module of one name for each
    filter."""
    return kernels if backend == "triton" else reference


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch" for tensors of this device and dtype; an error where "triton" cannot run."""
    if backend == "auto":
        wanted = device.type == "cuda" and dtype != torch.float64
        return "triton" if wanted and _triton_serves() else "torch"
    if backend == "triton":
        reason = _triton_refusal()
        if reason is not None:
            raise ValueError(f"backend: 'triton' needs Triton from 3.6 on, and {reason}; use 'auto'")
        if dtype == torch.float64:
            raise ValueError("backend: expected 'torch' or 'auto' for float64, got 'triton' (its kernels are float32)")
        if device.type == "cpu" and not INTERPRETED and launches_run():
            raise ValueError(
                "backend: 'triton' runs on a GPU, and on CPU tensors only under TRITON_INTERPRET=1; "
                "got CPU tensors without it; use 'auto'"
            )
    return backend


@functools.cache
def _triton_version() -> str | None:
    """None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    found: str = importlib.import_module("triton").__version__
    return found


def _triton_refusal() -> str | None:
    """Why the kernels cannot be compiled here; None where they can."""
    found = _triton_version()
    if found is None:
        return "it is not installed here"
    numbers = tuple(int(part) for part in found.split(".")[:2])
    return None if numbers >= TRITON_NEEDED else f"{found} is installed here"


@functools.cache
def _triton_serves() -> bool:
    """Whether "auto" takes Triton; one that is too old is announced once."""
    reason = _triton_refusal()
    if reason is not None and _triton_version() is not None:
        warnings.warn(f"tritoncrf computes in PyTorch: its kernels need Triton from 3.6 on, and {reason}", stacklevel=2)
    return reason is None


def launches_run() -> bool:
    """False where launches are only recorded, and leave what they should write unwritten."""
    common = sys.modules.get("tritoncrf.kernels.common")  # not imported: nobody records
    return common is None or bool(common.launches_run())


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else: half precision is stored, never accumulated in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def without_autocast(x: torch.Tensor) -> Iterator[None]:
    """Run a block in the dtypes of its tensors, whatever autocast says outside."""
    kind = x.device.type if x.device.type in ("cuda", "xpu", "mps") else "cpu"
    with torch.autocast("cpu", enabled=False), torch.autocast(kind, enabled=False):
        yield

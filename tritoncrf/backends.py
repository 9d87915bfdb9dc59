"""Choose the backend and the dtype of every computation. No other module does."""

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from tritoncrf import graph, kernels, reference

TRITON_NEEDED = 3, 6
LAUNCHERS_BUILT = 3, 6  # the last Triton that needs a C compiler for every new kernel, not only for its driver
CAPABILITY_NEEDED = 8, 0  # of NVIDIA GPUs; below it, tiles of `Exact` do not fit in shared memory
AMD_SERVED = ("gfx942",)  # the tests compile the kernels for it
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read once, as triton does


def modules(backend: str) -> ModuleType:
    """The package of a resolved backend: `kernels`, `reference` or `graph`, which have modules of the same names for
    each filter."""
    return {"triton": kernels, "torch": reference, "graph": graph}[backend]


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """ "triton" or "torch" for tensors of this device and dtype; raises an error if "triton" cannot run."""
    if backend == "auto":
        wanted = device.type == "cuda" and dtype != torch.float64
        return "triton" if wanted and _refusal(backend, device) is None else "torch"
    if backend == "triton":
        reason = _refusal(backend, device)
        if reason is not None:
            raise ValueError(f"backend: 'triton' {reason}; use 'auto'")
        if dtype == torch.float64:
            raise ValueError("backend: expected 'torch' or 'auto' for float64, got 'triton' (its kernels are float32)")
        if device.type == "cpu" and not INTERPRETED and launches_run():
            raise ValueError(
                "backend: 'triton' runs on a GPU, and on CPU tensors only under TRITON_INTERPRET=1; "
                "got CPU tensors without it; use 'auto'"
            )
    return backend


def written_out(backend: str, resolved: str) -> bool:
    """Whether an exporter needs standard operators instead of the library's: for "torch" by name, and always for ONNX,
    which has no others.

    The backend is then "graph". The tracer of `torch.export(..., strict=True)` supports less, and gets the library's
    operators.
    """
    if resolved != "torch" or not torch.compiler.is_exporting() or torch.compiler.is_dynamo_compiling():
        return False
    return backend == "torch" or to_onnx()


def to_onnx() -> bool:
    """Whether an export to ONNX is running."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


@functools.cache
def _triton_version() -> str | None:
    """The version of Triton, or None if it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    found: str = importlib.import_module("triton").__version__
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _triton_refusal() -> str | None:
    """Why the kernels cannot be compiled here, or None."""
    found = _triton_version()
    if found is None:
        return "needs Triton from 3.6 on, and it is not installed here"
    if _numbers(found) < TRITON_NEEDED:
        return f"needs Triton from 3.6 on, and {found} is installed here"
    return None


@functools.cache
def _driver_refusal() -> str | None:
    """Why Triton cannot launch on the GPUs here, or None.

    Triton compiles its driver from C on first use and caches it on disk. So this loads the driver itself, since a
    container without a compiler may have a compiled one.
    """
    try:
        importlib.import_module("triton.runtime").driver.active  # noqa: B018
    except Exception as error:  # from the compiler, the linker, the system or Triton
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return f"cannot start ({words if len(words) <= 200 else words[:200] + '...'})"
    compilers = os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")
    if _numbers(_triton_version() or "0.0") <= LAUNCHERS_BUILT and not any(compilers):
        return "cannot start (Triton 3.6 needs a C compiler for every kernel; newer ones need it once)"
    return None


@functools.cache
def _device_refusal(device: torch.device) -> str | None:
    """Why "auto" does not use this GPU, or None. Nothing here synchronises."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = properties.gcnArchName.split(":")[0]
        served, found = architecture in AMD_SERVED, architecture
    else:
        capability = properties.major, properties.minor
        served, found = capability >= CAPABILITY_NEEDED, f"compute capability {capability[0]}.{capability[1]}"
    if served:
        return None
    return f"is tested on NVIDIA GPUs from compute capability 8.0 on and AMD gfx942, and {properties.name} has {found}"


def _refusal(backend: str, device: torch.device) -> str | None:
    """Why Triton cannot serve tensors of this device, or None. "triton" by name tries any GPU; if "auto" does not use a
    GPU, it warns once, except if Triton is not installed."""
    reason = _triton_refusal()
    if backend == "auto":
        reason = reason or _device_refusal(device)
    if device.type == "cuda":
        reason = reason or _driver_refusal()
    if backend == "auto" and reason is not None and _triton_version() is not None:
        _announce(f"tritoncrf computes in PyTorch: its backend 'triton' {reason}")
    return reason


# Like torch.compiler.assume_constant_result, which would import the compiler: called while tracing, never traced.
_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _announce(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def launches_run() -> bool:
    """False if launches are only recorded, and their outputs are not written."""
    common = sys.modules.get("tritoncrf.kernels.common")  # if it is not imported, nothing is recorded
    return common is None or bool(common.launches_run())


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else: half precision is only for storage, never for accumulation."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def without_autocast(x: torch.Tensor) -> Iterator[None]:
    """Run a block in the dtypes of its tensors, ignoring autocast outside."""
    kind = x.device.type if x.device.type in ("cuda", "xpu", "mps") else "cpu"
    if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled(kind):
        yield  # an exported graph keeps the block as a subgraph
        return
    with torch.autocast("cpu", enabled=False), torch.autocast(kind, enabled=False):
        yield

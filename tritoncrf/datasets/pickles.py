"""Arrays that `np.save` has pickled, read without running anything that a file says."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, TypeVar

import numpy as np
import torch

from tritoncrf.files import Arrays, FileError, decoded

__all__ = ["read_npy", "unpickled"]

Content = TypeVar("Content")


def _numpy_core() -> Mapping[str, Any]:
    """NumPy's functions that a pickled array or number names, from its module's old name or its new one."""
    array, number = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    return {"_reconstruct": array, "scalar": number}


# What may be called: NumPy's, and the class of the hooks that a tensor is saved with, none.
KNOWN: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        **{
            (module, name): found
            for module in ("numpy.core.multiarray", "numpy._core.multiarray")
            for name, found in _numpy_core().items()
        },
    }
)


class _Unpickler(pickle.Unpickler):
    """Of arrays and tensors: nothing but what is named here is found, whatever the file asks for. Its own methods stand
    for torch's functions, so that a file cannot change those."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._storage
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"of NumPy's arrays and torch's tensors nothing is called {module}.{name}")
        return KNOWN[module, name]

    def _storage(self, content: bytes) -> Any:
        """A storage, which torch saves within the pickle as a file of its own, again a pickle."""
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _tensor(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
        """The values of a tensor; whether it needs a gradient, and its hooks, play no part."""
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def unpickled(file: IO[bytes]) -> Any:
    """What is pickled in a file: arrays, numbers, text, and lists and dictionaries of such; tensors as arrays.

    Raises:
        pickle.UnpicklingError: anything else; nothing of it has run.
    """
    return _Unpickler(file).load()


def read_npy(path: Path, choose: Callable[[Arrays], Content], allow_pickle: bool = False) -> Content:
    """What `choose` takes from an .npy of numbers, or, if allowed, of an object that is pickled in it."""

    def read(path: Path) -> Content:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in headers or not headers[version](file)[2].hasobject:
                file.seek(0)
                return choose(np.load(file, allow_pickle=False))
            if not allow_pickle:
                raise FileError(
                    f"{path}: expected numbers, got a pickled object; --allow-pickle takes NumPy's and torch's arrays "
                    "out of it, and runs nothing"
                )
            array = unpickled(file)
            return choose(_named(path, array.item() if isinstance(array, np.ndarray) and not array.ndim else array))

    return decoded(path, "an array", read)


def _named(path: Path, content: object) -> Arrays:
    """An array, or a dictionary of arrays."""
    if isinstance(content, dict):
        return {str(key.item() if isinstance(key, np.generic) else key): np.asarray(x) for key, x in content.items()}
    if isinstance(content, np.ndarray) and not content.dtype.hasobject:
        return content
    raise FileError(f"{path}: expected an array or a dictionary of arrays, got a pickled {type(content).__name__}")

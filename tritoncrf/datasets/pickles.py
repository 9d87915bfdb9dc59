"""Read arrays that `np.save` pickled, without running any code from the file."""

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
    """NumPy's functions that a pickled array or number uses, from the module's old or new name."""
    array, number = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    return {"_reconstruct": array, "scalar": number}


# What may be called: NumPy's functions, and the class of a tensor's hooks, which are empty.
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
    """An unpickler of arrays and tensors that finds only the names in this module. Its own methods replace torch's
    functions, so that a file cannot change those."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._storage
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"NumPy's arrays and torch's tensors do not use {module}.{name}")
        return KNOWN[module, name]

    def _storage(self, content: bytes) -> Any:
        """A storage, which torch saves inside the pickle as another pickle."""
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _tensor(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
        """The values of a tensor; its requires_grad and hooks are ignored."""
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def unpickled(file: IO[bytes]) -> Any:
    """The content of a pickle: arrays, numbers, text, and lists and dictionaries of these; tensors become arrays.

    Raises:
        pickle.UnpicklingError: the content is anything else; none of it has been run.
    """
    return _Unpickler(file).load()


def read_npy(path: Path, choose: Callable[[Arrays], Content], allow_pickle: bool = False) -> Content:
    """What `choose` selects from an .npy of numbers, or, if allowed, of a pickled object."""

    def read(path: Path) -> Content:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in headers or not headers[version](file)[2].hasobject:
                file.seek(0)
                return choose(np.load(file, allow_pickle=False))
            if not allow_pickle:
                raise FileError(
                    f"{path}: expected numbers, got a pickled object; --allow-pickle reads NumPy's and torch's arrays "
                    "from it without running code"
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

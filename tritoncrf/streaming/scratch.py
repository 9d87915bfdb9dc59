"""The folder for the state of a run with several passes; its files are complete or absent."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


class Folder:
    """Named lists of tensors, each in one file of concatenated arrays, written under a temporary name and renamed when
    complete.

    Files are read and written as streams, never mapped. Without a path nothing is stored, and nothing is ever found.

    Args:
        path: the path of the folder, created if needed; None for no folder.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        return self.path is not None and self._file(name).exists()

    def save(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Store tensors under a name.

        Raises:
            OSError: the file cannot be written, and is then absent.
        """
        if self.path is None:
            return
        file = self._file(name)
        part = file.with_suffix(".part")
        try:
            with open(part, "wb") as stream:
                for tensor in tensors:
                    np.save(stream, tensor.cpu().numpy())
            part.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise OSError(f"{file}: cannot be written ({error.strerror or error})") from error

    def load(self, name: str, device: torch.device) -> list[torch.Tensor]:
        """The stored tensors."""
        found = []
        with open(self._file(name), "rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(0)
            while stream.tell() < end:
                found.append(torch.from_numpy(np.load(stream)).to(device))
        return found

    def remove(self, name: str) -> None:
        """Remove the file of a name, if it exists."""
        if self.path is not None:
            self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        assert self.path is not None
        return self.path / f"{name}.npys"

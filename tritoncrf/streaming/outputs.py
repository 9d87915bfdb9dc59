"""The outputs of a run: probabilities and labels, written block by block into arrays or .npy files, which are complete
or absent.

A file is written under a temporary name and renamed when all blocks are written. Meanwhile a journal records the run
and its finished blocks, so that the same run resumes where it was killed; another run starts anew.
"""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.files import FileError, errors_name
from tritoncrf.locks import locked
from tritoncrf.options import BINARY
from tritoncrf.streaming import distributed
from tritoncrf.streaming.sources import Npy, Window, kind_of_dtype, path_of, same_memory, write

__all__ = ["REFUSED", "Form", "Results", "digest", "expect_outputs", "form_of", "opened", "state_beside"]

SHOWN = 50  # characters of a file's name in the name of its temporary file: at most 200 bytes of the 255 in a name
REFUSED = (TypeError, ValueError)  # errors about the input, which a resumed run would raise again


@dataclass(frozen=True)
class Form:
    """The form of the probabilities of an image.

    Attributes:
        size: of the image, S.
        classes: C; None for one object, [*S].
        dtype: the dtype of a new array.
    """

    size: tuple[int, ...]
    classes: int | None
    dtype: np.dtype

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of "out" or "out_labels"."""
        return self.size if self.classes is None or name == "out_labels" else (self.classes, *self.size)

    def dtype_of(self, name: str) -> np.dtype:
        """The dtype of a new "out"; for "out_labels" the smallest that can hold them."""
        return self.dtype if name == "out" else np.min_scalar_type(self.most_label)

    @property
    def most_label(self) -> int:
        return 1 if self.classes is None else self.classes - 1


def form_of(name: str, size: Sequence[int], classes: int, dtype: Any) -> Form:
    """The form of the result for scores of a kind with a dtype of NumPy or torch."""
    text = str(dtype).removeprefix("torch.")
    keeps = name not in (*BINARY, "labels") and text != "bfloat16"
    return Form(tuple(size), None if name in BINARY else classes, np.dtype(text if keeps else "float32"))


@dataclass
class Results:
    """Outputs to which blocks are written.

    Attributes:
        probabilities, labels: arrays, or None if not requested.
        done: the finished blocks.
        journal: the record of finished blocks, if all outputs are files.
    """

    probabilities: Any
    labels: Any
    done: set[int] = field(default_factory=set)
    journal: "_Journal | None" = None

    def write(self, block: int, window: Window, probabilities: np.ndarray) -> None:
        """Write a block, and record it in the journal.

        Args:
            block: its number.
            window: its pixels.
            probabilities: [C, *S] of the window, or [*S] for one object.
        """
        one = probabilities.ndim == len(window)
        if self.probabilities is not None:
            everything = window if one else (slice(0, len(probabilities)), *window)
            write(self.probabilities, everything, probabilities)
        if self.labels is not None:
            write(self.labels, window, probabilities > 0.5 if one else probabilities.argmax(0))
        if self.journal is not None:
            for array in self.probabilities, self.labels:
                if array is not None:
                    array.flush()
            self.journal.note(block)
        self.done.add(block)


def digest(*described: Any) -> str:
    """A digest that identifies a run."""
    text = json.dumps(described, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return [str(value.dtype), value.tolist()]
    return dict(value) if isinstance(value, Mapping) else str(value)


@contextlib.contextmanager
def opened(
    out: Any, out_labels: Any, form: Form, inputs: Mapping[str, Any], run: str, scratch: Path | None
) -> Iterator[Results]:
    """The outputs of a run, to be written block by block; files are renamed at the end. Several processes that share
    the run write to the same files, and each has its own journal.

    If the `with` block fails, files are removed; but if all outputs are files, they and the journal are kept after
    errors that may not recur, such as a full disk or an interrupt.

    Args:
        out: an array to write the probabilities to, the path of an .npy, or None.
        out_labels: the same for the most probable classes.
        form: the form of the result.
        inputs: the sources, by argument.
        run: the `digest` of the run.
        scratch: the folder of the journal; beside the first file if None.

    Raises:
        TypeError, ValueError: an output cannot hold the result, or is an input.
        FileError: another process writes the same file.
        OSError: a file cannot be written; the message names it.
    """
    wanted = expect_outputs(out, out_labels, form, inputs)
    places = {name: _place(target) for name, target in wanted.items() if _is_path(target)}
    place = None if scratch is None else os.path.realpath(scratch)
    run = digest(run, {name: str(path) for name, path in places.items()}, place, distributed.size())
    temporaries = {name: _beside(path, f".{run[:8]}.part") for name, path in places.items()}
    journal, done, keep = None, set[int](), False
    with contextlib.ExitStack() as stack:
        if places and len(places) == len(wanted):
            own = f".{distributed.rank()}" if distributed.together() else ""
            first = next(iter(places.values()))
            path = _beside(first, f"{own}.journal")
            path, named = (path, first) if scratch is None else (scratch / path.name,) * 2
            journal = stack.enter_context(_journal(path, named, run, list(temporaries.values())))
            done = journal.done
        try:
            if distributed.everywhere(not done) and distributed.rank() == 0:
                for name, temporary in temporaries.items():
                    with errors_name(places[name], temporary):
                        for other in _parts(places[name]):  # of other runs, whose journals are then invalid
                            other.unlink(missing_ok=True)
                        Npy.create(temporary, form.shape_of(name), form.dtype_of(name))
            distributed.barrier()
            for name, temporary in temporaries.items():
                with errors_name(places[name], temporary):
                    wanted[name] = Npy(temporary)
            results = Results(wanted.get("out"), wanted.get("out_labels"), done, journal)
            try:
                yield results
                for name in temporaries:
                    wanted[name].flush()
            except BaseException as error:
                keep = journal is not None and bool(results.done) and not isinstance(error, REFUSED)
                if isinstance(error, OSError):
                    _rename(error, {str(temporaries[name]): places[name] for name in places})
                raise
            distributed.barrier()
            if distributed.rank() == 0:
                for name, temporary in temporaries.items():
                    os.replace(temporary, places[name])
            distributed.barrier()
        finally:
            if not keep:
                for path in [*temporaries.values(), *([] if journal is None else [journal.path])]:
                    path.unlink(missing_ok=True)


def expect_outputs(out: Any, out_labels: Any, form: Form, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The requested outputs by name; an error if one cannot hold the result, or is an input."""
    wanted = {"out": out, "out_labels": out_labels}
    wanted = {name: target for name, target in wanted.items() if target is not None}
    for name, target in wanted.items():
        _expect_output(name, target, form, inputs)
    if len(wanted) == 2 and same_memory(out, out_labels):
        raise ValueError("out_labels: expected memory or a file different from out, got the same")
    return wanted


def _rename(error: OSError, names: Mapping[str, Path]) -> None:
    """Raise an error about a temporary file as one about its final name."""
    if error.filename in names:
        raise OSError(error.errno, error.strerror, str(names[error.filename])) from error


def _is_path(target: Any) -> bool:
    return isinstance(target, (str, os.PathLike))


def _place(target: str | os.PathLike[str]) -> Path:
    """The target of a path through all symbolic links."""
    return Path(os.path.realpath(target))


def _beside(path: Path, ending: str) -> Path:
    """The path of a hidden file beside `path` with a unique name."""
    own = hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()
    return path.with_name(f".{path.name[:SHOWN]}.{own}{ending}")


def _parts(path: Path) -> list[Path]:
    """The temporary files that runs of any kind left for `path`."""
    return [*path.parent.glob(f"{glob.escape(_beside(path, '.').name)}*.part")]


def state_beside(target: str | os.PathLike[str]) -> Path:
    """The folder for the state from which a run resumes, beside a file that it writes."""
    return _beside(_place(target), ".state")


def _expect_output(name: str, target: Any, form: Form, inputs: Mapping[str, Any]) -> None:
    """Raise an error unless `target` can hold the result and is not an input."""
    if isinstance(target, torch.Tensor):
        checks.expect_values(name, target)
    for source, value in inputs.items():
        if value is not None and same_memory(target, value):
            path = path_of(target)
            where = "" if path is None else f", {path}"
            raise ValueError(f"{name}: expected memory or a file different from {source}, got the same{where}")
    if _is_path(target):
        place = _place(target)
        if place.suffix != ".npy":
            raise ValueError(f"{name}: expected an array, or a path that ends in .npy, got {checks.shown(target)}")
        if not place.parent.is_dir() or place.is_dir():
            wanted = "a file" if place.is_dir() else "a folder that exists"
            raise FileError(f"{place if place.is_dir() else place.parent}: expected {wanted}, for {name}")
        return
    if not all(hasattr(target, attribute) for attribute in ("shape", "dtype", "__setitem__")):
        raise TypeError(f"{name}: expected an array, or the path of an .npy, got {checks.kind_of(target)}")
    if isinstance(target, np.ndarray) and not target.flags.writeable:
        raise ValueError(f"{name}: expected an array that can be written to, got one that is read-only")
    if tuple(target.shape) != form.shape_of(name):
        raise ValueError(f"{name}: expected shape {list(form.shape_of(name))}, got {list(target.shape)}")
    kind, most = kind_of_dtype(target.dtype), form.most_label
    integers = kind in "iu" and most <= np.iinfo(np.dtype(str(target.dtype).removeprefix("torch."))).max
    if not (kind == "f" if name == "out" else integers):
        kind = "floats" if name == "out" else f"integers up to {most}"
        raise TypeError(f"{name}: expected {kind}, got dtype {target.dtype}")


class _Journal:
    """A file that records a run and its finished blocks.

    Attributes:
        done: the blocks that the same run finished before; none if the journal belongs to another run, or a file of
            results is missing.
    """

    def __init__(self, path: Path, run: str, files: Sequence[Path]) -> None:
        self.path = path
        with errors_name(path):
            self.file = open(path, "r+b", buffering=0)  # noqa: SIM115
            first, *lines = self.file.read().split(b"\n")
            same = first == run.encode() and all(f.exists() for f in files)
            self.done = {int(line) for line in lines[:-1]} if same else set()  # the last may be incomplete
            self.file.seek(sum(len(line) + 1 for line in [first, *lines[:-1]]) if same and lines else 0)
            self.file.truncate()
        if not (same and lines):
            self.note(run)

    def note(self, line: object) -> None:
        """Add a line, and wait until it is on disk."""
        with errors_name(self.path):
            self.file.write(f"{line}\n".encode())
            os.fsync(self.file.fileno())


@contextlib.contextmanager
def _journal(path: Path, named: Path, run: str, files: Sequence[Path]) -> Iterator[_Journal]:
    """The journal of a run, locked against other processes; an OSError about `named` if it cannot be created."""
    with errors_name(named, path):
        path.touch()
    with locked(path):
        journal = _Journal(path, run, files)
        with journal.file:
            yield journal

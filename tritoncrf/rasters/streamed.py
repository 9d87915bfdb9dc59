"""The result block by block, in a file that another kind of file is then made of."""

import argparse
import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

import tritoncrf
from tritoncrf.commands import CommandError
from tritoncrf.rasters.inputs import Inputs
from tritoncrf.rasters.results import Refined
from tritoncrf.rasters.windows import Source
from tritoncrf.refine import refine
from tritoncrf.streaming import distributed
from tritoncrf.streaming.budget import expect_bytes, in_words
from tritoncrf.streaming.outputs import digest
from tritoncrf.streaming.sources import Npy, identity

__all__ = ["array", "forget", "refined"]

FURTHER = 160_000_000  # bytes that the command takes beside `refine`: GDAL's blocks, what is written, libraries


def array(path: Path) -> Source:
    """An .npy that is read by windows."""
    if path.suffix.lower() != ".npy":
        raise CommandError(f"--max-memory: expected .npy, which can be read by windows, got {path}")
    return Npy(path)


def refined(
    options: argparse.Namespace, kind: str, inputs: Inputs, settings: Mapping[str, Any], device: torch.device,
    out: Path, save: str,
) -> Refined | None:  # fmt: skip
    """What `refine` gives of an image that it goes through by windows; None in all but the first of several processes,
    which torchrun has started and each of which does its share.

    It stays in a file beside `out` until that is written: what stops this process, or fills the disk, leaves all blocks
    that were finished, and the same command goes on with them.
    """
    direct = out.suffix.lower() == ".npy"
    work, ready = (out, out) if direct else _places(options, out, save)
    sources = [inputs.image, inputs.features, inputs.scores, inputs.valid]
    known = [None if source is None else identity(source) for source in sources]
    run = digest(tritoncrf.__version__, kind, dict(settings), known, str(device))
    with distributed.started(device) as own:
        if direct or not distributed.everywhere(_is_ready(work, ready, run)):
            arguments: dict[str, Any] = {
                **settings, kind: inputs.scores, "features": inputs.features, "valid": inputs.valid,
                "out_labels" if save == "labels" else "out": work,
            }  # fmt: skip
            with _as_a_whole(options.max_memory, own) as budget:
                cast(Any, refine)(inputs.image, **arguments, device=own, max_memory=budget, scratch=options.scratch)
        if distributed.rank() > 0:
            return None
    if not direct:
        ready.write_text(run)
    found = Npy(work)
    return Refined(found, None) if save == "labels" else Refined(None, found)


def forget(options: argparse.Namespace, out: Path, save: str) -> None:
    """Removes what `refined` has left, once it is written."""
    for path in _places(options, out, save):
        path.unlink(missing_ok=True)


def _places(options: argparse.Namespace, out: Path, save: str) -> tuple[Path, Path]:
    """The file that the result stays in, and one that says of which run it is when it is whole."""
    work = (options.scratch or out.parent) / f".{out.name}.{save}.npy"
    return work, work.with_name(f"{work.name}.whole")


def _is_ready(work: Path, ready: Path, run: str) -> bool:
    """Whether an earlier command has come so far, and was stopped while it wrote."""
    return work.is_file() and ready.is_file() and ready.read_text() == run


@contextlib.contextmanager
def _as_a_whole(asked: str, device: torch.device) -> Iterator[int]:
    """What is left of a budget for `refine`: on a CPU it is the whole process's."""
    budget = expect_bytes("max_memory", asked)
    if device.type != "cpu":
        yield budget
        return
    taken = _resident() + FURTHER
    if budget <= taken:
        raise CommandError(f"--max-memory: expected more than {in_words(taken)}, which the process takes, got {asked}")
    try:
        yield budget - taken
    except ValueError as error:
        if not str(error).startswith("max_memory:"):
            raise
        less = f"{in_words(budget - taken)} are {asked} less what the process takes by itself, {in_words(taken)}"
        raise ValueError(f"{error}; {less}") from error


def _resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return 0 if found is None else 1024 * int(found[1])

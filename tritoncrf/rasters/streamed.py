"""Compute the result block by block in a file, which is then converted to another format."""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

import tritoncrf
from tritoncrf.commands import CommandError
from tritoncrf.files import write
from tritoncrf.rasters.inputs import Inputs
from tritoncrf.rasters.results import Refined
from tritoncrf.rasters.windows import Source
from tritoncrf.refine import refine
from tritoncrf.streaming import distributed
from tritoncrf.streaming.budget import BudgetError, expect_bytes
from tritoncrf.streaming.outputs import digest
from tritoncrf.streaming.sources import Npy, identity

__all__ = ["array", "forget", "refined"]

FURTHER = 160_000_000  # bytes for the command beside `refine`: GDAL's blocks, output buffers, libraries


def array(path: Path) -> Source:
    """An .npy that is read in windows."""
    if path.suffix.lower() != ".npy":
        raise CommandError(f"--max-memory: expected .npy, which can be read in windows, got {path}")
    return Npy(path)


def refined(
    options: argparse.Namespace, kind: str, inputs: Inputs, settings: Mapping[str, Any], device: torch.device,
    out: Path, save: str,
) -> Refined | None:  # fmt: skip
    """The result of `refine` for an image that is processed in windows. If torchrun started several processes, each
    does its share, and all but the first return None.

    The result stays in a file beside `out` until that is written. If the process stops or the disk is full, finished
    blocks are kept, and the same command continues with them.
    """
    direct = out.suffix.lower() == ".npy"
    work, state = _places(options, out, save)
    work = out if direct else work
    sources = {"image": inputs.image, "features": inputs.features, kind: inputs.scores, "valid": inputs.valid}
    known = [None if source is None else identity(name, source) for name, source in sources.items()]
    run = digest(tritoncrf.__version__, kind, dict(settings), known, str(device), options.max_memory)
    earlier = _earlier(state, run)
    with distributed.started(device) as own:
        whole = not direct and work.is_file() and earlier.get("whole", False)
        if not distributed.everywhere(whole):
            arguments: dict[str, Any] = {
                **settings, kind: inputs.scores, "features": inputs.features, "valid": inputs.valid,
                "out_labels" if save == "labels" else "out": work,
            }  # fmt: skip
            with _as_a_whole(options.max_memory, own, earlier.get("budget")) as budget:
                if distributed.rank() == 0:
                    write(state, json.dumps({"run": run, "budget": budget}).encode())
                try:
                    cast(Any, refine)(inputs.seen, **arguments, device=own, max_memory=budget, scratch=options.scratch)
                except (TypeError, ValueError):  # bad input, so there is nothing to resume
                    state.unlink(missing_ok=True)
                    raise
                except KeyboardInterrupt:
                    if distributed.rank() == 0:
                        print("tritoncrf: interrupted; run the same command to resume", file=sys.stderr)
                    raise
        if distributed.rank() > 0:
            return None
    write(state, json.dumps({"run": run, "whole": True}).encode())
    found = Npy(work)
    return Refined(found, None) if save == "labels" else Refined(None, found)


def forget(options: argparse.Namespace, out: Path, save: str) -> None:
    """Remove the temporary files of `refined` after the output is written."""
    for path in _places(options, out, save):
        path.unlink(missing_ok=True)


def _places(options: argparse.Namespace, out: Path, save: str) -> tuple[Path, Path]:
    """The temporary file of the result, and the file that identifies its run."""
    folder, name = options.scratch or out.parent, f".{out.name}.{save}"
    return folder / f"{name}.npy", folder / f"{name}.json"


def _earlier(state: Path, run: str) -> dict[str, Any]:
    """The record of an earlier command of the same run: its budget, on which the blocks depend, and whether its result
    is complete."""
    try:
        found: dict[str, Any] = json.loads(state.read_text())
    except (OSError, ValueError):
        return {}
    return found if found.get("run") == run else {}


@contextlib.contextmanager
def _as_a_whole(asked: str, device: torch.device, earlier: int | None) -> Iterator[int]:
    """The rest of a budget for `refine`; on a CPU, the budget is for the whole process. The rest of an earlier command
    of the same run is used again, because another process is a little larger or smaller."""
    budget = expect_bytes("max_memory", asked)
    if device.type != "cpu":
        yield budget
        return
    taken = _resident() + FURTHER
    try:
        yield earlier or max(1, budget - taken)
    except BudgetError as error:
        raise error.beside(taken, budget) from error


def _resident() -> int:
    """The resident memory of this process in bytes; 0 if the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return 0 if found is None else 1024 * int(found[1])

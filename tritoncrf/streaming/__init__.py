"""Refine images within a budget of memory."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tritoncrf import checks
from tritoncrf.files import errors_name
from tritoncrf.locks import locked
from tritoncrf.options import BINARY
from tritoncrf.problem import Whole, posed, solved
from tritoncrf.streaming import distributed, lattice, local
from tritoncrf.streaming.budget import expect_bytes
from tritoncrf.streaming.inputs import Inputs, inputs_of
from tritoncrf.streaming.outputs import REFUSED, digest, expect_outputs, form_of, opened, state_beside
from tritoncrf.streaming.scratch import Folder
from tritoncrf.streaming.sources import Window, identity

__all__ = ["streamed"]


def streamed(
    image: Any, scores: Mapping[str, Any], device: Any, given: Mapping[str, Any], out: Any = None,
    out_labels: Any = None, max_memory: int | str | None = None, scratch: Any = None,
) -> Any:  # fmt: skip
    """The result of `refine` with outputs or a budget.

    Args:
        image, scores, device, given: see `posed`.
        out, out_labels, max_memory, scratch: see `refine`.

    Returns:
        The given outputs, or the result.

    Raises:
        TypeError, ValueError, OSError: as `refine`.
    """
    if scratch is not None and not isinstance(scratch, (str, os.PathLike)):
        raise TypeError(f"scratch: expected the path of a folder, got {checks.kind_of(scratch)}")
    folder = None if scratch is None else Path(scratch)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"scratch: expected a folder, got a file, {folder}")
    if max_memory is None:
        if folder is not None:
            raise ValueError(f"scratch: expected none without max_memory=, got {folder}")
        _at_once(image, scores, device, given, out, out_labels)
        return _given(out, out_labels)
    budget = int(distributed.agreed(expect_bytes("max_memory", max_memory)))
    if out is None and out_labels is None and distributed.together():
        raise ValueError(
            "out: expected a file or an array with several processes, each of which writes a band, got none"
        )
    inputs = inputs_of(image, scores, device, given)
    if inputs.method == "exact":
        raise ValueError(
            "method: expected 'lattice', 'window' or 'guided' with max_memory=, got 'exact', in which each pixel needs "
            "all others"
        )
    inputs, whole = inputs.surveyed(budget)
    result = inputs.empty() if out is None and out_labels is None else None
    taken = result.nbytes if result is not None and _place(result) == inputs.device.type else 0
    _run(inputs, whole, budget, out if result is None else result, out_labels, folder, taken)
    return _given(out, out_labels) if result is None else result


def _place(array: Any) -> str:
    """The type of the device of an array."""
    return array.device.type if isinstance(array, torch.Tensor) else "cpu"


def _given(out: Any, out_labels: Any) -> Any:
    found = [output for output in (out, out_labels) if output is not None]
    return found[0] if len(found) == 1 else tuple(found)


def _at_once(
    image: Any, scores: Mapping[str, Any], device: Any, given: Mapping[str, Any], out: Any, out_labels: Any
) -> None:
    """Refine an image in memory, and write the result to the outputs."""
    problem = posed(image, scores, device, given)
    name, size, value = problem.whole.name, problem.whole.size, scores[problem.whole.name]
    form = form_of(name, size, len(problem.unary), getattr(value, "dtype", None))
    inputs = {name: value, "image": image, "features": given.get("features"), "valid": given.get("valid")}
    with opened(out, out_labels, form, inputs, "", None) as results:
        results.write(0, tuple(slice(0, n) for n in size), _numbers(solved([problem])[0], name))


def _numbers(q: torch.Tensor, name: str) -> np.ndarray:
    """Q [C, *S] as an array for scores of this kind; for one object the foreground's [*S]."""
    return (q[1].float() if name in BINARY else q).cpu().numpy()


def _run(
    inputs: Inputs, whole: Whole, budget: int, out: Any, out_labels: Any, scratch: Path | None, taken: int
) -> None:
    """Process all blocks of an image and write them to the outputs."""
    outputs = list(expect_outputs(out, out_labels, inputs.form, inputs.named()).values())
    planner = lattice.planned if whole.method == "lattice" else local.planned
    plan = planner(whole, partial(inputs.part, whole), budget, taken)
    files = all(isinstance(target, (str, os.PathLike)) for target in outputs)
    run = ""
    if files or scratch is not None:
        sources = {name: identity(name, source) for name, source in inputs.named().items()}
        run = digest(whole.method, whole.name, whole.chosen, whole.size, whole.levels, plan.tiles, sources)
    with contextlib.ExitStack() as stack:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        if isinstance(plan, lattice.Plan):
            beside = state_beside(outputs[0]) if files else None
            place = beside if scratch is None else scratch / (beside.name if beside else "state")
            folder = stack.enter_context(_state(place, run, outputs[0] if scratch is None else place))
        results = stack.enter_context(opened(out, out_labels, inputs.form, inputs.named(), run, scratch))
        advance = stack.enter_context(_progress(plan.steps))

        def write(n: int, window: Window, q: torch.Tensor) -> None:
            results.write(n, window, _numbers(q, whole.name))

        if isinstance(plan, lattice.Plan):
            plan.run(results.done, write, folder, scratch is not None, advance)
        else:
            plan.run(results.done, write, advance)


@contextlib.contextmanager
def _state(path: Path | None, run: str, named: Any) -> Iterator[Folder]:
    """The folder with the state of a run's passes, for all processes, which is kept if they fail; the state of another
    run is removed. Raises a FileError if another process uses it, and an OSError about `named` if it cannot be
    created."""
    if path is None:
        yield Folder(None)
        return
    own, keep = path / run, False
    with errors_name(named, path):
        path.mkdir(exist_ok=True)
    with locked(path, shared=distributed.together()):
        for other in path.iterdir() if distributed.rank() == 0 else []:
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        distributed.barrier()
        try:
            yield Folder(own)
            distributed.barrier()
        except BaseException as error:
            keep = not isinstance(error, REFUSED) and own.is_dir() and any(own.iterdir())
            raise
        finally:
            if not keep:
                shutil.rmtree(own, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.rmdir()


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal, shown after two seconds; call the result after each step of a pass."""
    bar = tqdm(total=steps, unit="block", delay=2, leave=False, disable=None)

    def advance(name: str) -> None:
        bar.set_description(name, refresh=False)
        bar.update()

    with bar:
        yield advance

"""`tritoncrf refine` for a data set: many images, with outputs in a folder from which a later run resumes."""

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import tritoncrf
from tritoncrf.actions import settings_of, source_of
from tritoncrf.commands import CommandError, make_folder
from tritoncrf.datasets import workers
from tritoncrf.datasets.entries import Entry, matched
from tritoncrf.datasets.file_stages import FileStages, Task
from tritoncrf.datasets.manifest import digest, in_shard, opened
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.datasets.run import Run, listed
from tritoncrf.datasets.score_files import Reading
from tritoncrf.datasets.stages import Outcome
from tritoncrf.datasets.stored import Stored
from tritoncrf.devices import device_found
from tritoncrf.files import FileError, is_local, temporaries
from tritoncrf.options import SCORES, UNKNOWN
from tritoncrf.problem import chosen_for
from tritoncrf.refine import refine

__all__ = ["refine_set"]

SUFFIX = len(".0123456789abcdef.part")  # of the temporary files of `files.replacing`
TRIED = 16  # pixels a side, and classes, of the image on which the arguments of refine are tried


def refine_set(options: argparse.Namespace) -> int:
    """`tritoncrf refine` for a data set; returns 1 if an image failed."""
    if options.out is None:
        raise CommandError("--out: expected the folder of the outputs, got none")
    _expect_places(options)
    if options.engine:
        _anchor(options)
    kind, source = source_of(options)
    reading = _chosen(Reading, options, kind=kind)
    given = settings_of(options)
    # Each image with class activation maps has only a few of the data set's classes.
    arguments = {name: value for name, value in given.items() if name != "num_classes" or not reading.cams}
    _try(kind, arguments)
    entries, alone = matched(
        options.images, kind, source, images_dir=options.images_dir, truth=options.ground_truth,
        recursive=options.recursive, skip_missing=options.skip_missing,
    )  # fmt: skip
    if alone:
        print(f"tritoncrf: warning: left out {_some(alone)}, without scores or image", file=sys.stderr)
    if options.shard is not None:
        entries = [entry for entry in entries if in_shard(entry.name, options.shard)]
    outputs = _chosen(Outputs, options, folder=options.out)
    decisive = _decisive(kind, arguments, reading, outputs)
    stages = FileStages(reading, outputs, arguments, digest(decisive), given.get("num_classes"))
    _prepare(outputs, stages.settings, entries, options.recursive)
    with opened(outputs.folder, decisive, options.shard) as manifest:
        _sweep(outputs, entries, alone=options.shard is None)
        run = Run(stages, manifest, entries, options.retry_failed, counting=options.ground_truth is not None)
        try:
            with _outcomes(stages, run.tasks, options) as outcomes:
                run.go(outcomes)
        except KeyboardInterrupt:
            print(f"tritoncrf: interrupted, {run.progress()}; run the same command to resume", file=sys.stderr)
            return 130
    gc.freeze()  # avoids a last garbage collection over all libraries: a third of a second
    return run.conclude()


def _anchor(options: argparse.Namespace) -> None:
    """Make local paths absolute, since the processes of a cluster have other working folders."""
    options.images = [text if "://" in text else os.path.abspath(text) for text in options.images]
    for name in ("out", "images_dir", "ground_truth", *SCORES):
        path = getattr(options, name)
        if path is not None and is_local(path):
            setattr(options, name, path.absolute())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _chosen(record: type[Any], options: argparse.Namespace, /, **others: Any) -> Any:
    """An instance of a dataclass with the given options as the fields of the same names."""
    names = [field.name for field in dataclasses.fields(record) if field.name not in others]
    return record(**others, **{name: value for name in names if (value := getattr(options, name)) is not None})


def _try(kind: str, arguments: Mapping[str, Any]) -> None:
    """Call `refine` on a tiny image, to find errors in its arguments that every image would raise."""
    costs = arguments.get("compatibility", "potts")
    classes = arguments.get("num_classes") or (TRIED if isinstance(costs, str) else len(costs))
    size = TRIED, TRIED
    scores: np.ndarray
    if kind == "labels":
        scores = np.arange(TRIED * TRIED).reshape(size) % classes
    elif kind in ("mask", "foreground"):
        scores = np.full(size, 0.5, np.float32)
    else:
        scores = np.full((classes, *size), 1 / classes, np.float32)
    image = np.arange(TRIED * TRIED).astype(np.uint8).reshape(*size, 1).repeat(3, axis=-1)  # contains all values
    refine(image, **{kind: scores}, device="cpu", **arguments)  # type: ignore[call-overload]


def _decisive(kind: str, arguments: Mapping[str, Any], reading: Reading, outputs: Outputs) -> dict[str, Any]:
    """Everything that determines the outputs except the kind of machine, by option."""
    method, chosen = chosen_for(kind, False, arguments)
    found = {"tritoncrf": tritoncrf.__version__, "scores": f"--{kind}", "--method": method}
    fields = {**chosen, **vars(reading), **vars(outputs)}
    for name in ("kind", "folder", "allow_pickle"):
        del fields[name]
    if kind != "labels" and (fields["num_classes"] or 0) <= UNKNOWN:
        fields["num_classes"] = None  # it does not change the outputs then
    found |= {f"--{name.replace('_', '-')}": _plain(value) for name, value in fields.items()}
    return cast(dict[str, Any], json.loads(json.dumps(found)))  # in the form in which it is read back


def _plain(value: Any) -> Any:
    """A value for JSON; a matrix is replaced by its digest."""
    if np.ndim(value) < 2:
        return value
    return "sha256 " + hashlib.sha256(np.asarray(value, np.float64).tobytes()).hexdigest()[:16]


def _prepare(outputs: Outputs, settings: str, entries: Sequence[Entry], recursive: bool) -> None:
    """Prepare the output folder; files that would be replaced must have this digest."""
    folder = outputs.folder
    paths = {path: entry.name for entry in entries for path in outputs.paths(entry.name)}
    places = {_resolved(place) for place in {folder, *(path.parent for path in paths)}}
    for place in {path.parent for entry in entries for path in _inputs(entry)}:
        if (found := _resolved(place)) in places or recursive and found in _resolved(folder).parents:
            raise FileError(f"{folder}: expected a folder of its own to write to, got one that is read from")
    if is_local(folder):
        make_folder("--out", folder)
    if not (folder / "settings.json").exists():
        for path in sorted(listed(folder) & paths.keys()):
            if (outputs.mark(paths[path]) or {}).get("settings") != settings:
                raise FileError(f"{path}: expected an output of this command or none, got another file")


def _sweep(outputs: Outputs, entries: Sequence[Entry], alone: bool) -> None:
    """Remove incomplete files of a killed run, but not those that other shards may be writing."""
    paths = {path for entry in entries for path in outputs.paths(entry.name)}
    for place in {outputs.folder, *(path.parent for path in paths)} if is_local(outputs.folder) else ():
        for left in temporaries(place, ".*") if place.is_dir() else ():
            if alone or place / left.name[1:-SUFFIX] in paths:
                left.unlink(missing_ok=True)


def _inputs(entry: Entry) -> list[Path]:
    scores = entry.scores.file if isinstance(entry.scores, Stored) else entry.scores
    return [path for path in (entry.image, scores, entry.truth) if path is not None]


def _resolved(folder: Path) -> Path:
    return folder.resolve() if is_local(folder) else folder


def _expect_places(options: argparse.Namespace) -> None:
    """Raise an error, before anything is written, for options of placement that are not possible."""
    if options.engine is None:
        if options.address is not None:
            raise CommandError(f"--address: expected --engine ray beside it, got {options.address} alone")
        if options.devices is not None and options.device is not None:
            raise CommandError("--devices: expected none beside --device, got both")
        workers.places(options.jobs or 0, _devices(options))
        return
    for name in ("device", "devices"):
        if getattr(options, name) is not None:
            raise CommandError(f"--{name}: expected none beside --engine {options.engine}, which places the work")


def _devices(options: argparse.Namespace) -> list[str] | None:
    """The devices that are asked for."""
    if options.devices is not None:
        return [f"cuda:{number}" for number in options.devices]
    return None if options.device is None else [options.device]


def _jobs(options: argparse.Namespace, tasks: int) -> int:
    """The number of processes: by default all cores of a machine without a GPU, but at most one per task."""
    if options.jobs is not None:
        return min(int(options.jobs), tasks)
    if options.devices is not None or device_found(options.device).type != "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(tasks, cores) if min(tasks, cores) > 1 else 0


@contextlib.contextmanager
def _outcomes(stages: FileStages, tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[Iterator[Outcome]]:
    """The outcomes of tasks; what processes them is stopped at the end of the block."""
    if options.engine == "ray":
        from tritoncrf.datasets import cluster

        found = cluster.run(stages, tasks, address=options.address, jobs=options.jobs or 0)
    else:
        found = workers.run(stages, tasks, jobs=_jobs(options, len(tasks)), devices=_devices(options))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in every process of `jobs`: the number of threads changes bits
    try:
        with contextlib.closing(cast(Generator[Outcome], found)) as outcomes:
            yield outcomes
    finally:
        torch.set_num_threads(threads)

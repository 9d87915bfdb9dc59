"""One run over the images of a data set: the remaining tasks, their progress, and the final report."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from tritoncrf.datasets.entries import Entry
from tritoncrf.datasets.evaluation import Counts, table
from tritoncrf.datasets.file_stages import FileStages, Task, Written
from tritoncrf.datasets.manifest import Manifest, Record
from tritoncrf.datasets.stages import Outcome
from tritoncrf.files import is_local
from tritoncrf.options import BINARY

__all__ = ["Run", "listed"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that every further image would raise too
SHOWN = 20  # failed images in the report; the manifest has all of them
STAGES = ("reading", "refining", "writing")


class Run:
    """The tasks of a run, and its counts.

    Args:
        stages: the stages of a `Task`.
        manifest: the manifest of the output folder.
        entries: the images of this run, including those that earlier runs finished.
        retry_failed: retry images that failed before.
        counting: also evaluate the finished images.

    Attributes:
        tasks: the tasks to do.
    """

    def __init__(
        self, stages: FileStages, manifest: Manifest, entries: Sequence[Entry], retry_failed: bool, counting: bool
    ):
        self._settings, self._manifest, self._total = stages.settings, manifest, len(entries)
        self._binary = stages.reading.kind in BINARY
        self.tasks: list[Task] = []
        self._failed: dict[str, str] = {}
        self._skipped = self._refined = 0
        self._seconds, self._time = np.zeros(3), 0.0
        self._counts: tuple[Counts, Counts] | None = None
        there = listed(stages.outputs.folder)
        for entry in entries:
            record = self._known(entry.name, stages, there)
            if record is not None and record.error is not None and not retry_failed:
                self._failed[entry.name] = record.error
            elif record is None or record.error is not None:
                self.tasks.append(Task(entry))
            else:
                self._skipped += 1
                self.tasks += [Task(entry, finished=True)] if counting else []

    def _known(self, name: str, stages: FileStages, there: set[Path]) -> Record | None:
        """The record of an image that failed or has outputs; a missing record is added."""
        record = self._manifest.records.get(name)
        if record is not None and record.settings != self._settings:
            record = None
        whole = stages.outputs.paths(name)[-1] in there
        if whole and (record is None or record.error is not None):
            mark = stages.outputs.mark(name)
            if mark is not None and mark["settings"] == self._settings:
                record = Record(name, self._settings, None, mark["changed"])
                self._manifest.add(record)
        return record if whole or record is None or record.error is not None else None

    def go(self, outcomes: Iterable[Outcome]) -> None:
        """Process the outcomes of the tasks.

        Raises:
            OSError: the disk is full; what was written before is kept.
        """
        start = time.perf_counter()
        with tqdm(desc="refine", unit="image", total=len(self.tasks), disable=None) as bar:
            for outcome in outcomes:
                self._take(outcome)
                self._time = time.perf_counter() - start
                bar.update()

    def _take(self, outcome: Outcome) -> None:
        task, written = cast(Task, outcome.item), cast(Written, outcome.result)
        name, error, changed = task.entry.name, None, None
        if outcome.error is not None:
            if isinstance(outcome.error, OSError) and outcome.error.errno in FULL:
                raise outcome.error
            error = self._failed[name] = " ".join(str(outcome.error).split()) or type(outcome.error).__name__
        else:
            changed = written.changed
            self._seconds += outcome.seconds
            self._refined += not task.finished
            if written.counts is not None:
                self._counts = written.counts if self._counts is None else _sum(self._counts, written.counts)
        if not task.finished:
            self._manifest.add(Record(name, self._settings, round(sum(outcome.seconds), 3), changed, error))

    def progress(self) -> str:
        """A description of the progress."""
        return f"{self._skipped + self._refined} of {self._total} images are done"

    def conclude(self) -> int:
        """Print the report; returns the status of the command, 1 if an image failed."""
        if self._counts is not None:
            print(table(*self._counts))
            if self._binary and not self._counts[0].of_truth(1):
                said = "expected objects labelled 1, got none; 255 means unknown"
                print(f"tritoncrf: warning: --ground-truth: {said}", file=sys.stderr)
        line = f"{self._refined} refined, {self._skipped} skipped, {len(self._failed)} failed"
        if self._refined:
            bound = STAGES[int(self._seconds.argmax())]
            line += f"; {self._refined / self._time:.3g} images per second; bound by {bound}"
        print(line)
        for name in list(self._failed)[:SHOWN]:
            print(f"tritoncrf: failed: {name}: {self._failed[name]}", file=sys.stderr)
        if len(self._failed) > SHOWN:
            print(f"tritoncrf: failed: {len(self._failed) - SHOWN} more, in the manifest", file=sys.stderr)
        if self._failed:
            print("tritoncrf: --retry-failed retries them", file=sys.stderr)
        return 1 if self._failed else 0


def _sum(one: tuple[Counts, Counts], other: tuple[Counts, Counts]) -> tuple[Counts, Counts]:
    return one[0] + other[0], one[1] + other[1]


def listed(folder: Path) -> set[Path]:
    """The files in a folder and its subfolders, without further calls per file."""
    if is_local(folder):
        return {Path(place, name) for place, _, names in os.walk(folder) for name in names}
    remote = cast(Any, folder)
    if not remote.exists():
        return set()
    root = remote.path.rstrip("/") + "/"
    return {remote / path.removeprefix(root) for path in remote.fs.find(remote.path)}

"""The stages of an image in files: read it and its scores, refine them, write the labels, and count how many are
right."""

import platform
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf.datasets.entries import Entry
from tritoncrf.datasets.evaluation import Counts, counted, read_truth
from tritoncrf.datasets.many import pinned
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.datasets.score_files import Found, Reading
from tritoncrf.files import FileError, is_local, read_image
from tritoncrf.options import BINARY
from tritoncrf.problem import Problem, posed, solved
from tritoncrf.scores import labels_of

__all__ = ["FileStages", "Task", "Written"]


@dataclass(frozen=True)
class Task:
    """An image to refine, or a finished one that is only counted."""

    entry: Entry
    finished: bool = False


@dataclass(frozen=True)
class Loaded:
    """The contents of an image's files.

    Attributes:
        image: [H, W, 3] or [H, W].
        kind: the kind of its scores.
        classes: the label of each channel of the scores; None if it is the index.
        before: the best class [H, W] of the scores, -1 where unknown.
        problem: the problem to solve; None if there is nothing to do, because the image is finished or has only one
            class.
        truth: [H, W], -1 where unknown; None if there is none.
    """

    image: np.ndarray
    kind: str
    classes: np.ndarray | None
    before: np.ndarray
    problem: Problem | None
    truth: np.ndarray | None


@dataclass(frozen=True)
class Written:
    """What is known of an image with complete outputs.

    Attributes:
        changed: the share of its pixels whose label changed; None if it was finished before.
        counts: counts of its labels and their truth, before and after, if there is a truth.
    """

    changed: float | None
    counts: tuple[Counts, Counts] | None


@dataclass(frozen=True)
class FileStages:
    """The stages of a `Task`.

    Attributes:
        reading: how its scores are read.
        outputs: the outputs to write.
        options: arguments of `refine`.
        settings: the digest of everything that determines the outputs, which they contain.
        num_classes: number of classes of the true labels; None for as many as occur.
    """

    reading: Reading
    outputs: Outputs
    options: Mapping[str, Any]
    settings: str
    num_classes: int | None = None

    def read(self, task: Task, device: torch.device) -> Loaded:
        entry, upright, folder = task.entry, not self.reading.as_stored, self.outputs.folder
        if is_local(folder) and not folder.is_dir():
            raise FileError(f"{folder}: expected a folder that every machine can access, got none on {platform.node()}")
        image = np.asarray(read_image(entry.image, upright=upright))
        size = image.shape[0], image.shape[1]
        found = self.reading.scores(entry.scores, entry.image, size)
        truth = None if entry.truth is None else read_truth(entry.truth, size, self._classes(found), upright)
        before = labels_of(found.kind, found.array, self.options).astype(np.int32)
        if task.finished or _single(found):
            return Loaded(image, found.kind, found.classes, before, None, truth)
        options = dict(self.options)
        if found.classes is not None:
            if found.kind == "labels":
                options["num_classes"] = len(found.classes)
            if not isinstance(costs := options.get("compatibility", "potts"), str):
                options["compatibility"] = _of_classes(costs, found.classes)
        scores = pinned(found.array) if device.type == "cuda" else found.array
        problem = posed(image, {found.kind: scores}, device, options)
        return Loaded(image, found.kind, found.classes, before, problem, truth)

    def _classes(self, found: Found) -> int | None:
        """The number of classes, if the scores of one image or the user give it."""
        if found.kind in BINARY:
            return 2
        whole = found.classes is None and found.kind != "labels"
        return len(found.array) if whole else self.num_classes

    def key(self, loaded: Loaded) -> Hashable:
        return None if loaded.problem is None else loaded.problem.key()

    def refine(self, loaded: list[Loaded]) -> list[tuple[Loaded, torch.Tensor | None]]:
        """Each loaded image with its probabilities [C, H, W], or None."""
        if loaded[0].problem is None:
            return [(loaded[0], None)]
        q = solved([one.problem for one in loaded if one.problem is not None])
        return [*zip(loaded, q)]

    def write(self, task: Task, refined: tuple[Loaded, torch.Tensor | None]) -> Written:
        loaded, q = refined
        name, kind, before, changed = task.entry.name, loaded.kind, loaded.before, None
        if not task.finished:
            probabilities = np.ones((1, *before.shape), np.float32) if q is None else q.float().cpu().numpy()
            if kind in BINARY:
                probabilities = probabilities[1]
            after = probabilities > 0.5 if kind in BINARY else probabilities.argmax(0)
            changed = round(float(np.mean(before != after)), 6)
            mark = {"settings": self.settings, "changed": changed}
            self.outputs.write(name, loaded.image, probabilities, kind, loaded.classes, mark)
        if loaded.truth is None:
            return Written(changed, None)
        if loaded.classes is not None:
            before = np.where(before < 0, -1, loaded.classes[before])
        after = self.outputs.labels(name)
        return Written(changed, (counted(before, loaded.truth), counted(after, loaded.truth)))


def _single(found: Found) -> bool:
    """Whether an image has only one class, so that there is nothing to refine."""
    return found.classes is not None and len(found.classes) == 1


def _of_classes(costs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The costs [C, C] restricted to the classes of an image."""
    if classes.max() >= len(costs):
        raise ValueError(f"compatibility: expected a row for each class up to {classes.max()}, got {list(costs.shape)}")
    return costs[np.ix_(classes, classes)]

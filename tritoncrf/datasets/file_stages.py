"""Of an image in files: read it and its scores, refine them, write its labels."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf.datasets.entries import Entry
from tritoncrf.datasets.evaluation import Counts, counted, read_truth
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.datasets.score_files import Found, Reading
from tritoncrf.files import read_image
from tritoncrf.options import BINARY
from tritoncrf.refine import refine
from tritoncrf.scores import as_tensor, labels_of

__all__ = ["FileStages", "Task", "Written"]


@dataclass(frozen=True)
class Task:
    """An image to refine, or one that is finished and only counted."""

    entry: Entry
    finished: bool = False


@dataclass(frozen=True)
class Loaded:
    """What the files of an image hold.

    Attributes:
        image: [H, W, 3] or [H, W].
        found: its scores.
        scores: the same on the device where they are refined; None where the image is finished.
        truth: [H, W], -1 where unknown; None where there is none.
    """

    image: np.ndarray
    found: Found
    scores: torch.Tensor | None
    truth: np.ndarray | None


@dataclass(frozen=True)
class Refined:
    """What was loaded, and the probabilities in place of its scores; None where the image is finished."""

    loaded: Loaded
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class Written:
    """What is known of an image whose outputs are whole.

    Attributes:
        changed: the share of its pixels whose label is another one now; None where it was finished.
        counts: of its labels and their truth, before and after, where there is a truth.
    """

    changed: float | None
    counts: tuple[Counts, Counts] | None


@dataclass(frozen=True)
class FileStages:
    """The stages of a `Task`.

    Attributes:
        reading: how its scores are read.
        outputs: what is written.
        options: of `refine`.
        settings: the digest of all that decides the bits, which outputs carry.
        num_classes: of the true labels; None: any.
    """

    reading: Reading
    outputs: Outputs
    options: Mapping[str, Any]
    settings: str
    num_classes: int | None = None

    def read(self, task: Task, device: torch.device) -> Loaded:
        entry, upright = task.entry, not self.reading.as_stored
        image = np.asarray(read_image(entry.image, upright=upright))
        size = image.shape[:2]
        found = self.reading.scores(entry.scores, entry.image, size)
        truth = None if entry.truth is None else read_truth(entry.truth, size, self._classes(found), upright)
        scores = None if task.finished else as_tensor(found.kind, found.array).to(device)
        return Loaded(image, found, scores, truth)

    def _classes(self, found: Found) -> int | None:
        """How many there are, where the scores of one image or the user say it."""
        if found.kind in BINARY:
            return 2
        whole = found.classes is None and found.kind != "labels"
        return len(found.array) if whole else self.num_classes

    def key(self, loaded: Loaded) -> Hashable:
        return None

    def refine(self, loaded: list[Loaded]) -> list[Refined]:
        return [Refined(one, None if one.scores is None else self._refined(one)) for one in loaded]

    def _refined(self, loaded: Loaded) -> np.ndarray:
        scores, classes = loaded.scores, loaded.found.classes
        options = dict(self.options)
        if classes is not None and not isinstance(options.get("compatibility", "potts"), str):
            options["compatibility"] = _of_classes(options["compatibility"], classes)
        q = refine(loaded.image, **{loaded.found.kind: scores}, device=scores.device, **options)
        return q.float().cpu().numpy()

    def write(self, task: Task, refined: Refined) -> Written:
        name, loaded, q = task.entry.name, refined.loaded, refined.probabilities
        kind, classes, changed = loaded.found.kind, loaded.found.classes, None
        before = labels_of(kind, loaded.found.array, self.options)
        if q is not None:
            after = (q > 0.5) * 1 if kind in BINARY else q.argmax(0)
            changed = float(np.mean(before != after))
            mark = {"settings": self.settings, "changed": changed}
            self.outputs.write(name, loaded.image, q, kind, classes, mark)
        if loaded.truth is None:
            return Written(changed, None)
        if classes is not None:
            before = classes[before]
        after = self.outputs.labels(name, kind)
        return Written(changed, (counted(before, loaded.truth), counted(after, loaded.truth)))


def _of_classes(costs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Of costs [C, C] those of the classes that an image has."""
    if classes.max() >= len(costs):
        raise ValueError(f"compatibility: expected a row for each class up to {classes.max()}, got {list(costs.shape)}")
    return costs[np.ix_(classes, classes)]

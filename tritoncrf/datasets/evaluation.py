"""The accuracy of a data set's labels before and after, from counts of each image that are summed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritoncrf.datasets.outputs import UNKNOWN_16
from tritoncrf.files import FileError, read_labels
from tritoncrf.models.metrics import boundary_counts, boundary_iou_per_class, confusion_matrix, iou_per_class
from tritoncrf.models.scored import band
from tritoncrf.options import UNKNOWN

__all__ = ["Counts", "counted", "read_truth", "table"]

MOST_CLASSES = 4096  # for labels without a given number of classes; larger values are not classes


@dataclass(frozen=True)
class Counts:
    """Counts of labels and their truth; class c has index c + 1, and index 0 is for unknown labels.

    Attributes:
        confusion: pixels by true class (row) and label, int64 [C + 1, C + 1].
        boundary: intersections and unions of Boundary IoU, int64 [C + 1, 2].
    """

    confusion: np.ndarray
    boundary: np.ndarray

    def __add__(self, other: "Counts") -> "Counts":
        size = max(len(self.boundary), len(other.boundary))
        one, two = self.grown(size), other.grown(size)
        return Counts(one.confusion + two.confusion, one.boundary + two.boundary)

    def of_truth(self, label: int) -> int:
        """The number of pixels that truly have a class."""
        return int(self.confusion[label + 1 :][:1].sum())

    def grown(self, size: int) -> "Counts":
        """The counts extended to this many classes."""
        more = (0, size - len(self.boundary))
        return Counts(np.pad(self.confusion, [more, more]), np.pad(self.boundary, [more, (0, 0)]))


def read_truth(path: Path, size: tuple[int, int], num_classes: int | None, upright: bool) -> np.ndarray:
    """The true labels of an image of that size, int64 [H, W], -1 where unknown.

    Raises:
        FileError: the size differs, or values are not classes.
    """
    truth = read_labels(path, upright).astype(np.int64)
    if truth.shape != size:
        wanted, got = (" x ".join(map(str, shape)) for shape in (size, truth.shape))
        raise FileError(f"{path}: expected true labels of the image's size, {wanted}, got {got}")
    unknown = truth == UNKNOWN_16
    if num_classes is None or num_classes <= UNKNOWN:
        unknown |= truth == UNKNOWN
    truth[unknown] = -1
    most, known = num_classes or MOST_CLASSES, truth[~unknown]
    if known.size and not 0 <= known.min() <= known.max() < most:
        wanted = f"true labels from 0 to {most - 1}, or {UNKNOWN} where unknown"
        raise FileError(f"{path}: expected {wanted}, got {known.min()} to {known.max()}")
    return truth


def counted(labels: np.ndarray, truth: np.ndarray) -> Counts:
    """Counts of one image; both maps are -1 where unknown."""
    classes = int(max(labels.max(), truth.max())) + 2
    maps = labels.astype(np.int64) + 1, np.where(truth < 0, -1, truth + 1), classes
    [boundary] = boundary_counts(*maps, widths=[band(truth.shape)], ignore=-1)
    return Counts(confusion_matrix(*maps, ignore=-1), boundary)


def table(before: Counts, after: Counts) -> str:
    """A table of IoU and Boundary IoU in percent: means over the classes that occur, and values of each class."""
    size = max(len(before.boundary), len(after.boundary))
    both = before.grown(size), after.grown(size)
    columns = [iou_per_class(counts.confusion)[1:] for counts in both]
    columns += [boundary_iou_per_class(counts.boundary)[1:] for counts in both]
    values = np.stack(columns, axis=1)  # [C, 4], NaN where a class occurs neither in truth nor in labels
    occurring = ~np.isnan(values).all(1)
    rows = [("mean", np.nanmean(values[occurring], axis=0))] if occurring.any() else []
    rows += [(f"class {c}", values[c]) for c in np.flatnonzero(occurring)]
    head = f"{'':12}{'IoU before':>10}{'after':>8}{'Boundary IoU before':>22}{'after':>8}"
    return "\n".join([head, *(_row(title, shares) for title, shares in rows)])


def _row(title: str, shares: np.ndarray) -> str:
    return f"{title:12}" + "".join(f"{100 * share:{wide}.2f}" for share, wide in zip(shares, (10, 8, 22, 8)))

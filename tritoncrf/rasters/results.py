"""The result of refining a raster: its numbers, and writing it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritoncrf.files import replacing, write_labels, write_mask
from tritoncrf.options import BINARY, UNKNOWN
from tritoncrf.rasters.inputs import Inputs
from tritoncrf.rasters.windows import Filled, Made, Source, Window, blocks
from tritoncrf.scores import labels_of

__all__ = ["Outcome", "Refined", "write"]

UNKNOWN_16 = 65535
HELD = 1 << 22  # numbers of a window of scores


@dataclass(frozen=True)
class Refined:
    """The result for an image, in arrays or in files; at least one of the two.

    Attributes:
        labels: [*S], from 0.
        probabilities: [C, *S], or [*S] for one object.
    """

    labels: Source | None
    probabilities: Source | None

    def in_window(self, window: Window) -> np.ndarray:
        """The labels of a window."""
        if self.labels is not None:
            return np.asarray(self.labels[window]).astype(np.int64)
        assert self.probabilities is not None
        if len(self.probabilities.shape) == len(window):
            return (np.asarray(self.probabilities[window]) > 0.5) * 1
        return np.asarray(self.probabilities[_all(self.probabilities, window)]).argmax(0)


class Outcome:
    """The labels before and after, window by window, and the counts of each class over valid pixels.

    Attributes:
        shares: the share of each class, before and after.
        changed: the share of pixels whose label changed.
        absent: the share of all pixels without data.
    """

    def __init__(self, kind: str, inputs: Inputs, settings: Mapping[str, Any], refined: Refined) -> None:
        self._kind, self._inputs, self._settings, self._refined = kind, inputs, settings, refined
        self._top = 1.0
        if kind == "mask" and np.dtype(inputs.scores.dtype).kind in "iu":  # either 0 and 1, or 0 to 255
            self._top = max(1.0, *(float(np.max(inputs.scores[window])) for window in self._windows()))
        counts: list[dict[int, int]] = [{}, {}]
        changed = present = 0
        for window in self._windows():
            before, after = self.before(window), self.after(window)
            if inputs.valid is not None:
                there = np.asarray(inputs.valid[window])
                before, after = before[there], after[there]
            changed += int((before != after).sum())
            present += before.size
            for count, labels in zip(counts, (before, after)):
                for label, n in enumerate(np.bincount(labels.ravel() + 1)):
                    count[label - 1] = count.get(label - 1, 0) + int(n)
        present = max(present, 1)
        found = sorted(label for label in {*counts[0], *counts[1]} if label >= 0)
        self.shares = {c: (counts[0].get(c, 0) / present, counts[1].get(c, 0) / present) for c in found}
        self.shares = {c: pair for c, pair in self.shares.items() if any(pair)}
        self.changed = changed / present
        self.absent = 1 - present / int(np.prod(inputs.size))

    def before(self, window: Window) -> np.ndarray:
        """The input labels of a window; -1 where unknown."""
        scores = np.asarray(self._inputs.scores[_all(self._inputs.scores, window)])
        return labels_of(self._kind, scores / self._top if self._top > 1 else scores, self._settings)

    def after(self, window: Window) -> np.ndarray:
        """The refined labels of a window."""
        return self._refined.in_window(window)

    def _windows(self) -> Iterator[Window]:
        scores = self._inputs.scores
        classes = scores.shape[0] if len(scores.shape) > len(self._inputs.size) else 1
        return blocks(self._inputs.size, self._inputs.block, HELD // classes)


def _all(source: Source, window: Window) -> Window:
    """A window with all classes."""
    return window if len(source.shape) == len(window) else (slice(0, source.shape[0]), *window)


def write(out: Path, kind: str, inputs: Inputs, refined: Refined, classes: int) -> None:
    """Write the labels, or otherwise the probabilities, in the format of the file name, completely or not at all."""
    suffix, valid = out.suffix.lower(), inputs.valid
    if suffix == ".png":
        labels = refined.in_window(tuple(slice(0, n) for n in inputs.size))
        with replacing(out) as file:
            (write_mask if kind in BINARY else write_labels)(file, labels)
        return
    if suffix == ".npy":
        found = refined.probabilities if refined.labels is None else refined.labels
        assert found is not None
        array = np.asarray(found[tuple(slice(0, n) for n in found.shape)])
        dtype = np.float32 if refined.labels is None else np.min_scalar_type(classes - 1)
        with replacing(out) as file:
            np.save(file, array.astype(dtype, copy=False))
        return
    pixels, nodata = _pixels(kind, refined, classes)
    raster = inputs.raster
    assert raster is not None
    if valid is None or not raster.absent:
        raster.write(out, pixels, None, None)
    elif nodata is None:
        raster.write(out, pixels, None, valid)
    else:
        raster.write(out, Filled(pixels, valid, nodata), nodata, None)


def _pixels(kind: str, refined: Refined, classes: int) -> tuple[Source, float | None]:
    """The values to write, and the value for pixels without data, if one is free."""
    if refined.labels is None:
        assert refined.probabilities is not None
        return _as(refined.probabilities, np.float32), np.nan
    if kind in BINARY:
        return Made(lambda labels: labels.astype(np.uint8) * 255, (refined.labels,), np.dtype(np.uint8)), None
    if classes <= UNKNOWN:
        return _as(refined.labels, np.uint8), UNKNOWN
    return _as(refined.labels, np.uint16), UNKNOWN_16


def _as(source: Source, dtype: type[Any]) -> Source:
    return Made(lambda values: values, (source,), np.dtype(dtype))

"""Pictures for figures of images that are larger than a figure or have more axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tritoncrf.figures import OUTSIDE
from tritoncrf.rasters.inputs import Inputs
from tritoncrf.rasters.nifti import Nifti
from tritoncrf.rasters.results import Outcome
from tritoncrf.rasters.windows import Window, blocks

__all__ = ["sections"]

SHOWN = 900  # pixels a side, as many as a panel has
STRETCHED = (2, 98)  # the percentiles of a channel that become black and white
GAP = 2  # pixels between slices
HELD = 1 << 22  # numbers of a window


def sections(
    inputs: Inputs, outcome: Outcome, spacing: Sequence[float] | float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image [H, W, 3] from 0 to 1, and the labels before and after [H, W], OUTSIDE where there are no pixels: an
    overview of a picture, or the middle slices of a volume along each of its axes, side by side."""
    size = inputs.size
    if len(size) == 2:
        image, before, after = _overview(inputs, outcome)
        return _stretched(image), before, after
    slices = []
    for axis in range(len(size)):
        window = tuple(slice(n // 2, n // 2 + 1) if a == axis else slice(0, n) for a, n in enumerate(size))
        steps = [spacing[a] if isinstance(spacing, Sequence) else 1.0 for a in range(len(size)) if a != axis]
        parts = _channels(inputs, window, 1), *_labels(inputs, outcome, window)
        slices.append([_even(part.squeeze(axis), steps) for part in parts])
    if isinstance(inputs.raster, Nifti):  # its axes point right and up
        slices = [[np.rot90(part) for part in parts] for parts in slices]
    images, befores, afters = zip(*slices)
    return _stretched(_beside(images, np.nan)), _beside(befores, OUTSIDE), _beside(afters, OUTSIDE)


def _overview(inputs: Inputs, outcome: Outcome) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture sampled at regular steps."""
    step = -(-max(inputs.size) // SHOWN)
    shape = tuple(-(-n // step) for n in inputs.size)
    channels = 3 if _count(inputs) >= 3 else 1
    image = np.empty((*shape, channels), np.float32)
    before, after = np.empty(shape, np.int64), np.empty(shape, np.int64)
    for window in blocks(inputs.size, inputs.block, HELD // _classes(inputs)):
        there = tuple(slice(-(-part.start // step), -(-part.stop // step)) for part in window)
        taken = tuple(slice(-part.start % step, None, step) for part in window)
        image[there] = _channels(inputs, window, channels)[taken]
        before[there], after[there] = (labels[taken] for labels in _labels(inputs, outcome, window))
    return image, before, after


def _labels(inputs: Inputs, outcome: Outcome, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The labels before and after, at valid pixels."""
    before, after = outcome.before(window), outcome.after(window)
    if inputs.valid is None:
        return before, after
    there = np.asarray(inputs.valid[window])
    return np.where(there, before, OUTSIDE), np.where(there, after, OUTSIDE)


def _channels(inputs: Inputs, window: Window, count: int) -> np.ndarray:
    """A window [*S, M] of the first channels of the image, or of the features instead."""
    if inputs.image is not None:
        return np.asarray(inputs.image[window + (slice(0, count),)])
    assert inputs.features is not None
    return np.moveaxis(np.asarray(inputs.features[(slice(0, count),) + window]), 0, -1)


def _count(inputs: Inputs) -> int:
    if inputs.image is not None:
        return inputs.image.shape[-1]
    return 1 if inputs.features is None else inputs.features.shape[0]


def _classes(inputs: Inputs) -> int:
    return inputs.scores.shape[0] if len(inputs.scores.shape) > len(inputs.size) else 1


def _even(part: np.ndarray, steps: Sequence[float]) -> np.ndarray:
    """A slice [H, W, ...] resampled to square pixels by the nearest neighbour."""
    for axis, step in enumerate(steps):
        wide = max(1, round(part.shape[axis] * step / min(steps)))
        part = part.take(np.arange(wide) * part.shape[axis] // wide, axis)
    return part


def _beside(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Pictures side by side on a background."""
    height = max(len(part) for part in parts)

    def padded(part: np.ndarray, last: bool) -> np.ndarray:
        further: Any = [(0, height - len(part)), (0, 0 if last else GAP), *[(0, 0)] * (part.ndim - 2)]
        kind = np.float32 if part.ndim > 2 else part.dtype
        return np.pad(part.astype(kind), further, constant_values=fill)

    return np.concatenate([padded(part, part is parts[-1]) for part in parts], axis=1)


def _stretched(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] from 0 to 1, from values [H, W, M] in any unit; NaN is white."""
    planes = []
    for channel in np.moveaxis(image.astype(np.float32), -1, 0):
        known = channel[np.isfinite(channel)]
        low, high = np.percentile(known, STRETCHED) if known.size else (0, 1)
        planes.append(np.nan_to_num((channel - low) / max(high - low, 1e-12), nan=1.0, posinf=1.0, neginf=0.0))
    return np.clip(np.stack(planes if len(planes) == 3 else planes[:1] * 3, axis=-1), 0, 1)

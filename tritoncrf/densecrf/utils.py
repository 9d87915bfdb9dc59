"""Unary energies and pairwise features as in pydensecrf's `utils`: float32, one column per pixel."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tritoncrf import checks
from tritoncrf.types import Theta

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]

Float32: TypeAlias = npt.NDArray[np.float32]

MOST_POINTS = (1 << 31) - 1  # indices have 32 bits
LEAST, MOST = -0.5, 1.5  # interpolated probabilities exceed 0..1 by less than this, scores before a softmax by more


def expect_array(name: str, value: object, wanted: str, kinds: str = "f") -> np.ndarray:
    """`value` itself if it is a NumPy array of one of these kinds (of `numpy.dtype.kind`), else a TypeError."""
    if not isinstance(value, np.ndarray):
        hint = "; np.asarray(x) makes one"
        if type(value).__module__.startswith("torch"):
            hint = "; x.detach().cpu().numpy() makes one"
        raise TypeError(f"{name}: expected {wanted}, got a {type(value).__name__}{hint}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected {wanted}, got a masked array; {name}.filled(value) makes a plain one")
    if value.dtype.kind not in kinds:
        raise TypeError(f"{name}: expected {wanted}, got {checks.kind_of(value)}")
    return value


def unary_from_labels(labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> Float32:
    """Energies of a label map: -log gt_prob for a pixel's label, -log((1 - gt_prob) / (n_labels - 1)) for the others.

    Args:
        labels: integers of any shape.
        n_labels: number of labels L, 2 or more; with `zero_unsure` it does not count the 0.
        gt_prob: probability that a label is right, between 0 and 1.
        zero_unsure: True: 0 means "unknown", and gets -log(1 / L) for every label; labels 1..L become rows 0..L-1.
            False: labels are 0..L-1.

    Returns:
        float32 (L, number of pixels).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> np.exp(-unary_from_labels(np.array([[0, 1, 2]]), 2, gt_prob=0.75)).tolist()  # a column per pixel
        [[0.5, 0.75, 0.25], [0.5, 0.25, 0.75]]
    """
    labels = expect_array("labels", labels, "a NumPy array of integers", kinds="iub").reshape(-1).astype(np.int64)
    n_labels = checks.expect_num_classes("n_labels", n_labels)
    gt_prob = checks.expect_number("gt_prob", gt_prob)
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob: expected a probability between 0 and 1, got {gt_prob}")
    first = 1 if checks.expect_bool("zero_unsure", zero_unsure) else 0
    low, high = (labels.min(), labels.max()) if labels.size else (0, 0)
    if low < 0 or high >= n_labels + first:
        hint = "; with zero_unsure=False, 0 is a label like any other" if zero_unsure else ""
        expected = f"0 to {n_labels - 1 + first} for n_labels={n_labels}"
        raise ValueError(f"labels: expected {expected}, got {low} to {high}{hint}")
    energies = np.full((n_labels, labels.size), -np.log((1 - gt_prob) / (n_labels - 1)), dtype=np.float32)
    known = np.flatnonzero(labels >= first)
    energies[labels[known] - first, known] = -np.log(gt_prob)
    if zero_unsure:
        energies[:, labels == 0] = -np.log(1 / n_labels)
    return energies


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> Float32:
    """Energies -log p of probabilities p.

    Args:
        sm: floating-point, (L, ...): classes first, then any axes.
        scale: confidence in the probabilities, above 0 and at most 1: p is replaced by scale p + (1 - scale) / L.
        clip: least probability. With None, a probability of 0 becomes an infinite energy, which rules the label out.

    Returns:
        float32 (L, number of pixels).

    Raises:
        TypeError, ValueError: naming the argument; also for values that cannot be probabilities (below -0.5 or above
            1.5), and for classes on the last axis.

    Example:
        >>> np.exp(-unary_from_softmax(np.array([[1.0, 0.5], [0.0, 0.5]]), scale=0.5)).tolist()
        [[0.75, 0.5], [0.25, 0.5]]
    """
    expect_array("sm", sm, "a NumPy array of probabilities, floating, classes first")
    if sm.ndim == 0 or sm.shape[0] == 0:
        raise ValueError(f"sm: expected probabilities (L, ...), classes first, got {checks.kind_of(sm)}")
    p = sm.astype(np.promote_types(sm.dtype, np.float32), copy=False)
    if p.size:
        _expect_probabilities(sm, least=LEAST if clip is not None else 0.0)
    if scale is not None:
        scale = checks.expect_number("scale", scale)
        if not 0 < scale <= 1:
            raise ValueError(f"scale: expected a number above 0 and at most 1, got {scale}")
        p = scale * p + (1 - scale) / len(p)
    if clip is not None:
        p = np.clip(p, checks.expect_number("clip", clip, positive=True), 1)
    with np.errstate(divide="ignore"):
        return -np.log(p).reshape(len(p), -1).astype(np.float32)


def _expect_probabilities(sm: np.ndarray, least: float) -> None:
    low, high = sm.min(), sm.max()
    if not (low >= least and high <= MOST):  # NaN too
        raise ValueError(
            f"sm: expected probabilities from 0 to 1, got {low:.4g} to {high:.4g}; "
            "scores need a softmax over the classes first"
        )
    if sm.ndim > 1 and not _sums_to_one(sm, 0) and _sums_to_one(sm, -1):
        raise ValueError(
            f"sm: expected classes on the first axis, got shape {sm.shape} that sums to 1 over the last; "
            "pass np.moveaxis(sm, -1, 0)"
        )


def _sums_to_one(sm: np.ndarray, axis: int) -> bool:
    return bool((np.abs(sm.sum(axis, dtype=np.float64) - 1) < 1e-2).all())


def compute_unary(labels: np.ndarray, M: int, GT_PROB: float = 0.5) -> Float32:
    """Deprecated: `unary_from_labels(labels, M, GT_PROB)`."""
    warnings.warn("compute_unary is deprecated: use unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> Float32:
    """Deprecated: `unary_from_softmax(sm, GT_PROB, clip=None)`."""
    warnings.warn("softmax_to_unary is deprecated: use unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Theta, shape: int | Sequence[int]) -> Float32:
    """Features of positions alone: the index along each axis / its bandwidth, axes in the order of `shape`.

    Args:
        sdims: bandwidths in pixels; a number, or one per axis in the order of `shape`: (rows, columns) of an image.
        shape: the shape of the grid; any number of axes.

    Returns:
        float32 (axes, pixels), for `DenseCRF.addPairwiseEnergy`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> create_pairwise_gaussian(sdims=(2, 1), shape=(2, 3)).tolist()
        [[0.0, 0.0, 0.0, 0.5, 0.5, 0.5], [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]]
    """
    given: Any = shape if isinstance(shape, (list, tuple)) or getattr(shape, "ndim", 0) == 1 else [shape]
    sizes = [checks.expect_int("shape", s, 1) for s in given]
    if not sizes or math.prod(sizes) > MOST_POINTS:
        raise ValueError(
            f"shape: expected one axis or more, of at most {MOST_POINTS} pixels, got {checks.shown(shape)}"
        )
    return _positions(sdims, sizes).reshape(len(sizes), -1)


def create_pairwise_bilateral(sdims: Theta, schan: Theta, img: np.ndarray, chdim: int = -1) -> Float32:
    """Features of positions and image values: the index along each axis / sdims, then each channel / schan.

    Args:
        sdims: bandwidths in pixels; a number, or one per axis of the image without its channels.
        schan: bandwidths in the units of `img`; a number, or one per channel.
        img: numbers of any dtype, and any number of axes.
        chdim: the axis of the channels; -1, unlike elsewhere, means that there is none.

    Returns:
        float32 (axes + channels, pixels), for `DenseCRF.addPairwiseEnergy`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> create_pairwise_bilateral(sdims=1, schan=10, img=np.array([[20, 40]])).tolist()
        [[0.0, 0.0], [0.0, 1.0], [2.0, 4.0]]
    """
    expect_array("img", img, "a NumPy array of numbers", kinds="iufb")
    try:
        chdim = checks.expect_int("chdim", chdim, -max(img.ndim, 1), img.ndim - 1)
    except ValueError as error:
        raise ValueError(f"{error}, with img of shape {img.shape}") from None
    channels = (img[None] if chdim == -1 else np.moveaxis(img, chdim, 0)).astype(np.float32)  # [C, *S], a copy
    if channels.ndim < 2 or 0 in channels.shape:
        raise ValueError(f"img: expected at least one axis of pixels, and at least one pixel, got shape {img.shape}")
    try:
        mesh = _positions(sdims, channels.shape[1:])
    except ValueError as error:
        hint = "; chdim=-1 says that img has no axis of channels" if chdim == -1 else ""
        raise ValueError(f"{error}{hint}") from None
    for channel, s in zip(channels, checks.expect_positive("schan", schan, len(channels), each="channel")):
        channel /= s
    if not np.isfinite(channels).all():
        raise ValueError("img, schan: expected quotients that float32 holds, got NaN or infinity")
    return np.concatenate([mesh, channels]).reshape(len(mesh) + len(channels), -1)


def _positions(sdims: Theta, shape: Sequence[int]) -> Float32:
    """The index of every pixel along each axis / the axis's bandwidth, float32 (axes, *shape)."""
    bandwidths = checks.expect_positive("sdims", sdims, len(shape))
    return np.stack([i / np.float32(s) for i, s in zip(np.indices(shape, dtype=np.float32), bandwidths)])

"""Noisy scores from a label map: the synthetic task of the ConvCRF paper (Teichmann and Cipolla 2018, Table 1).

With up_s and down_s the bilinear resize by s and 1/s, one uniform label z and one Bernoulli(keep) draw m per
cell of s x s pixels:

    O = up_s(down_s(onehot(labels)))      Z = up_s(onehot(z))      k = up_s(m)      P = k O + (1 - k) Z

The resize is that of the published code: half-pixel centres, linear, no filter before shrinking, and zero
outside the image. So values shrink at the border and P need not sum to 1 there.
"""

import numpy as np
import numpy.typing as npt

from tritoncrf import checks

__all__ = ["noisy_scores"]


def noisy_scores(
    labels: npt.ArrayLike, num_classes: int, scale: int = 8, keep: float = 0.8, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Blurred one-hot scores in which a share of the cells shows a random class.

    Args:
        labels: [H, W] integers from 0 to num_classes - 1 (map void to a class first), H and W at least `scale`.
        num_classes: number of classes C; random labels are drawn from all of them and may equal the truth.
        scale: side of a noise cell in pixels.
        keep: probability that a cell keeps its scores, from 0 to 1.
        seed: of the random draws; equal seeds give equal scores.

    Returns:
        P [C, H, W] float32 in 0..1.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> noisy_scores(np.zeros((16, 24), dtype=np.uint8), num_classes=3).shape
        (3, 16, 24)
    """
    num_classes = checks.expect_int("num_classes", num_classes, 1)
    scale = checks.expect_int("scale", scale, 1)
    keep = checks.expect_number("keep", keep)
    if not 0 <= keep <= 1:
        raise ValueError(f"keep: expected a probability from 0 to 1, got {keep}")
    labels = np.asarray(labels)
    if labels.ndim != 2 or min(labels.shape) < scale:
        raise ValueError(f"labels: expected [H, W] of at least {scale} x {scale}, got {checks.kind_of(labels)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {checks.kind_of(labels)}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels: expected 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")

    random = np.random.default_rng(checks.expect_int("seed", seed, 0))
    size, cells = labels.shape, tuple(n // scale for n in labels.shape)
    truth = _resize(_resize(_one_hot(labels, num_classes), cells), size)  # [C, H, W]
    noise = _resize(_one_hot(random.integers(num_classes, size=cells), num_classes), size)
    kept = _resize((random.random(cells) < keep).astype(np.float32), size)  # [H, W]
    return kept * truth + (1 - kept) * noise


def _one_hot(labels: np.ndarray, num_classes: int) -> npt.NDArray[np.float32]:
    return (labels == np.arange(num_classes)[:, None, None]).astype(np.float32)  # [C, H, W]


def _resize(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    for axis, n in zip((-2, -1), size):
        x = _resize_axis(x, n, axis)
    return x


def _resize_axis(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """x at (i + 1/2) * len / n - 1/2, linear between samples, zero outside."""
    position = (np.arange(n) + 0.5) * x.shape[axis] / n - 0.5
    left = np.floor(position).astype(int)  # from -1 to len - 1
    share = (position - left).astype(x.dtype)
    if axis == -2:
        share = share[:, None]
    padded = np.pad(x, [(1, 1) if a == x.ndim + axis else (0, 0) for a in range(x.ndim)])
    return np.take(padded, left + 1, axis) * (1 - share) + np.take(padded, left + 2, axis) * share

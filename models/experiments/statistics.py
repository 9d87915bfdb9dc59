"""Error bars for measures of a whole data set, such as mean IoU, that are no means over its images.

The jackknife (Efron and Stein, "The jackknife estimate of variance", 1981): with t_i the measure of all n images but
the i-th and t their mean,

    standard error^2 = (n - 1) / n  sum_i (t_i - t)^2

which for a mean over images is the usual s / sqrt(n). What is left out must not depend on what stays: of a video that
is a stretch of frames, not one (`in_blocks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tritoncrf.models import metrics

__all__ = ["BLOCKS", "Estimate", "accuracy", "in_blocks", "jackknife", "miou_occurring", "miou_present"]


BLOCKS = 10


@dataclass(frozen=True)
class Estimate:
    """A measure of all images, its standard error, NaN for one image, and how many were left out one at a time."""

    value: float
    error: float
    count: int

    def percent(self, sign: str = "") -> str:
        """`97.10 ± 0.20`, or without an error bar where one image gives none."""
        text = f"{100 * self.value:{sign}.2f}"
        return text if np.isnan(self.error) else f"{text} \N{PLUS-MINUS SIGN} {100 * self.error:.2f}"

    @property
    def clear(self) -> bool:
        """Whether chance leads so far from zero in less than one of twenty cases."""
        return abs(self.value) > student(self.count - 1) * self.error

    def difference(self) -> str:
        """The same with its sign, in bold where it is clear."""
        text = self.percent("+")
        return f"**{text}**" if self.clear else text


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the expansion of Cornish and Fisher; within 1 % from 3 degrees on.
    Below, nothing is told from so little."""
    if freedom < 3:
        return float("inf")
    z = 1.959964
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**n for n, term in enumerate(terms, 1))


def in_blocks(counts: np.ndarray) -> np.ndarray:
    """Counts of images, [images, ...], added up over at most BLOCKS stretches of consecutive ones."""
    return np.stack([block.sum(0) for block in np.array_split(counts, min(BLOCKS, len(counts)))])


def jackknife(counts: np.ndarray, measures: Callable[[np.ndarray], Sequence[float] | np.ndarray]) -> list[Estimate]:
    """Measures of the counts of all images.

    Args:
        counts: [images, ...], of each image.
        measures: of a sum over images, [...], some numbers.

    Example:
        >>> right_of_all = np.array([[7, 10], [8, 10], [9, 10]])
        >>> [share] = jackknife(right_of_all, lambda total: [total[0] / total[1]])
        >>> share.percent()
        '80.00 ± 5.77'
    """
    total, n = counts.sum(0), len(counts)
    found = [float(value) for value in measures(total)]
    if n < 2:
        return [Estimate(value, float("nan"), n) for value in found]
    left = np.array([measures(total - one) for one in counts])  # [images, measures]
    errors = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    return [Estimate(value, float(error), n) for value, error in zip(found, errors)]


# Measures of confusion matrices [seeds, C, C], rows truth: means over the seeds ------------------------------------


def accuracy(confusions: np.ndarray) -> float:
    """Share of the pixels whose class is right."""
    return float(np.mean([metrics.pixel_accuracy(confusion) for confusion in confusions]))


def miou_present(confusions: np.ndarray) -> float:
    """Mean IoU over the classes that occur in the truth."""
    return float(np.mean([metrics.iou_per_class(c)[c.sum(1) > 0].mean() for c in confusions]))


def miou_occurring(confusions: np.ndarray) -> float:
    """Mean IoU over the classes that occur in truth or prediction: a class that is not there adds a zero."""
    return float(np.mean([metrics.mean_iou(confusion) for confusion in confusions]))

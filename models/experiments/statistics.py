"""Error bars for measures of a whole data set, such as mean IoU, that are not means over its images.

The jackknife (Efron and Stein, "The jackknife estimate of variance", 1981): with t_i the measure of all n images but
the i-th and t their mean,

    standard error^2 = (n - 1) / n  sum_i (t_i - t)^2

which for a mean over images is the usual s / sqrt(n). What is left out must be independent of the rest: for a video it
is a stretch of frames, not a single one (`in_blocks`).

Networks trained several times with different seeds also vary by their training. The variance of the mean over the seeds
is then the sum of both,

    standard error^2 = jackknife error^2 of the mean over seeds + s_seeds^2 / number of seeds

and the degrees of freedom of Student's t are those of Welch and Satterthwaite (Satterthwaite, "An approximate
distribution of estimates of variance components", 1946).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tritoncrf.models import metrics

__all__ = ["BLOCKS", "Estimate", "in_blocks", "jackknife", "over_seeds", "student"]
__all__ += ["accuracy", "miou_occurring", "miou_present"]

BLOCKS = 10


@dataclass(frozen=True)
class Estimate:
    """A measure of all images, its standard error (NaN for one image), and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def percent(self, sign: str = "") -> str:
        """`97.10 ± 0.20`, or without an error bar for a single image."""
        text = f"{100 * self.value:{sign}.2f}"
        return text if np.isnan(self.error) else f"{text} \N{PLUS-MINUS SIGN} {100 * self.error:.2f}"

    @property
    def clear(self) -> bool:
        """Whether the estimate differs from zero at the 5 % level of Student's t."""
        return abs(self.value) > student(self.freedom) * self.error

    def difference(self) -> str:
        """The same with its sign, in bold if it is clear."""
        text = self.percent("+")
        return f"**{text}**" if self.clear else text


def student(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, within 1e-4; infinite below one degree of freedom."""
    if freedom < 1:
        return math.inf
    # With t = sqrt(freedom) tan(a) the density is that of cos(a)^(freedom - 1), of which 95 % lie between -a and a.
    angles = (np.arange(1, 200_001) - 0.5) / 200_000 * math.pi / 2
    below = np.cumsum(np.cos(angles) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(np.interp(0.95, below / below[-1], angles + angles[0]))


def in_blocks(counts: np.ndarray) -> np.ndarray:
    """Counts [images, ...], summed over at most BLOCKS stretches of consecutive images."""
    return np.stack([block.sum(0) for block in np.array_split(counts, min(BLOCKS, len(counts)))])


def jackknife(counts: np.ndarray, measures: Callable[[np.ndarray], Sequence[float] | np.ndarray]) -> list[Estimate]:
    """Measures of all images, with their standard errors.

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
        return [Estimate(value, math.nan, 0) for value in found]
    left = np.array([measures(total - one) for one in counts])  # [images, measures]
    errors = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    return [Estimate(value, float(error), n - 1) for value, error in zip(found, errors)]


def over_seeds(counts: np.ndarray, measures: Callable[[np.ndarray], Sequence[float] | np.ndarray]) -> list[Estimate]:
    """Means over seeds of measures of all images; the errors include the choice of images and of seeds.

    Args:
        counts: [seeds, images, ...], of each image by each of the seeds.
        measures: of a sum over images, [...], some numbers.

    Example:
        >>> right_of_all = np.array([[[7, 10], [8, 10], [9, 10]], [[6, 10], [7, 10], [8, 10]]])
        >>> [share] = over_seeds(right_of_all, lambda total: [total[0] / total[1]])
        >>> share.percent()  # sqrt(0.0577^2 + 0.05^2)
        '75.00 ± 7.64'
    """
    by_image = np.moveaxis(counts, 1, 0)
    of_images = jackknife(by_image, lambda totals: np.array([measures(total) for total in totals]).mean(0))
    seeds = len(counts)
    if seeds < 2:
        return of_images
    each = np.array([measures(one.sum(0)) for one in counts])
    of_seeds = each.var(0, ddof=1) / seeds
    return [_combined(estimate, float(variance), seeds - 1) for estimate, variance in zip(of_images, of_seeds)]


def _combined(estimate: Estimate, variance: float, freedom: int) -> Estimate:
    """An estimate with a further variance that has this many degrees of freedom."""
    first = estimate.error**2
    total = first + variance
    if not total > 0:  # no variation, or a single image
        return Estimate(estimate.value, math.sqrt(total), estimate.freedom)
    return Estimate(estimate.value, math.sqrt(total), total**2 / (first**2 / estimate.freedom + variance**2 / freedom))


# Measures of confusion matrices [seeds, C, C], rows for the truth: means over the seeds -------------------------------


def accuracy(confusions: np.ndarray) -> float:
    """Share of the pixels with the right class."""
    return float(np.mean([metrics.pixel_accuracy(confusion) for confusion in confusions]))


def miou_present(confusions: np.ndarray) -> float:
    """Mean IoU over the classes that occur in the truth."""
    return float(np.mean([metrics.iou_per_class(c)[c.sum(1) > 0].mean() for c in confusions]))


def miou_occurring(confusions: np.ndarray) -> float:
    """Mean IoU over the classes that occur in truth or prediction: a wrongly predicted absent class counts as zero."""
    return float(np.mean([metrics.mean_iou(confusion) for confusion in confusions]))

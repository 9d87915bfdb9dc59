"""Metrics of a labelling, over all pixels and along the borders of the objects.

    M[t, p]          = number of pixels with true class t and predicted class p, over pixels whose truth is known
    IoU_c            = TP / (TP + FP + FN) = M[c, c] / (sum_p M[c, p] + sum_t M[t, c] - M[c, c])
    mean IoU         = over the classes that occur in truth or prediction
    pixel accuracy   = sum_c M[c, c] / sum M
    mean accuracy    = mean of TP / (TP + FN) over the classes that occur in truth
    Boundary IoU_c,d = |(G_d & G) & (P_d & P)| / |(G_d & G) | (P_d & P)|, masks G (truth) and P of class c, and G_d,
                       P_d the pixels within d of their contours
    trimap           = any of the above over the pixels within d of a label change in the truth

Distances are Chebyshev distances in pixels; an object's outermost pixels are at 1. Counts of several images are summed:
a data set's mean IoU is computed from the sum, not as the mean over images.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021). Trimaps: Kohli,
Ladicky and Torr, "Robust Higher Order Potentials for Enforcing Label Consistency" (IJCV 2009), and Kraehenbuehl and
Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NIPS 2011).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from tritoncrf.checks import expect_int, kind_of
from tritoncrf.types import Array

LabelMap = TypeVar("LabelMap", np.ndarray, torch.Tensor)
WIDTHS = tuple(range(1, 11))
VOID = -1  # used internally for no class, whatever `ignore` is


def confusion_matrix(labels: LabelMap, truth: LabelMap, num_classes: int, ignore: int | None = 255) -> LabelMap:
    """Counts pixels by true class (row) and predicted class (column).

    Args:
        labels: predicted classes, integers of any shape, 0 to num_classes - 1 where the truth is known.
        truth: true classes, same shape and kind; `ignore` where unknown.
        num_classes: C.
        ignore: the value of `truth` that marks unknown pixels; None counts every pixel.

    Returns:
        int64 [C, C], an array or tensor like the arguments, on the same device.

    Raises:
        TypeError: not two integer arrays, or two integer tensors.
        ValueError: shapes that differ, or a class outside 0 to C - 1. Checked on every device: such a
            pixel would otherwise count for another class.

    Example:
        >>> import numpy as np
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 255]), num_classes=2)
        array([[1, 1],
               [0, 0]])
    """
    predicted, true = _known(labels, truth, num_classes, ignore)
    pairs = _pairs(predicted, true, num_classes)
    counts = _within(torch.ones_like(pairs), pairs, num_classes**2, (1,))
    return _like(labels, counts.reshape(num_classes, num_classes))


def iou_per_class(confusion: LabelMap) -> LabelMap:
    """Intersection over union of every class.

    Args:
        confusion: integers [C, C], rows truth, as `confusion_matrix` gives or a sum of such.

    Returns:
        float64 [C] of the same kind; NaN for a class that occurs in neither truth nor prediction.

    Raises:
        TypeError, ValueError: `confusion` is not a square matrix of integers.
    """
    counts = _expect_confusion(confusion)
    right = counts.diagonal().double()
    iou = right / (counts.sum(0) + counts.sum(1) - right)  # 0 / 0 is NaN
    return _like(confusion, iou)


def mean_iou(confusion: LabelMap) -> float:
    """Mean of `iou_per_class` over the classes that occur in truth or prediction; NaN if none does.

    Where `iou_per_class` has NaN, it is a mean over fewer than C classes; say so when reporting it.
    """
    return torch.as_tensor(iou_per_class(confusion)).nanmean().item()


def pixel_accuracy(confusion: LabelMap) -> float:
    """Fraction of the counted pixels whose class is right; NaN if no pixel was counted.

    Raises:
        TypeError, ValueError: `confusion` is not a square matrix of integers.
    """
    counts = _expect_confusion(confusion)
    return (counts.diagonal().sum().double() / counts.sum()).item()


def mean_accuracy(confusion: LabelMap) -> float:
    """Mean over the classes that occur in truth of the share of their pixels that is right; NaN if none does.

    Raises:
        TypeError, ValueError: `confusion` is not a square matrix of integers.

    Example:
        >>> import numpy as np
        >>> mean_accuracy(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
        0.875
    """
    counts = _expect_confusion(confusion)
    return (counts.diagonal().double() / counts.sum(1)).nanmean().item()


def trimap_confusion(
    labels: LabelMap, truth: LabelMap, num_classes: int, widths: Sequence[int] = WIDTHS, ignore: int | None = 255
) -> LabelMap:
    """Confusion matrices over narrow bands around the true borders of the objects.

    A band of width w contains the known pixels with a pixel of another true label at most w away, in the square of
    side 2w + 1: w pixels on each side of a border between two classes. A border between a class and unknown pixels
    counts too, because annotators leave the contour itself unknown (PASCAL VOC); the band then starts at the known
    pixels. The border of the image does not count.

    Args:
        labels, truth, num_classes, ignore: as in `confusion_matrix`; [H, W], or [B, H, W] for several images.
        widths: in pixels, at least 1.

    Returns:
        int64 [len(widths), C, C], rows truth, an array or tensor like the arguments, on the same device. Sum them over
        images and pass one width at a time to `iou_per_class`, `pixel_accuracy` and the others.

    Raises:
        TypeError, ValueError: as `confusion_matrix`; maps that are not images; a width below 1.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[0, 0, 0, 0, 1, 1]])
        >>> labels = np.array([[1, 0, 0, 0, 0, 1]])
        >>> trimap_confusion(labels, truth, num_classes=2, widths=(1, 4)).tolist()
        [[[1, 0], [1, 0]], [[3, 1], [1, 1]]]
    """
    predicted, true, widths = *_known_images(labels, truth, num_classes, ignore), _expect_widths(widths)
    counts = _within(_distance(true, widths), _pairs(predicted, true, num_classes), num_classes**2, widths)
    return _like(labels, counts.unflatten(1, (num_classes, num_classes)))


def boundary_counts(
    labels: LabelMap, truth: LabelMap, num_classes: int, widths: Sequence[int] = WIDTHS, ignore: int | None = 255
) -> LabelMap:
    """The intersection and the union of Boundary IoU, in pixels, for every class.

    The band of width d of a mask contains its pixels that are at most d away from a pixel outside, that is, the pixels
    that d erosions by a 3 x 3 square remove. As in the published code, everything beyond the image is outside every
    mask, so a mask that the image cuts off has its contour there. Unknown pixels are also outside, in the prediction
    and in the truth, so predictions there do not matter.

    Args:
        labels, truth, num_classes, ignore: as in `confusion_matrix`; [H, W], or [B, H, W] for several images.
        widths: distances d in pixels, at least 1. Cheng et al. take 2 % of the image's diagonal for COCO.

    Returns:
        int64 [len(widths), C, 2] of intersections and unions, an array or tensor like the arguments, on the same
        device.

    Raises:
        TypeError, ValueError: as `confusion_matrix`; maps that are not images; a width below 1.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[0, 0, 0, 0, 1]] * 9)
        >>> labels = np.array([[0, 0, 0, 1, 1]] * 9)
        >>> boundary_counts(labels, truth, num_classes=2, widths=[1]).tolist()
        [[[13, 29], [9, 18]]]
    """
    predicted, true, widths = *_known_images(labels, truth, num_classes, ignore), _expect_widths(widths)
    # A contour lies where the label changes, so one map of distances serves the masks of all classes.
    to_true, to_predicted = (
        _distance(F.pad(x, (1, 1, 1, 1), value=VOID), widths)[..., 1:-1, 1:-1] for x in (true, predicted)
    )
    right = true.where(true == predicted, VOID)
    intersection = _within(to_true.maximum(to_predicted), right, num_classes, widths)
    masks = _within(to_true, true, num_classes, widths) + _within(to_predicted, predicted, num_classes, widths)
    return _like(labels, torch.stack([intersection, masks - intersection], dim=-1))


def boundary_iou_per_class(counts: LabelMap) -> LabelMap:
    """Boundary IoU of every class: intersection over union.

    Args:
        counts: integers [..., C, 2], as `boundary_counts` gives or a sum of such.

    Returns:
        float64 [..., C] of the same kind; NaN for a class that occurs in neither truth nor prediction.

    Raises:
        TypeError, ValueError: `counts` is not such an array.

    Example:
        >>> import numpy as np
        >>> boundary_iou_per_class(np.array([[1, 4], [3, 4], [0, 0]]))
        array([0.25, 0.75,  nan])
    """
    intersection, union = _expect_boundary_counts(counts).unbind(-1)
    return _like(counts, intersection.double() / union)  # 0 / 0 is NaN


def mean_boundary_iou(counts: LabelMap) -> LabelMap:
    """Mean of `boundary_iou_per_class` over the classes that occur in truth or prediction; float64 [...]."""
    return _like(counts, torch.as_tensor(boundary_iou_per_class(counts)).nanmean(-1))


@dataclass(frozen=True)
class Result:
    """All metrics of a labelling, as shares from 0 to 1, NaN where nothing was counted. `str` gives a table in percent.

    Attributes:
        miou, pixel_accuracy, mean_accuracy: see `mean_iou`, `pixel_accuracy` and `mean_accuracy`.
        iou: IoU of every class; `miou` is the mean of those that are not NaN.
        boundary_iou, trimap_accuracy, trimap_miou: mean Boundary IoU, and pixel accuracy and mean IoU of the trimap,
            by the width of the band in pixels.
        names: of the classes.
    """

    miou: float
    iou: tuple[float, ...]
    pixel_accuracy: float
    mean_accuracy: float
    boundary_iou: dict[int, float]
    trimap_accuracy: dict[int, float]
    trimap_miou: dict[int, float]
    names: tuple[str, ...]

    def numbers(self) -> dict[str, float]:
        """All of them by name: "miou", "boundary_iou 3", "iou road"."""
        found = {name: getattr(self, name) for name in ("miou", "pixel_accuracy", "mean_accuracy")}
        for name in ("boundary_iou", "trimap_miou", "trimap_accuracy"):
            found |= {f"{name} {width}": value for width, value in getattr(self, name).items()}
        return found | {f"iou {name}": value for name, value in zip(self.names, self.iou)}

    def __str__(self) -> str:
        occurring = sum(not math.isnan(value) for value in self.iou)
        rows = [
            ("mean IoU", _percents([self.miou]) + f"  over {occurring} of {len(self.iou)} classes"),
            ("pixel accuracy", _percents([self.pixel_accuracy])),
            ("mean accuracy", _percents([self.mean_accuracy])),
        ]
        if self.boundary_iou:
            rows += [
                ("width in pixels", "".join(f"{width:7d}" for width in self.boundary_iou)),
                ("Boundary IoU", _percents(self.boundary_iou.values())),
                ("trimap mean IoU", _percents(self.trimap_miou.values())),
                ("trimap accuracy", _percents(self.trimap_accuracy.values())),
            ]
        rows += [(f"IoU {name}", _percents([value])) for name, value in zip(self.names, self.iou)]
        wide = max(len(title) for title, _ in rows)
        return "\n".join(f"{title:{wide}}{values}" for title, values in rows)


class Evaluation:
    """Sum the counts of images for all metrics at once.

    Args:
        num_classes: C.
        widths: widths of the bands along borders, in pixels, for Boundary IoU and trimaps; empty for neither, which is
            faster.
        ignore: the value in a truth that marks unknown pixels.

    The whole state is `counts`, one int64 vector on the CPU. To combine several processes with the same arguments, sum
    their `counts`.

    Raises:
        TypeError, ValueError: as `trimap_confusion`.

    Example:
        >>> import torch
        >>> evaluation = Evaluation(num_classes=2, widths=(1, 2))
        >>> for _ in range(3):
        ...     truth = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 255]])
        ...     evaluation.add(labels=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]), truth=truth)
        >>> print(evaluation.result(names=["road", "tree"]))
        mean IoU         66.67  over 2 of 2 classes
        pixel accuracy   85.71
        mean accuracy    91.67
        width in pixels      1      2
        Boundary IoU     66.67  66.67
        trimap mean IoU  50.00  62.50
        trimap accuracy  66.67  80.00
        IoU road         83.33
        IoU tree         50.00
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS, ignore: int | None = 255):
        self.num_classes = expect_int("num_classes", num_classes, least=1)
        self.widths, self.ignore = _expect_widths(widths), ignore
        self.counts = torch.zeros(sum(math.prod(shape) for shape in self._shapes()), dtype=torch.int64)

    def add(self, labels: LabelMap, truth: LabelMap) -> None:
        """Count one image [H, W] or several [B, H, W]; arguments and errors as in `trimap_confusion`."""
        self.counts += self.counted(labels, truth).to(self.counts.device)

    def counted(self, labels: LabelMap, truth: LabelMap) -> torch.Tensor:
        """The counts that `add` adds, on the device of the arguments."""
        maps, bands = (labels, truth, self.num_classes), (self.widths, self.ignore)
        counts = [confusion_matrix(*maps, self.ignore)]
        if self.widths:
            counts += [trimap_confusion(*maps, *bands), boundary_counts(*maps, *bands)]
        return torch.cat([torch.as_tensor(count).flatten() for count in counts])

    def result(self, names: Sequence[str] | None = None) -> Result:
        """The metrics of all images that were added.

        Args:
            names: names of the classes; numbers by default.

        Raises:
            ValueError: not one name per class.
        """
        names = tuple(f"class {c}" for c in range(self.num_classes)) if names is None else tuple(names)
        if len(names) != self.num_classes:
            raise ValueError(f"names: expected one per class ({self.num_classes}), got {len(names)}")
        sizes = [math.prod(shape) for shape in self._shapes()]
        confusion, trimap, boundary = (x.view(s) for x, s in zip(self.counts.split(sizes), self._shapes()))
        return Result(
            miou=mean_iou(confusion),
            iou=tuple(iou_per_class(confusion).tolist()),
            pixel_accuracy=pixel_accuracy(confusion),
            mean_accuracy=mean_accuracy(confusion),
            boundary_iou=dict(zip(self.widths, mean_boundary_iou(boundary).tolist())),
            trimap_accuracy=dict(zip(self.widths, map(pixel_accuracy, trimap))),
            trimap_miou=dict(zip(self.widths, map(mean_iou, trimap))),
            names=names,
        )

    @property
    def confusion(self) -> torch.Tensor:
        """The confusion matrix of all pixels, int64 [C, C]."""
        return self.counts[: self.num_classes**2].view(self.num_classes, self.num_classes)

    def _shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the parts of `counts`: confusion matrix, confusion matrices of the trimaps, boundary counts."""
        classes, widths = self.num_classes, len(self.widths)
        return [(classes, classes), (widths, classes, classes), (widths, classes, 2)]


def _pairs(predicted: torch.Tensor, true: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The index in a flat confusion matrix at which a pixel counts, or VOID."""
    return (true * num_classes + predicted).where(true != VOID, VOID)


def _within(distance: torch.Tensor, items: torch.Tensor, count: int, widths: tuple[int, ...]) -> torch.Tensor:
    """How often each item, 0 to count - 1 (VOID is none), occurs within each width; int64 [len(widths), count]."""
    most = max(widths, default=0)
    counted = (distance <= most) & (items != VOID)
    at = ((distance - 1) * count + items).where(counted, most * count)  # the last place collects the others
    counts = torch.bincount(at.flatten(), minlength=most * count + 1)[:-1]
    return counts.reshape(most, count).cumsum(0)[[width - 1 for width in widths]]


def _distance(labels: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Chebyshev distance of every pixel to the nearest one with another label; the largest width + 1 if farther.

    On the way from a pixel to one with another label, the first change of label is next to a pixel with its own label:
    a pixel within d of another label is within d - 1 of a pixel that touches one. So one mask, dilated repeatedly,
    gives all distances.
    """
    near = (_dilated(labels) != labels) | (_dilated(-labels) != -labels)
    distance = torch.ones(labels.shape, dtype=torch.int64, device=labels.device)
    for _ in range(max(widths, default=0)):
        distance += ~near
        near = _dilated(near)
    return distance


def _dilated(x: torch.Tensor) -> torch.Tensor:
    """Maximum over 3 x 3 pixels, fewer at the border. It uses slices, because max pooling accepts no booleans and is
    slower."""
    for axis in (-2, -1):
        rest = x.shape[axis] - 1
        out = x.clone()
        for to, source in ((0, 1), (1, 0)):
            part = out.narrow(axis, to, rest)
            torch.maximum(part, x.narrow(axis, source, rest), out=part)
        x = out
    return x


def _percents(values: Iterable[float]) -> str:
    return "".join(f"{100 * value:7.2f}" for value in values)


def _like(given: LabelMap, result: torch.Tensor) -> LabelMap:
    return result if isinstance(given, torch.Tensor) else result.numpy()


def _known(
    labels: LabelMap, truth: LabelMap, num_classes: int, ignore: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps, checked, as int64 tensors that are VOID where the truth is unknown."""
    num_classes = expect_int("num_classes", num_classes, least=1)
    kind = torch.Tensor if isinstance(labels, torch.Tensor) else np.ndarray
    predicted, true = _int64("labels", labels, kind), _int64("truth", truth, kind)
    if predicted.shape != true.shape:
        raise ValueError(f"truth: expected the shape of labels, {list(predicted.shape)}, got {list(true.shape)}")
    known = torch.ones_like(true, dtype=torch.bool)
    if ignore is not None:
        known = true != expect_int("ignore", ignore, least=-(2**31), most=2**31 - 1)
    for name, values in (("labels", predicted), ("truth", true)):
        if (known & ((values < 0) | (values >= num_classes))).any():
            low, high = (int(v) for v in values[known].aminmax())
            wanted = f"classes from 0 to {num_classes - 1} where the truth is known"
            raise ValueError(f"{name}: expected {wanted}, got {low} to {high}")
    return predicted.where(known, VOID), true.where(known, VOID)


def _known_images(
    labels: LabelMap, truth: LabelMap, num_classes: int, ignore: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_known` for functions that need images."""
    predicted, true = _known(labels, truth, num_classes, ignore)
    if true.ndim not in (2, 3) or 0 in true.shape[-2:]:
        raise ValueError(f"truth: expected an image [H, W] or several [B, H, W], got shape {list(true.shape)}")
    return predicted, true


def _expect_widths(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(expect_int("widths", width, least=1, most=1000) for width in widths)


def _int64(name: str, value: Array, kind: type[Array]) -> torch.Tensor:
    if kind is np.ndarray and isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer):
        return torch.from_numpy(value.astype(np.int64))
    if kind is torch.Tensor and isinstance(value, torch.Tensor):
        fraction = value.is_floating_point() or value.is_complex()
        if not fraction and value.dtype != torch.bool:
            return value.detach().to(torch.int64)
    wanted = "a numpy array" if kind is np.ndarray else "a torch.Tensor"
    raise TypeError(f"{name}: expected {wanted} of integers, got {kind_of(value)}")


def _expect_confusion(confusion: LabelMap) -> torch.Tensor:
    kind = torch.Tensor if isinstance(confusion, torch.Tensor) else np.ndarray
    counts = _int64("confusion", confusion, kind)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion: expected a square matrix [C, C], got shape {list(counts.shape)}")
    return counts


def _expect_boundary_counts(counts: LabelMap) -> torch.Tensor:
    values = _int64("counts", counts, torch.Tensor if isinstance(counts, torch.Tensor) else np.ndarray)
    if values.ndim < 2 or values.shape[-1] != 2:
        raise ValueError(f"counts: expected intersections and unions [..., C, 2], got shape {list(values.shape)}")
    return values

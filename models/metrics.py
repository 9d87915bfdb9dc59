"""How good a labelling is: confusion matrix, intersection over union, pixel accuracy.

    M[t, p] = number of pixels with true class t and predicted class p, over pixels whose truth is known
    IoU_c   = TP / (TP + FP + FN) = M[c, c] / (sum_p M[c, p] + sum_t M[t, c] - M[c, c])
    mean    = over the classes that occur in truth or prediction
    pixel   = sum_c M[c, c] / sum M

Confusion matrices of several images add up: a data set's mean IoU is that of the sum, not the mean of the
images' own.
"""

from typing import TypeVar

import numpy as np
import torch

from tritoncrf.checks import expect_int, kind_of

LabelMap = TypeVar("LabelMap", np.ndarray, torch.Tensor)


def confusion_matrix(labels: LabelMap, truth: LabelMap, num_classes: int, ignore: int | None = 255) -> LabelMap:
    """Counts pixels by true class (row) and predicted class (column).

    Args:
        labels: predicted classes, integers of any shape, 0 to num_classes - 1 where the truth is known.
        truth: true classes, same shape and kind; `ignore` where unknown.
        num_classes: C.
        ignore: the value of `truth` that means unknown; None counts every pixel.

    Returns:
        int64 [C, C] of the kind, and on the device, of the arguments.

    Raises:
        TypeError: not two integer arrays, or two integer tensors.
        ValueError: shapes that differ, or a class outside 0 to C - 1. Looked at on every device: such a
            pixel would otherwise count for another class.

    Example:
        >>> import numpy as np
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 255]), num_classes=2)
        array([[1, 1],
               [0, 0]])
    """
    num_classes = expect_int("num_classes", num_classes, least=1)
    if ignore is not None:
        ignore = expect_int("ignore", ignore, least=-(2**31), most=2**31 - 1)
    kind = torch.Tensor if isinstance(labels, torch.Tensor) else np.ndarray
    predicted, true = _int64("labels", labels, kind), _int64("truth", truth, kind)
    if predicted.shape != true.shape:
        raise ValueError(f"truth: expected the shape of labels, {list(predicted.shape)}, got {list(true.shape)}")

    if ignore is not None:
        known = true != ignore
        predicted, true = predicted[known], true[known]
    _expect_classes("labels", predicted, num_classes)
    _expect_classes("truth", true, num_classes)
    pairs = (true * num_classes + predicted).flatten()  # [pixels]
    counts = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts.numpy() if kind is np.ndarray else counts


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
    return iou if isinstance(confusion, torch.Tensor) else iou.numpy()


def mean_iou(confusion: LabelMap) -> float:
    """Mean of `iou_per_class` over the classes that occur in truth or prediction; NaN if none does.

    It is a mean over fewer than C classes where `iou_per_class` has NaN: say so when reporting it.
    """
    return torch.as_tensor(iou_per_class(confusion)).nanmean().item()


def pixel_accuracy(confusion: LabelMap) -> float:
    """Share of the counted pixels whose class is right; NaN if no pixel was counted.

    Raises:
        TypeError, ValueError: `confusion` is not a square matrix of integers.
    """
    counts = _expect_confusion(confusion)
    return (counts.diagonal().sum().double() / counts.sum()).item()


def _int64(name: str, value: LabelMap, kind: type) -> torch.Tensor:
    whole = isinstance(value, kind) and (
        np.issubdtype(value.dtype, np.integer)
        if kind is np.ndarray
        else not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    )
    if not whole:
        wanted = "a numpy array" if kind is np.ndarray else "a torch.Tensor"
        raise TypeError(f"{name}: expected {wanted} of integers, got {kind_of(value)}")
    return torch.from_numpy(value.astype(np.int64)) if kind is np.ndarray else value.detach().to(torch.int64)


def _expect_classes(name: str, values: torch.Tensor, num_classes: int) -> None:
    if values.numel() == 0:
        return
    low, high = (int(v) for v in values.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name}: expected classes from 0 to {num_classes - 1} where the truth is known, got {low} to {high}"
        )


def _expect_confusion(confusion: LabelMap) -> torch.Tensor:
    kind = torch.Tensor if isinstance(confusion, torch.Tensor) else np.ndarray
    counts = _int64("confusion", confusion, kind)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion: expected a square matrix [C, C], got shape {list(counts.shape)}")
    return counts

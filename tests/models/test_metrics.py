"""Metrics against answers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from assertions import assert_close
from tritoncrf.models.metrics import confusion_matrix, iou_per_class, mean_iou, pixel_accuracy

# Six pixels are known. Class 0: 2 of 3 right. Class 1: 1 of 2 right. Class 2: the only one right. Class 3: nowhere.
TRUTH = [[0, 0, 0, 1], [1, 2, 255, 255]]
LABELS = [[0, 0, 1, 1], [2, 2, 0, 3]]
CONFUSION = [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
IOU = [2 / 3, 1 / 3, 1 / 2, math.nan]  # 2 / (2 + 0 + 1), 1 / (1 + 1 + 1), 1 / (1 + 1 + 0)
MEAN = 1 / 2
ACCURACY = 4 / 6

KINDS = [
    pytest.param(lambda x: np.array(x, dtype=np.uint8), id="numpy-uint8"),
    pytest.param(lambda x: np.array(x, dtype=np.int64), id="numpy-int64"),
    pytest.param(lambda x: torch.tensor(x, dtype=torch.uint8), id="torch-uint8"),
    pytest.param(lambda x: torch.tensor(x, dtype=torch.int64), id="torch-int64"),
]


@pytest.mark.parametrize("make", KINDS)
def test_the_worked_example(make):
    confusion = confusion_matrix(make(LABELS), make(TRUTH), num_classes=4)
    assert type(confusion) is type(make(TRUTH))
    assert_close("confusion", torch.as_tensor(confusion), torch.tensor(CONFUSION))

    iou = iou_per_class(confusion)
    assert type(iou) is type(confusion)
    assert_close("iou", torch.as_tensor(iou)[:3], torch.tensor(IOU[:3], dtype=torch.float64))
    assert math.isnan(iou[3])
    assert mean_iou(confusion) == pytest.approx(MEAN, abs=1e-15)
    assert pixel_accuracy(confusion) == pytest.approx(ACCURACY, abs=1e-15)


def test_rows_are_the_truth():
    confusion = confusion_matrix(torch.tensor([1]), torch.tensor([0]), num_classes=2)
    assert confusion.tolist() == [[0, 1], [0, 0]]


def test_a_class_only_predicted_counts_as_wrong_and_one_in_neither_is_skipped():
    confusion = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), num_classes=3)
    assert iou_per_class(confusion).tolist()[:2] == pytest.approx([2 / 3, 0.0])
    assert mean_iou(confusion) == pytest.approx(1 / 3)


def test_matrices_of_two_images_add_up():
    first, second = torch.tensor([0, 1]), torch.tensor([1, 1])
    truth = torch.tensor([0, 0])
    total = confusion_matrix(first, truth, 2) + confusion_matrix(second, truth, 2)
    both = confusion_matrix(torch.cat([first, second]), torch.cat([truth, truth]), 2)
    assert_close("confusion", total, both)
    assert mean_iou(total) == pytest.approx((1 / 4 + 0) / 2)


@pytest.mark.parametrize("ignore", [255, -1, 2, 0])
def test_any_value_may_mean_unknown(ignore):
    truth = torch.tensor([ignore, 1, 1, ignore])
    assert confusion_matrix(torch.tensor([0, 1, 0, 1]), truth, 2, ignore=ignore).tolist() == [[0, 0], [1, 1]]


def test_without_an_ignored_value_every_pixel_counts():
    truth = torch.tensor([0, 255])
    assert confusion_matrix(truth, truth, 256, ignore=None).sum() == 2
    with pytest.raises(ValueError, match=r"truth: expected classes from 0 to 1 .*, got 0 to 255"):
        confusion_matrix(torch.tensor([0, 0]), truth, 2, ignore=None)


def test_no_known_pixel_gives_nan_not_an_error():
    confusion = confusion_matrix(torch.tensor([7]), torch.tensor([255]), num_classes=2)
    assert confusion.sum() == 0
    assert math.isnan(mean_iou(confusion)) and math.isnan(pixel_accuracy(confusion))
    assert confusion_matrix(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 2).sum() == 0


def test_labels_are_free_where_the_truth_is_unknown():
    assert confusion_matrix(torch.tensor([99, 1]), torch.tensor([255, 1]), 2).tolist() == [[0, 0], [0, 1]]


def test_strided_maps_and_the_device_of_the_arguments(device):
    truth = torch.tensor(TRUTH, device=device)
    labels = torch.tensor(LABELS, device=device)
    confusion = confusion_matrix(labels.T, truth.T, 4)
    assert confusion.device.type == device.type
    assert_close("confusion", confusion, torch.tensor(CONFUSION))


@pytest.mark.parametrize(
    "labels, truth, error, message",
    [
        (
            torch.tensor([0.0]),
            torch.tensor([0]),
            TypeError,
            "labels: expected a torch.Tensor of integers, got a float32",
        ),
        (torch.tensor([0]), torch.tensor([True]), TypeError, "truth: expected a torch.Tensor of integers, got a bool"),
        (np.array([0.0]), np.array([0]), TypeError, "labels: expected a numpy array of integers, got a ndarray"),
        (torch.tensor([0]), np.array([0]), TypeError, "truth: expected a torch.Tensor of integers, got a ndarray"),
        ([0], np.array([0]), TypeError, r"labels: expected a numpy array of integers, got \[0\]"),
        (torch.tensor([0]), torch.tensor([0, 1]), ValueError, r"truth: expected the shape of labels, \[1\], got \[2\]"),
        (torch.tensor([2, 0]), torch.tensor([0, 0]), ValueError, "labels: expected classes from 0 to 1 .* got 0 to 2"),
        (torch.tensor([0, 0]), torch.tensor([-1, 0]), ValueError, "truth: expected classes from 0 to 1 .* got -1 to 0"),
    ],
)
def test_bad_maps_are_one_clear_error(labels, truth, error, message):
    with pytest.raises(error, match=message):
        confusion_matrix(labels, truth, num_classes=2)


def test_bad_numbers_and_matrices_are_one_clear_error():
    pixel = torch.tensor([0])
    with pytest.raises(ValueError, match="num_classes: expected an int of at least 1, got 0"):
        confusion_matrix(pixel, pixel, num_classes=0)
    with pytest.raises(TypeError, match="ignore: expected an int"):
        confusion_matrix(pixel, pixel, num_classes=1, ignore="void")
    for metric in (iou_per_class, mean_iou, pixel_accuracy):
        with pytest.raises(ValueError, match=r"confusion: expected a square matrix \[C, C\], got shape \[2, 3\]"):
            metric(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(TypeError, match="confusion: expected a torch.Tensor of integers, got a float32"):
            metric(torch.zeros(2, 2))

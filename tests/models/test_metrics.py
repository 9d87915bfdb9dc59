"""Metrics against answers worked out by hand, and those along borders against their definition, pixel by pixel."""

import importlib
import itertools
import math
import sys

import numpy as np
import pytest
import torch

from assertions import assert_close
from tritoncrf.models.metrics import (
    Evaluation,
    boundary_counts,
    boundary_iou_per_class,
    confusion_matrix,
    iou_per_class,
    mean_accuracy,
    mean_boundary_iou,
    mean_iou,
    pixel_accuracy,
    trimap_confusion,
)

# Six pixels are known. Class 0: 2 of 3 right. Class 1: 1 of 2 right. Class 2: the only one right. Class 3: nowhere.
TRUTH = [[0, 0, 0, 1], [1, 2, 255, 255]]
LABELS = [[0, 0, 1, 1], [2, 2, 0, 3]]
CONFUSION = [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
IOU = [2 / 3, 1 / 3, 1 / 2, math.nan]  # 2 / (2 + 0 + 1), 1 / (1 + 1 + 1), 1 / (1 + 1 + 0)
MEAN = 1 / 2
ACCURACY = 4 / 6
MEAN_ACCURACY = (2 / 3 + 1 / 2 + 1) / 3

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
    assert mean_accuracy(confusion) == pytest.approx(MEAN_ACCURACY, abs=1e-15)


def test_rows_are_the_truth():
    confusion = confusion_matrix(torch.tensor([1]), torch.tensor([0]), num_classes=2)
    assert confusion.tolist() == [[0, 1], [0, 0]]


def test_a_class_only_predicted_counts_as_wrong_and_one_in_neither_is_skipped():
    confusion = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), num_classes=3)
    assert iou_per_class(confusion).tolist()[:2] == pytest.approx([2 / 3, 0.0])
    assert mean_iou(confusion) == pytest.approx(1 / 3)
    assert mean_accuracy(confusion) == pytest.approx(2 / 3)  # class 1 has no true pixel to be right about


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
    assert all(math.isnan(metric(confusion)) for metric in (mean_iou, pixel_accuracy, mean_accuracy))
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
    for metric in (iou_per_class, mean_iou, pixel_accuracy, mean_accuracy):
        with pytest.raises(ValueError, match=r"confusion: expected a square matrix \[C, C\], got shape \[2, 3\]"):
            metric(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(TypeError, match="confusion: expected a torch.Tensor of integers, got a float32"):
            metric(torch.zeros(2, 2))


def test_numbers_may_be_numpy_s():
    truth = torch.tensor(TRUTH)
    found = confusion_matrix(torch.tensor(LABELS), truth, np.int64(4), ignore=np.uint8(255))
    assert found.tolist() == CONFUSION
    assert trimap_confusion(truth, truth, np.int64(4), widths=np.array([1, 2])).shape == (2, 4, 4)


# Along borders --------------------------------------------------------------------------------------------------

# A 5 x 5 square in a 9 x 9 image, predicted one pixel too far to the right.
SQUARE = torch.zeros(9, 9, dtype=torch.int64)
SQUARE[2:7, 2:7] = 1
SHIFTED = SQUARE.roll(1, dims=1)


def square_of(p, size):
    """The pixels at most `size` away from p, those beyond the image included."""
    return itertools.product(*(range(i - size, i + size + 1) for i in p))


def inside(p, shape):
    return all(0 <= i < n for i, n in zip(p, shape))


def trimap_by_definition(labels, truth, num_classes, width, ignore):
    counts = np.zeros((num_classes, num_classes), np.int64)
    for p in np.ndindex(truth.shape):
        around = (q for q in square_of(p, width) if inside(q, truth.shape))
        if truth[p] != ignore and any(truth[q] != truth[p] for q in around):
            counts[truth[p], labels[p]] += 1
    return counts


def boundary_by_definition(labels, truth, num_classes, width, ignore):
    counts = np.zeros((num_classes, 2), np.int64)
    for c in range(num_classes):
        bands = []
        for values in (truth, labels):
            mask = {p for p in np.ndindex(truth.shape) if truth[p] != ignore and values[p] == c}
            bands.append({p for p in mask if any(q not in mask for q in square_of(p, width))})
        counts[c] = len(bands[0] & bands[1]), len(bands[0] | bands[1])
    return counts


def random_maps(*shape, num_classes=4, ignore=255):
    """Blocks of 3 x 3 pixels, some unknown in the truth; a prediction that is right for three quarters of them."""
    blocks = [*shape[:-2], *(-(-n // 3) for n in shape[-2:])]
    truth = np.random.randint(0, num_classes, blocks)
    labels = np.where(np.random.rand(*blocks) < 0.25, np.random.randint(0, num_classes, blocks), truth)
    truth[np.random.rand(*blocks) < 0.15] = ignore
    labels = np.where(truth == ignore, np.random.randint(0, num_classes, blocks), labels)
    return [x.repeat(3, -2).repeat(3, -1)[..., : shape[-2], : shape[-1]] for x in (labels, truth)]


@pytest.mark.parametrize("shape", [(14, 17), (1, 11), (11, 1), (1, 1), (7, 3)])
@pytest.mark.parametrize("ignore", [255, -1, 0])
def test_bands_are_those_of_the_definition(shape, ignore):
    labels, truth = random_maps(*shape, ignore=ignore)
    widths = (1, 2, 3, 5, 20)
    found = trimap_confusion(labels, truth, 4, widths, ignore)
    assert found.tolist() == [trimap_by_definition(labels, truth, 4, width, ignore).tolist() for width in widths]
    found = boundary_counts(labels, truth, 4, widths, ignore)
    assert found.tolist() == [boundary_by_definition(labels, truth, 4, width, ignore).tolist() for width in widths]


@pytest.mark.parametrize("make", KINDS)
def test_the_shifted_square(make):
    labels, truth = make(SHIFTED.tolist()), make(SQUARE.tolist())
    # Truth's ring of 16 pixels, and the 24 around it less no corner: 5 x 5 - 3 x 3 and 7 x 7 - 5 x 5.
    trimap = trimap_confusion(labels, truth, 2, widths=[1, 3])
    assert type(trimap) is type(truth) and str(trimap.dtype).endswith("int64")
    assert trimap.tolist() == [[[19, 5], [5, 11]], [[51, 5], [5, 20]]]
    # The two rings share the top and the bottom, 4 pixels each; whole squares share 5 x 4.
    counts = boundary_counts(labels, truth, 2, widths=[1, 3])
    assert type(counts) is type(truth) and str(counts.dtype).endswith("int64")
    assert counts[:, 1].tolist() == [[8, 24], [20, 30]]
    assert boundary_iou_per_class(counts)[:, 1].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_the_border_of_the_image_is_a_contour_of_masks_but_no_border_of_the_trimap():
    everything = torch.zeros(5, 6, dtype=torch.int64)
    assert trimap_confusion(everything, everything, 1).sum() == 0
    assert boundary_counts(everything, everything, 1, widths=[1, 2, 3]).tolist() == [[[18, 18]], [[28, 28]], [[30, 30]]]


def test_a_border_to_unknown_pixels_counts():
    truth = torch.tensor([[0, 0, 0, 255, 0, 0]])
    assert trimap_confusion(truth.clamp(max=0), truth, 1, widths=[1, 2, 3]).flatten().tolist() == [2, 4, 5]


@pytest.mark.parametrize("fill", [0, 3, 99])
def test_what_is_predicted_where_the_truth_is_unknown_changes_nothing(fill):
    labels, truth = random_maps(15, 18)
    filled = np.where(truth == 255, fill, labels)
    for metric in (confusion_matrix, trimap_confusion, boundary_counts):
        assert metric(filled, truth, 4).tolist() == metric(labels, truth, 4).tolist()
    perfect = boundary_iou_per_class(boundary_counts(np.where(truth == 255, fill, truth), truth, 4))
    assert (perfect == 1).all()


def test_boundary_iou_is_symmetric():
    labels, truth = (torch.tensor(x) for x in random_maps(15, 18))
    known = truth != 255
    one_way = boundary_counts(labels, truth, 4)
    other_way = boundary_counts(truth, labels.where(known, 255), 4)
    assert_close("counts", one_way, other_way)


def test_wide_bands_are_the_whole_masks():
    labels, truth = random_maps(15, 18)
    whole = iou_per_class(confusion_matrix(labels, truth, 4))
    assert boundary_iou_per_class(boundary_counts(labels, truth, 4, widths=[18]))[0].tolist() == whole.tolist()


def test_classes_in_neither_are_skipped_by_the_mean():
    counts = torch.tensor([[[1, 4], [3, 4], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    per_class, mean = boundary_iou_per_class(counts), mean_boundary_iou(counts)
    assert per_class[0, :2].tolist() == [0.25, 0.75] and per_class[0, 2].isnan()
    assert mean[0] == 0.5 and mean[1].isnan()
    assert isinstance(mean_boundary_iou(counts.numpy()), np.ndarray)


def test_bands_of_several_images_add_up_and_do_not_reach_from_one_to_the_next(device):
    labels, truth = (torch.tensor(x, device=device) for x in random_maps(3, 8, 9))
    for metric in (trimap_confusion, boundary_counts):
        batch = metric(labels, truth, 4, widths=(2, 9))
        assert batch.device.type == device.type
        assert_close("counts", batch, sum(metric(l, t, 4, widths=(2, 9)) for l, t in zip(labels, truth)))
        strided = metric(labels.mT, truth.mT, 4, widths=(2, 9))
        assert_close("counts", strided, batch)
        assert metric(labels[:0], truth[:0], 4).sum() == 0


@pytest.mark.parametrize("metric", [trimap_confusion, boundary_counts])
def test_bad_images_and_widths_are_one_clear_error(metric):
    image = torch.zeros(2, 2, dtype=torch.int64)
    for shape in ([4], [1, 1, 2, 2], [0, 3], [2, 3, 0]):
        empty = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"truth: expected an image \[H, W\] or several \[B, H, W\], got shape"):
            metric(empty, empty, 1)
    with pytest.raises(ValueError, match="widths: expected an int from 1 to 1000, got 0"):
        metric(image, image, 1, widths=(1, 0))
    with pytest.raises(TypeError, match="widths: expected an int"):
        metric(image, image, 1, widths=(1.5,))
    with pytest.raises(ValueError, match=r"labels: expected classes from 0 to 0 .* got 0 to 3"):
        metric(torch.tensor([[0, 3]]), torch.tensor([[0, 0]]), 1)
    with pytest.raises(ValueError, match=r"truth: expected the shape of labels, \[2, 2\], got \[1, 2\]"):
        metric(image, image[:1], 1)
    with pytest.raises(TypeError, match="labels: expected a torch.Tensor of integers, got a float32"):
        metric(image.float(), image, 1)


def test_bad_boundary_counts_are_one_clear_error():
    for shape in ([2], [3, 3]):
        with pytest.raises(ValueError, match=r"counts: expected intersections and unions \[..., C, 2\], got shape"):
            boundary_iou_per_class(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TypeError, match="counts: expected a numpy array of integers"):
        mean_boundary_iou([[1, 2]])


# All at once ----------------------------------------------------------------------------------------------------


def test_an_evaluation_has_the_metrics_of_the_whole_data_set():
    images = [random_maps(9, 14), random_maps(2, 7, 5), random_maps(12, 3)]
    evaluation = Evaluation(4, widths=(1, 3))
    for labels, truth in images:
        evaluation.add(labels, truth)
    result = evaluation.result()

    confusion = sum(confusion_matrix(*maps, 4) for maps in images)
    trimap = sum(trimap_confusion(*maps, 4, widths=(1, 3)) for maps in images)
    boundary = sum(boundary_counts(*maps, 4, widths=(1, 3)) for maps in images)
    assert result.iou == tuple(iou_per_class(confusion)) and result.miou == mean_iou(confusion)
    assert result.pixel_accuracy == pixel_accuracy(confusion) and result.mean_accuracy == mean_accuracy(confusion)
    assert result.trimap_accuracy == {1: pixel_accuracy(trimap[0]), 3: pixel_accuracy(trimap[1])}
    assert result.trimap_miou == {1: mean_iou(trimap[0]), 3: mean_iou(trimap[1])}
    assert result.boundary_iou == dict(zip((1, 3), mean_boundary_iou(boundary)))


def test_counts_of_several_processes_add_up():
    whole, parts = Evaluation(4), [Evaluation(4), Evaluation(4)]
    for rank, part in enumerate(parts):
        for _ in range(rank + 1):
            labels, truth = (torch.tensor(x) for x in random_maps(8, 9))
            whole.add(labels, truth)
            part.add(labels, truth)
    assert whole.counts.dtype == torch.int64
    parts[0].counts += parts[1].counts
    assert parts[0].result() == whole.result()


def test_a_perfect_labelling_is_1_in_everything():
    _, truth = random_maps(20, 20)
    evaluation = Evaluation(4)
    evaluation.add(truth, truth)
    result = evaluation.result()
    assert result.iou == (1, 1, 1, 1) and result.miou == result.pixel_accuracy == result.mean_accuracy == 1
    for values in (result.boundary_iou, result.trimap_accuracy, result.trimap_miou):
        assert values == dict.fromkeys(range(1, 11), 1)


def test_nothing_added_is_nan_in_everything():
    result = Evaluation(2, widths=[1]).result()
    values = [*result.iou, result.miou, result.boundary_iou[1], result.trimap_accuracy[1], result.trimap_miou[1]]
    assert all(math.isnan(value) for value in values)
    assert "over 0 of 2 classes" in str(result)


def test_the_table_of_an_evaluation_without_bands():
    evaluation = Evaluation(4, widths=())
    evaluation.add(torch.tensor(LABELS), torch.tensor(TRUTH))
    assert str(evaluation.result(["void", "a", "b", "nowhere"])).splitlines() == [
        "mean IoU        50.00  over 3 of 4 classes",
        "pixel accuracy  66.67",
        "mean accuracy   72.22",
        "IoU void        66.67",
        "IoU a           33.33",
        "IoU b           50.00",
        "IoU nowhere       nan",
    ]


def test_a_failed_image_adds_nothing():
    evaluation = Evaluation(2)
    with pytest.raises(ValueError, match="truth: expected an image"):
        evaluation.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert evaluation.counts.sum() == 0


def test_bad_evaluations_are_one_clear_error():
    with pytest.raises(ValueError, match="num_classes: expected an int of at least 1, got 0"):
        Evaluation(0)
    with pytest.raises(ValueError, match="widths: expected an int from 1 to 1000, got 0"):
        Evaluation(2, widths=[0])
    with pytest.raises(ValueError, match=r"names: expected one per class \(2\), got 1"):
        Evaluation(2).result(["a"])


def test_the_metric_of_torchmetrics_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "tritoncrf.models.torchmetrics", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'needs torchmetrics: pip install "tritoncrf\[torchmetrics\]"$'):
        importlib.import_module("tritoncrf.models.torchmetrics")

"""The measures as a metric of torchmetrics: batches, processes, resets."""

import pickle

import pytest
import torch

from optional import imported
from tritoncrf.models.metrics import Evaluation

imported("torchmetrics")
from tritoncrf.models.torchmetrics import SegmentationMetric  # noqa: E402

pytestmark = pytest.mark.extras

C, WIDTHS = 3, (1, 2)


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        scores = torch.randn(2, C, 7, 9, generator=generator)
        truth = torch.randint(0, C, (2, 7, 9), generator=generator)
        truth[:, 0] = 255
        yield scores, truth


def expected(found):
    evaluation = Evaluation(C, WIDTHS)
    for scores, truth in found:
        evaluation.add(scores.argmax(1), truth)
    return evaluation.result(["a", "b", "c"]).numbers()


def metric(**options):
    return SegmentationMetric(C, ["a", "b", "c"], WIDTHS, **options)


def expect_numbers(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.item() == pytest.approx(wanted[name], rel=1e-6, nan_ok=True), name


def test_batches_give_what_an_evaluation_of_all_images_does():
    made = metric()
    for scores, truth in batches(3):
        made.update(scores, truth)
    expect_numbers(made.compute(), expected(batches(3)))
    assert {"miou", "boundary_iou 2", "trimap_accuracy 1", "iou b"} <= made.compute().keys()


def test_a_call_gives_the_numbers_of_its_batch_and_counts_it():
    made = metric()
    for batch in batches(2):
        found = made(*batch)
    expect_numbers(found, expected(list(batches(2))[1:]))
    expect_numbers(made.compute(), expected(batches(2)))


def test_classes_count_as_their_scores():
    made, other = metric(), metric()
    for scores, truth in batches(1):
        made.update(scores, truth)
        other.update(scores.argmax(1), truth)
    assert torch.equal(made.counts, other.counts)


def test_a_reset_forgets():
    made = metric()
    for n in range(2):
        for batch in batches(1, seed=n):
            made.update(*batch)
        expect_numbers(made.compute(), expected(batches(1, seed=n)))
        made.reset()
    assert not made.counts.any()


def test_copies_count_by_themselves():
    made = metric()
    for batch in batches(1):
        made.update(*batch)
    copy = pickle.loads(pickle.dumps(made))
    other = made.clone()
    made.reset()
    for found in (copy, other):
        expect_numbers(found.compute(), expected(batches(1)))


def test_processes_add_up():
    """What torchmetrics gathers from the processes is given here; a process then goes on with its own."""
    parts = [list(batches(3))[rank::2] for rank in range(2)]
    other = metric()
    made = metric(dist_sync_fn=lambda state, group=None: [state, other.counts], distributed_available_fn=lambda: True)
    for one, part in zip((made, other), parts):
        for batch in part:
            one.update(*batch)
    own = made.counts.clone()
    expect_numbers(made.compute(), expected(batches(3)))
    assert torch.equal(made.counts, own)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)),
            r"preds: expected scores \[B, 3, H, W\] or",
        ),
        ((torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 9)), "truth: expected classes from 0 to 2"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64)), "truth: expected the shape of labels"),
    ],
)
def test_bad_batches(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        metric().update(*arguments)


def test_bad_names():
    with pytest.raises(ValueError, match=r"^names: expected one per class \(3\), got 1"):
        SegmentationMetric(C, ["a"])

"""The synthetic task: its resize by hand, and what the published procedure promises."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from torch import from_numpy as tensor

from assertions import assert_close
from tritoncrf.synthetic import _resize, noisy_scores

DATA = Path(os.environ.get("TRITONCRF_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


def test_resize_by_hand():
    up = _resize(np.array([[1.0, 3.0]], dtype=np.float32), (1, 4))  # samples at -0.25, 0.25, 0.75, 1.25
    assert up.tolist() == [[0.75, 1.5, 2.5, 2.25]]
    down = _resize(np.array([[1.0, 2.0, 4.0, 8.0]], dtype=np.float32), (1, 2))  # samples at 0.5, 2.5
    assert down.tolist() == [[1.5, 6.0]]


def test_values_shrink_at_the_border_alone():
    scores = noisy_scores(np.zeros((40, 64), dtype=np.uint8), num_classes=1)[0]  # truth and noise agree
    # Pixel i samples the cells at (i + 1/2) / 8 - 1/2: 9/16 of the way from the zero outside to the first cell, and on.
    along = [np.concatenate([9 / 16 + np.arange(4) / 8, np.ones(n - 8), 15 / 16 - np.arange(4) / 8]) for n in (40, 64)]
    assert_close("ramps", tensor(scores), tensor(np.outer(*along).astype(np.float32)))


def test_nothing_kept_is_noise_alone():
    labels = np.zeros((64, 64), dtype=int)
    scores = noisy_scores(labels, num_classes=4, keep=0.0)
    shares = np.bincount(scores.argmax(0).ravel(), minlength=4) / labels.size
    assert np.all(shares > 0.1)


@pytest.mark.parametrize("size", [(8, 8), (9, 23), (100, 61)])
def test_any_size_from_one_cell(size):
    scores = noisy_scores(np.ones(size, dtype=np.int64), num_classes=2)
    assert scores.shape == (2, *size) and scores.dtype == np.float32
    assert scores.min() >= 0 and scores.sum(0).max() <= 1 + 1e-6


def test_repeatable_by_seed():
    labels = np.arange(40 * 40).reshape(40, 40) % 5
    first = noisy_scores(labels, 5, seed=3)
    assert np.array_equal(first, noisy_scores(labels, 5, seed=3))
    assert not np.array_equal(first, noisy_scores(labels, 5, seed=4))


def test_accuracy_on_voc_is_the_published_one():
    if not (DATA / "voc").is_dir():
        pytest.skip(f"no VOC label maps in {DATA}; TRITONCRF_DATA names the folder that has them")
    from PIL import Image

    accuracies = []
    with open(DATA / "voc" / "index.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["label_kind"] != "voc":
                continue
            labels = np.array(Image.open(DATA / "voc" / row["label"]))
            labels[labels == 255] = 0
            accuracies += [(noisy_scores(labels, 21, seed=s).argmax(0) == labels).mean() for s in range(3)]
    assert 0.855 <= np.mean(accuracies) <= 0.885  # the paper has 0.8660


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"labels": np.zeros((7, 40), int)}, ValueError, "labels: expected .H, W. of at least 8 x 8"),
        ({"labels": np.zeros((3, 40, 40), int)}, ValueError, "labels"),
        ({"labels": np.zeros((40, 40))}, TypeError, "labels: expected integers"),
        ({"labels": np.full((40, 40), 255, np.uint8)}, ValueError, "labels: expected 0 to 1, got 255"),
        ({"labels": np.full((40, 40), -1)}, ValueError, "labels: expected 0 to 1, got -1"),
        ({"num_classes": 2.5}, TypeError, "num_classes"),
        ({"scale": 0}, ValueError, "scale"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"keep": float("nan")}, ValueError, "keep"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=f"^{message}"):
        noisy_scores(**{"labels": np.zeros((40, 40), int), "num_classes": 2} | change)

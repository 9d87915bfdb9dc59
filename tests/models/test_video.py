"""The experiment on a video: flickers by hand, which frames are seen together, and its report."""

import csv

import numpy as np
import pytest

from tritoncrf.models.__main__ import main
from tritoncrf.models.experiments import video
from tritoncrf.models.experiments.defaults import ScoreSet
from tritoncrf.models.scored import Scored


def frames(count, size=(6, 8), classes=3):
    draw = np.random.default_rng(0)
    items = [
        Scored(
            draw.integers(0, 256, (*size, 3), dtype=np.uint8),
            {"logits": draw.normal(size=(classes, *size)).astype(np.float32)},
            draw.choice([0, 1, 2, 255], size, p=[0.4, 0.4, 0.1, 0.1]),
        )
        for _ in range(count)
    ]
    return ScoreSet("frames", items, classes, video=True)


def test_flickers_by_hand():
    labels = np.array([[[0, 1, 2, 2]], [[0, 2, 1, 2]], [[1, 2, 1, 0]]])
    truth = np.array([[[0, 1, 2, 255]], [[0, 1, 0, 1]], [[0, 255, 0, 1]]])
    # first: of three pixels two change, one as the truth does; then two of three that are known in both, both falsely
    assert video.flickers(labels, truth).tolist() == [[2, 1, 3], [2, 2, 3]]


@pytest.mark.parametrize("count, seen", [(1, [1, 1, 1, 1]), (3, [2, 3, 3, 2]), (9, [4, 4, 4, 4]), (None, [4])])
def test_a_frame_is_seen_with_those_around_it(count, seen, monkeypatch):
    asked = []

    def refine(image, *, logits, **options):
        assert image.shape == (*logits.shape[1:], 3)
        asked.append(len(image))
        return logits

    monkeypatch.setattr(video, "refine", refine)
    items = frames(4).items
    found = list(video.refined(items, count))
    assert asked == seen
    for q, item in zip(found, items, strict=True):
        assert np.array_equal(q, item.scores["logits"])


def test_noise_differs_from_frame_to_frame():
    found = video.noisy(frames(2, size=(32, 32)))
    image, scores = video.volume(found.items)
    assert image.shape == (2, 32, 32, 3) and scores["labels"].shape == (2, 32, 32) and scores["num_classes"] == 3
    assert (scores["labels"][0] != scores["labels"][1]).any()


def test_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "train", lambda names, place: None)
    monkeypatch.setattr(video, "camvid", lambda run, place: frames(8))
    assert main(["experiments", "video", "--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "video.md").read_text()
    assert text.count("| no CRF") == text.count("| 9 frames") == text.count("| the truth") == 2
    with open(tmp_path / "out" / "video.csv", newline="") as file:
        rows = {(row["set"], row["row"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert len(rows) == 2 * 7 * 4
    assert rows["frames", "the truth", "mean IoU"] == 1 and rows["frames", "the truth", "falsely changed"] == 0
    assert 0 < rows["frames", "all frames", "falsely changed"] < rows["frames", "all frames", "changed"] < 1

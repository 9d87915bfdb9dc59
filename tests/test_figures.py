"""Figures: a palette that people tell apart, and panels that show what they say."""

import numpy as np
import pytest

from covering import covering
from drawings import picture, texts
from tritoncrf import figures
from tritoncrf.diagnostics import Record

# Linear RGB as a protanope and a deuteranope see it (Machado, Oliveira and Fernandes 2009, severity 1).
EYES = {
    "normal": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def oklab(rgb):
    """OKLab coordinates of linear RGB (Ottosson 2020)."""
    to_lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.1073969],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    to_lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.4285922, 0.4505937],
        [0.02590404, 0.78277177, -0.8086758],
    ]
    return np.cbrt(np.clip(rgb, 0, 1) @ np.transpose(to_lms)) @ np.transpose(to_lab)


@pytest.mark.parametrize("eyes", EYES)
def test_the_first_21_colors_are_told_apart_by(eyes):
    rgb = figures.palette()[:21] / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = oklab(linear @ EYES[eyes].T)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(21)
    assert distances.min() > 0.06  # a just noticeable difference is 0.02


def test_the_palette_is_256_different_colors():
    colors = figures.palette()
    assert colors.shape == (256, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 256
    assert np.ptp(colors[0].astype(int)) < 16  # class 0 is a grey


BEFORE = np.zeros((40, 60), np.uint8)
AFTER = np.array(BEFORE)
AFTER[:10] = 2
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_titles_and_legend_without_truth():
    shown = texts(figures.comparison(IMAGE, BEFORE, AFTER, seconds=1.234))
    assert {"60 x 40 pixels", "1.23 s", "25.0% of the pixels"} <= set(shown)
    assert {"class 0  100.0 → 75.0 %", "class 2  0.0 → 25.0 %"} <= set(shown)


def test_titles_and_legend_with_truth():
    truth = np.array(AFTER)
    truth[5:10] = 0
    truth[-1] = 1
    shown = texts(figures.comparison(IMAGE, BEFORE, AFTER, truth=truth, names=("a", "b", "c"), seconds=0.5))
    assert {"85.0% right", "85.0% right, 0.50 s", "300 repaired, 300 broken"} <= set(shown)
    assert {"repaired", "broken", "still wrong", "c  0.0 → 25.0 %"} <= set(shown)


@pytest.mark.parametrize(
    "kind, shape", covering(["grey", "color", "float"], [(40, 60), (60, 40), (1, 1), (7, 300)], at_once=1)
)
def test_any_size_and_kind_of_image(shape, kind):
    image = np.random.default_rng(0).integers(0, 256, shape if kind == "grey" else (*shape, 3), dtype=np.uint8)
    labels = np.zeros(shape, np.int64)
    labels[0, 0] = -1  # unknown
    drawn = picture(figures.comparison(image / 255 if kind == "float" else image, labels, np.abs(labels)))
    assert drawn.std() > 0


def test_methods_stand_side_by_side():
    refined = {"Guided": (AFTER, 0.5), "Lattice": (BEFORE, 12.345)}
    figure = figures.methods(IMAGE, AFTER, refined, truth=AFTER, names=("a", "b", "c"))
    assert len(figure.axes) == 3
    assert {"Input labels", "Guided", "100.0% right, 0.50 s", "Lattice", "75.0% right, 12.35 s"} <= set(texts(figure))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "c"]
    assert picture(figure).std() > 0
    assert "0.50 s" in texts(figures.methods(IMAGE, AFTER, refined))


def test_many_classes_are_summed_up():
    labels = np.arange(2400).reshape(40, 60) % 200
    assert "and 176 more" in texts(figures.comparison(IMAGE, labels, labels))


def test_large_images_are_thinned():
    labels = np.zeros((3000, 10), np.uint8)
    figure = figures.comparison(labels, labels, labels)
    assert figure.axes[0].images[0].get_array().shape[:2] == (1000, 4)


def test_a_trace_shows_its_records():
    records = [Record(t, -2e6 / (t + 1), -3e6 / (t + 1), 0.0, 0.5 / (t + 1), 0.1 * t) for t in range(4)]
    figure = figures.trace(records)
    assert {"Free energy", "Entropy", "Labels changed", "nats per pixel"} <= set(texts(figure))
    curves = [[line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert curves[0] == [[r.energy for r in records], [r.free_energy for r in records]]
    assert curves[1] == [[r.entropy for r in records]]
    assert curves[2] == [[100 * r.changed for r in records[1:]]]
    assert picture(figure).std() > 0


def test_a_trace_without_iterations():
    assert picture(figures.trace([Record(0, -2.0, -3.0, -4.0, 0.5, 0.0)])).std() > 0

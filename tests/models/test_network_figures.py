"""Figures of networks: what is drawn is what was given."""

import csv
import io
import math

import numpy as np
import pytest
import torch

from drawings import picture, texts
from tritoncrf.figures import palette
from tritoncrf.models import network_figures
from tritoncrf.models.metrics import Result

NAMES = ("sky", "road", "tree")


def lines(axes):
    """What is plotted, by its name; vertical lines have none."""
    return {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}


# Curves ---------------------------------------------------------------------------------------------------------

ROWS = [
    {"phase": "unary", "loss": 2.0, "val_loss": 2.5, "val_miou": 0.25, "val_unary_miou": 0.25},
    {"phase": "unary", "loss": 1.0, "val_loss": None, "val_miou": None, "val_unary_miou": None},
    {"phase": "crf", "loss": None, "val_loss": 1.25, "val_miou": 0.5, "val_unary_miou": 0.375},
    {"phase": "crf", "loss": 0.5, "val_loss": 1.0, "val_miou": 0.75, "val_unary_miou": 0.375},
    {"phase": "all", "loss": 0.25, "val_loss": 0.5, "val_miou": 0.875, "val_unary_miou": 0.5},
]


def from_a_file(rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return list(csv.DictReader(io.StringIO(file.getvalue())))


@pytest.mark.parametrize("rows", [ROWS, from_a_file(ROWS)], ids=["numbers", "text"])
def test_curves_are_the_rows_and_missing_values_gaps(rows):
    figure = network_figures.curves(rows)
    loss, miou = figure.axes
    np.testing.assert_array_equal(lines(loss)["training"], [2, 1, math.nan, 0.5, 0.25])
    np.testing.assert_array_equal(lines(loss)["validation"], [2.5, math.nan, 1.25, 1, 0.5])
    np.testing.assert_array_equal(lines(miou)["with CRF"], [25, math.nan, 50, 75, 87.5])
    np.testing.assert_array_equal(lines(miou)["without CRF"], [25, math.nan, 37.5, 37.5, 50])
    assert {"unary", "crf", "all", "training", "without CRF"} <= set(texts(figure))
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")] == [2.5, 4.5]
        assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert picture(figure).shape == (1050, 1350, 3)


def test_curves_without_a_crf_or_a_validation_draw_what_there_is():
    figure = network_figures.curves([{"phase": "all", "loss": 1.0, "val_miou": 0.5, "val_unary_miou": None}])
    assert list(lines(figure.axes[0])) == ["training"] and list(lines(figure.axes[1])) == ["with CRF"]
    assert not {"training", "with CRF"} & set(texts(figure))  # one line needs no legend
    figure.draw_without_rendering()
    assert 1 in figure.axes[0].get_xticks() and all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    assert picture(network_figures.curves([{"loss": ""}])).std() > 0


def test_curves_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="rows: expected at least one epoch, got none"):
        network_figures.curves([])


# Matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_confusion_shows_the_shares_of_each_row(make):
    figure = network_figures.confusion(make([[3, 1, 0], [0, 0, 0], [2, 0, 6]]), NAMES)
    drawn = figure.axes[0].images[0]
    expected = np.array([[75, 25, 0], [math.nan] * 3, [25, 0, 75]])
    np.testing.assert_array_equal(np.ma.filled(drawn.get_array(), math.nan), expected)
    assert drawn.get_clim() == (0, 100)
    for ticks in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == list(NAMES)
    numbers = {text.get_position(): text.get_text() for text in figure.axes[0].texts[2:]}
    assert numbers == {(0, 0): "75", (1, 0): "25", (2, 0): "0", (0, 2): "25", (1, 2): "0", (2, 2): "75"}
    assert picture(figure).std() > 0


@pytest.mark.parametrize("count, numbers", [(24, 24 * 24), (25, 0), (60, 0)])
def test_many_classes_have_no_numbers(count, numbers):
    figure = network_figures.confusion(np.ones((count, count), np.int64), [f"class {n}" for n in range(count)])
    assert len(figure.axes[0].texts) == 2 + numbers
    assert picture(figure).shape[0] < 3000


def test_compatibility_is_centred_at_zero():
    costs = np.array([[-0.5, 0.25, -0.001], [0.0, -2.0, 0.125], [1.0, 0.5, -1.0]])
    figure = network_figures.compatibility(costs, NAMES)
    drawn = figure.axes[0].images[0]
    np.testing.assert_array_equal(drawn.get_array(), costs)
    assert drawn.get_clim() == (-2, 2)
    assert min(drawn.to_rgba(0.0)) > 0.99
    assert drawn.to_rgba(-2.0)[2] > drawn.to_rgba(-2.0)[0] and drawn.to_rgba(2.0)[0] > drawn.to_rgba(2.0)[2]
    numbers = [text.get_text() for text in figure.axes[0].texts[2:]]
    assert numbers == ["-0.50", "0.25", "0.00", "0.00", "-2.00", "0.12", "1.00", "0.50", "-1.00"]
    assert picture(figure).std() > 0


@pytest.mark.parametrize("scale, number", [(0.0, "0.00"), (0.004, "0.00400"), (1234.5, "1234")])
def test_compatibility_of_any_size(scale, number):
    figure = network_figures.compatibility(np.full((1, 1), scale), ["only"])
    assert figure.axes[0].texts[2].get_text() == number
    assert picture(figure).std() > 0


def test_bad_matrices_are_one_clear_error():
    for draw in (network_figures.confusion, network_figures.compatibility):
        with pytest.raises(ValueError, match=r"matrix: expected \[3, 3\] for 3 names, got shape \[2, 2\]"):
            draw(np.ones((2, 2)), NAMES)
    with pytest.raises(ValueError, match="matrix: expected finite numbers"):
        network_figures.compatibility(np.full((3, 3), math.nan), NAMES)


# Labels ---------------------------------------------------------------------------------------------------------


def example(height, width):
    image = np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2] = 1
    truth[-1] = 255
    return image, truth


def test_panel_has_a_row_an_image_and_a_column_a_map():
    (image, truth), (second, other) = example(20, 30), example(40, 30)
    unary, refined = [np.zeros_like(truth), np.zeros_like(other)], [np.where(t == 255, 0, t) for t in (truth, other)]
    figure = network_figures.panel([image, second / 255], [truth, other], unary, refined, NAMES)
    # Class 0 is right below the middle, where the last row is unknown: in 9 of 19 rows, and in 19 of 39.
    assert {"Image", "Truth", "Without CRF", "With CRF", "48.3% right", "100.0% right"} <= set(texts(figure))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"sky", "road", "unknown (striped)"}
    shapes = [axes.images[0].get_array().shape[:2] for axes in figure.axes]
    assert shapes == [(20, 30)] * 4 + [(40, 30)] * 4
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), image)

    # Overlays are 0.65 of the palette, and of class 0 all over where nothing was found.
    inside = figure.axes[2].images[0].get_array()[5, 5]
    grey = image[5, 5] @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(inside, 0.35 * grey + 0.65 * palette()[0] / 255, atol=1e-12)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[4].height == pytest.approx(2 * boxes[0].height) and boxes[4].y1 < boxes[0].y0
    assert picture(figure).std() > 0


def test_unknown_pixels_of_the_panel_have_no_color():
    image = np.zeros((8, 9, 3), np.uint8)
    nothing = np.full((8, 9), 255)
    drawn = network_figures.panel([image], [nothing], [nothing * 0 + 2], None, NAMES).axes[1].images[0].get_array()
    assert (drawn[..., 0] == drawn[..., 1]).all() and (drawn[..., 1] == drawn[..., 2]).all() and drawn.min() >= 0.4
    assert len(np.unique(drawn)) == 2  # stripes


def test_panel_without_a_crf():
    image, truth = example(20, 30)
    figure = network_figures.panel([image.mean(2).astype(np.uint8)], [truth], [truth * 0], None, NAMES)
    assert len(figure.axes) == 3
    assert "Predicted" in texts(figure) and "With CRF" not in texts(figure)
    assert picture(figure).std() > 0


def test_large_images_of_the_panel_are_thinned():
    image, truth = example(2500, 10)
    assert network_figures.panel([image], [truth], [truth], None, NAMES).axes[0].images[0].get_array().shape[:2] == (
        834,
        4,
    )


def test_bad_panels_are_one_clear_error():
    image, truth = example(4, 4)
    for arguments in (([], [], [], None), ([image], [], [truth], None), ([image], [truth], [truth], [truth] * 2)):
        with pytest.raises(ValueError, match="images: expected as many as maps, at least one"):
            network_figures.panel(*arguments, NAMES)


def test_overlay_picture_mixes_the_colors_of_labels_with_the_grey_image():
    image = np.full((3, 4, 3), 100, np.uint8)
    labels = np.full((3, 4), 2, np.uint8)
    mixed = network_figures.overlay_picture(image, labels)
    assert mixed.dtype == np.uint8 and mixed.shape == (3, 4, 3)
    np.testing.assert_array_equal(mixed[1, 1], np.round(0.35 * 100 + 0.65 * palette()[2]))
    np.testing.assert_array_equal(network_figures.overlay_picture(image, np.full((3, 4), -1)), image)
    assert network_figures.overlay_picture(image[..., 0] / 255, labels).tolist() == mixed.tolist()


# Trimaps --------------------------------------------------------------------------------------------------------


def result(level):
    values = {1: level, 2: level + 0.125, 4: level + 0.25}
    return Result(0.5, (0.5,), 0.5, 0.5, values, {w: v / 2 for w, v in values.items()}, values, ("all",))


def test_trimap_draws_the_results_by_width():
    results = {f"method {n}": result(n / 16) for n in range(9)}
    figure = network_figures.trimap(results)
    for axes, field in zip(figure.axes, ("trimap_accuracy", "trimap_miou", "boundary_iou")):
        assert [line.get_label() for line in axes.lines] == list(results)
        assert all(list(line.get_xdata()) == [1, 2, 4] for line in axes.lines)
        assert [list(line.get_ydata()) for line in axes.lines] == [
            [100 * v for v in getattr(r, field).values()] for r in results.values()
        ]
        assert len({(tuple(line.get_color()), line.get_linestyle()) for line in axes.lines}) == 9
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(results)
    assert picture(figure).std() > 0


def test_a_trimap_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="results: expected at least one, got none"):
        network_figures.trimap({})

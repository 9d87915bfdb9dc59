"""Augmentation: warps whose answer is known to the pixel, and labels that stay where the photo's things are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tritoncrf.models import data
from tritoncrf.models.augment import MEAN_COLOR, VOID, Augment, Drawn
from tritoncrf.models.segmodel import SegModel

STILL = Drawn(
    size=(6, 8), corner=(0, 0), scale=(1.0, 1.0), mirror=False, rotation=0.0,
    brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, channel_shift=(0, 0, 0),
)  # fmt: skip


def picture(height, width, seed=0):
    """A photo of noise and its labels, every pixel unlike its neighbours: a shift by one pixel is seen."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return photo, rng.integers(0, 20, (height, width), dtype=np.uint8)


def applied(photo, labels, drawn):
    return [np.array(x) for x in Augment.apply(Image.fromarray(photo), Image.fromarray(labels), drawn)]


def called(augment, photo, labels, seed=0):
    pair = augment(Image.fromarray(photo), Image.fromarray(labels), np.random.default_rng(seed))
    return [np.array(x) for x in pair]


def same(pair, expected):
    return all(np.array_equal(x, y) for x, y in zip(pair, expected))


# Geometry -------------------------------------------------------------------------------------------------------


def test_nothing_switched_on_changes_nothing():
    pair = picture(6, 9)
    assert same(called(Augment(), *pair), pair)


def test_mirror_exchanges_left_and_right():
    pair = picture(5, 8)
    assert same(called(Augment(mirror=1.0), *pair), [x[:, ::-1] for x in pair])


def test_a_crop_is_a_slice_and_every_place_occurs():
    pair, augment = picture(6, 7), Augment(crop=(4, 5))
    places = set()
    for seed in range(60):
        row, column = augment.draw((6, 7), np.random.default_rng(seed)).corner
        assert same(called(augment, *pair, seed), [x[row : row + 4, column : column + 5] for x in pair])
        places.add((row, column))
    assert places == {(row, column) for row in range(3) for column in range(3)}


def test_a_crop_larger_than_the_image_is_padded():
    photo, labels = picture(3, 8)
    augment = Augment(crop=(5, 6))
    row, column = augment.draw((3, 8), np.random.default_rng(4)).corner
    assert -2 <= row <= 0 <= column <= 2
    expected_photo, expected_labels = np.full((5, 6, 3), MEAN_COLOR), np.full((5, 6), VOID)
    expected_photo[-row : 3 - row] = photo[:, column : column + 6]
    expected_labels[-row : 3 - row] = labels[:, column : column + 6]
    assert same(called(augment, photo, labels, 4), (expected_photo, expected_labels))


@pytest.mark.parametrize("degrees, turns", [(90, 1), (180, 2), (-90, -1)])
def test_quarter_turns_are_exact_and_counterclockwise(degrees, turns):
    photo, labels = picture(6, 6)
    turned, turned_labels = applied(photo, labels, replace(STILL, size=(6, 6), rotation=degrees))
    assert np.array_equal(turned_labels, np.rot90(labels, turns))
    assert np.abs(turned - np.rot90(photo, turns).astype(int)).max() <= 1  # Pillow rounds down what a sine leaves


def test_the_turn_is_about_the_centre_of_the_crop():
    photo, labels = picture(9, 9)
    _, turned = applied(photo, labels, replace(STILL, size=(3, 3), corner=(5, 1), rotation=90))
    assert np.array_equal(turned, np.rot90(labels[5:8, 1:4]))


def test_magnified_labels_are_repeated():
    photo, labels = picture(4, 5)
    photo = np.full_like(photo, 77)
    grown = applied(photo, labels, replace(STILL, size=(8, 15), scale=(2.0, 3.0)))
    assert same(grown, (np.full((8, 15, 3), 77), labels.repeat(2, 0).repeat(3, 1)))


def test_shrinking_averages_and_does_not_alias():
    board = np.indices((40, 60)).sum(0) % 2
    photo, labels = np.repeat(255 * board[..., None], 3, axis=2).astype(np.uint8), board.astype(np.uint8)
    small, _ = applied(photo, labels, replace(STILL, size=(16, 24), scale=(0.4, 0.4)))
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3  # without averaging, 0 to 255


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("crop", [(120, 90), None], ids=["crop", "own-size"])
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_labels_stay_with_the_photo(seed, crop, axis):
    """Labels and red are the row (or column) of each pixel: they must agree after any warp, to less than a pixel."""
    labels = np.indices((150, 200))[axis].astype(np.uint8)
    photo = np.stack([labels, labels, np.full_like(labels, 255)], axis=-1)
    augment = Augment(scale=(0.4, 2.5), aspect=(0.5, 2.0), mirror=0.5, rotation=40, crop=crop)
    photo, labels = called(augment, photo, labels, seed)
    outside = labels == VOID
    assert (outside ^ (photo == MEAN_COLOR).all(-1)).sum() <= 2  # on the very edge the two are rounded apart
    # Where x is read, the label is floor(x) and red x - 1/2, rounded down; at the ends of the ramp it is flatter.
    inside = ~outside & (labels > 5) & (labels < (150, 200)[axis] - 6)
    difference = photo[..., 0].astype(int) - labels
    assert inside.mean() > 0.1 and difference[inside].min() >= -1 and difference[inside].max() <= 0
    assert -0.6 < difference[inside].mean() + 0.5 < 0.1


# Colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, color, expected",
    [
        ({"brightness": 0.5}, (100, 60, 200), (50, 30, 100)),
        ({"brightness": 1.5}, (100, 60, 200), (150, 90, 255)),
        ({"contrast": 0.0}, (100, 100, 100), (100, 100, 100)),
        ({"saturation": 0.0}, (255, 0, 0), (76, 76, 76)),  # 0.299 of red is grey
        ({"hue": 1 / 3}, (255, 0, 0), (0, 255, 0)),
        ({"hue": -1 / 3}, (255, 0, 0), (0, 0, 255)),
        ({"channel_shift": (-20, 19, 3)}, (10, 250, 7), (0, 255, 10)),
    ],
    ids=str,
)
def test_known_colors(change, color, expected):
    photo, labels = np.full((6, 8, 3), color, dtype=np.uint8), np.ones((6, 8), dtype=np.uint8)
    recolored, kept = applied(photo, labels, replace(STILL, **change))
    assert np.abs(recolored.astype(int) - expected).max() <= 1
    assert np.array_equal(kept, labels)


def test_contrast_moves_values_from_the_mean():
    photo = np.full((6, 8, 3), 80, dtype=np.uint8)
    photo[:, 4:] = 120
    recolored, _ = applied(photo, photo[..., 0], replace(STILL, contrast=0.5))
    assert set(np.unique(recolored)) == {90, 110}


def test_the_outside_keeps_the_mean_color():
    photo, labels = picture(6, 8)
    recolored, labels = applied(photo, labels, replace(STILL, corner=(-6, 0), brightness=0.3, channel_shift=(9, 9, 9)))
    assert (recolored == MEAN_COLOR).all() and (labels == VOID).all()


def test_a_released_shift_reaches_outside_the_photo_and_is_not_cut_off():
    photo, labels = picture(6, 8)
    drawn = replace(STILL, corner=(-2, 0), channel_shift=(-20, 0, 19), cut_off=False)
    shifted, kept = applied(photo, labels, drawn)
    expected = np.full((6, 8, 3), MEAN_COLOR, dtype=float)
    expected[2:] = photo[:4]
    assert shifted.dtype == np.float32
    np.testing.assert_allclose(shifted, (expected + [-20, 0, 19]) / 255, rtol=0, atol=1e-7)
    assert (shifted < 0).any() and (shifted > 1).any()
    assert same((kept,), (np.vstack([np.full((2, 8), VOID), labels[:4]]),))


def test_a_released_shift_of_nothing_is_the_photo_in_floating_point():
    photo, labels = picture(6, 9)
    found, kept = called(Augment(shift="released"), photo, labels)
    assert found.dtype == np.float32 and np.array_equal(found, photo.astype(np.float32) / np.float32(255))
    assert np.array_equal(kept, labels)


def test_photos_whose_shift_is_not_cut_off_reach_a_network(shapes):
    augment = Augment(shift="released", channel_shift=127, crop=(20, 24))
    images = data.Images(data.folder(shapes, "train"), augment=augment)
    batch = data.collate([images[0, n] for n in range(8)])
    assert batch["image"].dtype == torch.float32 and batch["image"].shape == (8, 3, 20, 24)
    assert batch["image"].min() < 0 and batch["image"].max() > 1
    assert SegModel(3, depth=18, width=0.125, preset="released")(batch["image"]).isfinite().all()


# Draws ----------------------------------------------------------------------------------------------------------

FULL = Augment(
    scale=(0.5, 2.0), aspect=(0.8, 1.25), mirror=0.5, rotation=10, brightness=0.4, contrast=0.3, saturation=0.2,
    hue=0.1, channel_shift=20, crop=(32, 48),
)  # fmt: skip


def draws(augment, count=2000):
    rng = np.random.default_rng(0)
    return [augment.draw((100, 100), rng) for _ in range(count)]


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_draws_keep_within_their_bounds(law):
    found = draws(replace(FULL, law=law))
    down, across = np.array([d.scale for d in found]).T
    for values, low, high in [
        (np.sqrt(down * across), 0.5, 2.0),
        (across / down, 0.8, 1.25),
        ([d.rotation for d in found], -10, 10),
        ([d.brightness for d in found], 0.6, 1.4),
        ([d.contrast for d in found], 0.7, 1.3),
        ([d.saturation for d in found], 0.8, 1.2),
        ([d.hue for d in found], -0.1, 0.1),
    ]:
        margin = 0.05 * (high - low)
        assert low - 1e-9 <= min(values) <= low + margin and high - margin <= max(values) <= high + 1e-9


@pytest.mark.parametrize("law, deviation", [("uniform", 0.577), ("normal", 0.440)])
def test_the_law_is_that_of_the_logarithm_of_the_scale(law, deviation):
    """Deviations of a uniform number in [-1, 1], and of a normal one of deviation 1/2 cut off there."""
    zooms = np.log2([math.prod(d.scale) ** 0.5 for d in draws(Augment(scale=(0.5, 2.0), law=law), 4000)])
    assert abs(zooms.mean()) < 0.05 and zooms.std() == pytest.approx(deviation, abs=0.02)


def test_half_are_mirrored_and_half_shifted():
    found = draws(FULL)
    shifts = np.array([d.channel_shift for d in found])
    assert np.mean([d.mirror for d in found]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(shifts.any(1)) == pytest.approx(0.5, abs=0.05)
    assert shifts.min() == -20 and shifts.max() == 19


def test_a_released_shift_is_drawn_for_each_channel():
    shifts = np.array([d.channel_shift for d in draws(replace(FULL, shift="released"), 4000)])
    moved = shifts != 0
    assert moved.mean(0) == pytest.approx([0.5 * 39 / 40] * 3, abs=0.03)  # one of the 40 numbers is 0
    together = [(moved[:, a] & moved[:, b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert together == pytest.approx([0.25 * (39 / 40) ** 2] * 3, abs=0.03)
    assert shifts.min() == -20 and shifts.max() == 19


@pytest.mark.parametrize("seed", range(5))
def test_how_channels_are_shifted_moves_no_other_draw(seed):
    joint, released = (
        replace(FULL, shift=s).draw((64, 80), np.random.default_rng(seed)) for s in ("joint", "released")
    )
    assert replace(joint, channel_shift=(0, 0, 0)) == replace(released, channel_shift=(0, 0, 0), cut_off=True)


def test_a_switch_moves_no_other_draw():
    with_all, without = (a.draw((64, 80), np.random.default_rng(3)) for a in (FULL, replace(FULL, hue=0, mirror=0)))
    assert replace(with_all, hue=0.0, mirror=False) == without


def test_equal_generators_give_equal_bits():
    pair = picture(40, 50)
    assert same(called(FULL, *pair, 7), called(FULL, *pair, 7))
    assert not same(called(FULL, *pair, 7), called(FULL, *pair, 8))


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"scale": (2.0, 0.5)}, ValueError, "scale: expected 0 < low <= high"),
        ({"scale": (0.0, 1.0)}, ValueError, "scale: expected 0 < low <= high"),
        ({"scale": (1.0, 1e30)}, ValueError, "scale: expected 0 < low <= high, both from 1 / 1000 to 1000"),
        ({"aspect": (1e-300, 1.0)}, ValueError, "aspect: expected 0 < low <= high, both from 1 / 1000 to 1000"),
        ({"aspect": 1.2}, TypeError, "aspect: expected"),
        ({"mirror": 1.5}, ValueError, "mirror: expected a number from 0 to 1, got 1.5"),
        ({"rotation": -10}, ValueError, "rotation: expected a number from 0 to 180"),
        ({"brightness": "much"}, TypeError, "brightness: expected"),
        ({"hue": 0.6}, ValueError, "hue: expected a number from 0 to 0.5"),
        ({"channel_shift": 300}, ValueError, "channel_shift: expected an int from 0 to 255"),
        (
            {"channel_shift": 128, "shift": "released"},
            ValueError,
            "channel_shift: expected an int from 0 to 127, got 128",
        ),
        ({"shift": "each"}, ValueError, "shift: expected one of 'joint', 'released', got 'each'"),
        ({"crop": (0, 5)}, ValueError, "crop: expected an int of at least 1"),
        ({"crop": (10**9, 5)}, ValueError, "crop: expected at most 16384, got 1000000000"),
        ({"crop": 321}, TypeError, "crop: expected"),
        ({"law": "cauchy"}, ValueError, "law: expected one of 'uniform', 'normal'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as raised:
        Augment(**arguments)
    assert str(raised.value).startswith(message)


def test_labels_of_another_size_are_refused():
    with pytest.raises(ValueError, match="of one size, got RGB of .8, 6. and L of .6, 8."):
        Augment.apply(Image.new("RGB", (8, 6)), Image.new("L", (6, 8)), STILL)

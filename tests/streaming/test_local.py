"""Windows and guided filters in tiles: the result of the whole image, whatever the tiles, the inputs and the outputs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import tritoncrf as tc
from tritoncrf.problem import posed
from tritoncrf.streaming import local

GENERATOR = np.random.default_rng(0)
SIZE = 64, 58
IMAGE = GENERATOR.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
LOGITS = GENERATOR.normal(size=(4, *SIZE)).astype(np.float32)
COSTS = (1 - np.eye(4) + GENERATOR.random((4, 4)) / 4).astype(np.float32)
WINDOW = {"method": "window", "window_size": 3, "blur": 1, "iterations": 2}
GUIDED = {"method": "guided", "radius": 3, "iterations": 1}


def named(value):
    return " ".join(value) or "plain" if isinstance(value, dict) else str(value)


@pytest.fixture
def tiled(monkeypatch):
    """refine, in tiles that own so many pixels."""

    def call(shape, image=IMAGE, **arguments):
        monkeypatch.setattr(local, "tile_shape", lambda layout, *others: tuple(map(min, shape, layout.size)))
        return tc.refine(image, max_memory="1GB", **arguments)

    return call


def test_tiles_are_no_larger_than_is_quick():
    """A kill loses the one at hand."""
    one = posed(IMAGE[:1, :1], {"logits": LOGITS[:, :1, :1]}, "cpu", GUIDED)
    wide = replace(one, whole=replace(one.whole, size=(6000, 6000)))
    tiles = local.planned(wide.whole, lambda window: wide, 1 << 40, 0).tiles
    assert max(math.prod(s.stop - s.start for s in tile.seen) for tile in tiles) <= local.ENOUGH["cpu"]
    assert sum(math.prod(s.stop - s.start for s in tile.own) for tile in tiles) == 6000**2


# Windows, to the last bit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(31, 37), (47, 200), (200, 200)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"blur": 2},
        {"blur": 3},
        {"blur": 3, "window_size": 5, "iterations": 1},
        {"damping": 0.3, "temperature": 1.5},
        {"compatibility": COSTS},
        {"blur": 2, "compatibility": COSTS, "iterations": 3},
        {"window_size": 7, "iterations": 1},
        {"iterations": 0},
    ],
    ids=named,
)
def test_windows_have_the_bits_of_the_whole(arguments, shape, tiled):
    arguments = {**WINDOW, **arguments}
    whole = tc.refine(IMAGE, logits=LOGITS, **arguments)
    assert np.array_equal(tiled(shape, logits=LOGITS, **arguments), whole)


def test_windows_in_float64(tiled):
    """To rounding: each part shifts its features by their own median."""
    logits = LOGITS.astype(np.float64)
    whole = tc.refine(IMAGE, logits=logits, **WINDOW)
    assert np.abs(tiled((31, 37), logits=logits, **WINDOW) - whole).max() < 1e-14


@pytest.mark.parametrize("blur, cut", [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 2), (5, 4)])
def test_blocks_lie_where_those_of_the_whole_lie(blur, cut, tiled):
    image, logits = IMAGE[cut:, : 58 - cut], LOGITS[:, cut:, : 58 - cut]
    arguments = {**WINDOW, "blur": blur, "iterations": 1}
    whole = tc.refine(image, logits=logits, **arguments)
    assert np.array_equal(tiled((37, 29), image, logits=logits, **arguments), whole)


@pytest.mark.parametrize("blur", [1, 2, 3])
@pytest.mark.parametrize("size, shape", [((23, 17, 20), (7, 17, 6)), ((301,), (40,))])
def test_volumes_and_signals(size, shape, blur, tiled):
    image = GENERATOR.integers(0, 256, (*size, 2), dtype=np.uint8)
    logits = GENERATOR.normal(size=(3, *size)).astype(np.float32)
    arguments = {**WINDOW, "blur": blur, "iterations": 1, "spacing": (2.5, 0.8, 0.8)[: len(size)]}
    whole = tc.refine(image, logits=logits, **arguments)
    assert np.array_equal(tiled(shape, image, logits=logits, **arguments), whole)


@pytest.mark.parametrize("blur", [1, 2])
def test_pixels_that_are_not_there(blur, tiled):
    valid = GENERATOR.random(SIZE) < 0.8
    valid[:20, :30] = False
    logits = np.where(valid, LOGITS, np.nan)
    arguments = {**WINDOW, "blur": blur, "valid": valid, "iterations": 1}
    whole = tc.refine(IMAGE, logits=logits, **arguments)
    assert np.array_equal(tiled((17, 23), logits=logits, **arguments), whole)


# Guided filters, to rounding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, shape",
    [
        ({}, (31, 37)),
        ({}, (200, 200)),
        ({"damping": 0.3, "radius": (2, 5), "iterations": 2}, (31, 200)),
        ({"compatibility": COSTS}, (53, 47)),
    ],
    ids=named,
)
def test_guided_filters(arguments, shape, tiled):
    arguments = {**GUIDED, **arguments}
    whole = tc.refine(IMAGE, logits=LOGITS, **arguments)
    assert np.abs(tiled(shape, logits=LOGITS, **arguments) - whole).max() < 3e-6


def test_one_row_of_a_guided_filter(tiled):
    image = GENERATOR.integers(0, 256, (100, 90, 3), dtype=np.uint8)
    logits = GENERATOR.normal(size=(3, 100, 90)).astype(np.float32)
    whole = tc.refine(image, logits=logits, **GUIDED)
    assert np.abs(tiled((1, 90), image, logits=logits, **GUIDED) - whole).max() < 3e-6


def test_guided_volumes(tiled):
    image = GENERATOR.random((23, 17, 20)).astype(np.float32)
    logits = GENERATOR.normal(size=(3, 23, 17, 20)).astype(np.float32)
    arguments = {"method": "guided", "radius": 1, "iterations": 2}
    whole = tc.refine(image, logits=logits, **arguments)
    assert np.abs(tiled((5, 17, 9), image, logits=logits, **arguments) - whole).max() < 3e-6


@pytest.mark.parametrize("arguments", [WINDOW, {**WINDOW, "blur": 2}, GUIDED], ids=lambda a: a["method"])
def test_half_a_halo_is_too_narrow(arguments, tiled, monkeypatch):
    layout_of = local.layout_of

    def narrow(problem):
        layout = layout_of(problem)
        return local.Layout(layout.size, tuple(h // 2 for h in layout.halo), layout.align)

    monkeypatch.setattr(local, "layout_of", narrow)
    whole = tc.refine(IMAGE, logits=LOGITS, **arguments)
    found = tiled((31, 29), logits=LOGITS, **arguments)
    assert np.abs(found - whole).max() > (1e-5 if arguments is GUIDED else 0)


def test_one_row_of_a_window(tiled):
    image, logits = IMAGE[:20], LOGITS[:, :20]
    whole = tc.refine(image, logits=logits, **WINDOW)
    assert np.array_equal(tiled((1, 58), image, logits=logits, **WINDOW), whole)


# Inputs ---------------------------------------------------------------------------------------------------------------

MASK = np.zeros(SIZE, np.uint8)
MASK[20:40, 15:40] = 255
LABELS = LOGITS.argmax(0)
PROBABILITIES = torch.softmax(torch.from_numpy(LOGITS), 0).numpy()


@pytest.mark.parametrize(
    "scores",
    [
        {"probabilities": PROBABILITIES},
        {"probabilities": PROBABILITIES.astype(np.float16)},
        {"energies": -LOGITS},
        {"labels": LABELS},
        {"labels": np.where(MASK > 0, 255, LABELS).astype(np.uint8)},
        {"labels": torch.from_numpy(LABELS)},
        {"mask": MASK},
        {"mask": MASK > 0},
        {"mask": MASK / 255},
        {"mask": torch.from_numpy(MASK // 255)},
        {"foreground": PROBABILITIES[0]},
        {"logits": torch.from_numpy(LOGITS)},
        {"logits": torch.from_numpy(LOGITS).bfloat16()},
    ],
    ids=lambda scores: " ".join(f"{name} {value.dtype}" for name, value in scores.items()),
)
def test_every_kind_of_scores(scores, tiled):
    whole = tc.refine(IMAGE, **scores, **WINDOW)
    found = tiled((40, 90), **scores, **WINDOW)
    assert type(found) is type(whole) and found.dtype == whole.dtype
    assert bool((found == whole).all())


@pytest.mark.parametrize("image", [torch.from_numpy(IMAGE).permute(2, 0, 1), IMAGE[..., :1], IMAGE[..., 0]])
def test_images_of_other_kinds(image, tiled):
    assert np.array_equal(tiled((40, 50), image, logits=LOGITS, **WINDOW), tc.refine(image, logits=LOGITS, **WINDOW))


def test_features_in_the_image_s_place(tiled):
    features = GENERATOR.normal(size=(3, *SIZE)).astype(np.float32)
    arguments = {"logits": LOGITS, "features": features, **WINDOW}
    assert np.array_equal(tiled((40, 50), None, **arguments), tc.refine(None, **arguments))


@pytest.mark.parametrize("value_range", [(0, 4095), ("1%", "99%"), [(0, "90%"), ("5%", 3000), (10, 4000), (0, 1)]])
def test_bands_of_16_bits(value_range, tiled):
    image = GENERATOR.integers(0, 4096, (*SIZE, 4), dtype=np.uint16)
    valid = GENERATOR.random(SIZE) < 0.9
    arguments = {"logits": LOGITS, "value_range": value_range, "valid": valid, **WINDOW}
    assert np.array_equal(tiled((40, 50), image, **arguments), tc.refine(image, **arguments))


def test_percentiles_of_floats(tiled):
    image = GENERATOR.normal(size=(*SIZE, 2)).astype(np.float32)
    arguments = {"logits": LOGITS, "value_range": ("2%", "98%"), **WINDOW}
    assert np.array_equal(tiled((40, 50), image, **arguments), tc.refine(image, **arguments))

"""Figures of volumes and of scenes: what is drawn of them."""

import numpy as np
import pytest

from tritoncrf.figures import OUTSIDE, comparison
from tritoncrf.rasters.drawing import sections
from tritoncrf.rasters.inputs import Inputs
from tritoncrf.rasters.results import Outcome, Refined

SIZE = 6, 9, 4
LABELS = np.random.default_rng(0).integers(0, 3, SIZE)
AFTER = np.where(np.random.default_rng(1).random(SIZE) < 0.2, 0, LABELS)


def drawn(image, labels, after, spacing=None, valid=None):
    scores = np.stack([labels == c for c in range(3)]).astype(np.float32)
    inputs = Inputs(None, image, None, scores, valid, labels.shape, None)
    return sections(inputs, Outcome("probabilities", inputs, {}, Refined(after, None)), spacing)


def test_middle_slices_of_a_volume_lie_side_by_side():
    image, before, after = drawn(np.arange(216.0).reshape(*SIZE, 1), LABELS, AFTER)
    assert image.shape == (9, 4 + 2 + 4 + 2 + 9, 3) and before.shape == after.shape == image.shape[:2]
    assert np.array_equal(before[:, :4], LABELS[3]) and np.array_equal(after[:6, 6:10], AFTER[:, 4])
    assert np.array_equal(before[:6, 12:], LABELS[:, :, 2])
    assert (before[6:, 4:] == OUTSIDE).all() and (before[:, 4:6] == OUTSIDE).all()


def test_voxels_are_as_wide_as_they_are_high():
    _, before, _ = drawn(np.zeros((*SIZE, 1)), LABELS, AFTER, (1, 1, 2.5))
    assert before.shape == (9, 10 + 2 + 10 + 2 + 9)
    assert np.array_equal(before[:, :10], LABELS[3].repeat([3, 2, 3, 2], axis=1))


def test_one_spacing_of_all_axes():
    _, before, _ = drawn(np.zeros((*SIZE, 1)), LABELS, AFTER, 2.5)
    assert before.shape == (9, 4 + 2 + 4 + 2 + 9)


def test_pixels_that_are_not_there_have_no_label():
    valid = np.random.default_rng(2).random(SIZE) < 0.5
    _, before, after = drawn(np.zeros((*SIZE, 1)), LABELS, AFTER, valid=valid)
    assert np.array_equal(before[:, :4], np.where(valid, LABELS, OUTSIDE)[3])
    assert np.array_equal(after[:6, 12:], np.where(valid, AFTER, OUTSIDE)[:, :, 2])
    there, labels = valid[..., 0], LABELS[..., 0]
    _, before, after = drawn(np.zeros((6, 9, 1)), labels, labels, valid=there)
    assert np.array_equal(before, np.where(there, labels, OUTSIDE)) and np.array_equal(after, before)


def test_shares_are_of_the_slices_alone():
    texts = {text.get_text() for text in comparison(*drawn(np.zeros((*SIZE, 1)), LABELS, AFTER)).findobj(
        lambda artist: hasattr(artist, "get_text")
    )}  # fmt: skip
    slices = (LABELS[3], AFTER[3]), (LABELS[:, 4], AFTER[:, 4]), (LABELS[:, :, 2], AFTER[:, :, 2])
    changed = sum((a != b).sum() for a, b in slices) / sum(a.size for a, _ in slices)
    assert f"{changed:.1%} of the pixels" in texts


@pytest.mark.parametrize("shape", [(7, 11), (2500, 3), (3, 2411)])
def test_every_so_many_pixels_of_a_scene(shape):
    labels = np.random.default_rng(0).integers(0, 3, shape)
    image = np.random.default_rng(1).random((*shape, 4)).astype(np.float32)
    shown, before, after = drawn(image, labels, labels)
    step = -(-max(shape) // 900)
    assert np.array_equal(before, labels[::step, ::step]) and np.array_equal(after, before)
    assert shown.shape == (*before.shape, 3) and shown.min() == 0 and shown.max() == 1

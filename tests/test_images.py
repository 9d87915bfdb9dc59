"""Volumes, signals and bands, values of any range, spacings, and pixels that are not there, as refine takes them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from assertions import assert_close
from tritoncrf.levels import levels

GENERATOR = np.random.default_rng(0)
SIZES = [(23,), (11, 13), (5, 6, 7)]
METHODS = ["lattice", "exact", "window", "guided"]
WIDE = {"theta_space": 5, "theta_color": 60, "theta_smooth": 2}  # so that pixels of such small images see each other
OPTIONS = {
    "lattice": WIDE, "exact": WIDE, "window": {**WIDE, "window_size": 3, "blur": 1}, "guided": {"radius": 2, "eps": 100},
}  # fmt: skip


def scores_of(size, classes=3):
    return GENERATOR.normal(size=(classes, *size)).astype(np.float32)


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def gaussian(f):
    """exp(-|f_i - f_j|^2 / 2), [N, N], of features [D, N]."""
    return np.exp(-((f[:, :, None] - f[:, None]) ** 2).sum(0) / 2)


def mean_field(unary, kernels, weights, iterations):
    """Q [C, N] of the plain loop with symmetrically normalised kernels [N, N], in float64."""
    kernels = [k / np.sqrt(np.outer(k.sum(1), k.sum(1))) for k in kernels]
    q = softmax(unary)
    for _ in range(iterations):
        q = softmax(unary + sum(w * q @ k for w, k in zip(weights, kernels)))
    return q


def softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def positions(size, spacing):
    axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(size, spacing)), indexing="ij")
    return np.stack(axes).reshape(len(size), -1)


# Axes and channels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_axes_are_read_from_the_scores(size, method):
    image = GENERATOR.integers(0, 256, (*size, 5), dtype=np.uint8)
    z = scores_of(size)
    arguments = {"method": method, "logits": z, **OPTIONS[method]}
    found = tc.refine(image, **arguments)
    assert found.shape == z.shape and found.dtype == z.dtype
    assert_close("sum", tensor(found.sum(0)), torch.ones(size))
    channels_first = tensor(np.moveaxis(image, -1, 0))
    assert np.array_equal(tc.refine(channels_first, **{**arguments, "logits": tensor(z)}).numpy(), found)
    grey = tc.refine(image[..., 0], **arguments)
    assert np.array_equal(grey, tc.refine(image[..., :1], **arguments)) and not np.array_equal(grey, found)


@pytest.mark.parametrize("kind", ["labels", "mask", "foreground"])
@pytest.mark.parametrize("size", [(23,), (5, 6, 7)])
def test_labels_and_objects_of_volumes_and_signals(size, kind):
    image = GENERATOR.integers(0, 256, size, dtype=np.uint8)
    values = {
        "labels": GENERATOR.integers(0, 3, size), "mask": image > 128, "foreground": GENERATOR.random(size),
    }  # fmt: skip
    found = tc.refine(image, **{kind: values[kind]}, method="lattice")
    assert found.shape == ((3, *size) if kind == "labels" else size)


@pytest.mark.parametrize("size, classes", [((1, 1, 1), 3), ((4, 4, 4), 2), ((5, 5, 3), 5)])
def test_volumes_whose_sizes_are_those_of_a_picture(size, classes):
    image, z = GENERATOR.integers(0, 256, size, dtype=np.uint8), scores_of(size, classes)
    for budget in None, "1GB":
        assert tc.refine(image, logits=z, max_memory=budget).shape == z.shape


@pytest.mark.parametrize("budget", [None, "1GB"])
def test_a_number_is_no_image(budget):
    with pytest.raises(ValueError, match="^image: expected a PIL image"):
        tc.refine(np.array(3, np.uint8), logits=np.array(3, np.float32), max_memory=budget)


@pytest.mark.parametrize("kind", ["mask", "foreground"])
def test_one_object_of_a_thin_volume(kind):
    options = {"method": "window", **OPTIONS["window"]}
    for size, channels in ((3, 6, 7), True), ((5, 6, 4), True), ((2, 6, 7), False):
        image = GENERATOR.integers(0, 256, (*size, 2) if channels else size, dtype=np.uint8)
        p = GENERATOR.random(size).astype(np.float32)
        of_tensor = tensor(np.moveaxis(image, -1, 0) if channels else image[None])
        whole = tc.refine(of_tensor, probabilities=torch.stack([1 - tensor(p), tensor(p)]), **options)[1]
        valid = np.ones(size, bool)
        for arguments in {}, {"max_memory": "1GB"}, {"valid": valid}:
            found = tc.refine(of_tensor, **{kind: tensor(p)}, **options, **arguments)
            assert found.shape == size
            if kind == "foreground":
                assert_close("q", found, whole, rms=1e-5, worst=1e-5)
            assert tc.refine(image, **{kind: tensor(p)}, **options, **arguments).shape == size


def test_bands_of_a_scene():
    size = (11, 13)
    image = GENERATOR.integers(0, 256, (*size, 5), dtype=np.uint8)
    z = scores_of(size)
    f = tc.features.bilateral(tensor(image).permute(2, 0, 1)[None], 4.0, 9.0)[0].numpy()
    expected = tc.refine(logits=z, features=f, method="exact", theta_smooth=2.0)
    found = tc.refine(image, logits=z, method="exact", theta_space=4.0, theta_color=9.0, theta_smooth=2.0)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_opacity_is_refused_unless_a_range_says_that_it_is_a_band(channels):
    image = GENERATOR.integers(0, 256, (11, 13, channels), dtype=np.uint8)
    z = scores_of((11, 13))
    hints = {np.uint8: r"\(0, 255\)", np.float32: r"\(0, 1\)", np.uint16: r"\(low, high\)"}
    for dtype, ends in hints.items():
        with pytest.raises(ValueError, match=rf"^image: .*; image\[..., :-1\] drops .*, value_range={ends} means"):
            tc.refine(image.astype(dtype), logits=z)
    assert tc.refine(image, logits=z, value_range=(0, 255)).shape == z.shape


def test_a_picture_with_transparency_is_refused():
    image = GENERATOR.integers(0, 255, (11, 13, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^image: expected no transparency, .*image.convert\('RGB'\) .*, valid="):
        tc.refine(Image.fromarray(image), logits=scores_of((11, 13)))


@pytest.mark.parametrize(
    "image, scores, message",
    [
        ((5, 6, 8), (3, 5, 6, 7), r"^image: expected the size of logits, \[5, 6, 7\], got \[5, 6, 8\]"),
        ((5, 6, 7, 2), (3, 5, 7, 6), r"^image: expected the size of logits, \[5, 7, 6\], got \[5, 6, 7\]"),
        ((11, 13, 3), (1, 3, 11, 13), r"remove the batch axis: l\[0\]"),
        ((1, 11, 13, 3), (1, 3, 11, 13), r"remove the batch axis, l\[0\]"),
        ((11, 13), (11, 13), "pass one object's probability as foreground="),
        ((24,), (3, 23), r"^image: expected the size of logits, \[23\], got \[24\]"),
    ],
)
def test_sizes_that_do_not_fit(image, scores, message):
    with pytest.raises(ValueError, match=message):
        tc.refine(np.zeros(image, np.uint8), logits=np.zeros(scores, np.float32))


# Ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_a_range_of_numbers_is_that_of_bytes(dtype):
    photo = GENERATOR.integers(0, 256, (11, 13, 3), dtype=np.uint8)
    wide = (photo.astype(np.float64) * 16 + 100).astype(dtype)
    z = scores_of((11, 13))
    for method in METHODS:
        arguments = {"logits": z, "method": method, **OPTIONS[method]}
        found = tc.refine(wide, value_range=(100, 100 + 255 * 16), **arguments)
        assert_close(method, tensor(found), tensor(tc.refine(photo, **arguments)), rms=1e-5, worst=1e-4)


def test_a_range_for_each_channel():
    photo = GENERATOR.integers(0, 256, (11, 13, 3), dtype=np.uint8)
    factors = np.array([1, 10, 100])
    z = scores_of((11, 13))
    found = tc.refine(photo * factors, logits=z, value_range=[(0, 255), (0, 2550), (0, 25500)])
    assert_close("q", tensor(found), tensor(tc.refine(photo, logits=z)), rms=1e-5, worst=1e-4)


def test_values_beyond_the_range_are_not_clipped():
    z = scores_of((11, 13))
    image = GENERATOR.integers(0, 1000, (11, 13), dtype=np.int32)
    found = tc.refine(image, logits=z, value_range=(0, 255), method="exact", theta_space=3, theta_color=300)
    f = np.concatenate([positions((11, 13), (1, 1)).reshape(2, 11, 13) / 3, image[None] / 300])
    size = math.hypot(11, 13) * 0.005
    expected = tc.refine(logits=z, features=f, method="exact", theta_smooth=size)
    assert_close("q", tensor(found), tensor(expected))


def one_part(values, valid=None):
    return lambda: [(tensor(values), None if valid is None else tensor(valid))]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_percentiles_are_values_that_so_many_are_at_most(dtype):
    values = GENERATOR.normal(100, 30, (2, 4001)).clip(0, 255).astype(dtype)
    (low, high), other = levels(("1%", "99%"), tensor(values).dtype, 2, one_part(values))
    ordered = np.sort(values[0])
    exact = np.issubdtype(dtype, np.integer) and np.dtype(dtype).itemsize < 4
    tolerance = 0 if exact else (float(values.max()) - float(values.min())) / 65536
    assert abs(low - ordered[math.ceil(0.01 * 4001) - 1]) <= tolerance
    assert abs(high - ordered[math.ceil(0.99 * 4001) - 1]) <= tolerance
    assert other != (low, high)


def test_percentiles_of_parts_are_those_of_the_whole():
    for values in GENERATOR.normal(size=(2, 1000)), GENERATOR.integers(0, 4096, (2, 1000)).astype(np.uint16):
        parts = [(tensor(values[:, s]), None) for s in (slice(0, 17), slice(17, 700), slice(700, 1000))]
        dtype = tensor(values).dtype
        found = levels(("2%", 3000), dtype, 2, lambda parts=parts: parts)
        assert found == levels(("2%", 3000), dtype, 2, one_part(values))


def test_percentiles_are_of_pixels_that_are_there():
    values, valid = GENERATOR.normal(size=(1, 1000)), np.ones(1000, bool)
    values[:, :100], valid[:100] = -9999, False
    expected = levels(("0%", "100%"), torch.float64, 1, one_part(values[:, 100:]))
    assert levels(("0%", "100%"), torch.float64, 1, one_part(values, valid)) == expected
    with pytest.raises(ValueError, match="^value_range: expected numbers if no pixel is valid, got percentiles"):
        levels(("0%", "100%"), torch.float64, 1, one_part(values, ~valid & valid))


@pytest.mark.parametrize(
    "value_range, error, message",
    [
        ((5, 5), ValueError, "expected low below high, got 5 and 5"),
        ((9, 5), ValueError, "expected low below high, got 9 and 5"),
        ((0, math.nan), ValueError, "expected a finite number"),
        (("1", "99%"), ValueError, "expected numbers or percentiles"),
        (("1%", "101%"), ValueError, "expected numbers or percentiles"),
        ((1, 2, 3), ValueError, "expected two numbers"),
        ([(0, 1), (0, 1)], ValueError, "expected one pair, or one for each of 3 channels, got 2"),
        ("1%", TypeError, "expected two numbers"),
        (255, TypeError, "expected two numbers"),
    ],
)
def test_bad_ranges(value_range, error, message):
    with pytest.raises(error, match=f"^value_range: {message}"):
        tc.refine(np.zeros((4, 5, 3), np.uint16), logits=scores_of((4, 5)), value_range=value_range)


def test_a_constant_channel_has_no_percentiles():
    with pytest.raises(ValueError, match="^value_range: expected low below high, got 7 and 7 for .* of channel 1"):
        image = np.stack([np.arange(20).reshape(4, 5), np.full((4, 5), 7)], -1)
        tc.refine(image.astype(np.int16), logits=scores_of((4, 5)), value_range=("1%", "99%"))


@pytest.mark.parametrize("image", [np.full((4, 5, 6), 300, np.uint16), np.full((4, 5, 6), 300.0)])
def test_other_units_need_a_range(image):
    with pytest.raises((TypeError, ValueError), match="^image: expected .*value_range="):
        tc.refine(image, logits=scores_of((4, 5, 6)))


# Spacing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, spacing", [((23,), (0.5,)), ((11, 13), (2.0, 0.5)), ((5, 6, 7), (2.5, 0.8, 0.8))])
def test_spacing_scales_the_positions(size, spacing):
    image = GENERATOR.integers(0, 256, size, dtype=np.uint8)
    z = scores_of(size)
    found = tc.refine(
        image, logits=z.astype(np.float64), method="exact", theta_space=3.0, theta_color=40.0, theta_smooth=1.5,
        weight_appearance=2.0, weight_smooth=0.5, iterations=3, spacing=spacing,
    )  # fmt: skip
    where, colour = positions(size, spacing), image.reshape(1, -1) / 40
    kernels = gaussian(np.concatenate([where / 3, colour])), gaussian(where / 1.5)
    expected = mean_field(z.reshape(3, -1).astype(np.float64), kernels, (2.0, 0.5), 3)
    assert_close("q", tensor(found.reshape(3, -1)), tensor(expected), rms=1e-6, worst=1e-5)


def test_shares_of_the_diagonal_are_in_the_unit_of_the_spacing():
    image, z = GENERATOR.integers(0, 256, (11, 13), dtype=np.uint8), scores_of((11, 13))
    diagonal = math.hypot(11 * 2, 13 * 0.5)
    shares = tc.refine(image, logits=z, method="lattice", theta_space="10%", theta_smooth="2%", spacing=(2, 0.5))
    numbers = {"theta_space": 0.1 * diagonal, "theta_smooth": 0.02 * diagonal}
    assert np.array_equal(shares, tc.refine(image, logits=z, method="lattice", spacing=(2, 0.5), **numbers))


def test_spacing_alone_chooses_a_method_that_uses_it():
    volume, z = GENERATOR.integers(0, 256, (4, 5, 6), dtype=np.uint8), scores_of((4, 5, 6))
    assert np.array_equal(
        tc.refine(volume, logits=z, spacing=2), tc.refine(volume, logits=z, spacing=2, method="lattice")
    )
    with pytest.raises(ValueError, match="^spacing: expected none with method='guided'"):
        tc.refine(volume, logits=z, spacing=2, method="guided")
    with pytest.raises(ValueError, match=r"^spacing: expected .*one per axis \(3\), got 2"):
        tc.refine(volume, logits=z, spacing=(1, 2))


# Pixels that are not there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_all_valid_is_no_mask(size, method):
    image, z = GENERATOR.integers(0, 256, size, dtype=np.uint8), scores_of(size)
    arguments = {"logits": z, "method": method, **OPTIONS[method]}
    found = tc.refine(image, valid=np.ones(size, bool), **arguments)
    assert_close("q", tensor(found), tensor(tc.refine(image, **arguments)), rms=1e-6, worst=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_there_changes_nothing_and_keeps_its_scores(size, method):
    valid = GENERATOR.random(size) < 0.7
    image, z = GENERATOR.integers(0, 256, (*size, 3), dtype=np.uint8), scores_of(size)
    arguments = {"method": method, "valid": valid, **OPTIONS[method]}
    found = tc.refine(image, logits=z, **arguments)
    assert_close("kept", tensor(found[:, ~valid]), tensor(softmax(z)[:, ~valid]))
    other, w = image.copy(), z.copy()
    other[~valid] = 255 - other[~valid]
    w[:, ~valid] = math.nan
    again = tc.refine(other, logits=w, **arguments)
    assert np.array_equal(again[:, valid], found[:, valid])
    assert_close("unknown", tensor(again[:, ~valid]), torch.full((3, int((~valid).sum())), 1 / 3))
    of_all = tc.refine(image, logits=z, method=method, **OPTIONS[method])
    assert np.abs(found - of_all)[:, valid].max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_exact_messages_among_those_that_are_there(size):
    valid = GENERATOR.random(size) < 0.7
    image, z = GENERATOR.integers(0, 256, size, dtype=np.uint8), scores_of(size).astype(np.float64)
    found = tc.refine(
        image, logits=z, method="exact", theta_space=3.0, theta_color=40.0, theta_smooth=1.5, weight_appearance=2.0,
        weight_smooth=0.5, iterations=3, valid=valid,
    )  # fmt: skip
    where, colour = positions(size, (1,) * len(size)), image.reshape(1, -1) / 40
    there = valid.flatten()
    kernels = [gaussian(f[:, there]) for f in (np.concatenate([where / 3, colour]), where / 1.5)]
    expected = mean_field(z.reshape(3, -1)[:, there], kernels, (2.0, 0.5), 3)
    assert_close("q", tensor(found[:, valid]), tensor(expected), rms=1e-6, worst=1e-5)


def test_nodata_of_floats_and_of_probabilities():
    valid = GENERATOR.random((11, 13)) < 0.7
    image = GENERATOR.random((11, 13, 4)) * 4000
    p = softmax(scores_of((11, 13)))
    for nodata in math.nan, -9999.0, math.inf:
        image[~valid], p[:, ~valid] = nodata, nodata
        for method in METHODS:
            found = tc.refine(
                image, probabilities=p, valid=valid, value_range=("1%", "99%"), method=method, **OPTIONS[method]
            )
            assert np.isfinite(found).all(), (nodata, method)


@pytest.mark.parametrize("name, sign", [("logits", 1), ("energies", -1)])
def test_what_is_ruled_out_stays_so_where_nothing_is(name, sign):
    z = scores_of((11, 13))
    z[0, :, :4] = -np.inf
    z[:, 0] = -np.inf
    valid = np.zeros((11, 13), bool)
    valid[1:, 6:] = True
    q = tc.refine(np.zeros((11, 13), np.uint8), **{name: sign * z}, valid=valid)
    assert (q[0, 1:, :4] == 0).all() and (q[:, 0] == np.float32(1 / 3)).all()
    assert_close("q", tensor(q[:, 1:, :4]), tensor(softmax(z[:, 1:, :4])))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_there(method):
    image, z = GENERATOR.integers(0, 256, (11, 13), dtype=np.uint8), scores_of((11, 13))
    found = tc.refine(image, logits=z, valid=np.zeros((11, 13), bool), method=method)
    assert_close("kept", tensor(found), tensor(softmax(z)))


def test_integers_and_tensors_as_valid():
    valid = GENERATOR.random((11, 13)) < 0.7
    image, z = GENERATOR.integers(0, 256, (11, 13), dtype=np.uint8), scores_of((11, 13))
    expected = tc.refine(image, logits=z, valid=valid)
    for mask in valid.astype(np.uint8), valid * np.int64(255), tensor(valid):
        assert np.array_equal(tc.refine(image, logits=z, valid=mask), expected)


def test_a_trace_among_those_that_are_there():
    valid = GENERATOR.random((11, 13)) < 0.7
    image, z = GENERATOR.integers(0, 256, (11, 13), dtype=np.uint8), scores_of((11, 13))
    for method in METHODS:
        q, trace = tc.refine(image, logits=z, valid=valid, method=method, return_trace=True)
        assert_close(method, tensor(q), tensor(tc.refine(image, logits=z, valid=valid, method=method)))
        assert len(trace.records) == 6


@pytest.mark.parametrize(
    "valid, error, message",
    [
        (np.ones((11, 12), bool), ValueError, r"expected the size of the scores, \[11, 13\]"),
        (np.ones((3, 11, 13), bool), ValueError, "expected the size of the scores"),
        (np.ones((11, 13)), TypeError, "expected bool, or integers"),
        ([[True]], TypeError, "expected a NumPy array or a torch.Tensor"),
    ],
)
def test_bad_masks(valid, error, message):
    with pytest.raises(error, match=f"^valid: {message}"):
        tc.refine(np.zeros((11, 13), np.uint8), logits=scores_of((11, 13)), valid=valid)

"""What the Window filter alone promises, in PyTorch: its windows, its weights kept or not, its blur, and its errors."""

import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import (
    along_axes,
    axis_pool,
    axis_upsample,
    dense_apply,
    dense_window,
    random_features,
)
from memory import Work
from tritoncrf.filters.base import centred
from tritoncrf.reference import blur
from tritoncrf.reference import window as reference
from tritoncrf.step import per_axis, to_3d

Window = tc.filters.Window


# Windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (7, 13)])
def test_a_window_over_the_whole_image_is_the_full_gaussian(size):
    f, x = random_features(size, 5), torch.randn(1, 3, *size, dtype=torch.float64)
    flat = f[0].flatten(1).T
    full = torch.exp(-(flat[:, None] - flat[None]).square().sum(2) / 2)
    y = Window(f, window_size=2 * max(size) - 1)(x)
    assert_close("K x", y, dense_apply(full[None], x))


def test_wide_bandwidths_make_a_box_and_narrow_ones_the_identity():
    x = torch.rand(1, 2, 5, 6)
    image = torch.rand(1, 3, 5, 6)
    wide = Window(tc.features.bilateral(image, 1e6, 1e6), 3, normalization="after")(x)
    box = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert_close("box mean", wide, box)
    assert_close("identity", Window(tc.features.bilateral(image, 1e-3, 13), 5)(x), x)
    assert_close("identity, after", Window(tc.features.spatial((5, 6), 1e-3), 5, normalization="after")(x), x)
    alone = Window(tc.features.spatial((5, 6), 1e-3), 5, include_self=False, normalization="symmetric")(x)
    assert_close("nothing", alone, torch.zeros_like(x))


@pytest.mark.parametrize("size", [(9,), (7, 13), (3, 4, 5)])
def test_taps_and_blocks_beyond_the_image(size):
    """A pixel alone, however far apart the taps are; the mean of the image, however large a block is."""
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    f = random_features(size, 3).requires_grad_()
    cotangent = torch.randn_like(x)
    for dilation in (max(size), 2**31, 10**30):
        assert torch.equal(Window(f, 5, dilation=dilation)(x), x)
    mean = x.detach().mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
    for large in (max(size), 100_000, 10**30):
        y = Window(f, 5, blur=large)(x)
        gradients = torch.autograd.grad(y, [x, f], cotangent)
        assert_close("mean", y.detach(), mean)
        spread = cotangent.mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
        assert_close("gradient", gradients[0], spread)
        assert not gradients[1].any()


# How the work is done ---------------------------------------------------------------------------------------------

SIZES_5D = [(1, 1, 13), (1, 6, 7), (4, 3, 5)]


def window_arguments(size):
    return random_features(size, 3, 2), tuple(2 if n > 1 else 0 for n in size), 1


def kept(features, radii, dilation):
    return reference.window_weights([(features, None, 1.0)], radii, dilation)


@pytest.mark.parametrize("size", SIZES_5D)
@pytest.mark.parametrize("include_self", [True, False])
def test_kept_weights_are_the_recomputed_ones(size, include_self):
    geometry = window_arguments(size)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    found = reference.window_sum(x, *geometry, include_self, kept(*geometry))
    assert_close("K x", found, reference.window_sum(x, *geometry, include_self))


def test_kept_weights_of_several_kernels_are_their_scaled_sum():
    (f, radii, dilation), size = window_arguments((1, 6, 7)), (1, 6, 7)
    g, x = random_features(size, 1, 1), torch.randn(2, 3, *size, dtype=torch.float64)
    scale = torch.rand(1, 1, *size, dtype=torch.float64)
    weights = reference.window_weights([(f, scale, 2.0), (g, None, torch.tensor(-0.5))], radii, dilation)
    expected = 2 * scale * reference.window_sum(scale * x, f, radii, dilation, False)
    expected -= 0.5 * reference.window_sum(x, g, radii, dilation, False)
    assert_close("K x", reference.window_sum(x, f, radii, dilation, False, weights), expected)


@pytest.mark.parametrize("size", SIZES_5D)
def test_blocks_of_rows_change_nothing(size, monkeypatch):
    geometry = window_arguments(size)
    x, y = torch.randn(2, 2, 3, *size, dtype=torch.float64).unbind(0)

    def results():
        gradient = reference.window_feature_gradient(x, y, *geometry)
        return reference.window_sum(x, *geometry, True), kept(*geometry), gradient

    whole = results()
    for rows in (1, 2):
        monkeypatch.setattr(reference, "BLOCK_BYTES", rows * 3 * 8 * math.prod(size[-1:]))
        for name, a, b in zip(("K x", "weights", "features' gradient"), results(), whole):
            assert_close(name, a, b)


@pytest.mark.parametrize("kept_states", [0, 3])
@pytest.mark.parametrize("classes", [2, 21])
def test_no_tensor_grows_with_the_window_and_the_classes(classes, kept_states):
    f, x = torch.randn(1, 5, 24, 24), torch.randn(1, classes, 24, 24)
    plan = Window(f, 11).resolved(x)
    with Work() as work:
        K = plan.operator([f], kept_states * classes)
        K.apply(x)
        K.adjoint(x)
        K.gradients(x, x)
    assert K.keeps_weights == (kept_states * classes >= 60)  # half of 11 x 11
    assert work.largest <= max(kept_states, 1) * max(classes, 5) * 24 * 24


@pytest.mark.parametrize("size", [(1, 1, 30), (1, 23, 24), (9, 8, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("block", [2000, 1 << 22])
def test_a_part_has_the_bits_of_the_whole(size, dtype, keeps, block, monkeypatch):
    """Of every pixel whose neighbours the part sees, whichever pixels it begins and ends with."""
    f, radii, dilation = window_arguments(size)
    f, x = f.to(dtype), torch.randn(1, 3, *size, dtype=dtype)
    whole = reference.window_sum(x, f, radii, dilation, True)
    monkeypatch.setattr(reference, "BLOCK_BYTES", block)
    reach = [r * dilation for r in radii]
    for cut in 1, 2:
        part = tuple(slice(cut, n - 1) if n > 1 else slice(0, 1) for n in size)
        inner = tuple(slice(r if n > 1 else 0, n - cut - 1 - r if n > 1 else 1) for n, r in zip(size, reach))
        there = tuple(slice(cut + r, n - 1 - r) if n > 1 else slice(0, 1) for n, r in zip(size, reach))
        x_part, f_part = (t[(..., *part)].contiguous() for t in (x, f))
        weights = reference.window_weights([(f_part, None, 1.0)], radii, dilation) if keeps else None
        found = reference.window_sum(x_part, f_part, radii, dilation, True, weights)
        assert torch.equal(found[(..., *inner)], whole[(..., *there)])


# Blur -------------------------------------------------------------------------------------------------------------

BLURS = [
    ((5,), 2),
    ((7,), 3),
    ((3,), 4),
    ((6, 9), 2),
    ((5, 7), 3),
    ((13, 6), 4),
    ((1, 5), 2),
    ((3, 4, 5), 2),
    ((4, 7, 3), 3),
]


@pytest.mark.parametrize("size, factor", BLURS)
def test_pool_and_upsample_are_their_matrices_and_their_adjoints_the_transposed(size, factor):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    full, factors = to_3d(x), per_axis(factor, len(size), 1)
    pool, up = along_axes(axis_pool, size, factor), along_axes(axis_upsample, size, factor)
    low = torch.randn(2, 3, *blur.low_size(full.shape[2:], factors), dtype=torch.float64)

    def through(matrix, x):
        return (x.flatten(2) @ matrix.mT).flatten()

    assert_close("pool", blur.pool(full, factors).flatten(), through(pool, full))
    assert_close("upsample", blur.upsample(low, full.shape[2:], factors).flatten(), through(up, low))
    assert_close("pool's adjoint", blur.pool_adjoint(low, full.shape[2:], factors).flatten(), through(pool.mT, low))
    assert_close("upsample's adjoint", blur.upsample_adjoint(full, factors).flatten(), through(up.mT, full))


@pytest.mark.parametrize("n, b, before", [(8, 4, 0), (7, 4, 1), (6, 4, 1), (5, 4, 2), (4, 3, 1), (5, 3, 1), (3, 2, 1)])
def test_half_of_the_surplus_lies_before_the_image_rounded_up(n, b, before):
    assert blur.padding((n,), (b,)) == (before,)
    assert blur.low_size((n,), (b,)) == (-(-n // b),)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_upsampling_has_the_same_bits_wherever_a_part_begins(factor):
    low = torch.randn(1, 2, 1, 40, 33)
    whole = blur.upsample(low, (1, 40 * factor, 33 * factor), (1, factor, factor))
    part = blur.upsample(low[..., 7:38, 3:30], (1, 31 * factor, 27 * factor), (1, factor, factor))
    f = factor
    assert torch.equal(part[..., f:-f, f:-f], whole[..., 8 * f : 37 * f, 4 * f : 29 * f])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_survive_pooling_and_upsampling(dtype):
    ones = torch.ones(1, 1, 1, 5, 7, dtype=dtype)
    low = blur.pool(ones, (1, 2, 2))
    assert_close("pooled", low, torch.ones_like(low))
    assert_close("upsampled", blur.upsample(low, (1, 5, 7), (1, 2, 2)), ones)


@pytest.mark.parametrize("blur", [1, 2])
def test_only_differences_count(blur):
    """Features in float64 at UTM coordinates, values in float32: each image is shifted before it is rounded."""
    f, x = random_features((9, 7), 3, batch=2), torch.randn(2, 3, 9, 7)
    far = torch.tensor([[448261.0, 5411932.0, 30.0], [-1e9, 0.0, 1e9]], dtype=torch.float64)[:, :, None, None]
    expected = dense_apply(dense_window(f, 5, blur=blur), x.double())
    assert_close("K x", Window(f + far, 5, blur=blur)(x), expected, dtype=torch.float32)


@pytest.mark.parametrize("outlier", [1e30, -1e30, math.nan])
def test_an_outlier_spoils_no_others(outlier):
    """On a GPU values are not looked at: NaN may come this far."""
    f = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    f[0, 0, 3, 4] = outlier
    assert centred(f)[:, :, :3].abs().amax() < 1


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"window_size": 4}, ValueError, "^window_size: expected an odd int from 1 to 31, got 4"),
        ({"window_size": -3}, ValueError, "^window_size: expected an odd int from 1 to 31, got -3"),
        ({"window_size": 33}, ValueError, "^window_size: expected an odd int from 1 to 31, got 33"),
        ({"window_size": 3.0}, TypeError, "^window_size: expected an odd int from 1 to 31, got 3.0"),
        ({"window_size": True}, TypeError, "^window_size: expected an odd int"),
        ({"window_size": (3, 5)}, TypeError, "^window_size: expected an odd int"),
        ({"dilation": 0}, ValueError, "^dilation: expected an int of at least 1, got 0"),
        ({"dilation": 1.5}, TypeError, "^dilation: expected an int of at least 1, got 1.5"),
        ({"blur": 0}, ValueError, "^blur: expected an int of at least 1, got 0"),
        ({"blur": "4"}, TypeError, "^blur: expected an int of at least 1, got '4'"),
    ],
)  # fmt: skip
def test_bad_windows(change, error, message):
    with pytest.raises(error, match=message):
        Window(**{"features": torch.zeros(1, 2, 4, 5), "window_size": 3, **change})

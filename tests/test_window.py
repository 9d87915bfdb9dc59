"""The Window filter in PyTorch: against its dense matrix, its known answers, its properties and its errors."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import (
    NORMALIZATIONS,
    along_axes,
    axis_pool,
    axis_upsample,
    dense_apply,
    dense_window,
    leaves,
    random_features,
    strided,
)
from problems import FILTERS, named
from tritoncrf.reference import blur
from tritoncrf.reference import window as reference
from tritoncrf.step import per_axis, to_3d

Window = tc.filters.Window


# Known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", FILTERS, ids=named)
def test_known_answers(problem, dtype):
    features, values, answer = problem.tensors(dtype)
    scale = 1.0 if not answer.any() else None
    assert_close("K x", Window(features, **problem.window)(values), answer, scale=scale)


# Against the dense matrix -----------------------------------------------------------------------------------------

GEOMETRIES = {
    "signal": ((13,), dict(window_size=5)),
    "signal-dilated": ((11,), dict(window_size=5, dilation=3)),
    "signal-blurred": ((11,), dict(window_size=3, blur=3)),
    "image": ((5, 7), dict(window_size=3)),
    "image-dilated-not-self": ((11, 4), dict(window_size=5, dilation=2, include_self=False)),
    "image-of-a-row": ((1, 9), dict(window_size=5)),
    "image-of-a-column": ((9, 1), dict(window_size=5)),
    "image-of-a-pixel": ((1, 1), dict(window_size=3)),
    "window-past-the-image": ((4, 5), dict(window_size=31)),
    "image-blurred-2": ((6, 9), dict(window_size=3, blur=2)),
    "image-blurred-3-not-self": ((8, 7), dict(window_size=3, blur=3, include_self=False)),
    "image-blurred-4-dilated": ((13, 9), dict(window_size=3, blur=4, dilation=2)),
    "image-smaller-than-a-block": ((3, 2), dict(window_size=3, blur=4)),
    "volume": ((3, 4, 5), dict(window_size=3)),
    "volume-dilated": ((5, 3, 4), dict(window_size=3, dilation=2)),
    "volume-blurred": ((5, 4, 3), dict(window_size=3, blur=2)),
    "volume-thinner-than-a-block": ((2, 5, 3), dict(window_size=3, blur=4)),
    "volume-of-a-plane": ((1, 4, 5), dict(window_size=3)),
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_every_gradient_are_those_of_the_dense_matrix(geometry, normalization):
    size, window = GEOMETRIES[geometry]
    for feature_batch in (1, 2):
        inputs = leaves(torch.randn(2, 3, *size, dtype=torch.float64), random_features(size, 2, feature_batch))
        cotangent = torch.randn(2, 3, *size, dtype=torch.float64)
        y = Window(inputs[1], **window, normalization=normalization)(inputs[0])
        expected = dense_apply(dense_window(inputs[1], **window, normalization=normalization), inputs[0])
        assert_close("K x", y.detach(), expected.detach())
        found = torch.autograd.grad(y, inputs, cotangent)
        wanted = torch.autograd.grad(expected, inputs, cotangent)
        assert_close("values' gradient", found[0], wanted[0])
        # A pixel alone has no difference of features, nor has a normalised row of a single tap.
        assert_close("features' gradient", found[1], wanted[1], scale=max(1.0, wanted[1].abs().max().item()))


@pytest.mark.parametrize("size", [(16, 16), (7, 13)])
def test_a_window_over_the_whole_image_is_the_full_gaussian(size):
    f, x = random_features(size, 5), torch.randn(1, 3, *size, dtype=torch.float64)
    flat = f[0].flatten(1).T
    full = torch.exp(-(flat[:, None] - flat[None]).square().sum(2) / 2)
    y = Window(f, window_size=2 * max(size) - 1)(x)
    assert_close("K x", y, dense_apply(full[None], x))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradcheck(normalization):
    def apply(values, features):
        return Window(features, 3, normalization=normalization, blur=2)(values)

    values, features = torch.randn(2, 2, 3, 5, dtype=torch.float64), random_features((3, 5))
    assert torch.autograd.gradcheck(apply, leaves(values, features))


# Properties (spec 9) ----------------------------------------------------------------------------------------------


def test_classes_are_independent():
    f, x = random_features((5, 7)), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    window, order = Window(f, 5, normalization="symmetric"), [2, 0, 3, 1]
    assert_close("permuted classes", window(x[:, order]), window(x)[:, order])
    assert_close("one class", window(x[:, 1:2]), window(x)[:, 1:2])


@pytest.mark.parametrize(
    "transform", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT], ids=["x", "y", "xy"]
)
@pytest.mark.parametrize("factor, size", [(1, (5, 7)), (2, (6, 8)), (4, (8, 12))])
def test_flips_and_transposes_commute(transform, factor, size):
    f, x = random_features(size), torch.randn(1, 3, *size, dtype=torch.float64)
    y = Window(f, 3, dilation=2, blur=factor, normalization="after")(x)
    moved = Window(transform(f), 3, dilation=2, blur=factor, normalization="after")(transform(x))
    assert_close("moved", moved, transform(y))


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("include_self", [True, False])
def test_what_each_normalization_preserves(include_self, factor):
    f, ones = random_features((7, 8)), torch.ones(1, 1, 7, 8, dtype=torch.float64)
    options = {"window_size": 3, "include_self": include_self, "blur": factor}
    root = Window(f, **options)(ones).sqrt()
    assert_close("after: rows sum to 1", Window(f, **options, normalization="after")(ones), ones)
    before = Window(f, **options, normalization="before").operator(ones)
    symmetric = Window(f, **options, normalization="symmetric")
    assert_close("symmetric: r^1/2 is fixed", symmetric(root), root)
    if factor == 1:
        assert_close("before: columns sum to 1", before.adjoint(ones), ones)


def inner(a, b):
    return (a * b).sum()


@pytest.mark.parametrize("size", [(9,), (7, 6), (3, 5, 4)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_adjoint(factor, normalization, size):
    x, y = torch.randn(2, 2, 3, *size, dtype=torch.float64).unbind(0)
    K = Window(random_features(size), 3, blur=factor, normalization=normalization).operator(x)
    assert_close("<Kx, y>", inner(K.apply(x), y), inner(x, K.adjoint(y)), scale=(x.norm() * y.norm()).item())


@pytest.mark.parametrize("factor, normalization, symmetric", [
    (1, "none", True), (1, "symmetric", True), (1, "after", False), (1, "before", False), (4, "none", False),
    (4, "symmetric", False),
])  # fmt: skip
def test_the_filter_is_its_own_adjoint_only_at_full_resolution_and_scaled_alike(factor, normalization, symmetric):
    x = torch.randn(1, 2, 11, 10, dtype=torch.float64)
    K = Window(random_features((11, 10)), 3, blur=factor, normalization=normalization).operator(x)
    difference = (K.apply(x) - K.adjoint(x)).norm() / K.adjoint(x).norm()
    assert difference < 1e-12 if symmetric else difference > 0.01


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


@pytest.mark.parametrize("include_self", [True, False])
def test_an_isolated_pixel_has_finite_gradients(include_self):
    f, x = leaves(100.0 * torch.arange(6.0).view(1, 1, 6), torch.randn(1, 2, 6))
    for normalization in NORMALIZATIONS:
        y = Window(f, 3, include_self=include_self, normalization=normalization)(x)
        d_f, d_x = torch.autograd.grad(y, (f, x), torch.randn_like(y))
        assert_close("features' gradient", d_f, torch.zeros_like(f))
        assert torch.isfinite(d_x).all()


def test_features_may_be_shifted():
    f, x = random_features((5, 6)), torch.randn(1, 2, 5, 6, dtype=torch.float64)
    assert_close("shifted", Window(f + 3.0, 3, blur=2)(x), Window(f, 3, blur=2)(x))


# Forms of the input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_a_batch_is_its_images_one_by_one(normalization, factor):
    f, x = random_features((5, 7), batch=3), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    together = Window(f, 3, blur=factor, normalization=normalization)(x)
    singles = [Window(f[b : b + 1], 3, blur=factor, normalization=normalization)(x[b : b + 1]) for b in range(3)]
    assert_close("batch", together, torch.cat(singles))


def test_features_of_one_image_serve_a_batch():
    f, x = random_features((5, 7)), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    assert_close("shared", Window(f, 3)(x), Window(f.expand(3, -1, -1, -1), 3)(x))


@pytest.mark.parametrize("feature_batch", [0, 1])
@pytest.mark.parametrize("factor", [1, 2])
def test_an_empty_batch(factor, feature_batch):
    f, x = leaves(random_features((5, 7), batch=feature_batch), torch.randn(0, 3, 5, 7, dtype=torch.float64))
    y = Window(f, 3, blur=factor, normalization="symmetric")(x)
    assert y.shape == x.shape
    d_f, d_x = torch.autograd.grad(y, (f, x), torch.randn_like(y))
    assert d_x.shape == x.shape
    assert_close("features' gradient", d_f, torch.zeros_like(f), scale=1.0)


@pytest.mark.parametrize("factor", [1, 2])
def test_memory_order_does_not_matter(factor):
    f, x, cotangent = random_features((5, 7)), *torch.randn(2, 2, 3, 5, 7, dtype=torch.float64).unbind(0)

    def results(make):
        inputs = [make(t).requires_grad_() for t in (f, x)]
        y = Window(inputs[0], 3, blur=factor, normalization="after")(inputs[1])
        return y.detach(), *torch.autograd.grad(y, inputs, make(cotangent))

    for name, a, b in zip(("K x", "features' gradient", "values' gradient"), results(strided), results(torch.clone)):
        assert_close(name, a, b)


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 21, 200])
def test_numbers_of_classes(classes):
    f, x = random_features((5, 7)), torch.randn(1, classes, 5, 7, dtype=torch.float64)
    assert_close("K x", Window(f, 3)(x), dense_apply(dense_window(f, 3), x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_keep_their_dtype_and_are_summed_in_float32_at_least(dtype):
    f, x = random_features((5, 7), dtype=torch.float32), torch.randn(1, 3, 5, 7, dtype=dtype)
    window = Window(f, 3, normalization="after")
    y = window(x)
    assert y.dtype == dtype
    wide = x if dtype == torch.float64 else x.float()
    assert torch.equal(y, window(wide).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_floating_dtype_get_their_gradient_in_it(dtype):
    (f,) = leaves(random_features((5, 7), dtype=dtype))
    Window(f, 3, normalization="symmetric")(torch.rand(1, 2, 5, 7)).sum().backward()
    assert f.grad.dtype == dtype and f.grad.abs().max() > 0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_float32_loses_only_rounding(normalization):
    size = (12, 13)
    f, x = random_features(size), torch.randn(1, 4, *size, dtype=torch.float64)
    exact = Window(f, 5, normalization=normalization)(x)
    found = Window(f.float(), 5, normalization=normalization)(x.float())
    assert_close("K x", found, exact, dtype=torch.float32)
    dense = dense_apply(dense_window(f.float(), 5, normalization=normalization), x.float())
    assert_within_budget("K x", found, exact, dense)


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


class LargestTensor(TorchDispatchMode):
    """The most elements that any operator inside gave back in one memory."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("kept_states", [0, 3])
@pytest.mark.parametrize("classes", [2, 21])
def test_no_tensor_grows_with_the_window_and_the_classes(classes, kept_states):
    f, x = torch.randn(1, 5, 24, 24), torch.randn(1, classes, 24, 24)
    plan = Window(f, 11).resolved(x)
    with LargestTensor() as largest:
        K = plan.operator([f], kept_states * classes)
        K.apply(x)
        K.adjoint(x)
        K.gradients(x, x)
    assert K.keeps_weights == (kept_states * classes >= 60)  # half of 11 x 11
    assert largest.elements <= max(kept_states, 1) * max(classes, 5) * 24 * 24


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_survive_pooling_and_upsampling(dtype):
    ones = torch.ones(1, 1, 1, 5, 7, dtype=dtype)
    low = blur.pool(ones, (1, 2, 2))
    assert_close("pooled", low, torch.ones_like(low))
    assert_close("upsampled", blur.upsample(low, (1, 5, 7), (1, 2, 2)), ones)


# Bad input --------------------------------------------------------------------------------------------------------

F = torch.zeros(1, 2, 4, 5)
NAN = torch.full((1, 2, 4, 5), math.nan)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"features": np.zeros((1, 2, 4, 5))}, TypeError, "^features: expected a floating.*ndarray.*torch.from_numpy"),
        ({"features": [[1.0]]}, TypeError, r"^features: expected a floating.*got \[\[1.0\]\] \(list\)"),
        ({"features": F.int()}, TypeError, "^features: expected a floating.*got a int32 tensor"),
        ({"features": F.to(torch.complex64)}, TypeError, "^features: expected a floating.*got a complex64 tensor"),
        ({"features": F[0, 0]}, ValueError, r"^features: expected \[B, D, \*S\].*got shape \[4, 5\]"),
        ({"features": F[:, :, :, :, None, None]}, ValueError, r"^features: expected \[B, D, \*S\]"),
        ({"features": F[:, :0]}, ValueError, r"^features: expected at least one channel.*\[1, 0, 4, 5\]"),
        ({"features": F[..., :0]}, ValueError, r"^features: expected at least one pixel.*\[1, 2, 4, 0\]"),
        ({"features": NAN}, ValueError, "^features: expected finite values, got 40 NaN or infinite of 40"),
        ({"features": F + math.inf}, ValueError, "^features: expected finite values"),
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
        ({"include_self": 1}, TypeError, r"^include_self: expected True or False, got 1 \(int\)"),
        ({"normalization": "sym"}, ValueError, "^normalization: expected one of 'none', 'before', .* got 'sym'"),
        ({"normalization": None}, ValueError, "^normalization: expected one of .* got None"),
        ({"precision": "high"}, ValueError, "^precision: expected one of 'default', 'fast', got 'high'"),
        ({"backend": "cuda"}, ValueError, "^backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"features": F.double(), "backend": "triton"}, ValueError, "^backend: expected 'torch' or 'auto' for float64"),
        ({"backend": "triton"}, ValueError, "^backend: 'triton' runs on a GPU.*TRITON_INTERPRET=1"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        Window(**{"features": F, "window_size": 3, **change})


@pytest.mark.parametrize(
    "values, error, message",
    [
        (np.zeros((1, 2, 4, 5)), TypeError, "^values: expected a floating.*torch.from_numpy"),
        (torch.zeros(1, 2, 4, 5, dtype=torch.int64), TypeError, "^values: expected a floating.*int64"),
        (torch.zeros(1, 2, 5, 4), ValueError, r"^values: expected \[3, C, 4, 5\].*got \[1, 2, 5, 4\]"),
        (torch.zeros(2, 4, 5), ValueError, r"^values: expected \[3, C, 4, 5\].*got \[2, 4, 5\]"),
        (torch.zeros(2, 2, 4, 5), ValueError, r"^values: expected a batch of 3.*got \[2, 2, 4, 5\]"),
        (torch.zeros(3, 2, 4, 5, device="meta"), ValueError, "^values: expected the device .* cpu, got meta"),
        (torch.full((3, 2, 4, 5), math.inf), ValueError, "^values: expected finite values, got 120"),
    ],
)
def test_bad_values(values, error, message):
    with pytest.raises(error, match=message):
        Window(F.expand(3, -1, -1, -1), 3)(values)

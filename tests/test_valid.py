"""Pixels that are not there, `valid` of Window and Guided: as if they were outside the image."""

import itertools
import math

import numpy as np
import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import NORMALIZATIONS, dense_apply, leaves, normalized, random_features
from filter_catalogue import GUIDED, WINDOW, assert_same_bits, results

Guided, Window = tc.filters.Guided, tc.filters.Window

each_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
both = pytest.mark.parametrize("case", [WINDOW, GUIDED], ids=lambda case: case.name)


def holes(size, share=0.6):
    """A random mask [1, *S] of which a pixel is there and another is not."""
    mask = torch.rand(1, *size) < share
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask


def masks(size):
    """[1, *S] by name."""
    row, single = torch.ones(1, *size, dtype=torch.bool), torch.zeros(1, *size, dtype=torch.bool)
    row[:, size[0] // 2] = False
    single.view(-1)[math.prod(size) // 2] = True
    return {"holes": holes(size), "row": row, "single": single, "none": torch.zeros_like(single)}


MASKS = list(masks((3,)))


# The matrices of their definitions ----------------------------------------------------------------------------------


def gaussian(features, places, valid, k):
    """[N, N] of one image [D, N], pixel by pixel: exp(-|f_i - f_j|^2 / 2) of valid neighbours within k // 2."""
    found = torch.zeros(len(places), len(places), dtype=torch.float64)
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        if valid[i] and valid[j] and max(abs(x - y) for x, y in zip(a, b)) <= k // 2:
            found[i, j] = math.exp(-(features[:, i] - features[:, j]).square().sum() / 2)
    return found


def window_matrix(features, valid, k, b=1, include_self=True, normalization="none"):
    """[1, N, N] of one image whose sides are multiples of b: means over a block's valid pixels, a window of blocks that
    have some, and bilinear interpolation between these alone."""
    size = features.shape[2:]
    low = [n // b for n in size]
    pixels, blocks = (list(itertools.product(*map(range, s))) for s in (size, low))
    valid = valid.flatten().tolist()
    pool = torch.zeros(len(blocks), len(pixels), dtype=torch.float64)
    up = torch.zeros(len(pixels), len(blocks), dtype=torch.float64)
    for i, place in enumerate(pixels):
        if valid[i]:
            pool[blocks.index(tuple(x // b for x in place)), i] = 1
    there = (pool.sum(1) > 0).tolist()
    pool /= pool.sum(1, keepdim=True).clamp_min(1)
    for (i, place), (j, block) in itertools.product(enumerate(pixels), enumerate(blocks)):
        if valid[i] and there[j]:
            at = [min(max((x + 0.5) / b - 0.5, 0), n - 1) for x, n in zip(place, low)]
            up[i, j] = math.prod(max(0, 1 - abs(x - y)) for x, y in zip(at, block))
    up /= up.sum(1, keepdim=True).clamp_min(1e-9)
    inner = gaussian(features[0].flatten(1) @ pool.T, blocks, there, k)
    return normalized((up @ (inner if include_self else inner - torch.diag(inner.diag())) @ pool)[None], normalization)


def guided_filter(values, guide, valid, radius, eps, box):
    """x [C, *S]: in every window with a valid centre x is fitted by a . I + b over the valid pixels, by the normal
    equations of least squares; a valid pixel gets the mean of the fits of all windows that see it."""
    size, dimensions = guide.shape[1:], len(guide)
    full = math.prod(min(2 * radius + 1, n) for n in size)
    sums, counts = np.zeros_like(values), np.zeros(size)
    for k in np.argwhere(valid):
        window = tuple(slice(max(i - radius, 0), i + radius + 1) for i in k)
        seen = valid[window]
        I, x = guide[(slice(None), *window)][:, seen], values[(slice(None), *window)][:, seen]
        area = seen.sum() if box == "count" else full
        mean, x_mean = I.sum(1) / area, x.sum(1) / area
        sigma = I @ I.T / area - np.outer(mean, mean) + eps * np.eye(dimensions)
        slope = np.linalg.solve(sigma, I @ x.T / area - np.outer(mean, x_mean))
        fit = slope.T @ I + (x_mean - mean @ slope)[:, None]
        for c, values_of in enumerate(fit):
            sums[c][window][seen] += values_of
        counts[window] += seen
    return np.where(valid, sums / np.maximum(counts if box == "count" else full, 1), 0.0)


WINDOWS = {
    "signal": ((9,), {"window_size": 5}),
    "image": ((5, 4), {"window_size": 3}),
    "volume": ((3, 2, 4), {"window_size": 3}),
    "not-self": ((5, 4), {"window_size": 3, "include_self": False}),
    "signal-blurred": ((12,), {"window_size": 3, "blur": 3}),
    "image-blurred": ((8, 6), {"window_size": 3, "blur": 2}),
    "volume-blurred": ((4, 2, 4), {"window_size": 3, "blur": 2}),
    "blurred-not-self": ((8, 6), {"window_size": 3, "blur": 2, "include_self": False}),
}


@each_normalization
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_is_its_matrix(name, mask, normalization, nan_memory):
    size, options = WINDOWS[name]
    valid, features = masks(size)[mask], random_features(size, 3)
    x, (k, b) = torch.randn(1, 2, *size, dtype=torch.float64), (options["window_size"], options.get("blur", 1))
    matrix = window_matrix(features, valid, k, b, options.get("include_self", True), normalization)
    K = Window(features, **options, normalization=normalization, valid=valid)
    expected = dense_apply(matrix, x)
    scale = None if expected.any() else 1.0
    assert_close("K x", K(x), expected, scale=scale)
    operator, y = K.operator(x), torch.randn_like(x)
    assert_close("K^T y", operator.adjoint(y), dense_apply(matrix.mT, y), scale=scale)
    assert not K(x)[..., ~valid[0]].any()


GUIDES = {
    "signal": ((9,), 2, 2),
    "image": ((5, 7), 3, 1),
    "grey": ((6, 4), 1, 2),
    "volume": ((3, 4, 3), 3, 1),
    "past-the-image": ((4, 5), 2, 31),
}


@pytest.mark.parametrize("box", ["count", "constant"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", GUIDES)
def test_a_guided_filter_fits_the_pixels_that_are_there(name, mask, box, nan_memory):
    size, channels, radius = GUIDES[name]
    valid, guide = masks(size)[mask], random_features(size, channels)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    expected = torch.from_numpy(guided_filter(x[0].numpy(), guide[0].numpy(), valid[0].numpy(), radius, 0.05, box))
    found = Guided(guide, radius, 0.05, box, valid=valid)(x)[0]
    assert_close("K x", found, expected, scale=None if expected.any() else 1.0)
    assert not found[:, ~valid[0]].any()


# What follows from it -----------------------------------------------------------------------------------------------

SIZE = (8, 6)
FORMS = {
    "window": (WINDOW, {"window_size": 5, "normalization": "symmetric"}),
    "window-plain": (WINDOW, {"include_self": False}),
    "window-before": (WINDOW, {"normalization": "before"}),
    "window-after": (WINDOW, {"normalization": "after"}),
    "window-blurred": (WINDOW, {"blur": 2, "normalization": "symmetric"}),
    "window-blurred-plain": (WINDOW, {"blur": 2}),
    "window-blurred-after": (WINDOW, {"blur": 2, "normalization": "after"}),
    "guided": (GUIDED, {"radius": 1}),
    "guided-constant": (GUIDED, {"radius": 1, "box": "constant"}),
}
each_form = pytest.mark.parametrize("form", FORMS)


@each_form
@pytest.mark.parametrize("rows", [slice(0, 6), slice(2, 8)])
def test_rows_that_are_not_there_are_outside_the_image(form, rows):
    case, changes = FORMS[form]
    inputs, valid = case.inputs(SIZE), torch.zeros(1, *SIZE, dtype=torch.bool)
    valid[:, rows] = True
    cotangent = torch.randn(2, 3, *SIZE, dtype=torch.float64) * valid[:, None]
    found = results(case.apply(valid=valid, **changes), inputs, cotangent=cotangent)
    cropped = {name: x[:, :, rows] if x.ndim else x for name, x in inputs.items()}
    expected = results(case.apply(**changes), cropped, cotangent=cotangent[:, :, rows])
    for name, inside in expected.items():
        whole = found[name]
        if whole.ndim:
            assert not whole[..., ~valid[0]].any(), name
            whole = whole[:, :, rows]
        assert_close(name, whole, inside)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_all_are_there_no_bit_changes(form, dtype):
    case, changes = FORMS[form]
    inputs = case.inputs((7, 9))
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    found = results(case.apply(valid=valid, **changes), inputs, dtype=dtype)
    assert_same_bits(found, results(case.apply(**changes), inputs, dtype=dtype))


@each_form
def test_nothing_is_looked_at_where_no_pixel_is(form):
    """Whatever the features are there, NaN or far away, no bit changes; nor does what values are sent from there."""
    case, changes = FORMS[form]
    inputs, valid = case.inputs(SIZE, batch=1), holes(SIZE)
    expected = results(case.apply(valid=valid, **changes), inputs)
    for other in math.nan, math.inf, -1e12:
        features = inputs[case.source].where(valid[:, None], other)
        found = results(case.apply(valid=valid, **changes), {**inputs, case.source: features})
        assert_same_bits(found, expected)
    sent = {**inputs, "values": inputs["values"].where(valid[:, None], 7.0)}
    assert torch.equal(results(case.apply(valid=valid, **changes), sent)["K x"], expected["K x"])
    assert not expected[case.source][..., ~valid[0]].any() and not expected["values"][..., ~valid[0]].any()


@each_form
def test_gradcheck(form):
    case, changes = FORMS[form]
    size = (8,) if "blur" in changes else (3, 4)
    inputs, valid = case.inputs(size, 2, shared=True, batch=1, classes=1), torch.ones(1, *size, dtype=torch.bool)
    valid.view(-1)[[1, 4, 5]] = False  # a half and a whole of a block

    def apply(*tensors):
        return case.apply(valid=valid, **changes)(**dict(zip(inputs, tensors)))

    assert torch.autograd.gradcheck(apply, leaves(*inputs.values()))


@each_form
def test_masks_and_features_of_one_image_serve_a_batch(form):
    case, changes = FORMS[form]
    one, many = case.inputs(SIZE, shared=True), case.inputs(SIZE)
    each = torch.cat([holes(SIZE), holes(SIZE)])
    for inputs, valid in (one, each), (many, each), (many, each[:1]):
        K = case.filter(inputs[case.source], valid=valid, **changes)
        assert K.batch == 2
        for b in range(2):
            own = inputs[case.source][b % len(inputs[case.source])], valid[b % len(valid)]
            alone = case.filter(own[0][None], valid=own[1][None], **changes)(inputs["values"][b : b + 1])
            assert_close("K x", K(inputs["values"])[b : b + 1], alone)


@pytest.mark.parametrize("count", [1, 2])
@each_form
def test_the_loop_without_the_pixels_that_are_not_there(form, count):
    """Rows at the border: Q is that of the image without them, and a softmax of the scores alone where they were."""
    case, changes = FORMS[form]
    logits, valid = torch.randn(1, 3, *SIZE, dtype=torch.float64), torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, 6:] = False
    features = [case.inputs(SIZE, batch=1)[case.source] for _ in range(count)]

    def loop(logits, features, **mask):
        filters = [case.filter(f, **changes, **mask) for f in features]
        return tc.mean_field(logits, filters, [0.7, -0.4][:count], iterations=3)

    found = loop(logits, features, valid=valid)
    assert_close("inside", found[:, :, :6], loop(logits[:, :, :6], [f[:, :, :6] for f in features]))
    assert_close("outside", found[:, :, 6:], logits[:, :, 6:].softmax(1))


def test_positions_are_told_by_the_first_and_the_last():
    size, valid = (5, 6), holes((5, 6))
    valid[0, 0, 0] = False
    positions = tc.features.evenly_spaced(tc.features.spatial(size, 1.5))
    K = Window(positions, 3, normalization="symmetric", valid=valid)
    assert K.plan.positions and torch.equal(K.tensors[0], positions)
    x = torch.rand(1, 2, *size)
    assert torch.equal(K(x), Window(positions.clone(), 3, normalization="symmetric", valid=valid)(x))


def test_features_far_from_0_are_centred_among_those_that_are_there():
    """Most pixels are not there: were these counted, coordinates of 5e6 m would be rounded in float32."""
    size, valid = (5, 6), masks((5, 6))["none"]
    valid[0, 2:4] = True
    f, x = random_features(size, 2), torch.randn(1, 2, *size)
    for kind, options in (Window, {"window_size": 3}), (Guided, {"radius": 1, "eps": 0.1}):
        near, far = (kind(features, **options, valid=valid)(x) for features in (f, f + 5e6))
        assert_close("K x", far, near, dtype=torch.float32)


@both
def test_the_mask_shows(case):
    features = torch.zeros(1, 2, 3, 4)
    assert "masked=True" in repr(case.filter(features, valid=torch.ones(1, 3, 4, dtype=torch.bool)))
    assert "masked=False" in repr(case.filter(features))


@both
def test_compiles_whole(case, fresh_compiler):
    def apply(features, values, valid):
        return case.filter(features, valid=valid)(values)

    features, values, valid = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 5, 6), holes((5, 6))
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    assert_close("K x", compiled(features, values, valid), apply(features, values, valid))


# Bad input ----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("valid, error, message", [
    (torch.ones(1, 4, 5), TypeError, r"a bool tensor \[2, 4, 5\] or \[1, 4, 5\] as the {}, got a float32 tensor of"),
    (np.ones((1, 4, 5), dtype=bool), TypeError, r"a bool tensor \[2, 4, 5\].*, got a ndarray of shape"),
    (torch.ones(4, 5, dtype=torch.bool), ValueError, r"a bool tensor \[2, 4, 5\].* as the {}, got shape \[4, 5\]"),
    (torch.ones(1, 5, 4, dtype=torch.bool), ValueError, r"a bool tensor \[2, 4, 5\].*, got shape \[1, 5, 4\]"),
    (torch.ones(3, 4, 5, dtype=torch.bool), ValueError, r"a bool tensor \[2, 4, 5\].*, got shape \[3, 4, 5\]"),
    (torch.ones(1, 4, 5, dtype=torch.bool, device="meta"), ValueError, "the device of the {}, cpu, got meta"),
])  # fmt: skip
def test_bad_masks(case, valid, error, message):
    with pytest.raises(error, match="^valid: expected " + message.format(case.source)):
        case.filter(torch.zeros(2, 3, 4, 5), valid=valid)


def test_no_mask_with_blocks_of_a_guide():
    with pytest.raises(
        NotImplementedError, match="^valid: expected a subsample of 1 beside it, got 2; blocks are means"
    ):
        Guided(torch.zeros(1, 3, 4, 5), 2, 0.1, subsample=2, valid=torch.ones(1, 4, 5, dtype=torch.bool))

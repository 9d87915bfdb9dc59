"""What the Guided filter alone promises, in PyTorch: its closed form, least squares, its properties, what it costs, errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import (
    box_mask,
    dense_guided,
    leaves,
    random_features,
)
from filter_catalogue import GUIDED
from memory import Work
from problems import GUIDED_FILTERS, named
from tritoncrf.demo import photo
from tritoncrf.filters.guided import statistics, statistics_backward
from tritoncrf.reference import guided as reference
from tritoncrf.reference.box import BOXES

Guided = tc.filters.Guided
both_boxes = pytest.mark.parametrize("box", BOXES)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def matrix_of(guided) -> torch.Tensor:
    """W [N, N] of a filter of one image, by what it makes of an impulse at every pixel."""
    pixels = math.prod(guided.size)
    impulses = torch.eye(pixels, dtype=torch.float64).view(1, pixels, *guided.size)
    return guided(impulses).flatten(2)[0].mT


# Known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", GUIDED_FILTERS, ids=named)
def test_known_answers_of_the_plain_filter(problem):
    guide, values, answer = problem.tensors(torch.float64)
    assert_close("guided_filter", tc.guided_filter(values, guide, **problem.window), answer)
    with pytest.raises(ValueError, match=r"^values: expected .* as the filter's guide, got"):
        tc.guided_filter(values[..., None], guide, **problem.window)


# Against the dense matrix -----------------------------------------------------------------------------------------


@both_boxes
@pytest.mark.parametrize("radius", [3, 6])
def test_the_matrix_is_its_closed_form(radius, box):
    guide = random_features((13, 17), 3)
    found, expected = matrix_of(Guided(guide, radius, 0.1, box)), dense_guided(guide, radius, 0.1, box)[0]
    assert_close("W", found, expected, rms=1e-12, worst=1e-12)


def least_squares(values, guide, radii, eps, box):
    """The filter as it is defined, for one image: x [C, *S] is fitted by a . I + b in every window by least squares,

        sum_j (a . I_j + b - x_j)^2 + eps D |a|^2,

    and a pixel gets the mean of the fits of all windows that see it. For "constant" a window that has less than D
    pixels is filled up with zeros, in x and in I.
    """
    size, dimensions = guide.shape[1:], len(guide)
    fixed = math.prod(min(2 * r + 1, n) for r, n in zip(radii, size))
    sums, counts = np.zeros_like(values), np.zeros(size)
    for k in itertools.product(*map(range, size)):
        window = (slice(None), *(slice(max(i - r, 0), i + r + 1) for i, r in zip(k, radii)))
        seen = guide[window].reshape(dimensions, -1).T
        area = len(seen) if box == "count" else fixed
        design = np.zeros((area + dimensions, dimensions + 1))
        design[: len(seen), :dimensions], design[:area, dimensions] = seen, 1
        design[area:, :dimensions] = math.sqrt(eps * area) * np.eye(dimensions)
        target = np.zeros((area + dimensions, len(values)))
        target[: len(seen)] = values[window].reshape(len(values), -1).T
        fit = np.linalg.lstsq(design, target, rcond=None)[0]
        sums[window] += (np.c_[seen, np.ones(len(seen))] @ fit).T.reshape(sums[window].shape)
        counts[window[1:]] += 1
    return sums / (counts if box == "count" else fixed)


@both_boxes
@pytest.mark.parametrize(
    "geometry", [name for name, (*_, changes) in GUIDED.geometries.items() if "subsample" not in changes]
)
def test_every_window_is_fitted_by_least_squares(geometry, box):
    size, channels, options = GUIDED.geometries[geometry]
    options = {"radius": 2, **options}
    radii = options["radius"] if isinstance(options["radius"], tuple) else (options["radius"],) * len(size)
    guide, x = random_features(size, channels), torch.randn(1, 2, *size, dtype=torch.float64)
    expected = least_squares(x[0].numpy(), guide[0].numpy(), radii, 0.05, box)
    assert_close("W x", Guided(guide, eps=0.05, box=box, **options)(x)[0], torch.from_numpy(expected))


@both_boxes
def test_a_window_past_the_image_is_one_regression_on_the_guide(box):
    guide, x = random_features((6, 5), 2), torch.randn(1, 3, 6, 5, dtype=torch.float64)
    centred = (guide - guide.mean((2, 3), keepdim=True)).flatten(2)[0]  # [D, N]
    covariance = centred @ centred.T / 30 + 0.1 * torch.eye(2, dtype=torch.float64)
    slopes = torch.linalg.solve(covariance, centred @ x.flatten(2)[0].T / 30)  # [D, C]
    expected = x.mean((2, 3), keepdim=True) + (slopes.T @ centred).view(x.shape)
    for radius in (5, (5, 4), 64, 10**6):
        assert_close(f"radius {radius}", Guided(guide, radius, 0.1, box)(x), expected)


def test_gradients_reach_an_image_that_is_its_own_guide():
    def smooth(image):
        return tc.guided_filter(image, image, 1, 0.2)

    assert torch.autograd.gradcheck(smooth, leaves(random_features((3, 4))))


# Properties ----------------------------------------------------------------------------------------------

SIZE = (9, 11)


def filtered(guide, x, radius=2, eps=0.1, **options):
    return Guided(guide, radius, eps, **options)(x)


def some(channels=3, classes=4, size=SIZE):
    """A guide and values of one image."""
    return random_features(size, channels), torch.randn(1, classes, *size, dtype=torch.float64)


@both_boxes
@pytest.mark.parametrize("subsample", [1, 2, 3])
def test_classes_add_up_to_the_rows_and_rows_to_one(subsample, box):
    guide, x = some()
    ones = filtered(guide, torch.ones_like(x[:, :1]), box=box, subsample=subsample)
    q = filtered(guide, x.softmax(1), box=box, subsample=subsample)
    assert_close("over classes", q.sum(1, keepdim=True), ones)
    if box == "count":
        assert_close("rows", ones, torch.ones_like(ones))
    else:
        assert ones.min() < 0.5  # at a corner


def test_the_adjoint_divides_by_the_areas_first():
    guide, y = some(size=(13, 17))
    (x,) = leaves(y)
    guided = Guided(guide, 3, 0.1)
    (transposed,) = torch.autograd.grad(guided(x), x, y)
    area = box_mask((13, 17), (3, 3)).sum(1).double().view(13, 17)
    assert_close("W^T y", transposed, area * guided(y / area))
    assert (transposed - guided(y)).norm() > 0.01 * transposed.norm()


@both_boxes
def test_weights(box):
    """W = D^-1 G with G symmetric and positive semidefinite; as far as 2 r pixels; some are negative."""
    guide, _ = some()
    w = matrix_of(Guided(guide, (1, 2), 0.1, box))
    g = w * box_mask(SIZE, (1, 2)).sum(1, keepdim=True) if box == "count" else w
    assert_close("G", g, g.mT.contiguous())
    assert torch.linalg.eigvalsh(g).min() > -1e-12
    assert torch.equal(w != 0, box_mask(SIZE, (2, 4)))
    assert w.min() < -1e-3


@pytest.mark.parametrize("subsample", [1, 2])
def test_a_flat_guide_makes_a_box_of_a_box(subsample):
    size = (10, 12)
    guide, x = torch.full((1, 3, *size), 200.0, dtype=torch.float64), torch.randn(1, 2, *size, dtype=torch.float64)
    y = filtered(guide, x, radius=4, subsample=subsample)
    if subsample == 1:
        assert_close("W x", y, tc.box_mean(tc.box_mean(x, 4), 4))
    assert_close("as any flat guide", y, filtered(0 * guide, x, radius=4, subsample=subsample))
    assert_close("in float32", filtered(guide.float(), x.float(), 4, subsample=subsample), y, dtype=torch.float32)


@both_boxes
def test_a_large_eps_makes_a_box_of_a_box(box):
    guide, x = some()
    expected = tc.box_mean(tc.box_mean(x, (2, 3), box=box), (2, 3), box=box)
    assert_close("W x", filtered(guide, x, (2, 3), 1e14, box=box), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_a_small_eps_keeps_what_is_affine_in_the_guide(channels):
    guide, _ = some(channels)
    slopes, offsets = torch.randn(4, channels, dtype=torch.float64), torch.randn(4, 1, 1, dtype=torch.float64)
    x = torch.einsum("cd,bdyx->bcyx", slopes, guide) + offsets
    assert_close("W x", filtered(guide, x, radius=2, eps=1e-13), x, rms=1e-10, worst=1e-10)
    assert (filtered(guide, x, radius=2, eps=0.1) - x).norm() > 0.01 * x.norm()


@pytest.mark.parametrize("subsample", [1, 2])
def test_a_guide_may_be_shifted_where_pixels_are_counted(subsample):
    guide, x = some()
    shift = torch.tensor([3.0, -1.0, 5.0], dtype=torch.float64)[:, None, None]
    y = filtered(guide, x, subsample=subsample)
    assert_close("shifted", filtered(guide + shift, x, subsample=subsample), y)
    constant = [filtered(g, x, box="constant", subsample=subsample) for g in (guide, guide + shift)]
    assert (constant[0] - constant[1]).norm() > 0.01 * constant[0].norm()


@both_boxes
@pytest.mark.parametrize("scale", [-1.0, 255.0, 1e-3])
def test_a_guide_may_be_scaled_with_eps(scale, box):
    guide, x = some()
    assert_close("scaled", filtered(scale * guide, x, eps=0.1 * scale**2, box=box), filtered(guide, x, box=box))


def test_channels_of_the_guide_may_be_rotated_and_repeated():
    guide, x = some()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    y = filtered(guide, x)
    assert_close("rotated", filtered(torch.einsum("ed,bdyx->beyx", rotation, guide), x), y)
    assert_close("doubled", filtered(torch.cat([guide, guide], 1) / math.sqrt(2), x), y)
    assert_close("an empty channel", filtered(torch.cat([guide, 0 * guide[:, :1]], 1), x), y)


@pytest.mark.parametrize("subsample", [1, 2])
def test_an_image_of_equal_rows_is_filtered_as_its_row(subsample):
    guide, x = some(size=(12,))
    y = filtered(guide, x, radius=4, subsample=subsample)
    image = filtered(*(t[:, :, None].expand(-1, -1, 8, -1) for t in (guide, x)), radius=4, subsample=subsample)
    assert_close("rows", image, y[:, :, None].expand(-1, -1, 8, -1))


def test_blocks_past_the_image_cost_nothing_more():
    """One block is the whole image: the grid that it stands for, of up to 10^12 pixels, is never made."""
    for size in (9,), (3, 5), (2, 3, 2):
        guide, x = some(size=size)
        found, expected = (filtered(guide, x, subsample=s) for s in (10**4, max(size)))
        assert_close(f"{size}", found, expected)


# Forms of the input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("subsample", [1, 2])
def test_classes_taken_a_few_at_a_time_change_nothing(subsample, classes, monkeypatch):
    x, cotangent = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64).unbind(0)
    inputs = leaves(x, random_features((6, 7), 3, 2), number(0.1))

    def results():
        y = filtered(inputs[1], inputs[0], eps=inputs[2], subsample=subsample)
        return y.detach(), *torch.autograd.grad(y, inputs, cotangent)

    whole = results()
    monkeypatch.setattr(reference, "CHUNK", classes * 6 * 7 * (1 + 3))
    for name, a, b in zip(("W x", "values", "guide", "eps"), results(), whole):
        assert_close(name, a, b)


# What is lost -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph():
    """[1, 3, 600, 512], 0..255: flat areas and sharp edges."""
    return torch.from_numpy(photo()).permute(2, 0, 1)[None].double()


@both_boxes
@pytest.mark.parametrize("radius", [3, 64])
def test_float32_on_a_photo(photograph, radius, box):
    """Raw grey levels up to 255 beside an eps of 1, where naive covariances lose the most."""
    x, cotangent = torch.rand(2, 1, 2, *photograph.shape[2:], dtype=torch.float64).softmax(2).unbind(0)

    def outcome(dtype):
        (values,) = leaves(x.to(dtype))
        y = Guided(photograph.to(dtype), radius, 1.0, box)(values)
        return y.detach(), *torch.autograd.grad(y, values, cotangent.to(dtype))

    for name, a, b in zip(("W x", "W^T y"), outcome(torch.float32), outcome(torch.float64)):
        assert_close(name, a, b, rms=1e-5, worst=1e-4, dtype=torch.float32)


def plain(values, guide, radius, eps, box):
    """The filter of images as one would write it: the yardstick of what float32 has to lose."""

    def mean(x):
        form = {"padding": radius, "count_include_pad": box == "constant"}
        return F.avg_pool2d(x.flatten(0, -3)[None], 2 * radius + 1, 1, **form).view(x.shape)

    if box == "count":
        guide = guide - guide.mean((2, 3), keepdim=True)
    mu, x = mean(guide), mean(values)
    sigma = mean(guide[:, :, None] * guide[:, None]) - mu[:, :, None] * mu[:, None]  # [B, D, D, Y, X]
    covariance = mean(guide[:, :, None] * values[:, None]) - mu[:, :, None] * x[:, None]  # [B, D, C, Y, X]
    sigma, covariance = (t.permute(0, 3, 4, 1, 2) for t in (sigma, covariance))
    slope = torch.linalg.solve(sigma + eps * torch.eye(guide.shape[1]).to(guide), covariance).permute(0, 3, 4, 1, 2)
    offset = x - (slope * mu[:, :, None]).sum(1)
    return (mean(slope) * guide[:, :, None]).sum(1) + mean(offset)


@pytest.fixture(scope="module")
def pictures(photograph):
    """Guides of 0..255 by name, with edges and flat areas; and values: the grey levels, and those of another picture."""
    colour = photograph[..., 100:180, 100:200]
    grey = colour.mean(1, keepdim=True).float().double()
    return {"grey": grey.expand(1, 3, -1, -1), "colour": colour}, torch.cat([grey, grey.flip(3)], 1)


@both_boxes
@pytest.mark.parametrize("radius", [1, 3, 8])
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_float32_loses_what_a_plain_filter_with_a_solve_loses(name, radius, box, pictures):
    """Of a grey photo as RGB, Sigma is singular: the slopes of an explicit inverse would be off by hundreds."""
    guide, x = pictures[0][name], pictures[1]
    cotangent = torch.randn(x.shape, dtype=torch.float64)

    def outcome(apply, dtype, eps):
        given = leaves(x.to(dtype), guide.to(dtype))
        y = apply(*given, radius, eps, box)
        return y.detach(), *torch.autograd.grad(y, given, cotangent.to(dtype))

    for eps in 1e-2, 1e-1, 1.0:
        exact = outcome(tc.guided_filter, torch.float64, eps)
        found, budget = (outcome(apply, torch.float32, eps) for apply in (tc.guided_filter, plain))
        for what, a, b, c in zip(("W x", "values", "guide"), exact, found, budget):
            lost, allowed = (b - a).abs().max(), 3 * (c - a).abs().max()
            assert lost <= allowed, f"{what}, eps {eps}: {lost:.3g} is lost, {allowed:.3g} are allowed"


@both_boxes
@pytest.mark.parametrize("radius", [1, 3, 8])
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_float32_keeps_the_range_however_small_eps_is(name, radius, box, pictures):
    guide, x = pictures[0][name].float(), pictures[1][:, :1].float()
    for eps in 1e-4, 1e-6, 1e-12, 1e-37:
        y = tc.guided_filter(x, guide, radius, eps, box)
        room = 0.01 * (x.max() - x.min())
        assert x.min() - room <= y.min() and y.max() <= x.max() + room, f"eps {eps}: {y.min()}..{y.max()}"


@both_boxes
@pytest.mark.parametrize("outlier", [1e10, -1e6])
def test_an_outlier_reaches_no_farther_than_anything_else(outlier, box):
    guide, (x, cotangent) = torch.rand(1, 2, 23, 31), torch.rand(2, 1, 3, 23, 31).unbind()
    spoilt = guide.clone()
    spoilt[0, 0, 4, 5] = outlier

    def outcome(guide):
        given = leaves(x, guide)
        y = Guided(given[1], 2, 0.01, box)(given[0])
        return y.detach(), *torch.autograd.grad(y, given, cotangent)

    far = torch.ones(23, 31, dtype=torch.bool)
    far[:9, :10] = False
    for what, a, b in zip(("W x", "values", "guide"), outcome(spoilt), outcome(guide)):
        assert_close(what, a[..., far], b[..., far])


@both_boxes
@pytest.mark.parametrize("scale", [1e-9, 1e9, 1e14])
def test_float32_takes_guides_of_any_scale(scale, box):
    guide, x = torch.rand(1, 3, 9, 11), torch.rand(1, 2, 9, 11)
    found = leaves(x, guide * scale)
    exact = leaves(*(t.detach().double() for t in found))
    outcomes = [tc.guided_filter(*given, 2, 0.1 * scale**2, box) for given in (found, exact)]
    assert_close("W x", *outcomes, dtype=torch.float32)
    gradients = [torch.autograd.grad(y, given, x.flip(1).to(y)) for y, given in zip(outcomes, (found, exact))]
    for name, a, b in zip(("values", "guide"), *gradients):
        assert_close(name, a, b, dtype=torch.float32)


# What it costs ----------------------------------------------------------------------------------------------------


def work(radius: int, size=(256, 256)) -> Work:
    """Of W x, W^T x and the gradients, for two classes and a guide of one channel."""
    guided, x = Guided(torch.rand(1, 1, *size), radius, 0.1), torch.rand(1, 2, *size)
    plan = guided.resolved(x)
    with Work() as found:
        K = plan.operator(guided.tensors)
        K.apply(x)
        K.adjoint(x)
        K.gradients(x, x)
    return found


def test_the_work_grows_only_with_the_logarithm_of_the_radius():
    near, far = work(4), work(64)
    assert far.written < 2 * near.written
    assert far.largest < 1.5 * near.largest  # borders: a radius on one side of an axis


# Operators -------------------------------------------------------------------------------------------------------


def statistics_inputs(guide, requires_grad=False):
    guide, eps = guide.detach().requires_grad_(requires_grad), torch.tensor(0.2, requires_grad=requires_grad)
    return guide, eps, None, [1] * (guide.ndim - 2), "count", "torch", 0


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("size", [(6,), (4, 5), (1, 1), (2, 3, 4)])
def test_opcheck_guided(size, requires_grad):
    guide = random_features(size, 2, dtype=torch.float32)
    torch.library.opcheck(statistics.registered, statistics_inputs(guide, requires_grad))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck_guided_backward(memory_format):
    guide = random_features((4, 5), 3, 2, dtype=torch.float32).to(memory_format=memory_format)
    inputs = statistics_inputs(guide)
    torch.library.opcheck(statistics.registered, inputs)
    mean, cholesky = statistics(*inputs)
    cotangents = torch.randn_like(mean), torch.randn_like(cholesky)
    torch.library.opcheck(statistics_backward.registered, (guide, mean, *cotangents, *inputs[2:]))


# Bad input --------------------------------------------------------------------------------------------------------

G = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"guide": G.to(torch.uint8)}, TypeError, r"^guide: expected a floating.*image.float\(\).*got a uint8 tensor"),
        ({"guide": G.repeat(1, 3, 1, 1)}, ValueError, r"^guide: expected 1 to 8 channels.*\[1, 9, 4, 5\]"),
        ({"guide": G - 1e18}, ValueError, "^guide: expected values of at most 3e.15 in size, got 1e.18"),
        ({"radius": 0}, ValueError, "^radius: expected an int of at least 1, got 0"),
        ({"radius": -2}, ValueError, "^radius: expected an int of at least 1, got -2"),
        ({"eps": 1e-50}, ValueError, "^eps: expected a finite number above 0 in the range of float32, got 1e-50"),
        ({"eps": 1e50}, ValueError, "^eps: expected a finite number above 0 in the range of float32, got 1e"),
        ({"eps": number(1e-50)}, ValueError, "^eps: expected a finite number above 0 in the range of float32, got 1e-50"),
        ({"radius": 3.0}, TypeError, "^radius: expected an int of at least 1, got 3.0"),
        ({"radius": True}, TypeError, "^radius: expected an int of at least 1, got True"),
        ({"radius": (3,)}, ValueError, r"^radius: expected one int .*or one per axis \(2\), got 1"),
        ({"radius": (3, -1)}, ValueError, "^radius: expected an int of at least 1, got -1"),
        ({"eps": 0}, ValueError, "^eps: expected a finite number above 0, got 0"),
        ({"eps": -1.0}, ValueError, "^eps: expected a finite number above 0, got -1.0"),
        ({"eps": math.nan}, ValueError, "^eps: expected a finite number above 0, got nan"),
        ({"eps": math.inf}, ValueError, "^eps: expected a finite number above 0, got inf"),
        ({"eps": "1"}, TypeError, "^eps: expected a finite number above 0, got '1'"),
        ({"eps": torch.tensor(0.0)}, ValueError, "^eps: expected a finite number above 0, got 0.0"),
        ({"eps": torch.tensor(math.nan)}, ValueError, "^eps: expected a finite number above 0, got nan"),
        ({"eps": torch.ones(1)}, ValueError, r"^eps: expected a finite number above 0, got .*shape \[1\]"),
        ({"eps": torch.tensor(1)}, TypeError, "^eps: expected a finite number above 0, got a int64 tensor"),
        ({"box": "mean"}, ValueError, "^box: expected one of 'count', 'constant', got 'mean'"),
        ({"subsample": 0}, ValueError, "^subsample: expected an int of at least 1, got 0"),
        ({"subsample": 2.0}, TypeError, "^subsample: expected an int of at least 1, got 2.0"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        Guided(**{"guide": G, "radius": 1, "eps": 0.1, **change})

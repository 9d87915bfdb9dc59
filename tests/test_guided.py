"""The Guided filter in PyTorch: against its closed form, least squares, known answers, its properties, and errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import (
    Setting,
    assert_exports_with_dynamic_sizes,
    box_mask,
    dense_apply,
    dense_guided,
    dense_scores,
    dense_window,
    leaves,
    random_features,
    strided,
)
from problems import GUIDED_FILTERS, named
from tritoncrf.demo import photo
from tritoncrf.filters.guided import statistics, statistics_backward
from tritoncrf.filters.plan import decode, encode, filter_apply, filter_backward
from tritoncrf.mean_field import iterate, iterate_backward
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", GUIDED_FILTERS, ids=named)
def test_known_answers(problem, dtype):
    guide, values, answer = problem.tensors(dtype)
    assert_close("W x", Guided(guide, **problem.window)(values), answer)
    assert_close("guided_filter", tc.guided_filter(values, guide, **problem.window), answer)


# Against the dense matrix -----------------------------------------------------------------------------------------

GEOMETRIES = {  # size, channels of the guide, options
    "signal": ((13,), 1, dict(radius=2)),
    "signal-of-8-channels": ((11,), 8, dict(radius=3)),
    "image": ((5, 7), 3, dict(radius=1)),
    "image-wide": ((9, 8), 2, dict(radius=3)),
    "image-per-axis": ((6, 9), 2, dict(radius=(1, 3))),
    "image-of-a-row": ((1, 9), 3, dict(radius=2)),
    "image-of-a-column": ((9, 1), 1, dict(radius=2)),
    "image-of-a-pixel": ((1, 1), 2, dict(radius=1)),
    "window-past-the-image": ((4, 5), 3, dict(radius=31)),
    "window-past-an-axis": ((3, 11), 1, dict(radius=(7, 2))),
    "volume": ((3, 4, 5), 2, dict(radius=1)),
    "volume-per-axis": ((4, 3, 5), 8, dict(radius=(2, 1, 3))),
}
SUBSAMPLED = {
    "signal-by-2": ((11,), 2, dict(radius=3, subsample=2)),
    "image-by-2": ((6, 8), 3, dict(radius=2, subsample=2)),
    "image-by-2-odd": ((7, 9), 1, dict(radius=(2, 6), subsample=2)),
    "image-by-3": ((8, 7), 8, dict(radius=5, subsample=3)),
    "image-by-4": ((13, 6), 2, dict(radius=1, subsample=4)),  # a radius of 1 at the low resolution, at least
    "image-smaller-than-a-block": ((3, 2), 2, dict(radius=2, subsample=4)),
    "volume-by-2": ((5, 4, 3), 3, dict(radius=2, subsample=2)),
    "volume-thinner-than-a-block": ((2, 5, 3), 2, dict(radius=5, subsample=4)),
}


@both_boxes
@pytest.mark.parametrize("geometry", [*GEOMETRIES, *SUBSAMPLED])
def test_values_and_every_gradient_are_those_of_the_dense_matrix(geometry, box, nan_memory):
    size, channels, options = {**GEOMETRIES, **SUBSAMPLED}[geometry]
    for guide_batch in (1, 2):
        x, cotangent = torch.randn(2, 2, 3, *size, dtype=torch.float64).unbind(0)
        inputs = leaves(x, random_features(size, channels, guide_batch), number(0.2))
        y = Guided(inputs[1], eps=inputs[2], box=box, **options)(inputs[0])
        expected = dense_apply(dense_guided(inputs[1], eps=inputs[2], box=box, **options), inputs[0])
        assert_close("W x", y.detach(), expected.detach())
        found = torch.autograd.grad(y, inputs, cotangent)
        wanted = torch.autograd.grad(expected, inputs, cotangent)
        for name, a, b in zip(("values", "guide", "eps"), found, wanted):
            # Of a single pixel or a single window nothing but the mean may be left.
            assert_close(f"{name}' gradient", a, b, scale=max(1.0, b.abs().max().item()))
        transposed = (inputs[0] * found[0]).sum()
        assert_close("<W x, y>", (y * cotangent).sum(), transposed, scale=(x.norm() * cotangent.norm()).item())


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
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_window_is_fitted_by_least_squares(geometry, box):
    size, channels, options = GEOMETRIES[geometry]
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


@both_boxes
@pytest.mark.parametrize("subsample, size", [(1, (3, 4)), (2, (4, 4)), (2, (3, 5))])
def test_gradcheck(subsample, size, box):
    def apply(values, guide, eps):
        return Guided(guide, (1, 2), eps, box, subsample)(values)

    values, guide = torch.randn(2, 1, *size, dtype=torch.float64), random_features(size)
    assert torch.autograd.gradcheck(apply, leaves(values, guide, number(0.3)))


def test_gradients_reach_an_image_that_is_its_own_guide():
    def smooth(image):
        return tc.guided_filter(image, image, 1, 0.2)

    assert torch.autograd.gradcheck(smooth, leaves(random_features((3, 4))))


# Properties (spec 9) ----------------------------------------------------------------------------------------------

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


@both_boxes
@pytest.mark.parametrize("transform, radius", [
    (lambda x: x.flip(-1), (1, 3)), (lambda x: x.flip(-2), (1, 3)), (lambda x: x.mT, (3, 1)),
], ids=["x", "y", "xy"])  # fmt: skip
@pytest.mark.parametrize("subsample, size", [(1, (5, 7)), (2, (6, 8)), (4, (8, 12))])
def test_flips_and_transposes_commute(subsample, size, transform, radius, box):
    guide, x = some(size=size)
    options = {"box": box, "subsample": subsample}
    y = filtered(guide, x, (1, 3), **options)
    assert_close("moved", filtered(transform(guide), transform(x), radius, **options), transform(y))


def test_classes_are_independent():
    guide, x = some()
    y, order = filtered(guide, x), [2, 0, 3, 1]
    assert_close("permuted classes", filtered(guide, x[:, order]), y[:, order])
    assert_close("one class", filtered(guide, x[:, 1:2]), y[:, 1:2])


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


@pytest.mark.parametrize("subsample", [1, 2])
def test_a_batch_is_its_images_one_by_one(subsample):
    guide, x = random_features((5, 7), 3, batch=3), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    together = filtered(guide, x, subsample=subsample)
    singles = [filtered(guide[b : b + 1], x[b : b + 1], subsample=subsample) for b in range(3)]
    assert_close("batch", together, torch.cat(singles))
    shared = filtered(guide[:1], x, subsample=subsample)
    assert_close("shared", shared, filtered(guide[:1].expand(3, -1, -1, -1), x, subsample=subsample))


@pytest.mark.parametrize("guide_batch", [0, 1])
@pytest.mark.parametrize("subsample", [1, 2])
def test_an_empty_batch(subsample, guide_batch):
    x = torch.randn(0, 3, 5, 7, dtype=torch.float64)
    inputs = leaves(x, random_features((5, 7), batch=guide_batch), number(0.1))
    y = filtered(inputs[1], inputs[0], eps=inputs[2], subsample=subsample)
    assert y.shape == x.shape
    for name, x, d in zip(("values", "guide", "eps"), inputs, torch.autograd.grad(y, inputs, torch.randn_like(y))):
        assert_close(f"{name}' gradient", d, torch.zeros_like(x), scale=1.0)


@both_boxes
@pytest.mark.parametrize("subsample", [1, 2])
def test_memory_order_does_not_matter(subsample, box):
    guide, (x, cotangent) = random_features((5, 7), 3), torch.randn(2, 2, 3, 5, 7, dtype=torch.float64).unbind(0)

    def results(make):
        inputs = [make(t).requires_grad_() for t in (guide, x)]
        y = filtered(*inputs, box=box, subsample=subsample)
        return y.detach(), *torch.autograd.grad(y, inputs, make(cotangent))

    for name, a, b in zip(("W x", "guide's gradient", "values' gradient"), results(strided), results(torch.clone)):
        assert_close(name, a, b)


@pytest.mark.parametrize("classes", [1, 2, 21, 200])
def test_numbers_of_classes(classes):
    guide, x = some(classes=classes, size=(5, 7))
    assert_close("W x", filtered(guide, x), dense_apply(dense_guided(guide, 2, 0.1), x))


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_keep_their_dtype_and_are_summed_in_float32_at_least(dtype):
    guide, x = random_features((5, 7), 3, dtype=torch.float32), torch.randn(1, 3, 5, 7, dtype=dtype)
    guided = Guided(guide, 2, 0.1)
    y = guided(x)
    assert y.dtype == dtype
    wide = x if dtype == torch.float64 else x.float()
    assert torch.equal(y, guided(wide).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.float32, torch.float64])
def test_guide_and_eps_of_any_floating_dtype_get_their_gradients_in_it(dtype, other):
    x, y = torch.rand(2, 1, 2, 5, 7).unbind(0)
    for guide_dtype, eps_dtype in (dtype, other), (other, dtype):
        guide, eps = leaves(random_features((5, 7), dtype=guide_dtype), torch.tensor(0.25, dtype=eps_dtype))
        (filtered(guide, x, eps=eps) * y).sum().backward()
        for t in (guide, eps):
            assert t.grad.dtype == t.dtype and t.grad.abs().max() > 0


# What is lost -----------------------------------------------------------------------------------------------------


@both_boxes
def test_float32_loses_only_rounding(box):
    inputs = torch.randn(1, 4, 12, 13, dtype=torch.float64), random_features((12, 13), 3), number(0.1)
    cotangent = torch.randn(1, 4, 12, 13, dtype=torch.float64)

    def outcome(run, dtype):
        tensors = leaves(*(t.to(dtype) for t in inputs))
        y = run(*tensors)
        return [y.detach(), *torch.autograd.grad(y, tensors, cotangent.to(dtype))]

    def fast(values, guide, eps):
        return Guided(guide, 3, eps, box)(values)

    def dense(values, guide, eps):
        return dense_apply(dense_guided(guide, 3, eps, box), values)

    found, truth, plain = outcome(fast, torch.float32), outcome(fast, torch.float64), outcome(dense, torch.float32)
    for name, a, b, c in zip(("W x", "values", "guide", "eps"), found, truth, plain):
        assert_close(name, a, b, dtype=torch.float32)
        if name != "eps":  # one number: which of two roundings is smaller is chance
            assert_within_budget(name, a, b, c)


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


# What it costs ----------------------------------------------------------------------------------------------------


class Work(TorchDispatchMode):
    """How many numbers the operators inside wrote, and the most in one memory."""

    written = largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
                self.written += 0 if function.is_view else x.numel()
        return result


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


# In the loop ------------------------------------------------------------------------------------------------------

ONE = [{"radius": 1, "eps": 0.3}]
SETTINGS = {
    "scalar": dict(windows=ONE),
    "class": dict(windows=ONE, weight="class"),
    "matrix": dict(windows=ONE, weight="matrix"),
    "matrix-costs": dict(windows=ONE, weight="matrix", compatibility=True, unary="class"),
    "class-costs-constant": dict(windows=[{**ONE[0], "box": "constant"}], weight="class", compatibility=True),
    "logarithms": dict(windows=ONE, initial="log_softmax"),
    "two": dict(windows=[*ONE, {"radius": (2, 1), "eps": 0.1, "box": "constant"}], weight=["matrix", "scalar"]),
    "subsampled": dict(windows=[{"radius": 2, "eps": 0.3, "subsample": 2}], weight="class"),
    "signal": dict(size=(9,), windows=[{"radius": 3, "eps": 0.3}]),
    "volume": dict(size=(2, 3, 4), windows=ONE, classes=2),
    "batch": dict(windows=ONE, batch=2, weight="class"),
    "batch-own-guides": dict(windows=ONE, batch=2, shared=False),
    "one-label": dict(windows=ONE, classes=1),
}


def setting(name: str, iterations: int) -> Setting:
    options = {"size": (4, 5), "iterations": iterations, **SETTINGS[name]}
    return Setting(**options, kind=Guided, dense=dense_guided)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_scores_and_every_gradient_are_those_of_dense_matrices(name, iterations):
    case = setting(name, iterations)
    found, expected = case.gradients(case.run), case.gradients(case.run_dense)
    for what, a, b in zip(("scores", *case.names), found, expected, strict=True):
        # One label is certain whatever the guide says.
        assert_close(what, a, b, scale=1.0 if name == "one-label" else None)


@pytest.mark.parametrize("name", ["class-costs-constant", "subsampled", "matrix"])
def test_gradcheck_of_the_loop(name):
    case = setting(name, 2)
    assert torch.autograd.gradcheck(case.run, leaves(*case.inputs), fast_mode=True)


@pytest.mark.parametrize("order", [1, -1])
def test_the_loop_mixes_it_with_a_window_and_learns_eps(order):
    logits = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    guide, features = random_features((5, 6), 3, 2), random_features((5, 6))
    weights = torch.randn(3, 3, dtype=torch.float64), number(0.5)
    inputs = leaves(logits, guide, number(0.2), features, *weights)
    cotangent = torch.randn_like(logits)

    def mixed(logits, guide, eps, features, *weights):
        filters = [Guided(guide, 2, eps), tc.filters.Window(features, 3, normalization="after")]
        return tc.mean_field(logits, filters[::order], weights[::order], iterations=3, output="logits")

    def dense(logits, guide, eps, features, *weights):
        matrices = [dense_guided(guide, 2, eps), dense_window(features, 3, normalization="after")]
        return dense_scores(logits, matrices, weights, iterations=3)

    names = ("scores", "logits", "guide", "eps", "window features", "weights[0]", "weights[1]")
    found, wanted = mixed(*inputs), dense(*inputs)
    found, wanted = ([s.detach(), *torch.autograd.grad(s, inputs, cotangent)] for s in (found, wanted))
    for name, a, b in zip(names, found, wanted, strict=True):
        assert_close(name, a, b)


# Operators and compilers ------------------------------------------------------------------------------------------


def statistics_inputs(guide, requires_grad=False):
    guide, eps = guide.detach().requires_grad_(requires_grad), torch.tensor(0.2, requires_grad=requires_grad)
    return guide, eps, [1] * (guide.ndim - 2), "count", "torch"


def filter_inputs(requires_grad: bool, **options):
    """What `tritoncrf::filter` takes: values, tensors, plan."""
    x, guide = torch.randn(2, 3, 5, 6), random_features((5, 6), 2, dtype=torch.float32)
    guided = Guided(guide, 2, 0.2, **options)
    tensors = [t.detach().clone().requires_grad_(requires_grad) for t in guided.tensors]
    return x.requires_grad_(requires_grad), tensors, encode([guided.resolved(x)])


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("size", [(6,), (4, 5), (1, 1), (2, 3, 4)])
def test_opcheck_guided(size, requires_grad):
    guide = random_features(size, 2, dtype=torch.float32)
    torch.library.opcheck(statistics, statistics_inputs(guide, requires_grad))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_opcheck_guided_backward(memory_format):
    guide = random_features((4, 5), 3, 2, dtype=torch.float32).to(memory_format=memory_format)
    inputs = statistics_inputs(guide)
    torch.library.opcheck(statistics, inputs)
    mu, inverse = statistics(*inputs)
    cotangents = torch.randn_like(mu), torch.randn_like(inverse)
    torch.library.opcheck(statistics_backward, (guide, mu, inverse, *cotangents, *inputs[2:]))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"box": "constant"}, {"subsample": 2}])
def test_opcheck_filter(options, requires_grad):
    torch.library.opcheck(filter_apply, filter_inputs(requires_grad, **options))


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck_filter_backward(needs):
    x, tensors, plan = filter_inputs(False)
    torch.library.opcheck(filter_backward, (x, torch.randn_like(x), tensors, plan, *needs))


def test_opcheck_mean_field():
    x, tensors, plan = filter_inputs(True)
    a = torch.ones((), requires_grad=True)
    torch.library.opcheck(iterate, (x, a, [a], tensors, plan, 2, "softmax", True))


def test_opcheck_mean_field_backward():
    x, tensors, plan = filter_inputs(False, subsample=2)
    loop = x, torch.ones(()), [torch.ones(3)], tensors
    scores, *states = iterate(*loop, plan, 2, "softmax", True)
    arguments = (torch.randn_like(scores), *loop, states, plan, "softmax", [True] * 4)
    torch.library.opcheck(iterate_backward, arguments)


def test_plans_travel_as_text():
    guide = random_features((4, 5))
    filters = [Guided(guide, 3, 0.1), Guided(guide, (1, 20), 0.1, "constant", 2, "fast", "torch")]
    plans = tuple(f.plan for f in filters)
    assert decode(encode(plans)) == plans


class Sharpen(torch.nn.Module):
    """A guide made of an image, its eps, and the weight of its messages, all learnt."""

    def __init__(self, box="count", subsample=1):
        super().__init__()
        self.options = {"box": box, "subsample": subsample}
        self.mixing = torch.nn.Parameter(torch.eye(3) + 0.1)
        self.log_eps = torch.nn.Parameter(torch.tensor(-2.0))
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, logits, image):
        guide = torch.einsum("ed,bdyx->beyx", self.mixing, image)
        guided = Guided(guide, 3, self.log_eps.exp(), **self.options)
        return tc.mean_field(logits, [guided], [self.weight], iterations=2)


def image_and_logits(size=(6, 7), batch=2):
    return torch.randn(batch, 3, *size), torch.rand(batch, 3, *size)


def outcome(function, module, size):
    """Q, and the gradients of logits, image and every parameter, by a random cotangent."""
    torch.manual_seed(3)
    inputs = [*leaves(*image_and_logits(size)), *module.parameters()]
    q = function(*inputs[:2])
    return [q.detach(), *torch.autograd.grad(q, inputs, torch.randn_like(q))]


@pytest.mark.parametrize("options", [{}, {"box": "constant", "subsample": 2}])
def test_the_loop_compiles_whole_with_its_gradients(options, fresh_compiler):
    module = Sharpen(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    names = ("Q", "logits", "image", "mixing", "log eps", "weight")
    for size in (6, 7), (8, 5):
        for name, a, b in zip(names, outcome(compiled, module, size), outcome(module, module, size), strict=True):
            assert_close(name, a, b)


def test_exports():
    module, inputs = Sharpen(subsample=2), image_and_logits()
    with torch.no_grad():
        exported = torch.export.export(module, inputs).module()
        assert_close("Q", exported(*inputs), module(*inputs))


@both_boxes
def test_exports_with_dynamic_sizes(box):
    assert_exports_with_dynamic_sizes(Sharpen(box), image_and_logits)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3, 4, 5)])
def test_fake_tensors_pass_through(shape):
    with torch._subclasses.FakeTensorMode():
        logits = torch.empty(shape, dtype=torch.bfloat16, requires_grad=True)
        q = tc.mean_field(logits, [Guided(torch.empty(1, 3, 4, 5), 2, 1.0)], [1.0])
        assert q.shape == shape and q.dtype == torch.bfloat16


@pytest.mark.parametrize("subsample", [1, 2])
def test_autocast_changes_nothing(subsample):
    x, guide, eps = torch.randn(2, 3, 5, 6), random_features((5, 6), 3, dtype=torch.float32), torch.tensor(0.1)
    cotangent = torch.randn_like(x)

    def outcome(enabled):
        inputs = leaves(x, guide, eps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = Guided(inputs[1], 2, inputs[2], subsample=subsample)(inputs[0])
            return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]

    for found, expected in zip(outcome(True), outcome(False), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["values", "guide", "eps"])
def test_a_second_derivative_is_refused(wanted):
    inputs = leaves(torch.randn(1, 2, 4, 5), random_features((4, 5), dtype=torch.float32), torch.tensor(0.1))
    y = filtered(inputs[1], inputs[0], eps=inputs[2])
    (first,) = torch.autograd.grad(y.square().sum(), inputs[wanted], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()


# Bad input --------------------------------------------------------------------------------------------------------

G = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"guide": np.zeros((1, 3, 4, 5))}, TypeError, "^guide: expected a floating.*ndarray.*torch.from_numpy"),
        ({"guide": G.to(torch.uint8)}, TypeError, r"^guide: expected a floating.*image.float\(\).*got a uint8 tensor"),
        ({"guide": G[0, 0]}, ValueError, r"^guide: expected \[B, D, \*S\].*got shape \[4, 5\]"),
        ({"guide": G[:, :0]}, ValueError, r"^guide: expected 1 to 8 channels.*\[1, 0, 4, 5\]"),
        ({"guide": G.repeat(1, 3, 1, 1)}, ValueError, r"^guide: expected 1 to 8 channels.*\[1, 9, 4, 5\]"),
        ({"guide": G[..., :0]}, ValueError, r"^guide: expected at least one pixel.*\[1, 3, 4, 0\]"),
        ({"guide": G + math.nan}, ValueError, "^guide: expected finite values, got 60 NaN or infinite of 60"),
        ({"radius": 0}, ValueError, "^radius: expected an int of at least 1, got 0"),
        ({"radius": -2}, ValueError, "^radius: expected an int of at least 1, got -2"),
        ({"eps": 1e-50}, ValueError, "^eps: expected a finite number above 0 in torch.float32, got 1e-50"),
        ({"eps": 1e50}, ValueError, "^eps: expected a finite number above 0 in torch.float32, got 1e"),
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
        ({"precision": "high"}, ValueError, "^precision: expected one of 'default', 'fast', got 'high'"),
        ({"backend": "cuda"}, ValueError, "^backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"guide": G.double(), "backend": "triton"}, ValueError, "^backend: expected 'torch' or 'auto' for float64"),
        ({"backend": "triton"}, ValueError, "^backend: 'triton' runs on a GPU.*TRITON_INTERPRET=1"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        Guided(**{"guide": G, "radius": 1, "eps": 0.1, **change})


@pytest.mark.parametrize("run", [
    lambda values, guide: Guided(guide, 1, 0.1)(values),
    lambda values, guide: tc.guided_filter(values, guide, 1, 0.1),
])  # fmt: skip
@pytest.mark.parametrize(
    "values, error, message",
    [
        (np.zeros((1, 2, 4, 5)), TypeError, "^values: expected a floating.*torch.from_numpy"),
        (torch.zeros(1, 2, 4, 5, dtype=torch.int64), TypeError, "^values: expected a floating.*int64"),
        (torch.zeros(1, 2, 5, 4), ValueError, r"^values: expected \[3, C, 4, 5\] as the filter's guide, got"),
        (torch.zeros(2, 4, 5), ValueError, r"^values: expected \[3, C, 4, 5\].*got \[2, 4, 5\]"),
        (torch.zeros(2, 2, 4, 5), ValueError, "^values: expected a batch of 3 as in the filter's guide"),
        (torch.full((3, 2, 4, 5), math.inf), ValueError, "^values: expected finite values, got 120"),
    ],
)
def test_bad_values(values, error, message, run):
    with pytest.raises(error, match=message):
        run(values, G.expand(3, -1, -1, -1))


def test_logits_of_another_size_than_the_guide():
    with pytest.raises(ValueError, match=r"^logits: expected \[B, C, 4, 5\] as the filter's guide, got \[1, 2, 5, 4\]"):
        tc.mean_field(torch.zeros(1, 2, 5, 4), [Guided(G, 1, 0.1)], [1.0])

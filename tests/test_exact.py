"""The Exact filter in PyTorch: against the dense matrix, its known answers, what it skips, its properties and errors."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import (
    NORMALIZATIONS,
    dense_apply,
    dense_exact,
    dense_scores,
    dense_window,
    leaves,
    random_features,
    strided,
)
from problems import EXACT_FILTERS, EXACT_LOOPS, named
from tritoncrf.filters.exact import visited
from tritoncrf.filters.plan import encode, filter_apply, filter_backward
from tritoncrf.mean_field import iterate
from tritoncrf.reference import exact as reference

Exact = tc.filters.Exact


def photo_features(size=(40, 48), dtype=torch.float64):
    """(80, 13) features of a smooth image with noise: near pixels are alike, as in a photo."""
    coarse = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, size, mode="bilinear") + 0.02 * torch.randn(1, 3, *size)
    return tc.features.bilateral(image.clamp(0, 1), 80, 13).to(dtype)


# Known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", EXACT_FILTERS, ids=named)
def test_known_answers(problem, dtype):
    features, values, answer = problem.tensors(dtype)
    scale = 1.0 if not answer.any() else None
    assert_close("K x", Exact(features, **problem.window)(values), answer, scale=scale)


@pytest.mark.parametrize("problem", EXACT_LOOPS, ids=named)
def test_known_answers_of_the_loop(problem):
    features, logits, answer = problem.tensors(torch.float64)
    arguments = problem.arguments(torch.float64)
    assert_close("Q", tc.mean_field(logits, [Exact(features, **problem.window)], **arguments), answer)


# Against the dense matrix -----------------------------------------------------------------------------------------

SIZES = {  # size, number of features; a tile is 128 pixels
    "pixel": ((1,), 2),
    "points": ((131,), 5),
    "tile": ((128,), 1),
    "tile-and-one": ((129,), 3),
    "image": ((5, 7), 2),
    "image-of-blocks": ((17, 19), 16),
    "volume": ((3, 4, 5), 3),
    "volume-of-blocks": ((6, 5, 7), 4),
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("name", SIZES)
def test_values_and_every_gradient_are_those_of_the_dense_matrix(name, include_self, normalization):
    size, channels = SIZES[name]
    for feature_batch in (1, 2):
        inputs = leaves(torch.randn(2, 3, *size, dtype=torch.float64), random_features(size, channels, feature_batch))
        cotangent = torch.randn(2, 3, *size, dtype=torch.float64)
        y = Exact(inputs[1], include_self, normalization, rtol=0)(inputs[0])
        expected = dense_apply(dense_exact(inputs[1], include_self, normalization), inputs[0])
        alone = 1.0 if math.prod(size) == 1 else None
        assert_close("K x", y.detach(), expected.detach(), scale=alone)
        found = torch.autograd.grad(y, inputs, cotangent)
        wanted = torch.autograd.grad(expected, inputs, cotangent)
        assert_close("values' gradient", found[0], wanted[0], scale=alone)
        # A pixel alone has no difference of features.
        assert_close("features' gradient", found[1], wanted[1], scale=max(1.0, wanted[1].abs().max().item()))


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradcheck(normalization, include_self):
    def apply(values, features):
        return Exact(features, include_self, normalization)(values)

    values, features = torch.randn(2, 2, 3, 5, dtype=torch.float64), random_features((3, 5))
    assert torch.autograd.gradcheck(apply, leaves(values, features))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("include_self", [True, False])
def test_float32_loses_only_rounding(include_self, normalization):
    size = (16, 17)
    inputs = torch.randn(1, 4, *size, dtype=torch.float64), random_features(size, 5)
    cotangent = torch.randn(1, 4, *size, dtype=torch.float64)

    def outcome(run, dtype):
        values, features = leaves(*(x.to(dtype) for x in inputs))
        y = run(values, features)
        return [y.detach(), *torch.autograd.grad(y, (values, features), cotangent.to(dtype))]

    def exact(values, features):
        return Exact(features, include_self, normalization, rtol=0)(values)

    def dense(values, features):
        return dense_apply(dense_exact(features, include_self, normalization), values)

    found, truth, plain = outcome(exact, torch.float32), outcome(exact, torch.float64), outcome(dense, torch.float32)
    for name, a, b, c in zip(("K x", "values' gradient", "features' gradient"), found, truth, plain):
        assert_close(name, a, b, dtype=torch.float32)
        assert_within_budget(name, a, b, c)


# What is skipped --------------------------------------------------------------------------------------------------


def skipped(exact) -> float:
    """The share of pairs of blocks that a filter of one image does not visit."""
    _, _, starts, columns, *_ = exact.tensors
    blocks = starts.shape[1] - 1
    return 1 - (len(columns) + blocks) / blocks**2


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
def test_what_is_skipped_is_below_the_bound(rtol):
    f = photo_features()
    exact = Exact(f, rtol=rtol)
    assert skipped(exact) > 0.05
    for x in torch.ones(1, 1, *f.shape[2:], dtype=f.dtype), torch.rand(1, 4, *f.shape[2:], dtype=f.dtype) * 2 - 1:
        error = (exact(x) - dense_apply(dense_exact(f), x)).abs().max()
        assert 0 < error <= rtol * x.abs().max()


def test_more_is_skipped_for_a_looser_bound():
    f = photo_features()
    shares = [skipped(Exact(f, rtol=rtol)) for rtol in (0, 1e-8, 1e-4, 1e-1)]
    assert shares == sorted(set(shares))


def test_nothing_that_weighs_anything_is_skipped_at_zero():
    f = torch.randn(1, 1, 500, dtype=torch.float64) + 100 * (torch.arange(500) // 128)
    exact, x = Exact(f, rtol=0), torch.randn(1, 2, 500, dtype=torch.float64)
    assert len(exact.tensors[3]) == 0  # exp(-5000) is 0
    assert_close("K x", exact(x), dense_apply(dense_exact(f), x))


def test_every_block_is_visited_by_those_that_it_visits():
    order, starts, columns = reference.prepare(photo_features().flatten(2).repeat(2, 1, 1), 1e-4)
    for image in range(2):
        assert_close("order", order[image].sort().values, torch.arange(40 * 48, dtype=torch.int32))
        rows = [columns[a:b].tolist() for a, b in zip(starts[image], starts[image, 1:])]
        assert all(row == sorted(set(row)) and i not in row for i, row in enumerate(rows))
        assert all(i in rows[j] for i, row in enumerate(rows) for j in row)
    assert starts[0, 0] == 0 and starts[1, 0] == starts[0, -1] and starts[1, -1] == len(columns)


def inner(a, b):
    return (a * b).sum()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("include_self", [True, False])
def test_adjoint_of_what_is_left(include_self, normalization):
    f = photo_features()
    exact = Exact(f, include_self, normalization, rtol=0.1)
    assert skipped(exact) > 0.1
    x, y = torch.randn(2, 1, 3, *f.shape[2:], dtype=torch.float64).unbind(0)
    K = exact.operator(x)
    assert_close("<Kx, y>", inner(K.apply(x), y), inner(x, K.adjoint(y)), scale=(x.norm() * K.adjoint(y).norm()).item())
    own = assert_close if normalization in ("none", "symmetric") else assert_differ
    own("K^T", K.adjoint(x), K.apply(x))


def assert_differ(name, a, b):
    assert (a - b).norm() > 0.01 * b.norm(), name


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_gradients_are_those_of_what_is_left(normalization):
    """The pairs visited do not depend on small changes, so gradcheck holds with skipping too."""
    features = torch.cat([random_features((130,), 1), random_features((130,), 1) + 6], 2)
    values = torch.randn(1, 1, 260, dtype=torch.float64)

    def apply(step):
        exact = Exact(features + step * direction, normalization=normalization, rtol=0.1)
        assert skipped(exact) > 0
        return exact(values)

    direction = torch.randn_like(features)
    assert torch.autograd.gradcheck(apply, leaves(torch.zeros((), dtype=torch.float64)))


@pytest.mark.parametrize("tile, most", [(8, 100), (8, 3), (1, 64), (64, 1)])
def test_blocks_of_any_size_give_the_same(tile, most, monkeypatch):
    f, x = random_features((9, 7), 3), torch.randn(1, 2, 9, 7, dtype=torch.float64)
    y = torch.randn_like(x)

    def outcome():
        exact = Exact(f, rtol=0)
        return exact(x), exact.operator(x).gradients(x, y)[0]

    whole = outcome()
    monkeypatch.setattr(reference, "TILE", tile)
    monkeypatch.setattr(reference, "MAX_BLOCKS", most)
    monkeypatch.setattr(reference, "LISTED", 16)
    monkeypatch.setattr(reference, "CHUNK", 3 * tile**2)
    blocks = Exact(f).tensors[2].shape[1] - 1
    assert blocks <= most and reference.block_size(63) % tile == 0
    for name, found, expected in zip(("K x", "features' gradient"), outcome(), whole):
        assert_close(name, found, expected)


# Properties -------------------------------------------------------------------------------------------------------


def test_constant_features_make_sums_and_means():
    f, x = torch.full((1, 3, 5, 30), 7.5), torch.rand(1, 2, 5, 30)
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    assert_close("sum", Exact(f)(x), 150 * mean)
    assert_close("sum of the others", Exact(f, include_self=False)(x), 150 * mean - x)
    for normalization in NORMALIZATIONS[1:]:
        assert_close(normalization, Exact(f, normalization=normalization)(x), mean)


def test_duplicates_hear_the_same():
    f, x = random_features((75,), 4), torch.rand(1, 2, 150, dtype=torch.float64)
    y = Exact(f.repeat(1, 1, 2))(x)
    assert_close("the twin", y[..., :75], y[..., 75:])
    assert_close("the two", y[..., :75], Exact(f)(x[..., :75] + x[..., 75:]))


def test_pixels_may_come_in_any_order():
    f, x, order = random_features((200,), 4), torch.rand(1, 2, 200, dtype=torch.float64), torch.randperm(200)
    assert_close("moved", Exact(f[..., order])(x[..., order]), Exact(f)(x)[..., order])
    assert_close("shifted", Exact(f + 3.0)(x), Exact(f)(x))


def test_the_same_bits_twice():
    f, x = photo_features(dtype=torch.float32), torch.randn(1, 5, 40, 48)

    def outcome():
        inputs = leaves(f, x)
        y = Exact(inputs[0], normalization="symmetric")(inputs[1])
        return y.detach(), *torch.autograd.grad(y, inputs, x)

    assert all(torch.equal(a, b) for a, b in zip(outcome(), outcome()))


CLUSTERS = {
    "isolated": torch.arange(150.0).mul(1e4),
    "pairs-in-wide-tiles": torch.arange(150.0).div(2, rounding_mode="floor").mul(1e4).add(torch.arange(150) % 2),
    "one-far": torch.cat([torch.linspace(0, 3, 149), torch.tensor([1e6])]),
    "two-clouds": torch.cat([torch.linspace(0, 3, 128), 5e3 + torch.linspace(0, 3, 22)]),
}


@pytest.mark.parametrize("rtol", [0, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CLUSTERS)
def test_features_far_apart_keep_their_accuracy(name, dtype, rtol):
    f, x = CLUSTERS[name].view(1, 1, -1), torch.randn(1, 3, 150, dtype=torch.float64)
    cotangent = torch.randn_like(x)

    def outcome(run, dtype):
        inputs = leaves(f.to(dtype), x.to(dtype))
        y = run(*inputs)
        return y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(dtype))

    found = outcome(lambda f, x: Exact(f, rtol=rtol)(x), dtype)
    wanted = outcome(lambda f, x: dense_apply(dense_exact(f), x), torch.float64)
    for name, a, b in zip(("K x", "features' gradient", "values' gradient"), found, wanted):
        assert_close(name, a, b, dtype=dtype, scale=None if b.any() else 1.0)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_an_isolated_pixel_has_finite_gradients(normalization, include_self):
    f, x = leaves(100.0 * torch.arange(6.0).view(1, 1, 6), torch.randn(1, 2, 6))
    y = Exact(f, include_self, normalization)(x)
    d_f, d_x = torch.autograd.grad(y, (f, x), torch.randn_like(y))
    assert_close("features' gradient", d_f, torch.zeros_like(f), scale=1.0)
    assert torch.isfinite(d_x).all()


# Forms of the input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_a_batch_is_its_images_one_by_one(normalization):
    f, x = random_features((5, 7), batch=3), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    together = Exact(f, normalization=normalization)(x)
    singles = [Exact(f[b : b + 1], normalization=normalization)(x[b : b + 1]) for b in range(3)]
    assert_close("batch", together, torch.cat(singles))


def test_features_of_one_image_serve_a_batch():
    f, x = random_features((5, 7)), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    assert_close("shared", Exact(f)(x), Exact(f.expand(3, -1, -1, -1))(x))


@pytest.mark.parametrize("feature_batch", [0, 1])
def test_an_empty_batch(feature_batch):
    f, x = leaves(random_features((5, 7), batch=feature_batch), torch.randn(0, 3, 5, 7, dtype=torch.float64))
    y = Exact(f, normalization="symmetric")(x)
    assert y.shape == x.shape
    d_f, d_x = torch.autograd.grad(y, (f, x), torch.randn_like(y))
    assert d_x.shape == x.shape
    assert_close("features' gradient", d_f, torch.zeros_like(f), scale=1.0)


def test_memory_order_does_not_matter():
    f, x, cotangent = random_features((5, 7)), *torch.randn(2, 2, 3, 5, 7, dtype=torch.float64).unbind(0)

    def results(make):
        inputs = [make(t).requires_grad_() for t in (f, x)]
        y = Exact(inputs[0], normalization="after")(inputs[1])
        return y.detach(), *torch.autograd.grad(y, inputs, make(cotangent))

    for name, a, b in zip(("K x", "features' gradient", "values' gradient"), results(strided), results(torch.clone)):
        assert_close(name, a, b)


@pytest.mark.parametrize("classes", [1, 2, 21, 200])
def test_numbers_of_classes(classes):
    f, x = random_features((5, 7)), torch.randn(1, classes, 5, 7, dtype=torch.float64)
    assert_close("K x", Exact(f)(x), dense_apply(dense_exact(f), x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_keep_their_dtype_and_are_summed_in_float32_at_least(dtype):
    f, x = random_features((5, 7), dtype=torch.float32), torch.randn(1, 3, 5, 7, dtype=dtype)
    exact = Exact(f, normalization="after")
    y = exact(x)
    assert y.dtype == dtype
    wide = x if dtype == torch.float64 else x.float()
    assert torch.equal(y, exact(wide).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_of_any_floating_dtype_get_their_gradient_in_it(dtype):
    (f,) = leaves(random_features((5, 7), dtype=dtype))
    Exact(f, normalization="symmetric")(torch.rand(1, 2, 5, 7)).sum().backward()
    assert f.grad.dtype == dtype and f.grad.abs().max() > 0


class LargestTensor(TorchDispatchMode):
    """The most elements of a memory that any operator inside gave back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


def test_no_tensor_grows_with_the_pairs(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 1 << 15)
    f, x = photo_features((48, 48), torch.float32).flatten(2), torch.randn(1, 7, 48 * 48)
    with LargestTensor() as largest:
        order, starts, columns = reference.prepare(f, 0.0)
        visits = reference.sort_features(f, order), order, starts, columns
        reference.exact_sum(x, *visits, True)
        reference.exact_feature_gradient(x, x, *visits)
    assert largest.elements <= 14 * (48 * 48 + reference.TILE)  # x and y together


# Some rows only ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1,), (37,), (5, 7), (3, 4, 5)])
def test_some_rows_are_those_of_the_matrix(size, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 40)
    f, x = random_features(size, 3), torch.randn(1, 2, *size, dtype=torch.float64)
    rows = torch.randint(0, math.prod(size), (9,))
    expected = dense_apply(dense_exact(f), x).flatten(2)[0, :, rows]
    assert_close("rows", reference.exact_rows(x[0], f[0], rows), expected)
    rounded = reference.exact_rows(x[0].float(), f[0].float(), rows)
    assert_close("rows in float32", rounded, expected, dtype=torch.float32)
    assert reference.exact_rows(x[0], f[0], rows[:0]).shape == (2, 0)


# In the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["scalar", "matrix"])
def test_the_loop_mixes_it_with_a_window(weight):
    logits = torch.randn(2, 3, 9, 15, dtype=torch.float64)
    f, g = random_features((9, 15), 5, 2), random_features((9, 15))
    weights = torch.tensor([0.3, 0.5], dtype=torch.float64)
    if weight == "matrix":
        weights = weights[:, None, None] * torch.randn(2, 3, 3, dtype=torch.float64)
    inputs = leaves(logits, f, g, *weights)
    cotangent = torch.randn_like(logits)

    def exact(logits, f, g, *weights):
        filters = [Exact(f, normalization="symmetric", rtol=0), tc.filters.Window(g, 3, normalization="after")]
        return tc.mean_field(logits, filters, [*weights], iterations=3, output="logits")

    def dense(logits, f, g, *weights):
        matrices = [dense_exact(f, normalization="symmetric"), dense_window(g, 3, normalization="after")]
        return dense_scores(logits, matrices, [*weights], iterations=3)

    names = ("scores", "logits", "exact features", "window features", "weights[0]", "weights[1]")
    found, wanted = exact(*inputs), dense(*inputs)
    found, wanted = ([s.detach(), *torch.autograd.grad(s, inputs, cotangent)] for s in (found, wanted))
    for name, a, b in zip(names, found, wanted):
        assert_close(name, a, b)


# Operators and compilers ------------------------------------------------------------------------------------------


def filter_inputs(requires_grad: bool, normalization: str):
    """What `tritoncrf::filter` takes: values, tensors, plan."""
    x, f = torch.randn(2, 3, 9, 15), random_features((9, 15), dtype=torch.float32)
    exact = Exact(f, normalization=normalization)
    tensors = [t.detach().requires_grad_(requires_grad and t.is_floating_point()) for t in exact.tensors]
    return x.requires_grad_(requires_grad), tensors, encode([exact.resolved(x)])


@pytest.mark.parametrize("images", [0, 1, 2])
def test_opcheck_visited(images):
    torch.library.opcheck(visited, (torch.randn(images, 3, 300), 1e-4))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_opcheck_filter(normalization, requires_grad):
    torch.library.opcheck(filter_apply, filter_inputs(requires_grad, normalization))


def test_opcheck_filter_backward():
    x, tensors, plan = filter_inputs(False, "symmetric")
    torch.library.opcheck(filter_backward, (x, torch.randn_like(x), tensors, plan, True, True))


def test_opcheck_mean_field():
    x, tensors, plan = filter_inputs(True, "after")
    a = torch.ones((), requires_grad=True)
    torch.library.opcheck(iterate, (x, a, [a], tensors, plan, 2, "softmax", True))


@pytest.mark.parametrize("inside", [False, True])
def test_the_loop_compiles_whole(inside, fresh_compiler):
    """With a filter prepared once, or made of features inside, whose list of blocks has a size of its own."""
    prepared_once = Exact(random_features((9, 15), dtype=torch.float32), normalization="symmetric")

    def run(logits, f):
        exact = Exact(f, normalization="symmetric") if inside else prepared_once
        return tc.mean_field(logits, [exact], [0.5], iterations=2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        inputs = leaves(torch.randn(1, 3, 9, 15), random_features((9, 15), dtype=torch.float32))
        wanted = inputs if inside else inputs[:1]
        cotangent = torch.randn(1, 3, 9, 15)
        found, expected = (torch.autograd.grad(f(*inputs), wanted, cotangent) for f in (compiled, run))
        for name, a, b in zip(("logits", "features"), found, expected):
            assert_close(name, a, b)


# Bad input --------------------------------------------------------------------------------------------------------

F = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"features": [[1.0]]}, TypeError, r"^features: expected a floating.*got \[\[1.0\]\] \(list\)"),
        ({"features": F.int()}, TypeError, "^features: expected a floating.*got a int32 tensor"),
        ({"features": F[0, 0]}, ValueError, r"^features: expected \[B, D, \*S\].*got shape \[4, 5\]"),
        ({"features": F[:, :0]}, ValueError, r"^features: expected at least one channel.*\[1, 0, 4, 5\]"),
        ({"features": F[..., :0]}, ValueError, r"^features: expected at least one pixel.*\[1, 2, 4, 0\]"),
        ({"features": F + math.nan}, ValueError, "^features: expected finite values, got 40 NaN or infinite of 40"),
        ({"include_self": 1}, TypeError, r"^include_self: expected True or False, got 1 \(int\)"),
        ({"normalization": "sym"}, ValueError, "^normalization: expected one of 'none', 'before', .* got 'sym'"),
        ({"rtol": -1e-4}, ValueError, "^rtol: expected a finite number of at least 0, got -0.0001"),
        ({"rtol": math.nan}, ValueError, "^rtol: expected a finite number, got nan"),
        ({"rtol": "0"}, TypeError, "^rtol: expected a finite number, got '0'"),
        ({"precision": "high"}, ValueError, "^precision: expected one of 'default', 'fast', got 'high'"),
        ({"backend": "cuda"}, ValueError, "^backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"features": F.double(), "backend": "triton"}, ValueError, "^backend: expected 'torch' or 'auto' for float64"),
        ({"backend": "triton"}, ValueError, "^backend: 'triton' runs on a GPU.*TRITON_INTERPRET=1"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        Exact(**{"features": F, **change})


@pytest.mark.parametrize(
    "values, error, message",
    [
        (torch.zeros(1, 2, 4, 5, dtype=torch.int64), TypeError, "^values: expected a floating.*int64"),
        (torch.zeros(1, 2, 5, 4), ValueError, r"^values: expected \[3, C, 4, 5\].*got \[1, 2, 5, 4\]"),
        (torch.zeros(2, 2, 4, 5), ValueError, r"^values: expected a batch of 3.*got \[2, 2, 4, 5\]"),
        (torch.full((3, 2, 4, 5), math.inf), ValueError, "^values: expected finite values, got 120"),
    ],
)
def test_bad_values(values, error, message):
    with pytest.raises(error, match=message):
        Exact(F.expand(3, -1, -1, -1))(values)

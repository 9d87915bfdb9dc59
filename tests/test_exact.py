"""What the Exact filter alone promises, in PyTorch: what it skips, sums of any features, some rows, and its errors."""

import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import (
    NORMALIZATIONS,
    dense_apply,
    dense_exact,
    leaves,
    random_features,
)
from memory import Work
from tritoncrf.filters.exact import visited
from tritoncrf.reference import exact as reference

Exact = tc.filters.Exact


def photo_features(size=(40, 48), dtype=torch.float64):
    """(80, 13) features of a smooth image with noise: near pixels are alike, as in a photo."""
    coarse = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, size, mode="bilinear") + 0.02 * torch.randn(1, 3, *size)
    return tc.features.bilateral(image.clamp(0, 1), 80, 13).to(dtype)


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
    assert torch.autograd.gradcheck(apply, leaves(torch.zeros((), dtype=torch.float64)), fast_mode=True)


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


def test_duplicates_get_the_same():
    f, x = random_features((75,), 4), torch.rand(1, 2, 150, dtype=torch.float64)
    y = Exact(f.repeat(1, 1, 2))(x)
    assert_close("the twin", y[..., :75], y[..., 75:])
    assert_close("the two", y[..., :75], Exact(f)(x[..., :75] + x[..., 75:]))


def test_pixels_may_come_in_any_order():
    f, x, order = random_features((200,), 4), torch.rand(1, 2, 200, dtype=torch.float64), torch.randperm(200)
    assert_close("moved", Exact(f[..., order])(x[..., order]), Exact(f)(x)[..., order])


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


def test_only_differences_count():
    """Features in float64 at UTM coordinates, values in float32: each image is shifted before it is rounded."""
    f, x = random_features((150,), 3, batch=2), torch.randn(2, 3, 150)
    far = torch.tensor([[448261.0, 5411932.0, 30.0], [-1e9, 0.0, 1e9]], dtype=torch.float64)[:, :, None]
    expected = dense_apply(dense_exact(f), x.double())
    assert_close("K x", Exact(f + far)(x), expected, dtype=torch.float32)


def test_no_tensor_grows_with_the_pairs(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 1 << 15)
    f, x = photo_features((48, 48), torch.float32).flatten(2), torch.randn(1, 7, 48 * 48)
    with Work() as work:
        order, starts, columns = reference.prepare(f, 0.0)
        visits = reference.sort_features(f, order), order, starts, columns
        reference.exact_sum(x, *visits, True)
        reference.exact_feature_gradient(x, x, *visits)
    assert work.largest <= 14 * (48 * 48 + reference.TILE)  # x and y together


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


@pytest.mark.parametrize("images", [0, 1, 2])
def test_opcheck_visited(images):
    torch.library.opcheck(visited.registered, (torch.randn(images, 3, 300), 1e-4))


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"rtol": -1e-4}, ValueError, "^rtol: expected a finite number of at least 0, got -0.0001"),
        ({"rtol": math.nan}, ValueError, "^rtol: expected a finite number, got nan"),
        ({"rtol": "0"}, TypeError, "^rtol: expected a finite number, got '0'"),
    ],
)  # fmt: skip
def test_bad_bounds(change, error, message):
    with pytest.raises(error, match=message):
        Exact(torch.zeros(1, 2, 4, 5), **change)


@pytest.mark.parametrize("rtol", [0.0, 1e-20, 1e-4, 0.5, 1e30])
def test_skipped_blocks_weigh_at_most_rtol_together(rtol):
    """As a sum in float64 finds them."""
    low = torch.linspace(0, 12, 24)[:, None]
    live = reference.live_blocks(low, low + 0.5, 4, 93, rtol)
    gap = (low - low.T - 0.5).double().clamp(min=0).maximum((low.T - low - 0.5).double().clamp(min=0))
    count = torch.full((24,), 4.0).double()
    count[-1] = 1
    bound, column = (count * torch.exp(-gap.square() / 2)).sort(dim=1)
    expected = torch.zeros_like(live).scatter_(1, column, bound.cumsum(1) > rtol)
    expected = (expected | expected.T).fill_diagonal_(False)
    assert torch.equal(live, expected)
    assert (rtol == 0) == bool(live.sum() == 24 * 23) and (rtol < 1e30) == bool(live.any())

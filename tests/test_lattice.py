"""What the Lattice filter alone promises, in PyTorch: what a lattice is, its derivative, and when it is kept."""

import itertools
import math
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import (
    NORMALIZATIONS,
    dense_apply,
    leaves,
    random_features,
)
from covering import combined_or_whole, covering
from dictionary_lattice import dense_lattice
from memory import Work
from tritoncrf import step
from tritoncrf.filters import Lattice
from tritoncrf.filters import lattice as kept_lattices
from tritoncrf.filters.lattice import build, build_backward
from tritoncrf.filters.plan import encode, filter_apply
from tritoncrf.reference import lattice as reference
from tritoncrf.reference import simplex

# Values -----------------------------------------------------------------------------------------------------------


def test_images_of_a_batch_do_not_meet():
    """Not even where they have the same features, hence the same vertices."""
    f = random_features((4, 5)).expand(2, -1, -1, -1)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    assert_close("K x", Lattice(f)(x), Lattice(f[:1])(x))
    x[1] = 0
    assert not Lattice(f)(x)[1].any()


@pytest.mark.parametrize("spread, groups", [(1.0, 1), (10.0, 2), (300.0, 3)])
def test_coordinates_that_fill_more_than_one_integer(spread, groups):
    """Twelve features over so many cells that their integers do not fit in 63 bits together."""
    f = random_features((17,), 12, batch=2)
    f = torch.cat([f, f + 0.05 * torch.randn_like(f)], 2)  # pairs of neighbours
    far = spread * torch.randn(2, 12, 17, dtype=torch.float64).repeat(1, 1, 2)
    f, x = f + far, torch.randn(2, 3, 34, dtype=torch.float64)
    least, most = (v.tolist() for v in torch.aminmax(f.transpose(0, 1).flatten(1), dim=1))
    assert len(simplex.key_layout(least, most, 2, 34).sizes) == groups
    assert_close("K x", Lattice(f)(x), dense_apply(dense_lattice(f), x))


@pytest.mark.parametrize("collisions", [1, 2])
def test_vertices_that_share_a_hash(collisions, monkeypatch):
    """Factors by which all vertices share one hash are given up, however often."""
    honest, attempts = simplex.hash_factors, []

    def factors(groups, attempt):
        attempts.append(attempt)
        return [0] * groups if attempt < collisions else honest(groups, attempt)

    f = 10 * torch.randn(1, 12, 17, dtype=torch.float64)
    expected = build(f, "torch", False)
    monkeypatch.setattr(simplex, "hash_factors", factors)
    assert all(torch.equal(a, b) for a, b in zip(build(f, "torch", False), expected, strict=True))
    assert attempts == list(range(collisions + 1))


def test_a_neighbour_found_by_its_hash_alone_is_none(monkeypatch):
    """Factors that add up two codes: another vertex has the hash of a neighbour, though no two have the same."""
    codes = [torch.tensor([4, 8]), torch.tensor([5, 2])]
    layout = simplex.KeyLayout((0, 0), ((1, 0), (0, 1)), (60, 200), 20)
    monkeypatch.setattr(simplex, "hash_factors", lambda groups, attempt: [1, 1])
    # From the first, along axis 0: codes (5, 5), the second's hash. From the second, along axis 2: (8, 1), the first's.
    # Along axis 1: (3, 6) and (7, 3), their own.
    assert (simplex.neighbours(codes, layout, [0, len(codes[0])]) == 2).all()


def test_work_grows_with_the_square_of_the_features():
    """Numbers written for points that share no vertices."""
    written = []
    for d in 16, 64:
        with Work() as work:
            f = torch.randn(1, d, 50) * 2
            least, most = f.amin((0, 2)).tolist(), f.amax((0, 2)).tolist()
            layout = simplex.key_layout(least, most, 1, 50)
            _, *simplices = simplex.simplex(f, layout)
            simplex.connect(*simplices, layout, chunked=False)
        written.append(work.written)
    assert math.log(written[1] / written[0], 4) < 2.1


@pytest.mark.parametrize("d", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("farthest", [1.0, 0.999 * simplex.MAX_COORDINATE])
def test_codes_have_space_for_every_vertex_and_its_neighbours(d, corners, farthest):
    """Also in float32, and where features fill a whole box: two vertices never share a code."""
    f = torch.randn(1, d, 500)
    f = f.sign() if corners else f
    ends = simplex._coordinate_ends(f.amin((0, 2)).tolist(), f.amax((0, 2)).tolist())
    f *= farthest / max(abs(end) for pair in ends for end in pair)
    layout = simplex.key_layout(f.amin((0, 2)).tolist(), f.amax((0, 2)).tolist(), 1, 500)
    cell, rank, _ = simplex._simplex(f)
    u = cell.long() - (rank > d - torch.arange(d + 1)[:, None, None]).long()  # [r, j, pixel]
    digits = u[:, :-1] - u[:, 1:] - torch.tensor(layout.low)[:, None]
    extents = [0] * d
    for strides, above in zip(layout.strides, layout.sizes):
        for j, stride in enumerate(strides):
            if stride:
                extents[j], above = above // stride, stride
    assert (digits.amin((0, 2)) >= 1).all()
    assert (digits.amax((0, 2)) <= torch.tensor(extents) - 2).all()


def test_each_simplex_comes_once():
    """One key a pixel is sorted, and the vertices of the distinct simplices alone."""
    f = random_features((30,), 3).repeat(1, 1, 10)
    layout = simplex.key_layout([-9.0] * 3, [9.0] * 3, 1, 300)
    _, codes, simplices = simplex.simplex(f, layout)
    assert simplices.shape == (300,) and len(codes[0]) <= 4 * 30
    assert torch.equal(simplices[:30].repeat(10), simplices)


# Pixels in fours --------------------------------------------------------------------------------------------------


def beside_0(pixels, d=2, batch=1):
    """Features near 0, of which none is in the simplex of 0: there padding adds vertices that the blur passes through."""
    return -(0.05 + 0.3 * torch.rand(batch, d, pixels, dtype=torch.float64))


@pytest.mark.parametrize("pixels", [1, 3, 5, 6])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_pixels_are_filled_up_to_a_multiple_of_four(pixels, d):
    f, x = beside_0(pixels, d, batch=2), torch.randn(2, 3, pixels, dtype=torch.float64)
    f[1] *= random_features((pixels,), d)[0].sign()
    found, plain = Lattice(f, padding="four")(x), Lattice(f)(x)
    assert_close("K x", found, dense_apply(dense_lattice(f, padding="four"), x))
    assert (found - plain)[0].abs().max() > 1e-3 * plain[0].abs().max()
    assert_close("one of a batch", Lattice(f[1:], padding="four")(x[1:]), found[1:])


def test_known_answer_of_padding():
    """A pixel amid the vertices (-1, 1) and (-2, 2), so half of it on each: blurred twice they have 9/8, a message of
    2/3 9/8. With (0, 0) there the first blur leaves 1/4 on it, of which the second brings half back to (-1, 1)."""
    f = torch.full((1, 1, 1), -1.5 / simplex.sigmas(1)[0], dtype=torch.float64)
    x = torch.ones_like(f)
    assert_close("alone", Lattice(f)(x), torch.full_like(x, 2 / 3 * 9 / 8))
    assert_close("padded", Lattice(f, padding="four")(x), torch.full_like(x, 2 / 3 * (9 / 8 + 10 / 8) / 2))


def test_padding_changes_nothing_where_there_is_nothing_to_add():
    f = beside_0(8)
    assert all(map(torch.equal, build(f, "torch", False), build(f, "torch", True)))
    f, x = tc.features.spatial((5, 7), 3.0, dtype=torch.float64), torch.randn(1, 2, 5, 7, dtype=torch.float64)
    assert torch.equal(Lattice(f, padding="four")(x), Lattice(f)(x))  # its first pixel is at 0


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_an_image_far_from_0_is_not_padded(far):
    """Nor would 0 and the image together be too wide for float32's lattice."""
    f, x = beside_0(7) + far, torch.randn(1, 2, 7, dtype=torch.float64)
    both = torch.cat([f, beside_0(7)])
    expected = Lattice(f)(x)
    assert torch.equal(Lattice(f, padding="four")(x), expected)
    if far < 1e6:
        found = Lattice(both, padding="four")(x.expand(2, -1, -1))
        assert_close("beside a padded one", found[:1], expected)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_0_is_left_out_only_where_no_blur_would_join_it(d):
    """At the distance from which 0 counts as far a pixel receives nothing from it, though all between is full of pixels."""
    for direction in torch.eye(d, dtype=torch.float64):
        f = 2 * (d + 1) * direction[None, :, None]
        nearer = simplex.with_origin(0.99 * f)
        assert nearer.shape == (1, d, 2) and not nearer[..., 1].any()
        assert torch.equal(simplex.with_origin(1.01 * f), torch.cat([1.01 * f] * 2, 2))
        between = f * torch.linspace(0, 1, 500, dtype=torch.float64)
        between += 0.3 * torch.randn(1, d, 500, dtype=torch.float64)
        x = torch.zeros(1, 1, 502, dtype=torch.float64)
        x[..., 0] = 1
        assert Lattice(torch.cat([0 * f, f, between], 2))(x)[0, 0, 1] == 0


def test_bad_padding():
    with pytest.raises(ValueError, match="^padding: expected one of 'four', got 'eight'"):
        Lattice(beside_0(3), padding="eight")


# What a lattice is ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 16])
def test_a_point_is_the_barycentre_of_its_simplex(d):
    f = torch.randn(1, d, 500, dtype=torch.float64) * 3
    layout = simplex.key_layout([-20.0] * d, [20.0] * d, 1, 500)
    weights, *_ = simplex.simplex(f, layout)
    assert weights.min() >= -1e-12
    assert_close("sum of b", weights.sum(2), torch.ones(1, 500, dtype=torch.float64))
    v, rank, _ = simplex._simplex(f)
    r = torch.arange(d + 1)[:, None, None]
    vertices = (d + 1) * v + r - (d + 1) * (rank > d - r)  # [r, j, pixel]
    assert not vertices.sum(1).any()
    y = (weights[0].mT[:, None] * vertices).sum(0)
    scaled = torch.stack([f[0, k] * s for k, s in enumerate(simplex.sigmas(d))])
    expected = torch.stack([scaled[j:].sum(0) - (j * scaled[j - 1] if j else 0) for j in range(d + 1)])
    assert_close("y", y, expected)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_an_impulse_on_a_vertex_comes_back_whole(d):
    """With all neighbours there, alpha makes the weight of a vertex with itself 1."""
    grid = torch.tensor(list(itertools.product(range(-3, 4), repeat=d)), dtype=torch.float64)
    f = torch.cat([torch.zeros(1, d, dtype=torch.float64), 0.4 * grid])  # the origin is a vertex
    x = torch.zeros(1, 1, len(f), dtype=torch.float64)
    x[..., 0] = 1
    assert_close("K_00", Lattice(f.mT[None])(x)[..., 0], torch.ones(1, 1, dtype=torch.float64))


def test_mass_on_a_line():
    """The raw lattice in one dimension holds 0.921 of the Gaussian's mass."""
    theta = 40.0
    ones = torch.ones(1, 1, 2001, dtype=torch.float64)
    f = tc.features.spatial((2001,), theta, dtype=torch.float64)
    mass = Lattice(f)(ones)[0, 0, 800:1200].mean() / (theta * math.sqrt(2 * math.pi))
    assert abs(mass - 0.921) < 0.002


BARS = {"position": 0.02, "photo": 0.06, "noise": 0.12}


@pytest.mark.parametrize("kind", BARS)
def test_distance_from_the_exact_gaussian(kind):
    """The published bars, "after" normalisation, noisy labels of three classes, 96 x 128 pixels; at every seventh."""
    size = (96, 128)
    coarse = torch.randn(1, 3, 12, 16)
    photo = torch.nn.functional.interpolate(coarse, size, mode="bicubic").mul(0.12).add(0.5)
    photo = (photo + 0.01 * torch.randn(1, 3, *size)).clamp(0, 1)
    f = {
        "position": tc.features.spatial(size, 3.0),
        "photo": tc.features.bilateral(photo, 80.0, 13.0),
        "noise": torch.cat([tc.features.spatial(size, 80.0), torch.rand(1, 3, *size) * 255 / 60], 1),
    }[kind]
    labels = coarse.argmax(1, keepdim=True).repeat_interleave(8, 2).repeat_interleave(8, 3)
    x = torch.zeros(1, 3, *size).scatter_(1, labels, 1.0)
    x = 0.6 * x + 0.4 * torch.rand(1, 3, *size)
    points, rows = f.flatten(2)[0].mT, x.flatten(2)[0].mT
    exact = []
    for chunk in points[::7].split(1024):
        k = torch.exp(-torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist").square() / 2)
        exact.append(k @ rows / k.sum(1, keepdim=True))
    exact = torch.cat(exact).mT
    found = Lattice(f, normalization="after")(x).flatten(2)[0, :, ::7]
    assert (found - exact).norm() / exact.norm() < BARS[kind]


# Degenerate features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda f: torch.zeros_like(f), lambda f: f[..., :1, :1], lambda f: f.round(), lambda f: f[..., :1],
    lambda f: f[:, :, :1], lambda f: f * 1e-20, lambda f: f[:0],
], ids=["constant", "one-pixel", "duplicates", "one-column", "one-row", "tiny", "empty-batch"])  # fmt: skip
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_degenerate_features(make, normalization):
    f = make(random_features((4, 6), 2)).contiguous()
    x = torch.randn(len(f), 2, *f.shape[2:], dtype=torch.float64)
    matrix = dense_lattice(f, True, normalization) if len(f) else torch.zeros(0, 24, 24, dtype=torch.float64)
    assert_close("K x", Lattice(f, normalization=normalization)(x), dense_apply(matrix, x))
    q = tc.mean_field(x, [Lattice(f, normalization=normalization)], [3.0], iterations=2)
    assert_close("sum of Q", q.sum(1), torch.ones_like(x[:, 0]))


@pytest.mark.parametrize("size", [1e5, 1e12])
def test_features_too_far_apart_are_refused(size):
    f = tc.features.spatial((5, 6), theta=5 / size)
    with pytest.raises(ValueError, match=r"^features: expected lattice coordinates of at most 65536, got .* theta"):
        Lattice(f)


def period(u) -> torch.Tensor:
    """The shift [D] of features that shifts the lattice's coordinates by (D + 1) u, for integers u that add up to 0."""
    d = len(u) - 1
    elevate = torch.zeros(d + 1, d, dtype=torch.float64)
    for k, s in enumerate(simplex.sigmas(d), 1):
        elevate[:k, k - 1], elevate[k, k - 1] = s, -k * s
    return torch.linalg.lstsq(elevate, (d + 1) * u.double()[:, None]).solution[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 3, 6])
def test_an_image_far_from_the_origin_is_the_same_a_whole_period_nearer(d, dtype):
    """Of a batch each by itself: one image stays, one is far away, one farther, so that no range holds all three."""
    f, x, y = random_features((4, 5), d, batch=3), *torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)
    u = torch.randint(-100_000, 100_000, (d,))
    far = period(torch.cat([u, -u.sum()[None]])).view(-1, 1, 1) * torch.tensor([0, 1, -7]).view(-1, 1, 1, 1)
    moved = (f + far).to(dtype)

    def outcome(f, dtype):
        f = f.clone().requires_grad_()
        found = Lattice(f, normalization="symmetric")(x.to(dtype))
        return [t.float() for t in (found.detach(), *torch.autograd.grad(found, f, y.to(dtype)))]

    for name, a, b in zip(("K x", "gradient"), outcome(moved, dtype), outcome(moved.double() - far, torch.float64)):
        assert_close(name, a, b, dtype=torch.float32)  # float64 has as much left of 1e6


def test_images_within_reach_stay_where_they_are():
    """Bit for bit: a shift that is no whole period, up to rounding, gives another lattice."""
    f = torch.tensor([0.0, 1.0]).view(1, 1, 2)
    for far, shifted in (0.9, 0), (1.1, 1), (-0.9, 0), (-1.1, 1):
        shift = build(f + far * simplex.MAX_COORDINATE / simplex.sigmas(1)[0], "torch", False)[-1]
        assert shift.shape == (shifted, 1)


@pytest.mark.parametrize("far", [0.0, 1e9])
def test_nan_is_no_origin(far):
    f = torch.full((2, 3, 4), far)
    f[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^features: expected lattice coordinates of at most 65536, got nan"):
        build(f, "torch", False)


def test_isolated_pixels_get_nothing():
    f = torch.arange(5.0).mul(50)[None, None]
    x = torch.randn(1, 2, 5)
    assert_close("with self", Lattice(f, normalization="after")(x), x)
    found = Lattice(f, include_self=False, normalization="symmetric")(x)
    assert torch.isfinite(found).all() and not found.any()


@pytest.mark.parametrize("theta_color", [3.0, 13.0])
def test_means_without_oneself_stay_near_the_values(theta_color):
    """ "after" makes weighted means, and K_ii is subtracted whole even where vertices are missing: what that takes too
    much must not be blown up. With so small a theta many pixels have hardly a neighbour."""
    size = (40, 60)
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 8), size, mode="bicubic").mul(0.6).add(0.2)
    photo = (photo + 0.02 * torch.randn(1, 3, *size)).clamp(0, 1)
    x = torch.rand(1, 2, *size)
    found = Lattice(tc.features.bilateral(photo, 80.0, theta_color), include_self=False, normalization="after")(x)
    assert found.min() > -1 and found.max() < 2


# Derivatives ------------------------------------------------------------------------------------------------------


def inner(a, b):
    return (a * b).sum()


@combined_or_whole
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("include_self", [True, False])
def test_gradcheck_of_values_weights_and_scales(normalization, include_self, fast_mode):
    """K is smooth in the barycentric weights, in K_ii and in the scales; 2 images share one lattice."""
    lattice = Lattice(random_features((3, 4)), include_self=include_self, normalization=normalization)
    floating = [i for i, t in enumerate(lattice.tensors) if t.is_floating_point()]
    inputs = leaves(torch.randn(2, 2, 3, 4, dtype=torch.float64), *(lattice.tensors[i] for i in floating))
    plan = encode([lattice.resolved(inputs[0])])

    def apply(x, *given):
        tensors = list(lattice.tensors)
        for i, t in zip(floating, given, strict=True):
            tensors[i] = t
        return filter_apply(x, tensors, plan)

    assert torch.autograd.gradcheck(apply, inputs, fast_mode=fast_mode)


@pytest.mark.parametrize(
    "d, form", covering([1, 2, 3, 5], [("none", True), ("symmetric", True), ("after", False)], at_once=1)
)
def test_gradcheck_of_features(d, form):
    """Between the places where a pixel changes its simplex, where K jumps."""
    normalization, include_self = form
    f = random_features((3, 4), d, batch=2)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    cotangent = torch.randn_like(x)

    def loss(f):
        lattice = Lattice(f, normalization=normalization, include_self=include_self)
        return inner(cotangent, lattice(x)), lattice.tensors[1]

    (f,) = leaves(f)
    value, vertices = loss(f)
    (gradient,) = torch.autograd.grad(value, f)
    step, checked = 1e-6, 0
    for place in itertools.product(*map(range, f.shape)):
        moved = torch.zeros_like(f)
        moved[place] = step
        with torch.no_grad():
            (ahead, v1), (back, v2) = loss(f + moved), loss(f - moved)
        if torch.equal(v1, vertices) and torch.equal(v2, vertices):
            difference = (ahead - back) / (2 * step)
            assert abs(difference - gradient[place]) < 1e-6 * max(1.0, gradient.abs().max()), place
            checked += 1
    assert checked > 0.9 * f.numel()


def test_thetas_and_images_learn():
    image = torch.rand(2, 3, 6, 7, requires_grad=True)
    thetas = torch.tensor([20.0, 30.0, 3.0], requires_grad=True)
    filters = [
        Lattice.spatial((6, 7), thetas[2], normalization="symmetric"),
        Lattice(tc.features.bilateral(image, thetas[0], thetas[1]), normalization="symmetric"),
    ]
    q = tc.mean_field(torch.randn(2, 3, 6, 7), filters, [2.0, 2.0], iterations=2)
    for gradient in torch.autograd.grad(q, [image, thetas], torch.randn_like(q)):
        assert torch.isfinite(gradient).all() and gradient.count_nonzero() > 0.9 * gradient.numel()


# The lattice of positions, kept -----------------------------------------------------------------------------------


def test_the_lattice_of_positions_is_kept():
    first = Lattice.spatial((5, 6), 3.0, normalization="symmetric")
    assert Lattice.spatial((5, 6), 3.0, normalization="symmetric") is first
    assert Lattice.spatial([5, 6], 3.0, None, True, "symmetric") is first
    assert Lattice.spatial((5, 6), [3.0, 3.0], normalization="symmetric") is not first
    others = [
        Lattice.spatial((5, 7), 3.0, normalization="symmetric"), Lattice.spatial((5, 6), 2.0, normalization="symmetric"),
        Lattice.spatial((5, 6), 3.0), Lattice.spatial((5, 6), 3.0, dtype=torch.float64, normalization="symmetric"),
    ]  # fmt: skip
    assert all(other is not first for other in others)
    x = torch.randn(1, 2, 5, 6)
    expected = Lattice(tc.features.spatial((5, 6), 3.0), normalization="symmetric")(x)
    assert torch.equal(first(x), expected)


def test_a_kept_lattice_answers_no_mistake():
    """1 == 1.0 == True, but not for the checks of arguments."""
    Lattice.spatial((5, 6), 1.0)
    for size, theta in ((5.0, 6), 1.0), ((5, 6), True):
        with pytest.raises(TypeError):
            Lattice.spatial(size, theta)


def test_a_learnt_theta_is_not_kept():
    theta = torch.tensor(3.0, requires_grad=True)
    assert Lattice.spatial((5, 6), theta) is not Lattice.spatial((5, 6), theta)


@pytest.fixture
def cache(monkeypatch):
    """The kept lattices, none at first, each known by its theta."""
    kept = OrderedDict()
    monkeypatch.setattr(kept_lattices, "_cache", kept)
    monkeypatch.setattr(kept_lattices, "_captured", {})
    return lambda: [key[1] for key in kept]


def test_kept_lattices_take_so_many_bytes(cache, monkeypatch):
    """The last used of each size that there is room for; one that is too large by itself drives out no other."""
    size = sum(t.nbytes for t in Lattice.spatial((4, 4), 3.0).tensors)
    monkeypatch.setattr(kept_lattices, "CACHE_BYTES", 3 * size)
    for theta in 3.1, 3.2:
        Lattice.spatial((4, 4), theta)
    assert cache() == [3.0, 3.1, 3.2]
    Lattice.spatial((4, 4), 3.0)
    Lattice.spatial((4, 4), 3.3)
    assert cache() == [3.2, 3.0, 3.3]
    Lattice.spatial((40, 40), 3.4)
    assert cache() == [3.2, 3.0, 3.3]
    monkeypatch.setattr(kept_lattices, "_free_memory", lambda device: 25 * size)
    Lattice.spatial((4, 4), 3.5)
    assert cache() == [3.3, 3.5]


def test_the_cache_is_cleared(cache):
    first, x = Lattice.spatial((4, 4), 3.0), torch.randn(1, 2, 4, 4)
    expected = first(x)
    tc.clear_cache()
    assert cache() == [] and torch.equal(first(x), expected)
    assert Lattice.spatial((4, 4), 3.0) is not first


@pytest.mark.parametrize("capturing", [False, True])
def test_what_a_gpu_reads_outlives_the_cache(cache, capturing, monkeypatch):
    """On another stream until that has read it; in a graph that was captured meanwhile for good."""
    streams = []
    tensor = SimpleNamespace(device=torch.device("cuda"), nbytes=9, record_stream=streams.append)
    lattice = SimpleNamespace(tensors=[tensor, tensor])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "another stream")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    kept_lattices._keep("key", lattice)
    kept_lattices._serve("key", lattice)
    tc.clear_cache()
    assert streams == ["another stream"] * 2
    assert kept_lattices._captured == ({"key": lattice} if capturing else {})


def test_memory_that_is_free():
    free = kept_lattices._free_memory(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50 or not Path("/proc/meminfo").exists()


def test_what_another_thread_drops_is_still_returned(monkeypatch):
    class Dropping(OrderedDict):
        """Another thread drops what this one has just found."""

        def __contains__(self, key):
            return self.get(key) is not None

        def get(self, key):
            found = super().get(key)
            if found is not None:
                del self[key]
            return found

    monkeypatch.setattr(kept_lattices, "_cache", Dropping())
    first = Lattice.spatial((5, 6), 3.0)
    assert Lattice.spatial((5, 6), 3.0) is first


# Threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("most, expected", [(step.FEW_NUMBERS, 1), (0, 2)])
def test_small_work_is_done_in_one_thread(most, expected, two_threads, monkeypatch):
    """Where another process is on a core, threads wait for each other at each of hundreds of operations."""
    seen, sums, sort = set(), reference.weighted_sums, torch.sort

    def recorded(function):
        def run(*arguments, **options):
            seen.add(torch.get_num_threads())
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(step, "FEW_NUMBERS", most)
    monkeypatch.setattr(reference, "weighted_sums", recorded(sums))
    monkeypatch.setattr(torch, "sort", recorded(sort))
    lattice, x = Lattice(random_features((4, 5)).requires_grad_()), torch.randn(1, 3, 4, 5, dtype=torch.float64)
    tc.mean_field(x.requires_grad_(), [lattice], [3.0], iterations=2).square().sum().backward()
    assert seen == {expected} and torch.get_num_threads() == 2


def test_threads_come_back_after_an_error(two_threads):
    with pytest.raises(KeyError), step.few_threads(torch.device("cpu"), 9):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


# Operators --------------------------------------------------------------------------------------------------------


def test_opcheck_build():
    for f in random_features((6,), 2), random_features((5,), 3, batch=2).requires_grad_():
        for padded in False, True:
            torch.library.opcheck(build.registered, (f, "torch", padded))
    f = random_features((6,), 2)
    for shift in torch.zeros(0, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64):
        torch.library.opcheck(build_backward.registered, (f, shift, torch.randn(1, 6, 3, dtype=torch.float64), "torch"))


# torch's own, where a graph goes on after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.extras
def test_building_a_lattice_compiles():
    """How many vertices there are is data: unless told to hold a number that it does not know, the graph breaks there."""

    def refine(logits, image):
        lattice = Lattice(tc.features.bilateral(image, 30.0, 40.0), normalization="symmetric")
        return tc.mean_field(logits, [lattice], [3.0], iterations=2)

    compiled = torch.compile(refine, backend="aot_eager")
    outcomes = []
    for function in compiled, refine:
        torch.manual_seed(0)
        logits, image = torch.randn(1, 3, 5, 6, requires_grad=True), torch.rand(1, 3, 5, 6, requires_grad=True)
        q = function(logits, image)
        outcomes.append([q.detach(), *torch.autograd.grad(q, [logits, image], torch.randn_like(q))])
    for name, a, b in zip(("Q", "logits", "image"), *outcomes, strict=True):
        assert_close(name, a, b)


# A large photo ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_photo_fits_in_four_gigabytes():
    """1024 x 2048 pixels, 21 classes, (80, 13): the growth of a process of its own."""
    script = """
import resource, torch, tritoncrf as tc
coarse = torch.rand(1, 3, 64, 128)
image = torch.nn.functional.interpolate(coarse, (1024, 2048), mode="bicubic").clamp(0, 1)
image = (image + 0.02 * torch.randn_like(image)).clamp(0, 1)
logits = torch.randn(1, 21, 1024, 2048)
K = tc.filters.Lattice(tc.features.bilateral(image, 80.0, 13.0), normalization="symmetric")
with torch.no_grad():
    q = tc.mean_field(logits, [K], [10.0], iterations=2)
assert torch.isfinite(q).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    kilobytes = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 4 << 20


@pytest.mark.parametrize("weights", [1.5, torch.linspace(0.5, 1.5, 7)], ids=["a number", "one a class"])
@pytest.mark.parametrize("damping", [0.0, 0.3], ids=["states written over", "states kept"])
def test_a_loop_in_blocks_of_classes(weights, damping, monkeypatch):
    logits = torch.randn(2, 7, 12, 13)
    filters = [Lattice(3 * random_features((12, 13), d, 1).float(), normalization="symmetric") for d in (2, 5)]
    blocks = reference.LatticeStep._blocks

    def loop(numbers):
        seen = []
        monkeypatch.setattr(reference, "BLOCK", numbers)
        monkeypatch.setattr(reference.LatticeStep, "_blocks", lambda *a: seen.append(blocks(*a)) or seen[-1])
        return tc.mean_field(logits, filters, [weights, 2.0], iterations=3, damping=damping), len(seen[0])

    (whole, one), (parts, several) = loop(1 << 30), loop(1)
    assert one == 1 < several
    assert_close("Q", parts, whole, dtype=torch.float32)

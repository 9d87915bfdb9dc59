"""The lattice kernels, one by one, and the branches of their fused step against PyTorch in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import interpreted, random_features
from filter_catalogue import LATTICE, assert_loop_within_budget
from tritoncrf import checks
from tritoncrf.filters import Lattice
from tritoncrf.filters.lattice import build
from tritoncrf.kernels import lattice as kernels
from tritoncrf.kernels import simplex, vertices
from tritoncrf.kernels.common import record_launches
from tritoncrf.reference import lattice as reference
from tritoncrf.reference import simplex as reference_simplex
from waits import watched


def built(size, d, classes, batch=1, shared=False, scale=False):
    """A lattice of random features, and rows: ((lattice, side, rows) in float64, the same in float32)."""
    f = random_features(size, d, 1 if shared else batch).flatten(2) * 2
    *tensors, starts, _, _, _ = build(f, "torch", False)
    factor = torch.rand(f.shape[0], 1, f.shape[2], dtype=torch.float64) + 0.5 if scale else None
    x = torch.randn(batch, classes, f.shape[2], dtype=torch.float64)
    lattice = reference.Lattice(*tensors, *reference_simplex.in_chunks(starts))
    return f, reference.ScaledLattice(lattice, factor), x


def in_float32(side, device):
    lattice = side.lattice
    names = "weights", "vertices", "neighbours", "sorted_pairs", "chunk_starts", "group_starts", "vertex_groups"
    tensors = [getattr(lattice, name) for name in names]
    tensors = [t.to(device, torch.float32) if t.is_floating_point() else t.to(device) for t in tensors]
    factor = None if side.scale is None else side.scale.to(device, torch.float32)
    return reference.ScaledLattice(reference.Lattice(*tensors), factor)


def of_pairs(codes, simplices, d):
    """Codes of the vertices of each pixel, from those of each simplex."""
    return codes if simplices is None else [code.view(-1, d + 1)[simplices].flatten() for code in codes]


CASES = {
    "pixel": dict(size=(1,), d=2, classes=1),
    "line": dict(size=(67,), d=1, classes=3),
    "image": dict(size=(5, 7), d=5, classes=21, scale=True),
    "batch": dict(size=(4, 5), d=3, classes=4, batch=2, scale=True),
    "batch-shared": dict(size=(4, 5), d=2, classes=5, batch=3, shared=True, scale=True),
    "classes-70": dict(size=(11,), d=2, classes=70),
    "classes-200": dict(size=(3, 3), d=2, classes=200, batch=2),
    "features-8": dict(size=(9,), d=8, classes=2),
    "features-16": dict(size=(7,), d=16, classes=3),
    "empty-batch": dict(size=(4, 5), d=2, classes=3, batch=0),
}


@pytest.mark.parametrize("name", interpreted(CASES, "batch", "features-8"))
def test_simplex_and_its_gradient(name, device):
    f, side, _ = built(**CASES[name])
    least, most = [-30.0] * f.shape[1], [30.0] * f.shape[1]
    layout = reference_simplex.key_layout(least, most, f.shape[0], f.shape[2])
    weights, codes, _ = simplex.simplex(f.to(device, torch.float32), layout)
    expected, *simplices = reference_simplex.simplex(f, layout)
    assert_close("b", weights, expected, dtype=torch.float32)
    for code, wanted in zip(codes, of_pairs(*simplices, f.shape[1]), strict=True):
        assert code.dtype == wanted.dtype and torch.equal(code.cpu(), wanted)
    d_weights = torch.randn(expected.shape, dtype=torch.float64)
    found = simplex.simplex_gradient(f.to(device, torch.float32), d_weights.to(device, torch.float32))
    assert_close("dL/df", found, reference_simplex.simplex_gradient(f, d_weights), dtype=torch.float32)


def test_sigmas_are_the_references():
    for d in range(1, 65):
        assert [simplex.sigma(k, d) for k in range(1, d + 1)] == reference_simplex.sigmas(d, torch.float32)


@pytest.mark.parametrize("name", interpreted([n for n in CASES if n != "features-16"], "batch"))
def test_neighbours(name, device):
    f, *_ = built(**CASES[name])
    layout = reference_simplex.key_layout([-9.0] * f.shape[1], [9.0] * f.shape[1], f.shape[0], f.shape[2])
    (codes,) = reference_simplex.simplex(f, layout)[1]
    codes = codes.unique()
    expected = reference_simplex.neighbours([codes], layout, [0, len(codes)])
    found = vertices.neighbours(codes.to(device), simplex.packed(layout, 0, device), f.shape[1] + 1)
    assert torch.equal(found.cpu(), expected)
    assert (expected < len(codes)).any() == (len(codes) > 0)


def test_groups_of_codes(device):
    """Two integers for twelve axes."""
    f = random_features((9,), 12)
    layout = reference_simplex.key_layout([-40.0] * 12, [40.0] * 12, 1, 9)
    assert len(layout.sizes) == 2
    _, codes, _ = simplex.simplex(f.to(device, torch.float32), layout)
    for code, wanted in zip(codes, of_pairs(*reference_simplex.simplex(f, layout)[1:], 12), strict=True):
        assert torch.equal(code.cpu(), wanted)


FEATURES = {
    "image": lambda: torch.randn(1, 5, 90),
    "one-pixel": lambda: torch.randn(1, 3, 1),
    "a-tile": lambda: 9 * torch.randn(1, 1, vertices.TILE // 2),
    "a-tile-and-one": lambda: torch.randn(1, 2, (vertices.TILE + 1) // 3),
    "one-simplex": lambda: torch.full((2, 2, 700), 0.3),
    "batch": lambda: torch.randn(3, 2, 4, 50).movedim(0, 2).flatten(2) / 3,
    "codes-of-63-bits": lambda: 60 * torch.randn(2, 5, 40),
    "codes-of-two-integers": lambda: 10 * torch.randn(2, 12, 17),
    "far-from-the-origin": lambda: torch.randn(2, 3, 40) + torch.tensor([0, 1e6]).view(2, 1, 1),
    "empty-batch": lambda: torch.randn(0, 3, 5),
}


@pytest.fixture
def no_codes_before(monkeypatch):
    monkeypatch.setattr(simplex, "_wide", set())


@pytest.mark.parametrize("tile, chunk", [(vertices.TILE, 16), (32, 4)])
@pytest.mark.parametrize("name", interpreted(FEATURES, "batch", "codes-of-63-bits"))
def test_the_tables(name, tile, chunk, device, no_codes_before, monkeypatch):
    """As PyTorch makes them, which numbers vertices in another order. Small tiles: more of them than one program adds up
    at a time, and than a vertex's pairs."""
    f = FEATURES[name]()
    monkeypatch.setattr(vertices, "TILE", tile)
    monkeypatch.setattr(reference_simplex, "CHUNK", chunk)
    weights, of_pairs, neighbours, _, starts, _, _, shift = build(f, "torch", False)
    found_weights, *found = build(f.to(device), "triton", False)
    assert_close("b", found_weights, weights, dtype=torch.float32)
    number = torch.full((len(starts),), len(starts) - 1)  # of PyTorch's vertices
    number[of_pairs.flatten().long()] = found[0].cpu().flatten().long()
    assert torch.equal(number.sort().values, torch.arange(len(starts)))
    own = torch.empty_like(neighbours)
    own[:, number] = number[neighbours.long()].int()
    of_pairs = number[of_pairs.long()].int()
    counts = torch.bincount(of_pairs.flatten(), minlength=len(starts) - 1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    expected = of_pairs, own, of_pairs.flatten().argsort(stable=True).int(), *reference_simplex.in_chunks(starts), shift
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b)


@pytest.mark.interpreter
def test_padding_to_fours(device):
    """One vertex has several groups of chunks, and two that only the filled-up pixels touch have no pairs."""
    f = torch.full((1, 1, 290), -1.5 / reference_simplex.sigmas(1)[0], dtype=torch.float64)
    x = torch.randn(1, 2, 290, dtype=torch.float64)
    tensors = build(f.to(device, torch.float32), "triton", True)
    lattice = reference.Lattice(*tensors[:-1])
    assert lattice.weights.shape == (1, 290, 2) and lattice.count == 4
    assert sorted(lattice.segments.diff().tolist()) == [0, 0, 290, 290]
    assert len(lattice.group_starts) > len(lattice.vertex_groups)
    found = Lattice(f.to(device, torch.float32), padding="four", backend="triton")(x.to(device, torch.float32))
    assert_close("K x", found, Lattice(f, padding="four")(x), dtype=torch.float32)


def test_building_waits_once(device, no_codes_before, monkeypatch):
    """For the sizes of the tables; twice where codes are the first of their kind that 31 bits do not hold."""
    monkeypatch.setattr(checks, "values_checked", lambda x: False)  # as on a GPU
    waits = []
    for spread in 1, 60, 60, 1, 1:
        f = spread * torch.randn(1, 5, 50, device=device)
        with record_launches() as launches, watched() as watch:
            Lattice(f, normalization="symmetric", backend="triton")
        waits.append(len(watch.waits))
        assert set(watch.waits) == {"tolist"}
    assert waits == [1, 2, 1, 1, 1]
    assert len(launches) == 12  # six of which build, and six weigh the rows


@pytest.mark.parametrize("features", [1e6, 1e30, torch.nan])
def test_features_too_far_apart_are_refused(features, device):
    f = torch.randn(1, 2, 30, device=device)
    f[0, 1, 7] = features
    with pytest.raises(ValueError, match="^features: expected lattice coordinates of at most 65536, got .* theta"):
        build(f, "triton", False)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", interpreted(CASES, "batch-shared", "classes-70"))
def test_filtered_and_sliced(name, reverse, device):
    _, side, x = built(**CASES[name])
    found_side = in_float32(side, device)
    rows = kernels.rows_of(x.to(device, torch.float32))
    v = kernels.filtered(rows, found_side, reverse)
    expected = reference.filtered(reference.rows_of(x), side, reverse)
    assert_close("v", v[:, :-1], expected[:, :-1], dtype=torch.float32)
    found = kernels.sliced(v, found_side, len(x))
    assert_close("K x", found, reference.sliced(expected, side, len(x)), dtype=torch.float32)


@pytest.mark.parametrize("name", ["image", "batch", "batch-shared", "classes-70", "empty-batch"])
def test_weights_gradient(name, device):
    _, side, x = built(**CASES[name])
    y = torch.randn_like(x)
    found_side = in_float32(side, device)

    def gradient(module, side, *values):
        bare = reference.ScaledLattice(side.lattice, None)
        rows = [module.rows_of(v) for v in values]
        ahead, back = module.filtered(rows[0], bare, False), module.filtered(rows[1], bare, True)
        return module.weights_gradient(*rows, side.lattice, ahead, back)

    found = gradient(kernels, found_side, x.to(device, torch.float32), y.to(device, torch.float32))
    assert_close("dL/db", found, gradient(reference, side, x, y), dtype=torch.float32)


@pytest.mark.parametrize("chunk", [16, 4])
@pytest.mark.parametrize("images, batch", [(1, 1), (1, 2), pytest.param(2, 2, marks=pytest.mark.interpreter)])
def test_a_vertex_of_many_chunks(chunk, images, batch, device, monkeypatch):
    """All pixels but two in one simplex: 300 pairs to a vertex are 19 chunks, more than the other vertices have, and in
    chunks of 4 they are 19 groups, more than are read at a time."""
    monkeypatch.setattr(reference_simplex, "CHUNK", chunk)
    monkeypatch.setattr(reference.Lattice, "chunk", chunk)
    f = torch.rand(images, 1, 300) * 1e-3 + 0.1
    f[:, :, 7], f[:, :, 100] = 5, -3
    x = torch.randn(batch, 2, 300)
    K = Lattice(f.to(device), backend="triton")
    with record_launches() as launches:
        found = K(x.to(device))
    assert [launch.kernel.__name__ for launch in launches].count("_join_kernel") == 2
    assert_close("K x", found, Lattice(f.double())(x.double()), dtype=torch.float32)


def test_rows_are_padded_with_zeros(device):
    """Classes cut out of a wider tensor in memory: what lies beside them may be anything, NaN too."""
    wide = torch.randn(1, 3, 4, 8, device=device)
    wide[..., 5:] = torch.nan
    x = wide.movedim(-1, 1)[:, :5]
    rows = kernels.rows_of(x)
    assert rows.shape == (1, 12, 5) and rows.stride() == (96, 8, 1)
    assert torch.equal(reference.image_of(rows, x), x)
    assert not rows.as_strided((1, 12, 8), rows.stride())[..., 5:].any()
    for weight in torch.rand(5, device=device), torch.rand(5, 5, device=device):
        lattice = Lattice(random_features((3, 4), 2, dtype=torch.float32).to(device), backend="triton")
        q = tc.mean_field(x, [lattice], [weight], iterations=2)
        assert torch.equal(q, tc.mean_field(x.contiguous(), [lattice], [weight], iterations=2))
        assert torch.isfinite(q).all()


# The loop ---------------------------------------------------------------------------------------------------------

SYMMETRIC, AFTER, BEFORE = ({"normalization": n} for n in ("symmetric", "after", "before"))
SETTINGS = {
    "21-classes": dict(size=(4, 5), windows=[SYMMETRIC, SYMMETRIC], channels=(2, 5), classes=21),
    "before-after": dict(size=(3, 5), windows=[BEFORE, AFTER], weight="class", unary="class", classes=4),
    "matrix-costs-5": dict(size=(3, 5), windows=[AFTER, AFTER], weight="matrix", compatibility=True, classes=5),
    "classes-100": dict(size=(3, 3), windows=[AFTER], classes=100, weight="class"),
    "classes-260-composed": dict(size=(3, 3), windows=[AFTER], classes=260),
    "not-self-composed": dict(size=(3, 4), windows=[{"include_self": False, **AFTER}]),
}


@pytest.mark.parametrize("name", interpreted(SETTINGS, "21-classes", "matrix-costs-5"))
def test_the_loop_and_every_gradient(name, device):
    assert_loop_within_budget(LATTICE.loop(iterations=2, **SETTINGS[name]), device)

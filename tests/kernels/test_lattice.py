"""The lattice kernels, one by one, and the branches of their fused step against PyTorch in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import interpreted, random_features
from filter_catalogue import LATTICE, assert_loop_within_budget
from tritoncrf.filters import Lattice
from tritoncrf.filters.lattice import build
from tritoncrf.kernels import lattice as kernels
from tritoncrf.kernels import simplex
from tritoncrf.kernels.common import record_launches
from tritoncrf.reference import lattice as reference
from tritoncrf.reference import simplex as reference_simplex


def built(size, d, classes, batch=1, shared=False, scale=False):
    """A lattice of random features, and rows: ((lattice, side, rows) in float64, the same in float32)."""
    f = random_features(size, d, 1 if shared else batch).flatten(2) * 2
    *tensors, _ = build(f, "torch")
    factor = torch.rand(f.shape[0], 1, f.shape[2], dtype=torch.float64) + 0.5 if scale else None
    x = torch.randn(batch, classes, f.shape[2], dtype=torch.float64)
    lattice = reference.Lattice(*tensors)
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
    expected = reference_simplex.neighbours([codes], layout)
    assert torch.equal(simplex.neighbours([codes.to(device)], layout).cpu(), expected)
    assert (expected < len(codes)).any() == (len(codes) > 0)


def test_groups_of_codes(device):
    """Two integers for twelve axes."""
    f = random_features((9,), 12)
    layout = reference_simplex.key_layout([-40.0] * 12, [40.0] * 12, 1, 9)
    assert len(layout.sizes) == 2
    _, codes, _ = simplex.simplex(f.to(device, torch.float32), layout)
    for code, wanted in zip(codes, of_pairs(*reference_simplex.simplex(f, layout)[1:], 12), strict=True):
        assert torch.equal(code.cpu(), wanted)


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


@pytest.mark.interpreter
@pytest.mark.parametrize("chunk", [16, 4])
@pytest.mark.parametrize("images, batch", [(1, 1), (1, 2), (2, 2)])
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

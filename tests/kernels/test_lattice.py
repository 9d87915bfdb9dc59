"""The lattice kernels and their fused step against the PyTorch reference in float64, values and every gradient."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import Setting, interpreted, leaves, random_features, strided
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
    tensors = build(f, "torch")
    factor = torch.rand(f.shape[0], 1, f.shape[2], dtype=torch.float64) + 0.5 if scale else None
    x = torch.randn(batch, classes, f.shape[2], dtype=torch.float64)
    lattice = reference.Lattice(*tensors)
    return f, reference.ScaledLattice(lattice, factor), x


def in_float32(side, device):
    lattice = side.lattice
    names = "weights", "vertices", "neighbours", "sorted_pairs", "chunk_starts", "vertex_chunks"
    tensors = [getattr(lattice, name) for name in names]
    tensors = [t.to(device, torch.float32) if t.is_floating_point() else t.to(device) for t in tensors]
    factor = None if side.scale is None else side.scale.to(device, torch.float32)
    return reference.ScaledLattice(reference.Lattice(*tensors), factor)


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
    weights, codes = simplex.simplex(f.to(device, torch.float32), layout)
    expected, expected_codes = reference_simplex.simplex(f, layout)
    assert_close("b", weights, expected, dtype=torch.float32)
    for code, wanted in zip(codes, expected_codes, strict=True):
        assert code.dtype == wanted.dtype and torch.equal(code.cpu(), wanted)
    d_weights = torch.randn(expected.shape, dtype=torch.float64)
    found = simplex.simplex_gradient(f.to(device, torch.float32), d_weights.to(device, torch.float32))
    assert_close("dL/df", found, reference_simplex.simplex_gradient(f, d_weights), dtype=torch.float32)


def test_sigmas_are_the_references():
    for d in range(1, 65):
        assert [simplex.sigma(k, d) for k in range(1, d + 1)] == reference_simplex.sigmas(d, torch.float32)


def test_groups_of_codes(device):
    """Two integers for twelve axes."""
    f = random_features((9,), 12)
    layout = reference_simplex.key_layout([-40.0] * 12, [40.0] * 12, 1, 9)
    assert len(layout.sizes) == 2
    _, codes = simplex.simplex(f.to(device, torch.float32), layout)
    for code, wanted in zip(codes, reference_simplex.simplex(f, layout)[1], strict=True):
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
def test_a_vertex_of_many_chunks(device):
    """All pixels in one simplex: 300 pairs to a vertex are 19 chunks, more than a program adds up at a time."""
    f = torch.rand(1, 1, 300) * 1e-3 + 0.1
    x = torch.randn(1, 2, 300)
    found = Lattice(f.to(device), backend="triton")(x.to(device))
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


@pytest.mark.parametrize("classes", [4, 5])
def test_memory_order_does_not_matter(classes, device):
    x = torch.randn(2, classes, 3, 4, device=device)
    lattice = Lattice(random_features((3, 4), 2, dtype=torch.float32).to(device), backend="triton")
    assert torch.equal(lattice(strided(x)), lattice(x))


# The filter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization, include_self, batch", [
    ("none", True, 1), ("before", True, 2), ("after", False, 1), ("symmetric", True, 2), ("symmetric", False, 1),
])  # fmt: skip
def test_the_filter_and_its_gradients(normalization, include_self, batch, device):
    size = (3, 5)
    x, f, cotangent = torch.randn(batch, 3, *size, dtype=torch.float64), random_features(size, 3, batch), None
    cotangent = torch.randn_like(x)

    def outcome(dtype, backend, device="cpu"):
        inputs = leaves(x.to(device, dtype), f.to(device, dtype))
        y = Lattice(inputs[1], include_self, normalization, backend=backend)(inputs[0])
        return y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(device, dtype))

    found, expected = outcome(torch.float32, "triton", device), outcome(torch.float64, "torch")
    for name, a, b in zip(("K x", "values' gradient", "features' gradient"), found, expected, strict=True):
        assert_close(name, a, b, dtype=torch.float32)


# The loop ---------------------------------------------------------------------------------------------------------

SYMMETRIC, AFTER, BEFORE = ({"normalization": n} for n in ("symmetric", "after", "before"))

SETTINGS = {
    "scalar": dict(size=(4, 5), windows=[{}]),
    "pair": dict(size=(4, 5), windows=[SYMMETRIC, SYMMETRIC], channels=(2, 5), classes=21),
    "class": dict(size=(3, 5), windows=[BEFORE, AFTER], weight="class", unary="class", classes=4),
    "matrix-costs": dict(size=(3, 5), windows=[AFTER, AFTER], weight="matrix", compatibility=True, classes=5),
    "batch-mixed": dict(size=(3, 4), windows=[SYMMETRIC, AFTER], batch=2, shared=[True, False],
                        weight=["scalar", "class"], iterations=3),
    "logarithms": dict(size=(3, 4), windows=[AFTER], initial="log_softmax", weight="matrix"),
    "one-iteration": dict(size=(3, 4), windows=[SYMMETRIC], iterations=1),
    "one-label": dict(size=(3, 4), windows=[AFTER], classes=1),
    "classes-100": dict(size=(3, 3), windows=[AFTER], classes=100, weight="class"),
    "classes-260-composed": dict(size=(3, 3), windows=[AFTER], classes=260),
    "three-composed": dict(size=(3, 4), windows=[{}, AFTER, {}], channels=(1, 2, 3), weight="class", strength=0.2),
    "not-self-composed": dict(size=(3, 4), windows=[{"include_self": False, **AFTER}]),
    "empty-batch": dict(size=(3, 4), windows=[SYMMETRIC], batch=0),
}  # fmt: skip


@pytest.mark.parametrize("name", interpreted(SETTINGS, "pair", "matrix-costs", "batch-mixed", "three-composed"))
def test_the_loop_and_every_gradient(name, device):
    setting = Setting(**SETTINGS[name], kind=Lattice)
    by_triton = lambda *inputs: setting.run(*inputs, backend="triton")  # noqa: E731
    found = setting.gradients(by_triton, dtype=torch.float32, device=device)
    exact, plain = setting.gradients(setting.run), setting.gradients(setting.run, dtype=torch.float32)
    for which, a, b, c in zip(("scores", *setting.names), found, exact, plain, strict=True):
        if a.numel() < 16:  # too few numbers to estimate PyTorch's error from
            scale = max(b.norm().item(), setting.cotangent.norm().item())
            assert_close(which, a, b, dtype=torch.float32, scale=scale)
        elif name == "one-label" and which == "features[0]":
            # The probability is 1 whatever the features, so the true gradient is 0. What is found is what rounding
            # leaves of terms near 1 that cancel: PyTorch's own error, small by the luck of its order of sums, is no
            # budget for it, and fused multiply-adds, which every GPU has, leave more. It is measured against the terms.
            assert_close(which, a, b, dtype=torch.float32, scale=1.0)
        else:
            assert_within_budget(which, a, b, c)


def test_the_same_bits_twice(device):
    setting = Setting(**SETTINGS["pair"], kind=Lattice)
    by_triton = lambda *inputs: setting.run(*inputs, backend="triton")  # noqa: E731
    first, second = (setting.gradients(by_triton, dtype=torch.float32, device=device) for _ in range(2))
    for what, a, b in zip(("scores", *setting.names), first, second, strict=True):
        assert torch.equal(a, b), what


# Launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("filters", [1, 2])
def test_launches_per_iteration(d, filters, device):
    """Per filter: splat in two launches, blurs two by two; one slice with the step. At most d + 3."""
    counts = []
    logits = torch.randn(1, 3, 4, 5, device=device)
    features = [random_features((4, 5), d, dtype=torch.float32).to(device)] * filters
    with record_launches(run=False):
        lattices = [Lattice(f, backend="triton") for f in features]
    for iterations in (3, 2):
        with record_launches(run=False) as launches:
            tc.mean_field(logits, lattices, [1.0] * filters, iterations=iterations)
        counts.append(len(launches))
    per_iteration = counts[0] - counts[1]
    assert per_iteration == filters * (2 + (d + 2) // 2) + 1
    assert per_iteration <= filters * (d + 3)

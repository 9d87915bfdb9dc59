"""The kernels of all pairs: tiles, features far apart, values of any size, what is skipped; against PyTorch in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import interpreted, random_features
from tritoncrf.kernels import exact as kernels
from tritoncrf.reference import exact as reference

Exact = tc.filters.Exact

# A tile is 128 pixels. With up to 6 features exponents are one product, from 65 on all is differences; a program sums
# 64 classes, of the gradient 32.
CASES = {
    "pixel": dict(n=1),
    "part-of-a-tile": dict(n=37, channels=5, classes=21),
    "tile": dict(n=128, channels=1, classes=1),
    "tile-and-one": dict(n=129, channels=2),
    "three-tiles": dict(n=290, channels=5, classes=17, spread=3.0),
    "two-tiles-a-block": dict(n=300, channels=3, most=2),
    "batch": dict(n=130, channels=3, batch=2),
    "empty-batch": dict(n=130, batch=0),
    "classes-33": dict(n=130, channels=2, classes=33),
    "classes-65": dict(n=130, channels=2, classes=65),
    "features-6": dict(n=130, channels=6),
    "features-7": dict(n=130, channels=7),
    "features-17": dict(n=130, channels=17),
    "features-33": dict(n=130, channels=33, spread=2.0),
    "features-65": dict(n=17, channels=65),
    "wide-tiles": dict(n=150, spread=5e3),
    "one-far": dict(n=150, channels=3, far=1e6),
    "two-clouds": dict(n=256, channels=2, clouds=5e3),
}


def case(n, channels=2, classes=3, batch=1, spread=1.0, far=0.0, clouds=0.0):
    """x, y and features, flat."""
    features = spread * random_features((n,), channels, batch)
    features[:, :, -1:] += far
    features[:, :, n // 2 :] += clouds
    if spread > 100:  # pairs of neighbours, so that not all weights are 0
        features[:, :, 1::2] = features[:, :, ::2][:, :, : n // 2] + random_features((n // 2,), channels, batch)
    x, y = torch.randn(2, batch, classes, n, dtype=torch.float64).unbind(0)
    return x, y, features.float()  # rounded first: far apart, the rounding itself moves weights


def visits(features, rtol=0.0):
    order, *rest = reference.prepare(features, rtol)
    return reference.sort_features(features, order), order, *rest


@pytest.mark.parametrize("name", interpreted(CASES, "tile-and-one", "batch", "classes-65", "features-7", "features-65"))
def test_sums_and_feature_gradient(name, device, monkeypatch):
    options = dict(CASES[name])
    monkeypatch.setattr(reference, "MAX_BLOCKS", options.pop("most", reference.MAX_BLOCKS))
    x, y, features = case(**options)
    x32, y32, there = x.to(device, torch.float32), y.to(device, torch.float32), visits(features.to(device))
    features, *rest = visits(features.double())
    include_self = name not in ("tile-and-one", "features-7", "one-far")
    found = kernels.exact_sum(x32, *there, include_self, "default")
    expected = reference.exact_sum(x, features, *rest, include_self)
    assert_close("K x", found, expected, dtype=torch.float32)
    found = kernels.exact_feature_gradient(x32, y32, *there)
    expected = reference.exact_feature_gradient(x, y, features, *rest)
    assert_close("features' gradient", found, expected, dtype=torch.float32, scale=None if expected.any() else 1.0)


def test_isolated_pixels_keep_their_values_to_the_last_bit_but_two(device):
    f, x = (1e4 * torch.arange(150.0)).view(1, 1, -1).to(device), torch.randn(1, 3, 150).to(device)
    found = kernels.exact_sum(x, *visits(f), True, "default")
    assert_close("K x", found, x, rms=2**-22, worst=2**-22)
    others = kernels.exact_sum(x, *visits(f), False, "default")
    assert_close("nothing", others, torch.zeros_like(x), rms=0, worst=0)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e30])
def test_values_of_any_size(size, device):
    """Each class is scaled by itself, so small classes lose nothing beside large ones."""
    x, y, f = case(130)
    x *= torch.tensor([1.0, size, 0.0], dtype=torch.float64).view(3, 1)
    found = kernels.exact_sum(x.to(device, torch.float32), *visits(f.to(device)), True, "default")
    expected = reference.exact_sum(x, *visits(f.double()), True)
    for c in range(2):
        assert_close(f"class {c}", found[:, c], expected[:, c], dtype=torch.float32)
    assert not found[:, 2].any()


@pytest.mark.interpreter
def test_fast_precision_rounds_weights_and_values_to_half(device):
    x, _, f = case(130, classes=17)
    found = kernels.exact_sum(x.to(device, torch.float32), *visits(f.to(device)), True, "fast")
    expected = reference.exact_sum(x, *visits(f.double()), True)
    assert_close("K x", found, expected, dtype=torch.float32, rms=1e-3, worst=1e-3)


@pytest.mark.interpreter
def test_what_is_skipped_is_skipped(device):
    """Two clouds whose blocks see each other by weights that a bound of 3 skips."""
    x, _, f = case(256, clouds=6.0)
    for rtol, columns in (0.0, 2), (3.0, 0):
        there, here = visits(f.to(device), rtol), visits(f.double(), rtol)
        assert len(there[3]) == columns
        found = kernels.exact_sum(x.to(device, torch.float32), *there, False, "default")
        assert_close("K x", found, reference.exact_sum(x, *here, False), dtype=torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("thetas", [(80, 13), (50, 5)])
def test_a_photo_on_a_gpu(thetas, device):
    """Some rows of a picture of real size, all pairs and with skipping."""
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 10, 15), (334, 500), mode="bilinear")
    f = tc.features.bilateral((coarse + 0.02 * torch.randn_like(coarse)).clamp(0, 1), *thetas).to(device)
    x, rows = torch.rand(1, 21, 334, 500, device=device), torch.randint(0, 334 * 500, (500,), device=device)
    exact = reference.exact_rows(x[0].double(), f[0].double(), rows)
    found = Exact(f, rtol=0)(x).flatten(2)[0, :, rows]
    assert_close("K x", found, exact, dtype=torch.float32)
    assert (Exact(f, rtol=1e-2)(x).flatten(2)[0, :, rows] - exact).abs().max() <= 1e-2

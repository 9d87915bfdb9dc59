"""Features: values by hand, units, gradients to thetas, compilation, and every argument error."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import tritoncrf as tc
from assertions import assert_close
from tritoncrf import features


def test_spatial_by_hand():
    f = features.spatial((2, 3), theta=2.0)
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    columns = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]])
    assert torch.equal(f, torch.stack([rows, columns])[None])


@pytest.mark.parametrize("size", [(4,), (4, 5), (4, 5, 6)])
def test_spatial_shape_for_one_to_three_axes(size):
    assert features.spatial(size, theta=3).shape == (1, len(size), *size)


def test_spatial_spacing_and_thetas_per_axis():
    f = features.spatial((2, 2, 2), theta=(1.0, 2.0, 4.0), spacing=(3.0, 1.0, 8.0))
    assert f[0, :, 1, 1, 1].tolist() == [3.0, 0.5, 2.0]


@given(n=st.integers(1, 3000), theta=st.floats(0.01, 1e4), spacing=st.floats(0.01, 100))
def test_spatial_is_rounded_once(n, theta, spacing):
    f = features.spatial((n,), theta, spacing)
    exact = np.arange(n) * (spacing / theta)
    assert np.array_equal(f[0, 0].numpy(), exact.astype(np.float32))


def test_color_by_hand():
    image = torch.tensor([[[13, 26], [0, 39]]], dtype=torch.uint8)
    assert features.color(image, 13).tolist() == [[[1.0, 2.0], [0.0, 3.0]]]
    assert features.color(image, (13.0, 39.0)).tolist() == [[[1.0, 2.0], [0.0, 1.0]]]


def test_floating_images_count_times_255_whatever_their_values():
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    assert_close("float image", features.color(image / 255, 13.0), features.color(image, 13.0), rms=1e-6, worst=1e-6)
    dark = torch.full((1, 1, 2, 2), 1.0)
    assert features.color(dark, 1.0).unique().tolist() == [255.0]
    assert features.color(dark.to(torch.uint8), 1.0).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "given, expected",
    [
        (torch.uint8, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(given, expected):
    assert features.bilateral(torch.ones(1, 3, 4, 5).to(given), 80, 13).dtype == expected


def test_bilateral_is_positions_then_colors():
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    f = features.bilateral(image, (80.0, 40.0), 13.0, spacing=2.0)
    positions = features.spatial((4, 5), (80.0, 40.0), spacing=2.0)
    assert torch.equal(f, torch.cat([positions.expand(2, -1, -1, -1), features.color(image, 13.0)], dim=1))


def test_an_empty_batch_is_fine():
    assert features.bilateral(torch.zeros(0, 3, 4, 5), 80, 13).shape == (0, 5, 4, 5)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_gradients_reach_thetas(shape):
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    theta_space = torch.full(shape, 3.0, dtype=torch.float64, requires_grad=True)
    theta_color = torch.tensor([13.0, 14.0, 15.0], dtype=torch.float64, requires_grad=True)
    spacing = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    arguments = (image.requires_grad_(), theta_space, theta_color, spacing)
    assert torch.autograd.gradcheck(features.bilateral, arguments)


def test_a_float32_theta_gets_its_gradient_from_float32_features():
    theta = torch.tensor(4.0, requires_grad=True)
    features.spatial((3,), theta).sum().backward()
    assert theta.grad.item() == -3 / 16  # d/dtheta (0 + 1 + 2) / theta


@pytest.mark.parametrize("theta", [3.0, (3.0, 4.0), "0-d", "1-d"])
def test_compiles_whole(theta):
    theta = {"0-d": torch.tensor(3.0), "1-d": torch.tensor([3.0, 4.0])}.get(theta, theta)
    compiled = torch.compile(features.bilateral, fullgraph=True, backend="aot_eager")
    for size in (4, 5), (6, 7):
        image = torch.rand(1, 3, *size)
        assert_close("compiled", compiled(image, theta, 13.0), features.bilateral(image, theta, 13.0))


def test_exports_with_dynamic_sizes():
    class Bilateral(torch.nn.Module):
        def forward(self, image):
            return features.bilateral(image, 80.0, 13.0)

    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    exported = torch.export.export(Bilateral(), (torch.rand(2, 3, 4, 5),), dynamic_shapes=(sizes,)).module()
    image = torch.rand(3, 3, 8, 9)
    assert_close("exported", exported(image), features.bilateral(image, 80.0, 13.0))


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, torch.tensor(0.0), torch.tensor([1.0, -1.0]), (1.0, 0)])
def test_thetas_must_be_above_zero(bad):
    image = torch.rand(1, 2, 4, 5)
    for name, call in {
        "theta": lambda: features.spatial((4, 5), bad),
        "spacing": lambda: features.spatial((4, 5), 1.0, spacing=bad),
        "theta_space": lambda: features.bilateral(image, bad, 13),
        "theta_color": lambda: features.bilateral(image, 80, bad),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number above 0"):
            call()


@pytest.mark.parametrize("bad", [(1.0,), (1.0, 2.0, 3.0), torch.ones(3), torch.ones(2, 2), np.ones(3)])
def test_thetas_come_alone_or_one_per_axis(bad):
    with pytest.raises(ValueError, match=r"^theta: .*one per axis \(2\)"):
        features.spatial((4, 5), bad)
    with pytest.raises(ValueError, match=r"^spacing: .*one per axis \(2\)"):
        features.spatial((4, 5), 1.0, spacing=bad)
    with pytest.raises(ValueError, match=r"^theta_color: .*one per channel \(4\)"):
        features.color(torch.rand(1, 4, 5), bad)


def test_shares_of_the_diagonal():
    assert features.spatial((30, 40), "16%").equal(features.spatial((30, 40), 8.0))
    assert features.spatial((30, 40), "2.5%", spacing=(2, 2)).equal(features.spatial((30, 40), 2.5, spacing=2.0))
    assert features.spatial((3, 4), "10%", spacing=(4, 2.25)).equal(features.spatial((3, 4), 1.5, spacing=(4, 2.25)))
    assert features.spatial((2, 3, 6), "50%").equal(features.spatial((2, 3, 6), 3.5))
    image = torch.randint(0, 256, (1, 3, 30, 40), dtype=torch.uint8)
    assert features.bilateral(image, "20%", 13).equal(features.bilateral(image, 10.0, 13))


@pytest.mark.parametrize("bad", ["16", "%", "sixteen%", "-3%", "0%", "nan%", "inf%", ""])
def test_what_is_no_share_of_the_diagonal(bad):
    with pytest.raises(ValueError, match="^theta: expected numbers above 0, or a share of the image's diagonal.*got '"):
        features.spatial((3, 4), bad)


@pytest.mark.parametrize("bad", [None, True, torch.tensor(3)])
def test_thetas_are_numbers(bad):
    with pytest.raises(TypeError, match="^theta: expected a finite number above 0"):
        features.spatial((4, 5), bad)


@pytest.mark.parametrize("bad", [4, (), (1, 2, 3, 4), "45", (0, 3)])
def test_size_is_one_to_three_numbers(bad):
    with pytest.raises(ValueError, match="^size: expected"):
        features.spatial(bad, 3.0)


def test_dtype_is_float32_or_float64():
    with pytest.raises(TypeError, match="^dtype: expected torch.float32 or torch.float64"):
        features.spatial((4, 5), 3.0, dtype=torch.float16)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.zeros((1, 3, 4, 5)), TypeError, "torch.from_numpy"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int32), TypeError, "uint8 .* or floating-point"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.bool), TypeError, "uint8 .* or floating-point"),
        (torch.zeros(3, 4), ValueError, "1, 2 or 3 spatial axes"),
        (torch.zeros(1, 3, 2, 2, 2, 2), ValueError, "1, 2 or 3 spatial axes"),
        (torch.zeros(1, 0, 4, 5), ValueError, "at least one channel"),
        (torch.full((1, 3, 4, 5), 200.0), ValueError, "got 200 to 200; pass .* image / 255"),
        (torch.full((1, 3, 4, 5), -1.0), ValueError, "from 0 to 1, got -1"),
        (torch.full((1, 3, 4, 5), math.nan), ValueError, "NaN"),
        (torch.full((1, 3, 4, 5), math.inf), ValueError, "infinite"),
    ],
)
def test_bad_images(bad, error, message):
    for call in (lambda: features.color(bad, 13), lambda: features.bilateral(bad, 80, 13)):
        with pytest.raises(error, match=f"^image: .*{message}"):
            call()


def test_resampled_images_may_overshoot():
    assert features.color(torch.tensor([[[-0.4, 1.4]]]), 255.0).tolist() == [
        [[pytest.approx(-0.4), pytest.approx(1.4)]]
    ]


def test_values_are_not_looked_at_while_compiling():
    compiled = torch.compile(features.color, fullgraph=True, backend="aot_eager")
    assert compiled(torch.full((1, 1, 3), 2.0), 255.0).tolist() == [[[2.0, 2.0, 2.0]]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: values of its tensors are looked at on request")
def test_values_on_a_gpu_are_looked_at_on_request(device):
    image = torch.full((1, 1, 3), 200.0, device=device)
    assert features.color(image, 1.0).max() == 51000
    with tc.check_values(True), pytest.raises(ValueError, match="^image"):
        features.color(image, 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_thetas_live_with_the_image_or_on_the_cpu(device):
    image = torch.ones(1, 1, 3)
    assert features.color(image.to(device), torch.tensor(255.0)).unique().tolist() == [1.0]
    with pytest.raises(ValueError, match="^theta_color: expected a tensor on cpu"):
        features.color(image, torch.tensor(1.0, device=device))

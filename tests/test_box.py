"""Box means in PyTorch: known answers, their dense matrix, derivatives, what they cost, what they lose, and errors."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from assertions import assert_close
from cases import dense_apply, dense_box, leaves, strided
from problems import BOXES, named
from tritoncrf.filters.box import box_sum
from tritoncrf.reference import box as reference

both_boxes = pytest.mark.parametrize("box", reference.BOXES)


# Known answers and the dense matrix -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", BOXES, ids=named)
def test_known_answers(problem, dtype):
    values, answer = problem.tensors(dtype)
    assert_close("mean", tc.box_mean(values, **problem.options), answer)


GEOMETRIES = {  # size, radius
    "signal": ((13,), 2),
    "signal-16": ((16,), 7),
    "signal-of-a-pixel": ((1,), 3),
    "image": ((5, 7), 1),
    "image-per-axis": ((8, 11), (1, 3)),
    "image-of-a-row": ((1, 9), 2),
    "image-of-a-column": ((9, 1), 2),
    "past-the-image": ((4, 6), 31),
    "past-one-axis": ((3, 17), 4),
    "volume": ((3, 4, 5), 1),
    "volume-per-axis": ((5, 2, 7), (2, 1, 3)),
}


@both_boxes
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_gradients_are_those_of_the_dense_matrix(geometry, dilation, box, nan_memory):
    size, radius = GEOMETRIES[geometry]
    radii = radius if isinstance(radius, tuple) else (radius,) * len(size)
    (x,) = leaves(torch.randn(2, 3, *size, dtype=torch.float64))
    y, matrix = tc.box_mean(x, radius, dilation, box), dense_box(size, radii, dilation, box)
    assert_close("mean", y.detach(), dense_apply(matrix, x.detach()))
    cotangent = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, cotangent)
    assert_close("gradient", found, dense_apply(matrix.mT, cotangent))
    assert_close("<m x, y>", (y * cotangent).sum(), (x * found).sum(), scale=(x.norm() * cotangent.norm()).item())


@pytest.mark.parametrize("width", range(1, 20))
def test_every_radius_of_a_row(width):
    x = torch.randn(1, 2, width, dtype=torch.float64)
    for r in range(1, width + 2):
        assert_close(f"radius {r}", tc.box_mean(x, r), dense_apply(dense_box((width,), (r,)), x))


@both_boxes
@pytest.mark.parametrize("dilation", [1, 2])
def test_derivatives_of_the_first_and_the_second_order(dilation, box):
    def apply(x):
        return tc.box_mean(x, (1, 2), dilation, box).square()  # linear alone has no second derivative

    (x,) = leaves(torch.randn(1, 2, 3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(apply, (x,))
    assert torch.autograd.gradgradcheck(apply, (x,))


# Forms of the input -----------------------------------------------------------------------------------------------


def test_a_box_past_the_image_is_the_mean_of_the_image():
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    whole = x.mean((2, 3), keepdim=True).expand_as(x)
    for radius in (7, 100, 10**9):
        assert_close(f"radius {radius}", tc.box_mean(x, radius), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    (x,) = leaves(torch.randn(2, 3, 9, 40).to(dtype))
    y = tc.box_mean(x, 15)
    assert y.dtype == dtype and torch.equal(y, tc.box_mean(x.float(), 15).to(dtype))
    (found,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert found.dtype == dtype


@both_boxes
def test_an_empty_batch(box):
    (x,) = leaves(torch.randn(0, 3, 5, 7))
    y = tc.box_mean(x, 2, box=box)
    assert y.shape == x.shape
    assert torch.autograd.grad(y, x, torch.randn_like(y))[0].shape == x.shape


def test_memory_order_does_not_matter():
    x, cotangent = torch.randn(2, 2, 3, 5, 7, dtype=torch.float64).unbind(0)

    def results(make):
        inputs = make(x).requires_grad_()
        y = tc.box_mean(inputs, (1, 3))
        return y.detach(), *torch.autograd.grad(y, inputs, make(cotangent))

    for name, a, b in zip(("mean", "gradient"), results(strided), results(torch.clone)):
        assert_close(name, a, b)


@pytest.mark.parametrize("size, radius", [((1, 1), 1), ((5, 7), 2)])
def test_the_input_is_left_as_it_was(size, radius):
    x = torch.randn(1, 2, *size)
    before = x.clone()
    tc.box_mean(x, radius).zero_()
    assert torch.equal(x, before)


# What is lost and what it costs -----------------------------------------------------------------------------------

LONG = 8192


def by_running_sums(x, radius):
    """The mean over whole boxes as it is usually computed, [..., n] -> [..., n - 2 r]."""
    total = torch.nn.functional.pad(x.cumsum(-1), (1, 0))
    return (total[..., 2 * radius + 1 :] - total[..., : -2 * radius - 1]) / (2 * radius + 1)


@pytest.mark.parametrize("radius", [3, 64, 200])
@pytest.mark.parametrize("at", [0, LONG - 1])
def test_a_huge_value_is_forgotten_where_no_box_has_it(at, radius):
    x = 0.5 + torch.rand(1, 1, LONG)
    x[..., at] = 1e6
    boxes = torch.arange(radius, LONG - radius)
    boxes = boxes[(boxes - at).abs() > radius]
    exact = tc.box_mean(x.double(), radius)[..., boxes]
    assert_close("mean", tc.box_mean(x, radius)[..., boxes], exact, rms=1e-6, worst=1e-6, dtype=torch.float32)
    if at == 0:  # this test sees what running sums lose
        lost = (by_running_sums(x, radius)[..., boxes - radius] - exact).abs().max() / exact.max()
        assert lost > 1e-5


@pytest.mark.parametrize("radius", [3, 64, 200])
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_a_long_row_keeps_float32s_accuracy(draw, radius):
    x = draw(1, 1, 1, LONG)
    exact = tc.box_mean(x.double(), radius)
    assert_close("mean", tc.box_mean(x, radius), exact, rms=1e-6, worst=1e-6, dtype=torch.float32)


class Additions(TorchDispatchMode):
    """How many numbers the additions inside gave back."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.add:
            self.count += result.numel()
        return result


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("radius", [1, 2, 3, 4, 7, 63, 64, 200])
def test_additions_grow_with_the_logarithm_of_the_box(radius, dilation):
    with Additions() as additions:
        reference.box_sum(torch.zeros(1, 1, LONG), (radius,), dilation)
    places = LONG + radius * dilation  # those before the image too
    assert additions.count <= 2 * math.floor(math.log2(2 * radius + 1)) * places


# Operators and compilers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("size, radii", [((7,), [2]), ((5, 6), [1, 3]), ((1, 1), [1, 1]), ((2, 3, 4), [1, 1, 1])])
def test_opcheck(size, radii, requires_grad):
    torch.library.opcheck(
        box_sum.registered, (torch.randn(2, 3, *size, requires_grad=requires_grad), radii, 1, "torch")
    )


def test_opcheck_of_an_input_in_any_memory_order():
    """The fake operator promises a contiguous result, whatever came in."""
    x = torch.randn(2, 3, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(box_sum.registered, (x, [1, 2], 2, "torch"))


@both_boxes
def test_compiles_whole_with_its_gradient(box, fresh_compiler):
    def apply(x):
        return tc.box_mean(x, 2, dilation=2, box=box)

    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    for size in (5, 6), (9, 4), (12, 13):
        (x,) = leaves(torch.randn(2, 3, *size))
        cotangent = torch.randn_like(x)
        found, expected = (torch.autograd.grad(f(x), x, cotangent) for f in (compiled, apply))
        assert_close("gradient", found[0], expected[0])
        assert_close("mean", compiled(x).detach(), apply(x).detach())


class Mean(torch.nn.Module):
    def __init__(self, box):
        super().__init__()
        self.box = box

    def forward(self, x):
        return tc.box_mean(x, (2, 3), box=self.box)


@both_boxes
def test_exports_with_dynamic_sizes(box):
    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    exported = torch.export.export(Mean(box), (torch.randn(2, 3, 6, 7),), dynamic_shapes=(sizes,)).module()
    for shape in (1, 3, 20, 4), (3, 3, 3, 40):
        x = torch.randn(shape)
        assert_close("mean", exported(x), Mean(box)(x))


# Bad input --------------------------------------------------------------------------------------------------------

X = torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": np.zeros((1, 2, 4, 5))}, TypeError, "^x: expected a floating.*ndarray.*torch.from_numpy"),
        ({"x": X.int()}, TypeError, "^x: expected a floating.*got a int32 tensor"),
        ({"x": X[0, 0]}, ValueError, r"^x: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"x": X[None, None]}, ValueError, r"^x: expected \[B, C, \*S\].*got shape \[1, 1, 1, 2, 4, 5\]"),
        ({"x": X[..., :0]}, ValueError, r"^x: expected at least one pixel.*\[1, 2, 4, 0\]"),
        ({"x": X + math.nan}, ValueError, "^x: expected finite values, got 40 NaN or infinite of 40"),
        ({"radius": 0}, ValueError, "^radius: expected an int of at least 1, got 0"),
        ({"radius": -1}, ValueError, "^radius: expected an int of at least 1, got -1"),
        ({"radius": 1.5}, TypeError, "^radius: expected an int of at least 1, got 1.5"),
        ({"radius": True}, TypeError, "^radius: expected an int of at least 1, got True"),
        ({"radius": (1, 0)}, ValueError, "^radius: expected an int of at least 1, got 0"),
        ({"radius": (1, 2.0)}, TypeError, "^radius: expected an int of at least 1, got 2.0"),
        ({"radius": (1, 2, 3)}, ValueError, r"^radius: expected one int .*or one per axis \(2\), got 3"),
        ({"radius": []}, ValueError, r"^radius: expected one int .*or one per axis \(2\), got 0"),
        ({"dilation": 0}, ValueError, "^dilation: expected an int of at least 1, got 0"),
        ({"dilation": 1.0}, TypeError, "^dilation: expected an int of at least 1, got 1.0"),
        ({"box": "const"}, ValueError, "^box: expected one of 'count', 'constant', got 'const'"),
        ({"box": None}, ValueError, "^box: expected one of 'count', 'constant', got None"),
        ({"backend": "cuda"}, ValueError, "^backend: expected one of 'auto', 'triton', 'torch', got 'cuda'"),
        ({"x": X.double(), "backend": "triton"}, ValueError, "^backend: (expected 'torch' or 'auto' for float64|'triton' needs Triton)"),
        ({"backend": "triton"}, ValueError, "^backend: 'triton' (runs on a GPU.*TRITON_INTERPRET=1|needs Triton)"),
    ],
)  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        tc.box_mean(**{"x": X, "radius": 1, **change})


def test_reaching_beyond_any_image_is_no_error():
    """Integers that no 64 bits hold: the mean of all pixels, or of none but itself."""
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64)
    assert_close("all", tc.box_mean(x, 10**30), x.mean((2, 3), keepdim=True).expand_as(x))
    assert_close("itself", tc.box_mean(x, 1, dilation=10**30), x)

"""The kernels of box sums and the branches of the guided filter's against the PyTorch reference in float64."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import interpreted, leaves
from filter_catalogue import GUIDED, assert_alike, assert_loop_within_budget, results
from tritoncrf.filters import Guided
from tritoncrf.filters.box import box_sum
from tritoncrf.filters.guided import statistics
from tritoncrf.kernels.common import record_launches

BOXES = {
    "pixel": dict(size=(1,), radii=[3]),
    "line": dict(size=(67,), radii=[2]),
    "image": dict(size=(5, 7), radii=[1, 2]),
    "tall": dict(size=(41, 3), radii=[9, 1]),
    "wide": dict(size=(3, 41), radii=[0, 17]),
    "more than the image": dict(size=(5, 7), radii=[20, 6]),
    "volume": dict(size=(4, 5, 6), radii=[1, 2, 3]),
    "dilated": dict(size=(5, 8), radii=[2, 1], dilation=3),
    "dilated volume": dict(size=(3, 2, 5), radii=[1, 1, 1], dilation=2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", interpreted(BOXES, "image", "tall", "dilated volume"))
def test_box_sums(name, dtype, device):
    size, radii, dilation = BOXES[name]["size"], BOXES[name]["radii"], BOXES[name].get("dilation", 1)
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    found = box_sum(x.to(device, dtype), radii, dilation, "triton")
    assert_close("P x", found, box_sum(x, radii, dilation, "torch"), dtype=dtype)


def test_a_box_mean_and_its_gradient(device):
    x, y = torch.randn(2, 1, 3, 9, 11, dtype=torch.float64).unbind()
    exact, found = leaves(x), leaves(x.to(device, torch.float32))
    for (v,), backend in (exact, "torch"), (found, "triton"):
        tc.box_mean(v, (2, 9), backend=backend).backward(y.to(v))
    assert_close("dL/dx", found[0].grad, exact[0].grad, dtype=torch.float32)


def test_sums_keep_the_precision_of_their_own_pixels(device):
    """A million at one end of a line, and what a running sum would make of the other."""
    x = torch.rand(1, 1, 300) * 1e-3
    x[..., 0] = 1e6
    found = box_sum(x.to(device), [4], 1, "triton")[..., 10:]
    assert_close("P x", found, box_sum(x.double(), [4], 1, "torch")[..., 10:], dtype=torch.float32, rms=1e-6)


CASES = {  # size, channels, changes
    "image": ((5, 6), 3, dict(radius=2)),
    "several tiles": ((19, 131), 3, dict(radius=3)),
    "several tiles, even": ((18, 66), 2, dict(radius=(2, 4))),
    "constant": ((5, 7), 2, dict(radius=2, box="constant")),
    "8 channels": ((4, 5), 8, dict(radius=1)),
    "more than the image": ((4, 5), 2, dict(radius=50)),
    "long": ((11, 13), 3, dict(radius=9)),
    "long and constant": ((19, 5), 3, dict(radius=(8, 2), box="constant")),
    "long line": ((70,), 1, dict(radius=31)),
    "volume": ((2, 3, 4), 3, dict(radius=1)),
    "volume, constant": ((3, 2, 4), 1, dict(radius=(2, 1, 1), box="constant")),
}


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", interpreted(CASES, "long line", "volume, constant"))
def test_values_and_gradients(name, classes, device):
    size, channels, options = CASES[name]
    inputs = GUIDED.inputs(size, channels, classes=classes)
    # Of eps the gradient of <x, W x>, whose terms do not cancel each other.
    for wanted, cotangent in (["values", "guide"], None), (["eps"], inputs["values"]):
        given = {"wanted": wanted, "cotangent": cotangent}
        found = results(GUIDED.apply("triton", **options), inputs, dtype=torch.float32, device=device, **given)
        assert_alike(found, results(GUIDED.apply(**options), inputs, **given), dtype=torch.float32)


@pytest.mark.parametrize("name", ["image", "8 channels", "long", "volume", "constant"])
def test_statistics(name, device):
    """A guide of 0..255 that is flat in places: covariances are small differences of large sums."""
    size, channels, options = CASES[name]
    guide = (20 * GUIDED.inputs(size, channels)["guide"]).clamp(-20, 20) + 128
    radii = [options["radius"]] * (guide.ndim - 2) if isinstance(options["radius"], int) else [*options["radius"]]
    arguments = radii, options.get("box", "count")
    eps = torch.tensor(1.0, dtype=torch.float64)
    exact = statistics(guide.float().double(), eps, None, *arguments, "torch", 0)
    found = statistics(guide.to(device, torch.float32), eps.to(device, torch.float32), None, *arguments, "triton", 0)
    for what, f, e in zip(("mu", "A"), found, exact, strict=True):
        assert_close(what, f, e, dtype=torch.float32, rms=1e-6, worst=1e-5)


@pytest.mark.parametrize("eps", [1e-2, 1e-12])
@pytest.mark.parametrize("radius", [2, 8])
def test_a_grey_picture_of_three_channels(radius, eps, device):
    """Sigma is singular but for eps: the kernels lose no more than PyTorch does."""
    grey = (255 * torch.rand(1, 1, 12, 19)).round()
    grey[..., :9] = 31.0
    results = [
        tc.guided_filter(grey.to(on, dtype), grey.to(on, dtype).expand(1, 3, -1, -1), radius, eps, backend=backend)
        for on, dtype, backend in (
            (device, torch.float32, "triton"),
            *(("cpu", t, "torch") for t in (torch.float64, torch.float32)),
        )
    ]
    assert_within_budget("W x", *results)


LOOPS = {
    "several tiles": dict(size=(19, 67), windows=[dict(radius=3)], weight="class", classes=5),
    "class": dict(size=(5, 6), windows=[dict(radius=2)], weight="class", unary="class", batch=2, shared=False),
    "long": dict(size=(9, 11), windows=[dict(radius=8)], weight="class"),
    "long, matrix": dict(size=(9, 3), windows=[dict(radius=8)], weight="matrix", classes=5),
    "two filters": dict(windows=[dict(radius=1), dict(radius=2, eps=0.1)], channels=(1, 3)),
}


@pytest.mark.parametrize("name", interpreted(LOOPS, "long, matrix"))
def test_the_loop_and_its_gradients(name, device):
    assert_loop_within_budget(GUIDED.loop(iterations=2, **LOOPS[name]), device, close=True)


def test_many_classes_and_windows_beyond_the_kernels(device):
    """Very many classes, and windows longer than a tile: right all the same."""
    for size, classes, radius in ((2, 3), 300, 1), ((1, 600), 2, 300):
        logits, guide = torch.randn(1, classes, *size), torch.rand(1, 1, *size)
        K = Guided(guide.to(device), radius, 0.3, backend="triton")
        found = tc.mean_field(logits.to(device), [K], [2.0], iterations=1)
        exact = tc.mean_field(logits.double(), [Guided(guide.double(), radius, 0.3)], [2.0], iterations=1)
        assert_close("Q", found, exact, dtype=torch.float32)


@pytest.mark.parametrize("radius", [1, 8])
def test_grids_stay_within_a_gpus_limits(radius, device):
    """65535 along all but the first axis: many classes of many images are many programs."""
    x, guide = torch.zeros(70, 2000, 1, 9, device=device), torch.zeros(1, 1, 1, 9, device=device)
    K = Guided(guide, radius, 0.3, backend="triton")
    with record_launches(run=False) as launches:
        K(x)
    assert launches and all(n < 65536 for launch in launches for n in launch.grid[1:])

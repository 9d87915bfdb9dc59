"""The box and guided filter kernels and their fused step against the PyTorch reference in float64, values and every
gradient."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import Setting, interpreted, leaves, random_features, strided
from tritoncrf.filters import Guided
from tritoncrf.filters.box import box_sum
from tritoncrf.filters.guided import statistics
from tritoncrf.kernels.common import record_launches

# Windows up to 7 pixels are summed tap by tap, longer ones along one axis after the other.
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


CASES = {
    "pixel": dict(size=(1,), radius=2, d=3),
    "line": dict(size=(37,), radius=3, d=1),
    "image": dict(size=(5, 6), radius=2, d=3),
    "batch": dict(size=(3, 4), radius=1, d=2, batch=2),
    "one guide for the batch": dict(size=(3, 4), radius=(1, 2), d=1, batch=2, shared=True),
    "constant": dict(size=(5, 7), radius=2, d=2, box="constant"),
    "21 classes": dict(size=(3, 4), radius=1, d=3, classes=21),
    "200 classes": dict(size=(1, 3), radius=1, d=1, classes=200),
    "8 channels": dict(size=(4, 5), radius=1, d=8, classes=1),
    "more than the image": dict(size=(4, 5), radius=50, d=2),
    "long": dict(size=(11, 13), radius=9, d=3, batch=2),
    "long and constant": dict(size=(19, 5), radius=(8, 2), d=3, box="constant"),
    "long line": dict(size=(70,), radius=31, d=1),
    "volume": dict(size=(2, 3, 4), radius=1, d=3, classes=2),
    "volume, constant": dict(size=(4, 3, 5), radius=(3, 1, 2), d=1, box="constant", classes=2),
    "fast": dict(size=(7, 8), radius=2, d=3, subsample=2),
    "empty batch": dict(size=(4, 5), radius=1, d=3, batch=0),
    "no classes": dict(size=(4, 5), radius=1, d=3, classes=0),
    "no classes, long": dict(size=(9, 2), radius=8, d=1, classes=0),
}


def problem(name):
    """Values, guide and a cotangent in float64, and the filter's arguments."""
    case = dict(CASES[name])
    size, batch = case.pop("size"), case.pop("batch", 1)
    guide = random_features(size, case.pop("d"), 1 if case.pop("shared", False) else batch)
    values = torch.rand(batch, case.pop("classes", 3), *size, dtype=torch.float64)
    return values, guide, torch.randn_like(values), case


def filtered(values, guide, eps, cotangent, options, backend):
    """W x, and the gradients of values, guide and eps."""
    inputs = leaves(values, guide, eps)
    y = Guided(inputs[1], eps=inputs[2], backend=backend, **options)(inputs[0])
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


@pytest.mark.parametrize("name", interpreted(CASES, "8 channels", "long line", "volume, constant", "fast"))
def test_values_and_gradients(name, device):
    values, guide, cotangent, options = problem(name)
    tensors = values, guide, torch.tensor(0.3, dtype=torch.float64), cotangent
    exact = filtered(*tensors, options, "torch")
    found = filtered(*(t.to(device, torch.float32) for t in tensors), options, "triton")
    for what, f, e in zip(("W x", "values"), found, exact):
        assert_close(what, f, e, dtype=torch.float32)
    # A guide of one pixel has no gradient; without it errors are relative to the cotangent.
    assert_close("guide", found[2], exact[2], dtype=torch.float32, scale=1.0 if name == "pixel" else None)


@pytest.mark.parametrize("name", ["image", "constant", "long", "volume", "fast"])
def test_the_gradient_of_eps(name, device):
    """Of <x, W x>, whose terms do not cancel each other."""
    values, guide, _, options = problem(name)
    tensors = values, guide, torch.tensor(0.3, dtype=torch.float64), values
    exact = filtered(*tensors, options, "torch")[3]
    found = filtered(*(t.to(device, torch.float32) for t in tensors), options, "triton")[3]
    assert_close("eps", found, exact, dtype=torch.float32)


@pytest.mark.parametrize("name", ["image", "8 channels", "long", "volume", "constant"])
def test_statistics(name, device):
    """A guide of 0..255 that is flat in places: covariances are small differences of large sums."""
    _, guide, _, options = problem(name)
    guide = (20 * guide).clamp(-20, 20) + 128
    radii = [options["radius"]] * (guide.ndim - 2) if isinstance(options["radius"], int) else [*options["radius"]]
    arguments = radii, options.get("box", "count")
    eps = torch.tensor(1.0, dtype=torch.float64)
    exact = statistics(guide.float().double(), eps, *arguments, "torch")
    found = statistics(guide.to(device, torch.float32), eps.to(device, torch.float32), *arguments, "triton")
    for what, f, e in zip(("mu", "A"), found, exact, strict=True):
        assert_close(what, f, e, dtype=torch.float32, rms=1e-6, worst=1e-5)


LOOPS = {
    "scalar": dict(size=(5, 6), windows=[dict(radius=1, eps=0.3)]),
    "class": dict(size=(5, 6), windows=[dict(radius=2, eps=0.3)], weight="class", unary="class", batch=2, shared=False),
    "matrix": dict(size=(4, 5), windows=[dict(radius=1, eps=0.3)], weight="matrix", compatibility=True),
    "log_softmax": dict(size=(4, 5), windows=[dict(radius=1, eps=0.3)], initial="log_softmax", weight="class"),
    "one class": dict(size=(4, 5), windows=[dict(radius=1, eps=0.3)], classes=1),
    "long": dict(size=(9, 11), windows=[dict(radius=8, eps=0.3)], weight="class"),
    "long, matrix": dict(size=(9, 3), windows=[dict(radius=8, eps=0.3)], weight="matrix", classes=5),
    "volume": dict(size=(3, 2, 4), windows=[dict(radius=1, eps=0.3)], classes=2),
    "two filters": dict(size=(4, 5), windows=[dict(radius=1, eps=0.3), dict(radius=2, eps=0.1)], channels=(1, 3)),
}


@pytest.mark.parametrize("name", interpreted(LOOPS, "class", "matrix", "long", "long, matrix"))
def test_the_loop_and_its_gradients(name, device):
    options = {"channels": (3,), **LOOPS[name]}
    case = Setting(kind=Guided, **options)
    exact = case.gradients(case.run)

    found = case.gradients(lambda *x: case.run(*x, backend="triton"), dtype=torch.float32, device=device)
    for what, f, e in zip(("S", *case.names), found, exact, strict=True):
        nothing = name == "one class" and what == "features[0]"  # whatever the guide, the probability is 1
        assert_close(what, f, e, dtype=torch.float32, scale=1.0 if nothing else None)


@pytest.mark.parametrize("through_softmax", [True, False])
@pytest.mark.parametrize("filtered", [True, False])
def test_a_step_back_is_the_composed_one(filtered, through_softmax, device):
    """Each of the step's outputs by itself: where the messages themselves are asked for, they go elsewhere."""
    guide, mu = random_features((4, 5), 3), torch.rand(4, 4, dtype=torch.float64)
    q, g = torch.randn(2, 1, 4, 4, 5, dtype=torch.float64).unbind()
    q = q.softmax(1)
    found = []
    for dtype, where, backend in (torch.float64, "cpu", "torch"), (torch.float32, device, "triton"):
        K = Guided(guide.to(where, dtype), 1, 0.3, backend=backend)
        unary = torch.zeros_like(q).to(where, dtype)
        plan, mixing = K.resolved(unary), [mu.to(where, dtype)]
        arguments = [K.operator(unary)], mixing, unary, torch.ones((), dtype=dtype, device=where)
        step = plan.step([plan], mixing, unary)(*arguments)
        gradient, back = step.backward(q.to(where, dtype), g.to(where, dtype), through_softmax, filtered)
        found.append([gradient, *(back or [])])
    for what, e, f in zip(("dS", "B"), *found):
        assert_close(what, f, e, dtype=torch.float32)
    assert len(found[1]) == 1 + filtered


def test_any_memory_order(device):
    values, guide, _, options = problem("image")
    expected = Guided(guide, eps=0.3, **options)(values)
    turned = [strided(t.to(device, torch.float32)) for t in (values, guide)]
    found = Guided(turned[1], eps=0.3, backend="triton", **options)(turned[0])
    assert_close("W x", found, expected, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    values, guide, _, options = problem("image")
    values = values.to(dtype)
    found = Guided(guide.to(device, torch.float32), eps=0.3, backend="triton", **options)(values.to(device))
    assert_close("W x", found, Guided(guide, eps=0.3, **options)(values.double()), dtype=dtype)


@pytest.mark.parametrize("size, radius, launches", [
    ((5, 6), 3, 2), ((5, 6), 4, 2), ((5, 70), 64, 4), ((70, 5), (64, 1), 4), ((40,), 31, 4), ((3, 4, 5), 1, 6),
])  # fmt: skip
def test_launches_per_iteration(size, radius, launches, device):
    """Whatever the radius; forward and backward."""
    logits = torch.randn(1, 3, *size, device=device, requires_grad=True)
    counts = []
    for iterations in 1, 3:
        K = Guided(torch.rand(1, 3, *size, device=device), radius, 0.3, backend="triton")
        with record_launches(run=False) as forward:
            scores = tc.mean_field(logits, [K], [2.0], iterations=iterations, output="logits")
        with record_launches(run=False) as backward:
            torch.autograd.grad(scores, logits, torch.ones_like(scores))
        counts.append((len(forward), len(backward)))
    assert [b - a for a, b in zip(*counts)] == [2 * launches] * 2


def test_beyond_the_kernels_it_composes(device):
    """More classes than a step holds, windows longer than a tile, several filters: right all the same."""
    for size, classes, radius in ((2, 3), 300, 1), ((1, 600), 2, 300):
        logits, guide = torch.randn(1, classes, *size), torch.rand(1, 1, *size)
        K = Guided(guide.to(device), radius, 0.3, backend="triton")
        found = tc.mean_field(logits.to(device), [K], [2.0], iterations=1)
        exact = tc.mean_field(logits.double(), [Guided(guide.double(), radius, 0.3)], [2.0], iterations=1)
        assert_close("Q", found, exact, dtype=torch.float32)


def test_the_same_bits_every_time(device):
    values, guide, cotangent, options = problem("image")
    tensors = [t.to(device, torch.float32) for t in (values, guide, torch.tensor(0.3), cotangent)]
    first, second = (filtered(*tensors, options, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("radius", [1, 8])
def test_grids_stay_within_a_gpus_limits(radius, device):
    """65535 along all but the first axis: many classes of many images are many programs."""
    x, guide = torch.zeros(70, 2000, 1, 9, device=device), torch.zeros(1, 1, 1, 9, device=device)
    K = Guided(guide, radius, 0.3, backend="triton")
    with record_launches(run=False) as launches:
        K(x)
    assert launches and all(n < 65536 for launch in launches for n in launch.grid[1:])

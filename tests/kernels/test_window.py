"""The window kernels and their fused steps against the PyTorch reference in float64, values and every gradient."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close, assert_within_budget
from cases import NORMALIZATIONS, Setting, interpreted, leaves, random_features, random_logits, strided
from problems import FILTERS, LOOPS, named
from tritoncrf.filters.base import encode
from tritoncrf.kernels import window as kernels
from tritoncrf.kernels.common import record_launches
from tritoncrf.mean_field import iterate
from tritoncrf.reference import window as reference

Window = tc.filters.Window


def case(size, k, *, dilation=1, classes=3, channels=2, batch=1, shared=True, include_self=True):
    """(x, y, features, radii, dilation, include_self) of a window of k a side; size [Z, Y, X]."""
    features = random_features(size, channels, 1 if shared else batch)
    x, y = torch.randn(2, batch, classes, *size, dtype=torch.float64).unbind(0)
    radii = tuple(k // 2 if n > 1 else 0 for n in size)
    return x, y, features, radii, dilation, include_self


# A tile is 4 x 32 pixels, 128 of a signal; from 65 numbers per pixel on it has fewer rows, from 257 on 16 columns.
CASES = {
    "pixel": dict(size=(1, 1, 1), k=3),
    "signal": dict(size=(1, 1, 129), k=5, channels=1),
    "signal-dilated": dict(size=(1, 1, 31), k=7, dilation=3, classes=1, batch=2, shared=False),
    "signal-inside": dict(size=(1, 1, 260), k=3, classes=2, channels=5),
    "row": dict(size=(1, 1, 37), k=3, classes=21, channels=9),
    "column": dict(size=(1, 37, 1), k=3, classes=2),
    "tile": dict(size=(1, 4, 32), k=3, channels=5, batch=2),
    "tile-less-one": dict(size=(1, 3, 31), k=5, classes=17, include_self=False),
    "tile-and-one": dict(size=(1, 5, 33), k=3, classes=2, channels=1, batch=2, shared=False),
    "inside": dict(size=(1, 8, 40), k=3, classes=3, channels=2),
    "inside-not-self": dict(size=(1, 7, 36), k=3, classes=5, channels=5, include_self=False),
    "inside-shared": dict(size=(1, 6, 34), k=3, classes=2, channels=3, batch=2),
    "dilated": dict(size=(1, 8, 11), k=5, dilation=2, classes=21, channels=5),
    "dilated-3-not-self": dict(size=(1, 11, 17), k=3, dilation=3, channels=9, include_self=False),
    "window-of-one": dict(size=(1, 5, 7), k=1),
    "window-of-one-not-self": dict(size=(1, 5, 7), k=1, include_self=False),
    "window-past-the-image": dict(size=(1, 4, 6), k=9, classes=2),
    "volume": dict(size=(2, 5, 7), k=3, classes=5, channels=3),
    "volume-dilated": dict(size=(3, 4, 6), k=3, dilation=2, include_self=False),
    "classes-33": dict(size=(1, 5, 7), k=3, classes=33, channels=17),
    "classes-64": dict(size=(1, 4, 5), k=3, classes=64, channels=1),
    "classes-200": dict(size=(1, 3, 18), k=3, classes=200, channels=5),
    "classes-256": dict(size=(1, 3, 5), k=3, classes=256, channels=9),
    "classes-300": dict(size=(1, 3, 5), k=3, classes=300, batch=2),
    "features-17": dict(size=(1, 5, 7), k=3, classes=21, channels=17, batch=2),
    "empty-batch": dict(size=(1, 5, 7), k=3, batch=0),
}


@pytest.mark.parametrize("name", interpreted(CASES, "tile-less-one", "inside-not-self", "volume", "classes-300"))
def test_window_sum_and_feature_gradient(name, device):
    x, y, features, *window, include_self = case(**CASES[name])
    x32, y32, f32 = (t.to(device, torch.float32) for t in (x, y, features))
    found = kernels.window_sum(x32, f32, *window, include_self)
    assert_close("K x", found, reference.window_sum(x, features, *window, include_self), dtype=torch.float32)
    found = kernels.window_feature_gradient(x32, y32, f32, *window)
    expected = reference.window_feature_gradient(x, y, features, *window)
    scale = None if expected.any() else 1.0
    assert_close("features' gradient", found, expected, dtype=torch.float32, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("size, k", [
    ((1, 1, 300), 31), ((1, 15, 17), 5), ((1, 15, 17), 15), ((1, 15, 17), 31), ((4, 5, 6), 5), ((4, 5, 6), 7),
    ((3, 6, 36), 3),
])  # fmt: skip
def test_wide_windows_and_large_volumes(size, k, device):
    x, y, features, *window, include_self = case(size, k)
    x32, y32, f32 = (t.to(device, torch.float32) for t in (x, y, features))
    found = kernels.window_sum(x32, f32, *window, include_self)
    assert_close("K x", found, reference.window_sum(x, features, *window, include_self), dtype=torch.float32)
    found = kernels.window_feature_gradient(x32, y32, f32, *window)
    expected = reference.window_feature_gradient(x, y, features, *window)
    assert_close("features' gradient", found, expected, dtype=torch.float32)


@pytest.mark.parametrize("make", [strided, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1)],
                         ids=["strided", "classes-last"])  # fmt: skip
def test_memory_order_does_not_matter(make, device):
    x, y, features, *window, include_self = (
        t.to(device, torch.float32) if isinstance(t, torch.Tensor) else t for t in case((1, 5, 7), 3, batch=2)
    )
    expected = kernels.window_sum(x, features, *window, include_self)
    assert torch.equal(kernels.window_sum(make(x), make(features), *window, include_self), expected)
    expected = kernels.window_feature_gradient(x, y, features, *window)
    assert torch.equal(kernels.window_feature_gradient(make(x), make(y), make(features), *window), expected)


# Known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", FILTERS, ids=named)
def test_known_answers_of_the_filter(problem, device):
    features, values, answer = problem.tensors(torch.float32, device)
    found = Window(features, **problem.window, backend="triton")(values)
    assert_close("K x", found, answer, scale=None if answer.any() else 1.0)


@pytest.mark.parametrize("problem", LOOPS, ids=named)
def test_known_answers_of_the_loop(problem, device):
    features, logits, answer = problem.tensors(torch.float32, device)
    filters = [Window(features, **problem.window, backend="triton")]
    assert_close("Q", tc.mean_field(logits, filters, **problem.arguments(torch.float32, device)), answer)


# The filter -------------------------------------------------------------------------------------------------------

FILTER_SIZES = {"signal": (11,), "image": (4, 7), "volume": (2, 3, 4)}


@pytest.mark.parametrize("axes, blur, normalization", [
    *(("image", 1, n) for n in NORMALIZATIONS), ("image", 2, "none"), ("image", 3, "symmetric"), ("signal", 1, "before"),
    ("signal", 3, "after"), ("volume", 1, "symmetric"), ("volume", 2, "after"),
])  # fmt: skip
def test_the_filter_and_its_gradients(axes, blur, normalization, device):
    size = FILTER_SIZES[axes]
    x, f, cotangent = torch.randn(2, 3, *size, dtype=torch.float64), random_features(size), torch.randn(2, 3, *size)

    def outcome(dtype, backend, device="cpu"):
        inputs = leaves(x.to(device, dtype), f.to(device, dtype))
        y = Window(inputs[1], 3, blur=blur, normalization=normalization, backend=backend)(inputs[0])
        return y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(device, dtype))

    found, expected = outcome(torch.float32, "triton", device), outcome(torch.float64, "torch")
    for name, a, b in zip(("K x", "values' gradient", "features' gradient"), found, expected, strict=True):
        assert_close(name, a, b, dtype=torch.float32)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_and_never_summed_in(dtype, device):
    f, x = random_features((5, 7), dtype=torch.float32).to(device), random_logits((5, 7)).to(device, dtype)
    window = Window(f, 3, normalization="after", backend="triton")
    assert torch.equal(window(x), window(x.float()).to(dtype))
    q = tc.mean_field(x, [window], [2.0], iterations=2)
    assert torch.equal(q, tc.mean_field(x.float(), [window], [2.0], iterations=2).to(dtype))


# The loop ---------------------------------------------------------------------------------------------------------


def windows(*changes, k=3, **shared):
    return [{"window_size": k, **shared, **change} for change in changes]


SELF, NOT_SELF, SYMMETRIC, AFTER, BEFORE = (
    {}, {"include_self": False}, {"normalization": "symmetric"}, {"normalization": "after"}, {"normalization": "before"},
)  # fmt: skip

SETTINGS = {
    "scalar": dict(size=(4, 7), windows=windows(SELF)),
    "class": dict(size=(4, 33), windows=windows(SYMMETRIC), classes=21, weight="class", channels=(5,)),
    "matrix": dict(size=(3, 31), windows=windows(AFTER), classes=17, weight="matrix"),
    "matrix-not-self": dict(size=(4, 7), windows=windows(NOT_SELF), classes=2, weight="matrix", unary="class"),
    "costs": dict(size=(4, 32), windows=windows(BEFORE), compatibility=True),
    "costs-class": dict(size=(4, 7), windows=windows(SYMMETRIC, NOT_SELF), weight="class", compatibility=True, classes=21),
    "two-scalars-inside": dict(size=(8, 40), windows=windows(SELF, SELF), classes=3, channels=(2, 5)),
    "two-scalars-mixed": dict(size=(5, 9), windows=windows(SYMMETRIC, NOT_SELF), channels=(3, 1), batch=2),
    "two-classes-mixed": dict(size=(4, 9), windows=windows(BEFORE, AFTER), weight="class", unary="class", classes=5),
    "two-not-self": dict(size=(4, 9), windows=windows({**SYMMETRIC, **NOT_SELF}, NOT_SELF), weight="class"),
    "two-forms-of-weight": dict(size=(4, 7), windows=windows(SELF, AFTER), weight=["scalar", "matrix"], classes=4),
    "two-class-scalar": dict(size=(4, 7), windows=windows(SELF, BEFORE), weight=["class", "scalar"], classes=4),
    "logarithms": dict(size=(4, 7), windows=windows(SELF), initial="log_softmax", strength=0.1),
    "logarithms-matrix": dict(size=(4, 7), windows=windows(SYMMETRIC), initial="log_softmax", weight="matrix"),
    "one-iteration": dict(size=(4, 7), windows=windows(SELF, SYMMETRIC), weight="class", iterations=1),
    "four-iterations": dict(size=(4, 7), windows=windows(SYMMETRIC), iterations=4),
    "signal": dict(size=(37,), windows=windows(SYMMETRIC, SELF, k=5, dilation=2), weight="class"),
    "volume": dict(size=(2, 3, 5), windows=windows(SELF, AFTER), weight="class", classes=2, strength=0.3),
    "dilated": dict(size=(4, 11), windows=windows(AFTER, k=3, dilation=3)),
    "batch": dict(size=(4, 7), windows=windows(SYMMETRIC, AFTER), batch=3, weight="class"),
    "batch-own-features": dict(size=(4, 7), windows=windows(SYMMETRIC, AFTER), batch=2, shared=False, weight="class"),
    "empty-batch": dict(size=(4, 7), windows=windows(SYMMETRIC), batch=0, weight="class"),
    "one-label": dict(size=(4, 7), windows=windows(SELF), classes=1, weight="class"),
    "one-label-matrix": dict(size=(4, 7), windows=windows(AFTER), classes=1, weight="matrix", iterations=1),
    "classes-32-matrix": dict(size=(4, 5), windows=windows(AFTER), classes=32, weight="matrix", strength=0.3),
    "classes-33-matrix-composed": dict(size=(4, 5), windows=windows(AFTER), classes=33, weight="matrix", strength=0.3),
    "classes-64": dict(size=(4, 5), windows=windows(SELF, SELF), classes=64),
    "classes-200": dict(size=(3, 5), windows=windows(SYMMETRIC), classes=200, weight="class"),
    "classes-256": dict(size=(3, 5), windows=windows(SELF), classes=256, weight="class"),
    "classes-300-composed": dict(size=(3, 5), windows=windows(SELF), classes=300),
    "features-17": dict(size=(4, 5), windows=windows(SELF, SELF), channels=(17, 9)),
    "three-filters-composed": dict(size=(4, 5), windows=windows(SELF, AFTER, NOT_SELF), channels=(1, 2, 3), weight="class"),
    "different-windows-composed": dict(
        size=(4, 7), windows=[{"window_size": 3}, {"window_size": 5, "blur": 2}, {"window_size": 3, "dilation": 2}],
        channels=(1, 2, 3), weight=["scalar", "class", "matrix"],
    ),
}  # fmt: skip

SETTINGS |= {
    "blur-signal-2": dict(size=(11,), windows=windows(SELF, blur=2)),
    "blur-signal-3-two": dict(size=(11,), windows=windows(SYMMETRIC, SELF, blur=3), weight="class"),
    "blur-image-2": dict(size=(9, 10), windows=windows(SELF, SELF, blur=2), channels=(2, 5)),
    "blur-image-2-even": dict(size=(8, 12), windows=windows(SYMMETRIC, blur=2), weight="class"),
    "blur-image-3": dict(size=(7, 10), windows=windows(AFTER, blur=3), classes=5),
    "blur-image-3-batch": dict(size=(7, 10), windows=windows(SYMMETRIC, BEFORE, blur=3), batch=2, shared=False),
    "blur-image-4": dict(size=(13, 6), windows=windows(BEFORE, blur=4), weight="class", unary="class"),
    "blur-image-4-two": dict(size=(11, 13), windows=windows(BEFORE, AFTER, blur=4), weight="class", classes=21),
    "blur-image-of-many-blocks": dict(size=(13, 17), windows=windows(SYMMETRIC, AFTER, blur=2), classes=2),
    "blur-image-smaller-than-a-block": dict(size=(3, 2), windows=windows(SELF, blur=4)),
    "blur-image-of-a-row": dict(size=(1, 9), windows=windows(SELF, blur=2)),
    "blur-not-self-dilated": dict(size=(11, 12), windows=windows(NOT_SELF, NOT_SELF, blur=2, dilation=2), weight="class"),
    "blur-scalar-class": dict(size=(7, 9), windows=windows(SELF, SELF, blur=2), weight=["scalar", "class"]),
    "blur-class-costs-composed": dict(size=(7, 9), windows=windows(SELF, blur=2), weight="class", compatibility=True),
    "blur-matrix-composed": dict(size=(7, 9), windows=windows(SYMMETRIC, blur=2), weight="matrix"),
    "blur-self-mixed-composed": dict(size=(7, 9), windows=windows(SELF, NOT_SELF, blur=2)),
    "blur-volume-composed": dict(size=(3, 3, 4), windows=windows(SELF, AFTER, blur=2), weight="class"),
    "blur-logarithms": dict(size=(7, 9), windows=windows(AFTER, blur=2), initial="log_softmax"),
    "blur-one-iteration": dict(size=(7, 9), windows=windows(SELF, AFTER, blur=2), iterations=1, weight="class"),
    "blur-four-iterations": dict(size=(7, 9), windows=windows(AFTER, blur=2), iterations=4),
    "blur-one-label": dict(size=(7, 9), windows=windows(AFTER, blur=2), classes=1, weight="class"),
    "blur-classes-300": dict(size=(3, 4), windows=windows(AFTER, blur=2), classes=300, weight="class"),
    "blur-batch-shared": dict(size=(7, 9), windows=windows(SYMMETRIC, SELF, blur=2), batch=2, channels=(1, 4)),
    "blur-empty-batch": dict(size=(7, 9), windows=windows(SYMMETRIC, blur=2), batch=0),
}  # fmt: skip


def by_triton(setting):
    return lambda *inputs: setting.run(*inputs, backend="triton")


ENOUGH = 16  # numbers to estimate PyTorch's error from: of fewer it can be next to nothing by chance


def check_loop(options, device, make=lambda x: x):
    setting = Setting(**options)
    found = setting.gradients(by_triton(setting), dtype=torch.float32, device=device, make=make)
    exact = setting.gradients(setting.run)
    plain = setting.gradients(setting.run, dtype=torch.float32)
    for name, a, b, c in zip(("scores", *setting.names), found, exact, plain, strict=True):
        if a.numel() < ENOUGH:
            # A sum over all pixels rounds as its terms do, however much of them cancels.
            scale = max(b.norm().item(), setting.cotangent.norm().item())
            assert_close(name, a, b, dtype=torch.float32, scale=scale)
        else:
            assert_within_budget(name, a, b, c)


@pytest.mark.parametrize("name", interpreted(
    SETTINGS, "scalar", "matrix-not-self", "costs-class", "two-scalars-mixed", "two-classes-mixed", "logarithms-matrix",
    "blur-signal-3-two", "blur-image-3-batch", "blur-one-iteration",
))  # fmt: skip
def test_the_loop_and_every_gradient(name, device):
    check_loop(SETTINGS[name], device)


@pytest.mark.parametrize("name", ["two-forms-of-weight", "batch-own-features", "blur-image-3-batch"])
def test_the_loop_takes_any_memory_order(name, device):
    check_loop(SETTINGS[name], device, strided)


ONE_STEP = [
    "class", "matrix", "costs-class", "two-scalars-inside", "two-classes-mixed",
    "signal", "classes-64", "blur-signal-3-two", "blur-image-2-even", "blur-image-4-two",
    "blur-matrix-composed",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_from_the_same_q_keeps_float32s_accuracy(name, device):
    setting = Setting(**{**SETTINGS[name], "iterations": 1})
    found = setting.run(*(x.to(device, torch.float32) for x in setting.inputs), backend="triton")
    assert_close("scores", found, setting.run(*setting.inputs), dtype=torch.float32)


def states(setting, device):
    """Q_0 .. Q_{T-1}: what the kernels' own softmax wrote."""
    logits, features, options = setting.unpack([x.to(device, torch.float32) for x in setting.inputs])
    filters = [Window(f, **w, backend="triton") for f, w in zip(features, setting.windows)]
    plans, tensors = encode([f.resolved(logits) for f in filters]), [t for f in filters for t in f.tensors]
    return iterate(logits, options["unary_weight"], options["weights"], tensors, plans, options["iterations"],
                   options["initial"], True)[1:]  # fmt: skip


@pytest.mark.parametrize("blur", [1, 2])
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 33, 64, 256])
def test_the_kernels_softmax_gives_distributions(classes, blur, device):
    setting = Setting((3, 4), windows(AFTER, blur=blur), classes=classes, weight="class")
    setting.logits[..., :2] *= 1e4
    for t, q in enumerate(states(setting, device)):
        assert_close(f"sum of Q_{t}", q.sum(1), torch.ones_like(q[:, 0]))
        assert q.min() >= 0


def test_certain_scores_stay_finite(device):
    labels = torch.randint(0, 4, (1, 1, 5, 6))
    logits = torch.full((1, 4, 5, 6), -1e4).scatter_(1, labels, 1e4).to(device).requires_grad_()
    f = random_features((5, 6), dtype=torch.float32).to(device)
    for blur in (1, 2):
        q = tc.mean_field(logits, [Window(f, 3, blur=blur, backend="triton")], [3.0])
        assert torch.equal(q.argmax(1, keepdim=True).cpu(), labels)
        (gradient,) = torch.autograd.grad(q, logits, torch.randn_like(q))
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["two-classes-mixed", "matrix", "blur-image-2"])
def test_the_same_bits_twice(name, device):
    setting = Setting(**SETTINGS[name])
    first, second = (setting.gradients(by_triton(setting), dtype=torch.float32, device=device) for _ in range(2))
    for what, a, b in zip(("scores", *setting.names), first, second, strict=True):
        assert torch.equal(a, b), what


# Launches ---------------------------------------------------------------------------------------------------------


def launches(options, wanted: str, device) -> tuple[int, int]:
    """Launches of one more iteration: forward, backward. Set-up is in both counts that are subtracted.

    Counting needs no launch to run."""
    counts = []
    for iterations in (3, 2):
        setting = Setting(**{**options, "iterations": iterations})
        inputs = [x.to(device, torch.float32) for x in setting.inputs]
        inputs = [x.requires_grad_(wanted == "everything" or i == 0) for i, x in enumerate(inputs)]
        with record_launches(run=False) as forward:
            scores = setting.run(*inputs, backend="triton")
        with record_launches(run=False) as backward:
            torch.autograd.grad(scores, [x for x in inputs if x.requires_grad], torch.randn_like(scores))
        counts.append((len(forward), len(backward)))
    return counts[0][0] - counts[1][0], counts[0][1] - counts[1][1]


@pytest.mark.parametrize(
    "name, forward, backward, of_features",
    [
        ("scalar", 1, 1, 1),
        ("matrix", 1, 1, 1),
        ("costs-class", 1, 1, 2),
        ("two-scalars-mixed", 1, 1, 2),
        ("two-classes-mixed", 1, 1, 2),
        ("volume", 1, 1, 2),
        ("signal", 1, 1, 2),
        ("classes-256", 1, 1, 1),
        ("classes-33-matrix-composed", 1, 1, 1),
        ("different-windows-composed", 3, 3, 3),
        ("blur-image-2", 2, 3, 2),
        ("blur-signal-3-two", 2, 3, 2),
        ("blur-image-4", 2, 3, 1),
        ("blur-volume-composed", 2, 2, 2),
    ],
)
def test_launches_per_iteration(name, forward, backward, of_features, device):
    """One more launch for the features of each filter; the scales of a normalisation filter once more, composed."""
    assert launches(SETTINGS[name], "logits", device) == (forward, backward)
    scaled = sum({"none": 0, "symmetric": 2}.get(w.get("normalization", "none"), 1) for w in SETTINGS[name]["windows"])
    assert launches(SETTINGS[name], "everything", device) == (forward, backward + of_features + scaled)

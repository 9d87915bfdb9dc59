"""The window kernels and the branches of their fused steps against PyTorch in float64, values and every gradient."""

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import Setting, interpreted, random_features, random_logits, strided
from filter_catalogue import assert_loop_within_budget, launches
from tritoncrf.kernels import window as kernels
from tritoncrf.kernels.common import record_launches
from tritoncrf.reference import window as reference

Window = tc.filters.Window


def case(size, k, *, dilation=1, classes=3, channels=2, batch=1, shared=True, include_self=True):
    """(x, y, features, radii, dilation, include_self) of a window of k a side; size [Z, Y, X]."""
    features = random_features(size, channels, 1 if shared else batch)
    x, y = torch.randn(2, batch, classes, *size, dtype=torch.float64).unbind(0)
    radii = tuple(k // 2 if n > 1 else 0 for n in size)
    return x, y, features, radii, dilation, include_self


# Of images with few classes and features: a tile is 8 x 64 pixels, of more 4 x 64, and a window's row comes in parts
# from k = 15 on. Else a tile is 4 x 32 pixels, 128 of a signal; from 65 numbers per pixel on it has fewer rows, from
# 257 on 16 columns.
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
    "dilated-past-the-image": dict(size=(1, 5, 7), k=5, dilation=10**10, channels=5),
    "volume-dilated-past-the-image": dict(size=(2, 3, 5), k=3, dilation=2**31 - 1, include_self=False),
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
    "wide-tile": dict(size=(1, 8, 64), k=3, classes=2),
    "wide-tile-less-one": dict(size=(1, 7, 63), k=5, classes=1, batch=2, shared=False),
    "wide-tile-and-one": dict(size=(1, 9, 65), k=3, classes=7, channels=3),
    "wide-tiles-by-rows": dict(size=(1, 9, 65), k=3, classes=36, channels=3),
    "row-in-parts": dict(size=(1, 3, 9), k=15, classes=3),
    "row-in-parts-not-self": dict(size=(1, 12, 5), k=21, include_self=False),
    "dilated-2": dict(size=(1, 19, 131), k=3, dilation=2, classes=2, batch=2, shared=False),
    "dilated-past-9": dict(size=(1, 11, 12), k=3, dilation=9),
    "channels-many": dict(size=(1, 5, 7), k=3, classes=2, channels=20),
}


@pytest.mark.parametrize("name", interpreted(CASES, "tile-less-one", "inside-not-self", "volume", "classes-33"))
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


# The loop ---------------------------------------------------------------------------------------------------------


def windows(*changes, k=3, **shared):
    return [{"window_size": k, **shared, **change} for change in changes]


SELF, NOT_SELF, SYMMETRIC, AFTER, BEFORE = (
    {}, {"include_self": False}, {"normalization": "symmetric"}, {"normalization": "after"}, {"normalization": "before"},
)  # fmt: skip

SETTINGS = {
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
    "four-iterations": dict(size=(4, 7), windows=windows(SYMMETRIC), iterations=4),
    "volume": dict(size=(2, 3, 5), windows=windows(SELF, AFTER), weight="class", classes=2, strength=0.3),
    "dilated": dict(size=(4, 11), windows=windows(AFTER, k=3, dilation=3)),
    "classes-32-matrix": dict(size=(4, 5), windows=windows(AFTER), classes=32, weight="matrix", strength=0.3),
    "classes-33-matrix-composed": dict(size=(4, 5), windows=windows(AFTER), classes=33, weight="matrix", strength=0.3),
    "classes-64": dict(size=(4, 5), windows=windows(SELF, SELF), classes=64),
    "classes-200": dict(size=(3, 5), windows=windows(SYMMETRIC), classes=200, weight="class"),
    "classes-256": dict(size=(3, 5), windows=windows(SELF), classes=256, weight="class"),
    "classes-300-composed": dict(size=(3, 5), windows=windows(SELF), classes=300),
    "features-17": dict(size=(4, 5), windows=windows(SELF, SELF), channels=(17, 9)),
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
    "blur-class-costs": dict(size=(7, 9), windows=windows(SELF, blur=2), weight="class", compatibility=True),
    "blur-matrix": dict(size=(7, 9), windows=windows(SYMMETRIC, blur=2), weight="matrix"),
    "blur-self-mixed": dict(size=(7, 9), windows=windows(SELF, NOT_SELF, blur=2)),
    "blur-volume-composed": dict(size=(3, 3, 4), windows=windows(SELF, AFTER, blur=2), weight="class"),
    "blur-logarithms": dict(size=(7, 9), windows=windows(AFTER, blur=2), initial="log_softmax"),
    "blur-four-iterations": dict(size=(7, 9), windows=windows(AFTER, blur=2), iterations=4),
    "blur-two-matrices": dict(size=(7, 9), windows=windows(SELF, NOT_SELF, blur=2), weight="matrix", classes=4),
    "blur-two-matrices-composed": dict(size=(7, 9), windows=windows(SYMMETRIC, SELF, blur=2), weight="matrix"),
    "blur-image-8-wide": dict(size=(9, 33), windows=windows(AFTER, SELF, blur=8), weight="class", classes=5),
    "blur-classes-23": dict(size=(5, 8), windows=windows(SYMMETRIC, AFTER, blur=4), weight="class", classes=23),
    "blur-classes-40": dict(size=(3, 4), windows=windows(SELF, SELF, blur=2), classes=40),
    "blur-classes-300-composed": dict(size=(3, 4), windows=windows(AFTER, blur=2), classes=300, weight="class"),
    "blur-batch-shared": dict(size=(7, 9), windows=windows(SYMMETRIC, SELF, blur=2), batch=2, channels=(1, 4)),
    "blur-empty-batch": dict(size=(7, 9), windows=windows(SYMMETRIC, blur=2), batch=0),
}  # fmt: skip


@pytest.mark.parametrize("name", interpreted(SETTINGS, "matrix-not-self", "blur-signal-3-two", "blur-logarithms"))
def test_the_loop_and_every_gradient(name, device):
    assert_loop_within_budget(Setting(**SETTINGS[name]), device)


@pytest.mark.parametrize("name", ["two-forms-of-weight", "blur-image-3-batch"])
def test_the_loop_takes_any_memory_order(name, device):
    assert_loop_within_budget(Setting(**SETTINGS[name]), device, strided)


ONE_STEP = [
    "class", "matrix", "costs-class", "two-scalars-inside", "two-classes-mixed", "classes-64", "blur-signal-3-two",
    "blur-image-2-even", "blur-image-3-batch", "blur-image-4-two", "blur-matrix",
]  # fmt: skip


@pytest.mark.parametrize("name", interpreted(ONE_STEP, "costs-class", "blur-image-3-batch", "blur-matrix"))
def test_one_step_from_the_same_q_keeps_float32s_accuracy(name, device):
    setting = Setting(**{**SETTINGS[name], "iterations": 1})
    found = setting.run(*(x.to(device, torch.float32) for x in setting.inputs), backend="triton")
    assert_close("scores", found, setting.run(*setting.inputs), dtype=torch.float32)


# Positions: their weights are not read, but made of the distance between pixels ----------------------------------------

POSITIONS = {
    "alone": dict(size=(9, 10), k=5, options=[SELF]),
    "two-scalars": dict(size=(9, 65), k=5, options=[SELF, SELF]),
    "two-scalars-symmetric": dict(size=(8, 7), k=3, options=[SYMMETRIC, SYMMETRIC], batch=2),
    "scaled-otherwise": dict(size=(5, 7), k=5, options=[BEFORE, AFTER], weights=(-0.7, 0.4)),
    "appearance-first": dict(size=(5, 7), k=3, options=[NOT_SELF, SYMMETRIC], turned=True, weights=(0.6, -0.9)),
    "not-self": dict(size=(5, 7), k=5, options=[NOT_SELF, NOT_SELF]),
    "by-class": dict(size=(5, 7), k=3, options=[SYMMETRIC, NOT_SELF], weights="class"),
    "weight-zero": dict(size=(5, 7), k=3, options=[SELF, SELF], weights=(0.8, 0.0)),
    "weights-zero": dict(size=(5, 7), k=3, options=[SELF, SELF], weights=(0.0, 0.0)),
    "one-row": dict(size=(1, 9), k=5, options=[SELF, SYMMETRIC]),
    "one-column": dict(size=(9, 1), k=5, options=[AFTER, SELF]),
    "dilated": dict(size=(7, 9), k=3, options=[{**SYMMETRIC, "dilation": 2}, {"dilation": 2}]),
    "row-in-parts": dict(size=(6, 9), k=15, options=[NOT_SELF, SYMMETRIC]),
    "positions-twice": dict(size=(6, 9), k=3, options=[SELF, SYMMETRIC], positions=2, weights=(-0.3, 0.8)),
}  # fmt: skip


@pytest.mark.parametrize("name", interpreted(POSITIONS, "two-scalars-symmetric", "by-class"))
def test_positions(name, device):
    size, k, options, classes = POSITIONS[name]["size"], POSITIONS[name]["k"], POSITIONS[name]["options"], 5
    weights, batch = POSITIONS[name].get("weights", (0.9, 0.5)), POSITIONS[name].get("batch", 1)
    if weights == "class":
        weights = 0.5 + torch.rand(2, classes, dtype=torch.float64)
    appearance = random_features(size, 3, batch)
    logits = random_logits(size, classes, batch)
    cotangent = torch.randn_like(logits)

    def run(device, dtype, **backend):
        known = [tc.features.spatial(size, t, dtype=dtype, device=device) for t in ((1.3, 2.1), 1.7)]
        known = known[: POSITIONS[name].get("positions", 1)]
        features = [*known, appearance.to(device, dtype)][: len(options)]
        if POSITIONS[name].get("turned"):
            features.reverse()
        filters = [Window(f, k, **given, **backend) for f, given in zip(features, options, strict=True)]
        u = logits.to(device, dtype).requires_grad_()
        ws = [torch.as_tensor(w).to(device, dtype) for w, _ in zip(weights, options)]
        scores = tc.mean_field(u, filters, ws, iterations=2, output="logits")
        return scores, torch.autograd.grad(scores, u, cotangent.to(device, dtype))[0]

    with record_launches() as launched:
        found = run(device, torch.float32, backend="triton")
    steps = [x.arguments for x in launched if x.arguments["EPILOGUE"] != "sum"]
    assert len(steps) == 4 and all(0 in x["D"] for x in steps)
    for what, one, other in zip(("scores", "gradient"), found, run("cpu", torch.float64, backend="torch")):
        assert_close(what, one, other, dtype=torch.float32)


@pytest.mark.parametrize("options, summed", [((SELF, SELF), 1), ((BEFORE, SELF), 2), ((SYMMETRIC, AFTER), 2)])
def test_a_blurred_step_makes_only_what_is_read(options, summed, device):
    """One sum at low resolution where nothing is normalised; Q at full resolution for gradients alone."""
    setting = Setting(size=(9, 10), windows=windows(*options, blur=2), iterations=3)
    for learns in True, False:
        inputs = [x.to(device, torch.float32).requires_grad_(learns) for x in setting.inputs]
        with record_launches() as launched:
            setting.run(*inputs, backend="triton")
        steps = [x.arguments for x in launched if "h_ptr" in x.arguments]
        assert [x["state_ptr"] is not None for x in steps] == [True, True, False]
        assert [x["y_ptr"] is not None for x in steps] == [learns, learns, True]
        assert all(len(x["h_ptr"]) == summed for x in steps)


# Launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, forward, backward, of_features",
    [
        ("matrix", 1, 1, 1),
        ("costs-class", 1, 1, 2),
        ("two-scalars-mixed", 1, 1, 1),
        ("two-classes-mixed", 1, 1, 2),
        ("volume", 1, 1, 2),
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
    """One more launch for the features of each filter, or of all if one product serves them; the scales of a normalisation
    filter once more, composed."""
    setting = Setting(**SETTINGS[name])
    assert launches(setting, "logits", device) == (forward, backward)
    scaled = sum({"none": 0, "symmetric": 2}.get(w.get("normalization", "none"), 1) for w in SETTINGS[name]["windows"])
    assert launches(setting, "everything", device) == (forward, backward + of_features + scaled)

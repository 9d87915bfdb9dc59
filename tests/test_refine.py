"""refine: conversions by hand, kinds in and out, and one error for every bad input."""

import functools
import importlib
import math

import numpy as np
import pytest
import torch
from PIL import Image

import tritoncrf as tc
from assertions import assert_close
from tritoncrf import densecrf, features, filters, options
from tritoncrf.refine import refine

H, W, C = 24, 30, 3
SETTINGS = {"method": "window", "window_size": 5, "blur": 2}
IMAGE = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
LOGITS = np.random.default_rng(1).normal(size=(C, H, W)).astype(np.float32)
LABELS = np.random.default_rng(2).integers(0, C, (H, W))
HALF = np.full((C, H, W), 0.5, np.float32)


def tensor(x):
    return torch.from_numpy(np.asarray(x))


def refined(image=IMAGE, **arguments):
    return refine(image, **{**SETTINGS, **arguments})


def test_it_is_mean_field_over_two_windows():
    image = tensor(IMAGE).permute(2, 0, 1)[None]
    kernels = [
        filters.Window(f, 5, blur=2, normalization="symmetric")
        for f in (features.spatial((H, W), 4.0), features.bilateral(image, 60.0, 20.0))
    ]
    expected = tc.mean_field(tensor(LOGITS)[None], kernels, weights=[2.0, 7.0], iterations=3)[0]
    actual = refined(
        logits=LOGITS,
        theta_smooth=4,
        theta_space=60,
        theta_color=20,
        weight_smooth=2,
        weight_appearance=7,
        iterations=3,
    )
    assert_close("refined", tensor(actual), expected)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("method", ["lattice", "exact", "window", "guided"])
def test_damping_and_temperature_reach_the_loop(method, traced):
    options = {"method": method, "iterations": 3, "return_trace": traced, "logits": LOGITS, "weight_appearance": 10}

    def outcome(**changes):
        found = refine(IMAGE, **options, **changes)
        return tensor(found[0] if traced else found)

    plain, damped, hot = outcome(), outcome(damping=0.6), outcome(temperature=50.0)
    q0 = torch.softmax(tensor(LOGITS), 0)
    assert (damped - plain).abs().max() > 0.1 and (damped - q0).abs().mean() < (plain - q0).abs().mean()
    assert hot.max() < 0.6 and outcome(damping=0.0, temperature=1.0).equal(plain)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("method", ["lattice", "exact", "window", "guided"])
def test_a_compatibility_reaches_the_loop(method, traced):
    costs = np.random.default_rng(4).normal(size=(C, C))
    options = {"method": method, "iterations": 3, "return_trace": traced, "logits": LOGITS}

    def outcome(**changes):
        found = refine(IMAGE, **options, **changes)
        return tensor(found[0] if traced else found)

    mixed = outcome(compatibility=costs)
    assert (mixed - outcome()).abs().max() > 0.1
    assert mixed.equal(outcome(compatibility=costs.tolist())) and mixed.equal(outcome(compatibility=tensor(costs)))
    # Potts' costs, and the same of two classes that change places
    assert_close("potts", outcome(compatibility=-np.eye(C)), outcome(compatibility="potts"))
    if not traced:
        swapped = refine(IMAGE, **{**options, "logits": LOGITS[::-1].copy()}, compatibility=costs[::-1, ::-1].copy())
        assert_close("swapped", tensor(swapped[::-1].copy()), mixed)


@pytest.mark.parametrize(
    "costs, error, message",
    [
        (np.eye(C + 1), ValueError, r"expected shape \[3, 3\], got \[4, 4\]"),
        (np.eye(C) * math.nan, ValueError, "expected finite"),
        ("pots", ValueError, "expected one of 'potts', got 'pots'"),
        ([[1, 2], [3]], TypeError, r"expected 'potts' or \[C, C\] numbers, got .*list"),
        (3.0, ValueError, r"expected shape \[3, 3\], got \[1\]"),
    ],
)
def test_bad_compatibilities(costs, error, message):
    with pytest.raises(error, match=f"^compatibility: {message}"):
        refine(IMAGE, logits=LOGITS, compatibility=costs)


METHODS = {
    "lattice": filters.Lattice,
    "exact": filters.Exact,
    "window": functools.partial(filters.Window, window_size=11, blur=2),
}
DIAGONAL = math.hypot(H, W)


def default_kernels(method):
    image = tensor(IMAGE).permute(2, 0, 1)[None]
    both = features.spatial((H, W), 0.005 * DIAGONAL), features.bilateral(image, 0.05 * DIAGONAL, 5.0)
    return [METHODS[method](f, normalization="symmetric") for f in both]


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_gaussian_kernels(method):
    """Bandwidths are shares of the image; a network's scores meet small weights, labels large ones."""
    expected = tc.mean_field(tensor(LOGITS)[None], default_kernels(method), weights=[1.0, 1.0], iterations=5)[0]
    assert_close("of logits", tensor(refine(IMAGE, logits=LOGITS, method=method)), expected)
    unary = torch.full((1, C, H, W), math.log(0.15)).scatter_(1, tensor(LABELS)[None, None], math.log(0.7))
    expected = tc.mean_field(unary, default_kernels(method), weights=[3.0, 10.0], iterations=5)[0]
    assert_close("of labels", tensor(refine(IMAGE, labels=LABELS, method=method)), expected)


def test_the_defaults_of_others_have_a_name():
    image = tensor(IMAGE).permute(2, 0, 1)[None]
    kernels = [
        filters.Lattice(f, normalization="symmetric")
        for f in (features.spatial((H, W), 3.0), features.bilateral(image, 80.0, 13.0))
    ]
    expected = tc.mean_field(tensor(LOGITS)[None], kernels, weights=[3.0, 10.0], iterations=5)[0]
    assert_close("refined", tensor(refine(IMAGE, logits=LOGITS, **tc.PARAMETERS["densecrf"])), expected)


F = np.random.default_rng(3).normal(size=(2, H, W)).astype(np.float32)


@pytest.mark.parametrize(
    "method, given",
    [
        ("guided", {"logits": LOGITS}),
        ("guided", {"probabilities": HALF}),
        ("guided", {"foreground": HALF[0]}),
        ("guided", {"energies": LOGITS, "weight_appearance": 3, "iterations": 2}),
        ("guided", {"labels": LABELS, "radius": 2}),
        ("guided", {"logits": LOGITS, "features": F, "eps": 2.0}),
        ("lattice", {"logits": LOGITS, "theta_color": 9}),
        ("lattice", {"labels": LABELS}),
        ("lattice", {"mask": LABELS == 1}),
        ("lattice", {"logits": LOGITS, "features": F}),
    ],
)
def test_the_method_where_none_is_given(method, given):
    found, expected = refine(IMAGE, **given), refine(IMAGE, method=method, **given)
    assert np.array_equal(found, expected)
    assert np.array_equal(refine(IMAGE, method=None, **given), expected)


def test_arguments_of_two_methods_are_refused_though_none_is_named():
    with pytest.raises(ValueError, match="^radius: expected none with method='lattice', which does not use it, got 2"):
        refine(IMAGE, logits=LOGITS, theta_color=9, radius=2)
    with pytest.raises(ValueError, match="^blur: expected none with method='lattice', which does not use it, got 2"):
        refine(IMAGE, logits=LOGITS, blur=2)


def test_the_lattice_of_positions_is_kept(monkeypatch):
    module = importlib.import_module("tritoncrf.filters.lattice")
    sizes, build = [], module.build
    monkeypatch.setattr(module, "build", lambda f, *rest: sizes.append(f.shape[1]) or build(f, *rest))
    monkeypatch.setattr(module, "_cache", type(module._cache)())
    first = refine(IMAGE, logits=LOGITS, method="lattice")
    assert np.array_equal(refine(IMAGE, logits=LOGITS, method="lattice"), first)
    assert sorted(sizes) == [2, 5, 5]


# The guided filter ------------------------------------------------------------------------------------------------


def guided(image=IMAGE, **arguments):
    return refine(image, **{"method": "guided", "iterations": 3, "logits": LOGITS, **arguments})


def guided_by_hand(guide, radius=3, eps=1.0, weight=10.0, iterations=3, logits=LOGITS, mean_field=tc.mean_field):
    kernel = filters.Guided(guide, radius, eps)
    return mean_field(tensor(logits)[None], [kernel], weights=[weight], iterations=iterations)


def colors(image=IMAGE):
    """The guide of an image [H, W, D], in 0..255 units."""
    return tensor(image).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize("radius", [2, (4, 1)])
def test_guided_is_mean_field_over_one_guided_filter(radius):
    q = guided(radius=radius, eps=400.0, weight_appearance=2, iterations=4)
    expected = guided_by_hand(colors(), radius, 400.0, weight=2.0, iterations=4)
    assert_close("refined", tensor(q), expected[0])


def test_guided_has_defaults():
    q = refine(IMAGE, logits=LOGITS, method="guided")
    assert_close("refined", tensor(q), guided_by_hand(colors(), iterations=5)[0])


def test_radius_and_eps_matter():
    q = guided()
    for change in {"radius": 4}, {"eps": 100.0}:
        assert np.abs(guided(**change) - q).max() > 0.01, change


@pytest.mark.parametrize("channels", [1, 3])
def test_guided_by_every_kind_of_image(channels):
    image = IMAGE[..., :channels]
    expected = guided_by_hand(colors(image))[0]
    kinds = {
        "uint8": image if channels == 3 else image[..., 0],
        "float64": (image if channels == 3 else image[..., 0]) / 255,
        "PIL": Image.fromarray(image.squeeze()),
        "torch": tensor(image).permute(2, 0, 1),
        "torch float": tensor(image).permute(2, 0, 1) / 255,
    }
    for name, given in kinds.items():
        assert_close(name, tensor(guided(given)), expected)


def test_guided_in_float64():
    q = guided(logits=LOGITS.astype(np.float64))
    expected = guided_by_hand(colors().double(), logits=LOGITS.astype(np.float64))[0]
    assert q.dtype == np.float64
    assert_close("refined", tensor(q), expected)


@pytest.mark.parametrize("size, channels", [((40,), 1), ((12, 13), 8), ((5, 6, 7), 4)])
def test_features_guide_as_they_are(size, channels):
    f, logits = torch.randn(channels, *size), torch.randn(C, *size)
    arguments = {"features": f, "logits": logits, "radius": 2, "eps": 0.1}
    expected = guided_by_hand(f[None], 2, 0.1, logits=logits)[0]
    assert_close("refined", guided(None, **arguments), expected)
    if len(size) == 2:  # the only ones that an image may stand beside
        assert torch.equal(guided(np.zeros((*size, 3), np.uint8), **arguments), guided(None, **arguments))


def test_a_trace_of_guided():
    q, trace = guided(return_trace=True)
    expected, by_hand = guided_by_hand(colors(), mean_field=tc.trace)
    assert_close("q", tensor(q), expected[0])
    assert [r.iteration for r in trace.records] == [0, 1, 2, 3] and trace.records == by_hand


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"radius": 0}, ValueError, "^radius: expected an int of at least 1, got 0"),
        ({"radius": 2.5}, TypeError, "^radius: expected an int of at least 1, got 2.5"),
        ({"radius": (1, 2, 3)}, ValueError, r"^radius: expected one int .*, or one per axis \(2\), got 3"),
        ({"eps": 0}, ValueError, "^eps: expected a finite number above 0, got 0"),
        ({"eps": math.nan}, ValueError, "^eps: expected a finite number above 0, got nan"),
        ({"eps": "1"}, TypeError, "^eps: expected a finite number above 0, got '1'"),
        ({"weight_appearance": math.inf}, ValueError, "^weight_appearance: expected a finite number"),
        ({"features": np.zeros((9, H, W))}, ValueError, "^features: expected 1 to 8 channels on axis 1"),
        ({"features": np.zeros((3, H, W - 1))}, ValueError, "^features: expected the size of logits"),
    ],
)
def test_bad_arguments_of_guided(change, error, message):
    with pytest.raises(error, match=message):
        guided(**change)


def test_guided_cleans_up_noise():
    truth = np.zeros((48, 60), np.int64)
    truth[:, 30:] = 1
    image = np.where(truth[..., None], 200, 50).astype(np.uint8).repeat(3, axis=2)
    noisy = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, 1 - truth, truth)
    assert np.array_equal(refine(image, labels=noisy, method="guided").argmax(0), truth)


# Parameter sets ---------------------------------------------------------------------------------------------------

# Copied once more from the calls: iterations, (sxy, compat), (sxy, srgb, compat), gt_prob.
CALLS = {
    "densecrf": (5, (3, 3), (80, 13, 10), None),
    "deeplab": (10, (1, 3), (67, 3, 4), None),
    "seam": (10, (3, 3), (80, 13, 10), None),
    "irn": (10, (3, 3), (50, 5, 10), 0.7),
    "cutler": (10, (3, 7), (50, 5, 10), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_parameters_of_known_pipelines(name):
    """Are what their calls of pydensecrf give, up to the order of its features (x, y), which the lattice feels."""
    assert set(tc.PARAMETERS) == set(CALLS)
    iterations, (sxy, compat), bilateral, gt_prob = CALLS[name]
    if gt_prob is None:
        scores, unary = {"logits": LOGITS}, -LOGITS.reshape(C, -1)
    else:
        scores = {"labels": LABELS}
        unary = densecrf.utils.unary_from_labels(LABELS, C, gt_prob=gt_prob, zero_unsure=False)
    crf = densecrf.DenseCRF2D(W, H, C)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(densecrf.utils.create_pairwise_gaussian((sxy, sxy), (H, W)), compat)
    space, color, weight = bilateral
    crf.addPairwiseEnergy(
        densecrf.utils.create_pairwise_bilateral((space, space), (color,) * 3, IMAGE, chdim=2), weight
    )
    expected = torch.from_numpy(crf.inference(iterations)).view(C, H, W)
    assert_close("refined", tensor(refine(IMAGE, **scores, **tc.PARAMETERS[name])), expected, rms=1e-4, worst=1e-3)


def test_parameter_sets_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        tc.PARAMETERS["densecrf"]["iterations"] = 1
    changed = {**tc.PARAMETERS["densecrf"], "iterations": 0}
    assert_close("refined", tensor(refine(IMAGE, logits=LOGITS, **changed)), torch.softmax(tensor(LOGITS), 0))


# Trace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_trace_records_and_changes_nothing(method):
    q, trace = refine(IMAGE, logits=LOGITS, method=method, iterations=3, return_trace=True)
    assert_close("q", tensor(q), tensor(refine(IMAGE, logits=LOGITS, method=method, iterations=3)))
    assert [r.iteration for r in trace.records] == [0, 1, 2, 3]
    assert trace.records == tc.trace(tensor(LOGITS)[None], default_kernels(method), [1.0, 1.0], iterations=3)[1]


def test_a_summary_by_hand():
    """Two classes, a row of four pixels: one class for all at the end, and one label unknown at the start."""
    labels = torch.tensor([[0, 1, 1, 255]])
    image = np.zeros((1, 4, 3), np.uint8)
    q, trace = refined(image, labels=labels, label_confidence=0.9, return_trace=True, weight_smooth=50)
    assert torch.equal(q.argmax(0), torch.ones(1, 4, dtype=torch.long))
    summary = trace.summary
    assert summary.changed == 0.5
    assert summary.before == (0.25, 0.5) and summary.after == (0.0, 1.0)
    assert summary.confidence_before == pytest.approx((3 * 0.9 + 0.5) / 4)
    assert summary.confidence_after == pytest.approx(q.amax(0).mean().item())


def test_a_summary_where_all_classes_are_equal():
    _, trace = refined(logits=np.zeros((C, H, W)), return_trace=True)
    assert trace.summary.changed == 0 and trace.summary.before == trace.summary.after == (0.0, 0.0, 0.0)


def test_a_summary_shows_the_classes_that_are_there():
    logits = np.zeros((9, H, W))
    logits[4] = 9
    _, trace = refined(logits=logits, return_trace=True)
    assert str(trace.summary).splitlines()[0] == "changed 0.00% of the pixels"
    assert [row.split() for row in str(trace.summary).splitlines()[2:]] == [
        ["class", "before", "after"], ["4", "100.00%", "100.00%"],
    ]  # fmt: skip


def test_the_old_argument_of_a_trace_names_the_new_one():
    with pytest.raises(TypeError, match="^trace: no longer an argument; use return_trace=True"):
        refined(logits=LOGITS, trace=[])
    with pytest.raises(TypeError, match="^return_trace: expected True or False"):
        refined(logits=LOGITS, return_trace=[])


# Arguments that play no part --------------------------------------------------------------------------------------

USED = {
    "theta_space": ("lattice", "exact", "window"), "theta_color": ("lattice", "exact", "window"),
    "theta_smooth": ("lattice", "exact", "window"), "weight_smooth": ("lattice", "exact", "window"),
    "window_size": ("window",), "blur": ("window",), "radius": ("guided",), "eps": ("guided",),
    "weight_appearance": (*METHODS, "guided"), "iterations": (*METHODS, "guided"),
}  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_an_argument_is_for_the_methods_that_use_it(name):
    """Even where it is given as what it is by default."""
    for method in (*METHODS, "guided"):
        value = options.ARGUMENTS[name].value(method, "logits")
        if method in USED[name]:
            assert np.array_equal(
                refine(IMAGE, logits=LOGITS, method=method, **{name: value}),
                refine(IMAGE, logits=LOGITS, method=method),
            )
        else:
            with pytest.raises(ValueError, match=f"^{name}: expected none with method='{method}', .* got {value}"):
                refine(IMAGE, logits=LOGITS, method=method, **{name: value})


@pytest.mark.parametrize("name", ["theta_space", "theta_color"])
def test_features_leave_no_part_to_the_thetas_they_replace(name):
    f = np.zeros((1, H, W))
    for image in None, IMAGE:
        with pytest.raises(ValueError, match=f"^{name}: expected none with features, .* got 9"):
            refine(image, logits=LOGITS, features=f, **{name: 9})


@pytest.mark.parametrize("kind", ["logits", "probabilities", "energies"])
def test_confidence_is_for_labels(kind):
    with pytest.raises(ValueError, match=f"^label_confidence: expected none with {kind}=, .* got 0.7"):
        refine(IMAGE, **{kind: HALF}, label_confidence=0.7)


@pytest.mark.parametrize("name", tc.PARAMETERS)
def test_parameter_sets_go_with_every_kind_of_score_and_other_arguments(name):
    for scores in {"labels": LABELS}, {"probabilities": HALF}:
        refine(IMAGE, **scores, **{**tc.PARAMETERS[name], "iterations": 1, "method": "window", "blur": 2})


# Where it is computed ---------------------------------------------------------------------------------------------


@pytest.fixture
def computed_on(monkeypatch):
    """The devices of the logits that reach the loop, which then gives zeros on the CPU."""
    found = []

    def mean_field(logits, *_, **__):
        found.append(logits.device.type)
        return torch.zeros(logits.shape)

    module = importlib.import_module("tritoncrf.problem")
    monkeypatch.setattr(module, "mean_field", mean_field)
    monkeypatch.setattr(module, "kernels", lambda *_: [])
    return found


SCORES_OF_EVERY_KIND = {
    "NumPy": {"logits": LOGITS},
    "torch": {"logits": tensor(LOGITS)},
    "labels": {"labels": Image.fromarray(LABELS.astype(np.uint8)), "num_classes": C},
}


@pytest.mark.parametrize("kind", SCORES_OF_EVERY_KIND)
def test_it_is_computed_where_the_device_says(kind, computed_on):
    scores = SCORES_OF_EVERY_KIND[kind] if kind != "labels" else {"energies": LOGITS}
    q = refine(IMAGE, **scores, device="meta")
    assert computed_on == ["meta"]
    assert isinstance(q, np.ndarray) or q.device.type == "cpu"


@pytest.mark.parametrize("kind, expected", [("NumPy", "meta"), ("labels", "meta"), ("torch", "cpu")])
def test_arrays_go_to_the_gpu_if_there_is_one_and_tensors_stay(kind, expected, computed_on, monkeypatch):
    module = importlib.import_module("tritoncrf.problem")
    monkeypatch.setattr(module, "device_found", lambda device: torch.device("meta"))  # stands for a GPU
    if kind == "labels":
        monkeypatch.setattr(module, "unary_from", lambda *given: torch.zeros(C, H, W, device=given[3]))
    refine(IMAGE, **SCORES_OF_EVERY_KIND[kind])
    assert computed_on == [expected]


def test_arrays_and_tensors_agree_wherever_they_are(device):
    expected = tensor(refined(logits=LOGITS, device="cpu"))
    assert_close("NumPy", tensor(refined(logits=LOGITS)), expected)
    for where in None, device, str(device), "cpu":
        q = refined(logits=tensor(LOGITS), device=where)
        assert q.device.type == "cpu"
        assert_close(f"torch, computed on {where}", q, expected)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ("gpu", ValueError, "^device: expected a device of torch, such as 'cuda' or 'cpu', got 'gpu'"),
        (0, TypeError, "^device: expected a device of torch, .* got 0"),
        ("cuda:99", ValueError, "^device: expected one that exists, got 'cuda:99' with "),
    ],
)
def test_devices_that_are_not_here(bad, error, message):
    for logits in LOGITS, tensor(LOGITS):
        with pytest.raises(error, match=message):
            refined(logits=logits, device=bad)


# Kinds and dtypes -------------------------------------------------------------------------------------------------


def test_without_iterations_every_score_becomes_the_probability_it_stands_for():
    p = torch.softmax(tensor(LOGITS), 0)
    for scores in ({"logits": LOGITS}, {"energies": -LOGITS}, {"probabilities": p.numpy()}):
        assert_close(str(*scores), tensor(refined(**scores, iterations=0)), p)


def test_labels_by_hand():
    labels = np.array([[0, 1, 255]])
    q = refined(np.zeros((1, 3), np.uint8), labels=labels, num_classes=3, label_confidence=0.6, iterations=0)
    expected = [[0.6, 0.2, 1 / 3], [0.2, 0.6, 1 / 3], [0.2, 0.2, 1 / 3]]
    assert_close("q", tensor(q[:, 0]), torch.tensor(expected))


def test_probabilities_of_zero_stay_finite():
    p = np.eye(C, dtype=np.float32)[LABELS].transpose(2, 0, 1)
    q = refined(probabilities=p)
    assert_close("sum over classes", tensor(q.sum(0)), torch.ones(H, W))


def test_the_number_of_classes_of_labels():
    assert len(refined(labels=LABELS)) == C
    assert len(refined(labels=np.zeros((H, W), int))) == 2
    assert len(refined(labels=np.where(LABELS, 199, 0))) == 200
    assert len(refined(labels=LABELS, num_classes=9)) == 9
    assert len(refined(labels=LABELS > 0)) == 2
    assert len(refined(labels=np.full((H, W), 255), num_classes=4)) == 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_numpy_scores_keep_their_kind_and_dtype(dtype):
    q = refined(logits=LOGITS.astype(dtype))
    assert isinstance(q, np.ndarray) and q.dtype == dtype and q.shape == (C, H, W)
    assert_close("q", tensor(q.astype(np.float32)), tensor(refined(logits=LOGITS)), rms=2e-3, worst=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_scores_keep_their_dtype_and_device(dtype, device):
    q = refined(logits=tensor(LOGITS).to(device, dtype))
    assert q.dtype == dtype and q.device.type == device.type and not q.requires_grad


def test_float64_is_computed_in_float64():
    q = refined(logits=tensor(LOGITS).double())
    assert_close("sum over classes", q.sum(0), torch.ones(H, W, dtype=torch.float64))


def test_labels_give_float32_of_their_kind():
    expected = refined(labels=LABELS)
    assert expected.dtype == np.float32
    for labels in (LABELS.astype(np.uint8), LABELS.astype(np.int32), Image.fromarray(LABELS.astype(np.uint8))):
        q = refined(labels=labels)
        assert isinstance(q, np.ndarray) and np.array_equal(q, expected)
    q = refined(labels=tensor(LABELS))
    assert isinstance(q, torch.Tensor) and np.array_equal(q.numpy(), expected)


def test_palette_labels_are_their_indices():
    picture = Image.fromarray(LABELS.astype(np.uint8))
    picture.putpalette(bytes(range(255, -1, -1)) * 3)
    assert np.array_equal(refined(labels=picture), refined(labels=LABELS))


def test_every_kind_of_image_is_the_same_image():
    expected = tensor(refined(logits=LOGITS))
    kinds = {
        "PIL": Image.fromarray(IMAGE),
        "PIL with alpha": Image.fromarray(IMAGE).convert("RGBA"),
        "float64": IMAGE / 255,
        "float32": (IMAGE / 255).astype(np.float32),
        "read-only": np.frombuffer(IMAGE.tobytes(), np.uint8).reshape(IMAGE.shape),
        "torch": tensor(IMAGE).permute(2, 0, 1),
        "torch float": tensor(IMAGE).permute(2, 0, 1) / 255,
    }
    for name, image in kinds.items():
        assert_close(name, tensor(refined(image, logits=LOGITS)), expected, rms=1e-4, worst=1e-3)


def test_every_kind_of_grey_image_is_the_same_image():
    grey = IMAGE[..., 0]
    expected = refined(grey, logits=LOGITS)
    for image in (Image.fromarray(grey), tensor(grey)[None]):
        assert np.array_equal(refined(image, logits=LOGITS), expected)
    black_white = Image.fromarray(grey > 127)
    assert black_white.mode == "1"
    assert np.array_equal(refined(black_white, logits=LOGITS), refined((grey > 127) * np.uint8(255), logits=LOGITS))


def test_arguments_are_left_as_they_were():
    image, logits, labels = IMAGE.copy(), LOGITS.copy(), LABELS.copy()
    refined(logits=logits)
    refined(image, labels=labels)
    assert np.array_equal(image, IMAGE) and np.array_equal(logits, LOGITS) and np.array_equal(labels, LABELS)


def test_features_take_the_place_of_the_appearance():
    image = tensor(IMAGE).permute(2, 0, 1)[None]
    f = features.bilateral(image, "5%", 5)[0]
    expected = refined(logits=LOGITS)
    assert np.array_equal(refined(None, logits=LOGITS, features=f), expected)
    assert np.array_equal(refined(logits=LOGITS, features=f.numpy()), expected)


@pytest.mark.parametrize("size", [(40,), (6, 7, 8)])
def test_lines_and_volumes_with_features(size):
    logits = torch.randn(2, *size)
    f = torch.randn(4, *size)
    q = refined(None, logits=logits, features=f, theta_smooth=(3.0,) * len(size), window_size=3, blur=1)
    assert q.shape == logits.shape
    assert_close("sum over classes", q.sum(0), torch.ones(size))


def test_it_cleans_up_noise():
    truth = np.zeros((48, 60), np.int64)
    truth[:, 30:] = 1
    image = np.where(truth[..., None], 200, 50).astype(np.uint8).repeat(3, axis=2)
    noisy = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, 1 - truth, truth)
    q = refine(image, labels=noisy, method="window", blur=1)
    assert np.array_equal(q.argmax(0), truth)


# Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["widnow", 3, ""])
def test_unknown_methods(method):
    with pytest.raises(ValueError, match="^method: expected one of 'lattice', 'exact', 'window', 'guided', got"):
        refine(IMAGE, logits=LOGITS, method=method)


@pytest.mark.parametrize(
    "scores, got",
    [({}, "none"), ({"logits": LOGITS, "labels": LABELS}, "logits and labels")],
)
def test_exactly_one_of_the_scores(scores, got):
    with pytest.raises(TypeError, match=f"exactly one of logits=, .*mask=, foreground=, got {got}"):
        refined(**scores)


SCORES = ["logits", "probabilities", "energies"]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (HALF.astype(int), TypeError, "floating-point"),
        (HALF.tolist(), TypeError, "a NumPy array or a torch.Tensor"),
        (HALF.astype(str), TypeError, "dtype that torch supports"),
        (HALF[0, 0], ValueError, r"expected \[C, H, W\]"),
        (HALF[None, None], ValueError, r"expected \[C, H, W\]"),
        (HALF[:0], ValueError, r"expected \[C, H, W\]"),
        (HALF * math.nan, ValueError, "NaN"),
        (HALF * math.inf, ValueError, "infinite|not ruled out"),
    ],
)
def test_bad_scores(name, bad, error, message):
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        refined(**{name: bad})


@pytest.mark.parametrize("bad", [HALF + 1, HALF - 1, LOGITS])
def test_probabilities_that_are_not(bad):
    with pytest.raises(ValueError, match="^probabilities: expected 0 to 1, got .* pass scores before .* as logits="):
        refined(probabilities=bad)


def test_probabilities_rounded_in_half_precision_pass():
    p = np.zeros((2, H, W), np.float16)
    p[0] = 1.001
    assert refined(probabilities=p).dtype == np.float16


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (LABELS.astype(float), TypeError, "expected integers"),
        (LABELS.tolist(), TypeError, "a NumPy array or a torch.Tensor"),
        (np.zeros((0, 3), int), ValueError, r"expected \[H, W\]"),
        (np.zeros((1, 1, 1, 1), int), ValueError, r"expected \[H, W\]"),
        (Image.fromarray(IMAGE), ValueError, r"expected \[H, W\]"),
    ],
)
def test_bad_labels(bad, error, message):
    with pytest.raises(error, match=message):
        refined(labels=bad)


def test_labels_beyond_the_number_of_classes():
    with pytest.raises(ValueError, match="^labels: expected 0 to 1, or 255 where unknown, got 0 to 2"):
        refined(labels=LABELS, num_classes=2)


def test_unknown_labels_alone_need_the_number_of_classes():
    with pytest.raises(ValueError, match="^num_classes: "):
        refined(labels=np.full((H, W), 255))


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (IMAGE[:-1], ValueError, r"expected the size of logits, \[24, 30\], got \[23, 30\]"),
        (IMAGE.transpose(2, 0, 1), ValueError, r"NumPy array \[H, W, 3\]"),
        (np.zeros((H, W, 4), np.uint8), ValueError, r"NumPy array \[H, W, 3\]"),
        (tensor(IMAGE), ValueError, r"torch tensor \[3, H, W\]"),
        (tensor(IMAGE).permute(2, 0, 1)[None], ValueError, r"torch tensor \[3, H, W\]"),
        (IMAGE.astype(np.int32), TypeError, "uint8"),
        (IMAGE.astype(np.uint16), TypeError, "uint8"),
        (Image.fromarray(IMAGE[..., 0].astype(np.int32)), TypeError, "8 bits per channel"),
        (IMAGE.astype(np.float32), ValueError, "from 0 to 1"),
        (IMAGE * math.nan, ValueError, "NaN"),
        (IMAGE.tolist(), TypeError, "a PIL image"),
        ("photo.jpg", TypeError, "a PIL image"),
        (None, TypeError, "pass features="),
    ],
)
def test_bad_images(bad, error, message):
    with pytest.raises(error, match=f"^image: .*{message}"):
        refined(bad, logits=LOGITS)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.zeros((2, H - 1, W), np.float32), ValueError, "expected the size of logits"),
        (np.zeros((2, H), np.float32), ValueError, r"expected \[D, \*S\]"),
        (np.zeros((0, H, W), np.float32), ValueError, r"expected \[D, \*S\]"),
        (np.zeros((2, H, W), int), TypeError, "floating-point"),
        (np.full((2, H, W), np.nan), ValueError, "NaN"),
        ("depth", TypeError, "a NumPy array"),
    ],
)
def test_bad_features(bad, error, message):
    with pytest.raises(error, match=f"^features: .*{message}"):
        refined(None, logits=LOGITS, features=bad)


@pytest.mark.parametrize(
    "name, bad, error",
    [
        ("theta_space", 0, ValueError),
        ("theta_color", -1, ValueError),
        ("theta_smooth", math.nan, ValueError),
        ("theta_smooth", (1, 2, 3), ValueError),
        ("theta_space", "80", ValueError),
        ("weight_appearance", math.inf, ValueError),
        ("weight_smooth", "3", TypeError),
        ("iterations", -1, ValueError),
        ("iterations", 2.5, TypeError),
        ("window_size", 4, ValueError),
        ("window_size", -3, ValueError),
        ("blur", 0, ValueError),
        ("num_classes", C + 1, ValueError),
    ],
)
def test_bad_parameters(name, bad, error):
    with pytest.raises(error, match=f"^{name}: "):
        refined(logits=LOGITS, **{name: bad})


@pytest.mark.parametrize(
    "names, changes",
    [
        ("theta_smooth", {"theta_smooth": 1e-4}),
        ("theta_space, theta_color", {"theta_space": 1e-4}),
        ("theta_space, theta_color", {"theta_color": 1e-4}),
        ("features", {"features": np.linspace(0, 1e6, H * W).reshape(1, H, W)}),
    ],
)
def test_thetas_too_small_for_the_lattice_are_named(names, changes):
    with pytest.raises(ValueError, match=f"^{names}: expected lattice coordinates of at most .*too small"):
        refine(IMAGE, logits=LOGITS, **changes)


@pytest.mark.parametrize("method", [*METHODS, "guided"])
def test_degenerate_images(method):
    one_color = refine(np.full((H, W, 3), 9, np.uint8), logits=LOGITS, method=method)
    assert_close("sum over classes", tensor(one_color.sum(0)), torch.ones(H, W))
    wide = {} if method == "guided" else {"theta_smooth": 1e6}
    for rows in IMAGE[:1], IMAGE[:, :1], IMAGE[:1, :1]:
        q = refine(rows, logits=LOGITS[:, : rows.shape[0], : rows.shape[1]], method=method, **wide)
        assert_close("sum over classes", tensor(q.sum(0)), torch.ones(rows.shape[:2]))


@pytest.mark.parametrize("bad, error", [(0.0, ValueError), (1.0, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_bad_label_confidence(bad, error):
    with pytest.raises(error, match="^label_confidence: "):
        refined(labels=LABELS, label_confidence=bad)


def test_values_of_cuda_scores_are_looked_at_too(device):
    with pytest.raises(ValueError, match="^logits: .*NaN"):
        refined(logits=torch.full((C, H, W), math.nan, device=device))

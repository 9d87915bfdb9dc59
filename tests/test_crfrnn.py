"""CRFRNN: against dense matrices of a lattice of dictionaries, the published codes by hand, and its errors."""

import copy
import importlib
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from cases import dense_scores, disturbed, leaves, random_logits
from dictionary_lattice import dense_lattice

C = 3
SIZE = (5, 6)
THETAS = {"theta_smooth": 2.0, "theta_space": 9.0, "theta_color": 11.0}
SMALL = {"num_classes": C, "iterations": 2, "test_iterations": 3, **THETAS}
VARIANTS = {
    "default": {},
    "full": {"kernel_weights": "full"},
    "scalar": {"kernel_weights": "scalar"},
    "learn-thetas": {"learn_thetas": True},
    "theta-per-axis": {"theta_smooth": (2, 3), "theta_space": (8, 10), "theta_color": (10, 15, 20)},
    "learn-theta-per-axis": {"theta_smooth": (2, 3), "theta_color": (10, 15, 20), "learn_thetas": True},
    "spacing": {"spacing": (0.5, 2.0)},
    "symmetric-not-self": {"include_self": False, "normalization": "symmetric"},
    "before": {"normalization": "before"},
    "released": {"preset": "released"},
    "released-keras": {"preset": "released-keras"},
    "released-pytorch": {"preset": "released-pytorch"},
    "released-learn-thetas": {"preset": "released", "learn_thetas": True, "theta_color": (10, 15, 20)},
}
variants = pytest.mark.parametrize("variant", VARIANTS)
RELEASED = ["released", "released-keras", "released-pytorch"]


def layer(variant="default", **changes):
    return tc.CRFRNN(**{**SMALL, **VARIANTS[variant], **changes})


def picture(size=SIZE, batch=1, channels=3):
    """uint8 colours so close that the appearance kernel fills (0, 1)."""
    return torch.randint(100, 140, (batch, channels, *size), dtype=torch.uint8)


def problem(size=SIZE, batch=1, dtype=torch.float64):
    return random_logits(size, C, batch, dtype), picture(size, batch)


def call(crf, logits, image):
    return crf(logits, image)


def results(run, crf, logits, image, names=None):
    """Scores, and the gradients of <a fixed random cotangent, scores> by name."""
    inputs = {"logits": logits.detach().clone().requires_grad_(), **dict(crf.named_parameters())}
    inputs = {name: x for name, x in inputs.items() if names is None or name in names}
    scores = run(crf, inputs["logits"], image)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(scores.shape, dtype=torch.float64, generator=generator).to(scores.dtype)
    gradients = torch.autograd.grad(scores, list(inputs.values()), cotangent)
    return {"scores": scores.detach(), **{f"{name}'s gradient": g for name, g in zip(inputs, gradients)}}


def assert_same(found: dict, expected: dict, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], **tolerance)


# In dense matrices ------------------------------------------------------------------------------------------------

CAFFE, KERAS = (104.007, 116.669, 122.679), (103.939, 116.779, 123.68)  # blue, green, red
MEANS = {"released": CAFFE, "released-keras": KERAS, "released-pytorch": KERAS}


def per(theta, count):
    """A theta as one number for each of `count`."""
    numbers = torch.as_tensor(theta).detach().double().reshape(-1).tolist()
    return numbers * count if len(numbers) == 1 else numbers


def by_pixel(crf, size, image):
    """The features of both kernels, written pixel by pixel: [1, D, *S] and [B, D, *S]."""
    spacing = per(crf.spacing or 1.0, len(size))
    smooth, space, color = (per(crf.theta(f"theta_{name}"), n) for name, n in zip(
        ("smooth", "space", "color"), (len(size), len(size), image.shape[1])))  # fmt: skip
    near = torch.zeros(1, len(size), *size, dtype=torch.float64)
    alike = torch.zeros(len(image), len(size) + image.shape[1], *size, dtype=torch.float64)
    for at in itertools.product(*map(range, size)):
        place = [i * s for i, s in zip(at, spacing)]
        nearness = [p / t for p, t in zip(place, smooth)]
        position = [p / t for p, t in zip(place, space)]
        for b, photo in enumerate(image.double()):
            value = photo[(slice(None), *at)].tolist()
            if crf.preset:
                bgr = [v - m for v, m in zip(value[::-1], MEANS[crf.preset])]
                found = [*position[::-1], *(v / t for v, t in zip(bgr, color[::-1]))]
            else:
                found = [*position, *(v / t for v, t in zip(value, color))]
            alike[(b, slice(None), *at)] = torch.tensor(found, dtype=torch.float64)
        near[(0, slice(None), *at)] = torch.tensor(nearness[::-1] if crf.preset else nearness, dtype=torch.float64)
    return near, alike


def dense_layer(crf, logits, image):
    """S_T from the parameters alone."""
    options = {k: v for k, v in crf.lattice.items() if k in ("include_self", "normalization")}
    matrices = [dense_lattice(f, **options) for f in by_pixel(crf, tuple(logits.shape[2:]), image)]
    cost = -crf.compatibility if crf.preset == "released-pytorch" else crf.compatibility
    iterations = crf.iterations if crf.training else crf.test_iterations
    return dense_scores(logits, matrices, [crf.weight_smooth, crf.weight_appearance], cost, iterations)


@variants
def test_scores_and_gradients_are_those_of_dense_matrices(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    inputs = problem(batch=2)
    names = "logits", "weight_smooth", "weight_appearance", "compatibility"
    assert_same(results(call, crf, *inputs, names), results(dense_layer, crf, *inputs, names), rms=1e-11, worst=1e-10)


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (9,), (2, 3, 4)], ids=str)
def test_signals_rows_and_volumes(size, preset):
    crf = disturbed(layer(preset=preset, dtype=torch.float64))
    inputs = problem(size, batch=2)
    with torch.no_grad():
        assert_close("S", crf(*inputs), dense_layer(crf, *inputs))


@pytest.mark.parametrize("variant", ["learn-thetas", "learn-theta-per-axis", "released-learn-thetas"])
def test_gradients_of_the_thetas_are_those_of_the_lattices(variant):
    """Of the oracle's features f = raw / theta, whose derivative by log theta is -f."""
    crf = disturbed(layer(variant, dtype=torch.float64))
    logits, image = problem(batch=2)
    near, alike = leaves(*by_pixel(crf, SIZE, image))
    kernels = [tc.filters.Lattice(f, **crf.lattice) for f in (near, alike)]
    weights = [crf.weight_smooth, crf.weight_appearance]
    expected = tc.mean_field(logits, kernels, weights, crf.compatibility, iterations=2, output="logits")
    cotangent = torch.randn_like(expected)
    d_near, d_alike = torch.autograd.grad(expected, [near, alike], cotangent)
    by_feature = {"log_theta_smooth": (-d_near * near).sum((0, 2, 3))}
    by_feature["log_theta_space"], by_feature["log_theta_color"] = (-d_alike * alike).sum((0, 2, 3)).split([2, 3])
    found = torch.autograd.grad(crf(logits, image), [getattr(crf, name) for name in by_feature], cotangent)
    for (name, expected), gradient in zip(by_feature.items(), found, strict=True):
        expected = expected.detach().flip(0) if crf.preset else expected.detach()
        assert_close(name, gradient, expected if gradient.ndim else expected.sum(), rms=1e-9, worst=1e-9)


def by_hand(logits, image, iterations, **options):
    kernels = [
        tc.filters.Lattice(f, normalization="after")
        for f in (tc.features.spatial(logits.shape[2:], 3), tc.features.bilateral(image, 160, 3))
    ]
    weights = [torch.full((C,), 3.0), torch.full((C,), 5.0)]
    return tc.mean_field(logits, kernels, weights, -torch.eye(C), iterations, **options)


@pytest.mark.parametrize("output", ["logits", "probabilities", "log_probabilities"])
def test_defaults_are_mean_field_by_hand(output):
    logits, image = problem((13, 17), batch=2, dtype=torch.float32)
    crf = tc.CRFRNN(C)
    assert_close("training", crf(logits, image, output=output), by_hand(logits, image, 5, output=output))
    assert_close("testing", crf.eval()(logits, image, output=output), by_hand(logits, image, 10, output=output))
    assert torch.equal(crf(logits, image), crf(logits, image, output="logits"))


def test_iterations_of_training_and_testing():
    inputs = problem()
    for training, iterations in ((True, 1), (False, 4)):
        crf = layer(iterations=1, test_iterations=4, dtype=torch.float64).train(training)
        assert torch.equal(crf(*inputs), layer(iterations=iterations, dtype=torch.float64)(*inputs))
    assert torch.equal(layer(iterations=0)(*inputs), inputs[0])


# The published codes ----------------------------------------------------------------------------------------------

STARTS = {  # W of smoothness and appearance, mu, iterations in training and testing
    None: (3, 5, -1, (5, 10)),
    "released": (3, 5, -1, (10, 10)),
    "released-keras": (1, 1, -1, (10, 10)),
    "released-pytorch": (3, 5, 1, (10, 10)),
}


@pytest.mark.parametrize("preset", STARTS)
def test_the_published_starts(preset):
    crf, (smooth, appearance, mu, iterations) = tc.CRFRNN(C, preset=preset), STARTS[preset]
    unit = torch.eye(C) if preset else torch.ones(C)
    expected = {
        "weight_smooth": smooth * unit, "weight_appearance": appearance * unit, "compatibility": mu * torch.eye(C)
    }  # fmt: skip
    assert_same(dict(crf.named_parameters()), expected)
    assert (crf.iterations, crf.test_iterations) == iterations
    assert [crf.theta(f"theta_{name}") for name in ("smooth", "space", "color")] == [3, 160, 3]


def published_step(logits, q, smooth, bilateral, spatial_filter, bilateral_filter, compatibility, sign):
    """One iteration as the published codes write it, on [C, N]."""
    messages = smooth @ spatial_filter(q) + bilateral @ bilateral_filter(q)
    return logits + sign * (compatibility @ messages)


@pytest.mark.parametrize("preset", RELEASED)
def test_the_published_algorithm(preset):
    size = (4, 6)
    image, logits = picture(size), random_logits(size, C)
    crf = disturbed(layer(preset=preset, dtype=torch.float64))
    w_smooth, w_appearance, mu = crf.weight_smooth, crf.weight_appearance, crf.compatibility
    near, alike = (dense_lattice(f)[0] for f in by_pixel(crf, size, image))
    near, alike = (k / k.sum(1, keepdim=True) for k in (near, alike))
    q, scores = None, logits[0].flatten(1)
    for _ in range(crf.iterations):
        q = torch.softmax(scores, 0)
        sign = 1 if preset == "released-pytorch" else -1
        scores = published_step(
            logits[0].flatten(1), q, w_smooth, w_appearance, lambda q: q @ near.mT, lambda q: q @ alike.mT, mu, sign
        )
    assert_close("S", crf(logits, image)[0].flatten(1), scores)


def test_the_lattice_feels_the_order_and_the_origin_of_the_presets():
    logits, image = problem((12, 14))
    codes = {preset: tc.CRFRNN(C, preset=preset, weight_smooth=1, weight_appearance=1) for preset in RELEASED}
    plain = tc.CRFRNN(C, 10, weight_smooth=1, weight_appearance=1, kernel_weights="full")
    scores = {preset: crf.double()(logits, image) for preset, crf in codes.items()}
    assert_close("keras and pytorch", scores["released-keras"], scores["released-pytorch"])
    for a, b in (scores["released"], scores["released-keras"]), (scores["released"], plain.double()(logits, image)):
        assert 1e-4 < (a - b).square().mean().sqrt() / a.square().mean().sqrt() < 0.1


def learnt(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(C, C, generator=generator) for _ in range(3)]


NAMES = "spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix"
OTHERS = {"conv1_1.weight": torch.zeros(2, 2), "conv1_1.bias": torch.zeros(2)}


def state_dict(prefix=""):
    return {**{prefix + name: value for name, value in zip(NAMES, learnt())}, **OTHERS}


def keras(prefix="", suffix=""):
    return {f"{prefix}{name}{suffix}": value.numpy() for name, value in zip(NAMES, learnt())}


PUBLISHED = {
    "pytorch": ("released-pytorch", state_dict()),
    "pytorch-network": ("released-pytorch", state_dict("crfrnn.")),
    "pytorch-parallel": ("released-pytorch", state_dict("module.crfrnn.")),
    "keras": ("released-keras", keras()),
    "keras-names": ("released-keras", keras(suffix=":0")),
    "keras-file": ("released-keras", keras("crfrnn/crfrnn/", ":0")),
    "keras-network": ("released-keras", {**keras("crfrnn/", ":0"), "conv1_1/kernel:0": np.zeros((3, 3))}),
    "keras-list": ("released-keras", [value.numpy() for value in learnt()]),
    "caffe-blobs": ("released", [value.numpy()[None, None] for value in learnt()]),
    "caffe-tensors": ("released", tuple(learnt())),
}


@pytest.mark.parametrize("code", PUBLISHED)
def test_published_parameters_are_taken(code):
    preset, parameters = PUBLISHED[code]
    crf = layer(preset=preset)
    crf.load_published(parameters)
    names = "weight_smooth", "weight_appearance", "compatibility"
    assert_same(dict(crf.named_parameters()), dict(zip(names, learnt())))
    assert all(p.requires_grad and p.is_leaf for p in crf.parameters())


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_the_files_of_the_caffe_code(make):
    crf = disturbed(layer("released"))
    crf.load_published({"spatial.par": make([1.0, 2.0, 3.0]), "bilateral.par": make([4.0, 5.0, 6.0])})
    expected = torch.tensor([1.0, 2, 3]).diag(), torch.tensor([4.0, 5, 6]).diag(), -torch.eye(C)
    assert_same(
        dict(crf.named_parameters()), dict(zip(("weight_smooth", "weight_appearance", "compatibility"), expected))
    )


def without(name):
    return {k: v for k, v in state_dict().items() if k != name}


@pytest.mark.parametrize(
    "preset, parameters, error, message",
    [
        ("released-pytorch", without(NAMES[2]), ValueError, "^parameters: .* got compatibility_matrix missing"),
        ("released-pytorch", {}, ValueError, "^parameters: .*missing$"),
        ("released-pytorch", OTHERS, ValueError, "missing and conv1_1.weight, conv1_1.bias unknown"),
        ("released-pytorch", {str(n): 0 for n in range(9)}, ValueError, "missing and 0, 1, 2 and 6 others unknown"),
        ("released-pytorch", {**state_dict(), "bias": 0}, ValueError, "got bias unknown"),
        ("released-pytorch", {**state_dict("a."), **state_dict("b.")}, ValueError, "of one layer, got layers a, b"),
        ("released-pytorch", keras("crfrnn/", ":0"), ValueError, "^parameters: .*missing"),
        ("released-keras", state_dict("crfrnn."), ValueError, "^parameters: .*missing"),
        ("released", state_dict(), ValueError, "^parameters: expected spatial.par, bilateral.par, got .*missing"),
        ("released", {"spatial.par": [1.0] * C}, ValueError, "got bilateral.par missing"),
        ("released", {"spatial.par": [1.0], "bilateral.par": [1.0] * C}, ValueError, r"\['spatial.par'\]: .*\[3\], got \[1\]"),
        ("released", learnt()[:2], ValueError, "^parameters: expected 3 arrays, .* got 2"),
        ("released", "crfasrnn.pth", TypeError, "^parameters: expected a dict of arrays, or a list of 3, got 'crf"),
        ("released", np.zeros((3, C, C)), TypeError, "^parameters: expected a dict"),
        ("released", [np.zeros((C, C)), np.zeros((C, 4)), np.zeros((C, C))], ValueError, r"^parameters\[1\]: expected shape \[3, 3\] or \[1, 1, 3, 3\], got \[3, 4\]"),
        ("released", [np.zeros((C, C)), np.zeros(C), np.zeros((C, C))], ValueError, r"^parameters\[1\]: expected shape"),
        ("released", [np.zeros((C, C)), "weights", np.zeros((C, C))], TypeError, r"^parameters\[1\]: expected an array"),
        ("released-pytorch", {**state_dict(), NAMES[2]: torch.full((C, C), math.nan)}, ValueError, r"^parameters\['compatibility_matrix'\]: expected finite"),
        ("released-pytorch", {**state_dict("crfrnn."), "crfrnn." + NAMES[1]: torch.zeros(21, 21)}, ValueError, r"^parameters\['crfrnn.bilateral_ker_weights'\]: expected shape \[3, 3\], got \[21, 21\]"),
    ],
)  # fmt: skip
def test_nothing_is_half_loaded(preset, parameters, error, message):
    crf = layer(preset=preset)
    before = copy.deepcopy(crf.state_dict())
    with pytest.raises(error, match=message):
        crf.load_published(parameters)
    assert_same(crf.state_dict(), before)


def test_only_the_layers_of_the_codes_load_their_parameters():
    with pytest.raises(ValueError, match="^preset: expected the code .* got None"):
        layer("full").load_published(learnt())
    with pytest.raises(ValueError, match="^kernel_weights: expected 'full'"):
        layer("released", kernel_weights="class").load_published(learnt())


# The lattice of positions -----------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """The sizes of the features of every lattice that is built."""
    module = importlib.import_module("tritoncrf.filters.lattice")
    sizes, build = [], module.build
    monkeypatch.setattr(module, "build", lambda f, *rest: sizes.append(tuple(f.shape)) or build(f, *rest))
    monkeypatch.setattr(module, "_cache", type(module._cache)())
    return sizes


def test_the_lattice_of_positions_is_kept_where_thetas_are_fixed(built):
    crf, inputs = layer(), problem()
    first = crf(*inputs)
    assert sorted(built) == [(1, 2, 30), (1, 5, 30)]
    assert torch.equal(crf(*inputs), first) and sorted(built) == [(1, 2, 30), (1, 5, 30), (1, 5, 30)]
    layer("learn-thetas")(*inputs)
    layer("learn-thetas")(*inputs)
    assert built.count((1, 2, 30)) == 3


def test_a_lattice_kept_in_inference_serves_training(built):
    crf, inputs = layer(), problem()
    with torch.inference_mode():
        expected = crf(*inputs)
    found = crf(*inputs)
    found.sum().backward()
    assert torch.equal(found, expected) and built.count((1, 2, 30)) == 1


def test_a_theta_that_changes_is_seen(built):
    inputs = problem()
    assert not torch.equal(layer(theta_smooth=2.0)(*inputs), layer(theta_smooth=4.0)(*inputs))
    crf = layer("learn-thetas", dtype=torch.float64)
    before = crf(*inputs)
    with torch.no_grad():
        crf.log_theta_smooth.fill_(math.log(4.0))
    assert not torch.equal(crf(*inputs), before)
    assert_close("S", crf(*inputs), layer("learn-thetas", theta_smooth=4.0, dtype=torch.float64)(*inputs))


# Inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["default", "released"])
def test_an_image_of_bytes_is_the_same_in_floats(variant, dtype):
    crf = layer(variant, dtype=dtype)
    logits, image = problem(batch=2, dtype=dtype)
    assert_close("S", crf(logits, image), crf(logits, image.to(dtype) / 255), rms=1e-5, worst=1e-4)


def test_features_stand_in_for_an_image():
    crf = layer(dtype=torch.float64)
    logits, image = problem(batch=2)
    (f,) = leaves(tc.features.bilateral(image.double() / 255, 9, 11))
    s = crf(logits, features=f)
    assert_close("S", s, crf(logits, image))
    s.square().sum().backward()
    assert f.grad.isfinite().all() and f.grad.abs().max() > 0


@pytest.mark.parametrize("size", [(11,), (3, 4, 5)], ids=str)
def test_features_of_signals_and_volumes(size):
    logits, f = random_logits(size, C, batch=2), torch.randn(1, 4, *size, dtype=torch.float64)
    s = layer(dtype=torch.float64)(logits, features=f)
    kernels = [tc.filters.Lattice(x, normalization="after") for x in (
        tc.features.spatial(size, 2.0, dtype=torch.float64), f)]  # fmt: skip
    weights = [torch.full((C,), w, dtype=torch.float64) for w in (3.0, 5.0)]
    expected = tc.mean_field(logits, kernels, weights, iterations=2, output="logits")
    assert_close("S", s, expected)


def test_one_image_serves_a_batch_of_scores():
    crf, logits, image = layer(), random_logits(SIZE, C, batch=3), picture()
    expected = crf(logits, image.expand(3, -1, -1, -1))
    assert_close("image", crf(logits, image), expected)


@variants
def test_a_batch_is_its_images_one_by_one(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    logits, image = problem(batch=3)
    singles = [crf(logits[b : b + 1], image[b : b + 1]) for b in range(3)]
    assert_close("S", crf(logits, image), torch.cat(singles))


def test_an_empty_batch():
    found = results(call, layer(), *problem(batch=0, dtype=torch.float32))
    assert found["scores"].shape == (0, C, *SIZE)
    assert not any(found[f"{name}'s gradient"].any() for name, _ in layer().named_parameters())


def test_one_layer_serves_several_sizes():
    crf = layer(dtype=torch.float64)
    for size, batch in ((5, 4), 1), ((1, 9), 3), ((9,), 2), ((2, 3, 4), 1), ((5, 4), 2):
        inputs = problem(size, batch)
        assert_close(f"S of {size}", crf(*inputs), dense_layer(crf, *inputs))


@pytest.mark.parametrize("preset", [None, *RELEASED])
def test_one_class_is_certain(preset):
    q = layer(num_classes=1, preset=preset)(torch.randn(1, 1, *SIZE), picture(), output="probabilities")
    assert_close("Q", q, torch.ones(1, 1, *SIZE))


def test_in_an_image_of_one_color_all_hear_the_mean():
    logits, image = problem((9, 11))
    crf = layer(weight_smooth=0, theta_space=1e9, dtype=torch.float64)
    scores = logits
    for _ in range(2):
        scores = logits + 5 * scores.softmax(1).mean((2, 3), keepdim=True)
    assert_close("S", crf(logits, torch.full_like(image, 7)), scores, rms=1e-6, worst=1e-5)


def test_classes_have_no_order():
    crf, (logits, image) = disturbed(layer("full", dtype=torch.float64)), problem()
    order = torch.tensor([2, 0, 1])
    permuted = copy.deepcopy(crf)
    with torch.no_grad():
        for name, p in permuted.named_parameters():
            p.copy_(getattr(crf, name)[order][:, order])
    assert_close("S", permuted(logits[:, order], image), crf(logits, image)[:, order])


# Training ---------------------------------------------------------------------------------------------------------

THETA_SHAPES = {"log_theta_smooth": [], "log_theta_space": [], "log_theta_color": []}
PARAMETERS = {
    "default": {"weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C]},
    "full": {"weight_smooth": [C, C], "weight_appearance": [C, C], "compatibility": [C, C]},
    "scalar": {"weight_smooth": [], "weight_appearance": [], "compatibility": [C, C]},
    "learn-thetas": {**THETA_SHAPES, "weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C]},
    "learn-theta-per-axis": {**THETA_SHAPES, "log_theta_smooth": [2], "log_theta_color": [3], "weight_smooth": [C],
                             "weight_appearance": [C], "compatibility": [C, C]},
    "released": {"weight_smooth": [C, C], "weight_appearance": [C, C], "compatibility": [C, C]},
}  # fmt: skip


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_and_their_shapes(variant):
    crf = layer(variant)
    assert {name: list(p.shape) for name, p in crf.named_parameters()} == PARAMETERS[variant]
    assert crf.state_dict().keys() == PARAMETERS[variant].keys()


@variants
def test_thetas_are_those_given(variant):
    crf = layer(variant, dtype=torch.float64)
    for name, theta in {**THETAS, **VARIANTS[variant]}.items():
        if name.startswith("theta"):
            found = torch.as_tensor(crf.theta(name), dtype=torch.float64).detach()
            assert_close(name, found, torch.tensor(theta, dtype=torch.float64))


def cross_entropy(crf, logits, image):
    labels = torch.arange(logits[:, 0].numel()).view(logits[:, 0].shape) // 5 % C
    return F.cross_entropy(crf(logits, image), labels)


@variants
def test_one_step_of_training_moves_every_parameter(variant):
    crf = layer(variant, dtype=torch.float64)
    before = copy.deepcopy(crf.state_dict())
    cross_entropy(crf, *problem(batch=2)).backward()
    torch.optim.SGD(crf.parameters(), lr=0.01).step()
    for name, p in crf.named_parameters():
        assert p.grad.isfinite().all() and (p.grad != 0).all(), name
        assert (p != before[name]).all(), name


def test_rows_that_are_added_to_mu_change_nothing():
    """So its gradient has columns that add up to 0 (spec 2.2)."""
    crf = disturbed(layer(dtype=torch.float64))
    cross_entropy(crf, *problem()).backward()
    total = crf.compatibility.grad.sum(0)
    assert_close("columns", total, torch.zeros(C, dtype=torch.float64), scale=crf.compatibility.grad.abs().max().item())


@pytest.mark.parametrize("variant", ["learn-thetas", "learn-theta-per-axis", "released-learn-thetas", "full"])
def test_gradcheck(variant):
    """In float64, where no pixel of this seed changes its simplex within the step."""
    crf = disturbed(layer(variant, num_classes=2, dtype=torch.float64))
    names, values = zip(*crf.named_parameters())
    logits, image = random_logits((3, 4), 2), picture((3, 4)).double() / 255

    def scores(logits, image, *parameters):
        return torch.func.functional_call(crf, dict(zip(names, parameters)), (logits, image))

    assert torch.autograd.gradcheck(scores, leaves(logits, image, *values))


def halves(size=(12, 12)):
    """A picture of two halves, their labels, and scores that are wrong at a third of the pixels."""
    labels = (torch.arange(size[1]) >= size[1] // 2).long().expand(1, *size)
    image = (100 + 60 * labels)[:, None].expand(-1, 3, -1, -1) + torch.randint(0, 8, (1, 3, *size))
    wrong = torch.rand(1, *size) < 1 / 3
    logits = 2 * F.one_hot(torch.where(wrong, 1 - labels, labels), 2).movedim(-1, 1).float()
    return logits, image.to(torch.uint8), labels


def trained_losses(data, steps=8, **options):
    crf = layer(num_classes=2, **options)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(crf(*data[:2]), data[2])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("variant", ["default", "full", "scalar", "released", "released-pytorch"])
def test_training_lowers_the_loss_the_same_way_every_time(variant):
    data = halves()
    options = {**VARIANTS[variant], "weight_smooth": 0.3, "weight_appearance": 0.3}
    losses = trained_losses(data, **options)
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.95 * losses[0]
    assert trained_losses(data, **options) == losses


def test_both_signs_of_mu_are_one_training():
    data, options = halves(), {"weight_smooth": 0.3, "weight_appearance": 0.3}
    signs = [trained_losses(data, preset=preset, **options) for preset in ("released-keras", "released-pytorch")]
    assert_close("losses", *map(torch.tensor, signs), rms=1e-5)


def test_it_repairs_noise():
    logits, image, labels = halves((20, 20))
    q = layer(num_classes=2).eval()(logits, image)
    before, after = ((s.argmax(1) != labels).float().mean() for s in (logits, q))
    assert before > 0.2 and after < before / 4


# A module among modules -------------------------------------------------------------------------------------------


@variants
def test_state_survives_saving_and_loading(variant, tmp_path):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    other = layer(variant)
    assert not torch.equal(other(*inputs), crf(*inputs))
    other.load_state_dict(torch.load(tmp_path / "crf.pt", weights_only=True))
    assert torch.equal(other(*inputs), crf(*inputs))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda crf: pickle.loads(pickle.dumps(crf))], ids=["copy", "pickle"])
@variants
def test_a_copy_is_equal_and_apart(variant, make):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    expected = crf(*inputs).detach()
    other = make(crf)
    assert torch.equal(other(*inputs), expected)
    disturbed(other)
    assert torch.equal(crf(*inputs), expected) and not torch.equal(other(*inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@variants
def test_parameters_of_half_precision(variant, dtype):
    crf, (logits, image) = layer(variant).to(dtype), problem(dtype=torch.float32)
    found, eps = results(call, crf, logits, image), torch.finfo(dtype).eps
    expected = copy.deepcopy(crf).float()(logits, image).detach()
    assert_close("S", found["scores"], expected, rms=4 * eps, worst=8 * eps)
    for name, p in crf.named_parameters():
        gradient = found[f"{name}'s gradient"]
        assert gradient.dtype == p.dtype == dtype and gradient.isfinite().all() and gradient.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@variants
def test_scores_of_half_precision_are_summed_in_float32(variant, dtype):
    crf, (logits, image) = layer(variant), problem(dtype=dtype)
    s = crf(logits, image)
    assert s.dtype == dtype
    assert torch.equal(s, crf(logits.float(), image).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@variants
def test_autocast_changes_nothing(variant, dtype):
    crf, (logits, image) = disturbed(layer(variant)), problem(dtype=dtype)
    expected = results(call, crf, logits, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(call, crf, logits, image)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_parameters_are_made_where_and_as_asked():
    for variant in "learn-thetas", "released":
        crf = layer(variant, device="meta", dtype=torch.float16)
        assert {(p.device.type, p.dtype) for p in crf.parameters()} == {("meta", torch.float16)}


def test_it_says_what_it_is():
    text = repr(tc.CRFRNN(21, preset="released", theta_color=4))
    for part in ("CRFRNN(", "num_classes=21", "iterations=10", "'released'", "'after'", "theta_color=4.0"):
        assert part in text


# Compilers --------------------------------------------------------------------------------------------------------

COMPILED = ["default", "full", "learn-thetas", "theta-per-axis", "symmetric-not-self", "released"]


@pytest.mark.parametrize("variant", COMPILED)
def test_compiled_whole_it_is_the_same(variant):
    torch.compiler.reset()
    crf = disturbed(layer(variant))
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    for size, batch in (SIZE, 2), ((7, 9), 2):
        inputs = problem(size, batch, dtype=torch.float32)
        found = results(lambda _, *inputs: compiled(*inputs), crf, *inputs)
        assert_same(found, results(call, crf, *inputs))


def test_compiled_it_turns_from_training_to_testing():
    torch.compiler.reset()
    crf, inputs = layer(), problem(dtype=torch.float32)
    compiled = torch.compile(crf, backend="aot_eager")
    for training in True, False:
        crf.train(training)
        assert_close("S", compiled(*inputs), crf(*inputs))


@pytest.mark.parametrize("variant", COMPILED)
def test_exported_it_is_the_same(variant):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    program = torch.export.export(crf, inputs)
    others = problem(dtype=torch.float32)
    assert_close("S", program.module()(*others), crf(*others))


# Bad input --------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    ("num_classes", 0, ValueError),
    ("num_classes", 2.5, TypeError),
    *((name, value, error) for name in ("iterations", "test_iterations") for value, error in (
        (-1, ValueError), (2.5, TypeError), (True, TypeError))),
    ("test_iterations", None, TypeError),
    *((name, value, ValueError) for name in THETAS for value in (
        0, -1.0, math.nan, math.inf, (3.0, -1.0, 2.0), (1.0, 2.0, 3.0, 4.0), ())),
    *((name, value, TypeError) for name in THETAS for value in ("3", True, None, [[3.0, 3.0]], {"y": 3.0})),
    *((name, value, error) for name in ("weight_smooth", "weight_appearance") for value, error in (
        (math.nan, ValueError), (math.inf, ValueError), ("3", TypeError), ([1.0] * C, TypeError), (False, TypeError))),
    ("kernel_weights", "matrix", ValueError),
    ("kernel_weights", True, ValueError),
    ("learn_thetas", 1, TypeError),
    ("normalization", "sym", ValueError),
    ("normalization", None, ValueError),
    ("include_self", 1, TypeError),
    ("spacing", 0, ValueError),
    ("spacing", (1.0, 2.0, 3.0), ValueError),
    ("spacing", "1mm", TypeError),
    ("preset", "caffe", ValueError),
    ("preset", True, ValueError),
    ("precision", "high", ValueError),
    ("backend", "cuda", ValueError),
    ("dtype", torch.int32, TypeError),
    ("dtype", "float32", TypeError),
]  # fmt: skip


def described(value) -> str:
    return str(value).replace("torch.", "") or "nothing"


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("name, value, error", BAD_ARGUMENTS, ids=described)
def test_bad_arguments(name, value, error, preset):
    """What the layer cannot know without an image, such as the number of axes, it says at the first call."""
    with pytest.raises(error, match=rf"^{name}: .*(expected|runs on).*got "):
        layer(**{"preset": preset, name: value})(*problem(dtype=torch.float32))


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("learn_thetas", [False, True])
@pytest.mark.parametrize("name", THETAS)
def test_thetas_too_small_for_the_lattice_are_named(name, learn_thetas, preset):
    crf = layer(preset=preset, learn_thetas=learn_thetas, **{name: 1e-4})
    named = "theta_smooth" if name == "theta_smooth" else "theta_space, theta_color"
    with pytest.raises(ValueError, match=f"^{named}: expected lattice coordinates of at most .*too small"):
        crf(*problem((12, 13), dtype=torch.float32))


LOGITS, IMAGE = torch.zeros(1, C, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
NAN = torch.full((1, 3, 4, 5), math.nan)


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": LOGITS.numpy()}, TypeError, "^logits: expected a floating.*ndarray.*torch.from_numpy"),
        ({"logits": LOGITS.int()}, TypeError, "^logits: expected a floating.*got a int32"),
        ({"logits": LOGITS[0, 0]}, ValueError, r"^logits: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"logits": LOGITS[:, :2]}, ValueError, r"^logits: expected 3 classes on axis 1, got shape \[1, 2, 4, 5\]"),
        ({"logits": LOGITS + math.nan}, ValueError, "^logits: expected finite values, got 60 NaN or infinite of 60"),
        ({"image": None}, ValueError, "^image: expected an image or features, got neither"),
        ({"features": IMAGE.float()}, ValueError, "^image: expected an image or features, got both"),
        ({"image": IMAGE.numpy()}, TypeError, "^image: expected a uint8 .*ndarray.*torch.from_numpy"),
        ({"image": IMAGE.int()}, TypeError, "^image: expected a uint8 .*got a int32"),
        ({"image": IMAGE.mT}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[1, 3, 5, 4\]"),
        ({"image": IMAGE[:, :0]}, ValueError, r"^image: expected at least one channel, got shape \[1, 0, 4, 5\]"),
        ({"image": IMAGE.expand(2, -1, -1, -1)}, ValueError, r"expected a batch of 2 .*got \[1, 3, 4, 5\]"),
        ({"image": IMAGE.float() + 255}, ValueError, "^image: expected floating values from 0 to 1, got 255 to 255"),
        ({"image": NAN}, ValueError, "^image: expected finite values, got 60"),
        ({"image": None, "features": NAN.numpy()}, TypeError, "^features: expected a floating.*torch.from_numpy"),
        ({"image": None, "features": IMAGE}, TypeError, "^features: expected a floating.*got a uint8"),
        ({"image": None, "features": NAN}, ValueError, "^features: expected finite values, got 60"),
        ({"image": None, "features": IMAGE + 1e6}, ValueError, "^features: expected lattice coordinates"),
        ({"output": "prob"}, ValueError, "^output: expected one of 'probabilities', .* got 'prob'"),
    ],
)
def test_bad_inputs(change, error, message, preset):
    with pytest.raises(error, match=message):
        layer(preset=preset)(**{"logits": LOGITS, "image": IMAGE, **change})


@pytest.mark.parametrize("preset", RELEASED)
def test_the_published_codes_take_colors_alone(preset):
    with pytest.raises(ValueError, match=r"^image: expected red, green and blue for the preset, got shape \[1, 1"):
        layer(preset=preset)(LOGITS, IMAGE[:, :1])


def test_only_first_derivatives_are_offered():
    logits, image = problem()
    (logits,) = leaves(logits)
    (gradient,) = torch.autograd.grad(layer()(logits, image).square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()

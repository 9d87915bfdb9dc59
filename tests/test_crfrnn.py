"""CRFRNN: against dense matrices of a lattice of dictionaries, the published codes by hand, and its own errors."""

import copy
import importlib
import itertools
import math

import numpy as np
import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from cases import dense_scores, disturbed, leaves, random_logits
from dictionary_lattice import dense_lattice
from problems import CLASSES, CRF_RNN, assert_same, halves, results, trained_losses
from tritoncrf import published

C = CLASSES
SIZE = CRF_RNN.size
THETAS = {name: CRF_RNN.arguments[name] for name in ("theta_smooth", "theta_space", "theta_color")}
layer, picture, problem = CRF_RNN.make, CRF_RNN.picture, CRF_RNN.problem
variants = pytest.mark.parametrize("variant", CRF_RNN.variants)
RELEASED = ["released", "released-keras", "released-pytorch"]


# In dense matrices ------------------------------------------------------------------------------------------------

# Blue, green, red.
MEANS = {"caffe": (104.00698793, 116.66876762, 122.67891434), "vgg": (103.939, 116.779, 123.68), "demo": (123.68, 116.779, 103.939)}  # fmt: skip
CODES = {"released": "caffe", "released-keras": "vgg", "released-pytorch": "vgg"}


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
                bgr = [v - m for v, m in zip(value[::-1], MEANS[crf.mean])]
                found = [*position[::-1], *(v / t for v, t in zip(bgr, color[::-1]))]
            else:
                found = [*position, *(v / t for v, t in zip(value, color))]
            alike[(b, slice(None), *at)] = torch.tensor(found, dtype=torch.float64)
        near[(0, slice(None), *at)] = torch.tensor(nearness[::-1] if crf.preset else nearness, dtype=torch.float64)
    return near, alike


def dense_layer(crf, logits, image):
    """S_T from the parameters alone."""
    options = {k: v for k, v in crf.lattice.items() if k in ("include_self", "normalization")}
    options["padding"] = "four" if crf.preset else None
    matrices = [dense_lattice(f, **options) for f in by_pixel(crf, tuple(logits.shape[2:]), image)]
    cost = -crf.compatibility if crf.preset == "released-pytorch" else crf.compatibility
    iterations = crf.iterations if crf.training else crf.test_iterations
    return dense_scores(logits, matrices, [crf.weight_smooth, crf.weight_appearance], cost, iterations, **crf.update)


@variants
def test_scores_and_gradients_are_those_of_dense_matrices(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    inputs = problem(batch=2)
    names = "logits", "weight_smooth", "weight_appearance", "compatibility"
    assert_same(
        results(crf, *inputs, names=names), results(crf, *inputs, run=dense_layer, names=names), rms=1e-11, worst=1e-10
    )


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (1, 7), (6, 1), (5, 4), (9,), (2, 3, 4)], ids=str)
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
    padding = "four" if crf.preset else None
    kernels = [tc.filters.Lattice(f, **crf.lattice, padding=padding) for f in (near, alike)]
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


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_and_features_of_any_number_of_channels(channels):
    crf, logits, image = layer(dtype=torch.float64), random_logits(SIZE, C), picture(channels=channels)
    expected = dense_layer(crf, logits, image)
    assert_close("S of an image", crf(logits, image), expected)
    assert_close("S of features", crf(logits, features=CRF_RNN.features(image.double() / 255)), expected)


def by_hand(logits, image, iterations, **options):
    kernels = [
        tc.filters.Lattice(f, normalization="after")
        for f in (tc.features.spatial(logits.shape[2:], 3), tc.features.bilateral(image, 30, 5))
    ]
    weights = [torch.full((C,), 1.0), torch.full((C,), 1.0)]
    return tc.mean_field(logits, kernels, weights, -torch.eye(C), iterations, **options)


@pytest.mark.parametrize("output", ["logits", "probabilities", "log_probabilities"])
def test_defaults_are_mean_field_by_hand(output):
    logits, image = problem((13, 17), batch=2, dtype=torch.float32)
    crf = tc.CRFRNN(C)
    assert_close("training", crf(logits, image, output=output), by_hand(logits, image, 5, output=output))
    assert_close("testing", crf.eval()(logits, image, output=output), by_hand(logits, image, 10, output=output))


def test_iterations_of_training_and_testing():
    inputs = problem()
    for training, iterations in ((True, 1), (False, 4)):
        crf = layer(iterations=1, test_iterations=4, dtype=torch.float64).train(training)
        assert torch.equal(crf(*inputs), layer(iterations=iterations, dtype=torch.float64)(*inputs))


# The published codes ----------------------------------------------------------------------------------------------

STARTS = {  # W of smoothness and appearance, mu, iterations in training and testing
    None: (1, 1, -1, (5, 10)),
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
    assert [crf.theta(f"theta_{name}") for name in ("smooth", "space", "color")] == (
        [3, 160, 3] if preset else [3, 30, 5]
    )


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
    near, alike = (dense_lattice(f, padding="four")[0] for f in by_pixel(crf, size, image))
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


@pytest.mark.parametrize("preset", RELEASED)
def test_each_mean_of_a_preset_moves_the_origin(preset):
    """The scores change; the code's own is the default."""
    logits, image = problem((12, 14))
    scores = {mean: tc.CRFRNN(C, preset=preset, mean=mean).double()(logits, image) for mean in MEANS}
    assert torch.equal(tc.CRFRNN(C, preset=preset).double()(logits, image), scores[CODES[preset]])
    for a, b in itertools.combinations(scores.values(), 2):
        assert (a - b).square().mean().sqrt() / a.square().mean().sqrt() > 1e-4
    crf = disturbed(layer(preset=preset, mean="demo", dtype=torch.float64))
    logits, image = problem()
    assert_close("S", crf(logits, image), dense_layer(crf, logits, image))
    assert f"preset={preset!r}, mean='demo'" in repr(crf)


def test_eight_decimals_of_a_mean_count():
    """With three the origin is elsewhere."""
    logits, image = problem((12, 14))
    crf = tc.CRFRNN(C, preset="released").double()
    assert crf.mean == "caffe" and published.MEANS["caffe"] == (122.67891434, 116.66876762, 104.00698793)
    exact = crf(logits, image)
    features = by_pixel(crf, (12, 14), image)[1]
    assert_close("S", crf(logits, features=features), exact)
    rounded = features.clone()
    rounded[:, 2:] += (torch.tensor(MEANS["caffe"]) - torch.tensor([104.007, 116.669, 122.679])).double()[
        :, None, None
    ] / 3
    assert (crf(logits, features=rounded) - exact).abs().max() > 1e-4


def test_a_mean_is_a_presets():
    with pytest.raises(
        ValueError, match="^mean: expected with one of the presets 'released', .* got 'vgg' without a preset"
    ):
        tc.CRFRNN(C, mean="vgg")
    with pytest.raises(ValueError, match="^mean: expected one of 'caffe', 'vgg', 'demo', got 'matlab'"):
        tc.CRFRNN(C, preset="released", mean="matlab")


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


@pytest.mark.parametrize("size", [(11,), (3, 4, 5)], ids=str)
def test_features_of_signals_and_volumes(size):
    logits, f = random_logits(size, C, batch=2), torch.randn(1, 4, *size, dtype=torch.float64)
    s = layer(dtype=torch.float64)(logits, features=f)
    kernels = [tc.filters.Lattice(x, normalization="after") for x in (
        tc.features.spatial(size, 2.0, dtype=torch.float64), f)]  # fmt: skip
    weights = [torch.full((C,), w, dtype=torch.float64) for w in (1.0, 1.0)]
    expected = tc.mean_field(logits, kernels, weights, iterations=2, output="logits")
    assert_close("S", s, expected)


def test_in_an_image_of_one_color_every_message_is_the_mean():
    logits, image = problem((9, 11))
    crf = layer(weight_smooth=0, weight_appearance=5, theta_space=1e9, dtype=torch.float64)
    scores = logits
    for _ in range(2):
        scores = logits + 5 * scores.softmax(1).mean((2, 3), keepdim=True)
    assert_close("S", crf(logits, torch.full_like(image, 7)), scores, rms=1e-6, worst=1e-5)


# Training ---------------------------------------------------------------------------------------------------------


@variants
def test_thetas_are_those_given(variant):
    crf = layer(variant, dtype=torch.float64)
    for name, theta in {**THETAS, **CRF_RNN.variants[variant]}.items():
        if name.startswith("theta"):
            found = torch.as_tensor(crf.theta(name), dtype=torch.float64).detach()
            assert_close(name, found, torch.tensor(theta, dtype=torch.float64))


def test_both_signs_of_mu_are_one_training():
    data, options = halves(), {"num_classes": 2, "weight_smooth": 0.3, "weight_appearance": 0.3}
    signs = [trained_losses(layer(variant, **options), data) for variant in ("released-keras", "released-pytorch")]
    assert_close("losses", *map(torch.tensor, signs), rms=1e-5)


@pytest.mark.extras
def test_compiled_it_turns_from_training_to_testing():
    torch.compiler.reset()
    crf, inputs = layer(), problem(dtype=torch.float32)
    compiled = torch.compile(crf, backend="aot_eager")
    for training in True, False:
        crf.train(training)
        assert_close("S", compiled(*inputs), crf(*inputs))


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("learn_thetas", [False, True])
@pytest.mark.parametrize("name", THETAS)
def test_thetas_too_small_for_the_lattice_are_named(name, learn_thetas, preset):
    crf = layer(preset=preset, learn_thetas=learn_thetas, **{name: 1e-4})
    named = "theta_smooth" if name == "theta_smooth" else "theta_space, theta_color"
    with pytest.raises(ValueError, match=f"^{named}: expected lattice coordinates of at most .*too small"):
        crf(*problem((12, 13), dtype=torch.float32))


@pytest.mark.parametrize("preset", RELEASED)
def test_the_published_codes_take_colors_alone(preset):
    with pytest.raises(ValueError, match=r"^image: expected red, green and blue for the preset, got shape \[1, 1"):
        layer(preset=preset)(random_logits(SIZE, C), picture(channels=1))

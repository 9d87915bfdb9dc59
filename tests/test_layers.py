"""ConvCRF in PyTorch: against the published algorithm, dense matrices and finite differences, and its errors."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tritoncrf as tc
from assertions import assert_close
from bench.peers import im2col_convcrf
from cases import dense_scores, dense_window, disturbed, leaves, random_logits

C = 3
SIZE = (6, 7)
SMALL = {"num_classes": C, "window_size": 3, "blur": 2, "iterations": 2}
VARIANTS = {
    "default": {},
    "class-weights": {"class_weights": True},
    "compatibility": {"compatibility": True},
    "learn-positions": {"learn_positions": SIZE},
    "theta-per-axis": {"theta_smooth": (2, 3), "theta_space": (20, 30), "theta_color": (10, 15, 20)},
    "no-position": {"appearance_position": False},
    "not-self-after": {"include_self": False, "normalization": "after"},
    "released": {"preset": "released"},
    "released-symmetric": {
        "preset": "released", "normalization": "symmetric", "appearance_position": True, "theta_space": 40,
    },
    "all": {"class_weights": True, "compatibility": True, "learn_positions": SIZE, "blur": 1},
    "released-all": {
        "preset": "released", "class_weights": True, "compatibility": True, "learn_positions": SIZE,
        "appearance_position": True, "theta_space": (20, 30), "normalization": "symmetric",
    },
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)


def layer(variant="default", **changes):
    return tc.ConvCRF(**{**SMALL, **VARIANTS[variant], **changes})


def picture(size=SIZE, batch=1, channels=3):
    """uint8 colours so close that the appearance kernel fills (0, 1)."""
    return torch.randint(100, 140, (batch, channels, *size), dtype=torch.uint8)


def problem(size=SIZE, batch=1, dtype=torch.float64):
    return random_logits(size, C, batch, dtype), picture(size, batch)


def results(run, crf, logits, image):
    """Scores, and the gradients of <a fixed random cotangent, scores> by name."""
    inputs = {"logits": logits.detach().clone().requires_grad_(), **dict(crf.named_parameters())}
    scores = run(crf, inputs["logits"], image)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(scores.shape, dtype=torch.float64, generator=generator).to(scores.dtype)
    gradients = torch.autograd.grad(scores, list(inputs.values()), cotangent)
    return {"scores": scores.detach(), **{f"{name}'s gradient": g for name, g in zip(inputs, gradients)}}


def assert_same(found: dict, expected: dict, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(name, found[name], expected[name], **tolerance)


def call(crf, logits, image):
    return crf(logits, image)


# The published algorithm (spec 9, oracle 16) ----------------------------------------------------------------------

RELEASE_SIZES = [(20, 24), (21, 23), (22, 19), (13, 17)]
RELEASES = {"plain": {}, "compatibility": {"compatibility": True}, "position": {"appearance_position": True}}


def released_oracle(crf, logits, image):
    """What the published algorithm gives for the parameters of a released layer."""
    theta_space = crf.theta("theta_space")
    per_class, normalization = crf.weight_smooth.ndim == 1, crf.window["normalization"]
    return im2col_convcrf(
        logits,
        image,
        size=crf.window["window_size"],
        blur=crf.window["blur"],
        iterations=crf.iterations,
        theta_position=1 / crf.inverse_theta_smooth,
        theta_color=1 / crf.inverse_theta_color,
        theta_space=theta_space,
        weight_position=crf.weight_smooth.reshape(-1, 1, 1),
        weight_color=crf.weight_appearance.reshape(-1, 1, 1),
        class_weight=crf.class_weight,
        normalization=normalization,
        merge=normalization == "none" and not per_class,
        compatibility=crf.compatibility,
    )


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("blur", [1, 2, 4])
@pytest.mark.parametrize("window_size", [5, 7, 11])
@pytest.mark.parametrize("size", RELEASE_SIZES, ids=str)
def test_the_released_preset_is_the_published_algorithm(size, window_size, blur, normalization, release):
    options = {"normalization": normalization, **RELEASES[release]}
    crf = disturbed(tc.ConvCRF(C, window_size, blur, preset="released", **options))
    logits, image = problem(size, batch=2, dtype=torch.float32)
    with torch.no_grad():
        crf64 = tc.ConvCRF(C, window_size, blur, preset="released", dtype=torch.float64, **options)
        crf64.load_state_dict(crf.state_dict())
        exact = released_oracle(crf64, logits.double(), image)
        assert_close("S in float64", crf64(logits.double(), image), exact, rms=1e-12)
        assert_close("S in float32", crf(logits, image), exact, rms=1e-5, dtype=torch.float32)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("class_weights", [False, True], ids=["weights", "class-weights"])
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("blur", [1, 2])
def test_the_released_gradients_are_the_published_algorithms(blur, release, class_weights, normalization):
    options = {"normalization": normalization, "class_weights": class_weights, **RELEASES[release]}
    crf = disturbed(layer("released", blur=blur, iterations=3, dtype=torch.float64, **options))
    inputs = problem((7, 9), batch=2)
    assert_same(results(call, crf, *inputs), results(released_oracle, crf, *inputs), rms=1e-11, worst=1e-10)


def test_the_released_preset_has_no_position_in_the_colours_unless_asked_for():
    assert layer("released").theta("theta_space") is None
    crf = layer("released", appearance_position=True, dtype=torch.float64)
    assert_close("theta_space", crf.theta("theta_space"), torch.tensor(80.0, dtype=torch.float64))


def test_the_released_preset_starts_at_the_published_values():
    crf = tc.ConvCRF(C, preset="released", compatibility=True, dtype=torch.float64)
    published = {
        "inverse_theta_smooth": 1 / 3,
        "inverse_theta_color": 1 / 13,
        "weight_smooth": 3,
        "weight_appearance": 10,
        "class_weight": [0.2] * C,
        "compatibility": [[0.1 * math.sqrt(2 / C)] * C] * C,
    }
    assert_same(dict(crf.named_parameters()), {n: torch.tensor(v, dtype=torch.float64) for n, v in published.items()})


def test_a_class_weight_of_zero_leaves_the_logarithms_of_the_softmax():
    crf = layer("released")
    torch.nn.init.zeros_(crf.class_weight)
    logits, image = problem(dtype=torch.float32)
    assert_close("S", crf(logits, image), torch.log_softmax(logits, 1))


# The same in dense matrices ---------------------------------------------------------------------------------------


def dense_layer(crf, logits, image):
    """S_T from the parameters alone."""
    size, released = logits.shape[2:], crf.preset == "released"

    def over(x, name):
        scale = getattr(crf, f"inverse_{name}") if released else torch.exp(-getattr(crf, f"log_{name}"))
        return x * scale.reshape(-1, *(1,) * len(size))

    grid = crf.positions if crf.positions is not None else pixel_grid(size, crf.spacing)
    appearance = over(image.double() * (1 if image.dtype == torch.uint8 else 255), "theta_color")
    if crf.theta("theta_space") is not None:
        space = over(grid, "theta_space").expand(len(image), *grid.shape)
        appearance = torch.cat([appearance, space], 1)
    window = {k: v for k, v in crf.window.items() if k not in ("precision", "backend")}
    matrices = [dense_window(f, **window) for f in (over(grid, "theta_smooth")[None], appearance)]
    eye = torch.eye(len(logits[0]), dtype=logits.dtype)
    mu = -eye if crf.compatibility is None else -(eye + crf.compatibility)
    options = {}
    if released:
        logits, mu = torch.log_softmax(logits, 1), crf.class_weight.diag() @ mu
        options = {"unary_weight": 1 - crf.class_weight, "initial": "log_softmax"}
    weights = [crf.weight_smooth, crf.weight_appearance]
    return dense_scores(logits, matrices, weights, mu, crf.iterations, **options)


def pixel_grid(size, spacing=None):
    """Coordinates [D, *S] in units of `spacing`."""
    spacing = [spacing or 1] * len(size) if not isinstance(spacing, tuple) else spacing
    axes = [torch.arange(n, dtype=torch.float64) * s for n, s in zip(size, spacing)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@variants
def test_scores_and_every_gradient_are_those_of_dense_matrices(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    inputs = problem(batch=2)
    assert_same(results(call, crf, *inputs), results(dense_layer, crf, *inputs), rms=1e-11, worst=1e-10)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("blur", [1, 2, 4])
def test_the_published_algorithm_itself_is_its_dense_matrices(blur, normalization):
    crf = layer(
        "released", window_size=5, blur=blur, appearance_position=True, compatibility=True,
        normalization=normalization, dtype=torch.float64,
    )  # fmt: skip
    inputs = problem((9, 11), batch=2)
    disturbed(crf)
    assert_close("S", released_oracle(crf, *inputs), dense_layer(crf, *inputs))


SHAPES = {
    "pixel": ((1, 1), None),
    "row": ((1, 9), None),
    "column": ((8, 1), None),
    "image": ((5, 4), None),
    "image-spacing": ((5, 4), 0.7),
    "image-anisotropic": ((4, 7), (0.5, 2.0)),
    "signal": ((9,), None),
    "signal-spacing": ((9,), 0.5),
    "volume": ((3, 4, 5), None),
    "volume-anisotropic": ((3, 5, 4), (3.0, 0.7, 1.2)),
}


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("blur", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_signals_images_and_volumes(shape, blur, preset):
    size, spacing = SHAPES[shape]
    crf = layer(blur=blur, theta_smooth=1.5, theta_space=5.0, spacing=spacing, preset=preset, dtype=torch.float64)
    inputs = problem(size, batch=2)
    with torch.no_grad():
        assert_close("S", crf(*inputs), dense_layer(crf, *inputs))


def test_a_spacing_of_an_axis_is_a_bandwidth_of_it():
    inputs = problem()
    spaced = layer(theta_smooth=1.5, theta_space=5.0, spacing=(0.5, 2.0), dtype=torch.float64)
    scaled = layer(theta_smooth=(3.0, 0.75), theta_space=(10.0, 2.5), dtype=torch.float64)
    assert_close("S", spaced(*inputs), scaled(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learnt_positions_start_at_the_pixels(dtype):
    size, spacing = (4, 5), (0.1, 3.0)
    inputs = problem(size, dtype=dtype)
    learnt = layer(learn_positions=size, spacing=spacing, dtype=dtype)
    assert_close("positions", learnt.positions, pixel_grid(size, spacing).to(dtype))
    assert_close("S", learnt(*inputs), layer(spacing=spacing, dtype=dtype)(*inputs))


# The layer is mean_field ------------------------------------------------------------------------------------------


def by_hand(logits, image, **options):
    kernels = [
        tc.filters.Window(f, window_size=11, blur=4, normalization="symmetric")
        for f in (tc.features.spatial(logits.shape[2:], 3), tc.features.bilateral(image, 80, 13))
    ]
    return tc.mean_field(logits, kernels, weights=[3.0, 10.0], iterations=5, **options)


@pytest.mark.parametrize("output", ["logits", "probabilities", "log_probabilities"])
def test_defaults_are_mean_field_by_hand(output):
    logits, image = problem((13, 17), batch=2, dtype=torch.float32)
    assert_close(output, tc.ConvCRF(C)(logits, image, output=output), by_hand(logits, image, output=output))


def test_logits_are_what_comes_out_unless_asked_otherwise():
    logits, image = problem()
    crf = layer()
    assert torch.equal(crf(logits, image), crf(logits, image, output="logits"))


@variants
def test_outputs_agree(variant):
    crf, inputs = layer(variant), problem(batch=2)
    s = crf(*inputs)
    assert_close("probabilities", crf(*inputs, output="probabilities"), s.softmax(1))
    assert_close("log_probabilities", crf(*inputs, output="log_probabilities"), s.log_softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@variants
def test_an_image_of_bytes_is_the_same_in_floats(variant, dtype):
    crf = layer(variant, dtype=dtype)
    logits, image = problem(batch=2, dtype=dtype)
    assert_close("S", crf(logits, image), crf(logits, image.to(dtype) / 255))


def test_features_stand_in_for_an_image():
    crf = layer(dtype=torch.float64)
    logits, image = problem(batch=2)
    (f,) = leaves(tc.features.bilateral(image.double() / 255, 80, 13))
    s = crf(logits, features=f)
    assert_close("S", s, crf(logits, image))
    s.square().sum().backward()
    assert f.grad.isfinite().all() and f.grad.abs().max() > 0
    assert crf.log_theta_smooth.grad != 0 and crf.log_theta_color.grad is None


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_and_features_of_any_number_of_channels(channels):
    crf = layer("no-position", dtype=torch.float64)
    logits, image = random_logits(SIZE, C), picture(channels=channels)
    assert_close("S of an image", crf(logits, image), dense_layer(crf, logits, image))
    assert_close("S of features", crf(logits, features=image.double() / 13), crf(logits, image))


def test_one_image_serves_a_batch_of_scores():
    crf, logits, image = layer(), random_logits(SIZE, C, batch=3), picture()
    expected = crf(logits, image.expand(3, -1, -1, -1))
    assert_close("image", crf(logits, image), expected)
    assert_close("features", crf(logits, features=tc.features.bilateral(image, 80, 13)), expected, rms=1e-5, worst=1e-4)


def test_without_iterations_scores_are_the_logits():
    logits, image = problem()
    assert torch.equal(layer(iterations=0)(logits, image), logits)
    assert_close("released", layer("released", iterations=0)(logits, image), logits.log_softmax(1))


# Sizes, batches and symmetries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", [1, 2])
@variants
def test_a_batch_is_its_images_one_by_one(variant, blur):
    crf = disturbed(layer(variant, blur=blur, dtype=torch.float64))
    logits, image = problem(batch=3)
    singles = [crf(logits[b : b + 1], image[b : b + 1]) for b in range(3)]
    assert_close("S", crf(logits, image), torch.cat(singles))


@pytest.mark.parametrize("blur", [1, 2])
@variants
def test_an_empty_batch(variant, blur):
    crf = layer(variant, blur=blur)
    found = results(call, crf, *problem(batch=0, dtype=torch.float32))
    assert found["scores"].shape == (0, C, *SIZE)
    assert not any(found[f"{name}'s gradient"].any() for name, _ in crf.named_parameters())


@pytest.mark.parametrize("preset", [None, "released"])
def test_one_layer_serves_several_sizes(preset):
    crf = layer(preset=preset, dtype=torch.float64)
    before = copy.deepcopy(crf.state_dict())
    for size, batch in ((5, 4), 1), ((1, 9), 3), ((9,), 2), ((3, 4, 5), 1), ((5, 4), 2):
        inputs = problem(size, batch)
        assert_close(f"S of {size}", crf(*inputs), dense_layer(crf, *inputs))
    assert_same(crf.state_dict(), before)


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize("blur, size", [(1, (5, 6)), (2, (6, 8)), (4, (6, 8))])
def test_mirrored_images_have_mirrored_scores(blur, size, preset, dims):
    """With blur only where the blocks are mirrored too: as many pixels missing before the image as after it."""
    crf, (logits, image) = layer(blur=blur, preset=preset, dtype=torch.float64), problem(size)
    assert_close("S", crf(logits.flip(dims), image.flip(dims)), crf(logits, image).flip(dims))


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 4)], ids=["image", "volume"])
@pytest.mark.parametrize("blur", [1, 2])
def test_transposed_images_have_transposed_scores(blur, size):
    thetas = {"theta_smooth": tuple(range(2, 2 + len(size))), "theta_space": tuple(range(20, 20 + len(size)))}
    crf = layer(blur=blur, dtype=torch.float64, **thetas)
    turned = layer(blur=blur, dtype=torch.float64, **{name: theta[::-1] for name, theta in thetas.items()})
    logits, image = problem(size)
    axes = [0, 1, *reversed(range(2, 2 + len(size)))]
    assert_close("S", turned(logits.permute(axes), image.permute(axes)), crf(logits, image).permute(axes))


@variants
def test_classes_have_no_order(variant):
    crf, (logits, image) = disturbed(layer(variant, dtype=torch.float64)), problem()
    order = torch.tensor([2, 0, 1])
    permuted = copy.deepcopy(crf)
    with torch.no_grad():
        for p in (permuted.weight_smooth, permuted.weight_appearance, permuted.class_weight):
            if p is not None and p.ndim == 1:
                p.copy_(p[order])
        if crf.compatibility is not None:
            permuted.compatibility.copy_(crf.compatibility[order][:, order])
    assert_close("S", permuted(logits[:, order], image), crf(logits, image)[:, order])


@pytest.mark.parametrize("preset", [None, "released"])
def test_the_initial_compatibility_changes_no_probability(preset):
    inputs = problem()
    learnt = layer(compatibility=True, preset=preset, dtype=torch.float64)
    plain = layer(preset=preset, dtype=torch.float64)
    arguments = {"output": "log_probabilities"}
    assert_close("log-probabilities", learnt(*inputs, **arguments), plain(*inputs, **arguments))
    assert (learnt(*inputs) - plain(*inputs)).abs().max() > 0.1


@pytest.mark.parametrize("preset", [None, "released"])
def test_a_constant_per_pixel_in_the_logits_changes_no_probability(preset):
    crf, (logits, image) = layer(preset=preset, dtype=torch.float64), problem()
    shifted = logits + 5 * torch.randn(1, 1, *SIZE, dtype=torch.float64)
    arguments = {"output": "log_probabilities"}
    assert_close("log-probabilities", crf(shifted, image, **arguments), crf(logits, image, **arguments))


def test_one_class_is_certain():
    crf = layer(num_classes=1, compatibility=True)
    q = crf(torch.randn(1, 1, *SIZE), picture(), output="probabilities")
    assert_close("Q", q, torch.ones(1, 1, *SIZE))


# Training ---------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "default": {"log_theta_smooth": [], "log_theta_space": [], "log_theta_color": [], "weight_smooth": [],
                "weight_appearance": []},
    "all": {"log_theta_smooth": [], "log_theta_space": [], "log_theta_color": [], "weight_smooth": [C],
            "weight_appearance": [C], "compatibility": [C, C], "positions": [2, *SIZE]},
    "theta-per-axis": {"log_theta_smooth": [2], "log_theta_space": [2], "log_theta_color": [3], "weight_smooth": [],
                       "weight_appearance": []},
    "no-position": {"log_theta_smooth": [], "log_theta_color": [], "weight_smooth": [], "weight_appearance": []},
    "released-all": {"inverse_theta_smooth": [], "inverse_theta_space": [2], "inverse_theta_color": [],
                     "weight_smooth": [C], "weight_appearance": [C], "class_weight": [C], "compatibility": [C, C],
                     "positions": [2, *SIZE]},
}  # fmt: skip


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters_and_their_shapes(variant):
    crf = layer(variant)
    assert {name: list(p.shape) for name, p in crf.named_parameters()} == PARAMETERS[variant]
    assert crf.state_dict().keys() == PARAMETERS[variant].keys()


@variants
def test_thetas_are_those_given(variant):
    crf = layer(variant, dtype=torch.float64)
    given = {"theta_smooth": 3.0, "theta_space": 80.0, "theta_color": 13.0, **VARIANTS[variant]}
    if not given.get("appearance_position", crf.preset is None):
        given["theta_space"] = None  # no position, no bandwidth
    for name in ("theta_smooth", "theta_space", "theta_color"):
        if given[name] is None:
            assert crf.theta(name) is None
        else:
            assert_close(name, crf.theta(name), torch.tensor(given[name], dtype=torch.float64))


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


def test_frozen_parameters_get_no_gradient():
    crf = layer("all")
    crf.log_theta_color.requires_grad_(False)
    crf.positions.requires_grad_(False)
    cross_entropy(crf, *problem(dtype=torch.float32)).backward()
    for name, p in crf.named_parameters():
        assert (p.grad is None) == (name in ("log_theta_color", "positions")), name


@pytest.mark.parametrize("blur", [1, 2])
@pytest.mark.parametrize("variant", ["default", "all", "theta-per-axis", "released", "released-all"])
def test_gradcheck(variant, blur):
    size = {"learn_positions": (3, 4)} if "learn_positions" in VARIANTS[variant] else {}
    crf = disturbed(layer(variant, blur=blur, num_classes=2, dtype=torch.float64, **size))
    names, values = zip(*crf.named_parameters())
    logits, image = random_logits((3, 4), 2), picture((3, 4))

    def scores(logits, *parameters):
        return torch.func.functional_call(crf, dict(zip(names, parameters)), (logits, image))

    assert torch.autograd.gradcheck(scores, leaves(logits, *values))


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


@pytest.mark.parametrize("variant", ["default", "released", "class-weights", "compatibility"])
def test_training_lowers_the_loss_the_same_way_every_time(variant):
    data = halves()
    options = {**VARIANTS[variant], "weight_smooth": 0.3, "weight_appearance": 0.3}
    losses = trained_losses(data, **options)
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.95 * losses[0]
    assert trained_losses(data, **options) == losses


def test_it_repairs_noise():
    logits, image, labels = halves()
    q = layer(num_classes=2, window_size=5, blur=1)(logits, image)
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


@variants
def test_a_deep_copy_is_equal_and_apart(variant):
    crf, inputs = disturbed(layer(variant)), problem(dtype=torch.float32)
    other, expected = copy.deepcopy(crf), crf(*inputs).detach()
    assert torch.equal(other(*inputs), expected)
    disturbed(other)
    assert torch.equal(crf(*inputs), expected) and not torch.equal(other(*inputs), expected)


@variants
def test_a_layer_moved_to_float64_computes_in_it(variant):
    crf, inputs = disturbed(layer(variant)).to(torch.float64), problem()
    assert {p.dtype for p in crf.parameters()} == {torch.float64}
    assert_close("S", crf(*inputs), dense_layer(crf, *inputs))


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
    crf = layer("released-all", device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in crf.parameters()} == {("meta", torch.float16)}


def test_it_says_what_it_is():
    text = repr(tc.ConvCRF(21, window_size=7, blur=2, preset="released"))
    for part in ("ConvCRF(", "num_classes=21", "window_size=7", "blur=2", "iterations=5", "'released'", "'none'"):
        assert part in text


# Compilers --------------------------------------------------------------------------------------------------------

COMPILED = ["default", "all", "theta-per-axis", "released", "released-all"]


@pytest.mark.parametrize("variant", COMPILED)
def test_compiled_whole_it_is_the_same(variant):
    torch.compiler.reset()
    crf = disturbed(layer(variant))
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    inputs = problem(batch=2, dtype=torch.float32)
    found = results(lambda _, *inputs: compiled(*inputs), crf, *inputs)
    assert_same(found, results(call, crf, *inputs))


def test_compiled_it_serves_several_sizes():
    torch.compiler.reset()
    crf = layer()
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    for size in (5, 6), (7, 9), (8, 11):
        inputs = problem(size, dtype=torch.float32)
        assert_close(f"S of {size}", compiled(*inputs), crf(*inputs))


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
    ("num_classes", True, TypeError),
    ("window_size", 4, ValueError),
    ("window_size", -3, ValueError),
    ("window_size", 33, ValueError),
    ("window_size", 3.0, TypeError),
    ("blur", 0, ValueError),
    ("blur", "2", TypeError),
    ("iterations", -1, ValueError),
    ("iterations", None, TypeError),
    *((name, value, ValueError) for name in ("theta_smooth", "theta_space", "theta_color") for value in (
        0, -1.0, math.nan, math.inf, (3.0, -1.0, 2.0), (1.0, 2.0, 3.0, 4.0), ())),
    *((name, value, TypeError) for name in ("theta_smooth", "theta_space", "theta_color") for value in (
        "3", True, [[3.0, 3.0]], {"y": 3.0})),
    *((name, None, TypeError) for name in ("theta_smooth", "theta_color")),
    ("appearance_position", 1, TypeError),
    *((name, value, error) for name in ("weight_smooth", "weight_appearance") for value, error in (
        (math.nan, ValueError), (math.inf, ValueError), ("3", TypeError), (None, TypeError), ([1.0] * C, TypeError),
        (False, TypeError))),
    ("class_weights", 1, TypeError),
    ("class_weights", [1.0] * C, TypeError),
    ("compatibility", "potts", TypeError),
    ("compatibility", None, TypeError),
    ("learn_positions", 6, ValueError),
    ("learn_positions", True, ValueError),
    ("learn_positions", (6, 0), ValueError),
    ("learn_positions", (6.0, 7.0), TypeError),
    ("learn_positions", (1, 2, 3, 4), ValueError),
    ("normalization", "sym", ValueError),
    ("normalization", True, ValueError),
    ("include_self", 1, TypeError),
    ("spacing", 0, ValueError),
    ("spacing", (1.0, -1.0), ValueError),
    ("spacing", (1.0, 2.0, 3.0), ValueError),
    ("spacing", "1mm", TypeError),
    ("preset", "release", ValueError),
    ("preset", True, ValueError),
    ("precision", "high", ValueError),
    ("backend", "cuda", ValueError),
    ("backend", "triton", ValueError),
    ("dtype", torch.int32, TypeError),
    ("dtype", torch.complex64, TypeError),
]  # fmt: skip


def described(value) -> str:
    return str(value).replace("torch.", "") or "nothing"


def test_a_bandwidth_of_the_position_brings_the_position_in():
    assert layer(preset="released").theta("theta_space") is None
    assert_close("theta_space", layer(preset="released", theta_space=40).theta("theta_space"), torch.tensor(40.0))
    with pytest.raises(ValueError, match="^theta_space: expected None with appearance_position=False, got 40"):
        layer(theta_space=40, appearance_position=False)


@pytest.mark.parametrize("name, value, error", BAD_ARGUMENTS, ids=described)
def test_bad_arguments(name, value, error):
    """What the layer cannot know without an image, such as the number of axes, it says at the first call."""
    with pytest.raises(error, match=rf"^{name}: .*(expected|runs on).*got "):
        layer(**{name: value})(*problem(dtype=torch.float32))


@pytest.mark.parametrize("name", ["theta_smooth", "theta_space"])
def test_a_theta_for_each_of_too_many_axes_beside_learnt_positions(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected.*got 3"):
        layer("learn-positions", **{name: (1.0, 2.0, 3.0)})(*problem())


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
@pytest.mark.parametrize("name", ["theta_smooth", "theta_color", "weight_smooth"])
def test_arrays_where_numbers_belong_are_taken_or_refused_by_name(name, make):
    three = make([1.0, 2.0, 3.0])
    try:
        layer(**{name: three})(*problem((3, 4, 5)))
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{name}: expected")


LOGITS, IMAGE = torch.zeros(1, C, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
NAN = torch.full((1, 3, 4, 5), math.nan)


@pytest.mark.parametrize("preset", [None, "released"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": LOGITS.numpy()}, TypeError, "^logits: expected a floating.*ndarray.*torch.from_numpy"),
        ({"logits": None}, TypeError, "^logits: expected a floating.*got None"),
        ({"logits": LOGITS.int()}, TypeError, "^logits: expected a floating.*got a int32"),
        ({"logits": LOGITS[0, 0]}, ValueError, r"^logits: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"logits": LOGITS[:, :2]}, ValueError, r"^logits: expected 3 classes on axis 1, got shape \[1, 2, 4, 5\]"),
        ({"logits": LOGITS[:, :0]}, ValueError, "^logits: expected 3 classes"),
        ({"logits": LOGITS + math.nan}, ValueError, "^logits: expected finite values, got 60 NaN or infinite of 60"),
        ({"logits": LOGITS - math.inf}, ValueError, "^logits: expected finite values, got 60"),
        ({"image": None}, ValueError, "^image: expected an image or features, got neither"),
        ({"features": IMAGE.float()}, ValueError, "^image: expected an image or features, got both"),
        ({"image": IMAGE.numpy()}, TypeError, "^image: expected a uint8 .*ndarray.*torch.from_numpy"),
        ({"image": "photo.jpg"}, TypeError, "^image: expected a uint8 .*got 'photo.jpg'"),
        ({"image": IMAGE.int()}, TypeError, "^image: expected a uint8 .*got a int32"),
        ({"image": IMAGE.mT}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[1, 3, 5, 4\]"),
        ({"image": IMAGE[0]}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[3, 4, 5\]"),
        ({"image": IMAGE[:, :0]}, ValueError, r"^image: expected at least one channel, got shape \[1, 0, 4, 5\]"),
        ({"image": IMAGE.expand(2, -1, -1, -1)}, ValueError, r"expected a batch of 2 .*got \[1, 3, 4, 5\]"),
        ({"image": IMAGE.float() + 255}, ValueError, "^image: expected floating values from 0 to 1, got 255 to 255"),
        ({"image": NAN}, ValueError, "^image: expected finite values, got 60"),
        ({"image": IMAGE[:, :2]}, ValueError, "^theta_color: expected one number or 2 .*got 3"),
        ({"image": None, "features": NAN.numpy()}, TypeError, "^features: expected a floating.*torch.from_numpy"),
        ({"image": None, "features": IMAGE}, TypeError, "^features: expected a floating.*got a uint8"),
        ({"image": None, "features": NAN}, ValueError, "^features: expected finite values, got 60"),
        ({"image": None, "features": NAN.mT}, ValueError, r"^features: expected the spatial size \[4, 5\]"),
        ({"image": None, "features": NAN[:, :0]}, ValueError, "^features: expected at least one channel"),
        ({"output": "prob"}, ValueError, "^output: expected one of 'probabilities', .* got 'prob'"),
        ({"output": None}, ValueError, "^output: expected one of .* got None"),
    ],
)
def test_bad_inputs(change, error, message, preset):
    crf = layer(preset=preset, theta_color=(10.0, 13.0, 15.0))
    with pytest.raises(error, match=message):
        crf(**{"logits": LOGITS, "image": IMAGE, **change})


@pytest.mark.parametrize("size", [(6, 8), (7, 6), (7,), (6, 7, 1)], ids=str)
@pytest.mark.parametrize("variant", ["learn-positions", "released-all"])
def test_learnt_positions_refuse_another_size(variant, size):
    with pytest.raises(
        ValueError, match=r"^logits: expected the spatial size \[6, 7\] of learn_positions, got shape \["
    ):
        layer(variant)(*problem(size))


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="^(logits|image): expected"):
        layer()(LOGITS[..., :0], IMAGE[..., :0])


def test_only_first_derivatives_are_offered():
    logits, image = problem()
    (logits,) = leaves(logits)
    (gradient,) = torch.autograd.grad(layer()(logits, image).square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()

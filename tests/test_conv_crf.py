"""ConvCRF in PyTorch: against the published algorithm and dense matrices, and what its own arguments do."""

import math

import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from bench.peers import im2col_convcrf
from cases import dense_scores, dense_window, disturbed, random_logits
from covering import covering
from problems import CLASSES, CONV_CRF, assert_same, results

C = CLASSES
SIZE = CONV_CRF.size
layer, picture, problem = CONV_CRF.make, CONV_CRF.picture, CONV_CRF.problem
variants = pytest.mark.parametrize("variant", CONV_CRF.variants)


# The published algorithm ----------------------------------------------------------------------

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


@pytest.mark.parametrize(
    "size, window_size, blur, normalization, release",
    covering(RELEASE_SIZES, [5, 7, 11], [1, 2, 4], ["none", "symmetric"], RELEASES, at_once=3),
)
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
    assert_same(results(crf, *inputs), results(crf, *inputs, run=released_oracle), rms=1e-11, worst=1e-10)


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
        seen = grid if released else pixel_grid(size, crf.spacing)
        space = over(seen, "theta_space").expand(len(image), *grid.shape)
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
    return dense_scores(logits, matrices, weights, mu, crf.iterations, **options, **crf.update)


def pixel_grid(size, spacing=None):
    """Coordinates [D, *S] in units of `spacing`."""
    spacing = [spacing or 1] * len(size) if not isinstance(spacing, tuple) else spacing
    axes = [torch.arange(n, dtype=torch.float64) * s for n, s in zip(size, spacing)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@variants
def test_scores_and_every_gradient_are_those_of_dense_matrices(variant):
    crf = disturbed(layer(variant, dtype=torch.float64))
    logits, photo = problem(batch=2)
    for image in photo, photo.double() / 255:
        inputs = logits, image
        assert_same(results(crf, *inputs), results(crf, *inputs, run=dense_layer), rms=1e-11, worst=1e-10)


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


@pytest.mark.parametrize("preset", [None, "released"])
def test_only_the_preset_s_appearance_kernel_sees_learnt_positions(preset):
    logits, image = problem(dtype=torch.float64)
    crf = layer(
        learn_positions=logits.shape[2:], theta_space=4.0, weight_smooth=0.0, preset=preset, dtype=torch.float64
    )
    before = crf(logits, image)
    with torch.no_grad():
        crf.positions.mul_(1.5)
    same = torch.equal(crf(logits, image), before)
    assert same == (preset is None)


# The layer is mean_field ------------------------------------------------------------------------------------------


def by_hand(logits, image, **options):
    kernels = [
        tc.filters.Window(f, window_size=11, blur=4, normalization="symmetric")
        for f in (tc.features.spatial(logits.shape[2:], 3), tc.features.bilateral(image, 30, 5))
    ]
    return tc.mean_field(logits, kernels, weights=[1.0, 1.0], iterations=5, **options)


@pytest.mark.parametrize("output", ["logits", "probabilities", "log_probabilities"])
def test_defaults_are_mean_field_by_hand(output):
    logits, image = problem((13, 17), batch=2, dtype=torch.float32)
    assert_close(output, tc.ConvCRF(C)(logits, image, output=output), by_hand(logits, image, output=output))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_and_features_of_any_number_of_channels(channels):
    crf = layer("no-position", dtype=torch.float64)
    logits, image = random_logits(SIZE, C), picture(channels=channels)
    assert_close("S of an image", crf(logits, image), dense_layer(crf, logits, image))
    assert_close("S of features", crf(logits, features=image.double() / 5), crf(logits, image))


def test_the_bandwidths_of_the_appearance_are_not_those_of_features():
    crf, logits = layer(dtype=torch.float64), random_logits(SIZE, C)
    crf(logits, features=CONV_CRF.features(picture())).square().sum().backward()
    assert crf.log_theta_smooth.grad != 0 and crf.log_theta_color.grad is None


# What its own arguments do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "released"])
def test_the_initial_compatibility_is_seen_in_the_scores(preset):
    inputs = problem()
    learnt = layer(compatibility=True, preset=preset, dtype=torch.float64)
    plain = layer(preset=preset, dtype=torch.float64)
    assert (learnt(*inputs) - plain(*inputs)).abs().max() > 0.1


@variants
def test_thetas_are_those_given(variant):
    crf = layer(variant, dtype=torch.float64)
    space, color = (30.0, 5.0) if crf.preset is None else (80.0, 13.0)
    given = {"theta_smooth": 3.0, "theta_space": space, "theta_color": color, **CONV_CRF.variants[variant]}
    if not given.get("appearance_position", crf.preset is None):
        given["theta_space"] = None  # no position, no bandwidth
    for name in ("theta_smooth", "theta_space", "theta_color"):
        if given[name] is None:
            assert crf.theta(name) is None
        else:
            assert_close(name, crf.theta(name), torch.tensor(given[name], dtype=torch.float64))


def test_a_bandwidth_of_the_position_brings_the_position_in():
    assert layer(preset="released").theta("theta_space") is None
    assert_close("theta_space", layer(preset="released", theta_space=40).theta("theta_space"), torch.tensor(40.0))
    with pytest.raises(ValueError, match="^theta_space: expected None with appearance_position=False, got 40"):
        layer(theta_space=40, appearance_position=False)


@pytest.mark.parametrize("name", ["theta_smooth", "theta_space"])
def test_a_theta_for_each_of_too_many_axes_beside_learnt_positions(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected.*got 3"):
        layer("learn-positions", **{name: (1.0, 2.0, 3.0)})(*problem())


@pytest.mark.parametrize("preset", [None, "released"])
def test_a_theta_for_each_of_other_channels(preset):
    logits, image = problem((4, 5))
    with pytest.raises(ValueError, match="^theta_color: expected one number or 2 .*got 3"):
        layer(preset=preset, theta_color=(10.0, 13.0, 15.0))(logits, image[:, :2])


@pytest.mark.parametrize("size", [(6, 8), (7, 6), (7,), (6, 7, 1)], ids=str)
@pytest.mark.parametrize("variant", ["learn-positions", "released-all"])
def test_learnt_positions_refuse_another_size(variant, size):
    with pytest.raises(
        ValueError, match=r"^logits: expected the spatial size \[6, 7\] of learn_positions, got shape \["
    ):
        layer(variant)(*problem(size))

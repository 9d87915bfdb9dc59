"""What every layer promises, whatever it computes: its inputs and outputs, training, PyTorch's machinery, and errors."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assertions import assert_close
from cases import disturbed, leaves, random_logits
from covering import combined_or_whole, covering
from problems import (
    CLASSES,
    CONV_CRF,
    CRF_RNN,
    GUIDANCE_CRF,
    LAYERS,
    assert_same,
    described,
    halves,
    named,
    results,
    trained_losses,
)

C = CLASSES


def parametrized(pairs, slow=()):
    """The test runs for each of these layers and variants."""
    return pytest.mark.parametrize(
        "layer, variant",
        [
            pytest.param(*pair, id=f"{pair[0].name}-{pair[1]}", marks=[pytest.mark.slow] * (pair in slow))
            for pair in pairs
        ],
    )


EVERY = [(layer, variant) for layer in LAYERS for variant in layer.variants]
WITHOUT_PARAMETERS = [(GUIDANCE_CRF, v) for v, chosen in GUIDANCE_CRF.variants.items() if "compatibility" not in chosen]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=named)
each_variant = parametrized(EVERY)
each_that_learns = parametrized([pair for pair in EVERY if pair not in WITHOUT_PARAMETERS])
each_preset = pytest.mark.parametrize("preset", [None, "released"])
half_precisions = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=described)


def once_with_each(dtypes):
    """The test runs for every layer and variant with one of the dtypes; in `make test-slow` with the others."""
    ways = covering(EVERY, dtypes, at_once=1, ids=in_name)
    return pytest.mark.parametrize(
        "layer, variant, dtype", [pytest.param(*w.values[0], w.values[1], id=w.id, marks=w.marks) for w in ways]
    )


def in_name(value) -> str:
    return f"{value[0].name}-{value[1]}" if isinstance(value, tuple) else described(value)


# Compatibility ----------------------------------------------------------------------------------------------------

LEARN_COSTS = [(CONV_CRF, "compatibility"), (CONV_CRF, "all"), (GUIDANCE_CRF, "compatibility")]
LEARN_COSTS += [(CRF_RNN, variant) for variant in ("default", "released", "released-keras", "released-pytorch")]


@parametrized(LEARN_COSTS)
@torch.no_grad()
def test_a_class_loses_by_its_cost_near_another(layer, variant):
    """However the layer stores it: where cost[0, 1] is greater, scores of class 0 are smaller, and no others."""
    crf, inputs = layer.make(variant, iterations=1).train(), layer.problem()
    before, cost = crf(*inputs), crf.cost.clone()
    crf.compatibility[0, 1] += 0.5
    changed, change = crf.cost - cost, (crf(*inputs) - before).mean((0, 2, 3))
    assert changed.abs().sum() == changed[0, 1].abs() > 0
    assert change[0].sign() == -changed[0, 1].sign()
    assert_close("others", change[1:], torch.zeros(C - 1, dtype=change.dtype), scale=change.abs().max().item())


@pytest.mark.parametrize("layer", [CONV_CRF, GUIDANCE_CRF], ids=named)
def test_a_cost_that_is_not_learnt_is_that_of_potts(layer):
    assert torch.equal(layer.make().cost, -torch.eye(C))


@pytest.mark.parametrize("preset", [None, "released", "released-keras", "released-pytorch"])
def test_every_preset_starts_at_the_cost_of_potts(preset):
    assert torch.equal(CRF_RNN.make(preset=preset).cost, -torch.eye(C))


# Outputs ----------------------------------------------------------------------------------------------------------

OUTPUTS = {
    "logits": torch.Tensor.clone,
    "probabilities": lambda s: s.softmax(1),
    "log_probabilities": lambda s: s.log_softmax(1),
}


@each_variant
def test_outputs_agree_and_logits_are_what_comes_out_unless_asked_otherwise(layer, variant):
    crf, inputs = layer.make(variant), layer.problem(batch=2)
    s = crf(*inputs)
    assert torch.equal(s, crf(*inputs, output="logits"))
    for output, of_scores in OUTPUTS.items():
        assert_close(output, crf(*inputs, output=output), of_scores(s))


@each_variant
def test_without_iterations_scores_are_the_logits(layer, variant):
    crf, (logits, image) = layer.make(variant, iterations=0), layer.problem(layer.size)
    if layer is CONV_CRF and crf.preset == "released":
        assert_close("S", crf(logits, image), logits.log_softmax(1))
    else:
        assert torch.equal(crf(logits, image), logits)


# Images, features and batches -------------------------------------------------------------------------------------


@once_with_each([torch.float32, torch.float64])
def test_an_image_of_bytes_is_the_same_in_floats(layer, variant, dtype):
    crf, (logits, image) = layer.make(variant, dtype=dtype), layer.problem(batch=2, dtype=dtype)
    # Rounded colours move a pixel in its simplex.
    tolerance = {"rms": 1e-5, "worst": 1e-4} if layer is CRF_RNN else {}
    assert_close("S", crf(logits, image), crf(logits, image.to(dtype) / 255), **tolerance)


@each_layer
def test_features_stand_in_for_an_image(layer):
    crf, (logits, image) = layer.make(dtype=torch.float64), layer.problem(layer.size, batch=2)
    expected = crf(logits, image)
    (f,) = leaves(layer.features(image.double() / 255))
    s = crf(logits, features=f)
    assert_close("S", s, expected)
    assert_close("S of float32 features", crf(logits, features=layer.features(image)), expected, rms=1e-5, worst=1e-4)
    s.square().sum().backward()
    assert f.grad.isfinite().all() and f.grad.abs().max() > 0


@each_variant
def test_one_image_serves_a_batch_of_scores(layer, variant):
    crf, logits, image = layer.make(variant), random_logits(layer.size, C, batch=3), layer.picture()
    assert_close("image", crf(logits, image), crf(logits, image.expand(3, -1, -1, -1)))
    f = layer.features(layer.picture(layer.size))
    assert_close("features", crf(logits, features=f), crf(logits, features=f.expand(3, -1, -1, -1)))


def blurs(layer):
    """Changes of a variant at which batches are tested."""
    return [{"blur": 1}, {"blur": 2}] if layer is CONV_CRF else [{}]


@each_variant
def test_a_batch_is_its_images_one_by_one(layer, variant):
    for changes in blurs(layer):
        crf = disturbed(layer.make(variant, dtype=torch.float64, **changes))
        logits, image = layer.problem(batch=3)
        singles = [crf(logits[b : b + 1], image[b : b + 1]) for b in range(3)]
        assert_close(f"S {changes}", crf(logits, image), torch.cat(singles))


@each_variant
def test_an_empty_batch(layer, variant):
    for changes in blurs(layer):
        crf = layer.make(variant, **changes)
        found = results(crf, *layer.problem(batch=0, dtype=torch.float32))
        assert found["scores"].shape == (0, C, *(layer.large if getattr(crf, "upsample", False) else layer.size))
        assert not any(found[f"{name}'s gradient"].any() for name, _ in crf.named_parameters())


SIZES = {  # of the scores, of the image, and the batch
    "ConvCRF": [((5, 4), None, 1), ((1, 9), None, 3), ((9,), None, 2), ((3, 4, 5), None, 1), ((5, 4), None, 2)],
    "CRFRNN": [((5, 4), None, 1), ((1, 9), None, 3), ((9,), None, 2), ((2, 3, 4), None, 1), ((5, 4), None, 2)],
    "GuidanceCRF": [
        ((9,), (21,), 1), ((5, 7), (13, 9), 1), ((2, 4, 3), (5, 4, 7), 3), ((5, 7), (5, 7), 1), ((9,), (21,), 2)
    ],
}  # fmt: skip


@each_preset
@each_layer
def test_one_layer_serves_several_sizes(layer, preset):
    """The tests of each layer hold new layers to dense matrices at these sizes."""
    crf = layer.make(preset=preset, dtype=torch.float64)
    new = copy.deepcopy(crf)
    for size, large, batch in SIZES[layer.name]:
        inputs = layer.problem(size, large, batch)
        assert_close(f"S of {size}", crf(*inputs), copy.deepcopy(new)(*inputs))
    assert_same(crf.state_dict(), new.state_dict())


# Symmetries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)], ids=["rows", "columns", "both"])
@each_preset
@pytest.mark.parametrize(
    "layer, changes, size, large",
    [
        (CONV_CRF, {"blur": 1}, (5, 6), None),
        (CONV_CRF, {"blur": 2}, (6, 8), None),
        (CONV_CRF, {"blur": 4}, (6, 8), None),
        (GUIDANCE_CRF, {}, (5, 6), (11, 14)),
    ],
    ids=["ConvCRF", "ConvCRF-blur-2", "ConvCRF-blur-4", "GuidanceCRF"],
)
def test_mirrored_images_have_mirrored_scores(layer, changes, size, large, preset, dims):
    """With blur only where the blocks are mirrored too: as many pixels missing before the image as after it.

    A lattice is not its own mirror image.
    """
    crf, (logits, image) = layer.make(preset=preset, dtype=torch.float64, **changes), layer.problem(size, large)
    assert_close("S", crf(logits.flip(dims), image.flip(dims)), crf(logits, image).flip(dims))


@pytest.mark.parametrize(
    "layer, size, large, per_axis",
    [
        *((CONV_CRF, (5, 7), None, {"blur": blur, "theta_smooth": (2, 3), "theta_space": (20, 21)}) for blur in (1, 2)),
        *((CONV_CRF, (3, 5, 4), None, {"blur": blur, "theta_smooth": (2, 3, 4), "theta_space": (20, 21, 22)})
          for blur in (1, 2)),
        (GUIDANCE_CRF, (5, 6), (11, 14), {"radius": (1, 2)}),
    ],
    ids=["ConvCRF-image", "ConvCRF-image-blur-2", "ConvCRF-volume", "ConvCRF-volume-blur-2", "GuidanceCRF"],
)  # fmt: skip
def test_transposed_images_have_transposed_scores(layer, size, large, per_axis):
    crf = layer.make(dtype=torch.float64, **per_axis)
    turned = {name: given[::-1] if isinstance(given, tuple) else given for name, given in per_axis.items()}
    logits, image = layer.problem(size, large)
    axes = [0, 1, *reversed(range(2, 2 + len(size)))]
    found = layer.make(dtype=torch.float64, **turned)(logits.permute(axes), image.permute(axes))
    assert_close("S", found, crf(logits, image).permute(axes))


@each_variant
def test_classes_have_no_order(layer, variant):
    crf, (logits, image) = disturbed(layer.make(variant, dtype=torch.float64)), layer.problem()
    order = torch.tensor([2, 0, 1])
    permuted = copy.deepcopy(crf)
    with torch.no_grad():
        for name, p in permuted.named_parameters():
            if name in ("weight_smooth", "weight_appearance", "class_weight", "compatibility"):
                for axis in range(p.ndim):
                    p.copy_(p.index_select(axis, order))
    assert_close("S", permuted(logits[:, order], image), crf(logits, image)[:, order])


@parametrized([(CONV_CRF, "default"), (CONV_CRF, "released"), (GUIDANCE_CRF, "default"), (GUIDANCE_CRF, "all")])
def test_at_the_start_the_compatibility_is_the_potts_model(layer, variant):
    inputs = layer.problem()
    learnt, plain = (
        layer.make(variant, compatibility=c, dtype=torch.float64)(*inputs, output="log_probabilities")
        for c in (True, False)
    )
    assert_close("log-probabilities", learnt, plain)


@each_variant
def test_a_constant_per_pixel_in_the_logits_changes_no_probability(layer, variant):
    crf, (logits, image) = layer.make(variant, dtype=torch.float64), layer.problem()
    shifted = logits + 5 * torch.randn(1, 1, *layer.size, dtype=torch.float64)
    arguments = {"output": "log_probabilities"}
    assert_close("log-probabilities", crf(shifted, image, **arguments), crf(logits, image, **arguments))


@parametrized([(CONV_CRF, "compatibility"), (CRF_RNN, "default"), (GUIDANCE_CRF, "compatibility")])
def test_rows_that_are_added_to_mu_change_nothing(layer, variant):
    """So its gradient has columns that add up to 0."""
    crf, inputs = disturbed(layer.make(variant, dtype=torch.float64)), layer.problem()
    cross_entropy(crf, *inputs).backward()
    gradient = crf.compatibility.grad
    assert_close("columns", gradient.sum(0), torch.zeros(C, dtype=torch.float64), scale=gradient.abs().max().item())
    expected = crf(*inputs, output="log_probabilities")
    crf.compatibility.data += torch.randn(C, dtype=torch.float64)
    assert_close("log-probabilities", crf(*inputs, output="log_probabilities"), expected)


# Training ---------------------------------------------------------------------------------------------------------

LOG_THETAS = {"log_theta_smooth": [], "log_theta_space": [], "log_theta_color": []}
PARAMETERS = [  # and their shapes
    (CONV_CRF, "default", {**LOG_THETAS, "weight_smooth": [], "weight_appearance": []}),
    (CONV_CRF, "all", {**LOG_THETAS, "weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C],
                       "positions": [2, *CONV_CRF.size]}),
    (CONV_CRF, "theta-per-axis", {"log_theta_smooth": [2], "log_theta_space": [2], "log_theta_color": [3],
                                  "weight_smooth": [], "weight_appearance": []}),
    (CONV_CRF, "no-position", {"log_theta_smooth": [], "log_theta_color": [], "weight_smooth": [],
                               "weight_appearance": []}),
    (CONV_CRF, "released-all", {"inverse_theta_smooth": [], "inverse_theta_space": [2], "inverse_theta_color": [],
                                "weight_smooth": [C], "weight_appearance": [C], "class_weight": [C],
                                "compatibility": [C, C], "positions": [2, *CONV_CRF.size]}),
    (CRF_RNN, "default", {"weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C]}),
    (CRF_RNN, "full", {"weight_smooth": [C, C], "weight_appearance": [C, C], "compatibility": [C, C]}),
    (CRF_RNN, "scalar", {"weight_smooth": [], "weight_appearance": [], "compatibility": [C, C]}),
    (CRF_RNN, "learn-thetas", {**LOG_THETAS, "weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C]}),
    (CRF_RNN, "learn-theta-per-axis", {**LOG_THETAS, "log_theta_smooth": [2], "log_theta_color": [3],
                                       "weight_smooth": [C], "weight_appearance": [C], "compatibility": [C, C]}),
    (CRF_RNN, "released", {"weight_smooth": [C, C], "weight_appearance": [C, C], "compatibility": [C, C]}),
    (GUIDANCE_CRF, "compatibility", {"compatibility": [C, C]}),
    (GUIDANCE_CRF, "all", {"compatibility": [C, C]}),
    *((*pair, {}) for pair in WITHOUT_PARAMETERS),
]  # fmt: skip


@pytest.mark.parametrize(
    "layer, variant, shapes", [pytest.param(*row, id=f"{row[0].name}-{row[1]}") for row in PARAMETERS]
)
def test_parameters_and_their_shapes(layer, variant, shapes):
    crf = layer.make(variant)
    assert {name: list(p.shape) for name, p in crf.named_parameters()} == shapes
    assert crf.state_dict().keys() == shapes.keys()


def cross_entropy(crf, logits, image):
    scores = crf(logits, image)
    labels = torch.arange(scores[:, 0].numel()).view(scores[:, 0].shape) // 5 % C
    return F.cross_entropy(scores, labels)


@each_that_learns
def test_one_step_of_training_moves_every_parameter(layer, variant):
    crf = layer.make(variant, dtype=torch.float64)
    before = copy.deepcopy(crf.state_dict())
    cross_entropy(crf, *layer.problem(batch=2)).backward()
    torch.optim.SGD(crf.parameters(), lr=0.01).step()
    for name, p in crf.named_parameters():
        assert p.grad.isfinite().all() and (p.grad != 0).all(), name
        assert (p != before[name]).all(), name


@parametrized(
    [(CONV_CRF, "all"), (CONV_CRF, "released-all"), (CRF_RNN, "learn-thetas"), (GUIDANCE_CRF, "compatibility")]
)
def test_frozen_parameters_get_no_gradient(layer, variant):
    logits, image = layer.problem(dtype=torch.float32)
    names = [name for name, _ in layer.make(variant).named_parameters()]
    for frozen in names[::2], names[1::2], ["log_theta_color", "positions"], names:
        crf, (u,) = layer.make(variant), leaves(logits)
        for name, p in crf.named_parameters():
            p.requires_grad_(name not in frozen)
        cross_entropy(crf, u, image).backward()
        for name, p in crf.named_parameters():
            assert (p.grad is None) == (name in frozen), name
        assert u.grad.abs().max() > 0


@combined_or_whole
@pytest.mark.parametrize(
    "layer, variant, changes",
    [
        *(pytest.param(CONV_CRF, variant, {"blur": blur}, id=f"ConvCRF-{variant}-{blur}")
          for variant in ("default", "all", "theta-per-axis", "released", "released-all") for blur in (1, 2)),
        *(pytest.param(CRF_RNN, variant, {}, id=f"CRFRNN-{variant}")
          for variant in ("learn-thetas", "learn-theta-per-axis", "released-learn-thetas", "full")),
        pytest.param(GUIDANCE_CRF, "compatibility", {"iterations": 2}, id="GuidanceCRF-compatibility"),
    ],
)  # fmt: skip
def test_gradcheck(layer, variant, changes, fast_mode):
    """Where there is a lattice no pixel of this seed changes its simplex within the step. What ConvCRF's image gets is
    held to dense matrices instead, which takes less time."""
    if "learn_positions" in layer.variants[variant]:
        changes = {**changes, "learn_positions": (3, 4)}
    crf = disturbed(layer.make(variant, num_classes=2, dtype=torch.float64, **changes))
    names = [name for name, _ in crf.named_parameters()]
    logits, image = random_logits((3, 4), 2), layer.picture((3, 4)).double() / 255

    def scores(logits, image, *parameters):
        return torch.func.functional_call(crf, dict(zip(names, parameters)), (logits, image))

    inputs = leaves(logits, image, *crf.parameters())
    inputs[1].requires_grad_(layer is not CONV_CRF)
    assert torch.autograd.gradcheck(scores, inputs, fast_mode=fast_mode)


WEAK = {"weight_smooth": 0.3, "weight_appearance": 0.3}


@pytest.mark.parametrize(
    "layer, variant, changes",
    [
        *(pytest.param(CONV_CRF, variant, WEAK, id=f"ConvCRF-{variant}")
          for variant in ("default", "released", "class-weights", "compatibility")),
        *(pytest.param(CRF_RNN, variant, WEAK, id=f"CRFRNN-{variant}")
          for variant in ("default", "full", "scalar", "released", "released-pytorch")),
        pytest.param(GUIDANCE_CRF, "compatibility", {"strength": 0.3}, id="GuidanceCRF-compatibility"),
    ],
)  # fmt: skip
def test_training_lowers_the_loss_the_same_way_every_time(layer, variant, changes):
    data, steps = (halves((16, 16), step=2), 12) if layer is GUIDANCE_CRF else (halves(), 8)
    losses, again = (trained_losses(layer.make(variant, num_classes=2, **changes), data, steps) for _ in range(2))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.95 * losses[0]
    assert again == losses


@pytest.mark.parametrize(
    "layer, changes, size, step",
    [
        (CONV_CRF, {"window_size": 5, "blur": 1, "weight_smooth": 3, "weight_appearance": 10}, (12, 12), 1),
        (CRF_RNN, {"weight_appearance": 5}, (20, 20), 1),
        (GUIDANCE_CRF, {"radius": 3, "strength": 10}, (40, 40), 2),
    ],
    ids=["ConvCRF", "CRFRNN", "GuidanceCRF"],
)
def test_it_repairs_noise(layer, changes, size, step):
    logits, image, labels = halves(size, step)
    q = layer.make(num_classes=2, **changes).eval()(logits, image)
    before, after = ((s.argmax(1) != labels).float().mean() for s in (F.interpolate(logits, scale_factor=step), q))
    assert before > 0.2 and after < before / 4


# A module among modules -------------------------------------------------------------------------------------------


@each_that_learns
def test_state_survives_saving_and_loading(layer, variant, tmp_path):
    crf, inputs = disturbed(layer.make(variant)), layer.problem(dtype=torch.float32)
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    other = layer.make(variant)
    assert not torch.equal(other(*inputs), crf(*inputs))
    other.load_state_dict(torch.load(tmp_path / "crf.pt", weights_only=True))
    assert torch.equal(other(*inputs), crf(*inputs))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda crf: pickle.loads(pickle.dumps(crf))], ids=["copy", "pickle"])
@each_variant
def test_a_copy_is_equal_and_apart(layer, variant, make):
    crf, inputs = disturbed(layer.make(variant)), layer.problem(dtype=torch.float32)
    expected = crf(*inputs).detach()
    other = make(crf)
    assert torch.equal(other(*inputs), expected)
    disturbed(other)
    assert torch.equal(crf(*inputs), expected)
    assert torch.equal(other(*inputs), expected) == ((layer, variant) in WITHOUT_PARAMETERS)


@each_variant
def test_a_layer_moved_to_float64_computes_in_it(layer, variant):
    """As one that was made in it, which the tests of each layer hold to dense matrices."""
    crf, inputs = disturbed(layer.make(variant)).to(torch.float64), layer.problem()
    assert all(p.dtype == torch.float64 for p in crf.parameters())
    made = layer.make(variant, dtype=torch.float64)
    made.load_state_dict(crf.state_dict())
    assert torch.equal(crf(*inputs), made(*inputs))


@half_precisions
@each_that_learns
def test_parameters_of_half_precision(layer, variant, dtype):
    crf, (logits, image) = layer.make(variant).to(dtype), layer.problem(dtype=torch.float32)
    found, eps = results(crf, logits, image), torch.finfo(dtype).eps
    tolerance = {} if layer is GUIDANCE_CRF else {"rms": 4 * eps, "worst": 8 * eps}
    assert_close("S", found["scores"], copy.deepcopy(crf).float()(logits, image).detach(), **tolerance)
    for name, p in crf.named_parameters():
        gradient = found[f"{name}'s gradient"]
        assert gradient.dtype == p.dtype == dtype and gradient.isfinite().all() and gradient.abs().max() > 0, name


@once_with_each([torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_summed_in_float32(layer, variant, dtype):
    crf, (logits, image) = layer.make(variant), layer.problem(dtype=dtype)
    for output in OUTPUTS:
        s = crf(logits, image, output=output)
        assert s.dtype == dtype
        assert torch.equal(s, crf(logits.float(), image, output=output).to(dtype))


@once_with_each([torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(layer, variant, dtype):
    crf, (logits, image) = disturbed(layer.make(variant)), layer.problem(dtype=dtype)
    image = image / 255 if layer is GUIDANCE_CRF else image  # in floats its gradient is looked at, too
    expected = results(crf, logits, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(crf, logits, image)
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


@each_that_learns
def test_parameters_are_made_where_and_as_asked(layer, variant):
    crf = layer.make(variant, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in crf.parameters()} == {("meta", torch.float16)}


@pytest.mark.parametrize(
    "layer, arguments, parts",
    [
        (CONV_CRF, {"window_size": 7, "blur": 2}, ("window_size=7", "blur=2", "iterations=5", "'none'")),
        (CRF_RNN, {"theta_color": 4}, ("iterations=10", "'after'", "theta_color=4.0")),
        (GUIDANCE_CRF, {"radius": (5, 4), "eps": 2, "strength": 3},
         ("radius=(5, 4)", "eps=2.0", "iterations=3", "strength=3.0", "upsample=True", "'constant'")),
    ],
    ids=["ConvCRF", "CRFRNN", "GuidanceCRF"],
)  # fmt: skip
def test_it_says_what_it_is(layer, arguments, parts):
    text = repr(layer.kind(21, preset="released", **arguments))
    for part in (f"{layer.name}(", "num_classes=21", "'released'", *parts):
        assert part in text


# Compilers --------------------------------------------------------------------------------------------------------

compilable = parametrized(
    [
        *((CONV_CRF, v) for v in ("default", "all", "theta-per-axis", "released", "released-all")),
        *(
            (CRF_RNN, v)
            for v in ("default", "full", "learn-thetas", "theta-per-axis", "symmetric-not-self", "released")
        ),
        *((GUIDANCE_CRF, v) for v in ("default", "all", "released")),
    ],
    slow=[(CONV_CRF, "theta-per-axis"), (CRF_RNN, "full"), (CRF_RNN, "theta-per-axis")],
)
SEVERAL_SIZES = "default", "symmetric-not-self"
COMPILED_SIZES = {  # of the scores, of the image, and the batch; from the second on sizes are symbols
    "ConvCRF": [((6, 7), None, 2), ((7, 9), None, 1), ((8, 11), None, 1)],
    "CRFRNN": [((5, 6), None, 2), ((7, 9), None, 2)],
    "GuidanceCRF": [((5, 6), (11, 14), 2), ((5, 6), (10, 12), 1), ((7, 9), (15, 23), 1), ((8, 11), (17, 24), 1)],
}


@compilable
@pytest.mark.extras
def test_compiled_whole_it_is_the_same(layer, variant):
    """With its gradients, and some at several sizes."""
    torch.compiler.reset()
    crf = disturbed(layer.make(variant))
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    sizes = COMPILED_SIZES[layer.name]
    for size, large, batch in sizes if variant in SEVERAL_SIZES else sizes[:1]:
        logits, image = layer.problem(size, large, batch, torch.float32)
        inputs = logits, image / 255 if layer is GUIDANCE_CRF else image
        found = results(crf, *inputs, run=lambda _, *inputs: compiled(*inputs))
        assert_same(found, results(crf, *inputs))


@compilable
@pytest.mark.extras
def test_exported_it_is_the_same(layer, variant):
    crf, inputs = disturbed(layer.make(variant)), layer.problem(dtype=torch.float32)
    program = torch.export.export(crf, inputs)
    others = layer.problem(dtype=torch.float32)
    assert_close("S", program.module()(*others), crf(*others))


# Bad input --------------------------------------------------------------------------------------------------------

THETAS = "theta_smooth", "theta_space", "theta_color"
WEIGHTS = "weight_smooth", "weight_appearance"
NOT_POSITIVE = [0, -1.0, math.nan, math.inf, (3.0, -1.0, 2.0), (1.0, 2.0, 3.0, 4.0), ()]
NOT_NUMBERS = ["3", True, [[3.0, 3.0]], {"y": 3.0}]
BAD_ARGUMENTS = [  # of which layers
    (LAYERS, [
        ("num_classes", 0, ValueError), ("num_classes", 2.5, TypeError), ("num_classes", True, TypeError),
        ("iterations", -1, ValueError), ("iterations", 2.5, TypeError), ("iterations", True, TypeError),
        ("preset", "release", ValueError), ("preset", "caffe", ValueError), ("preset", True, ValueError),
        ("precision", "high", ValueError), ("backend", "cuda", ValueError), ("backend", "triton", ValueError),
        ("damping", 1.0, ValueError), ("damping", -0.5, ValueError), ("damping", "0.5", TypeError),
        ("temperature", 0, ValueError), ("temperature", math.inf, ValueError), ("temperature", None, TypeError),
        ("dtype", torch.int32, TypeError), ("dtype", torch.complex64, TypeError), ("dtype", "float32", TypeError),
    ]),
    ([CONV_CRF, CRF_RNN], [
        *((name, value, ValueError) for name in THETAS for value in NOT_POSITIVE),
        *((name, value, TypeError) for name in THETAS for value in NOT_NUMBERS),
        ("theta_smooth", None, TypeError),
        *((name, value, ValueError) for name in WEIGHTS for value in (math.nan, math.inf)),
        *((name, value, TypeError) for name in WEIGHTS for value in ("3", [1.0] * C, False)),
        ("normalization", "sym", ValueError), ("normalization", True, ValueError), ("include_self", 1, TypeError),
        ("spacing", 0, ValueError), ("spacing", (1.0, -1.0), ValueError), ("spacing", (1.0, 2.0, 3.0), ValueError),
        ("spacing", "1mm", TypeError),
    ]),
    ([CONV_CRF, GUIDANCE_CRF], [
        ("iterations", None, TypeError), ("compatibility", "potts", TypeError), ("compatibility", None, TypeError),
    ]),
    ([CONV_CRF], [
        ("window_size", 4, ValueError), ("window_size", -3, ValueError), ("window_size", 33, ValueError),
        ("window_size", 3.0, TypeError), ("blur", 0, ValueError), ("blur", "2", TypeError),
        ("appearance_position", 1, TypeError), ("class_weights", 1, TypeError), ("class_weights", [1.0] * C, TypeError),
        ("learn_positions", 6, ValueError), ("learn_positions", True, ValueError),
        ("learn_positions", (6, 0), ValueError), ("learn_positions", (6.0, 7.0), TypeError),
        ("learn_positions", (1, 2, 3, 4), ValueError),
    ]),
    ([CRF_RNN], [
        ("test_iterations", -1, ValueError), ("test_iterations", 2.5, TypeError), ("test_iterations", True, TypeError),
        ("test_iterations", None, TypeError), ("normalization", None, ValueError),
        ("kernel_weights", "matrix", ValueError), ("kernel_weights", True, ValueError), ("learn_thetas", 1, TypeError),
    ]),
    ([GUIDANCE_CRF], [
        ("radius", 0, ValueError), ("radius", 1.0, TypeError), ("radius", None, TypeError),
        ("radius", (1, 0), ValueError), ("radius", (), ValueError), ("radius", (1, 2, 3), ValueError),
        *((name, value, ValueError) for name in ("eps", "strength") for value in (math.nan, math.inf)),
        *((name, value, TypeError) for name in ("eps", "strength") for value in ("1", None, [1.0], True)),
        ("eps", 0, ValueError), ("eps", -1.0, ValueError), ("box", "mean", ValueError), ("box", True, ValueError),
        ("subsample", 0, ValueError), ("subsample", 2.0, TypeError), ("upsample", 4, TypeError),
    ]),
]  # fmt: skip


def rows_of(table, shown):
    """Each row of a table once for each of the layers that it is for; `shown` are the columns in its name."""
    return [
        pytest.param(layer, *row, id="-".join([layer.name, *(described(row[i]) for i in shown)]))
        for layers, rows in table
        for layer in layers
        for row in rows
    ]


@each_preset
@pytest.mark.parametrize("layer, name, value, error", rows_of(BAD_ARGUMENTS, shown=(0, 1)))
def test_bad_arguments(layer, name, value, error, preset):
    """What the layer cannot know without an image, such as the number of axes, it says at the first call."""
    with pytest.raises(error, match=rf"^{name}: .*(expected|runs on).*got "):
        layer.make(**{"preset": preset, name: value})(*layer.problem(dtype=torch.float32))


@pytest.mark.parametrize("name, value", [("damping", 0.5), ("temperature", 2.0)])
@pytest.mark.parametrize("layer", LAYERS, ids=named)
def test_presets_update_as_published(layer, name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected . with preset='released', which has none, got {value}"):
        layer.make(preset="released", **{name: value})


@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
@pytest.mark.parametrize("name", ["theta_smooth", "theta_color", "weight_smooth"])
@pytest.mark.parametrize("layer", [CONV_CRF, CRF_RNN], ids=named)
def test_arrays_where_numbers_belong_are_taken_or_refused_by_name(layer, name, make):
    three = make([1.0, 2.0, 3.0])
    try:
        layer.make(**{name: three})(*layer.problem((3, 4, 5)))
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{name}: expected")


LOGITS, IMAGE = torch.zeros(1, C, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
LARGE = torch.zeros(1, 3, 9, 10, dtype=torch.uint8)
NAN = torch.full((1, 3, 4, 5), math.nan)
BAD_INPUTS = [  # of which layers
    (LAYERS, [
        ({"logits": LOGITS.numpy()}, TypeError, "^logits: expected a floating.*ndarray.*torch.from_numpy"),
        ({"logits": None}, TypeError, "^logits: expected a floating.*got None"),
        ({"logits": LOGITS.int()}, TypeError, "^logits: expected a floating.*got a int32"),
        ({"logits": LOGITS[0, 0]}, ValueError, r"^logits: expected \[B, C, \*S\].*got shape \[4, 5\]"),
        ({"logits": LOGITS[..., :0]}, ValueError, "^logits: expected at least one pixel"),
        ({"logits": LOGITS[..., :0], "image": IMAGE[..., :0]}, ValueError, "^logits: expected at least one pixel"),
        ({"logits": LOGITS[:, :2]}, ValueError, r"^logits: expected 3 classes on axis 1, got shape \[1, 2, 4, 5\]"),
        ({"logits": LOGITS[:, :0]}, ValueError, "^logits: expected 3 classes"),
        ({"logits": LOGITS + math.nan}, ValueError, "^logits: expected finite values, or -inf .*, got 60"),
        ({"logits": LOGITS - math.inf}, ValueError, "^logits: expected a class that is not ruled out"),
        ({"image": None}, ValueError, "^image: expected an image or features, got neither"),
        ({"features": IMAGE.float()}, ValueError, "^image: expected an image or features, got both"),
        ({"image": IMAGE.numpy()}, TypeError, "^image: expected a uint8 .*ndarray.*torch.from_numpy"),
        ({"image": "photo.jpg"}, TypeError, "^image: expected a uint8 .*got 'photo.jpg'"),
        ({"image": IMAGE.int()}, TypeError, "^image: expected a uint8 .*got a int32"),
        ({"image": IMAGE[:, :0]}, ValueError, r"^image: expected at least one channel, got shape \[1, 0, 4, 5\]"),
        ({"image": IMAGE.expand(2, -1, -1, -1)}, ValueError, r"^logits: expected a batch of 2 .*got \[1, 3, 4, 5\]"),
        ({"image": IMAGE.float() + 255}, ValueError, "^image: expected floating values from 0 to 1, got 255 to 255"),
        ({"image": NAN}, ValueError, "^image: expected finite values, got 60"),
        ({"image": IMAGE.to("meta")}, ValueError, "^image: expected the device of logits, cpu, got meta"),
        ({"image": None, "features": NAN.numpy()}, TypeError, "^features: expected a floating.*torch.from_numpy"),
        ({"image": None, "features": IMAGE}, TypeError, "^features: expected a floating.*got a uint8"),
        ({"image": None, "features": NAN.int()}, TypeError, "^features: expected a floating.*got a int32"),
        ({"image": None, "features": NAN}, ValueError, "^features: expected finite values, got 60"),
        ({"image": None, "features": NAN.mT}, ValueError, r"^features: expected the spatial size \[4, 5\] of logits"),
        ({"image": None, "features": LARGE.float()}, ValueError, r"^features: expected the spatial size \[4, 5\] of log"),
        ({"output": "prob"}, ValueError, "^output: expected one of 'probabilities', .* got 'prob'"),
        ({"output": None}, ValueError, "^output: expected one of .* got None"),
    ]),
    ([CONV_CRF, CRF_RNN], [
        ({"image": IMAGE.mT}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[1, 3, 5, 4\]"),
        ({"image": IMAGE[0]}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[3, 4, 5\]"),
        ({"image": LARGE}, ValueError, r"^image: expected the spatial size \[4, 5\].*got \[1, 3, 9, 10\]"),
        ({"image": None, "features": NAN[:, :0]}, ValueError, "^features: expected at least one channel"),
    ]),
    ([CRF_RNN], [
        ({"image": None, "features": 1e6 * torch.arange(20.0).expand(1, 3, -1).reshape(IMAGE.shape)}, ValueError, "^features: expected lattice coordinates"),
    ]),
    ([GUIDANCE_CRF], [
        ({"image": LARGE.numpy()}, TypeError, "^image: expected a uint8 .*ndarray.*torch.from_numpy"),
        ({"image": LARGE.int()}, TypeError, "^image: expected a uint8 .*got a int32"),
        ({"image": LARGE[..., :4]}, ValueError, r"^image: expected at least the spatial size \[4, 5\] of logits, got \[1, 3, 9, 4\]"),
        ({"image": LARGE[:, :, :3]}, ValueError, r"^image: expected at least the spatial size \[4, 5\] of logits, got \[1, 3, 3, 10\]"),
        ({"image": LARGE[0]}, ValueError, r"^image: expected at least the spatial size \[4, 5\].*got \[3, 9, 10\]"),
        ({"image": LARGE[..., None]}, ValueError, r"^image: expected at least the spatial size \[4, 5\].*got \[1, 3, 9, 10, 1\]"),
        ({"image": LARGE[:, :0]}, ValueError, r"^image: expected at least one channel, got shape \[1, 0, 9, 10\]"),
        ({"image": LARGE.repeat(1, 3, 1, 1)}, ValueError, r"^image: expected 1 to 8 channels on axis 1, got shape \[1, 9, "),
        ({"image": LARGE.expand(2, -1, -1, -1)}, ValueError, r"^logits: expected a batch of 2 .*got \[1, 3, 4, 5\]"),
        ({"image": LARGE.float() + 255}, ValueError, "^image: expected floating values from 0 to 1, got 255 to 255"),
        ({"image": LARGE.to("meta")}, ValueError, "^image: expected the device of logits, cpu, got meta"),
        ({"image": None, "features": NAN[:, :0]}, ValueError, "^features: expected 1 to 8 channels"),
        ({"image": None, "features": torch.zeros(1, 9, 4, 5)}, ValueError, "^features: expected 1 to 8 channels"),
    ]),
]  # fmt: skip


@each_preset
@pytest.mark.parametrize("layer, change, error, message", rows_of(BAD_INPUTS, shown=(2,)))
def test_bad_inputs(layer, change, error, message, preset):
    with pytest.raises(error, match=message):
        layer.make(preset=preset)(**{"logits": LOGITS, "image": IMAGE, **change})


@each_variant
def test_the_layers_device_is_that_of_its_parameters(layer, variant):
    crf, inputs = layer.make(variant, device="meta"), layer.problem()
    if (layer, variant) in WITHOUT_PARAMETERS:
        assert crf(*inputs).device.type == "cpu"  # it has none
    else:
        with pytest.raises(ValueError, match="^logits: expected the layer's device, meta, got cpu"):
            crf(*inputs)


@each_variant
def test_only_first_derivatives_are_offered(layer, variant):
    logits, image = layer.problem()
    (logits,) = leaves(logits)
    (gradient,) = torch.autograd.grad(layer.make(variant)(logits, image).square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()

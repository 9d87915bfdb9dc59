"""The authors' configurations of ConvCRF, against the form in NumPy of what their code computes with each."""

import re

import numpy as np
import pytest
import torch

import tritoncrf as tc
from assertions import assert_close
from bench.published import convcrf, derivatives
from bench.published.arrays import softmax
from cases import disturbed
from problems import assert_same, results
from tritoncrf.published import CONVCRF_CONF, CONVCRF_NAMES

C, SIZE, ITERATIONS = 3, (5, 6), 2
THEIRS = {own: name for name, own in CONVCRF_NAMES.items()}


def conf(**changes):
    """The authors' default at a small window, with changes; those of pos_feats and col_feats join what is there."""
    merged = {"filter_size": 3, "blur": 2, "trainable": True, **changes}
    for name in "pos_feats", "col_feats":
        merged[name] = {**CONVCRF_CONF[name], **changes.get(name, {})}
    return {**CONVCRF_CONF, **merged}


POSITION = {"col_feats": {"use_bias": True, "sdims": 20}}
CONFIGURATIONS = {
    "default": {},
    "test-config": {
        "filter_size": 5, "blur": 1, "merge": False, "norm": "sym", "weight": "scalar", "weight_init": 0.5,
        "pos_feats": {"sdims": 1.5, "compat": 3}, "col_feats": {"sdims": 2, "schan": 2, "compat": 3, "use_bias": True},
    },
    "no-weight": {"weight": None},
    "no-weight-whatever-the-others": {"weight": None, "unary_weight": 7, "weight_init": 0.9},
    "scalar": {"weight": "scalar", "weight_init": 0.3},
    "unary-weight": {"unary_weight": 2.5, "weight_init": 0.7},
    "unary-weight-scalar": {"unary_weight": 0.5, "weight": "scalar"},
    "probabilities": {"logsoftmax": False},
    "probabilities-no-weight": {"logsoftmax": False, "weight": None, "convcomp": True},
    "convolution": {"convcomp": True},
    "convolution-scalar": {"convcomp": True, "weight": "scalar"},
    "coordinates": {"trainable_bias": True, **POSITION},
    "symmetric": {"norm": "sym", "merge": False},
    "not-merged": {"merge": False},
    "position": POSITION,
    "other-numbers": {"pos_feats": {"sdims": 2, "compat": -1}, "col_feats": {"schan": 30, "compat": 2}, "pyinn": True},
    "all": {
        "norm": "sym", "merge": False, "blur": 4, "weight": "scalar", "unary_weight": 1.5, "convcomp": True,
        "trainable_bias": True, "logsoftmax": False, **POSITION,
    },
}  # fmt: skip


def made(name, **options):
    """The configuration, and the layer made of it, its parameters disturbed."""
    configuration = conf(**CONFIGURATIONS[name])
    crf = tc.ConvCRF.from_published(configuration, C, SIZE, ITERATIONS, **{"dtype": torch.float64, **options})
    return configuration, disturbed(crf)


def problem():
    """Logits, and colours close to each other."""
    return torch.randn(1, C, *SIZE, dtype=torch.float64), torch.rand(1, 3, *SIZE, dtype=torch.float64) / 4


def form_of(configuration):
    """What the authors' code computes, with the layer's own names of parameters and images of 0..1; where it takes
    probabilities, of those of the logits."""

    def form(logits, image, **parameters):
        unary = logits if configuration["logsoftmax"] else softmax(logits)
        theirs = {THEIRS[name]: value for name, value in parameters.items()}
        return convcrf.scores(unary, 255 * image, theirs, configuration, ITERATIONS)

    return form


def arrays(crf, logits, image):
    return {
        "logits": logits.numpy(),
        "image": image.numpy(),
        **{name: p.detach().numpy() for name, p in crf.named_parameters()},
    }


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_computes_what_the_authors_code_does(name):
    configuration, crf = made(name)
    inputs = problem()
    expected = form_of(configuration)(**arrays(crf, *inputs))
    assert_close("S", crf(*inputs), torch.from_numpy(expected))


@pytest.mark.parametrize("name", ["default", "no-weight", "scalar", "all"])
def test_a_configuration_s_gradients_are_those_of_the_authors_code(name):
    configuration, crf = made(name)
    inputs = problem()
    found = results(crf, *inputs)
    generator = torch.Generator().manual_seed(1)  # of `results`
    cotangent = torch.randn(found["scores"].shape, dtype=torch.float64, generator=generator).numpy()
    exact = derivatives.gradients(form_of(configuration), arrays(crf, *inputs), cotangent, ("logits", "image"))
    expected = {f"{name}'s gradient": torch.from_numpy(gradient) for name, gradient in exact.items()}
    expected["scores"] = torch.from_numpy(form_of(configuration)(**arrays(crf, *inputs)))
    assert_same(found, expected)


def test_the_authors_default_is_the_preset():
    published, preset = tc.ConvCRF.from_published({}, C), tc.ConvCRF(C, preset="released")
    assert str(published) == str(preset)
    assert_same(dict(published.named_parameters()), dict(preset.named_parameters()))


@pytest.mark.parametrize("trainable", [False, True])
def test_what_learns_is_what_learns_there(trainable):
    configuration = conf(trainable=trainable, convcomp=True, trainable_bias=True)
    crf = tc.ConvCRF.from_published(configuration, C, SIZE)
    frozen = {name for name, p in crf.named_parameters() if not p.requires_grad}
    scalars = {"inverse_theta_smooth", "inverse_theta_color", "weight_smooth", "weight_appearance", "class_weight"}
    assert frozen == (set() if trainable else scalars)


REFUSED = [
    ({"softmax": False}, "conf['softmax']: expected True,"),
    ({"final_softmax": True}, "conf['final_softmax']: expected False, got True; use crf(..., output='probabilities')"),
    ({"norm": "sym"}, "conf['merge']: expected False with norm='sym',"),
    ({"norm": "before"}, "conf['norm']: expected one of 'none', 'sym', got 'before'"),
    ({"weight": "matrix"}, "conf['weight']: expected None, 'scalar' or 'vector', got 'matrix'"),
    ({"weight": ["scalar"]}, "conf['weight']: expected None, 'scalar' or 'vector', got ['scalar']"),
    ({"filter_size": 4}, "conf['filter_size']: expected an odd int"),
    ({"filter_size": 33}, "conf['filter_size']: expected an odd int from 1 to 31, got 33"),
    ({"blur": 0}, "conf['blur']: expected an int"),
    ({"weight_init": None}, "conf['weight_init']: expected a finite number"),
    ({"trainable": 1}, "conf['trainable']: expected"),
    ({"filtersize": 7, "sdims": 3}, "conf: expected keys of filter_size, blur,"),
    ({"col_feats": {"schan": 0}}, "conf['col_feats']['schan']: expected"),
    ({"pos_feats": {"schan": 3}}, "conf['pos_feats']: expected keys of sdims, compat, got schan"),
    ({"trainable_bias": True}, "size: expected H and W of the images for trainable_bias=True, got None"),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_offered_is_refused_by_its_name(changes, message):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)) as raised:
        tc.ConvCRF.from_published({**CONVCRF_CONF, **changes}, C)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("given", [None, [("blur", 2)]], ids=["none", "list"])
def test_a_configuration_that_is_no_dict(given):
    with pytest.raises(TypeError, match="^conf: expected a dict, got"):
        tc.ConvCRF.from_published(given, C)
    with pytest.raises(TypeError, match=r"^conf\['col_feats'\]: expected a dict, got"):
        tc.ConvCRF.from_published({"col_feats": given}, C)


def test_a_size_that_is_none():
    with pytest.raises(ValueError, match="^size: expected 1 to 3 spatial sizes, got 50"):
        tc.ConvCRF.from_published({"trainable_bias": True}, C, 50)


# Saved parameters -------------------------------------------------------------------------------------------------

SAVED = {"class_weight": lambda x: x.reshape(1, -1, 1, 1), "compatibility": lambda x: x[:, :, None, None]}


def state_of(crf, layer=""):
    """The state dict of the authors' GaussCRF with the parameters of this layer."""
    state = {}
    for name, p in crf.named_parameters():
        values = p.detach().float()
        saved = SAVED[name](values) if name in SAVED and values.ndim else values
        state[layer + THEIRS[name]] = saved.reshape(1) if saved.ndim == 0 else saved
    state.setdefault(f"{layer}mesh", torch.from_numpy(np.indices(SIZE)).float())
    return state


@pytest.mark.parametrize("layer", ["", "module.crf."])
@pytest.mark.parametrize("name", ["default", "no-weight", "scalar", "all"])
def test_the_authors_parameters_are_taken(name, layer):
    configuration, theirs = made(name, dtype=torch.float32)
    crf = tc.ConvCRF.from_published(configuration, C, SIZE)
    state = state_of(theirs, layer)
    if layer:
        state["module.backbone.weight"] = torch.zeros(2)
    crf.load_published(state)
    assert_same(dict(crf.named_parameters()), dict(theirs.named_parameters()))


def test_a_number_of_the_authors_is_where_it_belongs():
    crf = tc.ConvCRF(2, preset="released", theta_space=10.0, compatibility=True)
    numbers = {"pos_sdims": [0.5], "col_sdims": [0.25], "col_schan": [0.125], "pos_compat": [2.0], "col_compat": [-3.0]}
    state = {**numbers, "CRF.weight": [[[[0.1]], [[0.3]]]], "CRF.comp.weight": [[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]}
    crf.load_published(state)
    expected = {
        "inverse_theta_smooth": 0.5, "inverse_theta_space": 0.25, "inverse_theta_color": 0.125, "weight_smooth": 2.0,
        "weight_appearance": -3.0, "class_weight": [0.1, 0.3], "compatibility": [[1.0, 2.0], [3.0, 4.0]],
    }  # fmt: skip
    assert_same(dict(crf.named_parameters()), {name: torch.tensor(value) for name, value in expected.items()})


def changed(state, **changes):
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


WRONG = [
    ({"pos_sdims": None}, "parameters: expected pos_sdims, col_schan, pos_compat, col_compat, CRF.weight, got pos_sdims"),
    ({"col_sdims": torch.ones(1)}, "parameters: expected pos_sdims, .* got col_sdims unknown"),
    ({"pos_compat": torch.ones(2)}, r"parameters\['pos_compat'\]: expected shape \[1\] or \[\], got \[2\]"),
    ({"CRF.weight": torch.ones(1)}, r"parameters\['CRF.weight'\]: expected shape \[1, 3, 1, 1\] or \[3\], got \[1\]"),
    ({"col_schan": torch.tensor([float("nan")])}, r"parameters\['col_schan'\]: expected finite values"),
    ({"mesh": torch.rand(2, 5, 6)}, r"parameters\['mesh'\]: expected the pixels' coordinates, .* learns none"),
    ({"a.pos_sdims": torch.ones(1)}, "parameters: expected pos_sdims of one layer, got pos_sdims, a.pos_sdims"),
]  # fmt: skip


@pytest.mark.parametrize("changes, message", WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_parameters_of_another_layer_are_refused_and_nothing_is_taken(changes, message):
    crf = tc.ConvCRF(C, preset="released")
    before = {name: p.detach().clone() for name, p in crf.named_parameters()}
    state = state_of(disturbed(tc.ConvCRF(C, preset="released")))
    with pytest.raises(ValueError, match="^" + message):
        crf.load_published(changed(state, **changes))
    assert all(torch.equal(p, before[name]) for name, p in crf.named_parameters())


def test_parameters_want_the_preset_and_a_dict():
    with pytest.raises(ValueError, match="^preset: expected 'released', as the parameters are its, got None"):
        tc.ConvCRF(C).load_published({})
    with pytest.raises(TypeError, match="^parameters: expected a dict of arrays, got"):
        tc.ConvCRF(C, preset="released").load_published([torch.ones(1)])


# The arguments of the layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [{"mixture": "none"}, {"weight_mixture": 0.2}], ids=str)
def test_a_mixture_belongs_to_the_preset(argument):
    with pytest.raises(ValueError, match=f"^{next(iter(argument))}: expected None without a preset, got"):
        tc.ConvCRF(C, **argument)


def test_no_mixture_has_no_weight():
    with pytest.raises(ValueError, match="^weight_mixture: expected None with mixture='none', got 0.3"):
        tc.ConvCRF(C, preset="released", mixture="none", weight_mixture=0.3)
    with pytest.raises(ValueError, match="^mixture: expected one of 'class', 'scalar', 'none', got 'vector'"):
        tc.ConvCRF(C, preset="released", mixture="vector")


def test_the_first_messages_of_a_damped_layer():
    with pytest.raises(ValueError, match="^initial: expected 'softmax' with damping=0.5, got 'log_softmax'"):
        tc.ConvCRF(C, damping=0.5, initial="log_softmax")


def test_the_weight_of_the_logits_without_a_preset():
    logits, image = problem()
    crf = tc.ConvCRF(C, 3, 2, 0, unary_weight=2.0, dtype=torch.float64)
    plain = tc.ConvCRF(C, 3, 2, 1, dtype=torch.float64)
    weighted = tc.ConvCRF(C, 3, 2, 1, unary_weight=2.0, dtype=torch.float64)
    assert_close("S - U", weighted(logits, image) - logits, plain(logits, image))
    assert_close("S_0", crf(logits, image), logits)

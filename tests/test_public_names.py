"""The public face: a name that users rely on changes here first."""

import inspect
import re

import tritoncrf as tc
from tritoncrf import densecrf, published
from tritoncrf.densecrf import utils

NAMES = [
    "CRFRNN",
    "ConvCRF",
    "GuidanceCRF",
    "PARAMETERS",
    "box_mean",
    "check_values",
    "features",
    "filters",
    "guided_filter",
    "mean_field",
    "refine",
    "trace",
]
FEATURES = ["bilateral", "color", "spatial"]
FILTERS = ["Exact", "Guided", "Lattice", "Window"]
LAYERS = ["CRFRNN", "ConvCRF", "GuidanceCRF", "Layer"]
TYPES = [
    "Array", "Backend", "Box", "Compatibility", "Image", "Initial", "Method", "Normalization", "Output", "Precision",
    "RefineOptions", "Theta",
]  # fmt: skip

# pydensecrf's own, so that its scripts run.
DENSECRF = [
    "CONST_KERNEL",
    "ConstUnary",
    "DIAG_KERNEL",
    "DenseCRF",
    "DenseCRF2D",
    "FULL_KERNEL",
    "KernelType",
    "LogisticUnary",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "NormalizationType",
    "Unary",
]
DENSECRF_UTILS = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]
SIGNATURES = {
    densecrf.DenseCRF: "nvar nlabels",
    densecrf.DenseCRF2D: "w h nlabels",
    densecrf.DenseCRF.setUnaryEnergy: "self u f",
    densecrf.DenseCRF.addPairwiseEnergy: "self features compat kernel normalization",
    densecrf.DenseCRF2D.addPairwiseGaussian: "self sxy compat kernel normalization",
    densecrf.DenseCRF2D.addPairwiseBilateral: "self sxy srgb rgbim compat kernel normalization",
    densecrf.DenseCRF.inference: "self niter",
    densecrf.DenseCRF.stepInference: "self Q tmp1 tmp2",
    densecrf.DenseCRF.klDivergence: "self Q",
    utils.unary_from_labels: "labels n_labels gt_prob zero_unsure",
    utils.unary_from_softmax: "sm scale clip",
    utils.compute_unary: "labels M GT_PROB",
    utils.softmax_to_unary: "sm GT_PROB",
    utils.create_pairwise_gaussian: "sdims shape",
    utils.create_pairwise_bilateral: "sdims schan img chdim",
}


def public(module) -> list[str]:
    """What a module says is public; a module that does not say is no public face."""
    return sorted(module.__all__)


def test_the_package():
    assert public(tc) == NAMES
    assert all(hasattr(tc, name) for name in NAMES)
    functions = "box_mean", "guided_filter", "mean_field", "refine", "trace"
    assert all(inspect.isfunction(getattr(tc, name)) for name in functions)


def test_the_rooms():
    assert public(tc.filters) == FILTERS
    assert public(tc.features) == FEATURES
    assert public(tc.layers) == LAYERS
    assert public(tc.types) == TYPES


def test_the_face_of_pydensecrf():
    assert public(densecrf) == DENSECRF
    assert public(utils) == DENSECRF_UTILS
    for function, names in SIGNATURES.items():
        assert list(inspect.signature(function).parameters) == names.split(), function
    every = [*(getattr(densecrf, name) for name in DENSECRF), *SIGNATURES]
    assert all(inspect.getdoc(thing) for thing in every)


def test_every_public_object_is_documented():
    objects = [tc, *(getattr(tc, name) for name in NAMES if name != "PARAMETERS")]
    objects += [getattr(tc.features, name) for name in FEATURES] + [getattr(tc.filters, name) for name in FILTERS]
    for thing in objects:
        assert inspect.getdoc(thing), thing
    assert all(f"\n    {name} " in published.__doc__ for name in tc.PARAMETERS)  # a mapping has no docstring


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tc.__version__)

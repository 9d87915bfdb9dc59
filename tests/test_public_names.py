"""The public API: a name that users rely on changes here first."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tritoncrf as tc
from tritoncrf import densecrf, published
from tritoncrf.densecrf import utils

NAMES = [
    "CRFRNN",
    "ConvCRF",
    "GuidanceCRF",
    "LOSSES",
    "PARAMETERS",
    "box_mean",
    "check_values",
    "clear_cache",
    "dense_crf_loss",
    "features",
    "filters",
    "guided_filter",
    "load_parameters",
    "mean_field",
    "refine",
    "refine_many",
    "trace",
    "tune",
]
FEATURES = ["bilateral", "color", "spatial"]
FILTERS = ["Exact", "Filter", "Function", "Guided", "Lattice", "Window"]
LAYERS = ["CRFRNN", "ConvCRF", "GuidanceCRF", "Layer"]
TYPES = [
    "Activation", "Array", "Backend", "Box", "Compatibility", "Image", "Initial", "LossForm", "Method", "Normalization",
    "Output", "Padding", "Precision", "RefineOptions", "Theta", "Unknown", "ValueRange",
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
    """What a module says is public; a module that does not say is not public."""
    return sorted(module.__all__)


def test_the_package():
    assert public(tc) == NAMES
    assert all(hasattr(tc, name) for name in NAMES)
    functions = (
        "box_mean",
        "clear_cache",
        "dense_crf_loss",
        "guided_filter",
        "mean_field",
        "refine",
        "refine_many",
        "trace",
    )
    assert all(inspect.isfunction(getattr(tc, name)) for name in functions)


def test_the_modules():
    assert public(tc.filters) == FILTERS
    assert public(tc.features) == FEATURES
    assert public(tc.layers) == LAYERS
    assert public(tc.types) == TYPES


def test_the_names_of_pydensecrf():
    assert public(densecrf) == DENSECRF
    assert public(utils) == DENSECRF_UTILS
    for function, names in SIGNATURES.items():
        assert list(inspect.signature(function).parameters) == names.split(), function
    every = [*(getattr(densecrf, name) for name in DENSECRF), *SIGNATURES]
    assert all(inspect.getdoc(thing) for thing in every)


def test_every_public_object_is_documented():
    objects = [tc, *(getattr(tc, name) for name in NAMES if name not in ("LOSSES", "PARAMETERS"))]
    objects += [getattr(tc.features, name) for name in FEATURES] + [getattr(tc.filters, name) for name in FILTERS]
    for thing in objects:
        assert inspect.getdoc(thing), thing
    assert all(f"\n    {name} " in published.__doc__ for name in tc.PARAMETERS)  # a mapping has no docstring


# Names are imported when they are first used ----------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "PIL", "matplotlib", "tqdm", "triton"}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "refin", "refine --bogus", "refine --help", "train --help", "predict --bogus"]
)
def test_the_command_line_answers_without_torch(arguments):
    imported = run_python(f"""
import contextlib, io, sys
import tritoncrf
assert not {HEAVY} & set(sys.modules), "import tritoncrf"
from tritoncrf.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main({arguments.split()})
print(*sys.modules)
""").split()
    assert not HEAVY & set(imported)
    assert len(imported) < 250, "each takes about a millisecond of the time until the answer"


FIRST = ["tritoncrf.refine", "tritoncrf.mean_field", "tritoncrf.features", "tritoncrf.cli", "tritoncrf.densecrf"]


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("tritoncrf.refine", "tritoncrf.features")))
        for name in FIRST
    ],
)
def test_names_are_the_same_whatever_was_imported_first(first):
    run_python(f"""
import {first}
import tritoncrf as tc
import inspect, sys
assert inspect.isfunction(tc.refine) and inspect.isfunction(tc.mean_field)
assert inspect.ismodule(tc.features) and inspect.ismodule(tc.filters)
from tritoncrf import features, filters, mean_field, refine
from tritoncrf.refine import refine as same
from tritoncrf.mean_field import mean_field as loop
assert refine is tc.refine is same and mean_field is tc.mean_field is loop
assert features is sys.modules["tritoncrf.features"]
import {", ".join(FIRST)}
assert tc.refine is same and tc.mean_field is loop
""")


def test_names_are_listed_before_they_are_imported():
    shown = run_python("import tritoncrf; print(*dir(tritoncrf))").split()
    assert set(NAMES) <= set(shown) and "__version__" in shown


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="^module 'tritoncrf' has no attribute 'refin'$"):
        tc.refin  # noqa: B018
    with pytest.raises(ImportError):
        from tritoncrf.models import SegModels  # noqa: F401


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tc.__version__)

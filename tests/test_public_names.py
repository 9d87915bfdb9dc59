"""The public face: a name that users rely on changes here first."""

import inspect
import re

import tritoncrf as tc

NAMES = ["ConvCRF", "check_values", "features", "filters", "mean_field", "refine"]
FEATURES = ["bilateral", "color", "spatial"]
FILTERS = ["Window"]


def public(module) -> list[str]:
    """What a module says is public; a module that does not say is no public face."""
    return sorted(module.__all__)


def test_the_package():
    assert public(tc) == NAMES
    assert all(hasattr(tc, name) for name in NAMES)
    assert inspect.isfunction(tc.mean_field) and inspect.isfunction(tc.refine)


def test_the_filters_and_features():
    assert public(tc.filters) == FILTERS
    assert public(tc.features) == FEATURES


def test_every_public_object_is_documented():
    objects = [tc, *(getattr(tc, name) for name in NAMES)]
    objects += [getattr(tc.features, name) for name in FEATURES] + [getattr(tc.filters, name) for name in FILTERS]
    for thing in objects:
        assert inspect.getdoc(thing), thing


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tc.__version__)

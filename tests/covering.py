"""Combinations of a test's arguments: a covering set of them for `make test`, and all the others for `make test-slow`."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

# Of gradcheck's Jacobian a random combination of rows and of columns; in `make test-slow` each of its entries.
combined_or_whole = pytest.mark.parametrize(
    "fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["combined", "whole"]
)


def covering(*axes: Iterable, at_once: int = 2, ids: Callable = str) -> list:
    """Every combination of the axes' values, as parameters; `slow` but for a set in which any values of any `at_once`
    axes meet, each value about as often as the others of its axis."""
    axes = [list(axis) for axis in axes]
    every = list(itertools.product(*(range(len(axis)) for axis in axes)))  # as the values' places
    meetings = {places: set(itertools.combinations(enumerate(places), at_once)) for places in every}
    left, covers, uses = set().union(*meetings.values()), set(), Counter()

    def worth(places):
        return len(meetings[places] & left), -sum(uses[place] for place in enumerate(places))

    while left:
        best = max(every, key=worth)
        covers.add(best)
        uses.update(enumerate(best))
        left -= meetings[best]
    parameters = []
    for places in every:
        values = [axis[n] for axis, n in zip(axes, places)]
        marks = () if places in covers else pytest.mark.slow
        parameters.append(pytest.param(*values, id="-".join(map(ids, values)), marks=marks))
    return parameters

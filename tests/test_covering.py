"""The combinations that `make test` takes."""

import itertools
from collections import Counter

import pytest

from covering import covering

AXES = "ab", (1, 2, 3), "wxyz", (None, 0.5)


@pytest.mark.parametrize("at_once, most", [(1, 4), (2, 14), (3, 30), (4, 48)])
def test_any_values_of_so_many_axes_meet(at_once, most):
    every = covering(*AXES, at_once=at_once)
    assert [parameter.values for parameter in every] == list(itertools.product(*AXES))
    quick = [parameter.values for parameter in every if not parameter.marks]
    assert len(quick) <= most
    for some in itertools.combinations(range(len(AXES)), at_once):
        together = set(itertools.product(*(AXES[n] for n in some)))
        assert {tuple(values[n] for n in some) for values in quick} == together


def test_values_are_used_alike():
    quick = [parameter.values for parameter in covering(range(12), "abc", at_once=1) if not parameter.marks]
    assert Counter(values[1] for values in quick) == {"a": 4, "b": 4, "c": 4}


def test_the_others_are_slow_and_all_have_names():
    every = covering("ab", (1, 2), at_once=1, ids=repr)
    assert [parameter.id for parameter in every] == ["'a'-1", "'a'-2", "'b'-1", "'b'-2"]
    assert [[mark.name for mark in parameter.marks] for parameter in every] == [[], ["slow"], ["slow"], []]

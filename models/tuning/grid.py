"""The search on a grid: each setting at powers of two times its start.

The start and all its neighbours, at half, the same and double of every setting, are measured, then the neighbours of
the best of them, and so on, until no neighbour is better. So the best point is never on the edge of the measured ones,
unless a setting has been halved or doubled WIDEST times or the trials have run out.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tritoncrf.models.tuning.problem import Parameters
from tritoncrf.models.tuning.studies import Trial
from tritoncrf.options import GAUSSIAN
from tritoncrf.types import Method

__all__ = ["WIDEST", "Point", "climbed", "gridded", "searched_on_grid"]

WIDEST = 10  # powers of two on each side of the start

Point = tuple[int, ...]  # the power of two of each setting


def searched_on_grid(method: Method) -> tuple[str, ...]:
    """The arguments of `refine` that form the grid of a method; all others are fixed."""
    return (
        ("theta_space", "theta_color", "weight_appearance") if method in GAUSSIAN
        else ("radius", "eps", "weight_appearance")
    )  # fmt: skip


def climbed(dimensions: int, value_of: Callable[[Point], float]) -> Iterator[tuple[Point, float]]:
    """Points of the grid with their values, in the order of measurement, until no neighbour of the best is better."""
    values: dict[Point, float] = {}
    centre: Point = (0,) * dimensions
    while True:
        for steps in itertools.product((0, -1, 1), repeat=dimensions):  # the centre first: it wins a tie
            point = tuple(c + step for c, step in zip(centre, steps))
            if point not in values and max(map(abs, point), default=0) <= WIDEST:
                values[point] = value_of(point)
                yield point, values[point]
        best = max(values, key=lambda point: values[point])  # the first of equal ones
        if best == centre:
            return
        centre = best


def gridded(
    study: Any, start: Mapping[str, float], method: Method, written: Callable[[str, float], Any], budget: int,
    value_of: Callable[[Parameters], float],
) -> Iterator[Trial]:  # fmt: skip
    """At most `budget` trials: first those already in the study, then new ones.

    Args:
        study: an Optuna study.
        start: the initial settings, as numbers.
        method: the method of `refine`.
        written: converts a setting's name and number to what `refine` takes.
        budget: the total number of trials.
        value_of: computes the measure.
    """
    import optuna

    kept = iter(study.get_trials(deepcopy=False))

    def parameters(point: Point) -> Parameters:
        settings = {name: written(name, x * 2.0**power) for (name, x), power in zip(start.items(), point)}
        return {"method": method, **settings}

    def value(point: Point) -> float:
        if (trial := next(kept, None)) is not None:
            return float(trial.value)
        found = value_of(parameters(point))
        study.add_trial(optuna.trial.create_trial(value=found))
        return found

    for point, found in itertools.islice(climbed(len(start), value), budget):
        yield Trial(parameters(point), found)

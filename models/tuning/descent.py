"""The search by gradients: Adam (Kingma and Ba 2015) on the cross-entropy of the refined scores.

It optimises the logarithms of the bandwidths and of the kernels' weights, and the costs of every pair of classes, which
start from the Potts model, with the gradients of the library's own kernels. Each trial is one step. The best trial by
the measure wins, and the search ends if the measure has not improved for PATIENCE steps.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritoncrf.models.tuning.problem import Parameters
from tritoncrf.models.tuning.slopes import LEARNED
from tritoncrf.models.tuning.studies import DIGITS, Trial

__all__ = ["PATIENCE", "descended"]

PATIENCE = 15
RATE = {"logarithms": 0.1, "costs": 0.05}
DECAY = 0.9, 0.99
LIMIT = math.log(100)  # largest change of a logarithm from its start
FINE = 1e-8


@dataclass(frozen=True)
class State:
    """The state of Adam: the changes of the logarithms and the costs, the means of the slopes and of their squares, and
    the number of steps."""

    moved: list[float]
    mean: list[float]
    square: list[float]
    steps: int = 0

    def after(self, slope: np.ndarray, rate: np.ndarray, limit: np.ndarray) -> "State":
        first, second = DECAY
        steps = self.steps + 1
        mean = first * np.array(self.mean) + (1 - first) * slope
        square = second * np.array(self.square) + (1 - second) * slope**2
        step = mean / (1 - first**steps) / (np.sqrt(square / (1 - second**steps)) + FINE)
        moved = np.clip(np.array(self.moved) - rate * step, -limit, limit)
        return State(moved.tolist(), mean.tolist(), square.tolist(), steps)


def descended(
    study: Any, start: Parameters, num_classes: int, budget: int,
    value_of: Callable[[Parameters], float], slope_of: Callable[[Parameters], np.ndarray],
) -> Iterator[Trial]:  # fmt: skip
    """At most `budget` trials: first those already in the study, then new ones.

    Args:
        study: an Optuna study.
        start: the initial settings; those in LEARNED, and the compatibility, are optimised if present.
        num_classes: C.
        budget: the total number of trials.
        value_of: computes the measure.
        slope_of: computes the derivatives of the cross-entropy, see `slopes`.
    """
    import optuna

    count = len(LEARNED)
    free = [name in start for name in LEARNED] + ["compatibility" in start] * num_classes**2
    rate = np.array([RATE["logarithms"]] * count + [RATE["costs"]] * num_classes**2) * free
    limit = np.array([LIMIT] * count + [math.inf] * num_classes**2)

    done: list[Trial] = []
    state = State([0.0] * len(rate), [0.0] * len(rate), [0.0] * len(rate))
    for trial in study.get_trials(deepcopy=False)[:budget]:
        done.append(Trial(_at(start, State(**trial.user_attrs["state"]), num_classes), trial.value))
        state = State(**trial.user_attrs["next"])
        yield done[-1]
    while len(done) < budget and not _settled(done):
        parameters = _at(start, state, num_classes)
        value, following = value_of(parameters), state.after(slope_of(parameters), rate, limit)
        states = {"state": vars(state), "next": vars(following)}
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs=states))
        done.append(Trial(parameters, value))
        state = following
        yield done[-1]


def _settled(trials: list[Trial]) -> bool:
    values = [trial.value for trial in trials]
    return len(values) > PATIENCE and max(values[-PATIENCE:]) <= max(values[:-PATIENCE])


def _at(start: Parameters, state: State, num_classes: int) -> Parameters:
    """The settings of a state, rounded to a few digits."""
    found = dict(start)
    for name, x in zip(LEARNED, state.moved):
        if name in start:
            found[name] = _scaled(start[name], math.exp(x))
    if "compatibility" in start:
        costs = np.reshape(state.moved[len(LEARNED) :], (num_classes, num_classes)) - np.eye(num_classes)
        found["compatibility"] = [[float(f"{x:.{DIGITS}g}") for x in row] for row in costs]
    return found


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, str):
        return f"{float(value.removesuffix('%')) * factor:.{DIGITS}g}%"
    if isinstance(value, (list, tuple)):
        return [_scaled(number, factor) for number in value]
    return float(f"{value * factor:.{DIGITS}g}")

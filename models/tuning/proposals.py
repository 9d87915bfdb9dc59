"""The search by proposals: Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

Each proposal depends only on the seed, the number of the trial and the earlier trials.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritoncrf.models.tuning.problem import Parameters
from tritoncrf.models.tuning.studies import DIGITS, Trial
from tritoncrf.types import Method

__all__ = ["SPACES", "proposed"]


@dataclass(frozen=True)
class Numbers:
    """Log-uniform values from low to high; written as a share of the diagonal, or as an int."""

    low: float
    high: float
    share: bool = False
    whole: bool = False

    def value(self, x: float) -> float | int | str:
        rounded = float(f"{x:.{DIGITS}g}")
        return f"{rounded:g}%" if self.share else max(int(self.low), round(x)) if self.whole else rounded


@dataclass(frozen=True)
class Choices:
    values: tuple[int, ...]

    def value(self, x: float) -> int:
        return int(x)


_steps = Choices((1, 2, 3, 5, 8, 10))
_weights: dict[str, Numbers | Choices] = {"weight_appearance": Numbers(0.1, 30), "iterations": _steps}
_gaussian: dict[str, Numbers | Choices] = {
    "theta_space": Numbers(0.3, 40, share=True),
    "theta_color": Numbers(1, 60),
    "theta_smooth": Numbers(0.1, 3, share=True),
    "weight_smooth": Numbers(0.01, 10),
    **_weights,
}
SPACES: Mapping[Method, Mapping[str, Numbers | Choices]] = {
    "lattice": _gaussian,
    "exact": _gaussian,
    "window": {**_gaussian, "window_size": Choices((3, 5, 7, 9, 11, 15)), "blur": Choices((1, 2, 4))},
    "guided": {"radius": Numbers(1, 40, whole=True), "eps": Numbers(0.1, 10_000), **_weights},
}


def proposed(
    study: Any, space: Mapping[str, Numbers | Choices], method: Method, seed: int, budget: int,
    value_of: Callable[[Parameters], float],
) -> Iterator[Trial]:  # fmt: skip
    """`budget` trials: first those already in the study, then new ones; see `tune`.

    Args:
        study: an Optuna study.
        space: the search space, by argument of `refine`.
        method: the method of `refine`.
        seed: together with the number of a trial it determines the proposal.
        budget: the total number of trials.
        value_of: computes the measure.
    """
    import optuna

    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(numbers.values) if isinstance(numbers, Choices)
        else optuna.distributions.IntDistribution(int(numbers.low), int(numbers.high), log=True) if numbers.whole
        else optuna.distributions.FloatDistribution(numbers.low, numbers.high, log=True)
        for name, numbers in space.items()
    }  # fmt: skip
    done = study.get_trials(deepcopy=False)[:budget]

    def parameters(trial: Any) -> Parameters:
        return {"method": method, **{name: numbers.value(trial.params[name]) for name, numbers in space.items()}}

    yield from (Trial(parameters(trial), trial.value) for trial in done)
    for n in range(len(done), budget):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's warnings of experimental features
            sampler = optuna.samplers.TPESampler(seed=seed * 1_000_003 + n, multivariate=True)
            proposal = optuna.create_study(sampler=sampler, direction="maximize")
            proposal.add_trials(done)
            asked = proposal.ask(distributions)
        value = value_of(parameters(asked))
        done.append(optuna.trial.create_trial(params=asked.params, distributions=distributions, value=value))
        study.add_trial(done[-1])
        yield Trial(parameters(asked), value)

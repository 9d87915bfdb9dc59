"""Settings of `refine` for one's own scores: searched for on some images, judged on the others.

The images are split into folds. For each fold a search sees the other images alone; what is best on those is then
measured on the fold, so that the sum over the folds says what the search gains on images that it has not seen. Among
its candidates are always no CRF, the defaults and the settings of known pipelines. The settings that are handed over
are those of the folds' winners, or of the other candidates, that are best on all images; and none at all, iterations =
0, where the search gains nothing on what it has not seen.

The search is Optuna's tree-structured Parzen estimator (Bergstra et al. 2011). What it proposes next depends on its
seed, the number of the trial and the trials before alone: processes share the images of a trial, never the trials. So
a search that was stopped goes on to the same end, in any number of processes.
"""

import contextlib
import hashlib
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.files import FileError, decoded
from tritoncrf.models.experiments.statistics import Estimate, jackknife
from tritoncrf.models.scored import MEASURES, Scored, counts, measures
from tritoncrf.options import ARGUMENTS, BINARY, GAUSSIAN, METHODS, PARAMETERS, SCORES
from tritoncrf.types import Image, Method, RefineOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Fold", "Trial", "Tuned", "load_parameters", "tune"]

BY_NAME = {"miou": 0, "boundary": 1, "accuracy": 3}  # of MEASURES
NONE, DEFAULTS = "no CRF", "defaults"
DIGITS = 3  # of a number that is proposed

Parameters: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Numbers:
    """Values from low to high, as likely between 1 and 2 as between 10 and 20; written as a share of the diagonal, or
    as an int."""

    low: float
    high: float
    share: bool = False
    whole: bool = False

    def value(self, x: float) -> float | int | str:
        rounded = float(f"{x:.{DIGITS}g}")
        return f"{rounded:g}%" if self.share else int(x) if self.whole else rounded


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


@dataclass(frozen=True)
class Trial:
    """Arguments of `refine`, and the measure that they gave in a fold's search."""

    parameters: Parameters
    value: float


@dataclass(frozen=True)
class Fold:
    """What a search without the images of this fold found best, `chosen`; its trials in order."""

    images: tuple[int, ...]
    chosen: str
    parameters: Parameters
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Tuned:
    """What came out.

    Attributes:
        parameters: for `refine(..., **parameters)`, "method" among them; "iterations" 0 where no CRF is best.
        measure: which of "miou", "boundary" and "accuracy".
        alone: the measure of the scores as they came, with its standard error over the images.
        refined: the same of each image refined with what was chosen without it.
        gain: the difference of the two on the same images.
        folds: the searches.
    """

    parameters: Parameters
    measure: str
    alone: Estimate
    refined: Estimate
    gain: Estimate
    folds: tuple[Fold, ...]

    @property
    def helps(self) -> bool:
        """Whether a CRF is handed over."""
        return bool(self.parameters.get("iterations") != 0)

    def __str__(self) -> str:
        lines = [
            f"{MEASURES[BY_NAME[self.measure]]}, percent, on images that the settings were not chosen on:",
            f"  without CRF  {self.alone.percent()}",
            f"  with CRF     {self.refined.percent()}",
            f"  difference   {self.gain.percent('+')}",
        ]
        if not self.helps:
            lines.append("no CRF is best: iterations = 0")
        width = max(map(len, self.parameters))
        return "\n".join([*lines, *(f"{name:{width}}  {value}" for name, value in self.parameters.items())])

    def toml(self) -> str:
        """The parameters, and how good they are in comments."""
        before, after, gain = self.alone.percent(), self.refined.percent(), self.gain.percent("+")
        head = f"# {MEASURES[BY_NAME[self.measure]]}: {before} without CRF, {after} with it, {gain}"
        return "\n".join([head, *(f"{name} = {json.dumps(value)}" for name, value in self.parameters.items()), ""])

    def figure(self) -> "Figure":
        """The measure against each parameter, in all searches; the chosen value is marked."""
        from tritoncrf.models.network_figures import searched

        return searched(self)


def tune(
    images: Sequence[Image], *, truths: Sequence[Any], logits: Sequence[Any] | None = None,
    probabilities: Sequence[Any] | None = None, energies: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None, mask: Sequence[Any] | None = None, foreground: Sequence[Any] | None = None,
    method: Method = "lattice", budget: int = 100, measure: str = "miou", folds: int = 2, seed: int = 0, jobs: int = 0,
    study: str | Path | None = None, progress: Callable[[str], None] | None = None, **options: Any,
) -> Tuned:  # fmt: skip
    """Find arguments of `refine` for scores like these, whose truth is known.

    Args:
        images: as `refine` takes them, one for each of the scores.
        truths: label maps [H, W] of integers, 255 where unknown; of a mask or a foreground 0, 1 and 255.
        logits, probabilities, energies, labels, mask, foreground: exactly one; a sequence of what `refine` takes.
        method: whose parameters are searched for.
        budget: trials for each fold.
        measure: what is to become largest over all images of a fold's search: "miou", mean IoU over the classes that
            occur; "boundary", mean Boundary IoU within 2 % of the diagonal; "accuracy", of pixels.
        folds: 2 or more, at most as many as there are images; each holds every `folds`-th image.
        seed: of the search.
        jobs: processes that share the images of a trial; 0 is this one. A script needs `if __name__ == "__main__":`.
        study: a file of SQLite that trials are kept in; a search that was stopped, with the same arguments, goes on.
        progress: called with a line of text after each trial.
        options: further arguments of `refine`, such as num_classes or label_confidence, which stay as they are.

    Returns:
        What was found, see `Tuned`. The same for the same arguments, whatever `jobs` and however often it was stopped.
        All images and scores are held in memory, in every process.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came, before the search starts.
        ModuleNotFoundError: Optuna is not installed; `pip install "tritoncrf[tune]"` does.

    Example:
        >>> import numpy as np, tritoncrf as tc
        >>> draw = np.random.default_rng(0)
        >>> truths = [np.repeat([[0, 1]], 8, 0).repeat(4, 1) for _ in range(4)]
        >>> images = [np.uint8(90 * t[..., None] + 40).repeat(3, 2) for t in truths]
        >>> p = [np.clip(0.3 + 0.4 * t + 0.3 * draw.normal(size=t.shape), 0, 1) for t in truths]
        >>> tuned = tc.tune(images, foreground=p, truths=truths, budget=5)
        >>> tuned.gain.value >= 0
        True
    """
    _expect_optuna()
    given = {
        "logits": logits, "probabilities": probabilities, "energies": energies, "labels": labels, "mask": mask,
        "foreground": foreground,
    }  # fmt: skip
    checks.expect_choice("method", method, METHODS)
    checks.expect_choice("measure", measure, tuple(BY_NAME))
    for name in options:
        if name not in ARGUMENTS and name not in ("device",):
            raise TypeError(f"{name}: expected arguments of refine, {', '.join(ARGUMENTS)} or device")
    problem = _problem(images, given, truths, options)
    budget = checks.expect_int("budget", budget, 1, 1_000_000)
    folds = checks.expect_int("folds", folds, 2, len(problem.items))
    seed = checks.expect_int("seed", seed, 0)
    jobs = checks.expect_int("jobs", jobs, 0, 1024)

    candidates = _candidates(method)
    space = {name: numbers for name, numbers in SPACES[method].items() if name not in options}
    said = progress or (lambda line: None)
    everything = range(len(problem.items))
    with _evaluator(problem, jobs) as evaluated:

        def value_on(which: Sequence[int], parameters: Parameters) -> float:
            return _value(evaluated(parameters, which), measure)

        known: dict[str, np.ndarray] = {}
        for name, parameters in candidates.items():
            known[name] = evaluated(parameters, everything)
            said(f"{name}: {_value(known[name], measure):.2%}")
        searches, finalists, held_out = [], dict(candidates), np.empty_like(known[NONE])
        for fold in range(folds):
            held, seen = everything[fold::folds], [n for n in everything if n % folds != fold]
            store = _store(study, f"fold {fold}", _digest(problem, method, measure, folds, fold, seed, space))
            trials = []
            for trial in _searched(store, space, method, seed * folds + fold, budget, partial(value_on, seen)):
                trials.append(trial)
                best = max(t.value for t in trials)
                said(f"fold {fold + 1} of {folds}, trial {len(trials)} of {budget}: {trial.value:.2%}, best {best:.2%}")
            choices = [(name, own, _value(known[name][seen], measure)) for name, own in candidates.items()]
            choices += [(f"trial {n}", trial.parameters, trial.value) for n, trial in enumerate(trials)]
            chosen, parameters, _ = max(choices, key=lambda choice: choice[2])  # of equal ones the first: no CRF
            searches.append(Fold(tuple(held), chosen, parameters, tuple(trials)))
            name = chosen if chosen in candidates else f"fold {fold}, {chosen}"
            if name not in known:
                finalists[name], known[name] = parameters, evaluated(parameters, everything)
            held_out[list(held)] = known[name][list(held)]
    index = BY_NAME[measure]
    [alone] = jackknife(known[NONE], lambda total: [measures(total)[index]])
    [refined] = jackknife(held_out, lambda total: [measures(total)[index]])
    pairs = np.stack([held_out, known[NONE]], 1)
    [gain] = jackknife(pairs, lambda pair: [measures(pair[0])[index] - measures(pair[1])[index]])
    winner = max(known, key=lambda name: _value(known[name], measure))
    parameters = finalists[winner] if gain.value > 0 else candidates[NONE]
    return Tuned({**parameters, **_plain(options)}, measure, alone, refined, gain, tuple(searches))


def load_parameters(path: str | Path) -> RefineOptions:
    """Arguments of `refine` from a TOML file such as `tune` writes.

    Args:
        path: of the file.

    Returns:
        A dict for `refine(..., **parameters)`.

    Raises:
        ValueError: no such file, no TOML, or what `refine` does not take; naming the file and the argument.

    Example:
        >>> import pathlib, tempfile, tritoncrf as tc
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "tuned.toml"
        >>> _ = path.write_text('method = "guided"\\nradius = 5\\n')
        >>> tc.load_parameters(path)
        {'method': 'guided', 'radius': 5}
    """
    path = Path(path)

    def read(path: Path) -> Parameters:
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except RecursionError:
            raise FileError(f"{path}: expected arguments of refine, got tables nested too deep") from None

    found = decoded(path, "a TOML file", read)
    for name, value in found.items():
        if name != "method" and name not in ARGUMENTS:
            raise FileError(f"{path}: expected method, {', '.join(ARGUMENTS)}, got {name}")
        if not isinstance(value, (bool, int, float, str)) and not (
            isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
        ):
            raise FileError(
                f"{path}: {name}: expected a number, a word or a list of numbers, got {checks.shown(value)}"
            )
    if found.get("method", "lattice") not in METHODS:
        raise FileError(f"{path}: method: expected one of {', '.join(METHODS)}, got {checks.shown(found['method'])}")
    return found  # type: ignore[return-value]


# The problem ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Images with scores of one kind and truths, classes, and arguments of `refine` that stay as they are."""

    items: Sequence[Scored]
    kind: str
    num_classes: int
    options: Parameters

    def counted(self, parameters: Parameters, n: int) -> np.ndarray:
        return counts(self.items[n], self.num_classes, {**parameters, **self.options})


def _problem(
    images: Sequence[Image], given: Mapping[str, Sequence[Any] | None], truths: Sequence[Any], options: Parameters
) -> Problem:
    kinds = {name: scores for name, scores in given.items() if scores is not None}
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise TypeError(f"tune: expected exactly one of {'=, '.join(SCORES)}=, got {got}")
    [(kind, scores)] = kinds.items()
    for name, values in ("images", images), (kind, scores), ("truths", truths):
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name}: expected a list, one for each image, got {checks.kind_of(values)}")
        if len(values) != len(images):
            raise ValueError(f"{name}: expected one for each of {len(images)} images, got {len(values)}")
    if len(images) < 2:
        raise ValueError(f"images: expected 2 or more, so that some can be held out, got {len(images)}")
    if kind == "labels" and options.get("num_classes") is None:
        raise ValueError("num_classes: expected the number of classes of labels, got none")
    maps = [_truth(n, truth, score, kind) for n, (truth, score) in enumerate(zip(truths, scores))]
    if kind in BINARY:
        num_classes = 2
    else:
        sizes = {len(s) for s in scores} if kind != "labels" else {int(options["num_classes"])}
        if len(sizes) != 1:
            raise ValueError(f"{kind}: expected as many classes in each, got {', '.join(map(str, sorted(sizes)))}")
        [num_classes] = sizes
    for n, truth in enumerate(maps):
        known = truth[truth != 255]
        if known.size and not 0 <= known.min() <= known.max() < num_classes:
            raise ValueError(
                f"truths[{n}]: expected classes from 0 to {num_classes - 1}, or 255 where unknown, got {known.min()} "
                f"to {known.max()}"
            )
    if not any(np.any((truth > 0) & (truth != 255)) for truth in maps):
        hint = "; of a mask, truth > 0 makes them" if kind in BINARY else ""
        raise ValueError(f"truths: expected labels beside 0 and 255, which is unknown, got none{hint}")
    items = [Scored(image, {kind: score}, truth) for image, score, truth in zip(images, scores, maps)]
    return Problem(items, kind, num_classes, dict(options))


def _truth(n: int, truth: Any, score: Any, kind: str) -> np.ndarray:
    """A label map, checked against its scores."""
    found = truth.cpu().numpy() if isinstance(truth, torch.Tensor) else np.asarray(truth)
    if found.dtype.kind not in "biu" or found.ndim != 2:
        raise ValueError(f"truths[{n}]: expected integers [H, W], got {checks.kind_of(found)}")
    shape = tuple(np.shape(score))
    size = shape[:2] if kind in (*BINARY, "labels") else shape[1:]
    if found.shape != size:
        raise ValueError(f"truths[{n}]: expected the size of {kind}[{n}], {list(size)}, got {list(found.shape)}")
    return found.astype(np.int64)


def _candidates(method: Method) -> dict[str, Parameters]:
    """What a search must beat."""
    named = method if method in GAUSSIAN else "lattice"
    found: dict[str, Parameters] = {NONE: {"method": method, "iterations": 0}, DEFAULTS: {"method": method}}
    return found | {name: {"method": named, **options} for name, options in PARAMETERS.items()}


def _plain(options: Parameters) -> Parameters:
    """Those of the fixed arguments that are settings, and that a file can hold."""
    kinds = bool, int, float, str, tuple, list
    return {name: value for name, value in options.items() if name in ARGUMENTS and isinstance(value, kinds)}


def _value(found: np.ndarray, measure: str) -> float:
    """The measure of counts [images, ...]."""
    return float(measures(found.sum(0))[BY_NAME[measure]])


def _digest(problem: Problem, *settings: Any) -> str:
    """Of all that a search depends on."""
    told = problem.kind, problem.num_classes, sorted(problem.options.items()), settings
    digest = hashlib.sha256(repr(told).encode())
    for item in problem.items:
        for array in (item.image, *item.scores.values(), item.truth):
            digest.update(np.ascontiguousarray(array.cpu() if isinstance(array, torch.Tensor) else array).tobytes())
    return digest.hexdigest()


# Evaluating -------------------------------------------------------------------------------------------------------

_mine: Problem | None = None  # of a process that serves


def _take(problem: Problem) -> None:
    global _mine
    _mine = problem
    torch.set_num_threads(1)


def _serve(task: tuple[Parameters, int]) -> np.ndarray:
    assert _mine is not None
    return _mine.counted(*task)


@contextlib.contextmanager
def _evaluator(problem: Problem, jobs: int) -> Iterator[Callable[[Parameters, Sequence[int]], np.ndarray]]:
    """Counts [images, ...] of images refined with parameters, each in one thread, so that the bits are the same
    everywhere."""
    if jobs == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda parameters, which: np.stack([problem.counted(parameters, n) for n in which])
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _take, (problem,)) as pool:

        def evaluated(parameters: Parameters, which: Sequence[int]) -> np.ndarray:
            try:
                return np.stack([*pool.map(_serve, [(parameters, n) for n in which])])
            except BrokenProcessPool:
                raise RuntimeError(
                    'jobs: expected processes that start; a script that is run needs `if __name__ == "__main__":` '
                    "around what it does"
                ) from None

        yield evaluated


# Searching --------------------------------------------------------------------------------------------------------


def _expect_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError('tune needs Optuna: pip install "tritoncrf[tune]"') from None


def _store(study: str | Path | None, name: str, digest: str) -> Any:
    """Optuna's study of a fold, in memory or in a file."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None if study is None else f"sqlite:///{Path(study).resolve()}"
    try:
        found = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
        known = found.user_attrs.get("problem", digest)
    except Exception as error:  # of SQLAlchemy, which Optuna brings
        last = str(error).split("\n")[0]
        raise ValueError(f"study: expected a file of a search, or a new one, got {study}: {last}") from error
    if known != digest:
        raise ValueError(f"study: expected the file of this search, got {study}, of other images or arguments")
    found.set_user_attr("problem", digest)
    return found


def _searched(
    study: Any, space: Mapping[str, Numbers | Choices], method: Method, seed: int, budget: int,
    value_of: Callable[[Parameters], float],
) -> Iterator[Trial]:  # fmt: skip
    """`budget` trials, those that the study has and then new ones."""
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
            warnings.simplefilter("ignore")  # Optuna's, of what is experimental
            sampler = optuna.samplers.TPESampler(seed=seed * 1_000_003 + n, multivariate=True)
            proposal = optuna.create_study(sampler=sampler, direction="maximize")
            proposal.add_trials(done)
            asked = proposal.ask(distributions)
        value = value_of(parameters(asked))
        done.append(optuna.trial.create_trial(params=asked.params, distributions=distributions, value=value))
        study.add_trial(done[-1])
        yield Trial(parameters(asked), value)

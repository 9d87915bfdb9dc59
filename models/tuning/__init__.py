"""Search for settings of `refine` on labelled images, and measure them on held-out images.

The images are split into folds. For each fold, a search uses only the other images, and its winner is then measured on
the fold. The sum over the folds therefore tells what the search gains on unseen images. The candidates always include
no CRF, the defaults and the settings of published pipelines. A trial wins only if it is significantly better than the
best of these (Student's t, 5 %), since the best of many trials on few images may be best by chance. The result is the
winner of a fold, or the candidate, that is best on all images; or no CRF, iterations = 0, if the search gains nothing
on unseen images.

    problem     images, scores and truths, and processes that share the images of a trial
    studies     storage of trials
    proposals   the search by proposals of Optuna
    grid        the search on a grid
    descent     the search by gradients, which `slopes` computes
    baseline    settings of a disconnected CRF, without folds

Processes share the images of a trial, never the trials, so a resumed search gives the same result for any number of
processes.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tritoncrf import checks
from tritoncrf.files import FileError, decoded
from tritoncrf.models.experiments.statistics import Estimate, jackknife
from tritoncrf.models.scored import MEASURES, measures
from tritoncrf.models.tuning.baseline import Found, disconnected
from tritoncrf.models.tuning.descent import descended
from tritoncrf.models.tuning.grid import gridded, searched_on_grid
from tritoncrf.models.tuning.problem import BY_NAME, Asked, Parameters, Problem, expect_problem, shared, valued
from tritoncrf.models.tuning.proposals import SPACES, proposed
from tritoncrf.models.tuning.slopes import LEARNED
from tritoncrf.models.tuning.studies import Trial, expect_optuna, stored
from tritoncrf.options import ARGUMENTS, GAUSSIAN, METHODS, PARAMETERS, method_for
from tritoncrf.types import Image, Method, RefineOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SEARCHES", "SPACES", "Fold", "Found", "Trial", "Tuned", "disconnected", "load_parameters", "tune"]

SEARCHES = "tpe", "grid", "gradient"
FEW = 3  # images, too few for a significant difference
NONE, DEFAULTS = "no CRF", "defaults"


@dataclass(frozen=True)
class Fold:
    """The best settings, `chosen`, of a search without the images of this fold, and its trials in order."""

    images: tuple[int, ...]
    chosen: str
    parameters: Parameters
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        parameters: for `refine(..., **parameters)`, including "method"; "iterations" is 0 if no CRF is best.
        measure: "miou", "boundary" or "accuracy".
        alone: the measure of the input scores, with its standard error over the images.
        refined: the measure when each image is refined with settings that were chosen without it.
        gain: the difference of the two on the same images.
        folds: the search of each fold.
    """

    parameters: Parameters
    measure: str
    alone: Estimate
    refined: Estimate
    gain: Estimate
    folds: tuple[Fold, ...]

    @property
    def helps(self) -> bool:
        """Whether the result is a CRF."""
        return bool(self.parameters.get("iterations") != 0)

    def __str__(self) -> str:
        lines = [
            f"{MEASURES[BY_NAME[self.measure]]}, percent, on images that were not used to choose the settings:",
            f"  without CRF  {self.alone.percent()}",
            f"  with CRF     {self.refined.percent()}",
            f"  difference   {self.gain.percent('+')}",
        ]
        if not self.helps:
            lines.append("no CRF is best: iterations = 0")
        width = max(map(len, self.parameters))
        shown = {name: checks.shown(value) for name, value in self.parameters.items()}
        return "\n".join([*lines, *(f"{name:{width}}  {value}" for name, value in shown.items())])

    def toml(self) -> str:
        """The parameters, with their measures in a comment."""
        before, after, gain = self.alone.percent(), self.refined.percent(), self.gain.percent("+")
        head = f"# {MEASURES[BY_NAME[self.measure]]}: {before} without CRF, {after} with it, {gain}"
        return "\n".join([head, *(f"{name} = {json.dumps(value)}" for name, value in self.parameters.items()), ""])

    def figure(self) -> "Figure":
        """A plot of the measure against each parameter in all searches; chosen values are marked."""
        from tritoncrf.models.network_figures import searched

        return searched(self)


def tune(
    images: Sequence[Image], *, truths: Sequence[Any], logits: Sequence[Any] | None = None,
    probabilities: Sequence[Any] | None = None, energies: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None, mask: Sequence[Any] | None = None, foreground: Sequence[Any] | None = None,
    method: Method = "lattice", search: Literal["tpe", "grid", "gradient"] = "tpe", budget: int = 100,
    measure: str = "miou", folds: int = 2, seed: int = 0, jobs: int = 0,
    study: str | Path | None = None, progress: Callable[[str], None] | None = None, **options: Any,
) -> Tuned:  # fmt: skip
    """Search for the best arguments of `refine` on labelled images.

    Args:
        images: images as for `refine`, one for each of the scores. A trial replaces the named settings only if it is
            significantly better on the images of its search, which is impossible with three or fewer: use 8 or more.
        truths: label maps [H, W] of integers, 255 where unknown; 0, 1 and 255 for a mask or a foreground.
        logits, probabilities, energies, labels, mask, foreground: exactly one; a sequence of what `refine` takes.
        method: the method whose parameters are searched for.
        search: "tpe", Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), for all parameters of the
            method. "grid", powers of two times the defaults of theta_space, theta_color and weight_appearance (for
            "guided": radius, eps and weight_appearance), from the defaults towards better values until the best point
            has no better neighbour; it stops there, within the budget. "gradient", not for "guided": Adam on the
            cross-entropy, through the library's own gradients, for the bandwidths, the weights and the compatibility
            [C, C], starting from the best named settings; the best trial by the measure is taken, and the search stops
            early if it has not improved for 15 steps.
        budget: number of trials for each fold.
        measure: what to maximise over all images of a fold's search: "miou", mean IoU over the classes that occur;
            "boundary", mean Boundary IoU within 2 % of the diagonal; "accuracy", of pixels.
        folds: 2 or more, at most the number of images; each holds every `folds`-th image.
        seed: the random seed of the search; not used by "gradient".
        jobs: number of processes that share the images of a trial; 0 for this process alone. A script needs
            `if __name__ == "__main__":`.
        study: an SQLite file for the trials; a search that was stopped resumes when called with the same arguments.
        progress: called with a line of text after each trial.
        options: further arguments of `refine`, such as num_classes or label_confidence, which are not searched.

    Returns:
        The result, see `Tuned`. It is the same for the same arguments, whatever `jobs` and however often the search was
        stopped. All images and scores are held in memory, in every process.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came, before the search starts.
        ModuleNotFoundError: Optuna is not installed; `pip install "tritoncrf[tune]"` installs it.

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
    expect_optuna()
    given = {
        "logits": logits, "probabilities": probabilities, "energies": energies, "labels": labels, "mask": mask,
        "foreground": foreground,
    }  # fmt: skip
    checks.expect_choice("method", method, METHODS)
    checks.expect_choice("search", search, SEARCHES)
    checks.expect_choice("measure", measure, tuple(BY_NAME))
    if search == "gradient" and method not in GAUSSIAN:
        raise ValueError(
            f"search: expected 'tpe' or 'grid' with method={method!r}, which has no bandwidths, got 'gradient'"
        )
    for name in options:
        if name not in ARGUMENTS and name not in ("device",):
            raise TypeError(f"{name}: expected arguments of refine, {', '.join(ARGUMENTS)} or device")
    problem = expect_problem(images, given, truths, options)
    budget = checks.expect_int("budget", budget, 1, 1_000_000)
    folds = checks.expect_int("folds", folds, 2, len(problem.items))
    seed = checks.expect_int("seed", seed, 0)
    jobs = checks.expect_int("jobs", jobs, 0, 1024)

    candidates = _candidates(method, problem.kind, options)
    said = progress or (lambda line: None)
    everything = range(len(problem.items))
    starts = sorted(_grid_starts(problem, method).items()) if search == "grid" else []
    with shared(problem, jobs) as asked:
        known: dict[str, np.ndarray] = {}
        for name, parameters in candidates.items():
            known[name] = asked("counts", parameters, everything)
            said(f"{name}: {valued(known[name], measure):.2%}")
        searches, finalists, held_out = [], dict(candidates), np.empty_like(known[NONE])
        for fold in range(folds):
            held, seen = everything[fold::folds], [n for n in everything if n % folds != fold]
            choices = [(name, own, valued(known[name][seen], measure)) for name, own in candidates.items()]
            settings = method, search, measure, folds, fold, seed, sorted(SPACES[method].items()), starts
            kept = stored(study, f"fold {fold}", problem.digest(settings))
            trials = []
            found = _search(problem, kept, search, method, choices, seed * folds + fold, budget, measure, seen, asked)
            for trial in found:
                trials.append(trial)
                best = max(t.value for t in trials)
                said(f"fold {fold + 1} of {folds}, trial {len(trials)} of {budget}: {trial.value:.2%}, best {best:.2%}")
            chosen, parameters, least = max(choices, key=lambda choice: choice[2])  # the first of equal ones: no CRF
            number = max(range(len(trials)), key=lambda n: trials[n].value)
            if trials[number].value > least:
                counts = asked("counts", trials[number].parameters, everything)
                ahead = _gain(counts[seen], known[chosen][seen], measure)
                if ahead.clear and len(seen) > FEW:
                    chosen, parameters = f"trial {number}", trials[number].parameters
                    finalists[f"fold {fold}"], known[f"fold {fold}"] = parameters, counts
            searches.append(Fold(tuple(held), chosen, parameters, tuple(trials)))
            held_out[list(held)] = known[chosen if chosen in candidates else f"fold {fold}"][list(held)]
    [alone], [refined] = (
        jackknife(counts, lambda total: [measures(total)[BY_NAME[measure]]]) for counts in (known[NONE], held_out)
    )
    gain = _gain(held_out, known[NONE], measure)
    winner = max(known, key=lambda name: valued(known[name], measure))
    parameters = finalists[winner] if gain.value > 0 else candidates[NONE]
    return Tuned({**_kept(options), **parameters}, measure, alone, refined, gain, tuple(searches))


def load_parameters(path: str | Path) -> RefineOptions:
    """Load arguments of `refine` from a TOML file, such as `tritoncrf tune` writes.

    Args:
        path: the file.

    Returns:
        A dict for `refine(..., **parameters)`.

    Raises:
        ValueError: the file does not exist, is not TOML, or has an argument that `refine` does not accept; the message
            names the file and the argument.

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
            raise FileError(f"{path}: expected arguments of refine, got tables nested too deeply") from None

    found = decoded(path, "a TOML file", read)
    for name, value in found.items():
        if name != "method" and name not in ARGUMENTS:
            raise FileError(f"{path}: expected method, {', '.join(ARGUMENTS)}, got {name}")
        if not _plain(value) and not (name == "compatibility" and isinstance(value, list) and all(map(_plain, value))):
            raise FileError(
                f"{path}: {name}: expected a number, a word or a list of numbers, got {checks.shown(value)}"
            )
    if found.get("method", "lattice") not in METHODS:
        raise FileError(f"{path}: method: expected one of {', '.join(METHODS)}, got {checks.shown(found['method'])}")
    return found  # type: ignore[return-value]


# Choosing -------------------------------------------------------------------------------------------------------------


def _search(
    problem: Problem, study: Any, search: str, method: Method, choices: list[tuple[str, Parameters, float]], seed: int,
    budget: int, measure: str, seen: Sequence[int], asked: Asked,
) -> Iterator[Trial]:  # fmt: skip
    """The trials of a fold on these images; `choices` are the candidates with their measure on them."""

    def value_of(parameters: Parameters) -> float:
        return valued(asked("counts", parameters, seen), measure)

    if search == "tpe":
        space = {name: numbers for name, numbers in SPACES[method].items() if name not in problem.options}
        return proposed(study, space, method, seed, budget, value_of)
    if search == "grid":
        return gridded(
            study,
            _grid_starts(problem, method),
            method,
            lambda name, x: SPACES[method][name].value(x),
            budget,
            value_of,
        )
    free = [name for name in (*LEARNED, "compatibility", "iterations") if name not in problem.options]
    begun = [c for c in choices if c[1]["method"] == method and c[1].get("iterations") != 0]
    _, best, _ = max(begun, key=lambda choice: choice[2])
    start = {name: best.get(name, ARGUMENTS[name].value(method, problem.kind)) for name in free}
    return descended(
        study, {"method": method, **start}, problem.num_classes, budget, value_of,
        lambda parameters: asked("slopes", parameters, seen).mean(0),
    )  # fmt: skip


def _grid_starts(problem: Problem, method: Method) -> dict[str, float]:
    """Where the search on a grid starts."""
    names = [name for name in searched_on_grid(method) if name not in problem.options]
    return {name: _number(ARGUMENTS[name].value(method, problem.kind)) for name in names}


def _number(value: float | str) -> float:
    """A setting as a number, without % if it is a share."""
    return float(value.removesuffix("%")) if isinstance(value, str) else float(value)


def _gain(counts: np.ndarray, others: np.ndarray, measure: str) -> Estimate:
    """The difference of the measures of two arrays of counts [images, ...] of the same images."""
    index = BY_NAME[measure]
    pairs = np.stack([counts, others], 1)
    [found] = jackknife(pairs, lambda pair: [measures(pair[0])[index] - measures(pair[1])[index]])
    return found


def _candidates(method: Method, kind: str, options: Parameters) -> dict[str, Parameters]:
    """The candidates that a search must beat, with methods that accept these options."""
    fixed = {name: value for name, value in options.items() if name in ARGUMENTS}
    named, usual = method if method in GAUSSIAN else "lattice", method_for(kind, False, fixed)
    found: dict[str, Parameters] = {DEFAULTS: {"method": usual}, f"{method}, {DEFAULTS}": {"method": method}}
    if method == usual:
        del found[f"{method}, {DEFAULTS}"]
    found |= {name: {"method": named, **published} for name, published in PARAMETERS.items()}
    able = {
        name: {**own, **fixed} for name, own in found.items()
        if all(own["method"] in ARGUMENTS[given].methods for given in fixed)
    }  # fmt: skip
    return {NONE: {"method": method, "iterations": 0}, **able}


def _kept(options: Parameters) -> Parameters:
    """The fixed arguments that are settings and can be stored in a file."""
    kinds = bool, int, float, str, tuple, list
    return {name: value for name, value in options.items() if name in ARGUMENTS and isinstance(value, kinds)}


def _plain(value: Any) -> bool:
    """Whether it is a number, a word, or a list of numbers."""
    single = isinstance(value, (bool, int, float, str))
    return single or isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)

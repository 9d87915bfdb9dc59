"""One image with its scores, refined repeatedly with various settings; each result has the code that reproduces it."""

import argparse
import functools
import json
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritoncrf import checks, demo
from tritoncrf.actions import doubts, moved, settings_of, source_of
from tritoncrf.commands import CommandError
from tritoncrf.devices import device_found
from tritoncrf.files import read_array, read_image, read_picture
from tritoncrf.options import ARGUMENTS, BINARY, GAUSSIAN, METHODS, PARAMETERS, SCORES, UNKNOWN, method_for
from tritoncrf.options import settings as completed
from tritoncrf.readers import read_scores
from tritoncrf.refine import refine
from tritoncrf.scores import labels_of, upright
from tritoncrf.summary import Summary, summarized
from tritoncrf.types import Method

__all__ = ["Outcome", "Problem", "Session", "problem_of"]

Settings = Mapping[str, Any]

READING = ("num_classes", "unknown")  # arguments for the meaning of labels, only from the command line
UNSEEN = (*READING, "compatibility", "spacing", "value_range")  # without a control
MOST_EXACT = 128 * 128  # pixels for which a CPU needs a few seconds
LINE = 80  # characters of a line of Python


@dataclass(frozen=True)
class Problem:
    """An image with its scores, and the code that loads them.

    Attributes:
        image: [H, W, 3] or [H, W], uint8.
        kind: the kind of scores, such as "logits".
        scores: as `refine` takes them.
        reading: the given arguments among READING.
        python: lines before the call of `refine`, and its first arguments.
        commands: commands; the last one is the beginning of a `tritoncrf refine`.
        stem: the stem of the photo's file name.
        device: the device as given.
        names: names of the classes, if any.
        truth: [H, W] labels, if known.
    """

    image: np.ndarray
    kind: str
    scores: np.ndarray
    reading: Settings
    python: tuple[Sequence[str], str]
    commands: Sequence[str]
    stem: str
    device: str | None = None
    names: Sequence[str] = ()
    truth: np.ndarray | None = None

    def knobs(self, method: str) -> list[str]:
        """The arguments with a control that a method uses with these scores."""
        return [
            name for name, entry in ARGUMENTS.items()
            if name not in UNSEEN and method in entry.methods and self.kind in entry.scores
        ]  # fmt: skip

    def start(self, given: Settings) -> dict[str, Any]:
        """The method and all its arguments, as given or by default."""
        if not isinstance(given.get("compatibility", "potts"), str):
            raise CommandError("--compatibility: expected potts, got costs, which have no control")
        rest = {name: value for name, value in given.items() if name != "method"}
        method = given.get("method") or method_for(self.kind, False, rest)
        checks.expect_choice("method", method, METHODS)
        values = completed(method, self.kind, False, {**dict.fromkeys(ARGUMENTS), **rest})
        for name in self.knobs(method):
            if not isinstance(values[name], (int, float, str)):
                got = checks.shown(values[name])
                raise CommandError(f"--parameters: {name}: expected one number for its slider, got {got}")
        return {"method": method, **{name: plain(values[name]) for name in self.knobs(method)}}

    def lines(self, settings: Settings) -> tuple[str, str]:
        """The Python code and the command that give the result of these settings."""
        given = {**settings, **self.reading, **({} if self.device is None else {"device": self.device})}
        before, first = self.python
        body = [f"    {first},"]
        for name, value in given.items():
            text = f"{name}={json.dumps(value) if isinstance(value, str) else value},"
            if len(body) > 1 and len(body[-1]) + len(text) < LINE:
                body[-1] += f" {text}"
            else:
                body.append(f"    {text}")
        python = "\n".join([*before, "refined = tc.refine(", *body, ")"])
        options = [f"--{name.replace('_', '-')}{_word(value)}" for name, value in given.items()]
        classes = len(self.scores) if self.kind in SCORES[:3] else self.reading.get("num_classes") or 2
        out = f"{self.stem}_refined{'.png' if classes <= UNKNOWN else '.npy'}"
        *earlier, last = self.commands
        return python, "\n".join([*earlier, " ".join([last, *options, "-o", shlex.quote(_name(Path(out)))])])


def plain(value: Any) -> Any:
    """A whole number as an int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: Any) -> str:
    """What follows an option."""
    if isinstance(value, (tuple, list)):
        value = ",".join(map(str, value)) or "none"
    return f"={value}" if str(value).startswith("-") else f" {value}"


def _name(path: Path) -> str:
    """A path that is not mistaken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def problem_of(options: argparse.Namespace) -> Problem:
    """The problem that the command line describes, or the demo."""
    kinds = [kind for kind in SCORES if getattr(options, kind) is not None]
    names = ", ".join(f"--{kind}" for kind in SCORES)
    if options.image is None and kinds:
        raise CommandError(f"IMAGE: expected a photo beside --{kinds[0]}, got none")
    reading = {name: value for name in READING if (value := settings_of(options).get(name)) is not None}
    if options.image is None:
        return Problem(
            demo.photo(), "probabilities", demo.scores(), reading,
            (("import tritoncrf as tc", "from tritoncrf import demo", ""), "demo.photo(), probabilities=demo.scores()"),
            (
                "tritoncrf demo --inputs demo",
                "tritoncrf refine demo/photo.png --probabilities demo/probabilities.npy",
            ),
            "photo", options.device, demo.CLASSES, demo.mask(),
        )  # fmt: skip
    if not kinds:
        raise CommandError(f"{options.image}: expected its scores beside it, one of {names}, got none")
    kind, source = source_of(options)
    image = np.asarray(read_image(options.image, upright=not options.as_stored))
    scores = read_scores(kind, source, options.image, image.shape[:2], options.resize, options.as_stored)
    words = ["tritoncrf", "refine", _name(options.image), f"--{kind}", _name(source)]
    words += ["--resize"] * options.resize + ["--as-stored"] * options.as_stored
    return Problem(
        image, kind, scores, reading, _python_of(options, kind, source, image.shape[:2]),
        (" ".join(map(shlex.quote, words)),), options.image.stem, options.device,
    )  # fmt: skip


def _python_of(
    options: argparse.Namespace, kind: str, source: Path, size: tuple[int, ...]
) -> tuple[Sequence[str], str]:  # fmt: skip
    """Python code that reads the files like the command line, with NumPy and Pillow where they give the same."""
    photo, file = _quoted(options.image), _quoted(source)
    imports = ["import tritoncrf as tc"]
    if source.suffix.lower() in (".npy", ".npz"):
        with open(source, "rb") as opened:
            names = getattr(np.load(opened, allow_pickle=False), "files", None)
        scores = f"np.load({file})" + (f"[{json.dumps(names[0])}]" if names else "")
        array = read_array(source)
        same = array.shape[-2:] == size and (kind != "foreground" or array.dtype in (np.float16, np.float32))
        imports.insert(0, "import numpy as np")
    else:
        scores = f"Image.open({file})"
        same = kind != "foreground" and upright(read_picture(source)).size == size[::-1]
    if same and not options.as_stored:
        return (*imports, "from PIL import Image", ""), f"Image.open({photo}), {kind}={scores}"
    how = [f"{name}=True" for name in ("resize", "as_stored") if getattr(options, name)]
    arguments = ", ".join([json.dumps(kind), f"Path({file})", "photo", "image.shape[:2]", *how])
    return (
        "from pathlib import Path", "", "import numpy as np", "import tritoncrf as tc",
        "from tritoncrf.readers import read_scores", "",
        f"photo = Path({photo})",
        f"image = np.asarray(tc.files.read_image(photo, upright={not options.as_stored}))",
        f"scores = read_scores({arguments})",
    ), f"image, {kind}=scores"  # fmt: skip


def _quoted(path: Path) -> str:
    name = str(path)
    return json.dumps(name, ensure_ascii=not name.isprintable())


@dataclass(frozen=True)
class Outcome:
    """The parts of a refinement that the page shows.

    Attributes:
        after: [H, W] labels.
        summary: the summary of a `Trace`.
        notes: short messages, first the total change.
        doubts: warnings that the settings may not suit the image.
    """

    after: np.ndarray
    summary: Summary
    notes: Sequence[str]
    doubts: Sequence[str]


class Session:
    """A problem, and the results of recent settings."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.device = device_found(problem.device)
        self.outcome = functools.lru_cache(maxsize=16)(self._outcome)
        self._started = functools.lru_cache(maxsize=4)(self._softmax)

    @functools.cached_property
    def before(self) -> np.ndarray:
        """[H, W] labels; -1 where unknown."""
        return labels_of(self.problem.kind, self.problem.scores, self.problem.reading)

    @property
    def methods(self) -> Sequence[Method]:
        """The methods that are fast enough to wait for."""
        pixels = math.prod(self.problem.image.shape[:2])
        return [m for m in METHODS if m != "exact" or self.device.type != "cpu" or pixels <= MOST_EXACT]

    def refined(self, settings: Settings) -> torch.Tensor:
        problem = self.problem
        scores = {problem.kind: torch.from_numpy(problem.scores).to(self.device)}
        return refine(problem.image, **scores, **problem.reading, **settings)  # type: ignore[call-overload]

    def _softmax(self, **settings: Any) -> torch.Tensor:
        """The probabilities from which a refinement starts."""
        return self._classes(self.refined({"method": "guided", "iterations": 0, **settings}))

    def _classes(self, q: torch.Tensor) -> torch.Tensor:
        return torch.stack([1 - q, q]) if self.problem.kind in BINARY else q  # [C, H, W]

    def _outcome(self, settings: tuple[tuple[str, Any], ...]) -> Outcome:
        """The outcome for the settings, given as items."""
        problem, given = self.problem, dict(settings)
        first = self._started(**{k: v for k, v in settings if k == "label_confidence"})
        start = time.perf_counter()
        found = self.refined(given)
        values = found.float().cpu().numpy()
        seconds = time.perf_counter() - start
        after = (values > 0.5) * 1 if problem.kind in BINARY else values.argmax(0)
        summary = summarized(first, self._classes(found))
        shares = {c: pair for c, pair in enumerate(zip(summary.before, summary.after)) if any(pair)}
        notes = [
            f"{summary.changed:.2%} of the pixels changed{moved(shares, problem.kind, problem.names)}",
            f"confidence {summary.confidence_before:.4f} before, {summary.confidence_after:.4f} after",
            f"{seconds:.2f} s on {self.device}",
        ]
        if problem.truth is not None:
            right = [np.mean(labels == problem.truth) for labels in (self.before, after)]
            notes.insert(1, f"right: {right[0]:.1%} before, {right[1]:.1%} after")
        warned = doubts(shares, problem.kind, given, after.shape, problem.names)
        return Outcome(after, summary, notes, list(warned))

    def presets(self, method: str, start: Settings) -> dict[str, dict[str, Any]]:
        """The named settings of a method, including the start if it has this method and differs from the others."""
        sets: dict[str, Settings] = {"defaults": {}, **(PARAMETERS if method in GAUSSIAN else {})}
        found = {name: self.problem.start({"method": method, **values}) for name, values in sets.items()}
        if start["method"] == method and start not in found.values():
            found["at the start"] = dict(start)
        return found

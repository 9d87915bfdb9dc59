"""The actions behind the commands of `cli`."""

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import tritoncrf
from tritoncrf import demo, figures
from tritoncrf.backends import resolve
from tritoncrf.checks import MOST_CLASSES
from tritoncrf.commands import CommandError, check_output, make_folder
from tritoncrf.devices import device_found
from tritoncrf.diagnostics import Record
from tritoncrf.features import bandwidths
from tritoncrf.files import (
    read_array,
    read_image,
    replacing,
    save_figure,
    write_labels,
    write_mask,
)
from tritoncrf.options import ARGUMENTS, BINARY, PARAMETERS, SCORES, UNKNOWN
from tritoncrf.readers import read_scores
from tritoncrf.refine import refine
from tritoncrf.scores import labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES", "class_name", "doubts", "draw_demo", "moved", "print_info", "progress", "refine_file", "settings_of",
    "source_of", "table",
]  # fmt: skip

FIGURES = (".png", ".pdf", ".svg")
NOTICEABLE = 0.005  # the share of the pixels above which the loss of a class is reported
VANISHED = 0.05  # the remaining fraction below which it counts as lost


def draw_demo(options: argparse.Namespace) -> None:
    """`tritoncrf demo`."""
    if options.inputs is not None:
        return _write_inputs(options.inputs)
    check_output("--out", options.out, FIGURES)
    with progress("refine", "draw") as step:
        outcome = demo.run(device_found(options.device))
        step()
        figure = figures.comparison(
            outcome.image, outcome.before, outcome.after,
            truth=outcome.truth, names=demo.CLASSES, seconds=outcome.seconds,
        )  # fmt: skip
        save_figure(options.out, figure)
        step()
    print(outcome)
    print(f"wrote {options.out}")


def _write_inputs(folder: Path) -> None:
    """Write the demo's photo and scores to files."""
    make_folder("--inputs", folder)
    photo, scores = folder / "photo.png", folder / "probabilities.npy"
    with replacing(photo) as file:
        Image.fromarray(demo.photo()).save(file, format="png")
    with replacing(scores) as file:
        np.save(file, demo.scores())
    print(f"wrote {photo} and {scores}")


def refine_file(options: argparse.Namespace) -> None:
    """`tritoncrf refine`."""
    kind, source = source_of(options)
    out = _output(options)
    check_output("--out", out, (".png", ".npy"))
    for option, path in ("--figure", options.figure), ("--trace-figure", options.trace_figure):
        if path is not None:
            check_output(option, path, FIGURES)
    _check_distinct(options.image, source, out, options.figure, options.trace_figure)
    settings = settings_of(options)
    device, trace = device_found(options.device), None
    traced = options.trace or options.trace_figure is not None

    with progress("load", "refine", "write") as step:
        image = np.asarray(read_image(options.image, upright=not options.as_stored))
        scores = read_scores(kind, source, options.image, image.shape[:2], options.resize, options.as_stored)
        _check_png(out, kind, scores, settings)
        step()
        start = time.perf_counter()
        settings[kind] = torch.from_numpy(scores).to(device)
        if traced:
            found, trace = refine(image, **settings, return_trace=True)
        else:
            found = refine(image, **settings)
        refined = found.float().cpu().numpy()
        seconds = time.perf_counter() - start
        step()
        before, after = labels_of(kind, scores, settings), (refined > 0.5) * 1 if kind in BINARY else refined.argmax(0)
        with contextlib.ExitStack() as files:
            _write(files.enter_context(replacing(out)), out, refined, after, kind)
            if options.figure is not None:
                figure = figures.comparison(image, before, after, seconds=seconds)
                _save(figure, files.enter_context(replacing(options.figure)), options.figure)
            if trace is not None and options.trace_figure is not None:
                figure = figures.trace(trace.records)
                _save(figure, files.enter_context(replacing(options.trace_figure)), options.trace_figure)
        step()
    if trace is not None and options.trace:
        print(table(trace.records))
        print(trace.summary)
    shares = _shares(before, after)
    print(f"wrote {out}: {np.mean(before != after):.2%} of the pixels changed{moved(shares, kind)}, {seconds:.2f} s")
    for line in doubts(shares, kind, settings, image.shape[:2]):
        print(f"tritoncrf: warning: {line}", file=sys.stderr)


def _shares(before: np.ndarray, after: np.ndarray) -> dict[int, tuple[float, float]]:
    """Each class's share of all pixels before and after; unknown pixels, -1, belong to no class."""
    classes = np.union1d(before, after)
    return {int(c): (float(np.mean(before == c)), float(np.mean(after == c))) for c in classes if c >= 0}


def class_name(label: int, kind: str, names: Sequence[str] = ()) -> str:
    """The name of a class, from `names` if there are any."""
    names = names or (("background", "foreground") if kind in BINARY else ())
    return names[label] if names else f"class {label}"


def moved(shares: dict[int, tuple[float, float]], kind: str, names: Sequence[str] = ()) -> str:
    """The change of the object, or of the class whose share changed most; of two equal changes, the decrease."""

    def change(label: int) -> tuple[float, bool]:
        old, new = shares[label]
        return round(abs(new - old), 6), old > new

    label = 1 if kind in BINARY else max(shares, key=change)
    old, new = shares.get(label, (0.0, 0.0))
    return f", {class_name(label, kind, names)} from {old:.2%} to {new:.2%}" if old != new else ""


def doubts(
    shares: dict[int, tuple[float, float]], kind: str, settings: Mapping[str, Any], size: Sequence[int],
    names: Sequence[str] = (),
) -> Iterator[str]:  # fmt: skip
    """Warnings that the settings may not suit the picture, one line each."""
    for label, (old, new) in shares.items():
        if old > NOTICEABLE and new < VANISHED * old:
            yield (
                f"{class_name(label, kind, names)} went from {old:.2%} to {new:.2%} of the pixels; a lower "
                "--weight-appearance or --theta-color keeps more"
            )
    theta, longest = settings.get("theta_space"), max(size)
    if theta is not None and bandwidths("theta_space", theta, size)[0] > longest / 2:
        yield f"--theta-space {theta} is more than half of the image's {longest} pixels, so positions hardly matter"


def source_of(options: argparse.Namespace) -> tuple[str, Path]:
    """The kind of the scores and their file."""
    kind = next(kind for kind in SCORES if getattr(options, kind) is not None)
    return kind, getattr(options, kind)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The given arguments of `refine`, including those of --parameters."""
    given = {name: getattr(options, name) for name in ("method", *ARGUMENTS) if getattr(options, name) is not None}
    if isinstance(given.get("compatibility"), Path):
        given["compatibility"] = read_array(given["compatibility"])
    return {**_parameters(options.parameters), **given}


def _parameters(name: str | None) -> Mapping[str, Any]:
    """The settings of a published pipeline, or of a file."""
    if name is None:
        return {}
    if name.endswith(".toml"):
        from tritoncrf.models.tuning import load_parameters

        return load_parameters(name)
    if name not in PARAMETERS:
        raise CommandError(f"--parameters: expected {', '.join(PARAMETERS)} or a .toml file, got {name!r}")
    return PARAMETERS[name]


def _output(options: argparse.Namespace) -> Path:
    """The file to write; a default name must not exist yet."""
    if options.out is not None:
        out: Path = options.out
        return out
    out = options.image.with_name(f"{options.image.stem}_refined.png")
    if os.path.lexists(out) and not options.force:
        raise CommandError(f"--out: expected a new file by default, got {out}, which exists; --force replaces it")
    return out


def _check_png(out: Path, kind: str, scores: np.ndarray, settings: dict[str, Any]) -> None:
    """Raise an error, before any work, if there are too many classes for a .png, in which 255 is unknown."""
    classes = len(scores) if kind in SCORES[:3] else settings.get("num_classes") or 2
    if out.suffix.lower() == ".png" and UNKNOWN < classes <= MOST_CLASSES:
        raise CommandError(f"--out: expected at most {UNKNOWN} classes in a .png, got {classes}; write an .npy")


def table(records: Sequence[Record]) -> str:
    """The records of a trace, one per line."""
    lines = [f"{'iteration':>9}  {'energy':>16}  {'free energy':>16}  {'entropy':>8}  {'changed':>8}"]
    for r in records:
        lines.append(f"{r.iteration:9}  {r.energy:16,.2f}  {r.free_energy:16,.2f}  {r.entropy:8.4f}  {r.changed:8.2%}")
    return "\n".join(lines)


def print_info(options: argparse.Namespace) -> None:
    """`tritoncrf info`."""
    print(f"tritoncrf  {tritoncrf.__version__}")
    print(f"python     {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "triton", "numpy"):
        try:
            print(f"{package:10} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:10} not installed")
    devices = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    print(f"devices    {', '.join([*devices, f'cpu ({torch.get_num_threads()} threads)'])}")
    print(f"backend    {resolve('auto', device_found(), torch.float32)} on {device_found()}")


@contextlib.contextmanager
def progress(*names: str) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, shown after two seconds; call the result after each step."""
    bar = tqdm(total=len(names), desc=names[0], unit="step", delay=2, leave=False, disable=None)
    left = iter([*names[1:], ""])

    def step() -> None:
        bar.set_description(next(left), refresh=False)
        bar.update()

    with bar:
        yield step


def _check_distinct(*paths: Path | None) -> None:
    """No output may replace an input, nor another output."""
    image, source, *outputs = [os.path.realpath(path) for path in paths if path is not None]
    for n, path in enumerate(outputs):
        if path in (image, source, *outputs[:n]):
            raise CommandError(f"--out, --figure, --trace-figure: expected different files, got {path} twice")


def _write(file: IO[bytes], path: Path, probabilities: np.ndarray, labels: np.ndarray, kind: str) -> None:
    if path.suffix.lower() == ".npy":
        np.save(file, probabilities)
    elif kind in BINARY:
        write_mask(file, labels)
    else:
        write_labels(file, labels)


def _save(figure: "Figure", file: IO[bytes], path: Path) -> None:
    """Draw into `file`, in the format that the name of `path` says."""
    figure.savefig(file, format=path.suffix[1:].lower())

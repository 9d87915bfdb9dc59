"""What the commands of `cli` do."""

import argparse
import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

import tritoncrf
from tritoncrf import demo, figures
from tritoncrf.backends import resolve
from tritoncrf.commands import CommandError, check_output
from tritoncrf.devices import device_found
from tritoncrf.diagnostics import Record
from tritoncrf.files import read_array, read_image, read_labels, replacing, save_figure, write_labels
from tritoncrf.options import ARGUMENTS, PARAMETERS, SCORES, UNKNOWN
from tritoncrf.refine import refine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_demo", "print_info", "refine_file"]

FIGURES = (".png", ".pdf", ".svg")


def draw_demo(options: argparse.Namespace) -> None:
    """`tritoncrf demo`."""
    check_output("--out", options.out, FIGURES)
    with _steps("refine", "draw") as step:
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


def refine_file(options: argparse.Namespace) -> None:
    """`tritoncrf refine`."""
    kind = next(kind for kind in SCORES if getattr(options, kind) is not None)
    source = getattr(options, kind)
    check_output("--out", options.out, (".png", ".npy"))
    for option, path in ("--figure", options.figure), ("--trace-figure", options.trace_figure):
        if path is not None:
            check_output(option, path, FIGURES)
    _check_distinct(options.image, source, options.out, options.figure, options.trace_figure)
    given = {name: getattr(options, name) for name in ("method", *ARGUMENTS) if getattr(options, name) is not None}
    settings: dict[str, Any] = {**PARAMETERS.get(options.parameters, {}), **given}
    device, trace = device_found(options.device), None
    traced = options.trace or options.trace_figure is not None

    with _steps("load", "refine", "write") as step:
        image = read_image(options.image)
        scores = read_labels(source) if kind == "labels" else read_array(source)
        step()
        start = time.perf_counter()
        settings[kind] = torch.from_numpy(scores).to(device)
        if traced:
            found, trace = refine(image, **settings, return_trace=True)
        else:
            found = refine(image, **settings)
        refined = found.float().cpu().numpy()
        seconds = time.perf_counter() - start
        if options.out.suffix.lower() == ".png" and len(refined) > 256:
            raise CommandError(f"--out: a .png holds 256 classes, got {len(refined)}; write an .npy")
        step()
        with contextlib.ExitStack() as files:
            out = files.enter_context(replacing(options.out))
            _write(out, options.out, refined)
            if options.figure is not None:
                before = _before(kind, scores)
                figure = figures.comparison(np.asarray(image), before, refined.argmax(0), seconds=seconds)
                _save(figure, files.enter_context(replacing(options.figure)), options.figure)
            if trace is not None and options.trace_figure is not None:
                figure = figures.trace(trace.records)
                _save(figure, files.enter_context(replacing(options.trace_figure)), options.trace_figure)
        step()
    if trace is not None and options.trace:
        print(_table(trace.records))
        print(trace.summary)


def _table(records: Sequence[Record]) -> str:
    """The records of a trace, a line each."""
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
def _steps(*names: str) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, once the work has taken two seconds; call the result after each step."""
    bar = tqdm(total=len(names), desc=names[0], unit="step", delay=2, leave=False, disable=None)
    left = iter([*names[1:], ""])

    def step() -> None:
        bar.set_description(next(left), refresh=False)
        bar.update()

    with bar:
        yield step


def _check_distinct(*paths: Path | None) -> None:
    """No output may replace an input, nor another output."""
    image, source, *outputs = [path.resolve() for path in paths if path is not None]
    for n, path in enumerate(outputs):
        if path in (image, source, *outputs[:n]):
            raise CommandError(f"--out, --figure, --trace-figure: expected different files, got {path} twice")


def _before(kind: str, scores: np.ndarray) -> np.ndarray:
    """The labels that came: the best class of scores, -1 where a label is unknown."""
    if kind == "labels":
        return np.where(scores == UNKNOWN, -1, scores.astype(np.int64))
    return scores.argmin(0) if kind == "energies" else scores.argmax(0)


def _write(file: IO[bytes], path: Path, probabilities: np.ndarray) -> None:
    if path.suffix.lower() == ".npy":
        np.save(file, probabilities)
    else:
        write_labels(file, probabilities.argmax(0))


def _save(figure: "Figure", file: IO[bytes], path: Path) -> None:
    """Draw into `file`, in the format that the name of `path` says."""
    figure.savefig(file, format=path.suffix[1:].lower())

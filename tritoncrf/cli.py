"""The command line: tritoncrf demo | refine | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all.
"""

import argparse
import contextlib
import importlib.util
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
from tritoncrf.commands import CommandError, Parser, check_output, device_found, run
from tritoncrf.diagnostics import Record
from tritoncrf.files import read_array, read_image, read_labels, replacing, save_figure, write_labels
from tritoncrf.published import PARAMETERS
from tritoncrf.refine import METHODS, UNKNOWN, refine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["main"]

KINDS = ("logits", "probabilities", "energies", "labels")
SETTINGS = {
    "theta_space": (float, "bandwidth of positions in the appearance kernel, in pixels (80)"),
    "theta_color": (float, "bandwidth of colours, in 0..255 units (13)"),
    "weight_appearance": (float, "weight of the appearance kernel, or of the guided filter (10)"),
    "theta_smooth": (float, "bandwidth of the smoothness kernel, in pixels (3)"),
    "weight_smooth": (float, "weight of the smoothness kernel (3)"),
    "iterations": (int, "mean-field steps (5)"),
    "window_size": (int, "with --method window: side of the neighbourhood, odd, in blurred pixels (11)"),
    "blur": (int, "with --method window: blur x blur pixels are averaged for the messages (4)"),
    "radius": (int, "with --method guided: radius of the filter's windows, in pixels (3)"),
    "eps": (float, "with --method guided: what counts as an edge, in 0..255 units squared (1.0)"),
    "label_confidence": (float, "probability that a label is right, with --labels (0.7)"),
    "num_classes": (int, "number of classes, with --labels (the largest label + 1)"),
}


FIGURES = (".png", ".pdf", ".svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(prog="tritoncrf", description="Refine segmentation scores against the image, by a dense CRF.")
    parser.add_argument("--version", action="version", version=f"tritoncrf {tritoncrf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="demo | refine | info")

    show = commands.add_parser("demo", help="refine noisy labels of a photo and draw a figure")
    show.add_argument("-o", "--out", type=Path, default="demo.png", help="the figure: .png, .pdf or .svg (demo.png)")
    show.set_defaults(run=_demo)

    command = commands.add_parser("refine", help="refine the scores or labels of one image")
    command.add_argument("image", type=Path, metavar="IMAGE", help="a photo, in any format that Pillow reads")
    scores = command.add_mutually_exclusive_group(required=True)
    for kind in KINDS[:3]:
        scores.add_argument(f"--{kind}", type=Path, metavar="FILE", help="[C, H, W] floats; .npy, or .npz of one array")
    scores.add_argument("--labels", type=Path, metavar="FILE", help="label indices, 255 unknown; .png, .npy or .npz")
    command.add_argument(
        "-o", "--out", type=Path, required=True, help="labels as an indexed .png, or float32 probabilities as .npy"
    )
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw before and after: .png, .pdf or .svg")
    command.add_argument("--trace", action="store_true", help="print energy, entropy and changed labels per iteration")
    command.add_argument("--trace-figure", type=Path, metavar="FILE", help="draw them: .png, .pdf or .svg")
    command.add_argument("--method", help=f"which pixels see each other: {', '.join(METHODS)} (lattice)")
    command.add_argument(
        "--parameters", choices=list(PARAMETERS), metavar="NAME",
        help=f"what a known pipeline passes: {', '.join(PARAMETERS)}; what else is given wins",
    )  # fmt: skip
    for name, (number, text) in SETTINGS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help=text)
    command.set_defaults(run=_refine)

    info = commands.add_parser("info", help="versions, devices and the backend that would run")
    info.set_defaults(run=_info)
    return parser


def _demo(options: argparse.Namespace) -> None:
    check_output("--out", options.out, FIGURES)
    with _steps("refine", "draw") as step:
        outcome = demo.run(device_found())
        step()
        figure = figures.comparison(
            outcome.image, outcome.before, outcome.after,
            truth=outcome.truth, names=demo.CLASSES, seconds=outcome.seconds,
        )  # fmt: skip
        save_figure(options.out, figure)
        step()
    print(outcome)
    print(f"wrote {options.out}")


def _refine(options: argparse.Namespace) -> None:
    kind = next(kind for kind in KINDS if getattr(options, kind) is not None)
    source = getattr(options, kind)
    check_output("--out", options.out, (".png", ".npy"))
    for option, path in ("--figure", options.figure), ("--trace-figure", options.trace_figure):
        if path is not None:
            check_output(option, path, FIGURES)
    _check_distinct(options.image, source, options.out, options.figure, options.trace_figure)
    given = {name: getattr(options, name) for name in ("method", *SETTINGS) if getattr(options, name) is not None}
    settings: dict[str, Any] = {**PARAMETERS.get(options.parameters, {}), **given}
    records: list[Record] = []
    traced = options.trace or options.trace_figure is not None

    with _steps("load", "refine", "write") as step:
        image = read_image(options.image)
        scores = read_labels(source) if kind == "labels" else read_array(source)
        step()
        start = time.perf_counter()
        settings[kind] = torch.from_numpy(scores).to(device_found())
        refined = refine(image, **settings, trace=records if traced else None).float().cpu().numpy()
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
            if options.trace_figure is not None:
                figure = figures.trace(records)
                _save(figure, files.enter_context(replacing(options.trace_figure)), options.trace_figure)
        step()
    if options.trace:
        print(_table(records))


def _table(records: Sequence[Record]) -> str:
    """The records of a trace, a line each."""
    lines = [f"{'iteration':>9}  {'energy':>16}  {'free energy':>16}  {'entropy':>8}  {'changed':>8}"]
    for r in records:
        lines.append(f"{r.iteration:9}  {r.energy:16,.2f}  {r.free_energy:16,.2f}  {r.entropy:8.4f}  {r.changed:8.2%}")
    return "\n".join(lines)


def _info(options: argparse.Namespace) -> None:
    print(f"tritoncrf  {tritoncrf.__version__}")
    print(f"python     {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "triton", "numpy"):
        try:
            print(f"{package:10} {version(package)}")
        except PackageNotFoundError:
            print(f"{package:10} not installed")
    devices = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    print(f"devices    {', '.join([*devices, f'cpu ({torch.get_num_threads()} threads)'])}")
    kernels = device_found().type == "cuda" and importlib.util.find_spec("triton") is not None
    print(f"backend    {'triton' if kernels else 'torch'} on {device_found()}")


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

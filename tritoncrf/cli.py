"""The command line: tritoncrf refine | train | evaluate | predict | experiments | demo | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all. What a
command does is in `actions`, which is imported once its arguments are understood.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tritoncrf
from tritoncrf.commands import Parser, add_device, run
from tritoncrf.models.__main__ import NAMES, add_commands
from tritoncrf.options import ARGUMENTS, METHODS, PARAMETERS, SCORES

__all__ = ["main"]

COMMANDS = ("refine", *NAMES, "demo", "info")


def _unknown(text: str) -> tuple[int, ...] | str:
    """The labels of an option --unknown."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, none or auto, got {text!r}") from None


def _theta(text: str) -> float | str:
    """A bandwidth of positions: a number, or a share of the image, which `refine` looks at."""
    try:
        return text if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, or a share such as 16%, got {text!r}") from None


def _costs(text: str) -> Any:
    """A compatibility: "potts", or the array of a file."""
    from tritoncrf.files import FileError, read_array

    try:
        return text if text == "potts" else read_array(Path(text))
    except FileError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


FILES = {
    "labels": "label indices, 255 unknown; .png, .npy or .npz",
    "mask": "one object: 0 and 255, or grey for how sure; a picture, .npy or .npz",
    "foreground": "one object's probability, [H, W] floats or grey; .npy, .npz or a picture",
    "scores": "[C, H, W] floats; .npy, or .npz of one array",
}
SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "theta_space": (_theta, "bandwidth of positions in the appearance kernel, in pixels, or 16%% of the diagonal"),
    "theta_color": (float, "bandwidth of colours, in 0..255 units"),
    "weight_appearance": (float, "weight of the appearance kernel, or of the guided filter"),
    "theta_smooth": (_theta, "bandwidth of the smoothness kernel, in pixels, or 1%% of the diagonal"),
    "weight_smooth": (float, "weight of the smoothness kernel"),
    "compatibility": (_costs, "potts, or a file, .npy or .npz: what a row's class costs near a column's, [C, C]"),
    "iterations": (int, "mean-field steps"),
    "damping": (float, "share of the old probabilities that each step keeps, from 0 to below 1"),
    "temperature": (float, "above 1 the result is less certain, below 1 more"),
    "window_size": (int, "with --method window: side of the neighbourhood, odd, in blurred pixels"),
    "blur": (int, "with --method window: blur x blur pixels are averaged for the messages"),
    "radius": (int, "with --method guided: radius of the filter's windows, in pixels"),
    "eps": (float, "with --method guided: what counts as an edge, in 0..255 units squared"),
    "label_confidence": (float, "with --labels and --mask: probability that they are right"),
    "num_classes": (int, "with --labels: number of classes"),
    "unknown": (_unknown, "with --labels: the label of unknown pixels, several as in --unknown=-1,255, or none"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        given = ["--help"]
    elif given[0] not in (*COMMANDS, "-h", "--help", "--version") and _may_begin(given[0]):
        given = ["refine", *given]
    return run(_parser(), given)


def _may_begin(word: str) -> bool:
    """Whether a first argument is an option or a file's name, and no command's that is mistyped."""
    return word.startswith("-") or Path(word).suffix != "" or Path(word).is_file()


def _parser() -> Parser:
    parser = Parser(
        prog="tritoncrf", description="Refine segmentation scores against the image, by a dense CRF.",
        epilog="tritoncrf IMAGE --mask FILE is short for tritoncrf refine IMAGE --mask FILE.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tritoncrf {tritoncrf.__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))

    command = commands.add_parser("refine", help="refine the scores or labels of one image")
    command.add_argument("image", type=Path, metavar="IMAGE", help="a photo, in any format that Pillow reads")
    scores = command.add_mutually_exclusive_group(required=True)
    for kind in SCORES:
        scores.add_argument(f"--{kind}", type=Path, metavar="FILE", help=FILES.get(kind, FILES["scores"]))
    command.add_argument(
        "-o", "--out", type=Path,
        help="labels as an indexed .png, a mask as a .png of 0 and 255, or float32 probabilities as .npy "
        "(IMAGE_refined.png, if there is none)",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace an IMAGE_refined.png")
    command.add_argument(
        "--resize",
        action="store_true",
        help="bring scores to the image's size: bilinear, labels the nearest",
    )
    command.add_argument(
        "--as-stored", action="store_true", help="leave pictures as stored, whatever their EXIF orientation"
    )
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw before and after: .png, .pdf or .svg")
    command.add_argument(
        "--trace", action="store_true", help="print energy, entropy and changed labels per iteration, and what changed"
    )
    command.add_argument("--trace-figure", type=Path, metavar="FILE", help="draw the iterations: .png, .pdf or .svg")
    command.add_argument(
        "--method",
        help=f"which pixels see each other: {', '.join(METHODS)} (guided for a network's scores alone, else lattice)",
    )  # fmt: skip
    command.add_argument(
        "--parameters", metavar="NAME",
        help=f"what a known pipeline passes: {', '.join(PARAMETERS)}; or a .toml file of `tritoncrf tune`; what else "
        "is given wins",
    )  # fmt: skip
    for name, (number, text) in SETTINGS.items():
        entry = ARGUMENTS[name]
        default = "the largest label + 1" if entry.default is None else str(entry.default).replace("%", "%%")
        if entry.gentle is not None:
            default += f"; {entry.gentle} for the scores of a network, unless guided"
        command.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help=f"{text} ({default})")
    add_device(command)
    command.set_defaults(run=_run, action="refine_file")

    add_commands(commands)

    command = commands.add_parser("demo", help="refine noisy labels of a photo and draw a figure")
    command.add_argument("-o", "--out", type=Path, default="demo.png", help="the figure: .png, .pdf or .svg (demo.png)")
    add_device(command)
    command.set_defaults(run=_run, action="draw_demo")

    command = commands.add_parser("info", help="versions, devices and the backend that would run")
    command.set_defaults(run=_run, action="print_info")
    return parser


def _run(options: argparse.Namespace) -> None:
    from tritoncrf import actions

    getattr(actions, options.action)(options)

"""The command line: tritoncrf refine | train | evaluate | predict | tune | experiments | app | demo | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all. What a
command does is in `actions` and `app`, which are imported once its arguments are understood.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tritoncrf
from tritoncrf.commands import Parser, add_device, run
from tritoncrf.models.__main__ import NAMES, add_commands
from tritoncrf.options import ARGUMENTS, METHODS, PARAMETERS, SCORES, TEXTS

__all__ = ["main"]

COMMANDS = ("refine", *NAMES, "app", "demo", "info")


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


def _costs(text: str) -> str | Path:
    """A compatibility: "potts", or a file's name."""
    return text if text == "potts" else Path(text)


FILES = {
    "labels": "label indices, 255 unknown; .png, .npy or .npz",
    "mask": "one object: 0 and 255, or grey for how sure; a picture, .npy or .npz",
    "foreground": "one object's probability, [H, W] floats or grey; .npy, .npz or a picture",
    "scores": "[C, H, W] floats; .npy, or .npz of one array",
}
NUMBERS: dict[str, Callable[[str], Any]] = {
    "theta_space": _theta,
    "theta_color": float,
    "weight_appearance": float,
    "theta_smooth": _theta,
    "weight_smooth": float,
    "compatibility": _costs,
    "iterations": int,
    "damping": float,
    "temperature": float,
    "window_size": int,
    "blur": int,
    "radius": int,
    "eps": float,
    "label_confidence": float,
    "num_classes": int,
    "unknown": _unknown,
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
    _add_scores(command)
    command.add_argument(
        "-o", "--out", type=Path,
        help="labels as an indexed .png, a mask as a .png of 0 and 255, or float32 probabilities as .npy "
        "(IMAGE_refined.png, if there is none)",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace an IMAGE_refined.png")
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw before and after: .png, .pdf or .svg")
    command.add_argument(
        "--trace", action="store_true", help="print energy, entropy and changed labels per iteration, and what changed"
    )
    command.add_argument("--trace-figure", type=Path, metavar="FILE", help="draw the iterations: .png, .pdf or .svg")
    _add_settings(command)
    command.set_defaults(run=_run, action="refine_file")

    add_commands(commands)

    command = commands.add_parser("demo", help="refine noisy labels of a photo and draw a figure")
    command.add_argument("-o", "--out", type=Path, default="demo.png", help="the figure: .png, .pdf or .svg (demo.png)")
    command.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="write photo.png and probabilities.npy there instead, and stop"
    )
    add_device(command)
    command.set_defaults(run=_run, action="draw_demo")

    command = commands.add_parser("app", help="a page on this machine to see what each setting of refine does")
    _add_scores(command, required=False)
    _add_settings(command)
    command.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at (127.0.0.1)")
    command.add_argument("--port", type=int, default=7860, metavar="N", help="0 for any that is free (7860)")
    command.set_defaults(run=_run_app)

    command = commands.add_parser("info", help="versions, devices and the backend that would run")
    command.set_defaults(run=_run, action="print_info")
    return parser


def _add_scores(command: argparse.ArgumentParser, required: bool = True) -> None:
    """The files of one image, and how they are read."""
    text = "a photo, in any format that Pillow reads" + ("" if required else "; the demo's, if there is none")
    command.add_argument("image", type=Path, nargs=None if required else "?", metavar="IMAGE", help=text)
    scores = command.add_mutually_exclusive_group(required=required)
    for kind in SCORES:
        scores.add_argument(f"--{kind}", type=Path, metavar="FILE", help=FILES.get(kind, FILES["scores"]))
    command.add_argument(
        "--resize", action="store_true", help="bring scores to the image's size: bilinear, labels the nearest"
    )
    command.add_argument(
        "--as-stored", action="store_true", help="leave pictures as stored, whatever their EXIF orientation"
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The arguments of `refine`, and where it computes."""
    command.add_argument(
        "--method",
        help=f"which pixels see each other: {', '.join(METHODS)} (guided for a network's scores alone, else lattice)",
    )
    command.add_argument(
        "--parameters", metavar="NAME",
        help=f"what a known pipeline passes: {', '.join(PARAMETERS)}; or a .toml file of `tritoncrf tune`; what else "
        "is given wins",
    )  # fmt: skip
    for name, number in NUMBERS.items():
        entry = ARGUMENTS[name]
        default = "the largest label + 1" if entry.default is None else f"{entry.default}"
        if entry.gentle is not None:
            default += f"; {entry.gentle} for the scores of a network, unless guided"
        text = f"{_where(name)}{TEXTS[name].meaning} ({default})"
        command.add_argument(f"--{name.replace('_', '-')}", type=number, metavar="N", help=text.replace("%", "%%"))
    add_device(command)


def _where(name: str) -> str:
    """Beside which option an argument plays a part, if not beside all."""
    methods, scores = ARGUMENTS[name].methods, ARGUMENTS[name].scores
    if len(methods) == 1:
        return f"with --method {methods[0]}: "
    *others, last = (f"--{kind}" for kind in scores)
    return "" if scores == SCORES else f"with {' and '.join([', '.join(others), last] if others else [last])}: "


def _run(options: argparse.Namespace) -> None:
    from tritoncrf import actions

    getattr(actions, options.action)(options)


def _run_app(options: argparse.Namespace) -> None:
    from tritoncrf import app

    app.serve(options)

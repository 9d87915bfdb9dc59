"""The command line: tritoncrf refine | train | evaluate | predict | experiments | demo | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all. What a
command does is in `actions`, which is imported once its arguments are understood.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import tritoncrf
from tritoncrf.commands import Parser, add_device, run
from tritoncrf.models.__main__ import NAMES, add_commands
from tritoncrf.options import ARGUMENTS, METHODS, PARAMETERS, SCORES

__all__ = ["main"]

SETTINGS = {
    "theta_space": (float, "bandwidth of positions in the appearance kernel, in pixels"),
    "theta_color": (float, "bandwidth of colours, in 0..255 units"),
    "weight_appearance": (float, "weight of the appearance kernel, or of the guided filter"),
    "theta_smooth": (float, "bandwidth of the smoothness kernel, in pixels"),
    "weight_smooth": (float, "weight of the smoothness kernel"),
    "iterations": (int, "mean-field steps"),
    "window_size": (int, "with --method window: side of the neighbourhood, odd, in blurred pixels"),
    "blur": (int, "with --method window: blur x blur pixels are averaged for the messages"),
    "radius": (int, "with --method guided: radius of the filter's windows, in pixels"),
    "eps": (float, "with --method guided: what counts as an edge, in 0..255 units squared"),
    "label_confidence": (float, "with --labels: probability that a label is right"),
    "num_classes": (int, "with --labels: number of classes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(prog="tritoncrf", description="Refine segmentation scores against the image, by a dense CRF.")
    parser.add_argument("--version", action="version", version=f"tritoncrf {tritoncrf.__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(("refine", *NAMES, "demo", "info")))

    command = commands.add_parser("refine", help="refine the scores or labels of one image")
    command.add_argument("image", type=Path, metavar="IMAGE", help="a photo, in any format that Pillow reads")
    scores = command.add_mutually_exclusive_group(required=True)
    for kind in SCORES[:3]:
        scores.add_argument(f"--{kind}", type=Path, metavar="FILE", help="[C, H, W] floats; .npy, or .npz of one array")
    scores.add_argument("--labels", type=Path, metavar="FILE", help="label indices, 255 unknown; .png, .npy or .npz")
    command.add_argument(
        "-o", "--out", type=Path, required=True, help="labels as an indexed .png, or float32 probabilities as .npy"
    )
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw before and after: .png, .pdf or .svg")
    command.add_argument(
        "--trace", action="store_true", help="print energy, entropy and changed labels per iteration, and what changed"
    )
    command.add_argument("--trace-figure", type=Path, metavar="FILE", help="draw the iterations: .png, .pdf or .svg")
    command.add_argument("--method", help=f"which pixels see each other: {', '.join(METHODS)} (lattice)")
    command.add_argument(
        "--parameters", choices=list(PARAMETERS), metavar="NAME",
        help=f"what a known pipeline passes: {', '.join(PARAMETERS)}; what else is given wins",
    )  # fmt: skip
    for name, (number, text) in SETTINGS.items():
        default = ARGUMENTS[name].default
        command.add_argument(
            f"--{name.replace('_', '-')}", type=number, metavar="N",
            help=f"{text} ({'the largest label + 1' if default is None else default})",
        )  # fmt: skip
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

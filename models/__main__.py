"""The command line of networks: tritoncrf train | evaluate | predict | experiments, or python -m tritoncrf.models.

Bad input ends with exit code 2 and one line on stderr, before any training starts. The commands are implemented in
`actions`, which is imported after the arguments are parsed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritoncrf.commands import Parser, add_device, run
from tritoncrf.models import BUNDLED
from tritoncrf.models.experiments.tables import EXPERIMENTS
from tritoncrf.options import METHODS, SCORES

__all__ = ["NAMES", "add_commands", "main"]

NAMES = ("train", "evaluate", "predict", "tune", "experiments")
FUSIONS = ("mean", "max_mean")
CRFS = ("lattice", "window", "guided")
MEASURES = ("miou", "boundary", "accuracy")  # of `tune`
SEARCHES = ("tpe", "grid", "gradient")
ON_PHOTOS = {
    "synthetic": "noisy scores of label maps, refined by every filter",
    "lattice": "how far the lattice is from the exact sum",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tritoncrf.models", description="Segmentation networks with CRFs: train, evaluate, predict."
    )
    add_commands(parser.add_subparsers(required=True, metavar=" | ".join(NAMES)))
    return parser


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds those of NAMES to the commands of a parser."""
    command = commands.add_parser("train", help="train a network as a configuration says")
    names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
    command.add_argument("config", metavar="CONFIG", help=f"a .toml file, or one of: {names}")
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in RUN")
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from: a checkpoint, or torchvision's or timm's weights"
    )
    _add_changes(command, "data.workers=4, phases.unary.epochs=3")
    command.set_defaults(run=_run, action="train")

    command = commands.add_parser("evaluate", help="metrics of a network, with and without its CRF")
    _add_checkpoints(command)
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("--split", metavar="NAME", help="the configuration's data.validate if left out")
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="also write tables and figures there")
    _add_crf(command)
    _add_changes(command, "data.sbd=SBD, crf.theta_color=3")
    _add_testing(command)
    command.set_defaults(run=_run, action="evaluate")

    command = commands.add_parser("predict", help="label a folder of photos")
    _add_checkpoints(command)
    command.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, or one photo")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for labels/ and overlays/")
    command.add_argument("--force", action="store_true", help="replace older predictions")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--no-crf", action="store_true", help="the network's own labels")
    _add_crf(choice)
    _add_changes(command, "data.resize=[360, 480], crf.theta_color=3")
    _add_testing(command)
    command.set_defaults(run=_run, action="predict")

    command = commands.add_parser("tune", help="find settings of refine for scores like these")
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder of photos")
    scores = command.add_mutually_exclusive_group(required=True)
    for kind in SCORES:
        scores.add_argument(f"--{kind}", type=Path, metavar="FOLDER", help="of files as of refine, one for each photo")
    command.add_argument("--truth", type=Path, required=True, metavar="FOLDER", help="label maps, 255 where unknown")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="tuned.toml, for --parameters")
    command.add_argument("--method", choices=METHODS, default="lattice", help="whose parameters (lattice)")
    command.add_argument(
        "--search", choices=SEARCHES, default="tpe", help="by proposals of Optuna, on a grid, or by gradients (tpe)"
    )
    command.add_argument("--measure", choices=MEASURES, default="miou", help="what is to become largest (miou)")
    for name, default, text in (
        ("budget", 100, "trials for each fold"), ("folds", 2, "each is judged by a search without it"),
        ("seed", 0, "of the search"), ("jobs", 0, "processes that share the images of a trial; 0 is this one"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})")
    command.add_argument("--num-classes", type=int, metavar="N", help="with --labels: number of classes")
    command.add_argument("--study", type=Path, metavar="FILE", help="keep trials in; goes on with what is there")
    command.add_argument("--figure", type=Path, metavar="FILE", help="the measure against each parameter")
    command.add_argument("--resize", action="store_true", help="bring scores to the photos' size")
    command.add_argument("--as-stored", action="store_true", help="leave pictures as stored")
    command.set_defaults(run=_run, action="tune")

    command = commands.add_parser("experiments", help="the papers' tables, at a small size")
    tables = command.add_subparsers(required=True, metavar=" | ".join((*ON_PHOTOS, "defaults", "video", *EXPERIMENTS)))
    for name, title in ON_PHOTOS.items():
        command = tables.add_parser(name, help=title)
        command.add_argument(
            "--data", type=Path, metavar="FOLDER", help="with voc, camvid, coco_stuff; the demo's photo"
        )
        _add_report(command)
        command.set_defaults(run=_run, action="measure", name=name)
    command = tables.add_parser("defaults", help="what refine and the layers do to scores as they come")
    command.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="with camvid, voc and network_scores"
    )
    _add_report(command)
    command.set_defaults(run=_run, action="try_defaults")
    command = tables.add_parser("video", help="what a CRF over several frames does to labels that flicker")
    command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="CamVid's")
    _add_report(command)
    command.set_defaults(run=_run, action="try_video")
    for name, experiment in EXPERIMENTS.items():
        command = tables.add_parser(name, help=experiment.title)
        command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="CamVid's, or Pascal VOC's")
        _add_report(command)
        command.add_argument(
            "--data-format", choices=("camvid", "voc"), default="camvid", help="voc: the paper's own size (camvid)"
        )
        command.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each run (3)")
        command.add_argument("--weights", type=Path, metavar="FOLDER", help="of torchvision's, where voc starts from")
        command.add_argument("--full-size", action="store_true", help="of camvid, ResNet-101 on 360 x 480: for a GPU")
        _add_changes(command, "amp=bfloat16, in all its runs")
        command.set_defaults(run=_run, action="make_table", name=name)


def _add_checkpoints(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
        help="a run's best.pt or last.pt; several are fused as several scales are",
    )  # fmt: skip


def _add_crf(command: "argparse._ActionsContainer") -> None:
    command.add_argument(
        "--crf", choices=CRFS,
        help="a CRF that has learnt nothing, in place of the network's own; its arguments by --set crf.KEY=VALUE",
    )  # fmt: skip


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for the report and its runs")


def _add_changes(command: argparse.ArgumentParser, examples: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help=f"change the configuration: {examples}; may be given several times",
    )  # fmt: skip


def _add_testing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="sizes to see it at (1)")
    command.add_argument("--flip", action="store_true", help="also see every image mirrored")
    command.add_argument("--fuse", choices=FUSIONS, default="mean", help="how these are put together (mean)")
    add_device(command)


def _run(options: argparse.Namespace) -> None:
    from tritoncrf.models import actions

    getattr(actions, options.action)(options)


if __name__ == "__main__":
    sys.exit(main())

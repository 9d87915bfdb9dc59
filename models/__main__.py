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
MEASURES = ("miou", "boundary", "accuracy")  # what `tune` may maximise
SEARCHES = ("tpe", "grid", "gradient")
ON_PHOTOS = {
    "synthetic": "refine noisy scores of label maps with every filter",
    "lattice": "measure the error of the lattice against the exact sum",
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
    """Add the commands NAMES to a parser."""
    command = commands.add_parser("train", help="train a network from a configuration")
    names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
    command.add_argument("config", metavar="CONFIG", help=f"a .toml file, or one of: {names}")
    _add_data(command)
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="RUN", help="folder for the checkpoints and logs of the run"
    )
    command.add_argument("--resume", action="store_true", help="continue from the last checkpoint in RUN")
    command.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="weights to start from: a checkpoint of a run, or weights of torchvision or timm",
    )  # fmt: skip
    _add_changes(command, "data.workers=4, phases.unary.epochs=3")
    command.set_defaults(run=_run, action="train")

    command = commands.add_parser("evaluate", help="measure a network with and without its CRF")
    _add_checkpoints(command)
    _add_data(command)
    command.add_argument(
        "--split", metavar="NAME", help="the split to evaluate on (default: data.validate in the configuration)"
    )
    command.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="also write tables and figures to this folder"
    )
    _add_crf(command)
    _add_changes(command, "data.sbd=SBD, crf.theta_color=3")
    _add_testing(command)
    command.set_defaults(run=_run, action="evaluate")

    command = commands.add_parser("predict", help="label a folder of photos")
    _add_checkpoints(command)
    command.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, or one photo")
    command.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the folder in which to write labels/ and overlays/",
    )
    command.add_argument("--force", action="store_true", help="replace existing predictions")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument("--no-crf", action="store_true", help="write the network's own labels, without its CRF")
    _add_crf(choice)
    _add_changes(command, "data.resize=[360, 480], crf.theta_color=3")
    _add_testing(command)
    command.set_defaults(run=_run, action="predict")

    command = commands.add_parser("tune", help="search for the best settings of refine on labelled images")
    command.add_argument("images", type=Path, metavar="IMAGES", help="a folder of photos")
    scores = command.add_mutually_exclusive_group(required=True)
    for kind in SCORES:
        scores.add_argument(
            f"--{kind}", type=Path, metavar="FOLDER",
            help=f"a folder with one file for each photo, in the formats of `tritoncrf refine --{kind}`",
        )  # fmt: skip
    command.add_argument(
        "--truth", type=Path, required=True, metavar="FOLDER", help="correct label maps, 255 for unknown pixels"
    )
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE",
        help="the .toml file for the settings found, which `tritoncrf refine --parameters` reads",
    )  # fmt: skip
    command.add_argument(
        "--method", choices=METHODS, default="lattice", help="the method to find settings for (default: lattice)"
    )
    command.add_argument(
        "--search", choices=SEARCHES, default="tpe",
        help="how to search: tpe (proposals of Optuna), grid, or gradient (gradient descent) (default: tpe)",
    )  # fmt: skip
    command.add_argument("--measure", choices=MEASURES, default="miou", help="what to maximise (default: miou)")
    for name, default, text in (
        ("budget", 100, "number of trials for each fold"),
        ("folds", 2, "number of folds; settings chosen without a fold are measured on it"),
        ("seed", 0, "random seed of the search"),
        ("jobs", 0, "number of worker processes that share the images of a trial; 0 for none"),
    ):  # fmt: skip
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    command.add_argument("--num-classes", type=int, metavar="N", help="with --labels: number of classes")
    command.add_argument(
        "--study", type=Path, metavar="FILE", help="an SQLite file that stores the trials, from which a search resumes"
    )
    command.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the measure against each parameter: .png, .pdf or .svg"
    )
    command.add_argument("--resize", action="store_true", help="resize scores to the photos' size")
    command.add_argument(
        "--as-stored", action="store_true", help="read pictures as stored, ignoring their EXIF orientation"
    )
    command.set_defaults(run=_run, action="tune")

    command = commands.add_parser("experiments", help="reproduce tables of the papers at a small size")
    tables = command.add_subparsers(required=True, metavar=" | ".join((*ON_PHOTOS, "defaults", "video", *EXPERIMENTS)))
    for name, title in ON_PHOTOS.items():
        command = tables.add_parser(name, help=title)
        command.add_argument(
            "--data", type=Path, metavar="FOLDER",
            help="a folder that contains voc, camvid and coco_stuff (default: only the demo's photo)",
        )  # fmt: skip
        _add_report(command)
        command.set_defaults(run=_run, action="measure", name=name)
    command = tables.add_parser("defaults", help="measure refine and the layers with their default settings")
    command.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER",
        help="a folder that contains camvid, voc and network_scores",
    )  # fmt: skip
    _add_report(command)
    command.set_defaults(run=_run, action="try_defaults")
    command = tables.add_parser("video", help="measure whether a CRF over several frames reduces flicker")
    command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the folder of CamVid")
    _add_report(command)
    command.set_defaults(run=_run, action="try_video")
    for name, experiment in EXPERIMENTS.items():
        command = tables.add_parser(name, help=experiment.title)
        command.add_argument(
            "--data", type=Path, required=True, metavar="FOLDER", help="the folder of CamVid or Pascal VOC"
        )
        _add_report(command)
        command.add_argument(
            "--data-format", choices=("camvid", "voc"), default="camvid",
            help="the data set; voc trains at the paper's own size (default: camvid)",
        )  # fmt: skip
        command.add_argument(
            "--seeds", type=int, default=3, metavar="N", help="number of trainings of each run, by seed (default: 3)"
        )
        command.add_argument(
            "--weights", type=Path, metavar="FOLDER", help="with --data-format voc: torchvision's weights to start from"
        )
        command.add_argument(
            "--full-size", action="store_true", help="train a ResNet-101 on CamVid at 360 x 480 pixels; needs a GPU"
        )
        _add_changes(command, "amp=bfloat16", "change the configuration of all runs")
        command.set_defaults(run=_run, action="make_table", name=name)


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", metavar="FOLDER", help="the data set's folder (default: data.root in the configuration)"
    )


def _add_checkpoints(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
        help="best.pt or last.pt of a run; the scores of several networks are fused, see --fuse",
    )  # fmt: skip


def _add_crf(command: "argparse._ActionsContainer") -> None:
    command.add_argument(
        "--crf", choices=CRFS,
        help="apply this untrained CRF instead of the network's own; set its arguments with --set crf.KEY=VALUE",
    )  # fmt: skip


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder for the report and its runs"
    )


def _add_changes(command: argparse.ArgumentParser, examples: str, text: str = "change the configuration") -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help=f"{text}, for example {examples}; may be given several times",
    )  # fmt: skip


def _add_testing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S",
        help="factors by which every image is resized; the scores are fused, see --fuse (default: 1)",
    )  # fmt: skip
    command.add_argument("--flip", action="store_true", help="also score every image mirrored left to right")
    command.add_argument(
        "--fuse", choices=FUSIONS, default="mean",
        help="how scores of several networks, scales and mirror images are fused: the mean of probabilities, or "
        "(max + mean) / 2 of logits (default: mean)",
    )  # fmt: skip
    add_device(command)


def _run(options: argparse.Namespace) -> None:
    from tritoncrf.models import actions

    getattr(actions, options.action)(options)


if __name__ == "__main__":
    sys.exit(main())

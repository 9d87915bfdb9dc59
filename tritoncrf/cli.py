"""The command line: tritoncrf refine | train | evaluate | predict | tune | experiments | app | demo | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all. What a
command does is in `actions` and `app`, which are imported once its arguments are understood.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tritoncrf
from tritoncrf.commands import CommandError, Parser, add_device, run
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


def _path(text: str) -> Path:
    """A local path, or an address such as s3://bucket/name."""
    if "://" not in text:
        return Path(text)
    from tritoncrf.files import address

    try:
        return address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _devices(text: str) -> tuple[int, ...]:
    """The GPUs of an option --devices."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of GPUs with commas between, got {text!r}") from None


def _shard(text: str) -> tuple[int, int]:
    """I and N of an option --shard."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N, from 1/N to N/N, got {text!r}")
    return int(number), int(count)


def _costs(text: str) -> str | Path:
    """A compatibility: "potts", or a file's name."""
    return text if text == "potts" else Path(text)


def _range(text: str) -> tuple[Any, ...]:
    """The pair of an option --value-range, or several one behind the other."""
    ends: list[float | str] = []
    with contextlib.suppress(ValueError):
        ends = [end if end.endswith("%") else float(end) for end in text.split(",")]
    if not ends or len(ends) % 2:
        wanted = "two numbers or percentiles, such as 0,4095 or 1%,99%, or two for each channel"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    pairs = tuple(zip(ends[::2], ends[1::2]))
    return pairs[0] if len(pairs) == 1 else pairs


def _spacing(text: str) -> tuple[float, ...] | float:
    """The distances of an option --spacing: one, or one for each axis."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
    return found[0] if len(found) == 1 else found


def _bands(text: str) -> tuple[int, ...]:
    """The bands of an option --bands."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of bands with commas between, got {text!r}") from None


ONE_IMAGE = (  # options that play no part for data sets
    "force", "figure", "trace", "trace_figure", "bands", "modality", "valid", "features", "max_memory", "scratch",
)  # fmt: skip
DATA_SET = (  # and those that do for nothing else
    "images_dir", "recursive", "skip_missing", "ground_truth", "jobs", "devices", "shard", "retry_failed",
    "confidence", "overlay", "upsample", "cams", "background_power", "background_score", "cam_offset", "scores_key",
    "allow_pickle", "engine", "address",
)  # fmt: skip
MANY = (".h5", ".hdf5", ".zarr")  # scores of many images in one file
FILES = {
    "labels": "label indices, 255 unknown; .png, .npy, .npz, .tif or .nii.gz",
    "mask": "one object: 0 and 255, or grey for how sure; a picture, .npy, .npz or .nii.gz",
    "foreground": "one object's probability, [H, W] floats or grey; .npy, .npz, a picture or .nii.gz",
    "scores": "[C, H, W] floats, or [C, D, H, W] of a volume; .npy, .npz of one array, .tif, or .nii.gz [x, y, z, C]",
}
ABSENT = {
    "num_classes": "the largest label + 1", "spacing": "1, or what a NIfTI says",
    "value_range": "0,255 of bytes, 0,1 of floats",
}  # fmt: skip
METAVARS = {"spacing": "2.5,0.8,0.8", "value_range": "LOW,HIGH"}
NUMBERS: dict[str, Callable[[str], Any]] = {
    "theta_space": _theta,
    "theta_color": float,
    "weight_appearance": float,
    "theta_smooth": _theta,
    "weight_smooth": float,
    "spacing": _spacing,
    "value_range": _range,
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

    command = commands.add_parser("refine", help="refine the scores or labels of one image, or of a data set")
    command.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="a photo, in any format that Pillow reads; a GeoTIFF, a NIfTI or a TIFF stack; of a data set several, a "
        "folder, a glob, or a .txt of names",
    )  # fmt: skip
    _add_scores(command, required=False)
    command.add_argument(
        "-o", "--out", type=_path,
        help="labels as an indexed .png, a mask as a .png of 0 and 255, or float32 probabilities as .npy "
        "(IMAGE_refined.png, if there is none); of a GeoTIFF or NIfTI one more; of a data set a folder",
    )  # fmt: skip
    command.add_argument(
        "--save", choices=("labels", "probabilities"),
        help="what is written (labels, but probabilities as .npy); probabilities of a data set are float16 in an .npz",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace an IMAGE_refined.png")
    command.add_argument("--figure", type=Path, metavar="FILE", help="also draw before and after: .png, .pdf or .svg")
    command.add_argument(
        "--trace", action="store_true", help="print energy, entropy and changed labels per iteration, and what changed"
    )
    command.add_argument("--trace-figure", type=Path, metavar="FILE", help="draw the iterations: .png, .pdf or .svg")
    _add_settings(command)
    _add_rasters(command)
    _add_data_set(command)
    command.set_defaults(run=_run_refine)

    add_commands(commands)

    command = commands.add_parser("demo", help="refine noisy labels of a photo and draw a figure")
    command.add_argument("-o", "--out", type=Path, default="demo.png", help="the figure: .png, .pdf or .svg (demo.png)")
    command.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="write photo.png and probabilities.npy there instead, and stop"
    )
    add_device(command)
    command.set_defaults(run=_run, action="draw_demo")

    command = commands.add_parser("app", help="a page on this machine to see what each setting of refine does")
    command.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE",
        help="a photo, in any format that Pillow reads; the demo's, if there is none",
    )  # fmt: skip
    _add_scores(command, required=False)
    _add_settings(command)
    command.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at (127.0.0.1)")
    command.add_argument("--port", type=int, default=7860, metavar="N", help="0 for any that is free (7860)")
    command.set_defaults(run=_run_app)

    command = commands.add_parser("info", help="versions, devices and the backend that would run")
    command.set_defaults(run=_run, action="print_info")
    return parser


def _add_scores(command: argparse.ArgumentParser, required: bool = True) -> None:
    """The files of scores, and how they are read."""
    scores = command.add_mutually_exclusive_group(required=required)
    for kind in SCORES:
        scores.add_argument(f"--{kind}", type=_path, metavar="FILE", help=FILES.get(kind, FILES["scores"]))
    command.add_argument(
        "--resize", action="store_true", help="bring scores to the image's size: bilinear, labels the nearest"
    )
    command.add_argument(
        "--as-stored", action="store_true", help="leave pictures as stored, whatever their EXIF orientation"
    )


def _add_rasters(command: argparse.ArgumentParser) -> None:
    """What belongs to one image whose files are read by windows."""
    group = command.add_argument_group("large images, volumes, and images of other channels than a photo's")
    add = group.add_argument
    add("--bands", type=_bands, metavar="1,2,3", help="these bands of IMAGE, from 1 (all but opacity)")
    add(
        "--modality",
        type=Path,
        action="append",
        metavar="FILE",
        help="more channels of IMAGE, as T2 beside T1; again for each",
    )
    add(
        "--valid",
        type=Path,
        metavar="FILE",
        help="a mask, 0 where there are no pixels (the nodata and the mask of IMAGE)",
    )
    add(
        "--features",
        type=Path,
        metavar="FILE",
        help="[D, H, W], divided by bandwidths, in place of IMAGE's colours; .npy",
    )
    add("--max-memory", metavar="SIZE", help="such as 4GB: go through IMAGE block by block, and keep the process below")
    add("--scratch", type=Path, metavar="FOLDER", help="with --max-memory: keep tables there, which saves time")


def _add_data_set(command: argparse.ArgumentParser) -> None:
    """What belongs to data sets alone; None, or False, where it is not given."""
    group = command.add_argument_group(
        "data sets", "IMAGES matched by name with a folder of scores, or an .h5 or .zarr; OUT is a folder, in which "
        "the same command goes on after a stop",
    )  # fmt: skip
    add = group.add_argument
    add("--images-dir", type=_path, metavar="FOLDER", help="where the names of a .txt are looked for")
    add("--recursive", action="store_true", help="subfolders too, which become part of the names")
    add("--skip-missing", action="store_true", help="leave out images without scores, and names without images")
    add("--ground-truth", type=_path, metavar="FOLDER", help="label maps, 255 unknown: print IoU before and after")
    add("--jobs", type=int, metavar="N", help="processes of one thread each; 0: none beside this one (all cores)")
    add("--devices", type=_devices, metavar="0,1", help="these GPUs, a process each (the first)")
    add("--shard", type=_shard, metavar="I/N", help="only the I-th of N parts, for job arrays; I from 1")
    add("--retry-failed", action="store_true", help="try images again that have failed in an earlier run")
    add("--confidence", type=float, metavar="P", help="write unknown, 255, where the best class is less probable")
    add("--overlay", action="store_true", help="also draw the labels over the picture")
    add("--upsample", choices=("bilinear",), help="bring smaller scores to the image's size, logits before the softmax")
    add("--cams", action="store_true", help="the files hold class activation maps")
    add("--background-power", type=float, metavar="N", help="their background: 1 - the highest map, to this power")
    add("--background-score", type=float, metavar="S", help="their background: this score")
    add("--cam-offset", type=int, metavar="N", help="the label of a map's key k is k + N (1)")
    add("--scores-key", metavar="NAME", help="the array, of files that hold several")
    add("--allow-pickle", action="store_true", help="read pickled .npy; only arrays, nothing in them is run")
    add("--engine", choices=("ray",), help="spread over a cluster by Ray Data")
    add("--address", metavar="NAME", help="with --engine ray: of the cluster (the one that runs, or a local one)")


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
        default = ABSENT.get(name, f"{entry.default}")
        if entry.gentle is not None:
            default += f"; {entry.gentle} for the scores of a network, unless guided"
        text = f"{_where(name)}{TEXTS[name].meaning} ({default})"
        metavar = METAVARS.get(name, "N")
        command.add_argument(f"--{name.replace('_', '-')}", type=number, metavar=metavar, help=text.replace("%", "%%"))
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


def _run_refine(options: argparse.Namespace) -> int:
    """One image, or a data set; an error for options of the other."""
    if not options.images and options.features is None:
        raise CommandError("the following arguments are required: IMAGE")
    if all(getattr(options, kind) is None for kind in SCORES):
        raise CommandError(f"one of the arguments {' '.join(f'--{kind}' for kind in SCORES)} is required")
    several = _is_data_set(options)
    for name in ONE_IMAGE if several else DATA_SET:
        if getattr(options, name) not in (None, False):
            what = "one image and its scores, got a data set" if several else "a data set, got one image and its scores"
            raise CommandError(f"--{name.replace('_', '-')}: expected {what}")
    if several:
        from tritoncrf.datasets import processes

        if options.engine is None and options.jobs != 0:
            processes.begin()  # they import what this process is about to import
        from tritoncrf.datasets import command

        return command.refine_set(options)
    from tritoncrf.rasters import command as rasters

    if rasters.is_wanted(options):
        rasters.refine_raster(options)
        return 0
    from tritoncrf import actions

    options.image = Path(options.images[0])
    actions.refine_file(options)
    return 0


def _is_data_set(options: argparse.Namespace) -> bool:
    """Whether images or their scores are more than a file each."""
    [scores] = [source for kind in SCORES if (source := getattr(options, kind)) is not None]
    if not options.images:
        return False
    image = options.images[0]
    pattern = "://" in image or any(letter in image for letter in "*?[")
    if (
        len(options.images) > 1
        or image.endswith(".txt")
        or Path(image).is_dir()
        or pattern
        and not Path(image).exists()
    ):
        return True
    return scores.is_dir() or scores.suffix.lower() in MANY


def _run_app(options: argparse.Namespace) -> None:
    from tritoncrf import app

    app.serve(options)

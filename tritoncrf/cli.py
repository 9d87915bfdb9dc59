"""The command line: tritoncrf refine | train | evaluate | predict | tune | experiments | app | demo | info.

Every bad input ends with exit code 2 and one line on stderr. Output files are written whole or not at all. The commands
are implemented in `actions` and `app`, which are imported after the arguments are parsed.
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
        raise argparse.ArgumentTypeError(f"expected auto, none, or labels separated by commas, got {text!r}") from None


def _theta(text: str) -> float | str:
    """A bandwidth of positions: a number, or a share of the image's diagonal, which `refine` checks."""
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
        raise argparse.ArgumentTypeError(f"expected GPU numbers separated by commas, got {text!r}") from None


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
    """The pair of an option --value-range, or one pair for each channel."""
    ends: list[float | str] = []
    with contextlib.suppress(ValueError):
        ends = [end if end.endswith("%") else float(end) for end in text.split(",")]
    if not ends or len(ends) % 2:
        wanted = "two numbers or percentiles, such as 0,4095 or 1%,99%, or a pair for each channel"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    pairs = tuple(zip(ends[::2], ends[1::2]))
    return pairs[0] if len(pairs) == 1 else pairs


def _spacing(text: str) -> tuple[float, ...] | float:
    """The distances of an option --spacing: one, or one for each axis."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None
    return found[0] if len(found) == 1 else found


def _bands(text: str) -> tuple[int, ...]:
    """The bands of an option --bands."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected band numbers separated by commas, got {text!r}") from None


ONE_IMAGE = (  # options for one image only
    "force", "figure", "trace", "trace_figure", "bands", "modality", "valid", "features", "max_memory", "scratch",
)  # fmt: skip
DATA_SET = (  # options for data sets only
    "images_dir", "recursive", "skip_missing", "ground_truth", "jobs", "devices", "shard", "retry_failed",
    "confidence", "overlay", "upsample", "cams", "background_power", "background_score", "cam_offset", "scores_key",
    "allow_pickle", "engine", "address",
)  # fmt: skip
MANY = (".h5", ".hdf5", ".zarr")  # scores of many images in one file
_FLOATS = (
    "as floats [C, H, W], or [C, D, H, W] for a volume: .npy, .npz with one array, .tif, or .nii.gz with axes "
    "[x, y, z, C]"
)
FILES = {
    "logits": f"a network's scores before the softmax, {_FLOATS}",
    "probabilities": f"probabilities of the classes, {_FLOATS}",
    "energies": f"costs of the classes, that is, minus their logits, {_FLOATS}",
    "labels": "a label map of class indices, 255 for unknown pixels: .png, .npy, .npz, .tif or .nii.gz",
    "mask": "a mask of one object, 0 and 255, or grey levels for its certainty: a picture, .npy, .npz or .nii.gz",
    "foreground": "the probability of one object, as floats [H, W] or grey levels: .npy, .npz, a picture or .nii.gz",
}
ABSENT = {
    "num_classes": "the largest label + 1", "spacing": "1, or the spacing of a NIfTI file",
    "value_range": "0,255 for bytes and 0,1 for floats",
}  # fmt: skip
METAVARS = {
    "theta_space": "PIXELS", "theta_smooth": "PIXELS", "spacing": "N,N", "value_range": "LOW,HIGH",
    "compatibility": "FILE", "window_size": "PIXELS", "blur": "PIXELS", "radius": "PIXELS", "label_confidence": "P",
    "unknown": "LABELS",
}  # fmt: skip
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
    """Whether a first argument is an option or a file name, rather than a mistyped command."""
    return word.startswith("-") or Path(word).suffix != "" or Path(word).is_file()


def _parser() -> Parser:
    parser = Parser(
        prog="tritoncrf", description="Refine segmentation scores with a dense CRF, guided by the image.",
        epilog="tritoncrf IMAGE --mask FILE is short for tritoncrf refine IMAGE --mask FILE.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"tritoncrf {tritoncrf.__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))

    command = commands.add_parser("refine", help="refine the scores or labels of one image or of a data set")
    command.add_argument(
        "images", nargs="*", metavar="IMAGE",
        help="a photo in any format that Pillow reads, a GeoTIFF, a NIfTI file or a TIFF stack; for a data set: "
        "several images, a folder, a glob pattern, or a .txt file of names",
    )  # fmt: skip
    _add_scores(command, required=False)
    command.add_argument(
        "-o", "--out", type=_path, metavar="OUT",
        help="the output file: .png for labels or a mask, .npy for float32 probabilities, or the format of a GeoTIFF "
        "or NIfTI image; for a data set, the output folder (default: IMAGE_refined.png, or in the raster's format)",
    )  # fmt: skip
    command.add_argument(
        "--save", choices=("labels", "probabilities"),
        help="what to write; for a data set, probabilities are stored as float16 in .npz files (default: probabilities "
        "in an .npy, otherwise labels)",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace IMAGE_refined.png if it exists")
    command.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the labels before and after: .png, .pdf or .svg"
    )
    command.add_argument(
        "--trace", action="store_true",
        help="print the energy, the entropy and the share of changed labels at each iteration, and a summary",
    )  # fmt: skip
    command.add_argument(
        "--trace-figure", type=Path, metavar="FILE", help="draw the trace of the iterations: .png, .pdf or .svg"
    )
    _add_settings(command)
    _add_rasters(command)
    _add_data_set(command)
    command.set_defaults(run=_run_refine)

    add_commands(commands)

    command = commands.add_parser("demo", help="refine the noisy labels of a sample photo and draw a figure")
    command.add_argument(
        "-o", "--out", type=Path, default="demo.png", metavar="FILE",
        help="the figure: .png, .pdf or .svg (default: demo.png)",
    )  # fmt: skip
    command.add_argument(
        "--inputs", type=Path, metavar="FOLDER",
        help="instead of drawing, write the demo's inputs, photo.png and probabilities.npy, to this folder",
    )  # fmt: skip
    add_device(command)
    command.set_defaults(run=_run, action="draw_demo")

    command = commands.add_parser("app", help="try the settings of refine interactively in the browser")
    command.add_argument(
        "image", type=Path, nargs="?", metavar="IMAGE",
        help="a photo in any format that Pillow reads (default: the demo's photo)",
    )  # fmt: skip
    _add_scores(command, required=False)
    _add_settings(command)
    command.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to serve at (default: 127.0.0.1)")
    command.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port to serve at; 0 for any free port (default: 7860)"
    )
    command.set_defaults(run=_run_app)

    command = commands.add_parser("info", help="print versions, devices and the default backend")
    command.set_defaults(run=_run, action="print_info")
    return parser


def _add_scores(command: argparse.ArgumentParser, required: bool = True) -> None:
    """The options for the file of scores, and how it is read."""
    scores = command.add_mutually_exclusive_group(required=required)
    for kind in SCORES:
        scores.add_argument(f"--{kind}", type=_path, metavar="FILE", help=FILES[kind])
    command.add_argument(
        "--resize", action="store_true",
        help="resize scores to the image's size: labels to the nearest neighbour, all else bilinearly",
    )  # fmt: skip
    command.add_argument(
        "--as-stored", action="store_true", help="read pictures as stored, ignoring their EXIF orientation"
    )


def _add_rasters(command: argparse.ArgumentParser) -> None:
    """The options for one image that is a raster or a volume, or that is read in windows."""
    group = command.add_argument_group("large images, volumes and multi-channel images")
    add = group.add_argument
    add("--bands", type=_bands, metavar="N,N", help="bands of IMAGE to use, counted from 1 (default: all but opacity)")
    add(
        "--modality", type=Path, action="append", metavar="FILE",
        help="another image whose channels are added to IMAGE's, such as T2 beside T1; may be given several times",
    )  # fmt: skip
    add(
        "--valid", type=Path, metavar="FILE",
        help="a mask that is 0 where IMAGE has no data (default: IMAGE's own nodata value and mask)",
    )  # fmt: skip
    add(
        "--features", type=Path, metavar="FILE",
        help="an .npy of features [D, H, W], already divided by their bandwidths, to use instead of IMAGE's colours",
    )  # fmt: skip
    add("--max-memory", metavar="SIZE", help="process IMAGE block by block within this much memory, such as 4GB")
    add(
        "--scratch", type=Path, metavar="FOLDER",
        help="with --max-memory: keep intermediate tables on disk there, which saves time",
    )  # fmt: skip


def _add_data_set(command: argparse.ArgumentParser) -> None:
    """The options for data sets only; None, or False, where one is not given."""
    group = command.add_argument_group(
        "data sets", "The images are matched by name with a folder of scores, or with an .h5 or .zarr file. OUT is a "
        "folder; to resume after an interruption, run the same command again.",
    )  # fmt: skip
    add = group.add_argument
    add("--images-dir", type=_path, metavar="FOLDER", help="the folder of the images that a .txt file names")
    add("--recursive", action="store_true", help="include subfolders; their paths become part of the image names")
    add("--skip-missing", action="store_true", help="skip images without scores, and names without images")
    add(
        "--ground-truth", type=_path, metavar="FOLDER",
        help="correct label maps, 255 for unknown pixels; the IoU before and after is printed",
    )  # fmt: skip
    add(
        "--jobs", type=int, metavar="N",
        help="number of worker processes, one thread each; 0 for none (default: one per core, or 0 on a GPU)",
    )  # fmt: skip
    add("--devices", type=_devices, metavar="N,N", help="GPUs to use, one process for each (default: the first)")
    add("--shard", type=_shard, metavar="I/N", help="process only part I of N, counted from 1, for job arrays")
    add("--retry-failed", action="store_true", help="retry images that failed in an earlier run")
    add(
        "--confidence", type=float, metavar="P",
        help="write 255, for unknown, where the most probable class has a probability below P",
    )  # fmt: skip
    add("--overlay", action="store_true", help="also draw the labels over the photo")
    add(
        "--upsample", choices=("bilinear",),
        help="enlarge scores that are smaller than the image; logits before the softmax",
    )  # fmt: skip
    add("--cams", action="store_true", help="the score files hold class activation maps")
    add(
        "--background-power", type=float, metavar="N",
        help="with --cams: the background's score is (1 - the highest map) to this power",
    )  # fmt: skip
    add("--background-score", type=float, metavar="S", help="with --cams: the background has this score everywhere")
    add("--cam-offset", type=int, metavar="N", help="with --cams: the map of key k has the label k + N (default: 1)")
    add("--scores-key", metavar="NAME", help="which array to read from score files that hold several")
    add("--allow-pickle", action="store_true", help="read pickled .npy files; only arrays are read, no code is run")
    add("--engine", choices=("ray",), help="spread the work over a cluster with Ray Data")
    add(
        "--address", metavar="NAME",
        help="with --engine ray: the cluster's address (default: the running cluster, or a local one)",
    )  # fmt: skip


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The arguments of `refine`, and the device."""
    command.add_argument(
        "--method", metavar="NAME",
        help=f"the CRF's filter: {', '.join(METHODS)} (default: guided for the scores of a network, lattice for labels "
        "and masks or where another option needs it)",
    )  # fmt: skip
    command.add_argument(
        "--parameters", metavar="NAME",
        help=f"the settings of a published pipeline, {', '.join(PARAMETERS)}, or a .toml file from `tritoncrf tune`; "
        "other options override them",
    )  # fmt: skip
    for name, number in NUMBERS.items():
        entry = ARGUMENTS[name]
        default = ABSENT.get(name, f"{entry.default}")
        if entry.gentle is not None:
            default += f"; {entry.gentle} for the scores of a network, unless guided"
        text = f"{_where(name)}{TEXTS[name].meaning} (default: {default})"
        metavar = METAVARS.get(name, "N")
        command.add_argument(f"--{name.replace('_', '-')}", type=number, metavar=metavar, help=text.replace("%", "%%"))
    add_device(command)


def _where(name: str) -> str:
    """The options that an argument requires, if any."""
    methods, scores = ARGUMENTS[name].methods, ARGUMENTS[name].scores
    if len(methods) == 1:
        return f"with --method {methods[0]}: "
    *others, last = (f"--{kind}" for kind in scores)
    return "" if scores == SCORES else f"with {' or '.join([', '.join(others), last] if others else [last])}: "


def _run(options: argparse.Namespace) -> None:
    from tritoncrf import actions

    getattr(actions, options.action)(options)


def _run_refine(options: argparse.Namespace) -> int:
    """Refine one image or a data set; an option for the other is an error."""
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
            processes.begin()  # they import in parallel with this process
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
    """Whether there is more than one image, or more than one file of scores."""
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

"""`python -m bench COMMAND`; README.md describes the commands."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import RESULTS, brats, densecrf, first, gpu, scene
from bench.compare import compare
from bench.datasets import beside, report
from bench.exercise import exercise
from bench.published import report as published
from bench.suite import run_suite
from tritoncrf.commands import CommandError, Parser, check_output, make_folder, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its status, and 2 for bad input."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("run", help="run the benchmark suite on this machine")
    _add_results(command)
    command.add_argument("--quick", action="store_true", help="run only the most important cases")
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "compare", help="list what became slower between two reports; status 1 if this library did"
    )
    command.add_argument("before", type=Path, metavar="BEFORE", help="the earlier report, .json")
    command.add_argument("after", type=Path, metavar="AFTER", help="the later report, .json")
    command.set_defaults(run=_compare)

    command = commands.add_parser("profile", help="count what the kernels of W1 to W4 execute, and predict their times")
    command.add_argument(
        "--targets", default="sm_90", metavar="NAMES", help="sm_80, sm_90, or both with a comma (default: %(default)s)"
    )
    command.add_argument(
        "--works", default="", metavar="PATTERN", help="only works whose name matches, such as 'W3$' (default: all)"
    )
    command.add_argument(
        "--kernels", default="", metavar="PATTERN", help="only kernels whose name matches (default: all)"
    )
    command.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="number of processes that count (default: %(default)s)"
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="also write the reports to this folder")
    command.set_defaults(run=_profile)

    command = commands.add_parser(
        "compile", help="compile every launched configuration: registers, spills and instructions"
    )
    command.add_argument(
        "--targets",
        default="sm_80,sm_90,sm_100,gfx942",
        metavar="NAMES",
        help="GPUs, separated by commas (default: %(default)s)",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="also write the full report to this .md file")
    command.add_argument(
        "--thorough", action="store_true", help="compile all combinations of options; takes many minutes"
    )
    command.set_defaults(run=_compile)

    command = commands.add_parser("gpu", help="run one stage of the checks on a GPU machine")
    command.add_argument("--stage", choices=gpu.STAGES, required=True, help="the stage to run")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    command.add_argument(
        "--commit", default="unknown", metavar="HASH", help="the commit to name in reports (default: unknown)"
    )
    command.add_argument("--data", type=Path, metavar="FOLDER", help="the data set, for stages that train")
    command.add_argument(
        "--minutes",
        type=float,
        default=gpu.MINUTES,
        metavar="N",
        help="time limit of the stage in minutes (default: %(default)s)",
    )
    command.set_defaults(run=_gpu)

    command = commands.add_parser("exercise", help="run kernels for a sanitizer or a profiler, without timing")
    command.add_argument("--large", action="store_true", help="run short training steps of W4, W1, W2 and W3")
    command.add_argument("--work", metavar="NAME", help="run only this work of the profile, forward and training steps")
    command.set_defaults(run=lambda options: exercise(options.large, options.work))

    command = commands.add_parser("first", help="run one part of the GPU stage `first` in this process")
    command.add_argument("part", choices=first.PARTS, help="the part to run")
    command.set_defaults(run=lambda options: first.run_part(options.part))

    command = commands.add_parser("datasets", help="measure the cost and memory of data sets, and predict throughput")
    _add_results(command)
    command.add_argument(
        "--data", type=Path, metavar="FOLDER", help="a folder that contains coco_stuff (default: only one photo)"
    )
    command.add_argument(
        "--beside", action="store_true", help="instead compare the command with pydensecrf on the photos in voc"
    )
    command.set_defaults(run=_datasets)

    command = commands.add_parser(
        "densecrf", help="compare the drop-in replacement with pydensecrf in alternating rounds"
    )
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="also write the report to this folder")
    command.add_argument(
        "--rounds", type=int, default=densecrf.ROUNDS, metavar="N", help="number of rounds (default: %(default)s)"
    )
    command.set_defaults(run=_densecrf)

    command = commands.add_parser("published", help="measure errors against the published systems written in NumPy")
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="also write the report to this folder")
    command.set_defaults(run=_published)

    command = commands.add_parser("scene", help="write a synthetic GeoTIFF scene with 4 bands and 10 classes")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the files")
    command.add_argument(
        "--size", type=int, default=6000, metavar="PIXELS", help="side of the scene in pixels (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    command.set_defaults(run=_scene)

    command = commands.add_parser(
        "brats", help="write the BRATS volume as NIfTI with noisy scores, and print the Dice of labels"
    )
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the files")
    command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="a folder that contains volumes")
    command.add_argument(
        "results", type=Path, nargs="*", metavar="LABELS", help="label maps as .nii.gz whose Dice is also printed"
    )
    command.set_defaults(run=_brats)

    return parser


def _add_results(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder for the report (default: bench/results)"
    )


def _scene(options: argparse.Namespace) -> int:
    make_folder("--out", options.out)
    return scene.run(options.out, options.size, options.seed)


def _brats(options: argparse.Namespace) -> int:
    make_folder("--out", options.out)
    return brats.run(options.out, options.data, options.results)


def _run(options: argparse.Namespace) -> int:
    make_folder("--out", options.out)
    return run_suite(options.out, quick=options.quick)


def _gpu(options: argparse.Namespace) -> int:
    make_folder("--out", options.out)
    if options.data is not None and not options.data.is_dir():
        raise CommandError(f"--data: expected a folder, got {options.data}")
    return gpu.run(options.stage, options.out, options.commit, options.data, options.minutes)


def _datasets(options: argparse.Namespace) -> int:
    make_folder("--out", options.out)
    if options.beside:
        if options.data is None:
            raise CommandError("--data: expected the folder with voc and network_scores, got none")
        return beside.run(options.out, options.data)
    return report.run(options.out, options.data)


def _densecrf(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise CommandError(f"--rounds: expected at least 1, got {options.rounds}")
    if options.out is not None:
        make_folder("--out", options.out)
    return densecrf.run(options.out, options.rounds)


def _published(options: argparse.Namespace) -> int:
    if options.out is not None:
        make_folder("--out", options.out)
    return published.run(options.out)


def _compare(options: argparse.Namespace) -> int:
    text, regressed = compare(options.before, options.after)
    print(text)
    return int(regressed)


# Only these need Triton.


def _profile(options: argparse.Namespace) -> int:
    from bench.compiled.profile import run

    if options.out is not None:
        make_folder("--out", options.out)
    return run(options.targets.split(","), options.out, options.works, options.kernels, options.jobs)


def _compile(options: argparse.Namespace) -> int:
    from bench.compiled.sweep import run

    if options.out is not None:
        check_output("--out", options.out, (".md",))
    return run(options.targets.split(","), options.out, options.thorough)


if __name__ == "__main__":
    sys.exit(main())

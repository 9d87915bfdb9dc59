"""`python -m bench COMMAND`, whose commands README.md lists."""

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
    """Run one command; its status, and 2 if what was asked does not work."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("run", help="the suite, on whatever this machine has")
    command.add_argument("--out", type=Path, default=RESULTS)
    command.add_argument("--quick", action="store_true")
    command.set_defaults(run=_run)

    command = commands.add_parser("compare", help="what became slower from one report to another; status 1 if ours did")
    command.add_argument("before", type=Path)
    command.add_argument("after", type=Path)
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "profile", help="the kernels of W1 to W4: what they execute, resources, predicted times"
    )
    command.add_argument("--targets", default="sm_90", help="of sm_80 and sm_90, with commas (%(default)s)")
    command.add_argument("--works", default="", help="a pattern of their names: 'W3$' is W3 at radius 3 (all)")
    command.add_argument("--kernels", default="", help="a pattern of their names: 'step.*softmax$' (all)")
    command.add_argument("--jobs", type=int, default=1, help="processes that count (%(default)s)")
    command.add_argument("--out", type=Path, help="folder for the reports; without it they are only printed")
    command.set_defaults(run=_profile)

    command = commands.add_parser("compile", help="registers, spills and instructions of every launched configuration")
    command.add_argument("--targets", default="sm_80,sm_90,sm_100,gfx942")
    command.add_argument("--out", type=Path, help="file for the report; without it only a summary is printed")
    command.add_argument("--thorough", action="store_true")
    command.set_defaults(run=_compile)

    command = commands.add_parser("gpu", help="one stage of what runs on a GPU machine")
    command.add_argument("--stage", choices=gpu.STAGES, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--commit", default="unknown")
    command.add_argument("--data", type=Path)
    command.add_argument("--minutes", type=float, default=gpu.MINUTES, help="that the stage may take (%(default)s)")
    command.set_defaults(run=_gpu)

    command = commands.add_parser("exercise", help="run what a sanitizer or a profiler watches, and time nothing")
    command.add_argument("--large", action="store_true", help="short training steps of W4, W1, W2 and W3")
    command.add_argument("--work", help="this work of the profile alone, by its name: forward, and its training steps")
    command.set_defaults(run=lambda options: exercise(options.large, options.work))

    command = commands.add_parser("first", help="one part of the GPU's stage `first`, in this process")
    command.add_argument("part", choices=first.PARTS)
    command.set_defaults(run=lambda options: first.run_part(options.part))

    command = commands.add_parser("datasets", help="costs of images, what machines would do by them, and memory")
    command.add_argument("--out", type=Path, default=RESULTS)
    command.add_argument("--data", type=Path, help="with photos in its folder coco_stuff (Grace Hopper)")
    command.add_argument(
        "--beside", action="store_true", help="the command on DATA's voc photos beside pydensecrf instead"
    )
    command.set_defaults(run=_datasets)

    command = commands.add_parser("densecrf", help="the drop-in for pydensecrf beside it, in turn")
    command.add_argument("-o", "--out", type=Path, help="folder for the report; without it it is only printed")
    command.add_argument("--rounds", type=int, default=densecrf.ROUNDS, metavar="N", help="(%(default)s)")
    command.set_defaults(run=_densecrf)

    command = commands.add_parser("published", help="errors against the published systems' own forms in NumPy")
    command.add_argument("-o", "--out", type=Path, help="folder for the report; without it it is only printed")
    command.set_defaults(run=_published)

    command = commands.add_parser("scene", help="write a synthetic scene of 4 bands and 10 classes, as GeoTIFF")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--size", type=int, default=6000, help="pixels a side (%(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_scene)

    command = commands.add_parser("brats", help="the BRATS volume as NIfTI with noisy scores, and the Dice of labels")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True, help="with a folder volumes")
    command.add_argument("results", type=Path, nargs="*", help="labels as .nii.gz, whose Dice is printed too")
    command.set_defaults(run=_brats)

    return parser


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


# These need Triton, without which the others run.


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

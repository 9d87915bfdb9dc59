"""`python -m bench run | compare | profile | accuracy | compile | gpu`: see README.md beside this file."""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import report
from bench.compare import compare as compare_reports
from bench.occupancy import MULTIPROCESSORS
from bench.suite import run_suite
from tritoncrf.devices import device_found
from tritoncrf.files import write

RESULTS = Path(__file__).parent / "results"
TABLES = ("synthetic", "decoupled", "end_to_end", "segmodel")
STAGES = ("tests", "sanitize", "bench", "profile", *TABLES)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the suite, on whatever this machine has")
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--quick", action="store_true")
    accuracy = commands.add_parser("accuracy", help="the lattice against the exact sum, on photos")
    accuracy.add_argument("--photos", type=Path, help="folder of photos for extra rows")
    accuracy.add_argument("--out", type=Path, help="folder for the report; without it it is only printed")
    compare = commands.add_parser("compare", help="what became slower from one report to another; status 1 if ours did")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    profile = commands.add_parser("profile", help="the kernels of W1 to W4, compiled: resources and instructions")
    profile.add_argument("--target", choices=MULTIPROCESSORS, default="sm_90")
    profile.add_argument("--out", type=Path, help="folder for the report; without it it is only printed")
    compile_ = commands.add_parser("compile", help="registers, spills and instructions of every launched configuration")
    compile_.add_argument("--targets", default="sm_80,sm_90,sm_100,gfx942")
    compile_.add_argument("--out", type=Path)
    compile_.add_argument("--thorough", action="store_true")
    gpu = commands.add_parser("gpu", help="one stage of what runs on a GPU machine, within 9 minutes")
    gpu.add_argument("--stage", choices=STAGES, required=True)
    gpu.add_argument("--out", type=Path, required=True)
    gpu.add_argument("--commit", default="unknown")
    gpu.add_argument("--data", type=Path)
    watched = commands.add_parser("exercise", help="run what a sanitizer or a profiler watches, and time nothing")
    watched.add_argument("--large", action="store_true", help="short training steps of W4, W1, W2 and W3")
    arguments = parser.parse_args()

    if arguments.command == "run":
        return run_suite(arguments.out, quick=arguments.quick)
    if arguments.command == "accuracy":
        from bench.accuracy import run as accuracy_report

        return accuracy_report(arguments.photos, arguments.out)
    if arguments.command == "compare":
        text, regressed = compare_reports(arguments.before, arguments.after)
        print(text)
        return int(regressed)
    if arguments.command == "profile":
        from bench.profile import run as profile_report

        return profile_report(arguments.target, arguments.out)
    if arguments.command == "compile":
        return compile_report(arguments.targets.split(","), arguments.out, arguments.thorough)
    if arguments.command == "exercise":
        return exercise(arguments.large)
    from bench import gpu as stages

    arguments.out.mkdir(parents=True, exist_ok=True)
    where = arguments.out.resolve(), arguments.commit, arguments.data
    return (
        stages.table(arguments.stage, *where) if arguments.stage in TABLES else getattr(stages, arguments.stage)(*where)
    )


def compile_report(targets: list[str], out: Path | None, thorough=False) -> int:
    """1 if anything spills on sm_90."""
    from bench.compilation import TARGETS, compile_all, sweep

    if unknown := set(targets) - set(TARGETS):
        print(f"--targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    launches = sweep(thorough)
    started = time.monotonic()
    binaries = {target: compile_all(launches, target) for target in targets}
    with ThreadPoolExecutor() as pool:
        for compiled in binaries.values():
            list(pool.map(lambda binary: binary.mix, compiled))  # cached: the report reads them one by one
    text = report.compilation_markdown(report.environment(), binaries)
    if out:
        write(out, text.encode())
    for target, compiled in binaries.items():
        spilled = [b for b in compiled if b.spills]
        registers = max((b.registers for b in compiled), default=0)
        print(f"{target}: {len(compiled)} configurations, at most {registers} registers, {len(spilled)} with spills")
        print("".join(f"  {b}\n" for b in spilled), end="")
    print(f"compiled in {time.monotonic() - started:.0f} s")
    return int(any(b.spills for b in binaries.get("sm_90", [])))


def exercise(large: bool) -> int:
    import torch

    from bench.compilation import Configuration
    from bench.providers import runner
    from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork

    device = device_found()
    if large:
        short = {"size": (500, 500), "iterations": 2}
        for work in ExactWork(**short), ConvCRFWork(11, **short), LatticeWork(**short), GuidedWork(**short):
            runner("tritoncrf", Inputs(work, device, learns="weights" if work.filter == "exact" else "features"))()
        return 0
    watched = [
        Configuration(),
        Configuration(classes=3, weights="class", normalization="symmetric", batch=2),
        Configuration(classes=21, weights="matrix", dilation=2, include_self=False),
        Configuration(classes=5, blur=2, normalization="symmetric"),
        Configuration(classes=70, size=(9, 40), blur=4, weights="class", filters=1),
        Configuration(classes=4, size=(5, 6, 7), window_size=3),
        Configuration(classes=300, size=(7, 50), window_size=3),
        Configuration("lattice", features=5, normalization="symmetric", batch=2),
        Configuration("lattice", classes=3, size=(5, 6, 7), features=4, weights="matrix", include_self=False),
        Configuration("lattice", classes=300, size=(301,), features=12, weights="class", filters=1),
        Configuration("exact", features=5, normalization="symmetric", batch=2),
        Configuration("exact", classes=70, size=(301,), features=20, include_self=False),
        Configuration("guided", weights="class", batch=2),
        Configuration("guided", classes=70, radius=16, box="constant"),
        Configuration("guided", classes=4, size=(5, 6, 7), radius=2, features=1),
        Configuration("guided", classes=300, size=(301,), radius=5, features=2),
    ]
    for configuration in watched:
        configuration.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(configuration, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

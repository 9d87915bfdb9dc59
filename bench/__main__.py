"""`python -m bench run | compare | compile | gpu`: see README.md beside this file."""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import report
from bench.suite import run_suite
from bench.timing import device_found

RESULTS = Path(__file__).parent / "results"
STAGES = ("tests", "sanitize", "bench", "profile")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the suite, on whatever this machine has")
    run.add_argument("--out", type=Path, default=RESULTS)
    run.add_argument("--quick", action="store_true")
    compare = commands.add_parser("compare", help="two reports side by side")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
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
    watched.add_argument("--large", action="store_true", help="a training step of W1 instead of many small ones")
    arguments = parser.parse_args()

    if arguments.command == "run":
        return run_suite(arguments.out, quick=arguments.quick)
    if arguments.command == "compare":
        print(report.compare(arguments.before, arguments.after))
        return 0
    if arguments.command == "compile":
        return compile_report(arguments.targets.split(","), arguments.out, arguments.thorough)
    if arguments.command == "exercise":
        return exercise(arguments.large)
    from bench import gpu as stages

    arguments.out.mkdir(parents=True, exist_ok=True)
    return getattr(stages, arguments.stage)(arguments.out.resolve(), arguments.commit, arguments.data)


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
        report.save(out, text)
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
    from bench.workloads import ConvCRFWork, Inputs, runner

    device = device_found()
    if large:
        runner("tritoncrf", Inputs(ConvCRFWork(11, size=(500, 500)), device, training=True))()
        return 0
    watched = [
        Configuration(),
        Configuration(classes=3, weights="class", normalization="symmetric", batch=2),
        Configuration(classes=21, weights="matrix", dilation=2, include_self=False),
        Configuration(classes=5, blur=2, normalization="symmetric"),
        Configuration(classes=70, size=(9, 40), blur=4, weights="class", filters=1),
        Configuration(classes=4, size=(5, 6, 7), window_size=3),
        Configuration(classes=300, size=(7, 50), window_size=3),
    ]
    for configuration in watched:
        configuration.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(configuration, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

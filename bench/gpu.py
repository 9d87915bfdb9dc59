"""The stages of `make gpu`: each ends within its time limit, writes results as it goes, and prints a short table at the
end.

They run on a machine with a GPU, torch, triton, pytest and little else: no network, perhaps no git.
"""

import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from bench import RESULTS, ROOT, floors
from bench.first import first
from bench.suite import PYTEST, outcome, run_boxed, run_suite
from bench.timing import seconds_on_gpu
from tritoncrf import reports
from tritoncrf.devices import device_found
from tritoncrf.files import write

MINUTES = 9.0
FIRST_MINUTES = 6.0  # of the stage `first`, for machines that are available for a short time
RESERVE = 30  # seconds of these for starting and for writing reports
SANITIZERS = ("memcheck", "racecheck", "initcheck")
WATCHED = (  # by ncu
    "window|exact|layout|simplex|_count|add_up|tables|neighbours|splat|join|blur|slice|weights_gradient|products|"
    "coefficients|_step|box"
)
EXERCISE = [sys.executable, "-m", "bench", "exercise"]


@dataclass(frozen=True)
class Stage:
    """The arguments of a stage: its name, the folder for results, their commit, and the time when it must end."""

    name: str
    out: Path
    commit: str
    data: Path | None
    end: float

    def seconds(self, parts: int = 1) -> float:
        """Seconds for the next of `parts` equal parts of the remaining time."""
        return max(5.0, (self.end - time.monotonic()) / parts)

    def finish(self, header: list[str], lines: list[list[str]], note: str = "") -> None:
        environment = reports.environment(self.commit)
        title = f"# {self.name}: {environment['device']}, {environment['date']}"
        parts = [title, "", reports.versions(environment), "", note, "", reports.table(header, lines)]
        write(self.out / f"{self.name}.md", "\n".join(parts).encode())
        print("\n".join(parts))


def run(name: str, out: Path, commit: str, data: Path | None, minutes: float) -> int:
    out.mkdir(parents=True, exist_ok=True)
    minutes = min(minutes, FIRST_MINUTES) if name == "first" else minutes
    return STAGES[name](Stage(name, out.resolve(), commit, data, time.monotonic() + 60 * minutes - RESERVE))


def tests(stage: Stage) -> int:
    """Test the kernels on the GPU itself (no interpreter), with a process for each file, and everything else, in
    parallel; their output goes to one log as they end."""
    joined, writing = stage.out / "tests.log", threading.Lock()
    joined.unlink(missing_ok=True)
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    chosen = {path.stem: [f"tests/kernels/{path.name}"] for path in files}
    chosen["others"] = ["tests", "--ignore=tests/kernels"]

    def run(name: str) -> list[str]:
        command = [*PYTEST, *chosen[name], "--durations=15", "-p", "no:cacheprovider"]
        command += [] if name == "test_on_gpu" else ["-m", "not slow"]
        started, log = time.monotonic(), Path(logs) / name
        status = run_boxed(command, stage.seconds(), log, {"TRITON_INTERPRET": "0"})
        text = log.read_text()
        with writing, joined.open("a") as file:
            file.write(f"\n==== {name} ====\n\n{text}")
        summary = text.strip().splitlines()[-1:] or [""]
        return [name, outcome(status), f"{time.monotonic() - started:.0f}", summary[0].strip("= ")]

    with tempfile.TemporaryDirectory() as logs, ThreadPoolExecutor() as pool:
        lines = list(pool.map(run, chosen))
    stage.finish(["tests", "outcome", "s", "summary"], lines)
    return int(any(line[1] != outcome(0) for line in lines))


def sanitize(stage: Stage) -> int:
    """Run compute-sanitizer on the small set, without an allocation cache, so that each tensor has its own bounds."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        stage.finish(["tool", "outcome"], [], "compute-sanitizer is not on this machine.")
        return 0
    statuses, lines = [], []
    # Compile before running the tools, under which compiling would take most of the time.
    run_boxed(EXERCISE, stage.seconds(4), stage.out / "sanitize-warm.log")
    for i, name in enumerate(SANITIZERS):
        log = stage.out / f"sanitize-{name}.log"
        command = [tool, "--tool", name, "--error-exitcode", "99", "--print-limit", "20", *EXERCISE]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        statuses.append(run_boxed(command, stage.seconds(len(SANITIZERS) - i), log, environment))
        text = log.read_text()
        found = [
            line.strip("= ") for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line
        ]
        lines.append([name, outcome(statuses[-1]), str(text.count("Configuration(")), *(found[-1:] or ["no summary"])])
        stage.finish(["tool", "outcome", "configurations", "summary"], lines)
    return max(statuses)


def bench(stage: Stage) -> int:
    return run_suite(stage.out, commit=stage.commit, photos=stage.data, seconds=stage.seconds())


def profile(stage: Stage) -> int:
    """Each kernel of the training steps separately: time between events, predicted time, counted work, achieved rates
    and occupancy; then ncu."""
    from bench.compiled.profile import RESOURCES, WORKS, held, kernels, names, predicted_of, predictions
    from bench.providers import runner
    from bench.workloads import Inputs

    device = device_found()
    if device.type != "cuda":
        stage.finish(["kernel"], [], "Kernel times need a GPU.")
        return 0
    rates = floors.measured_rates(device)
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    told = predictions(RESULTS, target, version("triton"))
    lines = []
    header = ["work", "kernel", "launches", "us", "predicted us", "x predicted", "floor us", "x floor", "MB", "TB/s"]
    header += ["Gop", "TFLOP/s", "Gexp/s", *RESOURCES]
    traces = stage.out / "traces.txt"
    traces.unlink(missing_ok=True)
    for name, (work, learns) in WORKS.items():
        inputs = Inputs(work, device, learns=learns)
        step = runner("tritoncrf", inputs)
        step()
        found = kernels(inputs)
        for title, kernel, predicted in zip(names(found), found, predicted_of(told.get(name, []), found)):
            launch, counted = kernel.launch, floors.launched(kernel.launch, work)
            compiled, seconds, floor = launch.run(), seconds_on_gpu(launch.run), counted.floor(rates)
            operations = counted.operations + counted.products
            measured = (
                seconds * 1e6, predicted and predicted * 1e6, predicted and seconds / predicted, floor * 1e6,
                seconds / floor, counted.bytes * 1e-6, counted.bytes * 1e-12 / seconds, operations * 1e-9,
                operations * 1e-12 / seconds, counted.exponentials * 1e-9 / seconds,
            )  # fmt: skip
            # For lattices, guided filters and blurs only bytes are counted, which are their limit.
            cells = (reports.number(value or None) for value in measured)
            lines.append([name, title, kernel.purpose, *cells, *held(compiled, target)])
        with traces.open("a") as file:
            file.write(f"{name}\n\n{trace(step)}\n\n")
        stage.finish(header, lines)
    stage.finish(header, lines, counters(stage))
    return 0


def table(stage: Stage) -> int:
    """One of the papers' tables at full size. Its trainings are kept in the checkout, and the next call continues
    them."""
    if stage.data is None:
        stage.finish(["table"], [], "No training without --data.")
        return 2
    runs, data = ROOT / "runs" / "full_size", stage.data.resolve()
    command = [sys.executable, "-m", "tritoncrf.models", "experiments", stage.name, "-o", str(runs), "--data"]
    command += [str(data)] if stage.name == "synthetic" else [str(data / "camvid"), "--full-size", "--seeds", "1"]
    status = run_boxed(command, stage.seconds(), environment={"TRITONCRF_COMMIT": stage.commit})
    for path in runs.glob(f"{stage.name}*.*"):
        shutil.copy(path, stage.out)
    print(f"{stage.name}: {outcome(status)}")
    return status


TABLES = ("synthetic", "decoupled", "end_to_end", "segmodel")
STAGES = {"first": first, "tests": tests, "sanitize": sanitize, "bench": bench, "profile": profile}
STAGES |= dict.fromkeys(TABLES, table)


def trace(call) -> str:
    """Device time of every kernel in one call, including PyTorch's own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return profiler.key_averages().table(sort_by="self_device_time_total", row_limit=30)


def counters(stage: Stage) -> str:
    """Hardware counters of some kernels of each work, if ncu is installed and works; returns a message."""
    tool = shutil.which("ncu")
    if tool is None:
        return "ncu is not on this machine: no hardware counters."
    command = [tool, "--clock-control", "none", "--kernel-name", f"regex:{WATCHED}", "--csv"]
    command += ["--launch-count", "96", "--page", "details", *EXERCISE, "--large"]
    return f"ncu: {outcome(run_boxed(command, stage.seconds(), stage.out / 'ncu.csv'))}."

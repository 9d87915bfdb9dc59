"""The stages of `make gpu`: each ends within 9 minutes, writes as it goes, and prints a short table last.

They run on a machine that has a GPU, torch, triton, pytest and little else: no network, perhaps no git.
"""

import functools
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import floors, report
from bench.suite import PYTEST, ROOT, outcome, run_boxed, run_suite
from bench.timing import seconds_on_gpu
from tritoncrf import reports
from tritoncrf.devices import device_found
from tritoncrf.files import write

STAGE_SECONDS = 8.5 * 60  # of 9 minutes; the rest is for starting and for writing reports
KERNEL_TESTS = ROOT / "tests" / "kernels"
SANITIZERS = ("memcheck", "racecheck", "initcheck")
WATCHED = "window|exact|simplex|splat|join|blur|slice|weights_gradient|products|coefficients|_step|box"  # by ncu


class Deadline:
    def __init__(self):
        self.end = time.monotonic() + STAGE_SECONDS

    def share(self, parts: int) -> float:
        """Seconds for the next of `parts` equal parts of the time left."""
        return max(5.0, (self.end - time.monotonic()) / parts)


def finish(out: Path, stage: str, commit: str, header: list[str], lines: list[list[str]], note: str = "") -> None:
    environment = report.environment(commit)
    text = "\n".join([
        f"# {stage}: {environment['device']}, {environment['date']}", "",
        reports.versions(environment), "",
        note, "", reports.table(header, lines),
    ])  # fmt: skip
    write(out / f"{stage}.md", text.encode())
    print(text)


def tests(out: Path, commit: str, data: Path | None) -> int:
    """Kernels on the GPU itself (no interpreter), a process for each file, and all else, side by side; all their output
    in one log, which grows as they end."""
    deadline, joined, writing = Deadline(), out / "tests.log", threading.Lock()
    joined.unlink(missing_ok=True)
    runs = {path.stem: [f"tests/kernels/{path.name}"] for path in sorted(KERNEL_TESTS.glob("test_*.py"))}
    runs["others"] = ["tests", "--ignore=tests/kernels"]

    def run(name: str) -> list[str]:
        command = [*PYTEST, *runs[name], "--durations=15", "-p", "no:cacheprovider"]
        command += [] if name == "test_on_gpu" else ["-m", "not slow"]
        started, log = time.monotonic(), Path(logs) / name
        status = run_boxed(command, deadline.share(1), log, {"TRITON_INTERPRET": "0"})
        text = log.read_text()
        with writing, joined.open("a") as file:
            file.write(f"\n==== {name} ====\n\n{text}")
        summary = text.strip().splitlines()[-1:] or [""]
        return [name, outcome(status), f"{time.monotonic() - started:.0f}", summary[0].strip("= ")]

    with tempfile.TemporaryDirectory() as logs, ThreadPoolExecutor() as pool:
        lines = list(pool.map(run, runs))
    finish(out, "tests", commit, ["tests", "outcome", "s", "summary"], lines)
    return int(any(line[1] != outcome(0) for line in lines))


def sanitize(out: Path, commit: str, data: Path | None) -> int:
    """compute-sanitizer over the small set; allocations uncached, so that each tensor has borders of its own."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        finish(out, "sanitize", commit, ["tool", "outcome"], [], "compute-sanitizer is not on this machine.")
        return 0
    deadline, statuses, lines = Deadline(), [], []
    # Compiled before the tools watch: compiling under them would take most of the time.
    run_boxed([sys.executable, "-m", "bench", "exercise"], deadline.share(4), out / "sanitize-warm.log")
    for i, name in enumerate(SANITIZERS):
        log = out / f"sanitize-{name}.log"
        command = [tool, "--tool", name, "--error-exitcode", "99", "--print-limit", "20"]
        command += [sys.executable, "-m", "bench", "exercise"]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        statuses.append(run_boxed(command, deadline.share(len(SANITIZERS) - i), log, environment))
        text = log.read_text()
        found = [
            line.strip("= ") for line in text.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line
        ]
        lines.append([name, outcome(statuses[-1]), str(text.count("Configuration(")), *(found[-1:] or ["no summary"])])
        finish(out, "sanitize", commit, ["tool", "outcome", "configurations", "summary"], lines)
    return max(statuses)


def bench(out: Path, commit: str, data: Path | None) -> int:
    return run_suite(out, commit=commit, photos=data, seconds=STAGE_SECONDS)


def profile(out: Path, commit: str, data: Path | None) -> int:
    """Every kernel of the training steps by itself: time between events, counted work, achieved rates, what a
    multiprocessor holds of it; then ncu."""
    from bench.compilation import options_of
    from bench.profile import RESOURCES, WORKS, held, kernels, names
    from bench.providers import runner
    from bench.workloads import Inputs

    deadline, device = Deadline(), device_found()
    if device.type != "cuda":
        finish(out, "profile", commit, ["kernel"], [], "Kernel times need a GPU.")
        return 0
    rates = floors.measured_rates(device)
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    lines = []
    header = ["work", "kernel", "launches", "us", "floor us", "x floor", "MB", "TB/s", "Gop", "TFLOP/s", "Gexp/s"]
    header += RESOURCES
    traces = out / "traces.txt"
    traces.unlink(missing_ok=True)
    for name, (work, learns) in WORKS.items():
        inputs = Inputs(work, device, learns=learns)
        step = runner("tritoncrf", inputs)
        step()
        found = kernels(inputs)
        for title, kernel in zip(names(found), found):
            launch, counted = kernel.launch, floors.launched(kernel.launch)
            call = functools.partial(launch.kernel[launch.grid], **launch.arguments, **options_of(launch))
            compiled, seconds, floor = call(), seconds_on_gpu(call), counted.floor(rates)
            operations = counted.operations + counted.products
            measured = (
                seconds * 1e6, floor * 1e6, seconds / floor, counted.bytes * 1e-6, counted.bytes * 1e-12 / seconds,
                operations * 1e-9, operations * 1e-12 / seconds, counted.exponentials * 1e-9 / seconds,
            )  # fmt: skip
            # Of lattices, guided filters and blurs only bytes are counted, which is what bounds them.
            told = (reports.number(value or None) for value in measured)
            lines.append([name, title, kernel.purpose, *told, *held(compiled, target)])
        with traces.open("a") as file:
            file.write(f"{name}\n\n{trace(step)}\n\n")
        finish(out, "profile", commit, header, lines)
    finish(out, "profile", commit, header, lines, counters(out, deadline))
    return 0


def table(name: str, out: Path, commit: str, data: Path | None) -> int:
    """One of the papers' tables at full size. Its trainings stay in the checkout: a further call goes on with them."""
    if data is None:
        finish(out, name, commit, ["table"], [], "Without --data there is nothing to train on.")
        return 2
    runs, trained = ROOT / "runs" / "full_size", name != "synthetic"
    command = [sys.executable, "-m", "tritoncrf.models", "experiments", name, "-o", str(runs)]
    command += ["--data", str(data.resolve() / "camvid"), "--full-size"] if trained else ["--data", str(data.resolve())]
    status = run_boxed(command, STAGE_SECONDS, environment={"TRITONCRF_COMMIT": commit})
    for path in runs.glob(f"{name}*.*"):
        shutil.copy(path, out)
    print(f"{name}: {outcome(status)}")
    return status


def trace(call) -> str:
    """Device time of every kernel in one call, PyTorch's own among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return profiler.key_averages().table(sort_by="self_device_time_total", row_limit=30)


def counters(out: Path, deadline: Deadline) -> str:
    """Hardware counters of some kernels of each work, where ncu is there and works; says what came of it."""
    tool = shutil.which("ncu")
    if tool is None:
        return "ncu is not on this machine: no hardware counters."
    command = [tool, "--clock-control", "none", "--kernel-name", f"regex:{WATCHED}", "--csv"]
    command += ["--launch-count", "80", "--page", "details", sys.executable, "-m", "bench", "exercise", "--large"]
    return f"ncu: {outcome(run_boxed(command, deadline.share(1), out / 'ncu.csv'))}."

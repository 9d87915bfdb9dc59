"""The stages of `make gpu`: each ends within 9 minutes, writes as it goes, and prints a short table last.

They run on a machine that has a GPU, torch, triton, pytest and little else: no network, perhaps no git.
"""

import csv
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import floors, report
from bench.suite import ROOT, run_boxed, run_suite
from bench.timing import seconds_on_gpu
from tritoncrf.commands import device_found

STAGE_SECONDS = 8.5 * 60  # of 9 minutes; the rest is for starting and for writing reports
KERNEL_TESTS = ROOT / "tests" / "kernels"
SANITIZERS = ("memcheck", "racecheck", "initcheck")
WATCHED = "window|exact|simplex|splat|join|blur|slice|weights_gradient|products|coefficients|_step|box"  # by ncu


# The small runs of models/README.md at CamVid's own size with ResNet-101; thetas are in pixels.
UNARY = "small_unary"
FULL_SIZE = (
    "network.depth=101", "network.width=1", "data.resize=[360, 480]", "data.workers=12", 'amp="bfloat16"',
    "validate_every=10",
)  # fmt: skip
CROP = "augment.crop=[360, 480]"
WINDOW = "crf.window_size=11", "crf.blur=4", "crf.theta_smooth=3", "crf.theta_space=40"
LATTICE = "crf.theta_smooth=3", "crf.theta_space=160"
TRAINED = {
    UNARY: (CROP,),
    "small_convcrf": WINDOW,
    "small_crfrnn": LATTICE,
    "small_convcrf_joint": (CROP, *WINDOW),
    "small_crfrnn_joint": (CROP, *LATTICE),
    "small_segmodel": ("augment.crop=[320, 480]",),
}
TRAINED_HEADER = ["run", "outcome", "epochs", "s", "mean IoU", "without CRF", "accuracy"]


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
        ", ".join(f"{name} {environment[name]}" for name in ("commit", "torch", "triton", "cuda", "python")), "",
        note, "", report.table(header, lines),
    ])  # fmt: skip
    report.save(out / f"{stage}.md", text)
    print(text)


def outcome(status: int) -> str:
    return {0: "green", 5: "no tests", 124: "time was up"}.get(status, f"red (status {status})")


def tests(out: Path, commit: str, data: Path | None) -> int:
    """Kernels on the GPU itself (no interpreter), a process for each file, and all else, side by side; all their output
    in one log, which grows as they end."""
    deadline, joined, writing = Deadline(), out / "tests.log", threading.Lock()
    joined.unlink(missing_ok=True)
    runs = {path.stem: [f"tests/kernels/{path.name}"] for path in sorted(KERNEL_TESTS.glob("test_*.py"))}
    runs["others"] = ["tests", "--ignore=tests/kernels"]

    def run(name: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", *runs[name], "--durations=15", "-p", "no:cacheprovider"]
        command += ["-W", "default"]  # other versions of torch and triton deprecate other things
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
    """Every kernel of the training steps by itself: time between events, counted work, achieved rates; then ncu."""
    from bench.compilation import identity
    from bench.providers import runner
    from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork
    from tritoncrf.kernels.common import record_launches

    deadline, device = Deadline(), device_found()
    if device.type != "cuda":
        finish(out, "profile", commit, ["kernel"], [], "Kernel times need a GPU.")
        return 0
    rates = floors.measured_rates(device)
    lines = []
    header = ["work", "kernel", "launches", "us", "floor us", "x floor", "TB/s", "TFLOP/s", "Gexp/s"]
    works = {
        "W2": (LatticeWork(), "features"),
        "W3": (GuidedWork(size=(500, 500)), "features"),
        "W3 radius 16": (GuidedWork(size=(500, 500), radius=16), "features"),
        "W1 k=7": (ConvCRFWork(7), "features"),
        "W1 k=11": (ConvCRFWork(11), "features"),
        "W1 k=11 symmetric": (ConvCRFWork(11, 1, "symmetric"), "features"),
        "W1 k=7 blur 4": (ConvCRFWork(7, 4), "features"),
        "W4": (ExactWork(), "weights"),
    }
    traces = out / "traces.txt"
    traces.unlink(missing_ok=True)
    for name, (work, learns) in works.items():
        step = runner("tritoncrf", Inputs(work, device, learns=learns))
        step()
        with record_launches() as launches:
            step()
        count = Counter(map(identity, launches))
        for launch in {identity(launch): launch for launch in launches}.values():
            options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
            run = launch.kernel[launch.grid]
            seconds = seconds_on_gpu(lambda: run(**launch.arguments, **options))  # noqa: B023
            counted = floors.launched(launch)
            floor = counted.floor(rates)
            operations = counted.operations + counted.products
            rated = (counted.bytes * 1e-12, operations * 1e-12, counted.exponentials * 1e-9)
            lines.append([
                name, described(launch), str(count[identity(launch)]),
                *map(report.number, (seconds * 1e6, floor * 1e6, seconds / floor, *(r / seconds for r in rated))),
            ])  # fmt: skip
        with traces.open("a") as file:
            file.write(f"{name}\n\n{trace(step)}\n\n")
        finish(out, "profile", commit, header, lines)
    finish(out, "profile", commit, header, lines, counters(out, deadline))
    return 0


def pipelines(out: Path, commit: str, data: Path | None) -> int:
    """W6; then, where `data` holds CamVid, the small runs of models/README.md at full size."""
    deadline, camvid = Deadline(), data and data.resolve() / "camvid"
    status = run_boxed([sys.executable, "-m", "bench", "pipelines", "--out", str(out)], deadline.share(4))
    if not (camvid and camvid.is_dir()):
        finish(out, "pipelines", commit, ["run", "outcome"], [["W6", outcome(status)]], "Without --data: no training.")
        return status
    statuses, lines = [status], []
    with tempfile.TemporaryDirectory() as runs:
        weights = Path(runs) / UNARY / "best.pt"
        for n, (name, changes) in enumerate(TRAINED.items()):
            command = [sys.executable, "-m", "tritoncrf.models", "train", name, "--data", str(camvid)]
            command += ["-o", f"{runs}/{name}", *(["--weights", str(weights)] if "_c" in name else [])]
            command += [part for change in (*FULL_SIZE, *changes) for part in ("--set", change)]
            statuses.append(run_boxed(command, deadline.share(len(TRAINED) - n)))
            log = Path(runs) / name / "log.csv"
            rows = list(csv.DictReader(log.open())) if log.exists() else []
            measured = [row for row in rows if row["val_miou"]]
            last = measured[-1] if measured else {}
            share = [last.get(k, "")[:6] for k in ("seconds", "val_miou", "val_unary_miou", "val_accuracy")]
            lines.append([name, outcome(statuses[-1]), str(len(rows)), *share])
            finish(out, "pipelines", commit, TRAINED_HEADER, lines)
    return max(statuses)


def described(launch) -> str:
    epilogue = launch.arguments.get("EPILOGUE", "")
    return f"{launch.kernel.__name__} {epilogue}".strip()


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

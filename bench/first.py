"""The stage `first` of `make gpu`: a first look at a GPU in six minutes, starting with what matters most.

Each part is a separate process with its own share of the time, so that a failing kernel does not stop the others; it
prints lines as they come. Without a GPU, the parts run on few pixels in PyTorch, as far as possible.
"""

import functools
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from importlib.metadata import version

import torch

import tritoncrf as tc
from bench import RESULTS, floors
from bench.providers import errors, facts, graphed, relative_rms, runner
from bench.suite import outcome, run_boxed
from bench.timing import clock, replayed, seconds, seconds_on_gpu
from bench.workloads import ConvCRFWork, CRFWork, GuidedWork, Inputs, small
from tritoncrf import reports
from tritoncrf.devices import device_found
from tritoncrf.reports import number

# Seconds that a part may take at most; the last has the rest.
PARTS = {"compile": 75, "errors": 45, "times": 120, "questions": 45, "splat": 25, "sanitize": 120}
SAFE = 20  # seconds reserved for the last part
STEP_ERROR = 1e-5  # relative, of one iteration


def works() -> dict[str, tuple[CRFWork, str]]:
    """The works of the profile; on a CPU with few pixels."""
    from bench.compiled.profile import WORKS

    if device_found().type == "cuda":
        return WORKS
    return {name: (replace(small(work), classes=5), learns) for name, (work, learns) in WORKS.items()}


def first(stage) -> int:
    """Run all parts in order; returns 1 if one failed. Their output is also in `first.md`."""
    log, failed = stage.out / "first.md", []
    log.write_text(f"{reports.versions(reports.environment(stage.commit))}\n")
    left = list(PARTS)
    for part in PARTS:
        left.remove(part)
        box = min(PARTS[part], stage.seconds() - (SAFE if left else 0))
        command = [sys.executable, "-m", "bench", "first", part]
        started, partial = time.monotonic(), stage.out / f"{part}.log"
        print(f"\n== {part}, at most {box:.0f} s", flush=True)
        status = run_boxed(command, box, partial, {"TRITONCRF_COMMIT": stage.commit})
        told = f"\n== {part}: {outcome(status)}, {time.monotonic() - started:.0f} s\n"
        print(told, flush=True)
        with log.open("a") as file:
            file.write(told + partial.read_text())
        partial.unlink()
        failed += [part] * (status not in (0, 124))
    return int(bool(failed))


def run_part(name: str) -> int:
    return {
        "compile": compile_all, "errors": all_errors, "times": all_times, "questions": questions, "splat": splats,
        "sanitize": sanitize,
    }[name]()  # fmt: skip


class Table:
    """A table that prints each row at once, with fixed widths."""

    def __init__(self, *header: str):
        self.widths = [max(10, len(name)) for name in header]
        self.widths[0] = 34
        self.line(*header)

    def line(self, *cells):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(cells, self.widths)).rstrip(), flush=True)


def attempted(name: str, call) -> bool:
    """Print errors and continue."""
    try:
        call()
    except Exception:
        print(f"{name} FAILED\n{traceback.format_exc(limit=-3)}", flush=True)
        return False
    return True


# Compilation ------------------------------------------------------------------------------------------------------


def compile_all() -> int:
    """Run every work once in separate parallel processes, to fill Triton's cache."""
    if device_found().type != "cuda":
        print("Nothing to compile without a GPU.")
        return 0
    started = time.monotonic()
    command = [sys.executable, "-m", "bench", "exercise", "--work"]
    running = {name: subprocess.Popen([*command, name]) for name in works()}
    for name, process in running.items():
        told = "ran" if process.wait() == 0 else f"FAILED, status {process.returncode}"
        print(f"{name}: {told}, {time.monotonic() - started:.0f} s", flush=True)
    return int(any(process.returncode for process in running.values()))


# Errors -----------------------------------------------------------------------------------------------------------


def all_errors() -> int:
    """The errors of each work against float64: after one iteration, after all, and of the gradients."""
    device = device_found()
    lines = Table("work", "step RMS", "loop RMS", "worst", "PyTorch's", "gradient", "")
    wrong = False

    def told(name, work, learns):
        nonlocal wrong
        forward = errors(work, device, None)
        backward = errors(work, device, "weights" if work.follows_picture else learns)
        good = forward["step_rms"] <= STEP_ERROR
        wrong |= not good
        numbers = [forward["step_rms"], forward["loop_rms"], forward["loop_max"], forward.get("reference_rms")]
        lines.line(name, *map(number, [*numbers, backward["gradient_rms"]]), "" if good else "TOO LARGE")

    ran = [attempted(name, functools.partial(told, name, *pair)) for name, pair in works().items()]
    return int(wrong or not all(ran))


# Times ------------------------------------------------------------------------------------------------------------


def median(call, box: float = 0.7) -> float:
    """Seconds of a call, the median of 3 to 50 runs after two warm-ups, with ten calls per reading if they are
    short."""
    for _ in range(2):
        call()
    start = clock()
    call()
    inside = 10 if clock() - start < 2e-3 else 1
    found, end = [], time.monotonic() + box
    while len(found) < 3 or len(found) < 50 and time.monotonic() < end:
        start = clock()
        for _ in range(inside):
            call()
        found.append((clock() - start) / inside)
    return sorted(found)[len(found) // 2]


def predicted_sums(work: str, passes) -> float | None:
    """The predicted seconds of these passes of a work; None if its last report is for another target or Triton."""
    from bench.compiled.profile import predictions

    if not torch.cuda.is_available():
        return None
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    rows = predictions(RESULTS, target, version("triton")).get(work, [])
    return sum(row["predicted"] * row["launches"].get(name, 0) for row in rows for name in passes) or None


def all_times() -> int:
    device = device_found()
    rates = floors.measured_rates(device)
    if rates:
        print(f"copy {rates.bytes * 1e-12:.2f} TB/s")
    lines = Table("work", "ms", "predicted", "floor", "x floor", "MB", "x Q", "x faster")

    def row(name, work, stage, learns, call, passes, ours=None):
        took = median(call)
        floor = work.counts(facts(work, device), stage, learns).floor(rates) if rates else None
        predicted = predicted_sums(name.split(",")[0], passes)
        extra = memory(call) if device.type == "cuda" else None
        q = 4 * work.batch * work.classes * math.prod(work.size)
        lines.line(
            name, number(took, 1e3), number(predicted, 1e3), number(floor, 1e3), number(floor and took / floor),
            number(extra, 1e-6), number(extra and extra / q), number(ours and took / ours),
        )  # fmt: skip
        return took

    def told(name, work, learns):
        ours = row(
            f"{name}, forward", work, "total", None, runner("tritoncrf", Inputs(work, device)), ("build", "loop")
        )
        if device.type == "cuda":
            replay = graphed(Inputs(work, device))
            ours = row(f"{name}, forward, graph", work, "total", None, replay, ("build", "loop"))
            loop = graphed(Inputs(work, device), "loop") if work.follows_picture else None
            if loop:
                row(f"{name}, loop, graph", work, "loop", None, loop, ("loop",))
        passes = ("build", "loop", "backward")
        row(
            f"{name}, training", work, "total", learns, runner("tritoncrf", Inputs(work, device, learns=learns)), passes
        )
        if device.type == "cuda" and not work.follows_picture:
            replay = graphed(Inputs(work, device, learns=learns))
            row(f"{name}, training, graph", work, "total", learns, replay, passes)
        peer = {ConvCRFWork: "im2col", GuidedWork: "torch_boxes"}.get(type(work))
        if peer and getattr(work, "normalization", "none") == "none":
            row(f"{name}, {peer}", work, "total", None, runner(peer, Inputs(work, device)), (), ours)

    ran = [attempted(name, functools.partial(told, name, *pair)) for name, pair in works().items()]
    return int(not all([*ran, attempted("exact sum", exact_in_torch)]))


def exact_in_torch():
    """One application of the bilateral exact filter by this library and by PyTorch, once each, as PyTorch takes
    seconds."""
    device = device_found()
    work = works()["W4"][0]
    inputs = Inputs(work, device)
    values, features = inputs.logits.softmax(1), work.appearance_features(inputs)
    filters = {backend: tc.filters.Exact(features, backend=backend) for backend in ("auto", "torch")}
    with torch.no_grad():
        found = {name: (f(values), seconds(functools.partial(f, values))) for name, f in filters.items()}
    (x, ours), (y, theirs) = found["auto"], found["torch"]
    told = f"{number(ours, 1e3)} ms, in PyTorch {number(theirs, 1e3)} ms, {number(theirs / ours)} x"
    print(f"exact sum once: {told}; they differ by {number(relative_rms(x, y.double()))}", flush=True)


def memory(call) -> int:
    """The growth of peak memory during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


# Questions --------------------------------------------------------------------------------------------------------


def questions() -> int:
    """The cost of L1 reads that do not start at a cache line; and each kernel of the loops with its prediction: the
    guided step, and the lattice's joins, whose time is that of their longest program."""
    if device_found().type != "cuda":
        print("Needs a GPU.")
        return 0
    return int(not all([attempted("reads", told_reads), attempted("kernels", told_kernels)]))


def told_reads():
    lines = Table("read by a warp", "ns a read", "x aligned")
    found = reads("cuda", seconds_on_gpu)
    aligned = found["4 bytes a thread, from 0"]
    for name, took in found.items():
        lines.line(name, number(took, 1e9), number(took / aligned))


def reads(device, timed) -> dict[str, float]:
    """Seconds of a multiprocessor for a warp's read from the L1 cache, by kind of read."""
    from bench.compiled.reads import FORMS, launch_reads

    found = {name: launch_reads(device, *form) for name, form in FORMS.items()}
    return {name: timed(call) / count for name, (call, count) in found.items()}


def told_kernels():
    from bench.compiled.profile import kernels, names, predicted_of, predictions

    device = device_found()
    rates = floors.measured_rates(device)
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    told = predictions(RESULTS, target, version("triton"))
    lines = Table("kernel", "us", "predicted", "floor", "x floor", "launches")
    lines.widths[0] = 70
    for name in ("W3", "W2", "W1 k=11", "W1 k=7 blur 4", "W4", "W3 radius 16", "W1 k=7"):
        work, learns = works()[name]
        found = kernels(Inputs(work, device, learns=learns))
        for title, kernel, predicted in zip(names(found), found, predicted_of(told.get(name, []), found)):
            if kernel.launches["loop"]:
                took, floor = seconds_on_gpu(kernel.launch.run), floors.launched(kernel.launch, work).floor(rates)
                numbers = number(took, 1e6), number(predicted, 1e6), number(floor, 1e6), number(took / floor)
                lines.line(f"{name} {title}", *numbers, kernel.purpose)


# Splat ------------------------------------------------------------------------------------------------------------


def splat_calls(work: CRFWork, device, backend="auto"):
    """(name, call) for lattices of several sizes, with both kinds of splat."""
    from bench.atomic_splat import atomic_splat
    from bench.workloads import lattice_of
    from tritoncrf.kernels import lattice as kernels
    from tritoncrf.models.experiments.lattice_error import gaussian_features
    from tritoncrf.reference.lattice import ScaledLattice

    inputs = Inputs(work, device)
    rows = kernels.rows_of(inputs.logits.softmax(1))
    for thetas in (3,), (80, 13), (67, 3), (50, 5):
        lattice = lattice_of(tc.filters.Lattice(gaussian_features(inputs.image, thetas), backend=backend))
        side, share = ScaledLattice(lattice, None), lattice.count / math.prod(work.size)
        for name, form in ("sorted", kernels.splat), ("atomic", atomic_splat):
            yield f"{thetas}, {name}, {share:.2g} vertices a pixel", functools.partial(form, rows, side)


def splats() -> int:
    if device_found().type != "cuda":
        print("Needs a GPU.")
        return 0

    def told():
        lines = Table("splat", "us")
        lines.widths[0] = 60
        with torch.no_grad():
            for name, call in splat_calls(works()["W2"][0], "cuda"):
                lines.line(name, number(median(replayed(call), 0.3), 1e6))

    return int(not attempted("splat", told))


# Sanitizer --------------------------------------------------------------------------------------------------------


def sanitize() -> int:
    """Run compute-sanitizer's memcheck on as many small configurations as there is time for."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device_found().type != "cuda":
        print("Needs a GPU and compute-sanitizer.")
        return 0
    exercise = [sys.executable, "-m", "bench", "exercise"]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "99", "--print-limit", "20", *exercise]
    # In this process group, so that it ends when the time is up.
    return subprocess.call(command, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

"""The kernels of the training steps of W1 to W4: their use, executed instructions, occupancy and predicted times.

On a GPU, the stage `profile` of `make gpu` times them. On any machine, `python -m bench profile` compiles them for a
GPU that need not be present, and runs a share of each launch in the tests' emulator.
"""

import contextlib
import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import floors
from bench.compiled.compilation import MIX, Binary, column, compile_all, identity
from bench.compiled.executed import WARP, Executed, count_all, launches_emulated
from bench.compiled.occupancy import MULTIPROCESSORS, occupancy
from bench.compiled.prediction import MACHINES, Prediction, predicted
from bench.providers import Tritoncrf
from bench.workloads import ConvCRFWork, CRFWork, ExactWork, GuidedWork, Inputs, LatticeWork
from tritoncrf import reports
from tritoncrf.commands import CommandError
from tritoncrf.files import write
from tritoncrf.kernels.common import Launch, record_launches

SIZE = (500, 500)
# And what is trained in their training step, W5.
WORKS = {
    "W1 k=7": (ConvCRFWork(7, size=SIZE), "features"),
    "W1 k=11": (ConvCRFWork(11, size=SIZE), "features"),
    "W1 k=11 symmetric": (ConvCRFWork(11, 1, "symmetric", size=SIZE), "features"),
    "W1 k=7 blur 4": (ConvCRFWork(7, 4, size=SIZE), "features"),
    "W2": (LatticeWork(size=SIZE), "features"),
    "W3": (GuidedWork(size=SIZE), "features"),
    "W3 radius 16": (GuidedWork(size=SIZE, radius=16), "features"),
    "W4": (ExactWork(size=SIZE), "weights"),
}
RESOURCES = ["warps", "registers", "spills", "shared", "programs", "resident", "limit"]
PHASES = ("build", "loop", "backward")
# PyTorch builds the tables of their filters; while building, their kernels only apply the filters to ones.
WITHOUT_TABLES = ("exact",)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a step, compiled once for one shape: its first launch, and how often each pass launches it."""

    launch: Launch
    launches: Counter

    @property
    def name(self) -> str:
        return f"{self.launch.kernel.__name__} {self.launch.arguments.get('EPILOGUE', '')}".strip()

    @property
    def purpose(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.launches.items())


def kernels(inputs: Inputs, run: bool = True, building=contextlib.nullcontext) -> list[Kernel]:
    """The kernels of one training step, in the order of their first launches. Without `run` nothing is launched, except
    while building the filters if `building` launches."""
    provider = Tritoncrf(inputs)
    with building() as launching, record_launches(run or launching) as build:
        filters = provider.build()
    with record_launches(run) as loop:
        scores = provider.loop(filters)
    with record_launches(run) as backward:
        torch.autograd.grad(scores, inputs.learned, inputs.cotangent)
    found = {}
    for name, launches in zip(PHASES, (build, loop, backward)):
        for launch in launches:
            key = identity(launch), launch.grid, _shapes(launch)
            found.setdefault(key, Kernel(launch, Counter())).launches[name] += 1
    return list(found.values())


def _shapes(launch: Launch) -> tuple:
    values = [e for a in launch.arguments.values() for e in (a if isinstance(a, tuple) else (a,))]
    return tuple(tuple(v.shape) for v in values if isinstance(v, torch.Tensor))


def compiled_kernels(work: CRFWork, learns: str) -> list[Kernel]:
    """The kernels of a work on a GPU that is not present. Tables that depend on the picture are built in the emulator;
    no other launch runs."""

    @contextlib.contextmanager
    def building():
        if not work.follows_picture:
            yield False
            return
        with launches_emulated("sm_90", but=WITHOUT_TABLES):
            yield True

    return kernels(Inputs(work, "cpu", learns=learns, backend="triton"), run=False, building=building)


def names(chosen: list[Kernel]) -> list[str]:
    """The names of kernels, with the sizes and constants in which kernels of one name differ, or otherwise a number."""
    found = []
    for kernel in chosen:
        alike = [other.launch.arguments for other in chosen if other.name == kernel.name]
        differing = [
            f"{name}={value}"
            for name, value in kernel.launch.arguments.items()
            if name.isupper() and len({str(arguments[name]) for arguments in alike}) > 1
        ]
        found.append(" ".join([kernel.name, *differing]))
    return [
        name if found.count(name) == 1 else f"{name} ({found[: n + 1].count(name)})" for n, name in enumerate(found)
    ]


def unit(kernel: Kernel, work: CRFWork) -> tuple[str, int]:
    """The unit for the instructions of a launch: a name, and the number of units. A lattice's rows are spread over
    threads, so pairs of pixel and vertex, and vertices, are counted by warp instructions."""
    launch, pixels = kernel.launch, work.batch * math.prod(work.size)
    arguments, name = launch.arguments, launch.kernel.__name__
    if work.filter == "window" and "window" in name:
        return "pixel, tap", work.batch * math.prod(floors.low_size(work)) * work.window_size ** len(work.size)
    if pairs := floors.visited_pairs(launch):
        return "pair", pairs
    if work.filter == "lattice" and ("D1" in arguments or "weight_ptr" in arguments):
        corners = arguments["D1"] if "D1" in arguments else arguments["weight_ptr"].numel() // pixels
        return "pair, by warps", WARP * pixels * (sum(corners) if isinstance(corners, tuple) else corners)
    if work.filter == "lattice" and "V" in arguments:
        return "vertex, by warps", WARP * arguments["V"]
    if work.filter == "lattice" or set(kernel.launches) == {"build"}:
        return "pixel", pixels
    return "pixel, class", pixels * work.classes


@dataclass(frozen=True)
class Row:
    """A row of the report."""

    work: str
    title: str
    kernel: Kernel
    binary: Binary
    executed: Executed
    prediction: Prediction
    floor: float
    unit: str
    units: int

    def per_unit(self, warps: float) -> float:
        """Thread instructions, from warp instructions."""
        return warps * WARP / self.units

    @property
    def data(self) -> dict:
        return {
            "work": self.work, "kernel": self.title, "launches": dict(self.kernel.launches), "unit": self.unit,
            "executed": self.per_unit(self.executed.instructions), "registers": self.binary.registers,
            "spills": spilled(self.binary), "predicted": self.prediction.seconds, "times": self.prediction.times,
            "floor": self.floor, "share": self.executed.share,
        }  # fmt: skip


def predictions(folder: Path, target: str, triton: str) -> dict[str, list[dict]]:
    """The rows of each work in the last report of `run` for this target and Triton, if any."""
    written = sorted(folder.glob(f"compiled-{target}-triton-{triton}-*.json"))
    found: dict[str, list[dict]] = {}
    for row in json.loads(written[-1].read_text())["rows"] if written else ():
        found.setdefault(row["work"], []).append(row)
    return found


def predicted_of(rows: list[dict], found: list[Kernel]) -> list[float | None]:
    """The predicted seconds of each kernel, if the same kernels were counted; numbers of vertices in names may differ
    slightly."""
    counted = [row["kernel"].split()[0] for row in rows]
    if counted != [kernel.launch.kernel.__name__ for kernel in found]:
        return [None] * len(found)
    return [row["predicted"] for row in rows]


def resources(target: str, num_warps: int, registers: int, spills: int, shared: int) -> list[str]:
    """Cells of the columns `RESOURCES`; without the occupancy for a multiprocessor that is not in the table."""
    cells = [str(n) for n in (num_warps, registers, spills, shared)]
    if target not in MULTIPROCESSORS:
        return [*cells, "", "", ""]
    of = MULTIPROCESSORS[target]
    held = occupancy(of, num_warps, registers, shared)
    return [*cells, str(held.programs), f"{held.warps} of {of.warps}", ", ".join(held.limits)]


def held(compiled, target: str) -> list[str]:
    """The cells `RESOURCES` of a kernel that Triton has launched; it counts spills in registers of 4 bytes."""
    meta = compiled.metadata
    return resources(target, meta.num_warps, compiled.n_regs, 4 * compiled.n_spills, meta.shared)


def spilled(binary: Binary) -> int:
    return binary.stack + binary.local if binary.spills else 0


def run(targets: list[str], out: Path | None, works: str = "", chosen: str = "", jobs: int = 1) -> int:
    """Print the reports, and write them into the folder `out`. `works` and `chosen` are patterns for the names of works
    and kernels."""
    if unknown := set(targets) - set(MACHINES):
        raise CommandError(f"--targets: expected some of {', '.join(MACHINES)}, got {', '.join(unknown)}")
    environment, started = reports.environment(), time.monotonic()
    found = {name: compiled_kernels(work, learns) for name, (work, learns) in WORKS.items() if re.search(works, name)}
    for target in targets:
        rows = counted(found, target, chosen, jobs)
        text = markdown(target, environment, rows)
        print(text)
        if out:
            file = f"compiled-{target}-triton-{environment['triton']}-{environment['date']}"
            data = {"environment": environment, "rows": [row.data for row in rows]}
            write(out / f"{file}.md", text.encode())
            write(out / f"{file}.json", (json.dumps(data, indent=1) + "\n").encode())
    print(f"Compiled and counted in {time.monotonic() - started:.0f} s.")
    return 0


def counted(found: dict[str, list[Kernel]], target: str, chosen: str = "", jobs: int = 1) -> list[Row]:
    """A row for each kernel whose name matches `chosen`, counted by `jobs` processes."""
    named = [
        (work, title, kernel)
        for work, some in found.items()
        for title, kernel in zip(names(some), some)
        if re.search(chosen, title)
    ]
    launches = [kernel.launch for *_, kernel in named]
    binaries = compile_all(launches, target)
    counts = count_all([*zip(launches, binaries)], jobs)
    rows, machine = [], MACHINES[target]
    for (name, title, kernel), binary, count in zip(named, binaries, counts):
        work = WORKS[name][0]
        needed = floors.launched(kernel.launch, work)
        prediction = predicted(count, needed.bytes, machine)
        rows.append(
            Row(name, title, kernel, binary, count, prediction, needed.floor(machine.rates), *unit(kernel, work))
        )
    return rows


def markdown(target: str, environment: dict, rows: list[Row]) -> str:
    """Two tables for each work: executed instructions and predicted times of its kernels, and the kinds of
    instructions."""
    lines = [f"# Kernels compiled for {target}, {environment['date']}", "", reports.versions(environment), ""]
    lines += [f"Times are predicted from the executed instructions, not measured, for {MACHINES[target]}."]
    for work in dict.fromkeys(row.work for row in rows):
        some = [row for row in rows if row.work == work]
        lines += ["", f"## {work}", "", executed_table(some), "", mix_table(some), "", sums(some)]
    return "\n".join(lines) + "\n"


def executed_table(rows: list[Row]) -> str:
    header = ["kernel", "launches", "executed", "per", *RESOURCES, "predicted us", "bound by", "floor us", "x floor"]
    cells = [
        [
            row.title, row.kernel.purpose, reports.number(row.per_unit(row.executed.instructions)), row.unit,
            *resources_of(row.binary), reports.number(row.prediction.seconds, 1e6), row.prediction.bound,
            reports.number(row.floor, 1e6), reports.number(row.prediction.seconds / row.floor),
        ]
        for row in rows
    ]  # fmt: skip
    return reports.table(header, cells).rstrip()


def mix_table(rows: list[Row]) -> str:
    """For each unit of work: instructions by kind, and wavefronts and sectors for a warp's worth of units; microseconds
    for which each part of the machine is busy; the share of the programs that ran in the emulator."""
    kinds = [{name: 0.0 for name in (*MIX, "other")} for _ in rows]
    for row, found in zip(rows, kinds):
        for opcode, count in row.executed.opcodes.items():
            found[column(opcode.split(".")[0])] += row.per_unit(count)
    shown = [name for name in (*MIX, "other") if any(found[name] >= 0.005 for found in kinds)]
    parts = [*rows[0].prediction.times]
    cells = [
        [
            row.title, *(reports.number(found[name]) for name in shown),
            reports.number(row.per_unit(row.executed.wavefronts)), reports.number(row.per_unit(row.executed.sectors)),
            *(reports.number(row.prediction.times[part], 1e6) for part in parts), f"{row.executed.share:.2g}",
        ]
        for row, found in zip(rows, kinds)
    ]  # fmt: skip
    header = ["kernel", *shown, "wavefronts", "sectors", *(f"{part} us" for part in parts), "share"]
    return reports.table(header, cells).rstrip()


def sums(rows: list[Row]) -> str:
    """The sums of the predicted times of all launches of each pass, and the floor of their work."""
    work, _ = WORKS[rows[0].work]
    passes = {phase: sum(row.prediction.seconds * row.kernel.launches[phase] for row in rows) * 1e6 for phase in PHASES}
    told = ", ".join(f"{phase} {reports.number(seconds)}" for phase, seconds in passes.items())
    iteration = reports.number(passes["loop"] / work.iterations)
    return f"Predicted for all launches in sequence: {told} us; one iteration: {iteration} us."


def resources_of(binary: Binary) -> list[str]:
    return resources(binary.target, binary.num_warps, binary.registers, spilled(binary), binary.shared)

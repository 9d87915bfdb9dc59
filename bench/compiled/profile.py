"""The kernels that the training steps of W1 to W4 launch: what each is for, and what a multiprocessor can hold of it.

On a GPU the stage `profile` of `make gpu` times them. Anywhere, `python -m bench profile` compiles them for a GPU that
need not be here, and tells registers, spills, shared memory, occupancy and the instruction mix.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.compiled.compilation import MIX, Binary, compile_all, identity, unique
from bench.compiled.occupancy import MULTIPROCESSORS, occupancy
from bench.providers import Tritoncrf
from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork
from tritoncrf import reports
from tritoncrf.files import write
from tritoncrf.kernels.common import Launch, record_launches

SIZE = (500, 500)
# And what learns in their training step, W5.
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


@dataclass(frozen=True)
class Kernel:
    """One of a step's kernels, as Triton compiles it once: its first launch, and how often each pass launches it."""

    launch: Launch
    launches: Counter

    @property
    def name(self) -> str:
        return f"{self.launch.kernel.__name__} {self.launch.arguments.get('EPILOGUE', '')}".strip()

    @property
    def purpose(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.launches.items())


def kernels(inputs: Inputs, run: bool = True) -> list[Kernel]:
    """Of one training step, in the order of their first launches; without `run` nothing is launched."""
    provider = Tritoncrf(inputs)
    with record_launches(run) as build:
        filters = provider.build()
    with record_launches(run) as loop:
        scores = provider.loop(filters)
    with record_launches(run) as backward:
        torch.autograd.grad(scores, inputs.learnt, inputs.cotangent)
    found = {}
    for name, launches in ("build", build), ("loop", loop), ("backward", backward):
        for launch in launches:
            found.setdefault(identity(launch), Kernel(launch, Counter())).launches[name] += 1
    return list(found.values())


def names(chosen: list[Kernel]) -> list[str]:
    """Their names, with the sizes and constants in which those of one name differ."""
    found = []
    for kernel in chosen:
        alike = [other.launch.arguments for other in chosen if other.name == kernel.name]
        differing = [
            f"{name}={value}"
            for name, value in kernel.launch.arguments.items()
            if name.isupper() and len({str(arguments[name]) for arguments in alike}) > 1
        ]
        found.append(" ".join([kernel.name, *differing]))
    return found


def resources(target: str, num_warps: int, registers: int, spills: int, shared: int) -> list[str]:
    """Cells of the columns `RESOURCES`; no occupancy of a multiprocessor that is not in the table."""
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


def run(target: str, out: Path | None) -> int:
    """Print the report, and write it into the folder `out`."""
    environment, started = reports.environment(), time.monotonic()
    found = {
        name: kernels(Inputs(work, "cpu", learns=learns, backend="triton"), run=False)
        for name, (work, learns) in WORKS.items()
    }
    launches = unique(kernel.launch for chosen in found.values() for kernel in chosen)
    binaries = dict(zip(map(identity, launches), compile_all(launches, target, mixes=True)))
    text = markdown(target, environment, found, binaries)
    print(text)
    print(f"{len(launches)} kernels compiled in {time.monotonic() - started:.0f} s")
    if out:
        write(out / f"compiled-{target}-{environment['date']}.md", text.encode())
    return 0


def markdown(target: str, environment: dict, found: dict[str, list[Kernel]], binaries: dict[tuple, Binary]) -> str:
    lines = [f"# Kernels compiled for {target}, {environment['date']}", "", reports.versions(environment)]
    for name, chosen in found.items():
        compiled = [binaries[identity(kernel.launch)] for kernel in chosen]
        columns = [column for column in (*MIX, "other") if any(binary.mix[column] for binary in compiled)]
        cells = [
            [title, kernel.purpose, *resources_of(binary), *(str(binary.mix[c]) for c in columns)]
            for title, kernel, binary in zip(names(chosen), chosen, compiled)
        ]
        lines += ["", f"## {name}", "", reports.table(["kernel", "launches", *RESOURCES, *columns], cells).rstrip()]
    return "\n".join(lines) + "\n"


def resources_of(binary: Binary) -> list[str]:
    spills = binary.stack + binary.local if binary.spills else 0
    return resources(binary.target, binary.num_warps, binary.registers, spills, binary.shared)

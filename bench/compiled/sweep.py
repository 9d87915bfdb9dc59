"""Every configuration that is ever launched, compiled: `python -m bench compile`.

`launches_of` runs a configuration of the public API with recorded launches that do not run.
"""

import contextlib
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

import tritoncrf as tc
from bench.compiled.compilation import MIX, TARGETS, Binary, column, compile_all, unique
from bench.compiled.executed import count_all, launches_emulated
from bench.compiled.prediction import MACHINES
from tritoncrf import reports
from tritoncrf.commands import CommandError
from tritoncrf.files import write
from tritoncrf.kernels.common import Launch, record_launches

WORK = 2e6  # thread instructions from which a launch is counted


@dataclass(frozen=True)
class Configuration:
    """One way to use a filter and the loop. `weights`: "scalar", "class", "matrix" or "compatibility". A guided filter
    is the only one in its loop; `features` are its guide's channels."""

    kind: str = "window"
    classes: int = 21
    window_size: int = 7
    radius: int = 3
    box: str = "count"
    size: tuple = (37, 41)  # not multiples of 16, so nothing can be assumed about strides
    filters: int = 2
    weights: str = "scalar"
    normalization: str = "none"
    blur: int = 1
    dilation: int = 1
    include_self: bool = True
    features: int = 3
    batch: int = 1
    precision: str = "default"

    def run(self, device) -> None:
        """Run a filter alone and a loop of three steps, forward and backward to everything."""
        self.apply(*self.build(device))

    def build(self, device) -> tuple[list, list]:
        """Features and filters: a single filter, and those of the loop."""
        features = [
            torch.rand(b, d, *self.size, device=device, requires_grad=True) for b, d in self._batches_and_channels()
        ]
        return features, [self._filter(f) for f in (features[0], *features)]

    def apply(self, features, filters) -> None:
        device = features[0].device
        scores = torch.rand(self.batch, self.classes, *self.size, device=device, requires_grad=True)
        shape = {"scalar": (), "class": (self.classes,), "matrix": (self.classes, self.classes)}
        shape["compatibility"] = ()
        weights = [torch.rand(shape[self.weights], device=device, requires_grad=True) for _ in features]
        compatibility, learned = "potts", [scores, *weights, *features]
        if self.weights == "compatibility":
            compatibility = torch.rand(self.classes, self.classes, device=device, requires_grad=True)
            learned.append(compatibility)
        alone, *filters = filters
        messages = alone(scores)
        torch.autograd.grad(messages, [scores, features[0]], torch.rand_like(messages))
        refined = tc.mean_field(scores, filters, weights, compatibility, iterations=3, output="logits")
        torch.autograd.grad(refined, learned, torch.rand_like(refined))

    def _batches_and_channels(self) -> list[tuple[int, int]]:
        """The batch and channels of each filter's features. The first filter's are shared by the batch, like
        positions."""
        own = self.batch, self.features
        return [own] if self.kind == "guided" else [(1, len(self.size)), own][: self.filters]

    def _filter(self, features):
        if self.kind == "guided":
            return tc.filters.Guided(features, self.radius, 1.0, self.box, precision=self.precision, backend="triton")
        shared = self.include_self, self.normalization
        if self.kind == "exact":
            return tc.filters.Exact(features, *shared, precision=self.precision, backend="triton")
        if self.kind == "lattice":
            return tc.filters.Lattice(features, *shared, self.precision, backend="triton")
        window = self.window_size, self.dilation, self.blur
        return tc.filters.Window(features, *window, *shared, self.precision, backend="triton")


def configurations(thorough: bool = False) -> list[Configuration]:
    """The launched configurations, as far as registers depend on them: every option varied one at a time.

    Classes, weights and the number of filters decide which sums a kernel holds and how its tile is cut, so `thorough`
    uses all their combinations, each with every variation: hundreds of kernels, many minutes. Kernels are not
    specialised on the number of a lattice's vertices.
    """
    sums = [(c, "scalar", 2) for c in (2, 21, 64, 150, 256)]
    sums += [(21, "class", 2), (21, "matrix", 2), (64, "matrix", 2), (256, "class", 2), (21, "scalar", 1)]
    variations = [
        {"precision": "fast"},
        {"normalization": "symmetric"},
        {"size": (48, 64), "batch": 2, "blur": 2},
        {"size": (48, 64), "blur": 16, "window_size": 3},  # the largest blur that fuses
        {"size": (9, 10, 11), "window_size": 5},
        {"window_size": 11},
        {"window_size": 31},
        {"dilation": 2, "include_self": False},
        {"features": 16},
        {"size": (301,)},
    ]
    lattices = [(c, w, f) for c, w, f in sums if (c, w) != (150, "scalar")] + [(300, "scalar", 2)]
    lattices = [Configuration("lattice", c, weights=w, filters=f, features=5) for c, w, f in lattices]
    lattices += [
        Configuration("lattice", **v)
        for v in (
            {"size": (48, 64), "batch": 2, "features": 5, "normalization": "symmetric"},
            {"size": (301,), "features": 1, "normalization": "after"},
            {"size": (9, 10, 11), "features": 4},
            {"features": 8},
            {"features": 16},
            {"weights": "matrix", "precision": "fast"},
        )
    ]
    exacts = [Configuration("exact", classes=c, features=5) for c in (2, 21, 64, 150)]
    exacts += [
        Configuration("exact", **v)
        for v in (
            {"size": (48, 64), "batch": 2, "normalization": "symmetric"},  # 64 x 48 pixels: whole tiles
            {"size": (301,), "features": 9, "normalization": "after"},
            {"features": 32, "include_self": False},
            {"features": 64, "classes": 64},
            {"features": 65, "classes": 64},  # too many for products of features
            {"features": 5, "precision": "fast"},
        )
    ]
    guideds = [(c, "scalar") for c in (2, 21, 64, 150, 256)]
    guideds += [(21, "class"), (21, "matrix"), (64, "matrix"), (300, "scalar")]
    guideds = [Configuration("guided", c, weights=w) for c, w in guideds]
    guideds += [
        Configuration("guided", **v)
        for v in (
            {"radius": 1},
            {"radius": 5},
            {"radius": 8},  # the smallest radius that is summed along one axis after the other
            {"radius": 16, "box": "constant"},
            {"radius": 64, "size": (131, 133)},
            {"radius": 200, "size": (401, 403), "classes": 2},
            {"features": 1},
            {"features": 8, "box": "constant"},
            {"features": 8, "radius": 16},
            {"size": (9, 10, 11), "features": 1},
            {"size": (18, 19, 20), "radius": 8},
            {"size": (301,)},
            {"size": (301,), "radius": 16},
            {"size": (48, 64), "batch": 2},
            {"size": (48, 64), "batch": 2, "radius": 16},
            {"weights": "matrix", "precision": "fast"},
        )
    ]
    windows = [Configuration(classes=c, weights=w, filters=f) for c, w, f in sums]
    # As at 500 x 512: Triton makes other kernels for sizes and strides that are multiples of 16.
    aligned = [Configuration(window_size=11), *lattices[: len(sums)], *exacts[:5], *guideds[: len(sums)]]
    aligned += [Configuration("guided", radius=16), Configuration("guided", features=8), *windows]
    aligned = [replace(c, size=(36, 64)) for c in aligned]
    if not thorough:
        return windows + [Configuration(**v) for v in variations] + lattices + exacts + guideds + aligned[::2]
    variations += [
        {},
        {"window_size": 3},
        {"blur": 4},
        {"normalization": "before"},
        {"normalization": "after"},
        {"size": (8, 16, 32), "window_size": 3, "blur": 2},
    ]
    classes, weights = (2, 21, 33, 64, 100, 150, 256, 300), ("scalar", "class", "matrix", "compatibility")
    windows = product(classes, weights, (1, 2), variations)
    lattices = product(classes, weights, (1, 2), (1, 2, 3, 5, 8, 16, 31))
    exacts = product(classes, (1, 8, 9, 32, 64, 65), (True, False), ("default", "fast"))
    guideds = product(classes, weights, (3, 8, 32), (1, 3, 8))
    found = [Configuration(classes=c, weights=w, filters=f, **v) for c, w, f, v in windows]
    found += [Configuration("lattice", c, weights=w, filters=f, features=d) for c, w, f, d in lattices]
    found += [Configuration("guided", c, weights=w, radius=r, features=d) for c, w, r, d in guideds]
    return (
        found + aligned + [Configuration("exact", c, features=d, include_self=s, precision=p) for c, d, s, p in exacts]
    )


def launches_of(configuration: Configuration, tables: bool = False) -> list[Launch]:
    """The recorded launches, which do not run; with `tables`, lattices are built in the emulator, which fills their
    tables."""
    tables = tables and configuration.kind == "lattice"
    building = launches_emulated("sm_90") if tables else contextlib.nullcontext()
    with building, record_launches(run=tables) as build:
        built = configuration.build("cpu")
    with record_launches(run=False) as launches:
        configuration.apply(*built)
    return build + launches


def sweep(thorough: bool = False, tables: bool = False) -> list[Launch]:
    """Every distinct launch of `configurations`."""
    return unique(launch for c in configurations(thorough) for launch in launches_of(c, tables))


def counted(launches: list[Launch], binaries: list[Binary], target: str) -> list[Counter]:
    """For each binary, the average instructions of a thread by column of `MIX`, if the emulator runs the target's
    PTX."""
    if target not in MACHINES:
        return [binary.mix for binary in binaries]
    found = []
    for launch, counts in zip(launches, count_all([*zip(launches, binaries)], os.cpu_count() or 1, WORK)):
        warps, kinds = math.prod(launch.grid) * launch.num_warps, Counter()
        for opcode, count in counts.opcodes.items():
            kinds[column(opcode.split(".")[0])] += count / warps
        found.append(kinds)
    return found


def run(targets: list[str], out: Path | None, thorough: bool = False) -> int:
    """Print a summary, and write the report as the file `out`; 1 if anything spills on sm_90."""
    if unknown := set(targets) - set(TARGETS):
        raise CommandError(f"--targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    launches, started = sweep(thorough, tables=out is not None), time.monotonic()
    binaries = {target: compile_all(launches, target, mixes=True) for target in targets}
    if out:
        kinds = {target: counted(launches, compiled, target) for target, compiled in binaries.items()}
        write(out, markdown(reports.environment(), binaries, kinds).encode())
    for target, compiled in binaries.items():
        spilled = [b for b in compiled if b.spills]
        registers = max((b.registers for b in compiled), default=0)
        print(f"{target}: {len(compiled)} configurations, at most {registers} registers, {len(spilled)} with spills")
        print("".join(f"  {b}\n" for b in spilled), end="")
    print(f"compiled in {time.monotonic() - started:.0f} s")
    return int(any(b.spills for b in binaries.get("sm_90", [])))


def markdown(environment: dict, binaries: dict[str, list[Binary]], kinds: dict[str, list[Counter]]) -> str:
    """Registers, spills, shared memory and the instructions of every configuration, per target."""
    lines = ["# Compiled kernels", "", f"triton {environment['triton']}, commit {environment['commit']}", ""]
    for target, compiled in binaries.items():
        spilled = sum(b.spills for b in compiled)
        lines += ["", f"## {target}: {len(compiled)} configurations, {spilled} with spills", ""]
        whole = "the whole kernel, with the body of a loop counted once"
        lines += [f"Instructions: {'executed by a thread, on average' if target in MACHINES else whole}.", ""]
        columns = [*MIX, "other"] if compiled and compiled[0].mix else []
        header = ["kernel", "constants", "warps", "registers", "stack", "local", "shared", "instructions", *columns]
        cells = [
            (
                b.kernel, b.options, b.num_warps, b.registers, b.stack, b.local, b.shared,
                *(reports.number(n) for n in (found.total() or None, *(found[c] for c in columns))),
            )
            for b, found in zip(compiled, kinds[target])
        ]  # fmt: skip
        lines += [reports.table(header, [list(map(str, row)) for row in cells])]
    return "\n".join(lines)

"""Count what a launch executes: SASS instructions, including loops and branches, and wavefronts of the L1 cache.

A share of the programs, spread over the grid, runs as PTX in the tests' emulator with the launch's own arguments. From
how often each block of PTX runs follows how often each block of SASS does (`sass.py`), and the share is scaled to the
whole grid. So loops have the right numbers of iterations for the tables of a lattice or an exact filter, and programs
at a border have the right weight.
"""

import contextlib
import functools
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch

from bench.compiled.compilation import Binary, compile_launch, signature
from bench.compiled.sass import Sass, disassembled, weights
from bench.floors import visited_pairs
from ptx.formats import WIDTH
from ptx.launch import allocated, flat, packed
from ptx.run import Run
from tritoncrf import backends
from tritoncrf.kernels.common import Launch

WARP = 32
LANES = 8192  # threads side by side in the emulator
FIRST_LANES = 1024
WORK = 1.6e8  # thread instructions after which no more programs are run
VISITS = 4, 12  # of a block of an exact filter: counts for two short lists give that for the whole list
GOLDEN = (math.sqrt(5) - 1) / 2
BANKS = 32
TAGS = 4  # lines of 128 bytes per wavefront: assumed, not measured


@dataclass(frozen=True)
class Executed:
    """Of one launch, by warps. `opcodes`: SASS instructions by opcode and its first suffix, "HMMA.16816"; `wavefronts`
    of global and of shared memory; `sectors` of 32 bytes that global accesses ask the L1 cache for; `share` of the
    programs that ran."""

    opcodes: Counter
    wavefronts: float
    sectors: float
    share: float

    @property
    def instructions(self) -> float:
        return sum(self.opcodes.values())


class Counting(Run):
    """A run that counts and checks bounds, but does not look for races."""

    wavefronts = 0

    def _race(self, *access, **about):
        pass

    def _read_shared(self, *access):
        pass

    def _write_shared(self, *access):
        pass

    def _put(self, view, index, values, lanes, name):
        for k, v in enumerate(values):
            view[index + k] = v

    def note(self, *about):
        pass

    def _sectors(self, a, lanes, kind):
        turns, sectors = self._wavefronts(a, lanes, self._width())
        self.wavefronts += turns
        self.profile.sectors[kind] += sectors

    def _banks(self, a, lanes, width):
        self.wavefronts += self._wavefronts(a, lanes, width)[0]

    def _wavefronts(self, a, lanes, width) -> tuple[int, int]:
        """The wavefronts and sectors of an access. A wavefront serves 32, 16 or 8 threads of at most 4, 8 or 16
        bytes each; it reads each bank of 4 bytes once, and from at most `TAGS` lines."""
        each = max(1, width // 4)
        together = max(WARP // each, 8)
        words = np.full((self.L, each), -1, np.int64)
        words[lanes] = (a.astype(np.int64) // 4)[:, None] + np.arange(each)
        words = np.sort(words.reshape(-1, together * each), axis=1)
        some = words >= 0

        def new(x):
            return some & np.diff(x, axis=1, prepend=-1).astype(bool)

        row, column = np.nonzero(new(words))
        turns = np.bincount(row * BANKS + (words[row, column] & 31), minlength=len(words) * BANKS)
        lines = new(words // 32).sum(1)
        return int(np.maximum(turns.reshape(-1, BANKS).max(1), -(-lines // TAGS)).sum()), int(new(words // 8).sum())

    def _width(self) -> int:
        """Bytes that each thread moves by the current instruction."""
        parts = self.program.instructions[self.at].op.split(".")
        vector = next((int(p[1]) for p in parts if p in ("v2", "v4", "v8")), 1)
        return min(16, vector * WIDTH[parts[-1]] // 8) if parts[0] in ("ld", "st") else 4


def run_programs(launch: Launch, binary: Binary, work: float = math.inf) -> tuple[Counting, np.ndarray, float]:
    """In the emulator, until threads have executed `work` instructions, or all programs have run: the run, how many
    warps ran each block of PTX, and the share of the programs that ran."""
    program = binary.program
    arguments = [part for name, kind in signature(launch, binary.target).items()
                 for part in flat(name, kind, launch.arguments[name])]  # fmt: skip
    allocations = allocated(arguments, program.threads)
    parameters = packed(arguments, allocations, program)
    run = Counting(program, (*map(int, launch.grid), 1, 1)[:3], parameters, list(allocations.values()), profiled=True)

    total = math.prod(run.grid)
    order = np.argsort(np.arange(1, total + 1) * GOLDEN % 1) if work < math.inf else np.arange(total)
    lengths = np.array([len(block) for block in program.blocks])
    warps, done, taken = np.zeros(len(lengths)), 0, 0.0
    with np.errstate(all="ignore"):
        while done < total and taken < work:
            lanes = LANES if done or work == math.inf else FIRST_LANES  # few at first, since programs may be long
            some = np.sort(order[done : done + max(1, lanes // program.threads)])
            run._begin(some)
            found = run._execute()
            warps += found
            done += len(some)
            taken += float(found @ lengths) * WARP
            if run.faults:
                raise RuntimeError(f"{launch.kernel.__name__}: {run.faults[0]}")
    return run, warps, done / total


def executed(launch: Launch, binary: Binary, work: float = WORK) -> Executed:
    """Count an exact filter whose blocks visit many others from two launches that visit few: the counts grow linearly
    with the pairs of blocks."""
    pairs = visited_pairs(launch)
    few, more = (shortened(launch, visits) for visits in VISITS) if pairs else (launch, launch)
    if visited_pairs(more) == pairs:
        return _executed(launch, binary, work)
    low, high = (_executed(short, binary, work) for short in (few, more))
    beyond = (pairs - visited_pairs(few)) / (visited_pairs(more) - visited_pairs(few))

    def at(a, b):
        return a + (b - a) * beyond

    opcodes = Counter({name: at(low.opcodes[name], count) for name, count in high.opcodes.items()})
    return Executed(opcodes, at(low.wavefronts, high.wavefronts), at(low.sectors, high.sectors), high.share)


def shortened(launch: Launch, visits: int) -> Launch:
    """The same launch of an exact filter, in which a block visits at most the first `visits` of its list."""
    starts = launch.arguments["starts_ptr"]
    counts = starts.diff(dim=-1).clamp(max=visits)
    kept = torch.cat(
        [torch.arange(n) + s for s, n in zip(starts[..., :-1].flatten().tolist(), counts.flatten().tolist())]
    )
    ends = counts.flatten().cumsum(0).view_as(counts).to(starts.dtype)
    tables = {
        "starts_ptr": torch.cat([ends[..., :1] - counts[..., :1].to(starts.dtype), ends], -1),
        "columns_ptr": launch.arguments["columns_ptr"][kept],
    }
    return replace(launch, arguments=launch.arguments | tables)


def _executed(launch: Launch, binary: Binary, work: float) -> Executed:
    run, warps, share = run_programs(launch, binary, work)
    sass = Sass(disassembled(binary.code))
    opcodes = Counter()
    for block, weight in zip(sass.blocks, weights(sass, binary.program, list(warps / share))):
        for i in block:
            opcodes[i.opcode + i.suffix[: i.suffix.find(".", 1) if "." in i.suffix[1:] else None]] += weight
    return Executed(opcodes, run.wavefronts / share, run.profile.sectors.total() / share, share)


def count_all(pairs: list[tuple[Launch, Binary]], jobs: int, work: float = WORK) -> list[Executed]:
    """`executed` for each launch, with `jobs` processes."""
    if jobs == 1 or len(pairs) < 2:
        return [executed(*pair, work) for pair in pairs]
    # A fork has the launches' tensors, and only numbers come back.
    with ProcessPoolExecutor(jobs, get_context("fork"), initializer=_TO_COUNT.extend, initargs=(pairs,)) as pool:
        return list(pool.map(functools.partial(_count, work), range(len(pairs))))


_TO_COUNT: list[tuple[Launch, Binary]] = []  # in a counting process


def _count(work: float, index: int) -> Executed:
    return executed(*_TO_COUNT[index], work)


@contextlib.contextmanager
def launches_emulated(target: str, but=()):
    """Run all programs of launches on CPU tensors in the emulator, except those of the modules `but`."""

    def run(launch: Launch):
        if launch.kernel.fn.__module__.rpartition(".")[2] not in but:
            run_programs(launch, compile_launch(launch, target))

    before, interpreted = Launch.run, backends.INTERPRETED
    Launch.run, backends.INTERPRETED = run, True
    try:
        yield
    finally:
        Launch.run, backends.INTERPRETED = before, interpreted

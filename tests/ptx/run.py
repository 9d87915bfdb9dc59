"""One launch of a program: all threads of many programs go through one block of instructions at a time."""

import math
import time

import numpy as np

from ptx.blocks import block
from ptx.checks import Checks, Fault
from ptx.formats import f64, i32, i64, u8, u16, u32, u64
from ptx.matrices import Matrices
from ptx.memory import Allocation, Memory, views
from ptx.profile import Profile
from ptx.program import Program
from ptx.warps import Warps

LANES = 16384  # threads side by side, fewer if they have many registers
# What a register holds before it is written.
UNSET = {
    "bool": np.zeros(1, bool), "u16": np.array([0xDEAD], u16), "u32": np.array([0x7FDEAD00], u32),
    "u64": np.array([0x7FFDEADBEEF00000], u64),
}  # fmt: skip


class Run(Checks, Memory, Warps, Matrices):
    """`parameters`: the bytes of each; a number per thread or one for all has the shape [L] or [1].

    `profiled` counts traffic; `noise`: see `launch.Emulator`.
    """

    def __init__(self, program: Program, grid: tuple, parameters: list[bytes], allocations, profiled=False, noise=0.0):
        self.program, self.grid, self.parameters, self.allocations = program, grid, parameters, allocations
        self.profiled, self.noise = profiled, noise
        self.threads = program.threads
        self.faults: list[Fault] = []
        self.notes: dict = {}
        self.at = 0  # the instruction that runs
        self.profile = Profile(program.name, math.prod(grid), self.threads)
        self.shared_size = max(program.shared, 16)
        self.local_size = max(16, sum(program.local.values()))

    def go(self):
        started = time.perf_counter()
        total = math.prod(self.grid)
        lanes = min(LANES, max(1024, (1 << 25) // max(1, len(self.program.registers))))
        count = max(1, lanes // self.threads)
        with np.errstate(all="ignore"):
            for first in range(0, total, count):
                self._begin(np.arange(first, min(total, first + count)))
                self._count(self._execute())
        for a in self.allocations:
            self.profile.distinct["read"] += int(a.read_sectors.sum())
            self.profile.distinct["written"] += int(a.written_sectors.sum())
        self.profile.seconds = time.perf_counter() - started

    def _begin(self, programs):
        """A batch of programs: their threads, special registers, barriers and memory."""
        T, B = self.threads, len(programs)
        self.L, self.B = L, _ = B * T, B
        gx, gy, gz = self.grid
        self.lane = np.arange(L)
        self.thread = (programs[:, None] * T + np.arange(T)).ravel().astype(i32)
        self.program_of = np.repeat(np.arange(B), T)
        # Accesses keep these two until a later one asks who was there, so a barrier makes new ones.
        self.epoch = np.zeros(B, i32)
        self.warp_epoch = np.zeros(L // 32, i32)

        def each(v):
            return np.repeat(v.astype(u32), T) if B > 1 else v.astype(u32)

        tid = np.tile(np.arange(T, dtype=u32), B)
        same = {"tid.y": 0, "tid.z": 0, "ntid.x": T, "ntid.y": 1, "ntid.z": 1, "nctaid.x": gx, "nctaid.y": gy,
                "nctaid.z": gz}  # fmt: skip
        self.special = {
            "%tid.x": tid, "%laneid": tid & u32(31), "%warpid": tid >> u32(5),
            "%ctaid.x": each(programs % gx), "%ctaid.y": each(programs // gx % gy),
            "%ctaid.z": each(programs // (gx * gy)), **{f"%{name}": np.array([v], u32) for name, v in same.items()},
        }  # fmt: skip
        shared = np.full(self.shared_size * B, 0xA5, u8)
        self.shared = Allocation("shared memory", 0, shared, T, self.program.shared_cell)
        self.shared_written = np.zeros(shared.size, bool)
        self.local = views(np.zeros(self.local_size * L, u8))

    def wide(self, x):
        """A number for each thread."""
        return x if x.shape[0] == self.L else np.broadcast_to(x, self.L)

    def _execute(self):
        """The blocks, until all threads are done: how many warps ran each.

        As long as all threads are in one block they are not masked. Threads that differ are, and the block that is
        first in the text runs first, so that they meet again.
        """
        p, L, B = self.program, self.L, self.B
        R = [UNSET[storage] for _, storage in p.registers.values()]
        blocks = len(p.blocks)
        warps = np.zeros(blocks, i64)
        PC, waiting = np.zeros(L, i32), np.zeros(L, bool)
        uniform = 0  # the block that all threads are in; None where they differ
        while True:
            if uniform is not None:
                if uniform >= blocks:
                    return warps
                run, end = block(p, uniform, False)
                run(R, None, self)
                warps[uniform] += L // 32
                if end[0] == "jump":
                    uniform = end[1]
                elif end[0] == "barrier":
                    self.epoch = self.epoch + 1
                    self.warp_epoch = self.warp_epoch + 1
                    uniform = end[1]
                else:
                    _, register, negated, yes, no = end
                    c = R[register] ^ negated
                    there = np.count_nonzero(c)
                    if there == len(c):
                        uniform = yes
                    elif not there:
                        uniform = no
                    else:
                        PC = np.where(np.broadcast_to(c, L), yes, no).astype(i32)
                        waiting[:] = False
                        uniform = None
                continue
            live = blocks > PC
            if not live.any():
                return warps
            if waiting.any():
                need = np.bincount(self.program_of[live], minlength=B)
                have = np.bincount(self.program_of[waiting], minlength=B)
                done = (need == have) & (need > 0)
                waiting &= ~done[self.program_of]
                self.epoch = self.epoch + done
                self.warp_epoch = self.warp_epoch + done[self.program_of[::32]]
            ready = live & ~waiting
            if not ready.any():
                self.fault("barrier", "threads wait at a barrier that the others never reach")
                return warps
            b = int(PC[ready].min())
            A = ready & (b == PC)
            if A.all():
                uniform = b
                continue
            run, end = block(p, b, True)
            run(R, A, self)
            warps[b] += int(A.reshape(-1, 32).any(1).sum())
            if end[0] == "branch":
                _, register, negated, yes, no = end
                c = np.broadcast_to(R[register] ^ negated, L)
                PC[A] = np.where(c, yes, no)[A]
            else:
                PC[A] = end[1]
                if end[0] == "barrier":
                    waiting |= A

    def _count(self, warps):
        for b, counter in enumerate(self.program.counts):
            if warps[b]:
                for kind, n in counter.items():
                    self.profile.warps[kind] += int(n * warps[b])
                if self.profiled:
                    for i in self.program.blocks[b]:
                        self.profile.line(i.where)[0] += int(warps[b])

    def parameter(self, index, dtype, offset):
        return np.frombuffer(self.parameters[index], u8)[offset : offset + dtype().itemsize].view(dtype)

    def approximate(self, x, ulp):
        """With noise: an error of up to `ulp`, by chance but the same whenever the result is, as a GPU's is."""
        if not self.noise:
            return x
        chance = (x.view(u32) * u32(2654435761) >> u32(8)).astype(f64) / 2**23 - 1
        return (x * (1 + self.noise * ulp * chance * 2.0**-23)).astype(x.dtype)

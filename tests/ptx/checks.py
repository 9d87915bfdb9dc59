"""Faults, notes, and who wrote and read which bytes between which barriers."""

from dataclasses import dataclass

import numpy as np

from ptx.formats import i32, i64, u32

MOST_FAULTS = 50  # of one launch


@dataclass
class Fault:
    kind: str
    kernel: str
    where: str  # line of the kernel's source
    ptx: str
    detail: str

    def __str__(self):
        return f"{self.kind} in {self.kernel} at {self.where}: {self.detail}   [{self.ptx}]"


class KernelFault(Exception):
    def __init__(self, faults: list[Fault]):
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class Checks:
    """The part of a run that reports. `faults` are wrong; `notes` worth a look: (what, where) -> (times, most)."""

    def fault(self, kind, detail, at=None):
        at = self.at if at is None else at
        i = self.program.instructions[at]
        f = Fault(kind, self.program.name, i.where, i.text, detail)
        if len(self.faults) < MOST_FAULTS and not any((g.kind, g.where) == (f.kind, f.where) for g in self.faults):
            self.faults.append(f)

    def note(self, kind, count, most=0):
        """No fault, but worth a look: how often, and the most that `most` was."""
        key = kind, self.program.instructions[self.at].where
        before = self.notes.get(key, (0, 0))
        self.notes[key] = before[0] + int(count), max(before[1], int(most))

    def place(self, lane):
        """Program and thread, in words."""
        t = int(self.thread[lane])
        c = t // self.threads
        gx, gy, _ = self.grid
        return f"program ({c % gx}, {c // gx % gy}, {c // (gx * gy)}) thread {t % self.threads}"

    def division(self, zero, at, m):
        """A fault where a thread of the mask m divides by zero."""
        zero = np.broadcast_to(zero, self.L)
        bad = zero if m is None else zero & m
        if bad.any():
            self.fault("division", f"by zero, {self.place(int(np.flatnonzero(bad)[0]))}", at)

    def trap(self, m):
        if m is None or m.any():
            self.fault("trap", "a trap is reached")


class Shadow:
    """Who last wrote and read each cell, and between which barriers. Threads are numbered over the launch."""

    def __init__(self, cells: int, threads: int):
        self.threads = threads
        self.writer = np.full(cells, -1, i32)
        self.writer_epoch = np.zeros(cells, i32)
        self.writer_warp_epoch = np.zeros(cells, i32)
        self.reader_program = np.full(cells, -1, i32)  # -2: several
        self.reader_key = np.full(cells, -1, i64)  # program and epoch
        self.reader_warps = np.zeros(cells, u32)
        self.reader_warp_key = np.full(cells, -1, i64)
        self.reader = np.full(cells, -1, i32)  # -2: several threads of the warp

    def _after_writer(self, cells, t, epoch, warp_epoch):
        """Which cells another thread wrote with no barrier since, and who wrote them."""
        w = self.writer[cells]
        other = (w >= 0) & (w != t)
        if not other.any():
            return other, w
        same = w // self.threads == t // self.threads
        ordered = same & (
            (self.writer_epoch[cells] < epoch) | ((w >> 5 == t >> 5) & (self.writer_warp_epoch[cells] < warp_epoch))
        )
        return other & ~ordered, w

    def read(self, cells, t, epoch, warp_epoch):
        """Threads t read cells: which of them race, and with whom."""
        race, w = self._after_writer(cells, t, epoch, warp_epoch)
        program = t // self.threads
        key = (program.astype(i64) << 32) | epoch
        known = self.reader_program[cells]
        self.reader_program[cells] = np.where((known == -1) | (known == program), program, -2)
        stale = self.reader_key[cells] != key
        self.reader_warps[cells[stale]] = 0
        self.reader_key[cells] = key
        np.bitwise_or.at(self.reader_warps, cells, u32(1) << ((t % self.threads) >> 5).astype(u32))
        warp_key = ((t >> 5).astype(i64) << 32) | warp_epoch
        stale = self.reader_warp_key[cells] != warp_key
        self.reader[cells[stale]] = -1
        self.reader_warp_key[cells] = warp_key
        before = self.reader[cells]
        self.reader[cells] = np.where((before == -1) | (before == t), t, -2)
        lost = self.reader[cells] != t
        self.reader[cells[lost]] = -2
        return race, w

    def write(self, cells, t, epoch, warp_epoch):
        """Threads t write cells: which race with a writer, with whom, and which with readers."""
        race, w = self._after_writer(cells, t, epoch, warp_epoch)
        program = t // self.threads
        readers = self.reader_program[cells]
        foreign = (readers != -1) & (readers != program)
        key = (program.astype(i64) << 32) | epoch
        own = u32(1) << ((t % self.threads) >> 5).astype(u32)
        foreign |= (self.reader_key[cells] == key) & ((self.reader_warps[cells] & ~own) != 0)
        warp_key = ((t >> 5).astype(i64) << 32) | warp_epoch
        reader = self.reader[cells]
        foreign |= (self.reader_warp_key[cells] == warp_key) & (reader != -1) & (reader != t)
        self.writer[cells] = t
        self.writer_epoch[cells] = epoch
        self.writer_warp_epoch[cells] = warp_epoch
        return race, w, foreign

"""Global, shared and local memory: every access checked and, where a profile is asked for, counted."""

import operator

import numpy as np

from ptx.checks import Shadow
from ptx.formats import NUMPY, i64, u64

SHARED_WINDOW = 1 << 24  # generic addresses of shared memory, above any offset
POISON = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}  # what `launch.poisoned` fills memory with
MOST_KEPT = 1 << 26  # bytes of an allocation's reads, kept until somebody writes it, for most are only read
ATOMIC = {
    "add": operator.add, "min": min, "max": max, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "exch": lambda old, x: x, "cas": lambda old, x, new: new if old == x else old,
}  # fmt: skip


def views(data: np.ndarray) -> dict[int, np.ndarray]:
    """Bytes as unsigned integers of each size."""
    return {n: data[: data.size // n * n].view(NUMPY[f"u{8 * n}"]) for n in (1, 2, 4, 8)}


class Allocation:
    """A tensor's memory at the address `base`, or that of all programs' shared memory; races are found by `cell`s."""

    def __init__(self, name: str, base: int, data: np.ndarray, threads: int, cell: int, floating: bool = False):
        self.name, self.base, self.data, self.end, self.floating = name, base, data, base + data.size, floating
        self.views = views(data)
        self.cell, self.threads = cell, threads
        self.shadow: Shadow | None = None  # from the first write on
        self.reads: list = []  # before, and how many bytes they take
        self.kept = 0
        self.read_sectors = np.zeros(-(-data.size // 32) + 1, bool)
        self.written_sectors = np.zeros(-(-data.size // 32) + 1, bool)


def cells_of(cell: int, offset, width, lanes, thread, program_of, epoch, warp_epoch):
    """Of an access, with an element for each cell: lanes, cells, threads, epochs of programs and of warps."""
    cells = offset // cell
    if width > cell:
        n = width // cell
        cells, lanes = (cells[:, None] + np.arange(n)).ravel(), np.repeat(lanes, n)
    return lanes, cells, thread[lanes], epoch[program_of[lanes]], warp_epoch[lanes >> 5]


class Memory:
    """The part of a run that loads and stores."""

    def _some(self, a, offset, m):
        """Addresses of the threads that take part, and their lanes; all of a uniform one if no mask."""
        a = self.wide(a)
        a = a.astype(i64) + offset if a.dtype != u64 else a.view(i64) + offset
        if m is None:
            return a, self.lane
        if m.shape[0] == 1:
            return (a, self.lane) if m[0] else (a[:0], self.lane[:0])
        lanes = np.flatnonzero(m)
        return a[lanes], lanes

    def _find(self, a, width, lanes, what):
        """(allocation, indices of a in it) for each allocation touched; faults for what is in none."""
        least, most = int(a.min()), int(a.max())
        for alloc in self.allocations:
            if alloc.base <= least and most + width <= alloc.end:
                return [(alloc, slice(None))]
        bases = np.array([x.base for x in self.allocations], i64)
        k = np.searchsorted(bases, a, "right") - 1
        ends = np.array([x.end for x in self.allocations], i64)
        good = (k >= 0) & (a + width <= ends[np.maximum(k, 0)])
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            address = int(a[bad])
            near = min(self.allocations, key=lambda x: max(x.base - address, address - x.end), default=None)
            gap = "no tensor at all" if near is None else (
                f"{address + width - near.end} bytes past the end of {near.name} ({near.data.size} bytes)"
                if address >= near.base
                else f"{near.base - address} bytes before {near.name} ({near.data.size} bytes)")  # fmt: skip
            self.fault("bounds", f"{what} of {width} bytes ends {gap}, {self.place(int(lanes[bad]))}; "
                       f"{int((~good).sum())} threads")  # fmt: skip
        return [(self.allocations[n], np.flatnonzero(good & (k == n))) for n in np.unique(k[good])]

    def _aligned(self, a, width, lanes):
        if np.bitwise_or.reduce(a) & (width - 1):
            bad = int(np.flatnonzero(a & (width - 1))[0])
            self.fault("alignment", f"address {int(a[bad]):#x} of {width} bytes, {self.place(int(lanes[bad]))}")
            return False
        return True

    def _race(self, alloc, offset, width, lanes, write):
        """Faults where another thread has written, or now that these write, has read, with no barrier since."""
        access = (offset, width, lanes, self.thread, self.program_of, self.epoch, self.warp_epoch)
        if alloc.shadow is None:
            if not write and alloc.kept < MOST_KEPT:
                alloc.reads.append(access)
                alloc.kept += offset.nbytes + lanes.nbytes + self.epoch.nbytes + self.warp_epoch.nbytes
                return
            alloc.shadow = Shadow(-(-alloc.data.size // alloc.cell), alloc.threads)
            for read in alloc.reads:
                alloc.shadow.read(*cells_of(alloc.cell, *read)[1:])
            alloc.reads.clear()
        who, cells, t, epoch, warp_epoch = cells_of(alloc.cell, *access)
        name = alloc.name
        if write:
            race, w, foreign = alloc.shadow.write(cells, t, epoch, warp_epoch)
            if foreign.any():
                k = int(np.flatnonzero(foreign)[0])
                self.fault("race", f"write to {name} byte {int(cells[k]) * alloc.cell}, which another thread has read "
                           f"since the last barrier, {self.place(int(who[k]))}; {int(foreign.sum())} cells")  # fmt: skip
        else:
            race, w = alloc.shadow.read(cells, t, epoch, warp_epoch)
        if race.any():
            k = int(np.flatnonzero(race)[0])
            c, thread = divmod(int(w[k]), self.threads)
            self.fault("race", f"{'write to' if write else 'read of'} {name} byte {int(cells[k]) * alloc.cell} by "
                       f"{self.place(int(who[k]))}, written by program {c} thread {thread}, no barrier between; "
                       f"{int(race.sum())} cells")  # fmt: skip

    def _sectors(self, a, lanes, kind):
        warp = lanes >> 5
        key = (warp.astype(i64) << 44) | ((a & ((1 << 48) - 1)) >> 5)
        sectors, warps = len(np.unique(key)), len(np.unique(warp))
        self.profile.sectors[kind] += sectors
        self.profile.global_instructions[kind] += warps
        line = self.profile.line(self.program.instructions[self.at].where)
        line[1] += warps
        line[2] += sectors

    def _banks(self, a, lanes, width):
        """Wavefronts: a phase serves 128 bytes; words of one bank that differ take turns."""
        per = {8: 16, 16: 8}.get(width, 32)
        group = lanes // per
        words = (a[:, None] // 4 + np.arange(max(1, width // 4))).ravel()
        groups = np.repeat(group, max(1, width // 4))
        unique = np.unique((groups.astype(i64) << 32) | words)
        bank = (unique >> 32) * 32 + (unique & 31)
        _, turns = np.unique(bank, return_counts=True)
        phase = np.unique(bank)  # sorted, so phases are together
        order = phase // 32
        edges = np.flatnonzero(np.r_[True, order[1:] != order[:-1]])
        wavefronts = int(np.maximum.reduceat(turns, edges).sum())
        self.profile.shared_wavefronts += wavefronts
        self.profile.line(self.program.instructions[self.at].where)[3] += wavefronts
        self.profile.shared_ideal += len(edges)

    def _shared_offsets(self, a, lanes, width, what):
        """Offsets in the shared memory of all programs, their lanes, and which are inside (None: all)."""
        size = self.program.shared
        bad = (a < 0) | (a + width > size)
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            self.fault("bounds", f"{what} of {width} bytes at shared byte {int(a[k])} of {size}, "
                       f"{self.place(int(lanes[k]))}; {int(bad.sum())} threads")  # fmt: skip
            a, lanes = a[~bad], lanes[~bad]
        return a + self.program_of[lanes] * self.shared_size, lanes, ~bad if bad.any() else None

    def load(self, space, address, offset, m, size, count):
        """`count` numbers of `size` bytes for each thread of the mask m; 0 for the others."""
        a, lanes = self._some(address, offset, m)
        dtype = NUMPY[f"u{8 * size}"]
        out = [np.zeros(self.L, dtype) for _ in range(count)]
        if not len(a):
            return out
        width = size * count
        if space == "generic":
            space = "local" if a[0] < SHARED_WINDOW else "global"
        if not self._aligned(a, width, lanes):
            return out
        if space == "local":
            index = (a + lanes * self.local_size) // size
            for k in range(count):
                out[k][lanes] = self.local[size][index + k]
            return out
        if space == "shared":
            if self.profiled:
                self._banks(a, lanes, width)
            o, lanes, _ = self._shared_offsets(a, lanes, width, "read")
            index, view = o // size, self.shared.views[size]
            for k in range(count):
                out[k][lanes] = view[index + k]
            self._read_shared(o, width, lanes)
            return out
        if self.profiled:
            self._sectors(a, lanes, "read")
        for alloc, some in self._find(a, width, lanes, "read"):
            o, who = a[some] - alloc.base, lanes[some]
            index = o // size
            view = alloc.views[size]
            for k in range(count):
                values = view[index + k]
                if alloc.floating or size == 8:
                    bad = np.count_nonzero(values == POISON[size])
                    if bad:
                        self.note(f"unwritten {alloc.name}", bad)
                out[k][who] = values
            self._race(alloc, o, width, who, write=False)
            if self.profiled:
                alloc.read_sectors[o >> 5] = True
        return out

    def _read_shared(self, o, width, lanes):
        missing = ~self.shared_written[o]
        if missing.any():
            self.note("unwritten shared memory", missing.sum())
        self._race(self.shared, o, width, lanes, write=False)

    def _write_shared(self, o, width, lanes):
        for k in range(width):
            self.shared_written[o + k] = True
        self._race(self.shared, o, width, lanes, write=True)

    def store(self, space, address, offset, m, size, values):
        """Several numbers of `size` bytes from each thread of the mask m."""
        a, lanes = self._some(address, offset, m)
        if not len(a):
            return
        width = size * len(values)
        if space == "generic":
            space = "local" if a[0] < SHARED_WINDOW else "global"
        if not self._aligned(a, width, lanes):
            return
        dtype = NUMPY[f"u{8 * size}"]
        values = [self.wide(v)[lanes].astype(dtype) for v in values]
        if space == "local":
            index = (a + lanes * self.local_size) // size
            for k, v in enumerate(values):
                self.local[size][index + k] = v
            return
        if space == "shared":
            if self.profiled:
                self._banks(a, lanes, width)
            o, lanes, good = self._shared_offsets(a, lanes, width, "write")
            if good is not None:
                values = [v[good] for v in values]
            self._put(self.shared.views[size], o // size, values, lanes, "shared memory")
            self._write_shared(o, width, lanes)
            return
        if self.profiled:
            self._sectors(a, lanes, "written")
        for alloc, some in self._find(a, width, lanes, "write"):
            o, who = a[some] - alloc.base, lanes[some]
            self._put(alloc.views[size], o // size, [v[some] for v in values], who, alloc.name)
            self._race(alloc, o, width, who, write=True)
            if self.profiled:
                alloc.written_sectors[o >> 5] = True

    def _put(self, view, index, values, lanes, name):
        """Stores values, and asks what becomes of an element that several threads of one instruction write."""
        for k, v in enumerate(values):
            view[index + k] = v
        for k, v in enumerate(values):
            at = index + k
            lost = view[at] != v
            if not lost.any():
                continue
            # Threads of one instruction and one element. If each warp's last thread brings the same value, which warp
            # comes last does not matter, and the hardware's choice within a warp is all that the value depends on.
            contested = np.isin(at, at[lost])
            where, value, who = at[contested], v[contested], lanes[contested]
            order = np.lexsort((who, where))[::-1]
            where, value, who = where[order], value[order], who[order]
            _, first = np.unique(where * (self.L // 32 + 1) + (who >> 5), return_index=True)
            where, value, who = where[first], value[first], who[first]
            elements, start, inverse = np.unique(where, return_index=True, return_inverse=True)
            differ = value != value[start][inverse]
            if differ.any():
                n = int(np.flatnonzero(differ)[0])
                self.fault("race", f"warps write different values to the same element of {name} by one instruction, "
                           f"{self.place(int(who[n]))}; {int(differ.sum())} elements")  # fmt: skip
            else:
                ulp = int(np.abs(v.astype(i64) - view[at].astype(i64)).max())
                self.note(f"threads of a warp write values that differ to the same element of {name}",
                          len(elements), ulp)  # fmt: skip

    def atomic(self, space, operation, address, offset, m, dtype, values):
        """What each thread finds; lanes take their turns in order."""
        a, lanes = self._some(address, offset, m)
        out = np.zeros(self.L, dtype)
        if not len(a):
            return out
        size = np.dtype(dtype).itemsize
        values = [self.wide(v)[lanes] for v in values]
        if not self._aligned(a, size, lanes):
            return out
        if self.profiled and space != "shared":
            self._sectors(a, lanes, "atomic")
        if space == "shared":
            o, lanes, good = self._shared_offsets(a, lanes, size, "atomic")
            if good is not None:
                values = [v[good] for v in values]
            places = [(self.shared, slice(None), o)]
        else:
            places = [(alloc, some, a[some] - alloc.base) for alloc, some in self._find(a, size, lanes, "atomic")]
        for alloc, some, o in places:
            view = alloc.views[size].view(dtype)
            index, who, v = o // size, lanes[some], [x[some] for x in values]
            for n in np.argsort(index, kind="stable"):
                old = view[index[n]]
                out[who[n]] = old
                view[index[n]] = ATOMIC[operation](old, *(x[n] for x in v))
            if alloc is self.shared:
                self.shared_written[o] = True
        return out

    def copy(self, to, to_offset, of, of_offset, m, size, length):
        """cp.async, at once: `size` bytes from global to shared memory; zeros where `length` is 0."""
        some = m
        if length is not None:
            some = self.wide(length) > 0
            some = some if m is None else some & m
        values = self.load("global", of, of_offset, some, 4, size // 4)
        self.store("shared", to, to_offset, m, 4, values)

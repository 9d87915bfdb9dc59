"""Barriers, and instructions by which the threads of a warp exchange numbers."""

import functools

import numpy as np

from ptx.formats import i64, u32, u64


def sources(mode: str, b, c):
    """Of shuffles, with numbers or rows of them for b and c: from which thread each of a warp takes, and whether it may."""
    lane = np.arange(32)
    bound, segment = c & 31, (c >> 8) & 31
    most, least = (lane & segment) | (bound & ~segment & 31), lane & segment
    if mode == "up":
        j = lane - (b & 31)
        valid = j >= most
    else:
        j = {"down": lane + (b & 31), "bfly": lane ^ (b & 31)}.get(mode, least | ((b & 31) & ~segment & 31))
        valid = j <= most
    return np.where(valid, j, lane), valid


fixed_sources = functools.cache(sources)


class Warps:
    """The part of a run in which threads act together."""

    def together(self, m, what, group=32):
        """All threads of each warp that takes part take part."""
        if m is None or m.shape[0] == 1:
            return
        rows = m.reshape(-1, group)
        partly = rows.any(1) != rows.all(1)
        if partly.any():
            k = int(np.flatnonzero(partly)[0])
            self.fault("convergence", f"{what} by {int(rows[k].sum())} of {group} threads, {self.place(k * group)}")

    def barrier_reached(self, at, m):
        self.at = at
        self.together(m, "bar.sync")

    def warp_barrier(self, m):
        self.together(m, "bar.warp.sync")
        if m is None:
            self.warp_epoch = self.warp_epoch + 1
        else:
            self.warp_epoch = self.warp_epoch + self.wide(m).reshape(-1, 32).any(1)

    def shuffle(self, mode, a, b, c, m, fixed):
        """Numbers, and whether they are valid, in rows of warps; `fixed`: b and c are the same in all threads."""
        self.together(m, "shfl.sync")
        rows = self.wide(a).reshape(-1, 32)
        if fixed:
            j, valid = fixed_sources(mode, int(b[0]), int(c[0]))
            return rows.take(j, axis=1).reshape(-1), valid
        j, valid = sources(mode, *(self.wide(v).reshape(-1, 32).astype(i64) for v in (b, c)))
        return np.take_along_axis(rows, j, 1).reshape(-1), valid

    def vote(self, mode, p, m):
        """What the threads of each warp say together."""
        self.together(m, "vote")
        rows = self.wide(p).reshape(-1, 32)
        if mode == "ballot":
            if m is not None:
                rows = rows & self.wide(m).reshape(-1, 32)
            value = (rows.astype(u64) << np.arange(32, dtype=u64)).sum(1).astype(u32)
        else:
            value = {"any": rows.any(1), "all": rows.all(1), "uni": rows.all(1) | ~rows.any(1)}[mode]
        return np.repeat(value, 32)

    def reduced(self, operation, x, members, m):
        """redux.sync: over the threads of a warp that `members` names."""
        self.together(m, "redux.sync")
        rows = self.wide(x).reshape(-1, 1, 32)
        members = self.wide(members).reshape(-1, 32, 1)
        inside = (members >> np.arange(32, dtype=u32)) & u32(1) != 0  # [warps, threads, members of each]
        function, none = {
            "add": (np.add, 0), "min": (np.minimum, np.iinfo(x.dtype).max), "max": (np.maximum, np.iinfo(x.dtype).min),
            "and": (np.bitwise_and, -1), "or": (np.bitwise_or, 0), "xor": (np.bitwise_xor, 0),
        }[operation]  # fmt: skip
        none = np.array(none).astype(x.dtype)
        return function.reduce(np.where(inside, rows, none), axis=2, dtype=x.dtype).reshape(-1)

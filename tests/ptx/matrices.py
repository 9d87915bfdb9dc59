"""Products of small matrices, and their operands on the way from and to shared memory."""

import numpy as np

from ptx.arithmetic import from_bf16
from ptx.formats import NUMPY, f16, f32, f64, i64, u16, u32


class Matrices:
    """The part of a run that multiplies matrices: sums are exact but for one rounding at the end."""

    def _matrix_addresses(self, address, offset, m):
        """[warps, 32] addresses of the rows, and the warps that take part."""
        self.together(m, "a matrix instruction")
        a = self.wide(address).astype(i64).reshape(-1, 32) + offset
        warps = np.arange(len(a)) if m is None else np.flatnonzero(self.wide(m).reshape(-1, 32).any(1))
        return a[warps], warps

    def ldmatrix(self, address, offset, m, count, transposed):
        a, warps = self._matrix_addresses(address, offset, m)
        lane = np.arange(32)
        out = []
        for k in range(count):
            rows = a[:, 8 * k : 8 * k + 8]
            self._aligned(rows.ravel(), 16, np.repeat(warps * 32, 8))
            result = np.zeros((self.L // 32, 32), u32)
            lanes = (warps[:, None] * 32 + lane).ravel()
            if self.profiled:
                self._banks(rows.ravel(), (warps[:, None] * 32 + np.arange(8)).ravel(), 16)
            if transposed:
                parts = [rows[:, 2 * (lane % 4) + h] + 2 * (lane // 4) for h in (0, 1)]
                size = 2
            else:
                parts, size = [rows[:, lane // 4] + 4 * (lane % 4)], 4
            value = 0
            for h, part in enumerate(parts):
                o, who, good = self._shared_offsets(part.ravel(), lanes, size, "read")
                v = self.shared.views[size][o // size].astype(u32) << u32(16 * h)
                full = np.zeros(len(lanes), u32)
                full[slice(None) if good is None else good] = v
                value = value | full
                self._read_shared(o, size, who)
            result[warps] = value.reshape(-1, 32)
            out.append(result.reshape(-1))
        return out

    def stmatrix(self, address, offset, m, values, transposed):
        a, warps = self._matrix_addresses(address, offset, m)
        lane = np.arange(32)
        lanes = (warps[:, None] * 32 + lane).ravel()
        for k, value in enumerate(values):
            rows = a[:, 8 * k : 8 * k + 8]
            self._aligned(rows.ravel(), 16, np.repeat(warps * 32, 8))
            if self.profiled:
                self._banks(rows.ravel(), (warps[:, None] * 32 + np.arange(8)).ravel(), 16)
            value = self.wide(value).reshape(-1, 32)[warps].ravel()
            if transposed:
                parts = [
                    (rows[:, 2 * (lane % 4) + h] + 2 * (lane // 4), (value >> u32(16 * h)).astype(u16)) for h in (0, 1)
                ]
                size = 2
            else:
                parts, size = [(rows[:, lane // 4] + 4 * (lane % 4), value)], 4
            for part, v in parts:
                o, who, good = self._shared_offsets(part.ravel(), lanes, size, "write")
                v = v if good is None else v[good]
                self._put(self.shared.views[size], o // size, [v], who, "shared memory")
                self._write_shared(o, size, who)

    @staticmethod
    def _halves(x, kind):
        """A register's numbers, low first, as float32: [2, ...] of halves, [1, ...] of tf32."""
        if kind == "tf32":
            return (x & u32(0xFFFFE000)).view(f32)[None]
        low, high = (x & u32(0xFFFF)).astype(u16), (x >> u32(16)).astype(u16)
        if kind == "bf16":
            return np.stack([from_bf16(low), from_bf16(high)])
        return np.stack([low.view(f16), high.view(f16)]).astype(f32)

    def _a_matrix(self, a, k, kind):
        """[warps, 16, k] from the fragments of m16."""
        lane = np.arange(32)
        g, t = lane >> 2, lane & 3
        rows = np.zeros((self.L // 32, 16, k), f32)
        for n, register in enumerate(a):
            parts = self._halves(self.wide(register).reshape(-1, 32), kind)
            for h, part in enumerate(parts):
                row = g + 8 * (n & 1)
                column = t + 4 * (n >> 1) if kind == "tf32" else 2 * t + h + 8 * (n >> 1)
                rows[:, row, column] = part
        return rows

    def mma(self, a, b, c, shape, kind, m):
        """c + a b of m16n8k*, each number rounded once."""
        self.together(m, "mma.sync")
        _, n_columns, k = shape
        lane = np.arange(32)
        g, t = lane >> 2, lane & 3
        A = self._a_matrix(a, k, kind)
        B = np.zeros((self.L // 32, k, n_columns), f32)
        for n, register in enumerate(b):
            parts = self._halves(self.wide(register).reshape(-1, 32), kind)
            for h, part in enumerate(parts):
                row = t + 4 * n if kind == "tf32" else 2 * t + h + 8 * n
                B[:, row, g] = part
        product = np.matmul(A.astype(f64), B.astype(f64))
        out = []
        for n, register in enumerate(c):
            old = self.wide(register).reshape(-1, 32).astype(f64)
            out.append((product[:, g + 8 * (n >> 1), 2 * t + (n & 1)] + old).astype(f32).reshape(-1))
        return out

    def _described(self, descriptor, extent, k, kind, transposed, groups):
        """[groups, extent, k] from shared memory by a matrix descriptor; `transposed`: extent is contiguous, not k."""
        d = self.wide(descriptor).reshape(-1, 128)
        if (d != d[:, :1]).any():
            self.fault("convergence", "threads of a warpgroup have different descriptors")
        d = d[groups, 0].astype(i64)
        start, lead, stride = (d & 0x3FFF) << 4, ((d >> 16) & 0x3FFF) << 4, ((d >> 32) & 0x3FFF) << 4
        swizzle = int((d[0] >> 62) & 3)
        row = {1: 128, 2: 64, 3: 32, 0: 16}[swizzle]
        bits = {1: 7, 2: 3, 3: 1, 0: 0}[swizzle]
        size = 4 if kind == "tf32" else 2
        e, c = np.meshgrid(np.arange(extent), np.arange(k), indexing="ij")
        e, c = e[None], c[None]
        start, lead, stride = (v[:, None, None] for v in (start, lead, stride))
        per = row // size
        if transposed:  # rows of 8 k's; pieces of `per` numbers along the extent are `lead` apart
            o = start + (e // per) * lead + (c // 8) * stride + (c % 8) * row + (e % per) * size
        elif swizzle == 0:  # cores of 8 rows of 16 bytes
            o = start + (e // 8) * stride + (e % 8) * 16 + (c // per) * lead + (c % per) * size
        else:
            o = start + (e // 8) * stride + (e % 8) * row + c * size
        o = o ^ (((o >> 7) & bits) << 4)
        lanes = np.broadcast_to((np.asarray(groups) * 128)[:, None, None], o.shape).ravel()
        at, who, good = self._shared_offsets(o.ravel(), lanes, size, "read")
        values = np.zeros(o.size, NUMPY[f"u{8 * size}"])
        values[slice(None) if good is None else good] = self.shared.views[size][at // size]
        # the warpgroup reads as one: races with writes of other threads that no barrier orders
        self._read_shared(at, size, who)
        if kind == "tf32":
            values = (values & u32(0xFFFFE000)).view(f32)
        elif kind == "bf16":
            values = from_bf16(values)
        else:
            values = values.view(f16).astype(f32)
        return values.reshape(o.shape)

    def wgmma(self, old, a, b, keep, shape, kind, signs, ta, tb, m):
        """old + a b of m64n*k* for each warpgroup; a from registers or, by a descriptor, from shared memory."""
        self.together(m, "wgmma", 128)
        M, N, K = shape
        lane = np.arange(32)
        g, t = lane >> 2, lane & 3
        groups = np.arange(self.L // 128)
        if m is not None:
            groups = np.flatnonzero(self.wide(m).reshape(-1, 128).any(1))
        if isinstance(a, list):
            A = self._a_matrix(a, K, kind).reshape(-1, 64, K)[groups]
        else:
            A = self._described(a, 64, K, kind, ta, groups)
        B = self._described(b, N, K, kind, tb, groups)
        product = np.matmul(A.astype(f64) * signs[0], (B.astype(f64) * signs[1]).swapaxes(1, 2))  # [groups, 64, N]
        product = product.reshape(len(groups), 4, 16, N)
        n = np.arange(len(old))[:, None]
        part = product[:, :, g + 8 * (n >> 1 & 1), 8 * (n >> 2) + 2 * t + (n & 1)]  # [groups, 4, registers, 32]
        keep = self.wide(keep)
        total = np.stack([np.where(keep, self.wide(register), f32(0)) for register in old]).astype(f64)
        total = total.reshape(len(old), -1, 4, 32)
        total[:, groups] += part.transpose(2, 0, 1, 3)
        return [*total.astype(f32).reshape(len(old), -1)]

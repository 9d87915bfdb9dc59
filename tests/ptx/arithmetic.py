"""What PTX computes and NumPy has no function for, on arrays with a number for each thread.

An array of one element stands for the same number in every thread.
"""

import numpy as np

from ptx.formats import NUMPY, VIEW, f32, f64, i64, u16, u32, u64


def flush(x):
    """Subnormal numbers become 0 of their sign."""
    return np.where(np.abs(x) < f32(1.1754944e-38), np.copysign(f32(0), x), x)


# Of float32, in the bits of float64 without a sign, less 1: of 0 that is the largest of all.
LEAST_NORMAL = (f64(2.0**-126).view(u64) << u64(1)) - u64(1)


def fma32(a, b, c):
    """One rounding: the product is exact in float64, and the sum is rounded to odd before it is rounded to float32.

    That only matters to sums half-way between two numbers of float32, and, as these lie closer, to subnormal ones."""
    p = a.astype(f64) * b
    s = p + c
    bits = s.view(u64)
    half_way = (bits & u64(0x1FFFFFFF)) == u64(0x10000000)
    if not np.count_nonzero(half_way) and ((bits << u64(1)) - u64(1)).min() >= LEAST_NORMAL:
        return s.astype(f32)
    p, c = np.broadcast_arrays(p, c.astype(f64))
    t = s - p
    e = (p - (s - t)) + (c - t)
    inexact = (e != 0) & np.isfinite(s)
    if inexact.any():
        bits = s.view(i64)
        away = (e > 0) == (s > 0)
        odd = np.where(inexact & (bits & 1 == 0), np.where(away, 1, -1), 0)
        s = (bits + odd).view(f64)
    return s.astype(f32)


def fma64(a, b, c):
    return (np.asarray(a, np.longdouble) * b + c).astype(f64)


def divide(a, b, run, at, m):
    """Integers, towards zero."""
    zero = b == 0
    if zero.any():
        run.division(zero, at, m)
    b = np.where(zero, b.dtype.type(1), b)
    q = a // b
    if a.dtype.kind == "i":
        q = q + ((a - q * b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return q


def remainder(a, b, run, at, m):
    q = divide(a, b, run, at, m)
    return a - q * b


def mulhi(a, b):
    if a.dtype.itemsize <= 4:
        wide = i64 if a.dtype.kind == "i" else u64
        return ((a.astype(wide) * b.astype(wide)) >> wide(8 * a.dtype.itemsize)).astype(a.dtype)
    a, b = np.broadcast_arrays(a, b)
    out = [((int(x) * int(y)) >> 64) & (2**64 - 1) for x, y in zip(a.ravel(), b.ravel())]
    return np.array(out, u64).reshape(a.shape).view(a.dtype)


def shl(a, n):
    bits = a.dtype.itemsize * 8
    n = n.astype(a.dtype)
    return np.where(n < bits, a << np.minimum(n, a.dtype.type(bits - 1)), a.dtype.type(0))


def shr(a, n):
    bits = a.dtype.itemsize * 8
    n = np.minimum(n, n.dtype.type(bits if a.dtype.kind == "u" else bits - 1))
    shifted = a >> np.minimum(n, n.dtype.type(bits - 1)).astype(a.dtype)
    return np.where(n < bits, shifted, a.dtype.type(0))


def bfe(a, position, length):
    position, length = position & u32(255), length & u32(255)
    a, position, length = np.broadcast_arrays(a, position, length)
    signed = a.dtype.kind == "i"
    wide = a.astype(i64 if signed else u64)
    kind = wide.dtype.type
    bits = wide >> np.minimum(position, a.dtype.itemsize * 8 - 1).astype(kind)
    size = np.minimum(length, 63).astype(kind)
    bits = bits & ((kind(1) << size) - kind(1))
    if signed:
        top = np.where(length > 0, (bits >> np.maximum(size - kind(1), 0)) & kind(1), 0)
        bits = np.where(top != 0, bits - (kind(1) << size), bits)
    return bits.astype(a.dtype)


def prmt(a, b, selector):
    a, b, selector = np.broadcast_arrays(a, b, selector)
    pool = a.astype(u64) | (b.astype(u64) << u64(32))
    result = np.zeros(a.shape, u32)
    for k in range(4):
        s = (selector >> u32(4 * k)) & u32(15)
        byte = (pool >> ((s & u32(7)).astype(u64) * u64(8))) & u64(255)
        byte = np.where(s & u32(8), np.where(byte & u64(128), u64(255), u64(0)), byte)
        result |= byte.astype(u32) << u32(8 * k)
    return result


def popc(a):
    return np.bitwise_count(a).astype(u32)


def clz(a):
    bits = a.dtype.itemsize * 8
    out = np.full(a.shape, bits, u32)
    for k in range(bits):
        out = np.where(a >> a.dtype.type(k) != 0, u32(bits - 1 - k), out)
    return out


def brev(a):
    out = np.zeros_like(a)
    for k in range(32):
        out |= ((a >> u32(k)) & u32(1)) << u32(31 - k)
    return out


def xorsign(a, b):
    sign = (a.view(u32) ^ b.view(u32)) & u32(0x80000000)
    return (np.fmin(np.abs(a), np.abs(b)).view(u32) | sign).view(f32)


def to_tf32(a, away: bool):
    """Ten bits of fraction, ties away from zero or to even."""
    bits = a.view(u32)
    add = u32(0x1000) if away else u32(0xFFF) + ((bits >> u32(13)) & u32(1))
    finite = (bits & u32(0x7F800000)) != u32(0x7F800000)
    return np.where(finite, (bits + add) & u32(0xFFFFE000), bits)


def to_bf16(x):
    bits = x.astype(f32).view(u32)
    rounded = (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)
    return np.where(np.isnan(x), u32(0x7FFF), rounded).astype(u16)


def from_bf16(bits):
    return (bits.astype(u32) << u32(16)).view(f32)


def pair(x):
    """[2, ...] halves of 32 bits, low first."""
    return np.stack([x.astype(u16), (x >> u32(16)).astype(u16)])


def unpair(x):
    x = x.view(u16)
    return x[0].astype(u32) | (x[1].astype(u32) << u32(16))


def pair64(x):
    """[2, ...] float32 numbers of 64 bits, low first."""
    return np.ascontiguousarray(x).view(f32).reshape(-1, 2).T


def unpair64(x):
    return np.ascontiguousarray(x.T).view(u64).reshape(-1)


ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_whole(x, mods: tuple):
    """Rounded to a whole number, where the modifiers ask for it."""
    for mod in ROUNDINGS.keys() & set(mods):
        x = ROUNDINGS[mod](x)
    return x


def convert(x, to: str, of: str, mods: tuple):
    """cvt: x has the type `of`; the result is in `to`, as stored."""
    if of == "bf16":
        x, of = from_bf16(x), "f32"
    if to == "tf32":
        return to_tf32(x, "rna" in mods)
    if to == "bf16":
        return to_bf16(x)
    floating = of[0] == "f"
    kind = NUMPY[VIEW[to]]
    if to[0] == "f":
        if floating and x.dtype.itemsize > kind().itemsize and "rz" in mods:
            raise NotImplementedError("cvt.rz between floating-point types")
        x = flush(x) if "ftz" in mods and of == "f32" else x
        y = to_whole(x, mods).astype(kind)
        return np.clip(np.nan_to_num(y), 0, 1).astype(kind) if "sat" in mods else y
    if floating:
        x = to_whole(x.astype(f64), mods)
        limits = np.iinfo(kind)
        big = x >= float(limits.max)
        y = np.where(np.isnan(x) | big, 0, np.maximum(x, float(limits.min))).astype(kind)
        return np.where(big, limits.max, y).astype(kind)
    if "sat" in mods:
        limits = np.iinfo(kind)
        return np.clip(x.astype(i64), limits.min, min(limits.max, 2**63 - 1)).astype(kind)
    return x.astype(kind)


RELATIONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def compare(op: str, a, b):
    if a.dtype.kind == "f":
        nan = np.isnan(a) | np.isnan(b)
        if op == "num":
            return ~nan
        if op == "nan":
            return nan
        if len(op) == 3:  # "ltu" and its like are true of NaN
            return RELATIONS[op[:2]](a, b) | nan
        return RELATIONS[op](a, b) & ~nan
    return RELATIONS[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(op, op)](a, b)

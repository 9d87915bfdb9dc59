"""The emulator itself: what it computes against PyTorch in float64, and that it finds the faults that are put in."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import ptxemu
from covering import covering
from ptx.arithmetic import mulhi

# The kernel tests run for sm_80 and sm_90.
TARGETS = [
    pytest.param("sm_75", marks=pytest.mark.slow),
    "sm_80",
    "sm_90",
    pytest.param("sm_120", marks=pytest.mark.slow),
]


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


# What it computes -------------------------------------------------------------------------------------------------


@triton.jit
def integers_kernel(a_ptr, b_ptr, y_ptr, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    m = o < n
    a, b = tl.load(a_ptr + o, mask=m, other=1), tl.load(b_ptr + o, mask=m, other=1)
    tl.store(y_ptr + o, a // b, mask=m)
    tl.store(y_ptr + n + o, a % b, mask=m)
    tl.store(y_ptr + 2 * n + o, a * b + (a >> 3) - (b << 2), mask=m)
    tl.store(y_ptr + 3 * n + o, tl.maximum(a, b) ^ (a & b) | tl.where(a < b, 5, 9), mask=m)
    tl.store(y_ptr + 4 * n + o, tl.maximum(tl.minimum(a, b), 0), mask=m)  # which sm_90 does in one instruction


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers(dtype, target):
    n = 777
    a, b = torch.randint(-(2**30), 2**30, (n,)).to(dtype), torch.randint(1, 1000, (n,)).to(dtype)
    b[::2] *= -1
    y = torch.empty(5, n, dtype=dtype)
    with ptxemu.emulated(target):
        integers_kernel[(7,)](a, b, y, n, B=128)
    q = torch.div(a, b, rounding_mode="trunc")
    assert torch.equal(y[0], q) and torch.equal(y[1], a - q * b)
    assert torch.equal(y[2], a * b + (a >> 3) - (b << 2))
    assert torch.equal(y[3], torch.maximum(a, b) ^ (a & b) | torch.where(a < b, 5, 9))
    assert torch.equal(y[4], torch.minimum(a, b).clamp_min(0))


@triton.jit
def tuples_kernel(x_ptrs, y_ptr, scales, n, B: tl.constexpr):
    o = tl.arange(0, B)
    m = o < n
    y = tl.load(x_ptrs[0] + o, mask=m, other=0.0) * scales[0]
    if x_ptrs[1] is not None:
        y += tl.load(x_ptrs[1] + o, mask=m, other=0.0) * scales[1]
    tl.store(y_ptr + o, y, mask=m)


@pytest.mark.parametrize("pair", [True, False])
def test_tuples(pair, target):
    a, b, y = torch.randn(100), torch.randn(100), torch.empty(100)
    with ptxemu.emulated(target):
        tuples_kernel[(1,)]((a, b if pair else None), y, (2.0, 3.0), 100, B=128)
    assert error(y, 2 * a.double() + (3 * b if pair else 0)) < 1e-7


@triton.jit
def floats_kernel(a_ptr, y_ptr, n, B: tl.constexpr):
    o = tl.arange(0, B)
    a = tl.load(a_ptr + o, mask=o < n, other=1.0)
    tl.store(y_ptr + o, tl.exp(-a * a), mask=o < n)
    tl.store(y_ptr + n + o, tl.sqrt(tl.abs(a)), mask=o < n)
    tl.store(y_ptr + 2 * n + o, tl.floor(a) + a.to(tl.int32).to(tl.float32), mask=o < n)
    tl.store(y_ptr + 3 * n + o, a.to(tl.float16).to(tl.float32) + a.to(tl.bfloat16).to(tl.float32), mask=o < n)
    tl.store(y_ptr + 4 * n + o, 1.0 / (a + 100.0) + tl.log(tl.abs(a) + 1.0), mask=o < n)


def test_floats(target):
    n = 300
    a = torch.randn(n) * 5
    y = torch.empty(5, n)
    with ptxemu.emulated(target):
        floats_kernel[(1,)](a, y, n, B=512)
    d = a.double()
    expected = [torch.exp(-d * d), d.abs().sqrt(), d.floor() + d.trunc(), a.half().double() + a.bfloat16().double(),
                1 / (d + 100) + torch.log(d.abs() + 1)]  # fmt: skip
    for found, wanted in zip(y, expected, strict=True):
        assert error(found, wanted) < 3e-7


@triton.jit
def rows_kernel(x_ptr, q_ptr, s_ptr, N, B: tl.constexpr, R: tl.constexpr):
    r, c = tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    x = tl.load(x_ptr + r * N + c, mask=c < N, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 1)[:, None])
    q = e / tl.sum(e, 1)[:, None]
    tl.store(q_ptr + r * N + c, q, mask=c < N)
    tl.store(s_ptr + r * N + c, tl.cumsum(q, 1, reverse=True), mask=c < N)


@pytest.mark.parametrize("rows, width, n, warps", [(4, 64, 50, 4), (16, 32, 21, 1), (8, 1024, 1000, 8), (128, 4, 3, 4)])
def test_reductions_and_scans(rows, width, n, warps, target):
    x, q, s = torch.randn(rows, n), torch.empty(rows, n), torch.empty(rows, n)
    with ptxemu.emulated(target):
        rows_kernel[(1,)](x, q, s, n, B=width, R=rows, num_warps=warps)
    expected = x.double().softmax(1)
    assert error(q, expected) < 3e-7
    assert error(s, expected.flip(1).cumsum(1).flip(1)) < 6e-7


@triton.jit
def product_kernel(
    a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, T: tl.constexpr
):
    i, j, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a = tl.load(a_ptr + i * K + k[None, :])
    if T:
        b = tl.trans(tl.load(b_ptr + tl.arange(0, N)[:, None] * K + k[None, :]))
    else:
        b = tl.load(b_ptr + k[:, None] * N + j)
    tl.store(c_ptr + i * N + j, tl.dot(a, b, input_precision=PRECISION))


@triton.jit
def largest_kernel(x_ptr, y_ptr, R: tl.constexpr, B: tl.constexpr):
    r, c = tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    x = tl.load(x_ptr + r * B + c)
    tl.store(y_ptr + tl.arange(0, R), tl.max(x, 1))
    tl.store(y_ptr + R + tl.arange(0, R), tl.sum(x, 1))


@pytest.mark.parametrize("rows, width, warps", [(4, 32, 1), (2, 128, 4), (16, 8, 2)])
def test_integer_reductions(rows, width, warps, target):
    x, y = torch.randint(-99, 99, (rows, width), dtype=torch.int32), torch.empty(2, rows, dtype=torch.int32)
    with ptxemu.emulated(target):
        largest_kernel[(1,)](x, y, R=rows, B=width, num_warps=warps)
    assert torch.equal(y[0], x.amax(1)) and torch.equal(y[1], x.sum(1).int())


SHAPES = [(16, 16, 16, 1), (64, 32, 32, 4), (128, 64, 64, 4), (64, 16, 64, 8), (128, 128, 32, 8), (32, 64, 16, 2)]
KINDS = [(torch.float32, "tf32", 1e-3), (torch.float32, "tf32x3", 2e-7), (torch.float32, "ieee", 2e-7),
         (torch.float16, "ieee", 2e-7), (torch.bfloat16, "ieee", 2e-7)]  # fmt: skip


@pytest.mark.parametrize("shape, kind, transposed", covering(SHAPES, KINDS, [False, True]))
def test_matrix_products(shape, kind, transposed, target):
    (m, n, k, warps), (dtype, precision, most) = shape, kind
    a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(m, n)
    with ptxemu.emulated(target):
        given = b.T.contiguous() if transposed else b
        product_kernel[(1,)](a, given, c, m, n, k, precision, transposed, num_warps=warps)
    assert error(c, a.double() @ b.double()) < most


@triton.jit
def loop_kernel(n_ptr, y_ptr, B: tl.constexpr):
    """Programs of different lengths; the threads of one diverge in a while loop of scalars only."""
    p = tl.program_id(0)
    total = tl.zeros((B,), tl.int32)
    for k in range(tl.load(n_ptr + p)):
        total += k * tl.arange(0, B)
    tl.store(y_ptr + p * B + tl.arange(0, B), total)


def test_programs_that_take_different_ways(target):
    n = torch.randint(0, 20, (200,), dtype=torch.int32)
    y = torch.empty(200, 64, dtype=torch.int32)
    with ptxemu.emulated(target) as run:
        loop_kernel[(200,)](n, y, B=64)
    assert torch.equal(y, (n * (n - 1) // 2)[:, None] * torch.arange(64, dtype=torch.int32))
    assert run.launches[0].programs == 200


@triton.jit
def add_kernel(x_ptr, i_ptr, y_ptr, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_add(
        y_ptr + tl.load(i_ptr + o, mask=o < n, other=0), tl.load(x_ptr + o, mask=o < n, other=0.0), mask=o < n
    )


def test_atomic_additions(target):
    x, i, y = torch.randn(1000), torch.randint(0, 7, (1000,)), torch.zeros(7)
    with ptxemu.emulated(target):
        add_kernel[(8,)](x, i, y, 1000, B=128)
    assert error(y, torch.zeros(7, dtype=torch.float64).index_add_(0, i, x.double())) < 1e-6


# What it finds ----------------------------------------------------------------------------------------------------


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, step, B: tl.constexpr, MASK: tl.constexpr):
    o = tl.program_id(0) * step + tl.arange(0, B)
    x = tl.load(x_ptr + o, mask=o < n if MASK else None)
    tl.store(y_ptr + o, x + tl.program_id(0), mask=o < n)


@triton.jit
def turn_kernel(x_ptr, y_ptr, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y_ptr + o, tl.load(x_ptr + (o + B) % n))


@triton.jit
def neighbour_kernel(x_ptr, B: tl.constexpr, WAIT: tl.constexpr):
    o = tl.arange(0, B)
    tl.store(x_ptr + o, o)
    if WAIT:
        tl.debug_barrier()
    tl.store(x_ptr + B + o, tl.load(x_ptr + (o + 37) % B))


@triton.jit
def sum_kernel(x_ptr, y_ptr, B: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, 1), tl.sum(tl.load(x_ptr + tl.arange(0, B)), 0) + tl.zeros((1,), tl.float32))


@triton.jit
def divide_kernel(x_ptr, y_ptr, B: tl.constexpr):
    o = tl.arange(0, B)
    tl.store(y_ptr + o, 100 // tl.load(x_ptr + o))


def faults(target, kernel, grid, *args, **options):
    with ptxemu.emulated(target, stop=False) as run:
        kernel[grid](*args, **options)
    return run


def test_an_access_past_the_end(target):
    run = faults(target, copy_kernel, (2,), torch.randn(200), torch.empty(200), 200, 128, B=128, MASK=False)
    (fault,) = run.faults
    assert (
        fault.kind == "bounds" and "past the end of x_ptr (800 bytes)" in fault.detail and "56 threads" in fault.detail
    )
    lines = Path(__file__).read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "x = tl.load(x_ptr + o, mask=o < n if MASK" in text)
    assert fault.where.startswith(f"test_ptxemu.py:{line}:")
    with pytest.raises(ptxemu.KernelFault, match="past the end of x_ptr"), ptxemu.emulated(target):
        copy_kernel[(2,)](torch.randn(200), torch.empty(200), 200, 128, B=128, MASK=False)


def test_programs_that_write_the_same_elements(target):
    run = faults(target, copy_kernel, (3,), torch.randn(300), torch.empty(300), 300, 64, B=128, MASK=True)
    assert {f.kind for f in run.faults} == {"race"} and "y_ptr" in run.faults[0].detail
    run = faults(target, copy_kernel, (3,), torch.randn(300), torch.empty(300), 300, 128, B=128, MASK=True)
    assert not run.faults


@pytest.mark.parametrize("in_place", [True, False])
def test_a_program_that_writes_what_another_reads(in_place, target):
    x = torch.zeros(256)
    run = faults(target, turn_kernel, (2,), x, x if in_place else torch.empty(256), 256, B=128)
    assert [f.kind for f in run.faults] == ["race"] * in_place


@pytest.mark.parametrize("wait", [True, False])
def test_threads_that_do_not_wait_for_each_other(wait, target):
    run = faults(target, neighbour_kernel, (1,), torch.zeros(512, dtype=torch.int32), B=256, WAIT=wait)
    assert [f.kind for f in run.faults] == ([] if wait else ["race"])


def test_a_barrier_that_is_taken_away(target):
    """Every barrier of a sum over warps is needed, but the ones behind its last read."""
    x, y = torch.randn(1024), torch.empty(1)
    with ptxemu.emulated(target, stop=False) as run:
        sum_kernel[(1,)](x, y, B=1024)
        assert not run.faults and error(y, x.double().sum()[None]) < 1e-5
        ((key, (program, signature)),) = run.programs.items()
        lines = program.ptx.splitlines()
        barriers = [n for n, line in enumerate(lines) if re.match(r"\s*bar\.sync", line)]
        found = 0
        for n in barriers:
            changed = "\n".join(lines[:n] + lines[n + 1 :])
            run.programs[key] = ptxemu.Program(changed, program.shared), signature
            run.faults.clear()
            sum_kernel[(1,)](x, y, B=1024)
            found += any(f.kind == "race" for f in run.faults)
    assert barriers and found >= len(barriers) - 1


def test_bank_conflicts_are_counted(target):
    """A transposition through shared memory: Triton pads or swizzles it, and the least is one wavefront a phase."""
    a, b, c = torch.randn(64, 64), torch.randn(64, 64), torch.empty(64, 64)
    with ptxemu.emulated(target, profile=True) as run:
        product_kernel[(1,)](a, b, c, 64, 64, 64, "tf32", True, num_warps=4)
    (profile,) = run.launches
    assert profile.shared_wavefronts >= profile.shared_ideal > 0


def test_memory_that_nobody_wrote(target):
    x = torch.randn(256)
    with ptxemu.emulated(target) as run:
        sum_kernel[(1,)](x, torch.zeros(1), B=256)
        assert not run.notes
        y = torch.zeros(1)
        sum_kernel[(1,)](torch.empty(256), y, B=256)
    assert y.isnan().all()
    ((kernel, note, where),) = run.notes
    assert note == "unwritten x_ptr" and run.notes[kernel, note, where] == (256, 0)


def test_a_division_by_zero(target):
    x = torch.ones(128, dtype=torch.int32)
    x[5] = 0
    run = faults(target, divide_kernel, (1,), x, torch.zeros(128, dtype=torch.int32), B=128)
    assert [f.kind for f in run.faults] == ["division"] and "thread 5" in run.faults[0].detail


def test_sectors_are_counted(target):
    n = 4096
    with ptxemu.emulated(target, profile=True) as run:
        copy_kernel[(n // 128,)](torch.randn(n), torch.empty(n), n, 128, B=128, MASK=True)
    (profile,) = run.launches
    assert profile.sectors["read"] == profile.distinct["read"] == n * 4 // 32 == profile.distinct["written"]
    assert profile.warps["st.global"] == profile.global_instructions["written"]
    assert sum(line[2] for line in profile.lines.values()) == 2 * n * 4 // 32


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_the_high_half_of_a_product(dtype):
    bits, ends = 8 * np.dtype(dtype).itemsize, np.iinfo(dtype)
    a, b = np.array([ends.max, ends.min, 2115, 7], dtype), np.array([ends.max], dtype)
    expected = np.array([int(x) * int(b[0]) >> bits for x in a], dtype)
    assert np.array_equal(mulhi(a, b), expected)

"""What `bench profile` counts: kernels whose instructions, branches and wavefronts are known, and what is predicted."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from bench import floors
from bench.compiled import compilation, profile
from bench.compiled import executed as counting
from bench.compiled.compilation import TARGETS, compile_launch, pretended, specialise
from bench.compiled.executed import Executed, executed, launches_emulated
from bench.compiled.prediction import MACHINES, predicted, product_operations
from bench.compiled.sass import INSTRUCTION, disassembled
from bench.workloads import ConvCRFWork, ExactWork, GuidedWork, Inputs, LatticeWork
from covering import covering
from tritoncrf.kernels.common import Launch

pytestmark = pytest.mark.extras

P = 40  # programs
WARPS = 4


@triton.jit(do_not_specialize=["n", "m"])
def loops_kernel(x_ptr, y_ptr, n, m, KIND: tl.constexpr):
    o = tl.program_id(0) * 128 + tl.arange(0, 128)
    x = tl.load(x_ptr + o)
    a = x
    if KIND == "loop":
        for i in range(n):
            a = a * x + tl.load(x_ptr + o + i)
    elif KIND == "arithmetic":
        for _ in range(n):
            a = a * x + x
    elif KIND == "nested":
        for i in range(m):
            for _ in range(n):
                a = a * x + x
            a += tl.load(x_ptr + o + i)
    elif KIND == "branch":
        if tl.program_id(0) % 2 == 0:
            for i in range(n):
                a = a * x + tl.load(x_ptr + o + i)
        else:
            for i in range(m):
                a = a * x + tl.load(x_ptr + o + i)
    tl.store(y_ptr + o, a)


def counted(kernel, target="sm_90", programs=P, work=1e12, **arguments) -> Executed:
    launch = Launch(kernel, (programs,), arguments, num_warps=WARPS)
    return executed(launch, compile_launch(launch, target), work)


LOOPS = [  # and the products and loads that each makes
    ("loop", 7, 0, 7, 1 + 7),
    ("loop", 23, 0, 23, 1 + 23),
    ("loop", 0, 0, 0, 1),
    ("arithmetic", 6, 0, 6, 1),
    ("nested", 5, 9, 5 * 9, 1 + 9),
    ("branch", 12, 9, (12 + 9) / 2, 1 + (12 + 9) / 2),
    ("branch", 3, 30, (3 + 30) / 2, 1 + (3 + 30) / 2),
]


@pytest.mark.parametrize("loop, target", covering(LOOPS, ["sm_90", "sm_80"], at_once=1))
def test_loops_and_branches_count_as_often_as_they_run(loop, target):
    """Where products are no memory instructions, by which copies of a loop are told."""
    kind, n, m, products, loads = loop
    x, y = torch.randn(P * 128 + 64), torch.empty(P * 128)
    found = counted(loops_kernel, target, x_ptr=x, y_ptr=y, n=n, m=m, KIND=kind)
    kinds = Counter()
    for opcode, count in found.opcodes.items():
        kinds[opcode.split(".")[0]] += count / (P * WARPS)
    assert kinds["FFMA"] == pytest.approx(products, rel=1e-9)
    assert kinds["LDG"] == pytest.approx(loads, rel=1e-9) and kinds["STG"] == kinds["EXIT"] == 1
    assert found.share == 1


def test_fewer_trips_than_ptxas_unrolled_are_nearly_counted():
    x, y = torch.randn(P * 128 + 64), torch.empty(P * 128)
    found = counted(loops_kernel, x_ptr=x, y_ptr=y, n=12, m=2, KIND="branch")
    assert found.opcodes["FFMA"] == pytest.approx(P * WARPS * (12 + 2) / 2, rel=0.03)


def test_a_share_of_the_programs_stands_for_all():
    programs = 2000
    x, y = torch.randn(programs * 128 + 64), torch.empty(programs * 128)
    whole, part = (
        counted(loops_kernel, programs=programs, work=work, x_ptr=x, y_ptr=y, n=3, m=30, KIND="branch")
        for work in (1e12, 1e6)
    )
    assert part.share < 0.1 and whole.share == 1
    assert part.instructions == pytest.approx(whole.instructions, rel=0.03)
    assert part.wavefronts == pytest.approx(whole.wavefronts, rel=0.03)


@triton.jit
def reading_kernel(x_ptr, y_ptr, FIRST: tl.constexpr, STEP: tl.constexpr):
    o = tl.arange(0, 128)
    tl.store(y_ptr + o, tl.load(x_ptr + FIRST + o * STEP))


@pytest.mark.parametrize("dtype, first, step, wavefronts, sectors", [
    (torch.float32, 0, 1, 1, 4),
    (torch.float32, 1, 1, 1, 5),  # of two lines
    (torch.float32, 0, 0, 1, 1),
    (torch.float32, 0, 2, 2, 8),  # each bank holds two
    (torch.float32, 0, 32, 32, 32),  # all in one bank
    (torch.float32, 0, 33, 8, 32),  # in 32 banks, but of 32 lines, four at a time
    (torch.int64, 0, 1, 2, 8),
])  # fmt: skip
def test_wavefronts_of_a_read(dtype, first, step, wavefronts, sectors):
    """Four warps read, and write 128 bytes each, or 256."""
    x, y = torch.zeros(128 * max(1, step) + first, dtype=dtype), torch.zeros(128, dtype=dtype)
    found = counted(reading_kernel, programs=1, x_ptr=x, y_ptr=y, FIRST=first, STEP=step)
    size = x.element_size() // 4
    assert found.wavefronts / WARPS == pytest.approx(wavefronts + size, abs=0.5)
    assert found.sectors / WARPS == pytest.approx(sectors + 4 * size, abs=0.5)


def test_statements_as_lines_leave_the_code_as_it_is(monkeypatch):
    """Of a real kernel, with loops that ptxas unrolls."""
    work = GuidedWork(size=(40, 50), classes=5)
    (kernel,) = [k for k in profile.compiled_kernels(work, "weights") if k.name == "_planes_step_kernel softmax"]
    marked = compile_launch(kernel.launch, "sm_90").code
    monkeypatch.setattr(compilation, "_marking", None)
    with pretended(TARGETS["sm_90"]):
        source, options = specialise(kernel.launch, TARGETS["sm_90"])
        plain = triton.compile(source, target=TARGETS["sm_90"], options=dict(options.__dict__)).asm["cubin"]
    found, expected = (
        [row for row in disassembled(code).splitlines() if INSTRUCTION.match(row)] for code in (marked, plain)
    )
    assert len(found) > 100 and found == expected


def test_a_launch_out_of_bounds_is_not_counted():
    with pytest.raises(RuntimeError, match="reading_kernel: bounds"):
        counted(reading_kernel, programs=1, x_ptr=torch.zeros(64), y_ptr=torch.zeros(128), FIRST=0, STEP=1)


# Predictions ------------------------------------------------------------------------------------------------------


def test_the_busiest_part_is_predicted():
    machine = replace(MACHINES["sm_90"], multiprocessors=1, clock=1.0, rates=floors.Rates(8.0, 1, 1, 4.0))

    def seconds(moved=0, wavefronts=0.0, **opcodes):
        opcodes = Counter({name.replace("_", "."): count for name, count in opcodes.items()})
        found = predicted(Executed(opcodes, wavefronts, 0.0, 1.0), moved, machine)
        return found.bound, found.seconds

    assert seconds(FFMA=8, LDG_E=8) == ("issue", 4)
    assert seconds(IADD3=8, FSETP_GT=4, FFMA=2) == ("int", 6)
    assert seconds(FFMA=8, MUFU_EX2=2) == ("mufu", 4)
    assert seconds(LDG_E=2, wavefronts=3.0, SHFL_BFLY=2) == ("L1", 5)
    assert seconds(FFMA=2, moved=80) == ("bytes", 10)
    assert seconds(HMMA_16816=1) == ("matrix", 2 * 16 * 8 * 16 / 4)


@pytest.mark.parametrize(
    "opcode, operations",
    [("HMMA.16816", 4096), ("HMMA.1688", 2048), ("HGMMA.64x32x16", 2 * 64 * 32 * 16 // 4), ("FFMA", 0)],
)
def test_operations_of_matrix_instructions(opcode, operations):
    assert product_operations(opcode) == operations


# Works ------------------------------------------------------------------------------------------------------------


def test_a_lattice_is_built_from_the_picture():
    """Its tables are those of PyTorch, though no GPU is here."""
    work = LatticeWork(size=(24, 32), classes=3)
    with launches_emulated("sm_90"):
        found = work.filters(Inputs(work, "cpu", backend="triton"))
    vertices = work.facts(found)["vertices"]
    assert vertices == work.facts(work.filters(Inputs(work, "cpu", backend="torch")))["vertices"]
    kernels = profile.compiled_kernels(work, "weights")
    units = dict(profile.unit(kernel, work) for kernel in kernels if "_splat" in kernel.name)
    assert units == {"pair, by warps": 32 * 24 * 32 * 6}  # of the last: the bilateral lattice's


def test_an_exact_filter_is_counted_by_short_lists(monkeypatch):
    """All visits, and what two short lists tell of them."""
    monkeypatch.setattr(counting, "VISITS", (1, 2))
    work = ExactWork(size=(24, 32), classes=3, normalization="none")
    kernels = profile.compiled_kernels(work, "weights")
    kernel = max((k for k in kernels if "_exact_kernel" in k.name), key=lambda k: floors.visited_pairs(k.launch))
    pairs = floors.visited_pairs(kernel.launch)
    assert pairs > floors.visited_pairs(counting.shortened(kernel.launch, 2))
    binary = compile_launch(kernel.launch, "sm_90")
    whole, found = counting._executed(kernel.launch, binary, 1e12), executed(kernel.launch, binary)
    assert found.instructions == pytest.approx(whole.instructions, rel=0.01)
    assert profile.unit(kernel, work) == ("pair", pairs)


def test_the_floor_of_a_window_launch():
    work = ConvCRFWork(5, size=(9, 11), classes=3)
    kernels = profile.compiled_kernels(work, "features")
    pairs = floors.pairs((9, 11), (2, 2))
    (step,) = [k for k in kernels if k.name.endswith("softmax")]
    counted = floors.launched(step.launch, work)
    assert counted.operations == 2 * 3 * pairs and counted.exponentials == pairs
    assert counted.bytes == floors.bytes_of(step.launch) > 3 * 3 * 99 * 4
    gradients = [floors.launched(k.launch, work) for k in kernels if "gradient" in k.name]
    assert gradients and all(g.operations == 4 * 3 * pairs for g in gradients)
    assert profile.unit(step, work) == ("pixel, tap", 99 * 25)

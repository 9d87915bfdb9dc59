"""Every launched configuration, cross-compiled: none spills on sm_80 or sm_90, and every kernel compiles elsewhere too.

`make test` compiles one launch of each kernel for sm_90, `make test-extras` launches that have every constant a kernel is
compiled for, and `make test-slow` all launches.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

from bench import floors  # noqa: E402
from bench.compiled.compilation import TARGETS, compile_all, compile_launch, identity, instruction_mix, unique  # noqa: E402
from bench.compiled.sweep import Configuration, launches_of, sweep  # noqa: E402
from tritoncrf.kernels import common  # noqa: E402
from tritoncrf.kernels.common import Launch, record_launches  # noqa: E402

# Registers are 32 bits, and a thread has 255 of them.
MAX_REGISTERS = 255


@pytest.fixture(scope="module")
def launches():
    return sweep()


def assert_no_spills(binaries):
    spilled = [str(binary) for binary in binaries if binary.spills]
    assert not spilled, "\n".join([f"{len(spilled)} of {len(binaries)} spill:", *spilled])
    assert all(0 < binary.registers <= MAX_REGISTERS for binary in binaries)


def one_of_each(launches):
    """Of every kernel. Matrix weights take `tl.dot`, whose precisions differ between targets; few features make products
    of another form."""
    return {
        (launch.kernel.__name__, launch.arguments.get("MATRIX"), launch.arguments.get("DP") == 8): launch
        for launch in launches
    }.values()


def constants(launch, target):
    """What its kernel is compiled for besides the types of its arguments: (kernel, name, value) of each."""
    values = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    return {(launch.kernel.__name__, *item) for item in {**values, **launch.options(TARGETS[target])}.items()}


def covering(launches, target):
    """A few of them that have every constant of all: the next is always one that adds the most."""
    of_each = [constants(launch, target) for launch in launches]
    left, found = set().union(*of_each), []
    while left:
        best = max(range(len(launches)), key=lambda n: len(of_each[n] & left))
        left -= of_each[best]
        found.append(launches[best])
    return found


def test_no_kernel_spills(launches):
    assert_no_spills(compile_all(one_of_each(launches), "sm_90"))


@pytest.mark.extras
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_no_constant_makes_a_kernel_spill(target, launches):
    assert_no_spills(compile_all(covering(launches, target), target))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_no_launched_configuration_spills(target, launches):
    assert_no_spills(compile_all(launches, target))


def test_the_sweep_holds_widths_that_are_multiples_of_16(launches):
    """They make other kernels of these."""
    aligned = {
        launch.kernel.__name__
        for launch in launches
        if launch.arguments.get("ALIGNED") or any(launch.arguments.get(s, 1) % 16 == 0 for s in ("NX", "lines"))
    }
    boxes = {"_box_kernel", "_products_kernel", "_statistics_kernel", "_coefficients_kernel", "_step_kernel"}
    assert aligned >= boxes | {"_blur_step_kernel", "_blur_step_backward_kernel", "_upsample_adjoint_kernel"}


# Odd, even, and multiples of 16 along either axis or both.
SIZES = [
    (37, 41), (48, 64), (33, 48), (64, 33), (31, 17), (50, 50), (16, 32), (40, 40), (47, 80), (96, 31), (20, 21), (65, 66),
    (32, 32), (19, 128), (57, 23),
]  # fmt: skip


@pytest.mark.parametrize(
    "steps, changes",
    [
        (2, {}),  # one image or several, whose features are their own
        (2, {"weights": "class"}),
        (2, {"blur": 2, "filters": 1}),  # rows of vectors or not
        (2, {"kind": "lattice"}),  # one image or several
        (3, {"kind": "exact"}),  # blocks of classes: one of either length, or several
        (3, {"kind": "guided"}),  # one image, or several with rows of vectors or not
        (3, {"kind": "guided", "radius": 9}),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else None,
)
def test_new_sizes_make_few_new_binaries(steps, changes):
    def binaries(sizes):
        launched = [
            launch
            for n, size in enumerate(sizes)
            for launch in launches_of(Configuration(classes=5, size=size, batch=(1, 3)[n % 2], **changes))
        ]
        return Counter(launch.kernel.__name__ for launch in unique(launched))

    one, all_sizes = binaries(SIZES[:1]), binaries(SIZES)
    assert one.keys() == all_sizes.keys()
    more = {name: (one[name], count) for name, count in all_sizes.items() if count > steps * one[name]}
    assert not more


def test_every_launch_has_bytes_that_it_moves(launches):
    assert all(floors.bytes_of(launch) > 0 for launch in launches)


@pytest.mark.slow
def test_no_combination_spills():
    assert_no_spills(compile_all(sweep(thorough=True), "sm_90"))


@pytest.mark.extras
@pytest.mark.parametrize("target", ["sm_100", "gfx942"])
def test_every_kernel_compiles_for(target, launches):
    assert all(binary.registers > 0 for binary in compile_all(one_of_each(launches), target))


# The machinery itself ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["free"])
def sum_kernel(x_ptr, bias_ptrs, y_ptr, n, free, scale, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0) * scale + free
    if bias_ptrs[1] is not None:
        x += tl.load(bias_ptrs[1] + offsets, mask=offsets < n, other=0.0)
    tl.store(y_ptr + tl.arange(0, 1), tl.sum(x, 0) + tl.zeros((1,), tl.float32))


@triton.jit
def hoarding_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Holds more values than a thread has registers, all needed until the end."""
    offsets = tl.arange(0, BLOCK)
    total = tl.load(x_ptr + offsets)
    for i in range(n):
        total = total * tl.load(x_ptr + i * BLOCK + offsets) + i
    tl.store(y_ptr + offsets, total)


def launch_of(kernel, **arguments) -> Launch:
    return Launch(kernel, (1,), arguments, num_warps=1, num_stages=1)


def sum_launch(bias=False, n=48, free=3, BLOCK=64):
    x = torch.empty(64)
    biases = (x, x if bias else None)
    return launch_of(sum_kernel, x_ptr=x, bias_ptrs=biases, y_ptr=x, n=n, free=free, scale=0.5, BLOCK=BLOCK)


def test_a_spill_is_seen():
    x = torch.empty(1 << 13)
    binary = compile_launch(launch_of(hoarding_kernel, x_ptr=x, y_ptr=x, n=5, BLOCK=1 << 13), "sm_90")
    assert binary.spills and binary.stack > 0 and binary.mix["local"] > 0
    with pytest.raises(AssertionError, match="1 of 1 spill"):
        assert_no_spills([binary])


def test_a_kernel_that_fits_does_not_spill():
    binary = compile_launch(sum_launch(), "sm_90")
    assert not binary.spills
    assert binary.mix["ldg"] > 0 and binary.mix["local"] == 0
    assert binary.constants == {"bias_ptrs[1]": None, "BLOCK": 64}


@pytest.mark.parametrize(
    "changed, same",
    [
        ({"n": 64}, True),  # both divisible by 16
        ({"n": 47}, False),
        ({"n": 1}, False),
        ({"free": 16}, True),  # do_not_specialize
        ({"bias": True}, False),
        ({"BLOCK": 32}, False),
    ],
)
def test_launches_are_told_apart_as_triton_does(changed, same):
    assert (identity(sum_launch()) == identity(sum_launch(**changed))) is same
    assert len(unique([sum_launch(), sum_launch(**changed)])) == (1 if same else 2)


def test_instructions_are_counted_with_and_without_predicates():
    listing = """
        /*0000*/                   LDG.E.128 R4, [R2.64] ;    /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 STL [R1+0x4], R4 ;         /* 0x0000000000007919 */
        /*0020*/             @!UP1 UIADD3 UR4, UR4, 0x1 ;     /* 0x0000000000007919 */
        /*0030*/                   HMMA.1688.F32.TF32 R8, R4, R6, R8 ;
    """
    assert instruction_mix(listing) == Counter(ldg=1, local=1, other=1, matrix=1)


def test_threads_do_not_see_each_others_recording():
    def recorded():
        with record_launches(run=False) as launches:
            common.launch(sum_kernel, (1,), 1, x_ptr=torch.empty(1))
        return len(launches), common.launches_run()

    with ThreadPoolExecutor(1) as pool, record_launches(run=False) as launches:
        assert pool.submit(recorded).result() == (1, True)
        assert launches == [] and not common.launches_run()
        assert recorded() == (1, False) and len(launches) == 1  # a block in a block of one thread
    assert common.launches_run()

"""Aligned and unaligned reads from the L1 cache: the clocks of a multiprocessor for one read by a warp."""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import launch

WARPS = 4
PROGRAMS = 16  # per multiprocessor: 64 warps, which hide the latency of reads
TRIPS = 1000
ROWS = 8  # reads per iteration, at most 16 KB in total
# (dtype, shift, step): a warp's threads read `step` elements apart, from element `shift` on.
FORMS = {
    "4 bytes a thread, from 0": (torch.float32, 0, 1),
    "from 1": (torch.float32, 1, 1),
    "from 4": (torch.float32, 4, 1),
    "from 8": (torch.float32, 8, 1),
    "from 16": (torch.float32, 16, 1),
    "8 bytes a thread, from 0": (torch.int64, 0, 1),
    "8 bytes, from 1": (torch.int64, 1, 1),
    "8 bytes, from 4": (torch.int64, 4, 1),
    "one element": (torch.float32, 0, 0),
    "every 2nd": (torch.float32, 0, 2),
    "every 9th, 9 lines": (torch.float32, 0, 9),
    "every 33rd, 32 lines": (torch.float32, 0, 33),
}


@triton.jit(do_not_specialize=["shift", "step", "n"])
def reads_kernel(x_ptr, y_ptr, shift, step, n, ROWS: tl.constexpr, B: tl.constexpr):
    """Read the same lines in every iteration, from addresses that the compiler cannot know to be equal."""
    o = shift + (tl.arange(0, B) % 32) * step
    total = tl.zeros((B,), x_ptr.dtype.element_ty)
    for i in range(n):
        for row in tl.static_range(ROWS):
            total += tl.load(x_ptr + o + (i % 2) * 32 + row * 128)
    tl.store(y_ptr + tl.program_id(0) * B + tl.arange(0, B), total)


def launch_reads(device, dtype, shift: int, step: int):
    """A call, and the number of warp reads that each multiprocessor makes in it."""
    cuda = torch.device(device).type == "cuda"
    programs = PROGRAMS * (torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1)
    x = torch.zeros(32 * max(step, 1) + shift + 32 + 128 * ROWS, dtype=dtype, device=device)
    y = torch.empty(programs * WARPS * 32, dtype=dtype, device=device)

    def call():
        launch(
            reads_kernel, (programs,), num_warps=WARPS, x_ptr=x, y_ptr=y, shift=shift, step=step, n=TRIPS, ROWS=ROWS,
            B=WARPS * 32,
        )  # fmt: skip

    return call, PROGRAMS * WARPS * TRIPS * ROWS

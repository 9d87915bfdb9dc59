"""The common part of all kernel files: the launch function, and device helpers."""

import contextlib
import contextvars
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from triton.language.target_info import current_target

# For `triton.jit`: values that depend on a size or on the picture must not specialise the binary. Two properties may: a
# size of 1, as for a missing axis, and rows (and products of them) whose length is a multiple of 16, since these are
# read in vectors.
OF_SIZE = {
    "do_not_specialize": ["CHUNKS", "V", "V0", "V1", "E", "TILES", "IMAGES"],
    "do_not_specialize_on_alignment": ["N", "NZ", "NY", "n", "CLASS_BLOCKS", "stride_tm", "first_ptr", "second_ptr"],
}

MOST_REGISTERS = 255  # of a thread

# A context variable, so that threads are independent: the list of recorded launches, and whether they run.
_recorders: contextvars.ContextVar[tuple] = contextvars.ContextVar("recorders", default=())


@dataclass(frozen=True)
class Launch:
    """One requested kernel launch, which tests count and cross-compilation compiles. Arguments
    for each filter of a step form a tuple with one entry per filter.

    fp_fusion: whether a product may fuse with its sum. registers: the limit per thread on NVIDIA; without one, ptxas
    may spill a few to fit one more program on a processor. registers_before_90: the same before compute capability 9.0,
    where matrix products take both operands from registers.
    """

    kernel: object
    grid: tuple
    arguments: dict
    num_warps: int
    num_stages: int = 1
    fp_fusion: bool = True
    registers: int | None = None
    registers_before_90: int | None = None

    def options(self, target) -> dict:
        """The launch options for Triton on `target`, which is None for the interpreter."""
        found = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}
        registers = self.registers
        if target is None or target.backend == "hip":
            registers = None
        elif target.arch < 90 and self.registers_before_90 is not None:
            registers = self.registers_before_90
        return found if registers is None else found | {"maxnreg": registers}

    def run(self):
        """The compiled kernel."""
        return self.kernel[self.grid](**self.arguments, **self.options(current_target()))


_OPTIONS = {field.name for field in fields(Launch)} - {"kernel", "grid", "arguments", "num_warps"}


@contextlib.contextmanager
def record_launches(run: bool = True):
    """Record every launch that this thread makes inside the block, in order.

    With `run=False` nothing is launched and outputs are not written, for cross-compilation on a machine that cannot run
    the kernels.
    """
    recorder = ([], run)
    token = _recorders.set((*_recorders.get(), recorder))
    try:
        with torch.autograd.set_multithreading_enabled(False):  # otherwise a GPU's backward pass uses other threads
            yield recorder[0]
    finally:
        _recorders.reset(token)


def launches_run() -> bool:
    """False inside `record_launches(run=False)`."""
    return all(run for _, run in _recorders.get())


def launch(kernel, grid: tuple, num_warps: int, **given) -> None:
    """Launch `kernel` over `grid`; an empty grid does nothing. `given`: further options of `Launch`, and arguments."""
    if 0 in grid:
        return
    options = {name: given.pop(name) for name in _OPTIONS & given.keys()}
    asked = Launch(kernel, grid, given, num_warps, **options)
    for launches, _ in _recorders.get():
        launches.append(asked)
    if launches_run():
        with torch.cuda.device_of(next(a for a in given.values() if isinstance(a, torch.Tensor))):
            asked.run()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@triton.constexpr_function
def input_precision(precision):
    """How `tl.dot` multiplies float32: "default" keeps float32's accuracy, "fast" rounds inputs to tf32.

    CDNA3 multiplies float32 directly in its matrix units, and has no tf32x3.
    """
    if precision == "fast":
        return "tf32"
    return "ieee" if tl.target_info.is_hip() else "tf32x3"


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b, float32 in and out."""
    return tl.dot(a, b, accumulator, input_precision=input_precision(PRECISION))


@triton.jit
def product(a, b):
    """a b, rounded before it is summed: an fma in the first step of a sum across lanes would round a lane's own product
    differently from its partner's, and the lanes would differ in the last bits."""
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def tile_and_image(tiles):
    """A program's tile and image, with `tiles` per image. Images are on the grid's first axis, after the tiles, because
    the other axes end at 65535."""
    program = tl.program_id(0)
    return program % tiles, (program // tiles).to(tl.int64)


@triton.jit
def image_base(b, N, SHARED: tl.constexpr):
    """The start of image b in a table with N numbers per image: 0 if all images share one table."""
    return 0 if SHARED else b * N


@triton.jit
def scale(scale_ptr, i, m_i, base=0):
    """Normalisation scales of pixels i of the image that begins at `base`, or 1 where there is none."""
    return 1.0 if scale_ptr is None else tl.load(scale_ptr + base + i, mask=m_i, other=0.0)

"""The fewest bytes and operations the work needs, and the time a machine cannot beat.

The floor is the largest of three times: bytes over memory bandwidth, multiply-adds over the fp32 rate,
exponentials over the rate of the special-function units. Sums on the matrix units may go below the second
term, and values found in the L2 cache below the first; then the reason is in the report, not in the floor.
"""

import math
from dataclasses import dataclass

import torch

from bench.timing import seconds_on_gpu


@dataclass(frozen=True)
class Rates:
    """Bytes, fp32 operations (a multiply-add is two) and exponentials per second."""

    bytes: float
    operations: float
    exponentials: float


# Leads for one H200. The bandwidth is measured again where the benchmarks run; the others are data-sheet figures.
H200 = Rates(bytes=4.3e12, operations=67e12, exponentials=3.7e12)


@dataclass(frozen=True)
class Work:
    bytes: int
    operations: int
    exponentials: int

    def __add__(self, other):
        return Work(
            self.bytes + other.bytes, self.operations + other.operations, self.exponentials + other.exponentials
        )

    def __mul__(self, times):
        return Work(self.bytes * times, self.operations * times, self.exponentials * times)

    def floor(self, rates: Rates) -> float:
        """Seconds."""
        return max(self.bytes / rates.bytes, self.operations / rates.operations, self.exponentials / rates.exponentials)


def pairs(size, radii, dilation=(1, 1, 1)) -> int:
    """Pixel pairs (i, j) with j in the window of i and inside the image: n - |t| d along an axis, for tap t."""
    taps = (range(-r, r + 1) for r in radii)
    return math.prod(sum(max(0, n - abs(t) * d) for t in ts) for n, ts, d in zip(size, taps, dilation))


def window_step(classes: int, size, window_size: int, blur: int = 1, itemsize: int = 4) -> Work:
    """One iteration of a ConvCRF with merged kernels on one image.

    bytes       U in, Q in, Q out; Q lives at the low resolution: (C N + 2 C n) itemsize, n = N / blur^2.
                Features are small beside that and shared by all classes; they are not counted.
    operations  one multiply-add per pair and class: 2 C pairs
    exponentials  one per pair: the colour kernel's. The position kernel is the same around every pixel.
    """
    low = [-(-n // blur) for n in size]
    p = pairs(low, (window_size // 2,) * len(low))
    return Work((math.prod(size) + 2 * math.prod(low)) * classes * itemsize, 2 * classes * p, p)


def window_step_backward(classes: int, size, window_size: int, blur: int = 1, itemsize: int = 4) -> Work:
    """The backward of one iteration, to scores and features.

    bytes       dS_{t+1} and Q_t in, dS_t out, dU in and out; Q_t at the low resolution: (4 C N + C n) itemsize
    operations  dQ is the filter again, 2 C pairs; <dF_i, Q_j>, once per ordered pair, another 2 C pairs
    exponentials  one per pair, as forward
    """
    low = [-(-n // blur) for n in size]
    p = pairs(low, (window_size // 2,) * len(low))
    return Work((4 * math.prod(size) + math.prod(low)) * classes * itemsize, 4 * classes * p, p)


def convcrf(batch, classes, size, window_size, blur=1, iterations=5, backward=False) -> Work:
    """The whole loop; with `backward`, a training step's forward and backward."""
    work = window_step(classes, size, window_size, blur)
    if backward:
        work = work + window_step_backward(classes, size, window_size, blur)
    return work * (iterations * batch)


def launched(launch) -> Work:
    """What one launch needs: its tensors once, and for a window kernel the pairs of its window.

    operations    forward and adjoint: 2 C pairs per filter, one filter if merged; feature gradient: 4 C pairs, since
                  the program that owns a pixel computes both <y_i, x_j> and <y_j, x_i>
    exponentials  one per pair and filter
    """
    arguments = launch.arguments
    tensors = {(t.data_ptr(), t.shape): t for t in arguments.values() if isinstance(t, torch.Tensor)}
    moved = sum(t.nbytes for t in tensors.values())
    if "RZ" not in arguments:
        return Work(moved, 0, 0)
    size, radii = ([arguments[f"{name}{axis}"] for axis in "ZYX"] for name in "NR")
    p = launch.grid[1] * pairs(size, radii, [arguments["STEP"]] * 3)
    filters = arguments.get("FILTERS", 1)
    sums = 2 if "gradient_ptr" in arguments else 1 if arguments["MERGE"] else filters
    return Work(moved, 2 * sums * arguments["C"] * p, filters * p)


def measured_rates(device: torch.device) -> Rates | None:
    """The rates of this GPU, its bandwidth from a 1 GiB copy (bytes read plus written); None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(1 << 28, device=device).normal_()
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_on_gpu(lambda: target.copy_(source))
    # The arithmetic rates are Hopper's: on another GPU the floor is its bytes' time at best.
    return Rates(bandwidth, H200.operations, H200.exponentials)

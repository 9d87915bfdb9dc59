"""The least bytes and operations that a work needs, and the least time on a machine.

The floor is the largest of four times: bytes over memory bandwidth, multiply-adds over the fp32 rate, those that
the matrix units can do over their rate in half precision, exponentials over the rate of the special-function
units. A time may be below the second if sums counted at the fp32 rate run on the matrix units, and below the first if
values are in the L2 cache; the report then says so, and the floor stays.
"""

import math
from dataclasses import astuple, dataclass, replace

import torch

from bench.timing import seconds_on_gpu


@dataclass(frozen=True)
class Rates:
    """Bytes, fp32 operations (a multiply-add is two), exponentials, and operations of the matrix units per second."""

    bytes: float
    operations: float
    exponentials: float
    products: float


# Rates of one H200. The bandwidth is measured again when the benchmarks run; the others are data-sheet figures, except
# for the products: half precision on random data.
H200 = Rates(bytes=4.3e12, operations=67e12, exponentials=3.7e12, products=790e12)


@dataclass(frozen=True)
class Work:
    """`products`: operations that are matrix products. `gathered`: bytes of rows gathered one by one, possibly from
    caches; the floor ignores them."""

    bytes: int
    operations: int
    exponentials: int
    products: int = 0
    gathered: int = 0

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __mul__(self, times):
        return Work(*(a * times for a in astuple(self)))

    def floor(self, rates: Rates) -> float:
        """Seconds."""
        return max(getattr(self, name) / rate for name, rate in vars(rates).items())


NOTHING = Work(0, 0, 0)


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
    """The whole loop; with `backward`, the forward and backward pass of a training step."""
    work = window_step(classes, size, window_size, blur)
    if backward:
        work = work + window_step_backward(classes, size, window_size, blur)
    return work * (iterations * batch)


def lattice_build(pixels: int, corners: int) -> Work:
    """One permutohedral lattice; corners = d + 1.

    bytes       features in; barycentric weight, vertex and place in the order of vertices of N (d + 1) pairs out:
                4 N (d + 3 (d + 1)). Sorting these pairs and finding neighbours is what takes the time, and is not
                counted, so no time is near this floor.
    """
    return Work(4 * pixels * (corners - 1 + 3 * corners), 0, 0)


def lattice_filter(classes: int, pixels: int, corners: int, vertices: float, itemsize: int = 4) -> Work:
    """One application of a lattice of M vertices to one image.

    bytes       values in and out: 2 C N itemsize
    operations  a multiply-add per class and pair of pixel and vertex, once splatted and once sliced: 4 C N (d + 1);
                three per class, vertex and axis blurred: 3 C M (d + 1)
    gathered    a row of C values per pair in splat and slice, and four per vertex and axis in the blur (itself, its
                two neighbours, the result): C (2 N + 4 M) (d + 1) itemsize. At 500 x 500, 21 classes and d = 5 splat
                and slice alone are 252 MB, out of the L2 cache for most of them.
    """
    rows, vertices = classes * corners, round(vertices)
    return Work(
        2 * classes * pixels * itemsize, rows * (4 * pixels + 3 * vertices), 0,
        gathered=rows * (2 * pixels + 4 * vertices) * itemsize,
    )  # fmt: skip


def exact_filter(classes: int, pixels: int, features: int, live: float, itemsize: int = 4) -> Work:
    """One application of the exact sum to one image, `live` being the share of pairs that are not skipped.

    bytes         values in and out: 2 C N itemsize
    exponentials  one per ordered pair, live N^2: a program owns the sums of its pixels. Forming a weight once for both
                  its pixels would halve them, and have two programs add to one sum.
    products      the exponent is a product of D features, the messages one of C values: 2 (D + C) live N^2, as if half
                  precision were enough for either. float32's accuracy takes three or four such products.
    """
    pairs = round(live * pixels**2)
    return Work(2 * classes * pixels * itemsize, 0, pairs, 2 * (features + classes) * pairs)


def guided_statistics(pixels: int, channels: int, itemsize: int = 4) -> Work:
    """The statistics of one guide with D channels: the mean, and cholesky's P = D (D + 1) / 2 numbers.

    bytes       guide in, mean and cholesky out: (2 D + P) N itemsize
    operations  P products; a box sum of D + P fields; D^3 / 3 + 2 P for factors and covariances
    """
    triangle = channels * (channels + 1) // 2
    operations = triangle + _box_sum(channels + triangle) + channels**3 // 3 + 2 * triangle
    return Work((2 * channels + triangle) * pixels * itemsize, operations * pixels, 0)


def guided_statistics_backward(pixels: int, channels: int, itemsize: int = 4) -> Work:
    """The gradients of guide and eps from those of mean and Sigma.

    bytes       guide, mean, and the gradients of mean and Sigma in, the guide's gradient out: (4 D + P) N itemsize
    operations  a box sum of D + P fields; products with the mean and with the guide, 2 D^2 each
    """
    triangle = channels * (channels + 1) // 2
    operations = _box_sum(channels + triangle) + 4 * channels**2
    return Work((4 * channels + triangle) * pixels * itemsize, operations * pixels, 0)


def guided_filter(classes: int, pixels: int, channels: int, itemsize: int = 4) -> Work:
    """One application of a guided filter to one image, or of its adjoint, with a guide of D channels; the same for
    every radius.

    bytes       values in and out, 2 C N; the 1 + D coefficients a, b of every class, which a window needs from all its
                pixels, out of the first box and into the second, 2 (1 + D) C N; the guide in both, mean and cholesky
                in the first, (3 D + P) N for all classes. What finds the coefficients in the L2 cache is below this.
    operations  per class and pixel D for I x, 2 D for the covariances, 2 D^2 for a, 2 D for b, 2 D to meet the guide
                again; two box sums of 1 + D fields
    """
    values, triangle = classes * pixels, channels * (channels + 1) // 2
    numbers = 2 * values + 2 * (1 + channels) * values + (3 * channels + triangle) * pixels
    operations = 7 * channels + 2 * channels**2 + 2 * _box_sum(1 + channels)
    return Work(numbers * itemsize, operations * values, 0)


def guided_step(classes: int, pixels: int, channels: int, itemsize: int = 4) -> Work:
    """One iteration of a guidance CRF on one image.

    bytes         the filter's, its values being Q in and Q out; U in, C N itemsize
    operations    the filter's, and a multiply-add with its weight
    exponentials  the softmax's C N
    """
    values = classes * pixels
    return guided_filter(classes, pixels, channels) + Work(values * itemsize, 2 * values, values)


def guided_step_backward(classes: int, pixels: int, channels: int, learns: str, itemsize: int = 4) -> Work:
    """The backward of one iteration, to scores and weights, with `learns` "features" to guide and eps as well.

    bytes       the adjoint's, its values being dS_{t+1} in and dS_t out; Q_t in, dU in and out, 3 C N itemsize;
                for features, the coefficients of Q_t and of dS_{t+1} out and in again, and the gradients of guide, mean
                and Sigma out
    operations  the adjoint's, <B, Q_t> and a multiply-add with the weight, 4 C N; for features the filter twice more,
                of Q_t and of dS_{t+1}, and per class and pixel 4 D multiply-adds for mean and guide, 2 P for Sigma
    """
    values, triangle = classes * pixels, channels * (channels + 1) // 2
    work = guided_filter(classes, pixels, channels) + Work(3 * values * itemsize, 4 * values, 0)
    if learns == "features":
        numbers = 4 * (1 + channels) * values + (2 * channels + triangle) * pixels
        filters = replace(guided_filter(classes, pixels, channels), bytes=0) * 2
        work += filters + Work(numbers * itemsize, (8 * channels + 4 * triangle) * values, 0)
    return work


def _box_sum(fields: int, axes: int = 2) -> int:
    """Operations per pixel: along each axis a running sum adds one number and subtracts one; then the division by the
    area."""
    return (2 * axes + 1) * fields


def full_step(filters: list[Work], classes: int, pixels: int, itemsize: int = 4) -> Work:
    """One iteration of a fully connected CRF on one image; `filters`: an application of each, whose values stay in
    cache or registers.

    bytes         U in, Q in, Q out: 3 C N itemsize
    exponentials  the softmax's C N besides those of the filters
    """
    values = classes * pixels
    return _within(filters) + Work(3 * values * itemsize, 0, values)


def full_step_backward(filters: list[Work], classes: int, pixels: int, learns: str, itemsize: int = 4) -> Work:
    """The backward of one iteration, to scores and weights, with `learns` "features" to those as well.

    bytes       dS_{t+1} and Q_t in, dS_t out, dU in and out: 5 C N itemsize
    operations  dQ is the filters again; <B_m, Q_t> is a multiply-add per filter, class and pixel; the gradient of
                features takes the filters twice more, of Q_t and of dS_{t+1}
    """
    values = classes * pixels
    work = Work(5 * values * itemsize, 2 * len(filters) * values, 0)
    return work + _within(filters) * (3 if learns == "features" else 1)


def _within(filters: list[Work]) -> Work:
    """The needs of filters except their bytes."""
    return sum((replace(f, bytes=0) for f in filters), NOTHING)


def launched(launch, work) -> Work:
    """The needs of one launch of a work's step: its tensors once, and for the kernels that are bound by their sums

    window  2 C operations a pair of pixels of the window, 4 C for the features' gradient, whose program computes both
            <y_i, x_j> and <y_j, x_i>; one exponential, that of the colours
    exact   one exponential and 2 (C + D) operations of products a pair that is visited, for the gradient twice as many
    """
    moved, name = Work(bytes_of(launch), 0, 0), launch.kernel.__name__
    gradient, classes = 2 if "gradient" in name else 1, classes_of(launch, work)
    if work.filter == "window" and "window" in name:
        p = work.batch * pairs(low_size(work), (work.window_size // 2,) * len(work.size))
        channels = launch.arguments.get("D", 1)  # absent if features are positions
        colours = any(channels) if isinstance(channels, tuple) else channels > 0
        return moved + Work(0, 2 * gradient * classes * p, p * colours)
    if p := visited_pairs(launch):
        return moved + Work(0, 0, p, 2 * (classes + launch.arguments["D"]) * p * gradient)
    return moved


def classes_of(launch, work) -> int:
    """The classes of a launch: those of the work, or 1 for the sums that normalise a filter."""
    found = launch.arguments.get("CLASSES", launch.arguments.get("C"))
    return found if isinstance(found, int) else work.classes


def bytes_of(launch) -> int:
    """The bytes of its tensors, each once."""
    entries = [e for a in launch.arguments.values() for e in (a if isinstance(a, tuple) else (a,))]
    tensors = {(t.data_ptr(), t.shape): t for t in entries if isinstance(t, torch.Tensor)}
    return sum(t.nbytes for t in tensors.values())


def low_size(work) -> list[int]:
    """The number of pixels at the resolution of a ConvCRF's window."""
    return [-(-n // work.blur) for n in work.size]


def visited_pairs(launch) -> int:
    """Pairs of pixels in the blocks that an exact kernel visits, including each block with itself; 0 for other
    kernels."""
    arguments = launch.arguments
    if "columns_ptr" not in arguments:
        return 0
    return (arguments["columns_ptr"].numel() + arguments["turn_ptr"].numel()) * arguments["BLOCK"] ** 2


def measured_rates(device: torch.device) -> Rates | None:
    """The rates of this GPU, its bandwidth from a 1 GiB copy (bytes read plus written); None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(1 << 28, device=device).normal_()
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_on_gpu(lambda: target.copy_(source))
    # The arithmetic rates are Hopper's; on another GPU only the time of the bytes is a valid floor.
    return replace(H200, bytes=bandwidth)

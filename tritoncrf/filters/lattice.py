"""The Gaussian filter over all pixels by the permutohedral lattice: the user's filter, and its plan and operator."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from tritoncrf import checks, kernels, reference, replay
from tritoncrf.backends import launches_run, modules, resolve
from tritoncrf.devices import expect_device
from tritoncrf.features import spatial
from tritoncrf.filters.base import Gaussian, GaussianOperator, GaussianPlan, checked_features, gaussian_fields, summed
from tritoncrf.filters.plan import (
    Context,
    Plan,
    contiguous_like,
    fits_in_registers,
    operator,
    refuse_second_derivative,
)
from tritoncrf.reference import simplex
from tritoncrf.reference.lattice import ScaledLattice, image_of
from tritoncrf.step import Step, few_threads, scaled
from tritoncrf.types import Backend, Normalization, Padding, Precision, Theta

# Share of K_ii: if the weights of all other pixels sum to less, the rest of K 1 is mostly the error of K_ii.
ISOLATED = 0.5
CACHE_BYTES = 256 << 20
TABLES = 7  # tensors of a built lattice
PADDINGS: tuple[Padding, ...] = get_args(Padding)

# glibc returns freed memory to the system, to be requested again page by page, beyond twice the largest freed block
# below 32 MB. That takes a tenth of the time of a photo with few classes. This block raises the limit and is never
# touched.
bytearray(31 << 20)


class Lattice(Gaussian):
    r"""Gaussian messages between all pixels, approximated on the permutohedral lattice in O(N).

    .. math::
        K x \approx \sum_j \exp(-|f_i - f_j|^2 / 2)\, x_j, \qquad
        K = \alpha\, \mathrm{slice}\, \mathrm{blur}_D \cdots \mathrm{blur}_0\, \mathrm{splat}

    Values are splatted on the lattice vertices around each pixel, blurred along the D + 1 lattice axes and sliced
    (Adams, Baek and Davis 2010; Krähenbühl and Koltun 2011; CRF-RNN, section 5). The lattice is built here, once,
    for all classes, iterations and the backward pass. K is not quite symmetric: its adjoint, which gradients use,
    blurs in the reverse order. Compared with the exact sum of `filters.Exact`, normalised messages have an error of
    about 1 % (position) and 2 to 9 % (position and colour) on photos (`tritoncrf experiments lattice`). Without
    normalisation K is the raw lattice, whose row sums are mostly 0.4 to 0.9 of the Gaussian's. With r = K 1:
    "before" K (x / r), "after" K x / r, "symmetric" r^-1/2 K (r^-1/2 x).

    Args:
        features: floating, [B, D, *S] or [1, D, *S], 1 to 3 spatial axes (a point set is [B, D, N]), D of any size,
            already divided by the bandwidths (`tritoncrf.features` makes them). Gradients reach them: those of the
            lattice's own function, which is discontinuous where a pixel changes its simplex. The order of the D
            features, and their origin, change the result within the lattice's error. If an image's lattice coordinates
            would exceed 65536, its features are first shifted by whole periods of the lattice, which does not change
            the result. So only the range of the features is limited, not the distance of their origin.
        include_self: whether a pixel's own value is included. Without it, the K_ii of a lattice with all its vertices
            is subtracted, which is too much where vertices are missing. With normalisation, a pixel whose other
            weights sum to less than half its K_ii therefore receives nothing.
        normalization: "none", "before", "after" or "symmetric".
        precision: "default" keeps float32's accuracy; "fast" multiplies a [C, C] compatibility in tf32 on a GPU.
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".
        padding: "four" adds the vertices around features of 0 if the number of pixels is not a multiple of four. So do
            pydensecrf and the CRF-RNN codes on a CPU, which process four pixels at a time and pad the last four with
            zeros. The padding has no values and receives none, but the blur passes through its vertices. This matters
            if pixels are near 0 but none is at 0: much for images of few pixels, hardly for photos.

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Building synchronises with
    a GPU; applying does not. Sums are made in a fixed order: the same bits every time.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds; the features are so far apart (a theta is so small)
            that float32 cannot represent their place on the lattice.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> K = tc.filters.Lattice(tc.features.bilateral(image, 80, 13), normalization="symmetric")
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    def __init__(
        self, features: torch.Tensor, include_self: bool = True, normalization: Normalization = "none",
        precision: Precision = "default", backend: Backend = "auto", *, padding: Padding | None = None,
    ) -> None:  # fmt: skip
        if padding is not None:
            checks.expect_choice("padding", padding, PADDINGS)
        features = checked_features(features)
        plan = LatticePlan(
            **gaussian_fields(features, include_self, normalization, precision, backend), padding=padding
        )
        resolved = resolve(backend, features.device, features.dtype)
        tensors = build(features.flatten(2), resolved, padding is not None)[:TABLES]
        if not include_self:
            tensors = [*tensors, _self_weights(tensors[0]).view(len(features), 1, *features.shape[2:])]
        self.prepare(plan, features, tensors)

    @classmethod
    def spatial(
        cls, size: Sequence[int], theta: Theta, spacing: Theta | None = None, include_self: bool = True,
        normalization: Normalization = "none", precision: Precision = "default", backend: Backend = "auto", *,
        flip: bool = False, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    ) -> "Lattice":  # fmt: skip
        """The lattice of pixel positions alone, `Lattice(features.spatial(size, theta, spacing), ...)`.

        If theta and spacing are plain numbers, it does not depend on the image. The last few are cached: on each device
        up to 256 MB, or a tenth of the free memory if that is less. `tritoncrf.clear_cache` frees them. A lattice that
        was requested while a CUDA graph was captured is never freed, because the graph reads it.

        Args:
            size, theta, spacing, device, dtype: see `features.spatial`.
            include_self, normalization, precision, backend: see `Lattice`.
            flip: use the axes in reverse order, (x, y) instead of (row, column), as CRF-RNN and pydensecrf do; the
                lattice depends on the order.

        Returns:
            The filter, with batch 1, which can be used for any batch.

        Raises:
            TypeError, ValueError: as `features.spatial` and `Lattice`.

        Example:
            >>> K = Lattice.spatial((20, 30), theta=3, normalization="symmetric")
            >>> K(torch.rand(2, 4, 20, 30)).shape
            torch.Size([2, 4, 20, 30])
        """
        options = include_self, normalization, precision, backend
        checks.expect_bool("flip", flip)
        device = None if device is None else expect_device(device)

        def built(device: torch.device | str | None = device) -> Lattice:
            positions = spatial(size, theta, spacing, device=device, dtype=dtype)
            return cls(positions.flip(1) if flip else positions, *options)

        key = _key(size, theta, spacing, *options, flip, dtype)
        if key is None or torch.compiler.is_compiling() or not launches_run():
            return built()
        device = torch.empty(0, device=device).device  # with its index, if there are several
        key = (*key, device)
        kept = _cache.get(key) or _captured.get(key)
        if kept is None:
            with torch.inference_mode(False):  # a cached lattice must also work in training
                kept = built(device)
            if device.type == "cuda":  # and other streams
                torch.cuda.current_stream(device).synchronize()
            _keep(key, kept)
        else:
            _serve(key, kept)
        return kept

    def row_sums(self) -> torch.Tensor:
        """r = K 1; infinite, so that messages vanish, where there is hardly any weight except a pixel's own."""
        r = super().row_sums()
        return r if len(self.tensors) == TABLES else torch.where(r > ISOLATED * self.tensors[TABLES], r, torch.inf)


_cache: OrderedDict[Hashable, Lattice] = OrderedDict()
_captured: dict[Hashable, Lattice] = {}  # CUDA graphs may read these
_lock = threading.Lock()


def clear_cache() -> None:
    """Free the lattices of pixel positions that `filters.Lattice.spatial` caches, and what `refine` keeps on GPUs to
    repeat calls of the same shape.

    A lattice that is still in use is kept, also by a CUDA graph during whose capture it was requested.

    Example:
        >>> import tritoncrf as tc
        >>> tc.clear_cache()
    """
    with _lock:
        _cache.clear()
    replay.clear()


def limit_cache(most: int) -> None:
    """Limit the bytes of cached lattices of pixel positions on each device."""
    global CACHE_BYTES
    CACHE_BYTES = most


def _keep(key: Hashable, lattice: Lattice) -> None:
    """Cache a new lattice, and as many of the others on its device as memory allows, the last used first."""
    device = lattice.tensors[0].device
    left = min(CACHE_BYTES, _free_memory(device) // 10)
    with _lock:
        _cache[key] = lattice
        for other, kept in reversed([*_cache.items()]):
            if kept.tensors[0].device != device:
                continue
            size = sum(t.nbytes for t in kept.tensors)
            if size > left:
                del _cache[other]
            else:
                left -= size


def _serve(key: Hashable, lattice: Lattice) -> None:
    """Note that a cached lattice is in use, and that its memory must outlive its readers on this stream."""
    device = lattice.tensors[0].device
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
        if device.type != "cuda":
            return
        if torch.cuda.is_current_stream_capturing():
            _captured[key] = lattice
    for t in lattice.tensors:
        t.record_stream(torch.cuda.current_stream(device))


def _free_memory(device: torch.device) -> int:
    """The free bytes on a device; a very large number if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 1 << 62


def _key(*arguments: Any) -> tuple[Hashable, ...] | None:
    """The arguments and their types (1 is not True) as a key, or None if one is not a plain value but, for instance, a
    tensor."""
    plain = int, float, str, bool, torch.dtype, type(None)
    arguments = tuple(tuple(a) if isinstance(a, (list, tuple)) else a for a in arguments)
    flat = [value for a in arguments for value in (a if isinstance(a, tuple) else (a,))]
    return (*arguments, *map(type, flat)) if all(isinstance(value, plain) for value in flat) else None


def _self_weights(weights: torch.Tensor) -> torch.Tensor:
    """K_ii = alpha sum_rs b_ir b_is walks_rs where all vertices exist, [Bf, N, D + 1] -> [Bf, N].

    walks_rr = 1 + 2^-D, walks_rs = 2^-|r - s| + 2^-(D + 1 - |r - s|): the walks along distinct axes from r to s.
    """
    corners = weights.shape[2]
    r = torch.arange(corners, device=weights.device)
    apart = (r[:, None] - r).abs()
    walks = torch.exp2(-apart.to(weights.dtype)) + torch.exp2((apart - corners).to(weights.dtype))
    walks = torch.where(apart == 0, 1 + 2.0 ** (1 - corners), walks)
    # Row by row, because autocast would round a matrix product to half precision.
    total = sum(b * (weights * row).sum(2) for b, row in zip(weights.unbind(2), walks))
    return total / (1 + 2.0 ** (1 - corners))


@operator("lattice")
def build(features: torch.Tensor, backend: str, padded: bool) -> list[torch.Tensor]:
    """The tensors of a `reference.lattice.Lattice` of features [Bf, D, N], padded to fours or not, and
    `simplex.far_periods`."""
    padded = padded and features.shape[2] % 4 != 0
    if padded:
        features = simplex.with_origin(features)
    images, d, pixels = features.shape
    if images * pixels * (d + 1) > (1 << 31) - 1 - simplex.CHUNK:
        raise ValueError(
            f"features: expected fewer than 2^31 pairs of a pixel and a lattice vertex, got {list(features.shape)}"
        )
    shift = features.new_empty((0, d), dtype=torch.float64)
    with few_threads(features.device, images * pixels * (d + 1)):
        found = _connected(features, backend)
        if found is None:
            ends, shift = _ends_and_shift(features)
            if len(shift):
                features, ends = simplex.shifted(features, shift), ends - shift
                found = _connected(features, backend)
        if found is None:
            found = _connected_on_host(features, ends, backend)
    weights, vertices, *tables = found
    found = [weights.contiguous(), vertices.view(weights.shape), *tables]
    if padded:
        found = _without_last(found, backend)
    return [*found, shift.to(features.device)]


def _connected(features: torch.Tensor, backend: str) -> Sequence[torch.Tensor] | None:
    """Weights and tables, built without reading anything but their sizes on the host; None if that is not possible."""
    if backend == "torch" or features.numel() == 0:
        return None
    return kernels.simplex.connected(features, simplex.CHUNK, simplex.MAX_COORDINATE, simplex.MAX_CODES)


def _connected_on_host(features: torch.Tensor, ends: torch.Tensor, backend: str) -> Sequence[torch.Tensor]:
    """Weights and tables whose codes are laid out on the host; an error if features are too far apart. PyTorch connects
    the vertices in any backend: where Triton does not, their codes are several integers each."""
    images, d, pixels = features.shape
    least, most = (ends[0].amin(0), ends[1].amax(0)) if images else ends.new_zeros((2, d))
    layout = simplex.key_layout(least.tolist(), most.tolist(), images, pixels)
    weights, codes, simplices = modules(backend).simplex.simplex(features, layout)
    return weights, *simplex.connect(codes, simplices, layout, chunked=backend != "torch")


def _without_last(tensors: list[torch.Tensor], backend: str) -> list[torch.Tensor]:
    """The tensors of a lattice without the last pixel of each image, but with its vertices."""
    lattice = reference.lattice.Lattice(*tensors)
    pixels, corners = lattice.weights.shape[1:]
    pairs, starts = simplex.without_last(lattice.sorted_pairs, lattice.segments, pixels, corners)
    tables = simplex.pair_tables(starts, chunked=backend != "torch")
    weights, vertices = (t[:, : pixels - 1].contiguous() for t in (lattice.weights, lattice.vertices))
    return [weights, vertices, lattice.neighbours, pairs, *tables]


def _ends_and_shift(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds [2, Bf, D] of features [Bf, D, N], and `simplex.far_periods`; on the CPU."""
    ends = torch.stack([features.amin(2), features.amax(2)]).cpu().double()  # aminmax is many times slower
    return ends, simplex.far_periods(ends)


def near_features(features: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """float64 features [Bf, D, N] in float32, after the shift of distant ones as in `build`; and whether any were
    shifted."""
    shift = _ends_and_shift(features)[1]
    return simplex.shifted(features, shift).float(), len(shift) > 0


@build.register_fake
def _(features: torch.Tensor, backend: str, padded: bool) -> list[torch.Tensor]:
    (images, d, pixels), new = features.shape, features.new_empty
    vertices, chunks, groups, shifted = (torch.library.get_ctx().new_dynamic_size() for _ in range(4))
    sizes: list[Sequence[int | torch.SymInt]] = [
        (images, pixels, d + 1), (d + 1, vertices, 2), (images * pixels * (d + 1),), (chunks,), (groups,),
        (vertices,),
    ]  # fmt: skip
    tables = [new(size, dtype=torch.int32) for size in sizes]
    return [new((images, pixels, d + 1)), *tables, new((shifted, d), dtype=torch.float64)]


@operator("lattice_backward")
def build_backward(
    features: torch.Tensor, shift: torch.Tensor, d_weights: torch.Tensor, backend: str
) -> torch.Tensor:  # fmt: skip
    gradient: torch.Tensor = modules(backend).simplex.simplex_gradient(simplex.shifted(features, shift), d_weights)
    return gradient.contiguous()


@build_backward.register_fake
def _(features: torch.Tensor, shift: torch.Tensor, d_weights: torch.Tensor, backend: str) -> torch.Tensor:
    return contiguous_like(features)


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    features, ctx.backend, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(features, output[TABLES])


def _backward(ctx: Context, cotangents: list[torch.Tensor]) -> tuple[Any, ...]:
    return build_backward(*ctx.saved_tensors, cotangents[0].contiguous(), ctx.backend), None, None


build.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivative(build_backward)


@dataclass(frozen=True)
class LatticePlan(GaussianPlan):
    """The plan of `Lattice`; its tensors are those of `build`, K_ii if it is subtracted, and the scales in use."""

    padding: str | None = None

    @property
    def tensor_count(self) -> int:
        return TABLES + (not self.include_self) + self.scale_count

    def operator(self, tensors: list[torch.Tensor], budget: float = 0) -> "LatticeOperator":
        return LatticeOperator(self, tensors)

    def step(self, plans: Sequence[Plan], mixing: Sequence[torch.Tensor], unary: torch.Tensor) -> type[Step]:
        """Lattices run as one fused step: in PyTorch any number, sliced in one pass; in Triton one or two, whose slice
        also does the rest of the step."""
        alike = all(
            isinstance(p, LatticePlan) and p.include_self and p.backend == self.backend
            and p.precision == self.precision for p in plans
        )  # fmt: skip
        kind = Step
        if alike and self.backend == "torch":
            kind = reference.lattice.LatticeStep
        elif alike and len(plans) <= 2 and fits_in_registers(kernels.lattice, mixing, unary.shape[1]):
            kind = kernels.lattice.LatticeStep
        return kind


class LatticeOperator(GaussianOperator):
    """A built lattice, with the scales of its normalisation at the input and the output."""

    def __init__(self, plan: LatticePlan, tensors: list[torch.Tensor]) -> None:
        super().__init__(plan, tensors)
        lattice = reference.lattice.Lattice(*tensors[:TABLES])
        self.lattice, self.module = lattice, modules(plan.backend).lattice
        self.self_weights = None if plan.include_self else tensors[TABLES]  # K_ii, [Bf, 1, *S]
        self.entry, self.exit = ScaledLattice(lattice, self.scale_in), ScaledLattice(lattice, self.scale_out)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, self.entry, self.exit, reverse=False)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._run(y, self.exit, self.entry, reverse=True)

    def _run(self, x: torch.Tensor, entry: ScaledLattice, exit: ScaledLattice, reverse: bool) -> torch.Tensor:
        """K x with both scales, or K^T x with the blurs in reverse order."""
        with few_threads(x.device, x.numel()):
            rows = self.module.rows_of(x)
            v = self.module.filtered(rows, entry, reverse)
            found = image_of(self.module.sliced(v, exit, len(rows)), x)
        if self.self_weights is None:
            return found
        return found - scaled(scaled(self.self_weights * x, entry.scale), exit.scale)

    def bare_gradients(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        module, bare = self.module, ScaledLattice(self.lattice, None)
        with few_threads(x.device, x.numel()):
            rows_x, rows_y = module.rows_of(x), module.rows_of(y)
            forward, back = module.filtered(rows_x, bare, reverse=False), module.filtered(rows_y, bare, reverse=True)
            found = [module.weights_gradient(rows_x, rows_y, self.lattice, forward, back)]
        if self.self_weights is not None:
            found.append(summed(-x * y, self.shared))

        def message(v: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            plain = image_of(module.sliced(v, bare, len(rows_x)), x)
            return plain if self.self_weights is None else plain - self.self_weights * own

        return found, lambda: message(forward, x), lambda: message(back, y)

"""The windowed Gaussian filter of ConvCRF: the user's filter, and its plan and operator for both backends."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tritoncrf import checks, kernels
from tritoncrf.backends import modules
from tritoncrf.features import are_evenly_spaced
from tritoncrf.filters.base import (
    Gaussian,
    GaussianOperator,
    GaussianPlan,
    centred,
    checked_features,
    gaussian_fields,
    mask_of,
    pooled,
    resized,
)
from tritoncrf.filters.plan import Plan, fits_in_registers
from tritoncrf.reference import blur
from tritoncrf.reference.blur import wants_spare
from tritoncrf.step import KEPT_STATES, Step, from_3d, per_axis, scaled, to_3d
from tritoncrf.types import Backend, Normalization, Precision

MAX_WINDOW = 31
FAR = 1e3  # exp(-FAR^2 / 2) is 0


class Window(Gaussian):
    r"""Exact Gaussian messages in a window around each pixel.

    .. math::
        (K x)_i = \sum_{\delta} k_{i, i + \delta}\, x_{i + \delta}, \qquad
        k_{ij} = \exp(-|f_i - f_j|^2 / 2)

    over :math:`\delta` in a square (cube) of `window_size` pixels a side, without pixels outside the image, the
    same for all classes (Teichmann and Cipolla 2018, ConvCRF, section 4). With `blur` b > 1 features and values
    are averaged over b x b blocks, filtered at that resolution and upsampled bilinearly: a window of
    b * `window_size` pixels. With `normalization` and r = K 1: "before" K (x / r), "after" K x / r,
    "symmetric" r^-1/2 K (r^-1/2 x).

    Args:
        features: floating, [B, D, *S] or [1, D, *S], 1 to 3 spatial axes, already divided by the
            bandwidths (`tritoncrf.features` makes them). Gradients reach them. Only differences matter: a distant
            origin costs no accuracy as long as the dtype of the features represents the differences.
        window_size: side of the window in pixels, odd, 1 to 31.
        dilation: distance between neighbouring taps in pixels; taps outside the image are left out.
        blur: the window works at a resolution lower by this factor; 1 is full resolution. From the side of the image
            on, it is the mean of all pixels.
        include_self: whether the centre of the window, whose weight is 1, is included.
        normalization: "none", "before", "after" or "symmetric".
        precision: "default" keeps float32's accuracy; "fast" multiplies a [C, C] compatibility in tf32 on a GPU, the
            only matrix product of a window.
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".
        valid: the pixels that contain data, bool, [B, *S] or [1, *S]; None for all. The others are treated as outside
            the image: they send nothing, receive messages of 0, and their features are not read. With `blur`, means are
            over the valid pixels of a block, and upsampling leaves out blocks without any.

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Memory O(B C N).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> K = tc.filters.Window(tc.features.bilateral(image, 80, 13), window_size=5)
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    def __init__(
        self, features: torch.Tensor, window_size: int, dilation: int = 1, blur: int = 1, include_self: bool = True,
        normalization: Normalization = "none", precision: Precision = "default", backend: Backend = "auto",
        valid: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        blur = checks.expect_int("blur", blur, 1)
        positions = are_evenly_spaced(features) and blur == 1
        mask = mask_of("features", features, valid)
        seen = None if positions else mask  # kernels read the first and the last position, valid or not
        features = centred(checked_features(features, seen), seen)
        if mask is not None:
            features = features.expand(mask.shape[0], *features.shape[1:])
        plan = WindowPlan(
            window_size=checks.expect_int("window_size", window_size, 1, MAX_WINDOW, odd=True),
            dilation=checks.expect_int("dilation", dilation, 1),
            blur=blur,
            positions=positions,
            masked=mask is not None,
            spare=wants_spare(features.shape[2:], blur),
            **gaussian_fields(features, include_self, normalization, precision, backend),
        )
        low = pooled(features, plan.blur, plan.spare)
        if mask is None:
            self.prepare(plan, features, [low])
        else:
            low, ends = among_valid(low, mask.to(features.dtype), plan.blur, plan.spare)
            self.prepare(plan, features, [low], ends)


def among_valid(
    low: torch.Tensor, mask: torch.Tensor, factor: int, spare: bool = False
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Restrict a window to the pixels of a mask of 1 and 0: features [Bf, D, *S], averaged over the valid pixels of a
    block, and scales in and out, [Bf, 1, *S].

        pool' x = pool(mask x) / pool(mask) ,   up' z = mask up(there z) / up(there)

    where `there` is 1 for blocks with a valid pixel. A block's 1 / pool(mask) can be applied at its pixels, and blocks
    without any get features so far from all others that no message reaches them. What remains are scales of pixels,
    mask / pool(mask) and mask / up(there).
    """
    if factor == 1:
        return low, (mask, mask)
    axes = mask.ndim - 2
    full, factors = to_3d(mask), per_axis(factor, axes, 1)
    share = blur.pool(full, factors, spare)
    empty = (share == 0).to(mask.dtype)
    share = share + empty
    # Not up(there): without empty blocks this is exactly 1.
    seen = 1 - blur.upsample(empty, full.shape[2:], factors)
    ends = mask / from_3d(blur.spread(share, full.shape[2:], factors), axes), mask / from_3d(seen + (1 - full), axes)
    low = low / from_3d(share, axes)
    far = 2 * low.detach().abs().amax(tuple(range(1, low.ndim)), keepdim=True) + FAR
    return torch.where(from_3d(empty, axes) > 0, far, low), ends


@dataclass(frozen=True)
class WindowPlan(GaussianPlan):
    """The plan of `Window`; its tensors are low-resolution features and the scales in use.

    positions: the features are evenly spaced positions.
    masked: some pixels are not valid; there are scales on both sides, which are 0 there.
    spare: the features were made with symbolic sizes, and have a spare block on every axis; see `reference.blur`.
    """

    window_size: int
    dilation: int
    blur: int
    positions: bool
    masked: bool
    spare: bool

    in_graph = True

    @property
    def scaled_in(self) -> bool:
        return self.masked or super().scaled_in

    @property
    def scaled_out(self) -> bool:
        return self.masked or super().scaled_out

    @property
    def alike(self) -> bool:
        """Whether both sides have the same scale or none."""
        return self.normalization in ("none", "symmetric") and not (self.masked and self.blur > 1)

    @property
    def tensor_count(self) -> int:
        return 1 + self.scale_count

    def operator(self, tensors: list[torch.Tensor], budget: float = 0) -> "WindowOperator":
        return WindowOperator(self, tensors, budget)

    def reach(self, axes: int) -> tuple[int, ...]:
        """With blur a pixel reads the blocks on either side of its own."""
        blocks = self.window_size // 2 * self.dilation + (self.blur > 1)
        return (blocks * self.blur,) * axes

    @property
    def block(self) -> int:
        return self.blur

    def affords(self, budget: float, axes: int) -> bool:
        """Whether half a window of weights fits in `budget` numbers per pixel of full resolution."""
        return self.window_size**axes // 2 / self.blur**axes <= budget

    def step(self, plans: Sequence[Plan], mixing: Sequence[torch.Tensor], unary: torch.Tensor) -> type[Step]:
        """Windows of one geometry run as one fused step: in Triton one or two, with one launch per iteration or two
        with blur; in PyTorch any number with scalar weights, as one sum of their kernels."""
        keys = "window_size", "dilation", "blur", "precision", "backend"
        windows = [
            p for p in plans if isinstance(p, WindowPlan) and all(getattr(p, k) == getattr(self, k) for k in keys)
        ]
        classes, axes, kind = unary.shape[1], unary.ndim - 2, Step
        if len(windows) < len(plans):
            return Step
        if self.backend != "triton":
            symmetric = all(p.alike and (self.blur == 1 or not p.scaled_in) for p in windows)
            fits = self.affords(KEPT_STATES * classes, axes) and all(a.ndim == 0 for a in mixing)
            kind = modules(self.backend).window.MergedStep
            return kind if symmetric and fits else Step
        fits, kind = fits_in_registers(kernels.window, mixing, classes), kernels.window.WindowStep
        if self.blur > 1:
            fits, kind = fits and axes < 3 and self.blur <= kernels.blur.MAX_BLUR, kernels.blur.BlurStep
            if len(windows) > 1 and any(p.scale_count for p in windows):  # each has its own pooled Q, in one batch
                fits = fits and all(a.ndim < 2 for a in mixing) and len({p.include_self for p in windows}) == 1
        return kind if fits and len(windows) <= 2 else Step


class WindowOperator(GaussianOperator):
    """K = up . window sum . pool; adjoint pool^T . window sum . up^T. Features and sums are [B, C, Z, Y, X]."""

    def __init__(self, plan: WindowPlan, tensors: list[torch.Tensor], budget: float) -> None:
        super().__init__(plan, tensors)
        self.axes = tensors[0].ndim - 2
        self.spare = plan.spare and plan.backend == "graph"
        self.cut = self.axes if plan.spare and not self.spare else 0  # where sizes have numbers, those blocks go
        self.features = resized(to_3d(tensors[0]), self.cut, -1)
        self.radii, self.dilation = per_axis(plan.window_size // 2, self.axes, 0), plan.dilation
        self.factors = per_axis(plan.blur, self.axes, 1)
        self.module = modules(plan.backend).window
        self.positions, self.masked, self.alike = plan.positions, plan.masked, plan.alike
        affords = plan.backend == "torch" and plan.affords(budget, self.axes)
        self.keeps_weights = affords or plan.backend == "graph"  # where they are only an expression

    @functools.cached_property
    def weights(self) -> torch.Tensor:
        return self.module.window_weights([(self.features, None, 1.0)], self.radii, self.dilation)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The window sum at low resolution."""
        window = self.features, self.radii, self.dilation, self.include_self
        if self.keeps_weights:
            found: torch.Tensor = self.module.window_sum(x, *window, self.weights)
            return found
        found = self.module.window_sum(x, *window)
        return found

    def pool(self, x: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
        """pool(x), with as many blocks as the features have."""
        found: torch.Tensor = blur.pool(x, factors, self.spare)
        return found

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """pool(in . x), [B, C, Z, Y, X]."""
        return self.pool(to_3d(scaled(x, self.scale_in)), self.factors)

    def given(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of `features`, in the shape of the plan's tensor."""
        return from_3d(resized(gradient, self.cut, 1), self.axes)

    def grid(self, size: Sequence[int]) -> tuple[Sequence[int], ...]:
        """The image size, low-resolution size and padding, each (y, x), for the kernels of a fused step."""
        return tuple(n[1:] for n in (size, blur.low_size(size, self.factors), blur.padding(size, self.factors)))

    def bare(self, x: torch.Tensor, adjoint: bool) -> torch.Tensor:
        down: Callable[..., torch.Tensor] = blur.upsample_adjoint if adjoint else self.pool
        up: Callable[..., torch.Tensor] = blur.pool_adjoint if adjoint else blur.upsample
        full = to_3d(x)
        return up(self.sum(down(full, self.factors)), full.shape[2:], self.factors).reshape(x.shape)

    def bare_gradients(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        size, factors = to_3d(x).shape[2:], self.factors
        low_x, low_y = blur.pool(to_3d(x), factors), blur.upsample_adjoint(to_3d(y), factors)
        gradient = self.module.window_feature_gradient(low_x, low_y, self.features, self.radii, self.dilation)
        return (
            [self.given(gradient)],
            lambda: blur.upsample(self.sum(low_x), size, factors).reshape(x.shape),
            lambda: blur.pool_adjoint(self.sum(low_y), size, factors).reshape(x.shape),
        )

"""Box means, the averages on which the guided filter and SegModel's context pooling are based."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch

from tritoncrf import checks, kernels
from tritoncrf.backends import compute_dtype, modules, resolve, without_autocast
from tritoncrf.filters.base import BACKENDS
from tritoncrf.filters.plan import Context, contiguous_like, operator
from tritoncrf.reference import box as reference
from tritoncrf.step import to_3d
from tritoncrf.types import Backend, Box

BOXES: tuple[Box, ...] = get_args(Box)
FARTHEST = 1 << 31  # no image is wider, so a larger reach changes nothing


def box_mean(
    x: torch.Tensor, radius: int | Sequence[int], dilation: int = 1, box: Box = "count", backend: Backend = "auto"
) -> torch.Tensor:
    r"""The mean over a box around every pixel, in a time that does not depend on its radius.

    .. math::
        y_i = \frac{1}{D_i} \sum_{|t_a| \le r_a} x_{i + d\,t}

    over the taps inside the image, with d the dilation and r the radius, for each class separately. D is the number
    of these taps for "count" (He, Sun and Tang 2013), so that constants are kept, and the product over the axes of
    min(2 r + 1, ceil(n / d)), for n pixels, for "constant" (as SegModel's code released it; Shen et al. 2017), so that
    means fade at the image's border. Every mean is computed from its own pixels only, so rounding errors do not
    accumulate along the image.

    Args:
        x: [B, C, *S], floating, 1 to 3 spatial axes. Half precision is summed in float32.
        radius: r, 1 or more; one int or one per axis. A radius beyond the image means the whole image.
        dilation: distance of neighbouring taps in pixels, 1 or more.
        box: "count" or "constant".
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".

    Returns:
        [B, C, *S], dtype of x; differentiable, any number of times.

    Raises:
        TypeError: x is not a floating-point tensor, or radius or dilation is not an int.
        ValueError: a shape, an option or a value is out of bounds.

    Example:
        >>> import torch, tritoncrf as tc
        >>> tc.box_mean(torch.tensor([[[0.0, 3.0, 6.0, 9.0]]]), radius=1)
        tensor([[[1.5000, 3.0000, 6.0000, 7.5000]]])
    """
    checks.expect_tensor("x", x)
    checks.expect_spatial("x", x)
    radii = expect_radii(radius, x.ndim - 2)
    dilation = min(checks.expect_int("dilation", dilation, 1), FARTHEST)
    checks.expect_choice("box", box, BOXES)
    checks.expect_choice("backend", backend, BACKENDS)
    checks.expect_finite("x", x)
    checks.expect_no_tangents(x)
    dtype = compute_dtype(x)
    resolved = resolve(backend, x.device, dtype)
    area = reference.areas(x.shape[2:], radii, dilation, box, dtype=dtype, device=x.device)
    return (box_sum(x.to(dtype), radii, dilation, resolved) / area).to(x.dtype)


def expect_radii(radius: int | Sequence[int], axes: int) -> list[int]:
    """A radius per axis from one for all or one each."""
    radii = list(radius) if isinstance(radius, (list, tuple)) else [radius] * axes
    if len(radii) != axes:
        raise ValueError(f"radius: expected one int of at least 1, or one per axis ({axes}), got {len(radii)}")
    return [min(checks.expect_int("radius", r, 1), FARTHEST) for r in radii]


@operator("box_sum")
def box_sum(x: torch.Tensor, radii: list[int], dilation: int, backend: str) -> torch.Tensor:
    """box(x) of reference.box for x [B, C, *S]; its own adjoint."""
    with without_autocast(x):
        found = box_summer(backend)(to_3d(x), [0] * (3 - len(radii)) + radii, dilation).reshape(x.shape)
        alias = found.data_ptr() == x.data_ptr()  # one pixel: nothing to add
        return found.clone(memory_format=torch.contiguous_format) if alias else found.contiguous()


@box_sum.register_fake
def _(x: torch.Tensor, radii: list[int], dilation: int, backend: str) -> torch.Tensor:
    return contiguous_like(x)


def _setup_context(ctx: Context, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, *ctx.form = inputs


def _backward(ctx: Context, cotangent: torch.Tensor) -> tuple[Any, ...]:
    return box_sum(cotangent.contiguous(), *ctx.form), None, None, None


box_sum.register_autograd(_backward, setup_context=_setup_context)


def box_summer(backend: str) -> Callable[..., torch.Tensor]:
    """box(x) for (x [n, fields, Z, Y, X], radii, dilation=1) by a backend; windows that are too long for it use
    PyTorch."""
    if backend != "triton":
        found: Callable[..., torch.Tensor] = modules(backend).box.box_sum
        return found

    def summed(x: torch.Tensor, radii: Sequence[int], dilation: int = 1) -> torch.Tensor:
        reach = max(capped(radii, [-(-n // dilation) for n in x.shape[2:]]))
        return (kernels.box if reach <= kernels.box.MAX_RADIUS else reference).box_sum(x, radii, dilation)

    return summed


def capped(radii: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Radii limited to the image, if its size is known."""
    return tuple(min(r, n - 1) if isinstance(n, int) else r for r, n in zip(radii, size, strict=True))

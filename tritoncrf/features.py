"""Features of a Gaussian kernel: positions and colours, already divided by their bandwidths.

Every kernel of a dense CRF is k(i, j) = exp(-|f_i - f_j|^2 / 2). This module computes f: the pixel position divided by
theta (as in Krähenbühl and Koltun 2011, ConvCRF and CRF-RNN), the colour divided by theta, or both.
Positions are in (row, column) order, in pixels or in the unit of `spacing`; colours are in 0..255 units.

A theta is a float, a 0-d tensor, or one per axis or channel (a sequence or a 1-d tensor). Tensors may require
gradients, which then flow from the features to them. A bandwidth of positions may also be a share of the image's
diagonal, "16%", so that it also suits a smaller copy of the picture.
"""

import math
from collections.abc import Sequence

import torch

from tritoncrf import checks
from tritoncrf.devices import expect_device
from tritoncrf.types import Theta

__all__ = ["bilateral", "color", "spatial"]


def spatial(
    size: Sequence[int],
    theta: Theta,
    spacing: Theta | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Pixel positions over a bandwidth: f[a] = index_a * spacing_a / theta_a.

    Args:
        size: the 1 to 3 spatial sizes S, such as (height, width).
        theta: bandwidth in pixels, or in the unit of `spacing`; one number or one per axis, above 0. Or a string such
            as "16%", of the image's diagonal.
        spacing: distance between neighbours, one number or one per axis; 1 by default.
        device: device of the result; by default that of the first tensor among the thetas, otherwise the CPU.
        dtype: torch.float32 or torch.float64.

    Returns:
        [1, D, *S] features, D = len(S), computed in float64 and rounded once.

    Raises:
        TypeError, ValueError: naming the argument, for a wrong count, a type that is not a number, or a theta or
            spacing that is not above 0 (the values of tensors are checked only where `check_values` says so).

    Example:
        >>> spatial((2, 3), theta=2.0)[0, 1]
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.5000, 1.0000]])
    """
    if not isinstance(size, Sequence) or isinstance(size, (str, bytes)) or not 1 <= len(size) <= 3:
        raise ValueError(f"size: expected 1 to 3 spatial sizes such as (height, width), got {checks.kind_of(size)}")
    size = [checks.expect_int("size", n, 1) for n in size]
    checks.expect_dtype("dtype", dtype, (torch.float32, torch.float64))
    device = None if device is None else expect_device(device)
    found = positions(size, theta, spacing, device=device, dtype=dtype, name="theta")
    return evenly_spaced(found, may_change=True)


def color(image: torch.Tensor, theta_color: Theta) -> torch.Tensor:
    """Colours over a bandwidth: f[c] = image_c / theta_c, in 0..255 units.

    Args:
        image: [B, C, *S] with 1 to 3 spatial axes. uint8 values are used as they are; floating-point values are 0..1
            and multiplied by 255. Only the dtype decides, never the values.
        theta_color: bandwidth in 0..255 units, one number or one per channel, above 0.

    Returns:
        [B, C, *S] features: float64 for a float64 image, else float32.

    Raises:
        TypeError: the image is not a tensor, or neither uint8 nor floating.
        ValueError: a floating image with NaN, or values below -0.5 or above 1.5 (checked only where `check_values`
            says so); a theta that is not above 0 or has the wrong count.

    Example:
        >>> color(torch.tensor([[[0, 26]]], dtype=torch.uint8), theta_color=13)
        tensor([[[0., 2.]]])
    """
    return over_bandwidths(_photo(image), theta_color)


def over_bandwidths(photo: torch.Tensor, theta_color: Theta) -> torch.Tensor:
    """`color` of an image that is in 0..255 units."""
    thetas = checks.expect_positive("theta_color", theta_color, photo.shape[1], each="channel")
    thetas = _on_device("theta_color", thetas, photo)
    return torch.stack([channel / theta for channel, theta in zip(photo.unbind(1), thetas)], dim=1)


def bilateral(
    image: torch.Tensor, theta_space: Theta, theta_color: Theta, spacing: Theta | None = None
) -> torch.Tensor:
    """Positions and colours together: f = (index * spacing / theta_space, image / theta_color).

    Args:
        image: [B, C, *S], as in `color`.
        theta_space: bandwidth in pixels or in the unit of `spacing`, one number or one per axis, or "16%" of the
            diagonal.
        theta_color: bandwidth in 0..255 units, one number or one per channel.
        spacing: distance between neighbours, one number or one per axis; 1 by default.

    Returns:
        [B, D + C, *S] features, positions first: float64 for a float64 image, else float32.

    Raises:
        TypeError, ValueError: as `spatial` and `color`.

    Example:
        >>> bilateral(torch.zeros(2, 3, 4, 5), theta_space=80, theta_color=13).shape
        torch.Size([2, 5, 4, 5])
    """
    colors = color(image, theta_color)
    size = colors.shape[2:]
    found = positions(size, theta_space, spacing, device=colors.device, dtype=colors.dtype, name="theta_space")
    return torch.cat([found.expand(colors.shape[0], -1, *size), colors], dim=1)


def bandwidths(
    name: str, theta: Theta, size: Sequence[int], spacings: Sequence[float | torch.Tensor] | None = None
) -> list[float | torch.Tensor]:  # fmt: skip
    """A bandwidth of positions, one for each axis, or an error that names it.

    Args:
        name: the name of the argument.
        theta: the bandwidth in pixels, or in the unit of `spacings`; or a share of the diagonal, "16%".
        size: the size of the image.
        spacings: distances between neighbours, one for each axis; 1 by default.
    """
    if not isinstance(theta, str):
        return checks.expect_positive(name, theta, len(size))
    wanted = 'numbers above 0, or a share of the image\'s diagonal above 0 such as "16%"'
    try:
        share = float(theta.removesuffix("%")) / 100 if theta.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise ValueError(f"{name}: expected {wanted}, got {checks.shown(theta)}")
    sides = (n * float(s) for n, s in zip(size, spacings or [1.0] * len(size), strict=True))
    return [share * math.hypot(*sides)] * len(size)


def evenly_spaced(positions: torch.Tensor, may_change: bool = False) -> torch.Tensor:
    """[1, D, *S], marked as positions: channel a increases along axis a in even steps. A window need not read those.

    The mark is an attribute of the tensor, valid until the tensor changes. Tensors of inference mode do not track
    changes.
    """
    if not torch.compiler.is_compiling() and not (may_change and positions.is_inference()):
        positions._evenly_spaced = _identity(positions)  # type: ignore[attr-defined]
    return positions


def are_evenly_spaced(features: torch.Tensor) -> bool:
    """Whether these are positions that `evenly_spaced` has marked, unchanged since."""
    if torch.compiler.is_compiling():
        return False
    seen = getattr(features, "_evenly_spaced", None)
    return seen is not None and seen == _identity(features)


def _identity(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), -1 if tensor.is_inference() else tensor._version


def positions(
    size: Sequence[int], theta: Theta, spacing: Theta | None, *, device: torch.device | str | None,
    dtype: torch.dtype, start: Sequence[int] = (0, 0, 0), name: str = "theta",
) -> torch.Tensor:  # fmt: skip
    """The positions of `spatial` for the part of an image that begins at `start`."""
    spacings = checks.expect_positive("spacing", 1.0 if spacing is None else spacing, len(size))
    thetas = bandwidths(name, theta, size, spacings)
    if device is None:
        devices = [t.device for t in [*thetas, *spacings] if isinstance(t, torch.Tensor)]
        device = devices[0] if devices else None
    axes = []
    for n, t, s, first in zip(size, thetas, spacings, start):
        index = torch.arange(first, first + n, device=device, dtype=torch.float64)
        [t], [s] = _on_device(name, [t], index), _on_device("spacing", [s], index)
        axes.append((index * (s / t)).to(dtype))
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def _photo(image: torch.Tensor) -> torch.Tensor:
    """`image` in 0..255 units, float32 or float64."""
    if not (isinstance(image, torch.Tensor) and image.dtype == torch.uint8):
        checks.expect_tensor("image", image, "a uint8 (0..255) or floating-point (0..1) torch.Tensor")
    checks.expect_spatial("image", image)
    if image.shape[1] == 0:
        raise ValueError(f"image: expected at least one channel, got shape {list(image.shape)}")
    photo = image.to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    if image.dtype == torch.uint8:
        return photo
    checks.expect_finite("image", photo)
    if checks.values_checked(photo) and photo.numel():
        low, high = (v.item() for v in torch.aminmax(photo.detach()))
        if low < -0.5 or high > 1.5:
            raise ValueError(
                f"image: expected floating values from 0 to 1, got {low:.4g} to {high:.4g}; pass a picture of 0..255 "
                "as image.to(torch.uint8) or image / 255; refine takes other units with value_range="
            )
    return photo * 255


def _on_device(name: str, thetas: list[float | torch.Tensor], like: torch.Tensor) -> list[float | torch.Tensor]:
    """Convert tensors among `thetas` to the dtype of `like`; a 0-d tensor on the CPU is accepted for any device."""
    for t in thetas:
        if isinstance(t, torch.Tensor) and t.device.type != "cpu" and t.device != like.device:
            raise ValueError(f"{name}: expected a tensor on {like.device} or the CPU, got one on {t.device}")
    return [t.to(like.dtype) if isinstance(t, torch.Tensor) else t for t in thetas]

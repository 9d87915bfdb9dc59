"""The images that `refine` takes: pictures, volumes and signals, with any number of channels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.options import BINARY, SCORES
from tritoncrf.scores import MOST_INFERRED, as_tensor, is_pil, upright
from tritoncrf.types import Array, Image

__all__ = ["axes_of", "channels_first", "expect_size", "from_pil", "image_from", "picture", "shape_of"]

PICTURE = "a PIL image, a NumPy array [H, W, 3] or [H, W], or a torch tensor [3, H, W] or [1, H, W]"


def axes_of(name: str, scores: Any, image: Any) -> int:
    """The number of spatial axes: that of the scores, or 2 if the image or the scores are a picture."""
    if is_pil(scores) or is_pil(image):
        return 2
    shape, own, tensor = shape_of(scores), shape_of(image), isinstance(image, torch.Tensor)
    axes = len(shape) - (name not in (*BINARY, "labels"))
    if image is None or axes == 3 and name in SCORES[:3] and shape[1:] in ((own[1:],) if tensor else (own, own[:-1])):
        return axes
    if name in BINARY and axes == 3 and shape[0 if isinstance(scores, torch.Tensor) else 2] <= 4:
        thin = shape in (own[1:], own[:-1]) or not tensor and own == shape and shape[2] > 4
        return 3 if thin else 2  # a grey picture of one object
    further = len(own) - axes  # axes of the image beside the spatial ones
    if axes not in (1, 3) or further not in ((1,) if tensor else (0, 1)):
        return 2
    return 2 if _is_picture(own, tensor, shape, axes) else axes


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of an array; empty for a value without one."""
    nested = isinstance(value, torch.Tensor) and value.is_nested
    return () if nested else tuple(getattr(value, "shape", ()))


def _is_picture(own: Sequence[int], tensor: bool, shape: Sequence[int], axes: int) -> bool:
    """Whether an image that could be a signal or a volume is a picture, with scores that have an axis too few or too
    many."""
    if axes == 1:
        return own == shape and own[0] > MOST_INFERRED or not tensor and len(own) == 2 and own == shape
    if tensor:
        return len(own) == 3 and own[0] in (1, 3) and own[1:] == shape[-2:]
    if own == shape:
        return own[2] in (3, 4)  # labels given as colours
    return own[:2] in (shape[-2:], shape[:2]) and (len(own) == 2 or len(own) == 3 and own[2] in (1, 3, 4))


def image_from(
    value: Image, device: torch.device, axes: int = 2, size: Sequence[int] | None = None, ranged: bool = False
) -> tuple[torch.Tensor, str]:
    """An image [M, *S] on `device`, and how it was rotated, for an error about its size.

    Args:
        value: an image as for `refine`.
        device: the device of the result.
        axes: number of spatial axes.
        size: size of the scores, which identifies the axes of a picture.
        ranged: whether `value_range` is given.

    Returns:
        The image, uint8 or floating-point, or, if `ranged`, of any real dtype.

    Raises:
        TypeError, ValueError: about `image`.
    """
    turned = ""
    if is_pil(value):
        value, turned = from_pil(value, ranged)
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        sliced = all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))
        hint = "; for an object that can only be sliced, use max_memory= or image[:]" if sliced else ""
        raise TypeError(f"image: expected {PICTURE}, got {checks.kind_of(value)}{hint}")
    image = as_tensor("image", value)
    if axes == 2:
        image = picture(value, image, size, ranged)
    elif isinstance(value, np.ndarray):
        image = image[None] if image.ndim == axes else image.movedim(-1, 0)
    if 0 in image.shape:
        raise ValueError(f"image: expected at least one pixel and channel, got {checks.kind_of(value)}")
    if image.is_complex() or image.dtype == torch.bool:
        raise TypeError(f"image: expected integers or floats, got {checks.kind_of(value)}")
    if not ranged and image.dtype != torch.uint8 and image.dtype not in checks.FLOATS:
        raise TypeError(
            f"image: expected uint8, or floats from 0 to 1, got {checks.kind_of(value)}; value_range=(low, high), or "
            '("1%", "99%"), sets the values for black and white'
        )
    return image.to(device), turned


def channels_first(value: Array, axes: int) -> tuple[int, ...]:
    """The shape [M, *S] of an image that is an array with these axes, or an object that can only be sliced."""
    shape = tuple(value.shape)
    if isinstance(value, torch.Tensor):
        return shape
    return (1, *shape) if len(shape) == axes else (shape[-1], *shape[:-1])


def from_pil(value: Any, ranged: bool) -> tuple[np.ndarray, str]:
    """The values of a PIL image, upright, and how it was rotated."""
    if value.mode.startswith(("I", "F")) and not ranged:
        raise TypeError(
            f"image: expected 8 bits per channel, got a PIL image of mode {value.mode!r}; value_range=(low, high) sets "
            "the values for black and white"
        )
    picture = upright(value)
    turned = (
        "; it was rotated by its EXIF orientation, np.asarray(image) is as stored" if picture.size != value.size else ""
    )
    if "A" in picture.getbands() and picture.getchannel("A").tobytes().strip(b"\xff"):
        raise ValueError(
            f"image: expected no transparency, got some in a PIL image of mode {picture.mode!r}; image.convert('RGB') "
            "drops it, valid=np.asarray(image.getchannel('A')) > 0 marks the opaque pixels"
        )
    if not picture.mode.startswith(("I", "F")):
        picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(picture), turned


def picture(value: Array, image: torch.Tensor, size: Sequence[int] | None, ranged: bool) -> torch.Tensor:
    """A picture [M, H, W]; raises an error if the axes may be in another order or there is an opacity."""
    shape, tensor = tuple(image.shape), isinstance(value, torch.Tensor)
    if len(shape) == 2 and not tensor:
        return image[None]
    channels = shape[0 if tensor else -1] if len(shape) == 3 else 0
    fits = size is None or (shape[1:] if tensor else shape[:-1]) == tuple(size)
    opaque = ranged or channels not in (2, 4)
    if len(shape) != 3 or channels not in (1, 3) and not (fits and opaque):
        raise ValueError(f"image: expected {PICTURE}, got {checks.kind_of(value)}{_hint(value, shape, fits)}")
    return image if tensor else image.permute(2, 0, 1)


def _hint(value: Array, shape: Sequence[int], fits: bool) -> str:
    """A hint for an image with other axes, if a guess is safe."""
    tensor = isinstance(value, torch.Tensor)
    if len(shape) == 4 and shape[0] == 1:
        return "; remove the batch axis: image[0]"
    if len(shape) == 2:
        return "; add the channel's axis: image[None]"
    channels = shape[0 if tensor else 2] if len(shape) == 3 else 0
    if fits and channels in (2, 4):
        kept = "image[:-1]" if tensor else "image[..., :-1]"
        dtype = str(value.dtype).removeprefix("torch.")
        ends = "(0, 255)" if dtype == "uint8" else "(0, 1)" if "float" in dtype else "(low, high)"
        return f"; {kept} drops an opacity, value_range={ends} means that these are {channels} bands"
    if len(shape) == 3 and tensor and shape[2] in (1, 3):
        return "; channels come first in tensors: image.permute(2, 0, 1)"
    if len(shape) == 3 and not tensor and shape[0] in (1, 3):
        return "; channels come last in arrays: image.transpose(1, 2, 0)"
    return "; volumes, [*S] or with channels [*S, M], need scores [C, *S] of the same size"


def expect_size(what: str, value: torch.Tensor, name: str, size: Sequence[int], hint: str = "") -> None:
    """Raise a ValueError unless `value` [M, *S] has the size of the scores."""
    if tuple(value.shape[1:]) != tuple(size):
        raise ValueError(f"{what}: expected the size of {name}, {list(size)}, got {list(value.shape[1:])}{hint}")

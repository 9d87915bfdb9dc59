"""The common part of the layers: their call, and checks of their arguments."""

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from tritoncrf import checks
from tritoncrf.devices import expect_device
from tritoncrf.mean_field import expect_damping
from tritoncrf.types import Output, Theta


class Layer(nn.Module):
    """The base class of the layers: `crf(logits, image)` returns scores [B, C, *S], and `crf.num_classes` is C."""

    num_classes: int

    @property
    def cost(self) -> torch.Tensor:
        """mu, [C, C], the cost of the row's class near the column's class; negative values attract."""
        raise NotImplementedError

    if TYPE_CHECKING:  # torch declares the result of a module's call as Any

        def __call__(
            self, logits: torch.Tensor, image: torch.Tensor | None = None, *,
            features: torch.Tensor | None = None, output: Output = "logits",
        ) -> torch.Tensor: ...  # fmt: skip


class UpdateOptions(TypedDict):
    """How a layer updates Q, see `mean_field`."""

    damping: float
    temperature: float


class Placement(TypedDict):
    """The result of `placed`."""

    device: torch.device | str
    dtype: torch.dtype


def expect_inputs(
    crf: Layer, logits: torch.Tensor, image: torch.Tensor | None, features: torch.Tensor | None,
    larger_image: bool = False,
) -> None:  # fmt: skip
    """Raise an error unless a layer can take these; the values of image and features are checked later."""
    checks.expect_tensor("logits", logits)
    checks.expect_spatial("logits", logits)
    if logits.shape[1] != crf.num_classes:
        hint = "; add the batch axis: logits[None]" if logits.shape[0] == crf.num_classes else ""
        raise ValueError(f"logits: expected {crf.num_classes} classes on axis 1, got shape {list(logits.shape)}{hint}")
    if (image is None) == (features is None):
        raise ValueError(f"image: expected an image or features, got {'neither' if image is None else 'both'}")
    for parameter in crf.parameters():
        if logits.device != parameter.device:
            raise ValueError(f"logits: expected the layer's device, {parameter.device}, got {logits.device}")
    name, given = ("image", image) if features is None else ("features", features)
    if not isinstance(given, torch.Tensor):
        return
    checks.expect_dense(name, given)
    if given.device != logits.device:
        raise ValueError(f"{name}: expected the device of logits, {logits.device}, got {given.device}")
    size, own = given.shape[2:], logits.shape[2:]
    if larger_image and features is None:
        fits, wanted = len(size) == len(own) and all(n >= least for n, least in zip(size, own)), "at least the"
    else:
        fits, wanted = size == own, "the"
    if not fits:
        raise ValueError(f"{name}: expected {wanted} spatial size {list(own)} of logits, got {list(given.shape)}")


def expect_update(damping: float, temperature: float, preset: str | None) -> UpdateOptions:
    """How a layer updates Q; in a preset, as published."""
    damping = expect_damping(damping)
    temperature = checks.expect_number("temperature", temperature, positive=True)
    for name, value, published in ("damping", damping, 0), ("temperature", temperature, 1):
        if preset is not None and value != published:
            raise ValueError(f"{name}: expected {published} with preset={preset!r}, which has none, got {value}")
    return {"damping": damping, "temperature": temperature}


def as_precise(image: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The image; bytes become float64 if the scores are, since features are only as precise as their image."""
    if scores.dtype == torch.float64 and isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
        return image.double() / 255
    return image


def placed(device: torch.device | str | None, dtype: torch.dtype) -> Placement:
    """The device and dtype of the parameters; by default torch's default device."""
    checks.expect_dtype("dtype", dtype, checks.FLOATS)
    return {"device": torch.get_default_device() if device is None else expect_device(device), "dtype": dtype}


def bandwidth(name: str, theta: Theta) -> torch.Tensor:
    """A theta, given as a number, sequence, array or tensor, as a float64 tensor [] or [n] on the CPU."""
    if isinstance(theta, torch.Tensor):
        checks.expect_values(name, theta)
    numbers = theta.tolist() if hasattr(theta, "tolist") else theta
    for number in numbers if isinstance(numbers, (list, tuple)) else [numbers]:
        checks.expect_number(name, number, positive=True)
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")

r"""Losses for weak supervision: the pairwise energy of a dense CRF, evaluated at a network's probabilities.

With probabilities S, weights d of the pixels that receive messages and s of those that send them,

    potts   L = sum_c (d S_c)^T K (s (1 - S_c)) / N ,      rloss   L = -sum_c (d S_c)^T K (s S_c) / B

and K = sum_m w_m K_m. Each filter is applied once, and autograd goes back through it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import torch

from tritoncrf import checks, features
from tritoncrf.backends import compute_dtype, launches_run
from tritoncrf.filters import Filter, Lattice, Window
from tritoncrf.mean_field import expect_filters
from tritoncrf.types import LossForm

__all__ = ["LOSSES", "Loss", "dense_crf_loss"]

FORMS: tuple[LossForm, ...] = get_args(LossForm)
NOT_FINITE = "filters, weights, roi, source, destination: expected a loss that float32 holds, got NaN or infinity"


def dense_crf_loss(
    probabilities: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor], *,
    roi: torch.Tensor | None = None, source: torch.Tensor | None = None, destination: torch.Tensor | None = None,
    form: LossForm = "potts",
) -> torch.Tensor:  # fmt: skip
    r"""The pairwise energy of a dense CRF as a loss, which regularises a network's predictions for unlabelled pixels.

    .. math::
        L_\text{potts} = \frac1N \sum_c (d\,S_c)^\top K\, s\,(1 - S_c), \qquad
        L_\text{rloss} = -\frac1B \sum_c (d\,S_c)^\top K\, s\,S_c, \qquad
        K = \sum_m w_m K_m

    "potts" is the expected cost of neighbours that differ in class, a mean over pixels. The gated CRF loss (Obukhov et
    al. 2019) is this form with a window that leaves out the pixel itself. "rloss" is the loss of Tang et al. (2018),
    the part of the energy that is quadratic in S: a mean over images of a sum over pixels, hence its small weight.
    `LOSSES` holds the published settings of both.

    Args:
        probabilities: S, [B, C, *S], from a softmax, or from a sigmoid with C = 1; 1 to 3 spatial axes; floating.
        filters: the K_m, see `tritoncrf.filters`, each with its own normalisation.
        weights: the w_m, one number or 0-d tensor per filter.
        roi: the region of interest: a bool mask, or floating weights of at least 0, [B, *S] or [B, 1, *S], where one
            image's serves the whole batch. It multiplies both s and d. None for all pixels.
        source: s, which pixels send messages, in the same form.
        destination: d, which pixels receive messages, in the same form.
        form: "potts" or "rloss". N is the sum of d over the batch if `roi` or `destination` is given, else the sum of s
            if `source` is, else the number of pixels of the batch; and at least 1. B is the number of images.

    Returns:
        A 0-d tensor, float64 for float64 probabilities, else float32. Gradients reach the probabilities, the filters'
        features, weights and masks; once. For "rloss" the gradient is -(K + K^T) S / B; the authors' code has
        -2 K S / B, which is the same if K is symmetric, as a lattice nearly is.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> K = tc.filters.Window(tc.features.bilateral(image, 6, 10), window_size=11, normalization="after")
        >>> logits = torch.randn(2, 4, 20, 30, requires_grad=True)
        >>> loss = tc.dense_crf_loss(logits.softmax(1), [K], [1.0])
        >>> loss.backward()
    """
    checks.expect_choice("form", form, FORMS)
    checks.expect_tensor("probabilities", probabilities)
    checks.expect_spatial("probabilities", probabilities)
    expect_filters(filters, weights, probabilities, "probabilities")
    if checks.values_checked(probabilities):
        checks.expect_probabilities("probabilities", probabilities, "torch.softmax(logits, 1) of a network's logits")
    s = probabilities.to(compute_dtype(probabilities))
    numbers = [_weight(f"weights[{m}]", w, s) for m, w in enumerate(weights)]
    region = _mask("roi", roi, s)
    sends, receives = _both(region, _mask("source", source, s)), _both(region, _mask("destination", destination, s))
    checks.expect_no_tangents(*(t for t in (s, sends, receives, *numbers) if isinstance(t, torch.Tensor)))

    sent = s if form == "rloss" else 1 - s
    sent = sent if sends is None else sends * sent
    received = s if receives is None else receives * s
    energies = [w * (received * f.filtered(sent)).sum() for w, f in zip(numbers, filters, strict=True)]
    energy = torch.stack(energies).sum()
    loss = -energy / max(len(s), 1) if form == "rloss" else energy / _pixels(s, sends, receives)
    if checks.values_checked(loss) and launches_run() and not checks.all_finite(loss):
        raise ValueError(NOT_FINITE)
    return loss


def _weight(name: str, value: float | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
    """A weight as a number, or as a tensor [] on the device of the probabilities."""
    if not isinstance(value, torch.Tensor):
        return checks.expect_number(name, value)
    wanted = "a number or a floating-point 0-d tensor"
    checks.expect_tensor(name, value, wanted)
    if value.ndim:
        raise ValueError(f"{name}: expected {wanted}, got {checks.kind_of(value)}")
    _expect_device(name, value, like)
    checks.expect_finite(name, value)
    return value.to(like.dtype)


def _mask(name: str, value: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Weights of pixels [B, 1, *S] in the dtype of the probabilities; None if all are equal."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        value = value.to(like.dtype)
    checks.expect_tensor(name, value, "a bool or floating-point torch.Tensor")
    found = value.unsqueeze(1) if value.ndim == like.ndim - 1 else value
    images, size = len(like), like.shape[2:]
    if found.ndim != like.ndim or found.shape[1:] != (1, *size) or len(found) not in (1, images):
        axes = ", ".join(map(str, size))
        wanted = f"[{images}, {axes}] or [{images}, 1, {axes}] as the probabilities, or one image's"
        raise ValueError(f"{name}: expected {wanted}, got shape {list(value.shape)}")
    _expect_device(name, value, like)
    checks.expect_finite(name, value)
    if checks.values_checked(value) and (value < 0).any():
        raise ValueError(f"{name}: expected weights of at least 0, got {value.min().item():.4g}")
    return found.to(like.dtype).expand(images, 1, *size)


def _expect_device(name: str, value: torch.Tensor, like: torch.Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name}: expected the device of the probabilities, {like.device}, got {value.device}")


def _both(region: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The product of two masks, each of which may be None for all pixels."""
    if region is None or mask is None:
        return mask if region is None else region
    return region * mask


def _pixels(s: torch.Tensor, sends: torch.Tensor | None, receives: torch.Tensor | None) -> int | torch.Tensor:
    """N of "potts"."""
    counted = sends if receives is None else receives
    return max(s[:, 0].numel(), 1) if counted is None else counted.sum().clamp_min(1)


@dataclass(frozen=True)
class Loss:
    """Published settings of a loss, weight * dense_crf_loss(..., form=form), which is added to a partial cross-entropy.

    Attributes:
        form: the form of `dense_crf_loss`.
        theta_space: bandwidth of positions in pixels, at the resolution of the loss.
        theta_color: bandwidth of colours in 0..255 units, one number or one per channel.
        window_size: side of the window, which leaves out the pixel itself; None for all pixels, by a lattice.
        scale: resolution of the loss / that of the image.
        weight: weight of the loss.
    """

    form: LossForm
    theta_space: float
    theta_color: float | tuple[float, ...]
    window_size: int | None
    scale: float
    weight: float

    def filter(self, image: torch.Tensor) -> Filter:
        """The filter of an image [B, C, *S] that has the resolution of the loss, see `features.color`."""
        f = features.bilateral(image, self.theta_space, self.theta_color)
        return Lattice(f) if self.window_size is None else Window(f, self.window_size, include_self=False)


# In the gated loss, the bandwidth of colours is a tenth of the standard deviations of ImageNet's channels.
DEVIATIONS = 0.229, 0.224, 0.225
LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "rloss": Loss("rloss", 50, 15, window_size=None, scale=0.5, weight=2e-9),
        "gated": Loss("potts", 6, tuple(0.1 * 255 * d for d in DEVIATIONS), window_size=11, scale=0.25, weight=0.1),
    }
)

"""Building blocks of the networks: checks of arguments, initial weights, and recomputation in the backward pass."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tritoncrf import checks


def scaled(channels: int, width: float) -> int:
    """The number of channels times `width`, at least 8."""
    return max(8, round(channels * checks.expect_number("width", width, positive=True)))


def expect_one_of(name: str, value: int, choices: Collection[int]) -> int:
    """`value` itself if it is one of these ints, else a ValueError that lists them."""
    if isinstance(value, bool) or not isinstance(value, int) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def options(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments from a mapping; an empty dict for None."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a dict of options or None, got {checks.kind_of(value)}")
    return {} if value is None else dict(value)


def crf_options(value: Mapping[str, Any] | None, paper: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's layer: initial values of its paper unless others are given; a preset has its
    own."""
    given = options("crf", value)
    return {**paper, **given} if given.get("preset") is None else given


def msra_(conv: nn.Conv2d) -> nn.Conv2d:
    """Normal weights of variance 2 / fan-in and no bias (He et al. 2015, section 2.2)."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


@torch.no_grad()
def bilinear_(deconv: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """Weights that interpolate every class bilinearly, and no bias.

    The taps are 1 - |t - c| / f with f = ceil(k / 2), c the centre (Long et al. 2015, FCN, section 3.3). Away from the
    border this interpolates between half-pixel centres; beyond the border are zeros.
    """
    size = deconv.kernel_size[0]
    taps = 1 - (torch.arange(size) - (size - 1) / 2).abs() / -(-size // 2)
    per_group = deconv.out_channels // deconv.groups
    classes = torch.arange(deconv.in_channels)
    deconv.weight.zero_()
    deconv.weight[classes, classes % per_group] = torch.outer(taps, taps).to(deconv.weight)
    if deconv.bias is not None:
        deconv.bias.zero_()
    return deconv


def recomputed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """module(x), keeping only x for the backward pass, which recomputes the rest."""
    return checkpoint(module, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _buffers(module)))


@contextlib.contextmanager
def _buffers(module: nn.Module) -> Iterator[None]:
    """Use copies of the buffers, so that running statistics do not count a batch twice."""
    kept = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    for part, name, buffer in kept:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in kept:
            setattr(part, name, buffer)

"""The values of an image that count as 0 and as 255, for each of its channels."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.types import ValueRange

__all__ = ["Levels", "Parts", "levels"]

#: (low, high) of each channel: a value v counts as 255 (v - low) / (high - low).
Levels: TypeAlias = tuple[tuple[float, float], ...]
#: Iterates over the parts of an image, repeatedly: [M, *s], and the mask of valid pixels [*s] if some are not.
Parts: TypeAlias = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor | None]]]

BINS = 1 << 16
WANTED = 'two numbers (low, high) or percentiles ("1%", "99%"), or such a pair for each channel'


def levels(value_range: ValueRange, dtype: torch.dtype, channels: int, parts: Parts) -> Levels:
    """The levels of an image with this number of channels.

    Raises:
        TypeError: not a pair.
        ValueError: pairs for another number of channels, a low that is not below its high, or a percentile above 100.
    """
    pairs = _pairs(value_range, channels)
    if not any(isinstance(end, str) for pair in pairs for end in pair):
        ends = [[checks.expect_number("value_range", end) for end in pair] for pair in pairs]
    else:
        shares = [[_share(end) if isinstance(end, str) else None for end in pair] for pair in pairs]
        histograms = _histograms(dtype, channels, parts)
        ends = [
            [
                checks.expect_number("value_range", end) if share is None else histogram.percentile(share)
                for end, share in zip(pair, own)
            ]
            for pair, own, histogram in zip(pairs, shares, histograms)
        ]
    for channel, (pair, (low, high)) in enumerate(zip(pairs, ends)):
        if not low < high:
            which = f" of channel {channel}" if channels > 1 else ""
            raise ValueError(f"value_range: expected low below high, got {low:.6g} and {high:.6g} for {pair}{which}")
    return tuple((low, high) for low, high in ends)


def _pairs(value: ValueRange, channels: int) -> list[tuple[float | str, float | str]]:
    """A pair for each channel."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or len(value) == 0:
        raise TypeError(f"value_range: expected {WANTED}, got {checks.shown(value)}")
    pairs = list(value) if all(isinstance(pair, (list, tuple)) for pair in value) else [value] * channels
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"value_range: expected {WANTED}, got {checks.shown(value)}")
    if len(pairs) != channels:
        raise ValueError(f"value_range: expected one pair, or one for each of {channels} channels, got {len(pairs)}")
    return [(pair[0], pair[1]) for pair in pairs]


def _share(text: str) -> float:
    """A percentile as a share of the pixels."""
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f'value_range: expected numbers or percentiles from "0%" to "100%", got {checks.shown(text)}')
    return share


class _Histogram:
    """The count of each value of a channel, or of each of BINS equal intervals from the smallest to the largest."""

    def __init__(self, least: float, most: float, exact: bool) -> None:
        self.least, self.width = least, 1.0 if exact else (most - least) / BINS
        self.exact, self.counts = exact, torch.zeros(BINS, dtype=torch.long)

    def add(self, values: torch.Tensor) -> None:
        bins = (values.double() - self.least).div_(self.width or 1.0).floor_().clamp_(0, BINS - 1).long()
        self.counts += torch.bincount(bins, minlength=BINS).cpu()

    def percentile(self, share: float) -> float:
        """The smallest value that at least this share of the values does not exceed, or the middle of its interval."""
        total = self.counts.cumsum(0)
        wanted = max(1, -int(-share * int(total[-1]) // 1))
        place = int(torch.searchsorted(total, wanted))
        return self.least + self.width * (place if self.exact else place + 0.5)


def _histograms(dtype: torch.dtype, channels: int, parts: Parts) -> Sequence[_Histogram]:
    """A histogram of the valid pixels for each channel; integers of at most 16 bits are counted exactly."""
    if dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16):
        least = float(torch.iinfo(dtype).min)
        found = [_Histogram(least, least + BINS, exact=True) for _ in range(channels)]
    else:
        ends = torch.tensor([[np.inf, -np.inf]] * channels, dtype=torch.float64)
        for values in _values(parts):
            checks.expect_finite("image", values)
            ends[:, 0] = torch.minimum(ends[:, 0], values.amin(1).double().cpu())
            ends[:, 1] = torch.maximum(ends[:, 1], values.amax(1).double().cpu())
        found = [_Histogram(least, most, exact=False) for least, most in ends.tolist()]
    empty = True
    for values in _values(parts):
        empty = False
        for histogram, channel in zip(found, values):
            histogram.add(channel)
    if empty:
        raise ValueError("value_range: expected numbers if no pixel is valid, got percentiles")
    return found


def _values(parts: Parts) -> Iterable[torch.Tensor]:
    """The values [M, N] of the valid pixels of each part that has any."""
    for image, valid in parts():
        values = image.flatten(1) if valid is None else image[:, valid]
        if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
            values = values.to(torch.float64)  # PyTorch supports few operations on unsigned dtypes
        if values.shape[1]:
            yield values

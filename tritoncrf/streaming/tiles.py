"""An image in tiles: the pixels that each one owns, and those that it reads."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritoncrf.streaming.sources import Window, relative

__all__ = ["Layout", "Tile", "largest", "spans", "tiles"]


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        own: the pixels whose results it gives; each pixel of the image belongs to one tile.
        seen: the pixels from which it is computed, including `own`.
    """

    own: Window
    seen: Window

    @property
    def inner(self) -> Window:
        """The place of `own` in `seen`."""
        return relative(self.own, self.seen)


@dataclass(frozen=True)
class Layout:
    """The halo of tiles, and the places where they may begin.

    Attributes:
        size: the size of the image.
        halo: pixels that a tile must read on either side of its own, for each axis.
        align: for each axis, the pixels that a tile reads begin at a multiple of this, and end with the image or a
            multiple before its end, so that blocks that are centred in the image are also centred in the tile.
    """

    size: tuple[int, ...]
    halo: tuple[int, ...]
    align: tuple[int, ...]

    def seen(self, axis: int, start: int, stop: int) -> slice:
        """The pixels that a tile reads on an axis on which it owns start .. stop."""
        n, halo, align = self.size[axis], self.halo[axis], self.align[axis]
        before = max(0, start - halo) // align * align
        after = max(0, n - stop - halo) // align * align
        if n - after - before < align:  # fewer pixels than one block
            after = max(0, after - align)
        return slice(before, n - after)

    def most(self, axis: int, own: int) -> int:
        """The most pixels that a tile reads on an axis on which it owns `own`."""
        return min(self.size[axis], own + 2 * (self.halo[axis] + self.align[axis] - 1))


def tiles(layout: Layout, shape: Sequence[int]) -> list[Tile]:
    """The tiles of an image that own `shape` pixels each, or fewer at the end, in scan order."""
    axes = []
    for axis, (n, step) in enumerate(zip(layout.size, shape, strict=True)):
        starts = range(0, n, min(step, n))
        axes.append([(slice(s, min(s + step, n)), layout.seen(axis, s, min(s + step, n))) for s in starts])
    return [Tile(*zip(*both, strict=True)) for both in itertools.product(*axes)]


def spans(n: int) -> list[int]:
    """The lengths that cut n pixels into 1, 2, 3, ... parts, each once, from the longest."""
    return sorted({-(-n // parts) for parts in range(1, n + 1)}, reverse=True)


def largest(layout: Layout, pixels: int) -> tuple[int, ...] | None:
    """The shape of tiles that read the fewest pixels in total while none reads more than `pixels`; None if a tile of a
    single pixel reads more."""
    best: tuple[int, tuple[int, ...]] | None = None
    outer, *inner = range(len(layout.size))
    for shape in itertools.product(*(spans(layout.size[axis]) for axis in inner)):
        plane = math.prod(layout.most(axis, own) for axis, own in zip(inner, shape))
        longest = _longest(layout, outer, pixels // plane)
        if longest is None:
            continue
        own = (longest, *shape)
        total = math.prod(-(-n // own[axis]) * layout.most(axis, own[axis]) for axis, n in enumerate(layout.size))
        if best is None or total < best[0]:
            best = total, own
    return None if best is None else best[1]


def _longest(layout: Layout, axis: int, most: int) -> int | None:
    """The most that a tile may own on an axis on which it reads at most `most`, in parts of equal length."""
    n = layout.size[axis]
    if most >= n:
        return n
    own = most - 2 * (layout.halo[axis] + layout.align[axis] - 1)
    return None if own < 1 else -(-n // -(-n // own))

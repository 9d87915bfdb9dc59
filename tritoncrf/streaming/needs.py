"""The memory of a lattice that is streamed: bytes, measured as peaks in a process of its own, with a margin.

A budget has two parts: a tile, whose pixels take `pixel_bytes` each, and the vertices of the whole image, of which one
only knows how many there are when all tiles have been seen: `expect_fit` then says whether they fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tritoncrf.streaming import distributed
from tritoncrf.streaming.budget import BudgetError, in_words
from tritoncrf.streaming.sources import Window
from tritoncrf.streaming.tiles import Layout, tiles

TILE_SHARE = 0.25  # of a budget, at most
ENOUGH = {"cpu": 1 << 18, "cuda": 1 << 24}  # pixels of a tile: with more, nothing is quicker
LEAST_SIDE = 32  # of a tile: with less on an axis, it has many vertices for each pixel
COUNTED = 32  # bytes of a vertex while they are counted
MARGIN = 1.2  # of what is freed and not given back
SEEN = 1.0  # vertices that a pixel of a tile is reckoned with


@dataclass(frozen=True)
class Form:
    """What the numbers of a lattice CRF are: those of features of each filter, of classes, and of bytes of a float."""

    dimensions: Sequence[int]
    classes: int
    itemsize: int

    def pixel_bytes(self, seen: float = SEEN) -> float:
        """Of a pixel of a tile, whose lattices have so many vertices for each."""
        corners = sum(d + 1 for d in self.dimensions)
        pixel = 6 * self.classes * self.itemsize + corners * (4 * self.itemsize + 12)
        return MARGIN * (pixel + seen * (3 * self.classes * self.itemsize + 32))

    def tile_pixels(self, budget: float, device: torch.device) -> int:
        """The pixels of a tile, at most: a power of two, so that a budget that is a little smaller the next time gives
        the same tiles; 0 where there is no place."""
        pairs = ((1 << 31) - 1) // (max(self.dimensions) + 1)  # their numbers are int32
        most = min(TILE_SHARE * budget / self.pixel_bytes(), ENOUGH.get(device.type, 1 << 18), pairs)
        return 1 << int(math.log2(most)) if most >= 1 else 0

    def tile_shape(self, size: Sequence[int], budget: float, taken: float, device: torch.device) -> tuple[int, ...]:
        """The tiles of an image, so many that each process has some; an error where the budget has no place for one.

        Args:
            budget, taken, device: see `expect_fit`.
        """
        pixels = self.tile_pixels(distributed.agreed(budget - taken), device)
        if pixels < 1:
            raise BudgetError(taken + self.pixel_bytes() / TILE_SHARE, budget, "this image")
        return shape_of(size, max(1, min(pixels, math.prod(size) // distributed.size())))

    def vertex_bytes(self, counts: Sequence[int]) -> list[float]:
        """Of so many vertices of each filter: two rows, a row sum and one to blur it in, neighbours and codes."""
        rows = (2 * (-(-self.classes // 4) * 4) + 2) * self.itemsize
        return [MARGIN * n * (rows + 8 * (d + 1) + 16) for n, d in zip(counts, self.dimensions, strict=True)]


def shape_of(size: Sequence[int], pixels: int) -> tuple[int, ...]:
    """Tiles of so many pixels at most, 1 or more: planes, which files hold together; thinner than LEAST_SIDE only where
    the image is."""
    shape, left = [], pixels
    for axis, n in enumerate(size):
        own = max(left // math.prod(size[axis + 1 :]), min(LEAST_SIDE, left))
        shape.append(min(n, own))
        left //= shape[-1]
    return tuple(shape)


def windows(size: Sequence[int], shape: Sequence[int]) -> list[Window]:
    """The tiles of an image, in scan order."""
    layout = Layout(tuple(size), (0,) * len(size), (1,) * len(size))
    return [tile.own for tile in tiles(layout, shape)]


def expect_fit(
    form: Form, counts: Sequence[int], seen: float, complete: bool, axes: int, names: Sequence[str], budget: int,
    taken: float, device: torch.device,
) -> None:  # fmt: skip
    """An error where an image's vertices do not keep within a budget.

    Args:
        form: of the CRF.
        counts: vertices of each filter.
        seen: of all filters, those of a tile for each of its pixels, at most.
        complete: whether all tiles have been seen; until then it is enough that there is a place to count them.
        axes: of the image.
        names: the arguments that each filter's vertices depend on; first those of positions alone.
        budget: bytes in all.
        taken: by others.
        device: where it is computed.

    Raises:
        ValueError: saying how many vertices there are, and the budget or the bandwidths that would do.
    """
    own = form.pixel_bytes(max(seen, SEEN))
    each, free = form.vertex_bytes(counts), budget - taken - own * form.tile_pixels(budget - taken, device)
    if (sum(each) if complete else COUNTED * sum(counts)) <= free:
        return
    least = math.inf
    for n in range(form.tile_pixels(math.inf, device).bit_length()):
        enough = max(taken + sum(each) + own * (1 << n), taken + form.pixel_bytes() * (1 << n) / TILE_SHARE)
        if form.tile_pixels(enough - taken, device) <= 1 << n:
            least = min(least, enough)
    most = each.index(max(each))
    left, hint = free - sum(each) + each[most], ""
    if left > 0:
        # Fewer positions along each axis; of what an image shows one knows too little.
        factor = (each[most] / left) ** (1 / axes if most == 0 else 1)
        about = "about" if complete else "more than"
        hint = f"; or {names[most]} {about} {math.ceil(10 * factor) / 10:.1f} times as large"
    least_of, extent = ("at least", "this image's") if complete else ("more than", "a part of this image's")
    what = f"the {sum(counts):,} vertices of {extent} lattices, {in_words(sum(each))}"
    raise BudgetError(least, budget, what, hint, least_of)

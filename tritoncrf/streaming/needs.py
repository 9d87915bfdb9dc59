"""The memory of a streamed lattice in bytes: measured peaks of separate processes, with a margin.

A budget has two parts: a tile, whose pixels take `pixel_bytes` each, and the vertices of the whole image. Their number
is only known when all tiles have been read; `expect_fit` then checks whether they fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tritoncrf.streaming import distributed
from tritoncrf.streaming.budget import BudgetError, in_words
from tritoncrf.streaming.sources import Window
from tritoncrf.streaming.tiles import Layout, tiles

TILE_SHARE = 0.25  # largest share of the budget for a tile
ENOUGH = {"cpu": 1 << 18, "cuda": 1 << 24}  # pixels of a tile; more would not be quicker
LEAST_SIDE = 32  # of a tile; a smaller one has many vertices for each pixel
COUNTED = 32  # bytes of a vertex while vertices are counted
MARGIN = 1.2  # for memory that is freed but not returned to the system
SEEN = 1.0  # assumed vertices per pixel of a tile


@dataclass(frozen=True)
class Form:
    """The sizes of a lattice CRF: the features of each filter, the classes, and the bytes of a float."""

    dimensions: Sequence[int]
    classes: int
    itemsize: int

    def pixel_bytes(self, seen: float = SEEN) -> float:
        """The bytes for a pixel of a tile whose lattices have this many vertices per pixel."""
        corners = sum(d + 1 for d in self.dimensions)
        pixel = 6 * self.classes * self.itemsize + corners * (4 * self.itemsize + 12)
        return MARGIN * (pixel + seen * (3 * self.classes * self.itemsize + 32))

    def tile_pixels(self, budget: float, device: torch.device) -> int:
        """The most pixels of a tile: a power of two, so that a slightly smaller budget in the next run gives the same
        tiles; 0 if none fits."""
        pairs = ((1 << 31) - 1) // (max(self.dimensions) + 1)  # their numbers are int32
        most = min(TILE_SHARE * budget / self.pixel_bytes(), ENOUGH.get(device.type, 1 << 18), pairs)
        return 1 << int(math.log2(most)) if most >= 1 else 0

    def tile_shape(self, size: Sequence[int], budget: float, taken: float, device: torch.device) -> tuple[int, ...]:
        """The shape of an image's tiles, such that each process has some; an error if none fits in the budget.

        Args:
            budget, taken, device: see `expect_fit`.
        """
        pixels = self.tile_pixels(distributed.agreed(budget - taken), device)
        if pixels < 1:
            raise BudgetError(taken + self.pixel_bytes() / TILE_SHARE, budget, "this image")
        return shape_of(size, max(1, min(pixels, math.prod(size) // distributed.size())))

    def vertex_bytes(self, counts: Sequence[int]) -> list[float]:
        """The bytes for this many vertices of each filter: two rows, a row sum and a buffer to blur it, neighbours and
        codes."""
        rows = (2 * (-(-self.classes // 4) * 4) + 2) * self.itemsize
        return [MARGIN * n * (rows + 8 * (d + 1) + 16) for n, d in zip(counts, self.dimensions, strict=True)]


def shape_of(size: Sequence[int], pixels: int) -> tuple[int, ...]:
    """The shape of tiles with at most this many pixels, 1 or more: planes, which are contiguous in files; thinner than
    LEAST_SIDE only if the image is."""
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
    """Raise an error if an image's vertices do not fit in a budget.

    Args:
        form: the form of the CRF.
        counts: number of vertices of each filter.
        seen: the most vertices of a tile per pixel, over all filters.
        complete: whether all tiles have been read; until then only the memory for counting is checked.
        axes: number of axes of the image.
        names: the arguments that each filter's vertices depend on, those of positions first.
        budget: bytes in all.
        taken: bytes used by others.
        device: where it is computed.

    Raises:
        ValueError: the message gives the number of vertices, and a budget or bandwidths that would be enough.
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
        # Assumes fewer positions along each axis; too little is known about the colours.
        factor = (each[most] / left) ** (1 / axes if most == 0 else 1)
        about = "about" if complete else "more than"
        hint = f"; or {names[most]} {about} {math.ceil(10 * factor) / 10:.1f} times as large"
    least_of, extent = ("at least", "this image's") if complete else ("more than", "a part of this image's")
    what = f"the {sum(counts):,} vertices of {extent} lattices, {in_words(sum(each))}"
    raise BudgetError(least, budget, what, hint, least_of)

"""The memory of a lattice that is streamed: bytes, measured as peaks in a process of its own, with a margin.

A budget has two parts. `TILE_SHARE` of it is for a tile, whose pixels take `pixel_bytes` each; the rest is for what is
taken by others and for the vertices of the whole image, of which one only knows how many there are when all tiles have
been seen: `expect_room` then says whether they fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritoncrf.streaming.budget import in_words

TILE_SHARE = 0.25
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

    def vertex_bytes(self, counts: Sequence[int]) -> list[float]:
        """Of so many vertices of each filter: two rows, a row sum and one to blur it in, neighbours and codes."""
        rows = (2 * (-(-self.classes // 4) * 4) + 2) * self.itemsize
        return [MARGIN * n * (rows + 8 * (d + 1) + 16) for n, d in zip(counts, self.dimensions, strict=True)]


def expect_room(
    form: Form, counts: Sequence[int], seen: float, axes: int, names: Sequence[str], budget: int, taken: float
) -> None:
    """An error where an image's vertices do not keep within a budget.

    Args:
        form: of the CRF.
        counts: vertices of each filter.
        seen: of all filters, those of a tile for each of its pixels, at most.
        axes: of the image.
        names: the arguments that each filter's vertices depend on; first those of positions alone.
        budget: bytes in all.
        taken: by others.

    Raises:
        ValueError: saying how many vertices there are, and the budget or the bandwidths that would do.
    """
    share = TILE_SHARE * max(1, form.pixel_bytes(seen) / form.pixel_bytes())
    each, room = form.vertex_bytes(counts), budget * (1 - share) - taken
    if sum(each) <= room:
        return
    least = (sum(each) + taken) / (1 - share) if share < 1 else math.inf
    wanted = f"at least {in_words(least)}" if least < math.inf else "fewer features"
    most = each.index(max(each))
    left, hint = room - sum(each) + each[most], ""
    if left > 0:
        # Fewer positions along each axis; of what an image shows one knows too little.
        factor = (each[most] / left) ** (1 / axes if most == 0 else 1)
        hint = f"; or {names[most]} about {math.ceil(10 * factor) / 10:.1f} times as large"
    raise ValueError(
        f"max_memory: expected {wanted} for the {sum(counts):,} vertices of this image's lattices, "
        f"{in_words(sum(each))}, got {in_words(budget)}{hint}"
    )

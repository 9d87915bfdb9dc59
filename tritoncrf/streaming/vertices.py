"""The vertices of the lattice of an image that is read a tile at a time.

Codes are laid out for the whole image (reference/simplex.py), so a vertex has the same code in every tile. The lattice
of a tile's pixels has its own vertices, in the order of their corners and codes; the table of the whole image has the
distinct vertices of all tiles in the same order, which is also that of a lattice built in memory.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tritoncrf.backends import modules
from tritoncrf.reference import simplex
from tritoncrf.reference.lattice import Lattice, weighted_sums
from tritoncrf.streaming import distributed


@dataclass(frozen=True)
class Layout:
    """How the features [1, D, N] of an image's pixels become codes: by a shift and these keys."""

    keys: simplex.KeyLayout
    shift: torch.Tensor  # of simplex.far_periods


def ends_of(features: torch.Tensor) -> torch.Tensor:
    """The minimum of each of the features [1, D, N], and of each negated: float64 [2, D] on the CPU; infinite without
    pixels."""
    if features.shape[2] == 0:
        return torch.full((2, features.shape[1]), torch.inf, dtype=torch.float64)
    return torch.stack([features.amin(2)[0], -features.amax(2)[0]]).cpu().double()


def layout_of(ends: torch.Tensor, pixels: int) -> Layout:
    """The layout for this number of pixels, from the minimum of `ends_of` their features.

    Raises:
        ValueError: features are too far apart for float32 to place them on the lattice.
    """
    ends = torch.stack([ends[0], -ends[1]])
    shift = simplex.far_periods(ends[:, None])
    if len(shift):
        ends = ends - shift
    return Layout(simplex.key_layout(ends[0].tolist(), ends[1].tolist(), 1, pixels), shift)


@dataclass(frozen=True)
class Codes:
    """Distinct vertices, ordered by their corners, and by their codes within each."""

    groups: list[torch.Tensor]  # of each group of the layout, [V]
    bounds: list[int]  # where the vertices of each corner begin, and V

    def packed(self, *more: torch.Tensor) -> list[torch.Tensor]:
        """These and further values of each vertex as tensors."""
        return [*self.groups, torch.tensor(self.bounds, device=self.groups[0].device), *more]

    @classmethod
    def unpacked(cls, tensors: Iterator[torch.Tensor], layout: Layout) -> "Codes":
        """Read back the tensors of `packed`."""
        groups = [next(tensors) for _ in layout.keys.sizes]
        return cls(groups, next(tensors).tolist())

    def corner(self, r: int) -> list[torch.Tensor]:
        """Each group's codes of one corner."""
        return [codes[self.bounds[r] : self.bounds[r + 1]] for codes in self.groups]


def tile_lattice(features: torch.Tensor, layout: Layout, backend: str) -> tuple[Lattice, Codes]:
    """The lattice of features [1, D, N], N > 0, without axes, and the codes of its vertices."""
    corners = features.shape[1] + 1
    near = simplex.shifted(features, layout.shift)
    weights, codes, simplices = modules(backend).simplex.simplex(near, layout.keys)
    chunked = backend != "torch"
    (vertices, *pairs), own, bounds = simplex.tables_of_pairs(codes, simplices, layout.keys, chunked)
    vertices = vertices.view(1, -1, corners)
    return Lattice(weights, vertices, no_axes(bounds[-1], vertices), *pairs), Codes(own, bounds)


def no_axes(count: int, like: torch.Tensor) -> torch.Tensor:
    """The neighbours of this many vertices in a lattice that is not blurred."""
    return like.new_empty((0, count + 1, 2))


class Merging:
    """The distinct vertices of the tiles so far, each with the sum of its values in all of them.

    The vertices of each corner are in sorted runs. A run is merged with the next unless it is at least twice as long,
    so each is merged a few times, and all runs together are at most twice as long as the result.
    """

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        self.layout, self.like = layout, like  # the sums' dtype and device
        self.runs: list[list[tuple[list[torch.Tensor], torch.Tensor]]] = [[] for _ in range(layout.keys.dimensions + 1)]

    def add(self, codes: Codes, sums: torch.Tensor) -> None:
        """Add the vertices of a tile, with a value for each, [V]."""
        for r, (runs, own) in enumerate(zip(self.runs, sums.split([*map(len, _corners(codes))]), strict=True)):
            runs.append(([code.clone() for code in codes.corner(r)], own.clone()))
            while len(runs) > 1 and len(runs[-2][1]) <= 2 * len(runs[-1][1]):
                self._merge(runs)

    def _merge(self, runs: list[tuple[list[torch.Tensor], torch.Tensor]]) -> None:
        """Merge the last two runs."""
        (after, more), (before, some) = runs.pop(), runs.pop()
        codes = [torch.cat(pair) for pair in zip(before, after, strict=True)]
        _, starts, order = simplex.numbered_codes(codes, self.layout.keys)
        sums = weighted_sums(torch.cat([some, more])[:, None], order, starts, None)[:, 0]
        first = order.index_select(0, starts)
        runs.append(([code.index_select(0, first) for code in codes], sums))

    def _nothing(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        empty = self.like.new_empty(0)
        return [empty.to(dtype) for dtype in self.layout.keys.dtypes], empty

    @property
    def count(self) -> int:
        """The least number of vertices so far."""
        return sum(max((len(sums) for _, sums in runs), default=0) for runs in self.runs)

    def finish(self) -> tuple[Codes, torch.Tensor]:
        """All vertices and their sums; call it once."""
        found, sums, bounds = [], [], [0]
        for runs in self.runs:
            while len(runs) > 1:
                self._merge(runs)
            codes, own = runs.pop() if runs else self._nothing()
            found.append(codes)
            sums.append(own)
            bounds.append(bounds[-1] + len(own))
        return Codes([torch.cat(parts) for parts in zip(*found, strict=True)], bounds), torch.cat(sums)


def union(merging: Merging) -> tuple[Codes, torch.Tensor]:
    """The vertices of all processes, and their sums."""
    codes, sums = merging.finish()
    if not distributed.together():
        return codes, sums
    every = [distributed.gathered(tensor) for tensor in codes.packed(sums)]
    merging = Merging(merging.layout, merging.like)
    for *own, bounds, numbers in zip(*every, strict=True):
        merging.add(Codes(own, bounds.tolist()), numbers)
    return merging.finish()


def _corners(codes: Codes) -> list[range]:
    return [range(*ends) for ends in itertools.pairwise(codes.bounds)]


class Table:
    """The numbered vertices of an image's lattice."""

    def __init__(self, layout: Layout, codes: Codes) -> None:
        self.layout, self.codes = layout, codes
        # If codes have several groups, the search keys combine the codes of the first with numbers up to the next.
        self._levels = [self._levels_of(codes.corner(r)) for r in range(len(codes.bounds) - 1)]

    @property
    def count(self) -> int:
        return self.codes.bounds[-1]

    def neighbours(self) -> torch.Tensor:
        """The neighbours in the form of `simplex.connect`, [D + 1, V + 1, 2]."""
        found: torch.Tensor = simplex.neighbours(self.codes.groups, self.layout.keys, self.codes.bounds)
        return found

    def numbers(self, codes: Codes) -> torch.Tensor:
        """The int32 number of each vertex of a tile."""
        found = [first + self._place(r, codes.corner(r)) for r, first in enumerate(self.codes.bounds[:-1])]
        return torch.cat(found).int()

    def _levels_of(self, codes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Ascending distinct keys from the codes of the first group, the first two groups, and so on."""
        levels, key = [], codes[0]
        for more, size in zip(codes[1:], self.layout.keys.sizes[1:], strict=True):
            distinct, number = torch.unique(key, return_inverse=True)
            levels.append(distinct)
            key = number * size + more
        return [*levels, key]

    def _place(self, r: int, codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The place of each of some codes of a corner among all of its codes."""
        (first, *levels), place = self._levels[r], codes[0]
        place = torch.searchsorted(first, place)
        for level, more, size in zip(levels, codes[1:], self.layout.keys.sizes[1:], strict=True):
            place = torch.searchsorted(level, place * size + more)
        return place

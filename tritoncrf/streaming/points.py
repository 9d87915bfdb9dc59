"""The pixels of a tile, and their lattices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tritoncrf.reference.lattice import Lattice, ScaledLattice
from tritoncrf.step import softmax
from tritoncrf.streaming.vertices import Codes, Layout, no_axes


@dataclass(frozen=True)
class Posed:
    """The problem of a tile.

    Attributes:
        features: the features of each filter, [1, D, *s].
        unary: logits [C, *s].
        valid: bool [*s], the valid pixels; None if all are.
    """

    features: Sequence[torch.Tensor]
    unary: torch.Tensor
    valid: torch.Tensor | None = None

    def points(self, x: torch.Tensor) -> torch.Tensor:
        """Values [1, C, *s] at the valid pixels, [1, C, N]."""
        return x.flatten(2) if self.valid is None else x[..., self.valid]

    def placed(self, q: torch.Tensor) -> torch.Tensor:
        """Q [1, C, N] of the valid pixels as [C, *s]; the others keep their scores."""
        if self.valid is None:
            return q.view(self.unary.shape)
        found = softmax(self.unary[None])[0]
        found[:, self.valid] = q[0]
        return found


class Seen:
    """One filter's lattice of a tile in the form for a step, with the same scale at the input and the output."""

    precision = "default"

    def __init__(self, lattice: Lattice, scale: torch.Tensor, places: torch.Tensor) -> None:
        self.lattice, self.scale = lattice, scale  # r^-1/2, [1, 1, N]
        self.places = places  # the number of each of its vertices among all, int32 [V]
        self.entry = self.exit = ScaledLattice(lattice, scale)

    def of_all(self, v: torch.Tensor) -> torch.Tensor:
        """Its own rows among those of all vertices, [1, V, C]."""
        return v.index_select(0, self.places)[None]


def packed(lattice: Lattice, codes: Codes) -> list[torch.Tensor]:
    """A tile's lattice and the codes of its vertices as tensors."""
    pairs = lattice.sorted_pairs, lattice.chunk_starts, lattice.group_starts, lattice.vertex_groups
    return [lattice.weights, lattice.vertices, *pairs, *codes.packed()]


def unpacked(tensors: Iterator[torch.Tensor], layout: Layout) -> tuple[Lattice, Codes]:
    """Read back the tensors of `packed`."""
    weights, vertices, *pairs = (next(tensors) for _ in range(6))
    codes = Codes.unpacked(tensors, layout)
    return Lattice(weights, vertices, no_axes(codes.bounds[-1], vertices), *pairs), codes

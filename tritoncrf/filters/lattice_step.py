"""The mean-field steps of lattices; each stands in for reference.step.Step, which it is tested against.

States are rows, [B, N, C] in memory, so that a vertex or a pixel is read at once; they are handed out, and taken,
as [B, C, *S].
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from tritoncrf.filters.base import Filtered, Plan
from tritoncrf.reference import lattice as reference
from tritoncrf.reference.lattice import ScaledLattice, image_of, rows_of
from tritoncrf.reference.step import mix, stacked

if TYPE_CHECKING:
    from tritoncrf.filters.lattice import Prepared

Table: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # indices and weights, see reference.slice_table


def mixed(a: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A x on the last axis, for A of shape [], [C] or [C, C]."""
    return rows @ a.mT if a.ndim == 2 else rows * a


class LatticeStep:
    """The step in PyTorch: A_m acts on the vertices, and all filters are sliced in one pass."""

    def __init__(
        self, plans: Sequence[Plan[Any]], prepared: list["Prepared"], mixing: list[torch.Tensor],
        unary: torch.Tensor, unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.prepared, self.mixing, self.arguments = prepared, mixing, (unary_weight, unary)
        self.shape = len(unary), unary.shape[2:].numel(), unary.shape[1]

    @functools.cached_property
    def unary(self) -> torch.Tensor:
        """a U in rows; going back nobody asks."""
        return rows_of(mix(*self.arguments))

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        rows = rows_of(q)
        v = [mixed(a, reference.filtered(rows, p.side_in, False)) for a, p in zip(self.mixing, self.prepared)]
        scores = self._sliced(v, self._table_out).add_(self.unary)
        return image_of(scores if last else torch.softmax(scores, 2), q)

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        rows, back = rows_of(g), None
        adjoint = [a.mT if a.ndim == 2 else a for a in self.mixing]
        v = [reference.filtered(rows, p.side_out, reverse=True) for p in self.prepared]
        if filtered:
            back = [reference.sliced(x, p.side_in, len(rows)) for x, p in zip(v, self.prepared)]
            gradient = sum(mixed(a, b) for a, b in zip(adjoint, back))
            back = [image_of(b, q) for b in back]
        else:
            gradient = self._sliced([mixed(a, x) for a, x in zip(adjoint, v)], self._table_in)
        if through_softmax:
            q_rows = rows_of(q)
            gradient = q_rows * (gradient - torch.linalg.vecdot(q_rows, gradient)[..., None])
        return image_of(gradient, q), back

    @functools.cached_property
    def _table_in(self) -> Table:
        return self._table([p.side_in for p in self.prepared])

    @functools.cached_property
    def _table_out(self) -> Table:
        return self._table([p.side_out for p in self.prepared])

    def _table(self, sides: list[ScaledLattice]) -> Table:
        """Every filter's slice table, side by side; the vertices of each filter follow those of the one before."""
        batch, indices, weights, first = self.shape[0], [], [], 0
        for side in sides:
            index, weight = reference.slice_table(side, batch)
            indices.append(index + first)
            weights.append(weight)
            first += (side.lattice.count + 1) * (batch if side.lattice.shared else 1)
        return torch.cat(indices, 1), torch.cat(weights, 1)

    def _sliced(self, vertices: list[torch.Tensor], table: Table) -> torch.Tensor:
        """sum_m scale_m . alpha S_m^T v_m: [B, N, C]."""
        index, weights = table
        rows = torch.cat([v.flatten(0, 1) for v in vertices])
        return reference.weighted_sums(rows, index, None, weights).view(self.shape)


class TritonLatticeStep:
    """The step of one or two lattices in Triton: the slice carries weights, compatibility, unary and softmax."""

    def __init__(
        self, plans: Sequence[Plan[Any]], prepared: list["Prepared"], mixing: list[torch.Tensor],
        unary: torch.Tensor, unary_weight: torch.Tensor,
    ) -> None:  # fmt: skip
        self.prepared, self.precision = prepared, plans[0].precision
        self.mix = stacked(mixing, unary.shape[1])
        self.image, self.unary_weight = unary, unary_weight.expand(unary.shape[1])
        self.made: tuple[torch.Tensor, torch.Tensor] | None = None  # what a step returned last, and its rows

    @functools.cached_property
    def unary(self) -> torch.Tensor:
        """U in rows; going back nobody asks."""
        return lattice_kernels().rows_of(self.image)

    def forward(self, q: torch.Tensor, last: bool) -> torch.Tensor:
        kernels, rows = lattice_kernels(), self._rows(q)
        v = [kernels.filtered(rows, p.side_in, reverse=False) for p in self.prepared]
        sides = [p.side_out for p in self.prepared]
        y = kernels.slice_step(v, sides, self.precision, self.mix, self.unary, self.unary_weight, last)
        return self._image(y, q)

    def backward(
        self, q: torch.Tensor, g: torch.Tensor, through_softmax: bool, filtered: bool
    ) -> tuple[torch.Tensor, Filtered]:
        kernels, rows = lattice_kernels(), self._rows(g)
        v = [kernels.filtered(rows, p.side_out, reverse=True) for p in self.prepared]
        sides = [p.side_in for p in self.prepared]
        q_rows = kernels.rows_of(q) if through_softmax else None
        y, back = kernels.slice_step_backward(v, sides, self.precision, self.mix, rows, q_rows, filtered)
        return self._image(y, q), [image_of(b, q) for b in back] if filtered else None

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        return self.made[1] if self.made is not None and self.made[0] is x else lattice_kernels().rows_of(x)

    def _image(self, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        self.made = image_of(rows, like), rows
        return self.made[0]


def lattice_kernels() -> ModuleType:
    """The Triton kernels, imported when first used: the package works without triton."""
    return importlib.import_module("tritoncrf.kernels.lattice")


def simplex_kernels() -> ModuleType:
    return importlib.import_module("tritoncrf.kernels.simplex")

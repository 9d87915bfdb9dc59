"""The permutohedral lattice in plain PyTorch (Adams, Baek and Davis 2010; the filter of CRF-as-RNN, section 5).

    K x = alpha slice(blur_D ... blur_1 blur_0 splat(x)) ,    alpha = 1 / (1 + 2^-D) ;    K^T: the blurs in reverse

splat adds a pixel's values to the D + 1 vertices of its simplex, times its barycentric weights b (reference.simplex);
blur_j is v + (v_next + v_previous) / 2 along lattice axis j; slice is splat transposed. A vertex exists where a simplex
touches it; a missing one is 0 and receives nothing.

Everything here works on rows: values [B, N, C], so that a vertex or a pixel is one contiguous row.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tritoncrf.reference.simplex import CHUNK
from tritoncrf.step import Step, few_threads

VECTOR = 16  # classes that torch's softmax of a row takes at once
BLOCK = 3 << 20  # numbers of a lattice's vertices at one time
PART = 1 << 18  # numbers that a core's cache holds beside what they are made from


@dataclass
class Lattice:
    """A built lattice: barycentric weights [Bf, N, D + 1], and what `simplex.connect` gave. Bf = 1 serves any batch."""

    chunk = CHUNK
    weights: torch.Tensor
    vertices: torch.Tensor
    neighbours: torch.Tensor
    sorted_pairs: torch.Tensor
    chunk_starts: torch.Tensor
    group_starts: torch.Tensor
    vertex_groups: torch.Tensor

    @property
    def shared(self) -> bool:
        return self.weights.shape[0] == 1

    @property
    def corners(self) -> int:
        """D + 1"""
        return self.weights.shape[2]

    @property
    def count(self) -> int:
        """V"""
        return self.neighbours.shape[1] - 1

    @property
    def alpha(self) -> float:
        return 1 / (1 + 2.0 ** (1 - self.corners))

    @functools.cached_property
    def pair_pixels(self) -> torch.Tensor:
        """The pixel of each of the sorted pairs, [E]"""
        return self.sorted_pairs // self.corners

    @functools.cached_property
    def segments(self) -> torch.Tensor:
        """Where each vertex's sorted_pairs begin, [V + 1]; vertex V has none."""
        if len(self.vertex_groups) == 0:
            return self.chunk_starts
        return self.chunk_starts[self.group_starts[self.vertex_groups]]


@dataclass
class ScaledLattice:
    """A lattice as values enter or leave it: with a per-pixel scale [Bf, 1, *S], if there is one."""

    lattice: Lattice
    scale: torch.Tensor | None

    @property
    def pixels(self) -> int:
        """N"""
        return self.lattice.weights.shape[1]

    @property
    def weights(self):
        """scale . b, [Bf, N, D + 1]"""
        b = self.lattice.weights
        return b if self.scale is None else b * self.scale.flatten(1)[:, :, None]

    @functools.cached_property
    def splat_weights(self):
        """scale . b in the order of sorted_pairs, [E]"""
        return self.weights.flatten().index_select(0, self.lattice.sorted_pairs)  # much quicker than by brackets


def rows_of(x):
    """[B, C, *S] as rows [B, N, C]; no copy where `image_of` made it."""
    return x.flatten(2).mT.contiguous()


def image_of(rows, like):
    """Rows [B, N, C] as [B, C, *S], the shape of `like`; a view."""
    return rows.mT.unflatten(2, like.shape[2:])


def splat(rows, scaled: ScaledLattice):
    """splat(scale . x) of rows [B, N, C]: [B or 1, V + 1, C], B if the lattice is shared; the last vertex is empty."""
    lattice = scaled.lattice
    rows = rows if lattice.shared else rows.flatten(0, 1)[None]
    return summed_groups(rows, lattice.pair_pixels, lattice.segments, scaled.splat_weights)


def filtered(rows, scaled: ScaledLattice, reverse: bool):
    """blur_D ... blur_0 splat(scale . x), or blur_0 ... blur_D if `reverse`: the vertices that `sliced` reads."""
    v, axes = splat(rows, scaled), scaled.lattice.neighbours.unbind(0)
    for neighbours in reversed(axes) if reverse else axes:
        v = blurred(v, neighbours)
    return v


def blurred(v, neighbours):
    """blur_j of vertices [B, V + 1, C] by their neighbours [V + 1, 2] along an axis; a part at a time, whose sums of
    two the cache holds."""
    found, part = torch.empty_like(v), max(1, PART // max(1, v.shape[2]))
    starts = torch.arange(0, 2 * min(part, v.shape[1]), 2, dtype=neighbours.dtype, device=v.device)
    for one, into in zip(v, found):
        pieces = one.split(part), neighbours.split(part), into.split(part)
        for own, index, out in zip(*pieces, strict=True):
            both = weighted_sums(one, index.flatten(), starts[: len(index)], None)
            torch.add(own, both, alpha=0.5, out=out)
    return found


def slice_table(scaled: ScaledLattice, batch: int):
    """Rows of `filtered`'s result, its groups end to end, and their b, [B N, D + 1] each; and scale . alpha, by which b
    is to be multiplied, [B N, 1]."""
    lattice, b = scaled.lattice, scaled.lattice.weights
    index = lattice.vertices.expand(batch, -1, -1)
    if lattice.shared and batch != 1:
        first = torch.arange(batch, dtype=index.dtype, device=index.device) * (lattice.count + 1)
        index = index + first[:, None, None]
    scale = b.new_ones((1, 1, 1)) if scaled.scale is None else scaled.scale.flatten(1)[..., None]
    tables = index, b.expand(batch, -1, -1), (scale * lattice.alpha).expand(batch, scaled.pixels, 1)
    return tuple(table.flatten(0, 1) for table in tables)


def sliced(v, scaled: ScaledLattice, batch: int):
    """scale . alpha slice(v): [B, N, C]."""
    index, b, factor = slice_table(scaled, batch)
    return weighted_sums(v.flatten(0, 1), index, None, b * factor).view(batch, scaled.pixels, v.shape[2])


def weights_gradient(rows, cotangent, lattice: Lattice, v_forward, v_reverse):
    """dL/db [Bf, N, D + 1] for L = <y, K x>: alpha (<y_i, v^x[r]> + <x_i, v^y[r]>).

    rows, cotangent: in . x and out . y, [B, N, C]; v_forward: `filtered` x, v_reverse: `filtered` y, reversed.
    """
    batch = rows.shape[0]
    index, *_ = slice_table(ScaledLattice(lattice, None), batch)
    total = rows.new_empty((len(index), lattice.corners))
    for r in range(lattice.corners):
        ahead, back = (v.flatten(0, 1)[index[:, r]] for v in (v_forward, v_reverse))
        total[:, r] = torch.linalg.vecdot(cotangent.flatten(0, 1), ahead) + torch.linalg.vecdot(
            rows.flatten(0, 1), back
        )
    total = total.view(rows.shape[:2] + (lattice.corners,)) * lattice.alpha
    return total.sum(0, keepdim=True) if lattice.shared else total


def softmax_of_rows(scores):
    """Q of fresh scores [.., C], written over them where classes are few: torch's softmax is slow on short rows."""
    if scores.shape[-1] >= VECTOR:
        return torch.softmax(scores, -1)
    scores -= scores.amax(-1, keepdim=True)
    scores.exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def summed_groups(rows, index, starts, weights):
    """`weighted_sums` of every group of rows, [G, n, C]."""
    if len(rows) == 1:
        return weighted_sums(rows[0], index, starts, weights)[None]
    sums = rows.new_empty((len(rows), len(index if starts is None else starts), rows.shape[2]))
    for out, x in zip(sums, rows):
        out.copy_(weighted_sums(x, index, starts, weights))
    return sums


def weighted_sums(rows, index, starts, weights):
    """Sums of weighted rows: index [n, k] or, with starts, index [E] in segments; one pass, nothing gathered."""
    if 0 in rows.shape or 0 in index.shape:
        return rows.new_zeros((index.shape[0] if starts is None else starts.shape[0], rows.shape[1]))
    if starts is None:
        starts = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype, device=index.device)
        index, weights = index.flatten(), None if weights is None else weights.flatten()
    return torch.embedding_bag(rows, index, starts, mode=0, per_sample_weights=weights)[0]


def in_few_threads(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a step in one thread where its scores are few."""

    @functools.wraps(method)
    def run(self: Step, *arguments: Any, **options: Any) -> Any:
        with few_threads(self.unary.device, self.unary.numel()):
            return method(self, *arguments, **options)

    return run


class LatticeStep(Step):
    """The step of any number of lattices: A_m acts on the vertices, and what is sliced becomes Q a part of the pixels
    at a time, while it is in the cache.

    A state, and what is kept of it, is rows [B, N, C].
    """

    @staticmethod
    def kept_shape(unary):
        return len(unary), unary.shape[2:].numel(), unary.shape[1]

    def arrange(self, x):
        return rows_of(x)

    def image(self, x):
        return image_of(x, self.unary)

    @in_few_threads
    def next(self, state):
        return self._through(state, softmax_of_rows)

    @in_few_threads
    def scores(self, state):
        return self.image(self._through(state, lambda scores: scores))

    def _through(self, rows, last):
        """`last` of the scores, rows [B, N, C]; over the state, unless it is kept."""
        found = torch.empty_like(rows) if self.keeps else rows
        *blocks, final = self._blocks(rows.shape[2])
        for block in blocks:
            self._write_scores(rows, block, found)
        self._write_scores(rows, final, found, last)
        return found

    def _write_scores(self, rows, block, found, last=None):
        """The scores of a block of classes into `found`, a part of the pixels at a time; then `last` of all classes'."""
        own = rows[..., block].contiguous()
        v = [filtered(own, K.entry, reverse=False) for K in self.operators]
        mixing = [a[block] if a.ndim == 1 else a for a in self.mixing]
        parts = (x.flatten(0, 1).split(self._part) for x in (found, self._unary_rows))
        for sums, into, unary in zip(self._sums(v, mixing, self._tables_out), *parts, strict=True):
            torch.add(sums, unary[:, block], out=into[:, block])
            if last is not None:
                into.copy_(last(into))

    def _blocks(self, classes: int):
        """The classes whose vertices are in memory at one time; all, where a matrix mixes them."""
        most = max(K.lattice.count for K in self.operators) * len(self.unary)
        count = 1 if any(a.ndim == 2 for a in self.mixing) else max(1, math.ceil(classes * most / BLOCK))
        width = max(1, math.ceil(classes / count))
        return [slice(first, min(first + width, classes)) for first in range(0, classes, width)]

    @functools.cached_property
    def _unary_rows(self):
        """a U, [B, N, C]"""
        rows = self.unary.flatten(2).mT
        return torch.mul(rows, self.unary_weight, out=rows.new_empty(rows.shape))

    @in_few_threads
    def backward(self, q, g, through_softmax: bool, messages: bool):
        back, adjoint = None, [a.mT if a.ndim == 2 else a for a in self.mixing]
        v = [filtered(g, K.exit, reverse=True) for K in self.operators]
        if messages:
            back = [sliced(x, K.entry, len(g)) for x, K in zip(v, self.operators, strict=True)]
            gradient = sum(mixed(a, b) for a, b in zip(adjoint, back))
        else:
            gradient = torch.cat([*self._sums(v, adjoint, self._tables_in)]).view(g.shape)
        if through_softmax:
            gradient = q * (gradient - torch.linalg.vecdot(q, gradient)[..., None])
        return gradient, back

    @property
    def _part(self):
        """Pixels at a time."""
        return max(1, PART // max(1, self.unary.shape[1]))

    def _sums(self, vertices, mixing, tables):
        """sum_m A_m scale_m . alpha slice_m(v_m), a part of the pixels at a time, [pixels, C]."""
        rows = [mixed(a, v).flatten(0, 1) if a.ndim else v.flatten(0, 1) for a, v in zip(mixing, vertices)]
        parts = [zip(*(x.split(self._part) for x in table)) for table in tables]
        for each in zip(*parts, strict=True):
            total, *others = (weighted_sums(v, index, None, b * factor) for v, (index, b, factor) in zip(rows, each))
            for other in others:
                total.add_(other)
            yield total

    @functools.cached_property
    def _tables_in(self):
        return self._tables([K.entry for K in self.operators])

    @functools.cached_property
    def _tables_out(self):
        return self._tables([K.exit for K in self.operators])

    def _tables(self, scaled_lattices):
        """Each filter's slice table, times its A_m where that is a number."""
        tables = (slice_table(scaled, len(self.unary)) for scaled in scaled_lattices)
        return [(*rest, factor if a.ndim else factor * a) for a, (*rest, factor) in zip(self.mixing, tables)]


def mixed(a, rows):
    """A x on the last axis, for A of shape [], [C] or [C, C]."""
    return rows @ a.mT if a.ndim == 2 else rows * a

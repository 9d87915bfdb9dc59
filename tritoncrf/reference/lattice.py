"""The permutohedral lattice in plain PyTorch (Adams, Baek and Davis 2010; the filter of CRF-as-RNN, section 5).

    K x = alpha slice(blur_D ... blur_1 blur_0 splat(x)) ,    alpha = 1 / (1 + 2^-D) ;    K^T: the blurs in reverse

splat adds a pixel's values to the D + 1 vertices of its simplex, times its barycentric weights b (reference.simplex);
blur_j is v + (v_next + v_previous) / 2 along lattice axis j; slice is splat transposed. A vertex exists where a simplex
touches it; a missing one is 0 and receives nothing.

Everything here works on rows: values [B, N, C], so that a vertex or a pixel is one contiguous row.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tritoncrf.reference.simplex import CHUNK
from tritoncrf.step import Step, few_threads

VECTOR = 16  # classes that torch's softmax of a row processes at once
BLOCK = 5 << 19  # numbers of a lattice's vertices at one time
PART = 1 << 18  # numbers that fit in a core's cache together with their inputs


@dataclass
class Lattice:
    """A built lattice: barycentric weights [Bf, N, D + 1], and the tables of `simplex.connect`. Bf = 1 fits any
    batch."""

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
    """A lattice with an optional per-pixel scale [Bf, 1, *S] at its input or output."""

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
        return self.weights.flatten().index_select(0, self.lattice.sorted_pairs)  # much quicker than indexing


def rows_of(x):
    """[B, C, *S] as rows [B, N, C]; no copy where `image_of` made it."""
    return x.flatten(2).mT.contiguous()


def image_of(rows, like):
    """Rows [B, N, C] as [B, C, *S], the shape of `like`; a view."""
    return rows.mT.unflatten(2, like.shape[2:])


def filtered(rows, scaled: ScaledLattice, reverse: bool, memory=None):
    """blur_D ... blur_0 splat(scale . x) of rows [B, N, C], or blur_0 ... blur_D if `reverse`: the vertices that
    `sliced` reads, [B or 1, V + 1, C], B if the lattice is shared; the last vertex is empty. In `memory`, [2, numbers],
    if that is given."""
    lattice = scaled.lattice
    rows = rows if lattice.shared else rows.flatten(0, 1)[None]
    shape = len(rows), lattice.count + 1, rows.shape[2]
    memory = rows.new_empty(2, math.prod(shape)) if memory is None else memory
    v, other = (x[: math.prod(shape)].view(shape) for x in memory)
    splat(rows, scaled, out=v)
    axes = lattice.neighbours.unbind(0)
    return blurred(v, axes[::-1] if reverse else axes, other)[0]


def blurred(v, axes, other):
    """Vertices [B, V + 1, C] blurred along axes, by the neighbours [V + 1, 2] along each, between these memories of
    one shape; and the memory that is free then."""
    for neighbours in axes:
        blur(v, neighbours, out=other)
        v, other = other, v
    return v, other


def splat(rows, scaled: ScaledLattice, out):
    """splat(scale . x) into vertices [B, V + 1, C], a part at a time that fits in the cache."""
    lattice = scaled.lattice
    # Elsewhere it would wait for the number of a part's pairs.
    part = _part(out) if out.device.type == "cpu" else out.shape[1]
    firsts = [0, *lattice.segments[part::part].tolist()] if part < out.shape[1] else [0]
    for n, (first, last) in enumerate(itertools.pairwise([*firsts, len(lattice.sorted_pairs)])):
        cut = slice(n * part, (n + 1) * part)
        for x, v in zip(rows, out):
            pixels, weights = lattice.pair_pixels[first:last], scaled.splat_weights[first:last]
            v[cut] = weighted_sums(x, pixels, lattice.segments[cut] - first, weights)


def blur(v, neighbours, out):
    """blur_j of vertices [B, V + 1, C] by their neighbours [V + 1, 2] along an axis, a part at a time whose sums of two
    fit in the cache."""
    part = _part(v)
    starts = torch.arange(0, 2 * min(part, v.shape[1]), 2, dtype=neighbours.dtype, device=v.device)
    for one, into in zip(v, out):
        for own, index, new in zip(one.split(part), neighbours.split(part), into.split(part), strict=True):
            both = weighted_sums(one, index.flatten(), starts[: len(index)], None)
            torch.add(own, both, alpha=0.5, out=new)


def _part(rows) -> int:
    """How many rows [.., C] at a time."""
    return max(1, PART // max(1, rows.shape[-1]))


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
    """Q of new scores [.., C], computed in place for few classes, because torch's softmax is slow on short rows."""
    if scores.shape[-1] >= VECTOR:
        return torch.softmax(scores, -1)
    scores -= scores.amax(-1, keepdim=True)
    scores.exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def weighted_sums(rows, index, starts, weights):
    """Sums of weighted rows: index [n, k] or, with starts, index [E] in segments; one pass, nothing gathered."""
    if 0 in rows.shape or 0 in index.shape:
        return rows.new_zeros((index.shape[0] if starts is None else starts.shape[0], rows.shape[1]))
    if starts is None:
        starts = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype, device=index.device)
        index, weights = index.flatten(), None if weights is None else weights.flatten()
    return torch.embedding_bag(rows, index, starts, mode=0, per_sample_weights=weights)[0]


def in_few_threads(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method of a step in one thread if it has few scores."""

    @functools.wraps(method)
    def run(self: Step, *arguments: Any, **options: Any) -> Any:
        with few_threads(self.unary.device, self.unary.numel()):
            return method(self, *arguments, **options)

    return run


class LatticeStep(Step):
    """The step of any number of lattices: A_m acts on the vertices, and sliced values become Q a part of the pixels at
    a time, while they are in the cache.

    States, and what is kept of them, are rows [B, N, C].
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
        """A block's scores into `found`, then `last` of those of all classes."""
        own = rows[..., block].clone(memory_format=torch.contiguous_format)  # may be overwritten
        # One after another, in the same memory.
        vertices = (filtered(own, K.entry, reverse=False, memory=self._memory) for K in self.operators)
        self._write_sliced(vertices, block, found, last)

    def _write_sliced(self, vertices, block, found, last):
        """Scores of a block of classes, of each filter's vertices, into `found`, a part of the pixels at a time; then
        `last` of those of all classes."""
        part = _part(found)
        into, unary = (x.flatten(0, 1).split(part) for x in (found, self._unary_rows))
        for n, (a, v, table) in enumerate(zip(self.mixing, vertices, self._tables_out, strict=True)):
            sums = self._sums(v, a[block] if a.ndim == 1 else a, table, part)
            for scores, before, more in zip(into, into if n else unary, sums, strict=True):
                torch.add(before[:, block], more, out=scores[:, block])
        for scores in into if last is not None else ():
            scores.copy_(last(scores))

    def vertices(self, state):
        """What the vertices of each filter receive from a state, blurred: [B or 1, V + 1, C]."""
        return [filtered(state, K.entry, reverse=False) for K in self.operators]

    def of_vertices(self, vertices):
        """The next state, from each filter's `vertices`."""
        found = torch.empty_like(self._unary_rows)
        self._write_sliced(vertices, slice(None), found, softmax_of_rows)
        return found

    def _blocks(self, classes: int):
        """The classes whose vertices are in memory at a time; all if a matrix mixes them. Wide blocks are quicker, so
        they may have half the numbers of a state."""
        vertices = max(K.lattice.count for K in self.operators) * len(self.unary)
        most = max(BLOCK, self.unary.numel() // 2)
        count = 1 if any(a.ndim == 2 for a in self.mixing) else max(1, math.ceil(classes * vertices / most))
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
            filters = zip(v, adjoint, self._tables_in, strict=True)
            each = zip(*(self._sums(*own, _part(g)) for own in filters), strict=True)
            gradient = torch.cat([functools.reduce(torch.add, sums) for sums in each]).view(g.shape)
        if through_softmax:
            gradient = q * (gradient - torch.linalg.vecdot(q, gradient)[..., None])
        return gradient, back

    @functools.cached_property
    def _memory(self):
        """For the vertices of one filter after another, of a block of classes, before and after a blur."""
        width = self._blocks(self.unary.shape[1])[0].stop
        most = max(K.lattice.count + 1 for K in self.operators) * max(len(self.unary), 1)
        return self.unary.new_empty(2, most * width)

    def _sums(self, v, a, table, part):
        """A scale . alpha slice(v), a part of the pixels at a time, [pixels, C]; a number A is in the table."""
        v = (mixed(a, v) if a.ndim else v).flatten(0, 1)
        for index, b, factor in zip(*(x.split(part) for x in table)):
            yield weighted_sums(v, index, None, b * factor)

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

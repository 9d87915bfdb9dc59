"""The lattice of an image that is read a tile at a time, in passes over its tiles; only vertices are kept between
passes.

    ranges      the bounds of the features, which determine the codes of vertices
    vertices    the distinct vertices, and the splat of ones, which gives the row sums after blur and slice
    splats      Q = softmax(U), splatted into v_0; then T - 1 times v is blurred and sliced, and
                Q = softmax(a U + sum_m A_m K_m Q) splatted into the next v
    result      v_{T-1}, blurred and sliced: Q_T

A splat is a sum over tiles, a slice is local, and the blurs use only vertices: up to rounding, the result is that of a
computation in memory, on the same vertices. A tile runs a step (reference/lattice.py, or kernels/lattice.py on a GPU)
with lattices of the tile's own vertices; `Seen` maps them to all vertices. With damping, the last Q of a tile is kept
in a file.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from tritoncrf import checks, reference
from tritoncrf.backends import modules, resolve, without_autocast
from tritoncrf.filters.lattice import LatticePlan
from tritoncrf.mean_field import NOT_FINITE, algebra, expect_update, possible, started
from tritoncrf.reference.lattice import Lattice, ScaledLattice
from tritoncrf.step import Step, softmax
from tritoncrf.streaming import distributed
from tritoncrf.streaming.points import Posed, Seen, packed, unpacked
from tritoncrf.streaming.scratch import Folder
from tritoncrf.streaming.vertices import Codes, Layout, Merging, Table, ends_of, layout_of, tile_lattice, union

LEAST_ROW_SUM = 1e-18  # as in filters.base.Gaussian.prepare


class Output(Protocol):
    """The output of the result, addressed by the numbers of tiles."""

    def written(self, n: int) -> bool:
        """Whether a tile was written before, by a killed run."""

    def write(self, n: int, q: torch.Tensor) -> None:
        """Write Q [C, *s] of a tile."""


Limit: TypeAlias = Callable[[Sequence[int], float, bool], None]


class Passes:
    """The passes over an image.

    Args:
        pose: returns the problem of a tile by its number; called once per pass, or twice in total if tables are kept.
        first: the problem of any tile.
        tiles: number of tiles.
        pixels: number of pixels of the image.
        names: the names, in error messages, of the features of each filter.
        arguments: weights, compatibility, iterations, damping and temperature of `mean_field`.
        folder: the folder of the state; what it contains is not computed again.
        keeps_tables: whether unaries and tables of tiles are also kept there: for each pixel a float per class, and 12
            bytes per vertex.
        advance: called with the name of a pass after each of its tiles.
    """

    def __init__(
        self, pose: Callable[[int], Posed], first: Posed, tiles: int, pixels: int, names: Sequence[str],
        arguments: Mapping[str, Any], folder: Folder, keeps_tables: bool, advance: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.pose, self.pixels, self.names, self.iterations = pose, pixels, names, arguments["iterations"]
        self.folder, self.keeps_tables, self.advance = folder, keeps_tables, advance
        self.own = distributed.share(range(tiles))
        self.like = possible(first.unary.flatten(1)[None, :, :0])  # [1, C, 0]
        self.mixing, self.unary_weight = algebra(
            self.like, arguments["weights"], arguments["compatibility"], unary_weight=1.0
        )
        self.damping, tau = expect_update(arguments["damping"], arguments["temperature"], self.like, "softmax")
        if tau is not None:
            self.mixing, self.unary_weight = [a / tau for a in self.mixing], self.unary_weight / tau
        self.dimensions = [f.shape[1] for f in first.features]
        self.backend, self.step = _served(self.mixing, self.like)
        self.module = modules(self.backend).lattice

    def run(self, output: Output, limit: Limit) -> None:
        """Write every tile's result to the output.

        Args:
            limit: called with the number of vertices of each lattice, the most vertices per pixel of a tile, and
                whether the count is complete, which is before their memory is allocated; otherwise after each tile. It
                may raise.

        Raises:
            ValueError: features are too far apart, or scores too large, for float32.
            OSError: the folder cannot be written.
        """
        with contextlib.ExitStack() as stack, torch.no_grad(), checks.check_values(True), without_autocast(self.like):
            self.states = self.folder
            if self.damping and self.folder.path is None:
                self.states = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritoncrf-"))))
            if self.iterations == 0 or not self._lay_out():
                self._write(output, None)
                return
            self._number(limit)
            self._write(output, self._iterated())

    def _over(self, name: str, compute: Callable[[int, Posed], list[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
        """The results of a pass for each tile, computed or from the folder; nothing for a tile without pixels."""
        for n in self.own:
            file = f"{name}-{n}"
            if self.folder.has(file):
                found = self.folder.load(file, self.like.device)
            else:
                posed = self._posed(n)
                found = [] if posed.valid is not None and not posed.valid.any() else compute(n, posed)
                self.folder.save(file, found)
            yield found
            self.advance(name)

    def _finish(self, name: str, result: Sequence[torch.Tensor]) -> None:
        """Keep the total of a pass over all tiles of all processes, in place of its results for each tile."""
        if distributed.rank() == 0:
            self.folder.save(name, result)
        distributed.barrier()
        for n in self.own:
            self.folder.remove(f"{name}-{n}")

    def _has(self, name: str) -> bool:
        return distributed.everywhere(self.folder.has(name))

    def _lay_out(self) -> bool:
        """Pass 1: the layouts of codes; returns whether there is any pixel."""
        ends = [torch.full((2, d), torch.inf, dtype=torch.float64) for d in self.dimensions]
        if self._has("ranges"):
            ends = self.folder.load("ranges", torch.device("cpu"))
        else:
            for own in self._over("ranges", lambda n, posed: [ends_of(posed.points(f)) for f in posed.features]):
                ends = [torch.minimum(a, b.cpu()) for a, b in zip(ends, own, strict=True)] if own else ends
            ends = [distributed.least(own) for own in ends]
            self._finish("ranges", ends)
        self.layouts: list[Layout] = []
        for name, least in zip(self.names, ends, strict=True):
            if least.isinf().any():
                return False
            with checks.renamed("features", name):
                self.layouts.append(layout_of(least, self.pixels))
        return True

    def _number(self, limit: Limit) -> None:
        """Pass 2: the tables of all vertices, their neighbours, and the splat of ones, blurred."""
        if self._has("vertices"):
            seen, *tensors = self.folder.load("vertices", self.like.device)
            every = self._unpacked(tensors)
        else:
            seen = torch.zeros((), dtype=torch.float64)
            merging = [Merging(layout, self.like) for layout in self.layouts]
            for own in self._over("vertices", self._vertices_of):
                if own:
                    seen = torch.maximum(seen, own[0].cpu())
                    for one, part in zip(merging, self._unpacked(own[1:]), strict=True):
                        one.add(*part)
                    limit([one.count for one in merging], seen.item(), False)
            every = [union(one) for one in merging]
            self._finish("vertices", [seen, *(tensor for codes, sums in every for tensor in codes.packed(sums))])
        self.tables = [Table(layout, codes) for layout, (codes, _) in zip(self.layouts, every, strict=True)]
        limit([table.count for table in self.tables], seen.item(), True)
        self.neighbours = [table.neighbours() for table in self.tables]
        self.row_sums = []
        for axes, (_, sums) in zip(self.neighbours, every, strict=True):
            v = self._rows(len(sums), 1)
            v[:-1, 0] = sums
            self.row_sums.append(self._blurred(v, axes, torch.zeros_like(v), 1)[0])

    def _vertices_of(self, n: int, posed: Posed) -> list[torch.Tensor]:
        """The number of vertices per pixel of a tile; and the vertices with the splat of ones, packed."""
        found, seen = [], 0.0
        for lattice, codes in self._lattices(n, posed):
            pixels = lattice.weights.shape[1]
            seen += lattice.count / pixels
            ones = self.module.rows_of(self.like.new_ones((1, 1, pixels)))
            sums = self.module.filtered(ones, ScaledLattice(lattice, None), reverse=False)
            found += codes.packed(sums[0, :-1, 0])
        return [torch.tensor(seen, dtype=torch.float64), *found]

    def _unpacked(self, tensors: Sequence[torch.Tensor]) -> list[tuple[Codes, torch.Tensor]]:
        """Each lattice's codes and numbers of `Codes.packed`."""
        left = iter(tensors)
        return [(Codes.unpacked(left, layout), next(left)) for layout in self.layouts]

    def _posed(self, n: int) -> Posed:
        """A tile's problem, or its kept part, since the features are in the tables."""
        name = f"unary-{n}"
        if self.keeps_tables and self.folder.has(name):
            unary, *valid = self.folder.load(name, self.like.device)
            return Posed((), unary, *valid)
        return self.pose(n)

    def _lattices(self, n: int, posed: Posed) -> list[tuple[Lattice, Codes]]:
        """The lattices of a tile's pixels, new or kept."""
        name = f"tables-{n}"
        if self.keeps_tables and self.folder.has(name):
            left = iter(self.folder.load(name, self.like.device))
            return [unpacked(left, layout) for layout in self.layouts]
        each = zip(posed.features, self.layouts, strict=True)
        made = [tile_lattice(posed.points(f), layout, self.backend) for f, layout in each]
        if self.keeps_tables:
            self.folder.save(name, [tensor for own in made for tensor in packed(*own)])
            self.folder.save(f"unary-{n}", [posed.unary, *([] if posed.valid is None else [posed.valid])])
        return made

    def _seen(self, n: int, posed: Posed) -> list[Seen]:
        """The lattices of a tile's pixels with their scales, r^-1/2, and their places."""
        lattices, found = self._lattices(n, posed), []
        name = f"places-{n}"
        if self.keeps_tables and self.folder.has(name):
            left = iter(self.folder.load(name, self.like.device))
            return [Seen(lattice, next(left), next(left)) for lattice, _ in lattices]
        for (lattice, codes), table, sums in zip(lattices, self.tables, self.row_sums, strict=True):
            places = table.numbers(codes)
            own = sums.index_select(0, places)[None, :, :1]
            r = self.module.sliced(own, ScaledLattice(lattice, None), 1).mT  # [1, 1, N]
            found.append(Seen(lattice, r.clamp_min(LEAST_ROW_SUM).rsqrt(), places))
        if self.keeps_tables:
            self.folder.save(name, [tensor for one in found for tensor in (one.scale, one.places)])
        return found

    def _iterated(self) -> list[torch.Tensor]:
        """The T passes with a splat; returns each lattice's blurred v_{T-1}."""
        classes = self.like.shape[1]
        last = next((t for t in reversed(range(self.iterations)) if self._has(f"splats{t}")), -1)
        v = [self._rows(table.count, classes) for table in self.tables]
        if last >= 0:
            for one, kept in zip(v, self.folder.load(f"splats{last}", self.like.device), strict=True):
                one[:-1, :classes] = kept
        spare = [torch.zeros_like(one) for one in v]
        for t in range(last + 1, self.iterations):
            for own in self._over(f"splats{t}", functools.partial(self._splats_of, t, v)):
                for total, places, rows in zip(spare, own[::2], own[1::2]):
                    before = total.index_select(0, places)
                    before[:, :classes] += rows
                    total.index_copy_(0, places.long(), before)
            for m, axes in enumerate(self.neighbours):
                v[m], spare[m] = self._blurred(distributed.summed(spare[m]), axes, v[m], classes)
                spare[m].zero_()
            self._finish(f"splats{t}", [one[:-1, :classes] for one in v])
            self.folder.remove(f"splats{t - 1}")
            for n in self.own:
                self.states.remove(f"q{t - 1}-{n}")
        return v

    def _splats_of(self, t: int, v: Sequence[torch.Tensor], n: int, posed: Posed) -> list[torch.Tensor]:
        """Places and rows, for each lattice, of Q_t of a tile's pixels."""
        seen = self._seen(n, posed)
        step = self._step(posed, seen)
        state = self._state(step, n, t, v)
        if self.damping:
            self.states.save(f"q{t}-{n}", [state])
        rows = step.vertices(state)
        return [tensor for own, one in zip(seen, rows, strict=True) for tensor in (own.places, one[0, :-1])]

    def _step(self, posed: Posed, seen: Sequence[Seen]) -> Any:
        unary = possible(posed.points(posed.unary[None])).contiguous()
        return self.step(seen, self.mixing, unary, self.unary_weight)

    def _state(self, step: Any, n: int, t: int, v: Sequence[torch.Tensor]) -> torch.Tensor:
        """Q_t of a tile's pixels as a state of its step, from the blurred vertices of Q_{t-1}."""
        if t == 0:
            state: torch.Tensor = step.start(started(step.unary, "softmax"))
            return state
        classes = self.like.shape[1]
        state = step.of_vertices([own.of_all(one)[..., :classes] for own, one in zip(step.operators, v, strict=True)])
        if self.damping:
            [before] = self.states.load(f"q{t - 1}-{n}", self.like.device)
            state = step.damped(state, before, self.damping)
        return state

    def _write(self, output: Output, v: Sequence[torch.Tensor] | None) -> None:
        """The last pass: write Q_T, or Q_0 without iterations."""
        for n in self.own:
            if not output.written(n):
                posed = self._posed(n)
                unary = posed.points(posed.unary[None])
                if v is None or unary.shape[2] == 0:
                    q = softmax(possible(unary))
                else:
                    step = self._step(posed, self._seen(n, posed))
                    q = step.image(step.probabilities(self._state(step, n, self.iterations, v)))
                if not checks.all_finite(q):
                    raise ValueError(NOT_FINITE)
                output.write(n, posed.placed(q.contiguous()))
            self.advance("result")
        for n in self.own:
            self.states.remove(f"q{self.iterations - 1}-{n}")

    def _rows(self, count: int, classes: int) -> torch.Tensor:
        """Zeros for this many vertices and an empty one, with rows as wide as the kernels need."""
        width = classes if self.backend == "torch" else -(-classes // 4) * 4
        return self.like.new_zeros((count + 1, width))

    def _blurred(
        self, v: torch.Tensor, neighbours: torch.Tensor, other: torch.Tensor, classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows blurred along all axes, and the memory that is then free."""
        found = self.module.blurred(v[None, :, :classes], neighbours.unbind(0), other[None, :, :classes])
        return (v, other) if found[0].data_ptr() == v.data_ptr() else (other, v)


def _served(mixing: Sequence[torch.Tensor], like: torch.Tensor) -> tuple[str, type[Any]]:
    """The backend and the step for values like these: Triton if its step supports them."""
    backend = resolve("auto", like.device, like.dtype)
    plans = [LatticePlan("default", backend, include_self=True, normalization="symmetric")] * len(mixing)
    kind = plans[0].step(plans, mixing, like)
    return ("torch", reference.lattice.LatticeStep) if kind is Step else (backend, kind)

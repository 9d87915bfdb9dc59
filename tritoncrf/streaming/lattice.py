"""The lattice CRF of an image within a budget of memory: its tiles, and the passes over them."""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch

from tritoncrf.problem import Problem, Whole, features, loop
from tritoncrf.streaming import distributed
from tritoncrf.streaming.needs import Form, expect_fit, windows
from tritoncrf.streaming.passes import Passes
from tritoncrf.streaming.points import Posed
from tritoncrf.streaming.scratch import Folder
from tritoncrf.streaming.sources import Window

__all__ = ["Plan", "planned"]

LOOK = "theta_space, theta_color"


@dataclass(frozen=True)
class Placed:
    """An output that is addressed by the numbers of tiles, based on one that is addressed by windows."""

    tiles: Sequence[Window]
    done: Container[int]
    write_window: Callable[[int, Window, torch.Tensor], None]

    def written(self, n: int) -> bool:
        return n in self.done

    def write(self, n: int, q: torch.Tensor) -> None:
        self.write_window(n, self.tiles[n], q)


@dataclass(frozen=True)
class Plan:
    """An image in tiles within a budget.

    Attributes:
        whole: what belongs to the whole image.
        pose: gives the problem of a window.
        first: that of a pixel.
        tiles: the windows; each of several processes has its `distributed.share`.
        form: the memory of a tile and of the vertices.
        budget, taken: total bytes, and bytes used by others.
    """

    whole: Whole
    pose: Callable[[Window], Problem]
    first: Problem
    tiles: Sequence[Window]
    form: Form
    budget: int
    taken: float

    @property
    def steps(self) -> int:
        """The number of tiles that this process reads, over all passes."""
        iterations: int = self.whole.chosen["iterations"]
        return len(distributed.share(self.tiles)) * (iterations + 3 if iterations else 1)

    def run(
        self, done: Container[int], write: Callable[[int, Window, torch.Tensor], None], folder: Folder,
        keeps_tables: bool, advance: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Solve the image's lattice CRF.

        Args:
            done: the numbers of tiles whose results exist from a killed run.
            write: takes the number of a tile, its window, and Q [C, *s] on the device.
            folder: the folder of a run with the same arguments, inputs and tiles.
            keeps_tables, advance: see `Passes`.

        Raises:
            TypeError, ValueError: as `refine`; or the budget is too small for the vertices.
            OSError: the folder cannot be written.
        """
        size, unary = self.whole.size, self.first.unary
        names = "theta_smooth", LOOK if self.first.appearance is None else "features"
        passes = Passes(
            lambda n: posed(self.pose(self.tiles[n])), posed(self.first), len(self.tiles), math.prod(size), names,
            loop(self.whole.method, self.whole.chosen, unary), folder, keeps_tables, advance,
        )  # fmt: skip

        def limit(counts: Sequence[int], seen: float, complete: bool) -> None:
            expect_fit(
                self.form, counts, seen, complete, len(size), names, self.budget, self.taken, unary.device
            )  # fmt: skip

        passes.run(Placed(self.tiles, done, write), limit)


def planned(whole: Whole, pose: Callable[[Window], Problem], budget: int, taken: float) -> Plan:
    """The plan for an image.

    Args:
        whole: what belongs to the whole image.
        pose: gives the problem of a window.
        budget: bytes in all.
        taken: of these by others, such as a result in memory.

    Raises:
        TypeError, ValueError: as `refine`; or the budget is too small for a tile.
    """
    first = pose(tuple(slice(0, 1) for _ in whole.size))
    unary = first.unary
    form = Form([f.shape[1] for f in features(first)], len(unary), unary.element_size())
    tiles = windows(whole.size, form.tile_shape(whole.size, budget, taken, unary.device))
    return Plan(whole, pose, first, tiles, form, budget, taken)


def posed(problem: Problem) -> Posed:
    """A tile's problem in the form for the passes."""
    return Posed(features(problem), problem.unary, problem.valid)

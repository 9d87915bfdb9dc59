"""The lattice CRF of an image through a budget of memory: its tiles, and the passes over them."""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch

from tritoncrf.problem import Problem, Whole, features, loop
from tritoncrf.streaming import distributed
from tritoncrf.streaming.needs import Form, expect_room, windows
from tritoncrf.streaming.passes import Passes
from tritoncrf.streaming.points import Posed
from tritoncrf.streaming.scratch import Folder
from tritoncrf.streaming.sources import Window

__all__ = ["run"]

LOOK = "theta_space, theta_color"


@dataclass(frozen=True)
class Placed:
    """An output by the numbers of tiles, of one by windows."""

    tiles: Sequence[Window]
    done: Container[int]
    write_window: Callable[[int, Window, torch.Tensor], None]

    def written(self, n: int) -> bool:
        return n in self.done

    def write(self, n: int, q: torch.Tensor) -> None:
        self.write_window(n, self.tiles[n], q)


def run(
    whole: Whole, pose: Callable[[Window], Problem], done: Container[int],
    write: Callable[[int, Window, torch.Tensor], None], folder: Folder, keeps_tables: bool, budget: int, taken: float,
    advance: Callable[[str, int], None],
) -> None:  # fmt: skip
    """The lattice CRF of an image through a budget of memory; of several processes, each has a band of the tiles.

    Args:
        whole: what belongs to the whole image.
        pose: gives the problem of a window.
        done: the numbers of tiles whose results are there, from a run that was killed.
        write: takes the number of a tile, its window, and Q [C, *s] on the device.
        folder, keeps_tables: see `Passes`; of a run with the same arguments, inputs and budget.
        budget: bytes in all.
        taken: of these by others, such as a result in memory.
        advance: called after each tile of a pass, with the name of the pass and how many of these there are in all.

    Raises:
        TypeError, ValueError: as `refine`; or the budget is too small.
        OSError: the folder cannot be written.
    """
    size = whole.size
    first = pose(tuple(slice(0, 1) for _ in size))
    device, names = first.unary.device, ("theta_smooth", LOOK if first.appearance is None else "features")
    known = posed(first)
    form = Form([f.shape[1] for f in known.features], len(first.unary), first.unary.element_size())
    tiles = windows(size, form.tile_shape(size, budget, taken, device))
    total = len(distributed.share(tiles)) * _count_of_passes(whole.chosen["iterations"])
    passes = Passes(
        lambda n: posed(pose(tiles[n])), known, len(tiles), math.prod(size), names,
        loop(whole.method, whole.chosen, first.unary), folder, keeps_tables, lambda name: advance(name, total),
    )  # fmt: skip
    fixed = len(size), names, budget, taken, device
    passes.run(Placed(tiles, done, write), lambda counts, seen: expect_room(form, counts, seen, *fixed))


def _count_of_passes(iterations: int) -> int:
    return iterations + 3 if iterations else 1


def posed(problem: Problem) -> Posed:
    """A tile's problem, as passes take it."""
    return Posed(features(problem), problem.unary, problem.valid)

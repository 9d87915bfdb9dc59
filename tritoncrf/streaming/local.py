"""CRFs whose messages travel only a few pixels in each step: tiles with a halo give the result of the whole image.

After T steps a pixel depends on pixels up to T reaches away, or one more if filters are divided by their row sums. The
results of a tile in its halo are wrong and are discarded.
"""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch

from tritoncrf import reference
from tritoncrf.filters.base import Gaussian
from tritoncrf.problem import Problem, Whole, features, kernels_of, solved
from tritoncrf.step import KEPT_STATES
from tritoncrf.streaming import distributed
from tritoncrf.streaming.budget import tile_shape
from tritoncrf.streaming.sources import Window
from tritoncrf.streaming.tiles import Layout, Tile, tiles

__all__ = ["Plan", "layout_of", "planned"]

# Pixels of a tile: with more, a kill loses more, and on a CPU the memory for one class of a guided filter is returned
# to the system each time, to be requested again page by page.
ENOUGH = {"cpu": 1 << 20, "cuda": 1 << 26}
WIDE = 10  # width of a tile, in halos, that is always allowed


@dataclass(frozen=True)
class Plan:
    """An image in tiles.

    Attributes:
        pose: gives the problem of a window.
        tiles: all tiles; each of several processes has its `distributed.share`.
    """

    pose: Callable[[Window], Problem]
    tiles: Sequence[Tile]

    @property
    def steps(self) -> int:
        """The number of tiles of this process."""
        return len(distributed.share(self.tiles))

    def run(
        self, done: Container[int], write: Callable[[int, Window, torch.Tensor], None], advance: Callable[[str], None]
    ) -> None:  # fmt: skip
        """Solve the image's CRF.

        Args:
            done: the numbers of tiles whose results exist.
            write: takes the number of a tile, its window, and Q [C, *s] on the device.
            advance: called after each tile.
        """
        for n in distributed.share(range(len(self.tiles))):
            if n not in done:
                tile = self.tiles[n]
                inner = slice(None), *tile.inner
                write(n, tile.own, solved([self.pose(tile.seen)])[0][inner])
            advance("tiles")


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
    layout = layout_of(first)
    wide = math.prod(
        min(n, WIDE * (halo + align)) for n, halo, align in zip(layout.size, layout.halo, layout.align, strict=True)
    )
    enough = max(wide, ENOUGH.get(first.unary.device.type, 0))
    shape = tile_shape(layout, budget, taken + fixed_bytes(first), pixel_bytes(first), enough)
    return Plan(pose, tiles(layout, shape))


def layout_of(problem: Problem) -> Layout:
    """The layout with the halo that a problem like this one needs."""
    whole, axes = problem.whole, len(problem.whole.size)
    halo, align = (0,) * axes, 1
    for f in kernels_of(problem):
        assert f.plan is not None
        reach, block = f.plan.reach(axes), f.plan.block
        assert reach is not None
        reaches = whole.chosen["iterations"] and whole.chosen["iterations"] + isinstance(f, Gaussian)
        # Incomplete blocks are wrong; kernels process pairs of pixels, or of blocks, from the first one on.
        halo = tuple(max(h, reaches * r + block - 1) for h, r in zip(halo, reach, strict=True))
        align = max(align, 2 * block)
    return Layout(whole.size, halo, (align,) * axes)


# Bytes, from the peaks of processes that solved one tile: 2 to 21 classes, 3 to 8 channels, float32 and float64.
FIXED = 20_000_000
FIELDS = 8  # fields of a guided filter for some classes at a time, for any number of pixels
MARGIN = 1.15  # for memory that is freed but not returned to the system


def fixed_bytes(problem: Problem) -> int:
    """The bytes that do not depend on the pixels of a tile."""
    if problem.whole.method == "guided":
        return FIXED + FIELDS * reference.guided.CHUNK * problem.unary.element_size()
    return FIXED


def pixel_bytes(problem: Problem) -> float:
    """The bytes for each pixel that a tile reads, for a problem like this one."""
    whole, (classes, *size), itemsize = problem.whole, problem.unary.shape, problem.unary.element_size()
    dimensions = [f.shape[1] for f in features(problem)]
    if whole.method == "guided":
        [d] = dimensions
        # Covariances are computed in float64 before the loop begins.
        return MARGIN * max(20 * d * (d + 1) + 130 + 3 * classes * itemsize, (8 * classes + 12 * d) * itemsize)
    window = whole.chosen["window_size"] ** len(size) // 2 / whole.chosen["blur"] ** len(size)
    states = 6 if problem.valid is None else 9
    return MARGIN * (states * classes + min(window, KEPT_STATES * classes) + 6 * sum(dimensions)) * itemsize

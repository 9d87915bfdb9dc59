"""The place of a grid of pixels in a coordinate system."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Place"]

CLOSE = 0.01  # of a pixel: the largest difference that counts as rounding


@dataclass(frozen=True)
class Place:
    """A grid's place.

    Attributes:
        word: the name of the place in such files.
        system: the coordinate system, in words.
        affine: [D + 1, D + 1], from indices to coordinates.
        size: the size of the grid.
    """

    word: str
    system: str
    affine: np.ndarray
    size: tuple[int, ...]

    @property
    def steps(self) -> np.ndarray:
        """The distance of pixels along each axis, [D]."""
        return np.linalg.norm(self.affine[:-1, :-1], axis=0)

    def same(self, other: "Place") -> bool:
        """Whether both give the corners of this grid the same coordinates."""
        corners = np.array(np.meshgrid(*([0, n] for n in self.size))).reshape(len(self.size), -1)
        corners = np.concatenate([corners, np.ones((1, corners.shape[1]))])
        apart = np.abs((self.affine - other.affine) @ corners).max()
        return self.system == other.system and bool(apart <= CLOSE * self.steps.min())

    def __str__(self) -> str:
        origin, axes = self.affine[:-1, -1], self.affine[:-1, :-1].T
        columns = " ".join(f"({_numbers(column)})" for column in axes)
        return ", ".join(part for part in (self.system, f"from ({_numbers(origin)}) by {columns}") if part)


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.10g}" for value in values)

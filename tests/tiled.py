"""An image's lattice CRF in tiles and in memory, for the tests of tritoncrf/streaming."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

import tritoncrf as tc
from tritoncrf.streaming.passes import Passes
from tritoncrf.streaming.points import Posed
from tritoncrf.streaming.scratch import Folder


def cut(size: Sequence[int], shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """The tiles of an image."""
    axes = [[slice(s, min(s + step, n)) for s in range(0, n, step)] for n, step in zip(size, shape)]
    return [*itertools.product(*axes)]


@dataclass
class Image:
    """An image's features [1, D, *S] for each lattice, its unary [C, *S], and which pixels are there."""

    features: list[torch.Tensor]
    unary: torch.Tensor
    valid: torch.Tensor | None = None

    @classmethod
    def of(cls, size: Sequence[int], classes: int = 3, dtype=torch.float64, channels: int = 2) -> "Image":
        """Smooth regions with texture."""
        photo = torch.rand(1, channels, *(-(-n // 4) for n in size), dtype=dtype)
        photo = torch.nn.functional.interpolate(photo, size=tuple(size)) + 0.1 * torch.rand(
            1, channels, *size, dtype=dtype
        )
        features = [tc.features.spatial(size, 2.0, dtype=dtype), tc.features.bilateral(photo.clamp(0, 1), 8.0, 30.0)]
        return cls(features, torch.randn(classes, *size, dtype=dtype))

    def to(self, device) -> "Image":
        valid = None if self.valid is None else self.valid.to(device)
        return Image([f.to(device) for f in self.features], self.unary.to(device), valid)

    def lattices(self) -> list[tc.filters.Lattice]:
        """In memory, of the pixels that are there."""
        of = [f if self.valid is None else f[..., self.valid] for f in self.features]
        return [tc.filters.Lattice(f, normalization="symmetric") for f in of]

    def in_memory(self, **arguments) -> torch.Tensor:
        """Q [C, *S]."""
        unary = self.unary if self.valid is None else self.unary[:, self.valid]
        q = tc.mean_field(unary[None], self.lattices(), **arguments)[0]
        if self.valid is None:
            return q
        found = torch.softmax(self.unary, 0)
        found[:, self.valid] = q
        return found


DEFAULTS = {"compatibility": "potts", "iterations": 3, "damping": 0.0, "temperature": 1.0}


@dataclass
class Streamed:
    """A run over an image in tiles, and what it left."""

    image: Image
    shape: Sequence[int]
    arguments: dict
    path: object = None
    keeps_tables: bool = False
    stops_at: int | None = None  # of all problems that are posed, the one at which it is killed
    posed: int = 0
    q: torch.Tensor = field(init=False)
    counts: Sequence[int] = ()
    passes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.q = torch.full_like(self.image.unary, torch.nan)
        self.tiles = cut(self.image.unary.shape[1:], self.shape)

    def pose(self, n: int) -> Posed:
        if self.posed == self.stops_at:
            raise KeyboardInterrupt
        self.posed += 1
        place = self.tiles[n]
        valid = None if self.image.valid is None else self.image.valid[place]
        features = [f[(slice(None), slice(None), *place)] for f in self.image.features]
        return Posed(features, self.image.unary[(slice(None), *place)], valid)

    def written(self, n: int) -> bool:
        return not self.q[(slice(None), *self.tiles[n])].isnan().any()

    def write(self, n: int, q: torch.Tensor) -> None:
        self.q[(slice(None), *self.tiles[n])] = q

    def limit(self, counts: Sequence[int], seen: float, complete: bool) -> None:
        assert not complete or all(now >= before for now, before in zip(counts, self.counts))
        self.counts = counts

    def run(self) -> torch.Tensor:
        passes = Passes(
            self.pose, self.pose(0), len(self.tiles), self.image.unary[0].numel(), ["theta_smooth", "features"][-len(self.image.features) :],
            {**DEFAULTS, **self.arguments}, Folder(self.path), self.keeps_tables, self.passes.append,
        )  # fmt: skip
        passes.run(self, self.limit)
        return self.q

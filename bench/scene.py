"""A synthetic scene for `tritoncrf refine`, of any size: regions with soft outlines, textures, and scores with errors.

Every strip of rows is a function of its place and of the seed, so that a scene is written strip by strip. A smaller one
has the regions and the textures of the larger one's corner. What it is made of:

- classes: at each pixel the largest of C sums of waves, of 150 to 600 pixels;
- bands, 0 to 4095: the class's mean in each, waves of 20 to 60 pixels, and noise of each pixel;
- probabilities: softmax of 2 for the label and noise of deviation 1 for every class; the label is a random one in
  every sixth cell of 8 x 8 pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tritoncrf.features import bilateral
from tritoncrf.filters import Lattice

BANDS, CLASSES = 4, 10
STRIP, CELL, BLOCK = 512, 8, 512
REGIONS, TEXTURES = (150, 600), (20, 60)  # wavelengths in pixels
WAVES = 6
LOW, HIGH = 60, 200  # class means, in units of which 4095 are 255
TEXTURE, NOISE = 8.0, 6.0  # deviations in the same units
WRONG, SURE = 1 / 6, 2.0
CROP = 1000  # pixels a side on which vertices are counted
THETA = 80, 13
UNIT = 4095 / 255


@dataclass(frozen=True)
class Strip:
    """Some rows of a scene: image [4, H, W] uint16, labels [H, W] uint8, probabilities [10, H, W] float32."""

    image: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


class Scene:
    """A scene of a width, from which strips are made.

    Args:
        width: in pixels.
        seed: of all that is drawn.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.width, self.seed = width, seed
        self.regions = [_waves(random, REGIONS) for _ in range(CLASSES)]
        self.textures = [_waves(random, TEXTURES) for _ in range(BANDS)]
        self.means = random.uniform(LOW, HIGH, (CLASSES, BANDS))

    def strip(self, start: int, stop: int) -> Strip:
        """Rows from a multiple of STRIP on, at most so many."""
        random = np.random.default_rng([self.seed, start])
        rows, columns = np.arange(start, stop), np.arange(self.width)
        labels = np.argmax([_field(waves, rows, columns) for waves in self.regions], axis=0).astype(np.uint8)
        image = np.empty((BANDS, *labels.shape), np.uint16)
        for band in range(BANDS):
            value = self.means[labels, band] + TEXTURE * _field(self.textures[band], rows, columns)
            value += NOISE * random.standard_normal(labels.shape, np.float32)
            image[band] = np.clip(UNIT * value, 1, 4095).round()
        return Strip(image, labels, _probabilities(random, labels))


def _waves(random: np.random.Generator, lengths: tuple[int, int]) -> np.ndarray:
    """[WAVES, 3]: frequencies along rows and columns, in radians a pixel, and the phase."""
    angle, phase = random.uniform(0, 2 * np.pi, (2, WAVES))
    frequency = 2 * np.pi / random.uniform(*lengths, WAVES)
    return np.stack([frequency * np.sin(angle), frequency * np.cos(angle), phase], axis=1)


def _field(waves: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[H, W] of deviation 1: cos(a + b) = cos a cos b - sin a sin b makes a product of matrices of a sum of waves."""
    down = np.outer(rows, waves[:, 0]) + waves[:, 2]
    across = np.outer(columns, waves[:, 1])
    left = np.concatenate([np.cos(down), -np.sin(down)], axis=1).astype(np.float32)
    right = np.concatenate([np.cos(across), np.sin(across)], axis=1).astype(np.float32)
    return left @ right.T * np.float32((2 / WAVES) ** 0.5)


def _probabilities(random: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    cells = tuple(-(-n // CELL) for n in labels.shape)
    wrong, drawn = random.random(cells) < WRONG, random.integers(CLASSES, size=cells)
    wrong, drawn = (x.repeat(CELL, 0).repeat(CELL, 1)[: labels.shape[0], : labels.shape[1]] for x in (wrong, drawn))
    scores = random.standard_normal((CLASSES, *labels.shape), np.float32)
    scores += np.float32(SURE) * (np.where(wrong, drawn, labels) == np.arange(CLASSES)[:, None, None])
    np.exp(scores, out=scores)
    return scores / scores.sum(0)


def write(out: Path, size: int, seed: int = 0) -> None:
    """scene.tif, probabilities.tif and truth.tif, size x size pixels of 10 m."""
    import rasterio

    scene, place = Scene(size, seed), rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    kinds = {"scene": (BANDS, "uint16"), "probabilities": (CLASSES, "float32"), "truth": (1, "uint8")}
    files = {
        name: rasterio.open(
            out / f"{name}.tif", "w", driver="GTiff", width=size, height=size, count=count, dtype=dtype,
            crs="EPSG:32633", transform=place, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, bigtiff="if_safer",
            photometric="minisblack", **({} if dtype == "float32" else {"compress": "deflate"}),
        )
        for name, (count, dtype) in kinds.items()
    }  # fmt: skip
    with rasterio.Env(GDAL_CACHEMAX=64):
        for start in range(0, size, STRIP):
            stop = min(start + STRIP, size)
            strip = scene.strip(start, stop)
            window = ((start, stop), (0, size))
            files["scene"].write(strip.image, window=window)
            files["probabilities"].write(strip.probabilities, window=window)
            files["truth"].write(strip.labels[None], window=window)
        for file in files.values():
            file.close()


def vertices(size: int, seed: int = 0) -> tuple[float, int]:
    """How many vertices a pixel the lattice of THETA has on a corner of the scene, and the corner's side."""
    side = min(size, CROP)
    scene = Scene(side, seed)
    bands = np.concatenate([scene.strip(at, min(at + STRIP, side)).image for at in range(0, side, STRIP)], axis=1)
    features = bilateral(torch.from_numpy(bands.astype(np.float32) / np.float32(4095))[None], *THETA)
    lattice = Lattice(features)
    return lattice.tensors[2].shape[1] / side**2, side


def run(out: Path, size: int, seed: int) -> int:
    """Write a scene and say how many vertices its lattice has."""
    write(out, size, seed)
    share, side = vertices(size, seed)
    print(f"wrote scene.tif, probabilities.tif and truth.tif of {size} x {size} pixels, {CLASSES} classes, to {out}")
    print(f"{share:.2f} vertices a pixel at theta {THETA[0]} and {THETA[1]}, on a corner of {side} x {side}")
    return 0


def accuracy(truth: Path, labels: Path) -> float:
    """The share of pixels whose label is right, of two GeoTIFF; by windows."""
    import rasterio

    right = total = 0
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(truth) as one, rasterio.open(labels) as other:
        for _, window in one.block_windows():
            found = one.read(1, window=window) == other.read(1, window=window)
            right, total = right + int(found.sum()), total + found.size
    return right / total

"""Data sets small enough for tests: one to train on, coloured rectangles with a band that is void, and one to read."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from data_files import listing, write
from tritoncrf.models import network_figures

COLORS = np.array([[40, 60, 90], [200, 80, 60], [90, 200, 120]])
SIZE = 32, 40
COUNTS = {"train": 8, "val": 3}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder in the layout of `data.folder`: three classes, splits "train" and "val", images of 32 x 40."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name in ("images", "labels"):
            (root / split / name).mkdir(parents=True)
        for n in range(count):
            labels = np.zeros(SIZE, np.uint8)
            for label in (1, 2):
                row, column = rng.integers(0, 20), rng.integers(0, 25)
                labels[row : row + 12, column : column + 15] = label
            photo = COLORS[labels] + rng.normal(0, 25, (*SIZE, 3))
            labels[:, : 3 * (n % 4)] = 255  # as many known pixels as no other image of the batch
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{n}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{n}.png")
    (root / "classes.txt").write_text("ground\nhouse\ntree\n")
    return root


@pytest.fixture
def plain(tmp_path):
    """Ten images a0 to a9 of three classes in `images` and `labels`."""
    write(tmp_path, *(f"images/a{i}.png" for i in range(10)), *(f"labels/a{i}.png" for i in range(10)))
    listing(tmp_path / "classes.txt", "sky", "road", "tree")
    return tmp_path


@pytest.fixture
def empty_figures(monkeypatch):
    """Training draws nothing in its curves and panels, which takes longer than an epoch of these small networks."""
    for name in ("curves", "panel"):
        monkeypatch.setattr(network_figures, name, lambda *_: Figure(figsize=(0.1, 0.1)))

"""The work that every report measures: W1 (ConvCRF), W2 and W4 (fully connected CRFs on the lattice and exact), W3
(guidance CRF), their training steps (W5), and the growth of one application of a filter (W7).

Scores come from a picture, never from noise: the label map is the picture's own brightness in large regions, cut
into as many equal bands as there are classes, and `noisy_scores` spoils it from the seed below. The lattice's
size follows the picture, so noise or zeros would measure another lattice.
"""

import functools
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import tritoncrf as tc
from bench import floors
from tritoncrf.filters.lattice import TABLES
from tritoncrf.reference.lattice import Lattice
from tritoncrf.synthetic import noisy_scores

SEED = 2018
GRACE_HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}
LABEL_FOLDERS = re.compile(r"labels|masks|annot|examples")
THETA_COLOR = 13.0


@dataclass(frozen=True, kw_only=True)
class CRFWork:
    """Mean field with two kernels, of smoothness and of appearance. `picture` is a file; its stem names it in reports.

    Subclasses say which `filter`, and name themselves (`id`) and their `peers`; `smooth` and `appearance` build the
    filters of some inputs, and `counts` are what a stage needs at least. Where the time depends on more than the size,
    `follows_picture`: `facts` are on what, which `counts` is given, and building waits for the device to know them.
    """

    size: tuple = (500, 334)
    classes: int = 21
    batch: int = 1
    iterations: int = 5
    picture: str = str(GRACE_HOPPER)

    weights = (3.0, 10.0)
    learns_image = False  # among the features
    follows_picture = False

    def filters(self, inputs) -> list:
        return [self.smooth(inputs), self.appearance(inputs)]


@dataclass(frozen=True)
class ConvCRFWork(CRFWork):
    """W1: position and colour kernels in a window."""

    window_size: int
    blur: int = 1
    normalization: str = "none"

    id, filter, peers, thetas = "W1", "window", ("im2col",), (3.0, THETA_COLOR)

    def smooth(self, inputs):
        return self._window(tc.features.spatial(self.size, inputs.thetas[0], **inputs.form), inputs)

    def appearance(self, inputs):
        return self._window(tc.features.color(inputs.image, inputs.thetas[1]), inputs)

    def _window(self, features, inputs):
        options = {"normalization": self.normalization, "backend": inputs.backend}
        return tc.filters.Window(features, self.window_size, blur=self.blur, **options)

    def counts(self, facts, stage="total", learns=None) -> floors.Work:
        shape = self.batch, self.classes, self.size, self.window_size, self.blur
        return floors.convcrf(*shape, self.iterations, backward=learns is not None)


@dataclass(frozen=True)
class FullCRFWork(CRFWork):
    """Kernels over all pairs of pixels, by position and by position and colour."""

    normalization: str = "symmetric"

    thetas = (3.0, 80.0, THETA_COLOR)
    dimensions = (2, 5)
    follows_picture = True

    def smooth_features(self, inputs):
        return tc.features.spatial(self.size, inputs.thetas[0], **inputs.form)

    def appearance_features(self, inputs):
        return tc.features.bilateral(inputs.image, *inputs.thetas[1:])

    def smooth(self, inputs):
        return self._full(self.smooth_features(inputs), inputs)

    def appearance(self, inputs):
        return self._full(self.appearance_features(inputs), inputs)

    def _full(self, features, inputs):
        return self.kind(features, normalization=self.normalization, backend=inputs.backend)

    def counts(self, facts, stage="total", learns=None) -> floors.Work:
        pixels = math.prod(self.size)
        (smooth, appearance), filters = self._counts(facts, pixels)
        loop = floors.full_step(filters, self.classes, pixels)
        if learns is not None:
            loop += floors.full_step_backward(filters, self.classes, pixels, learns)
        loop, appearance = loop * (self.iterations * self.batch), appearance * self.batch
        kept = appearance + loop
        stages = {"smooth": smooth, "appearance": appearance, "loop": loop, "kept": kept, "total": smooth + kept}
        return stages[stage]


@dataclass(frozen=True)
class LatticeWork(FullCRFWork):
    """W2"""

    id, filter, peers, kind = "W2", "lattice", ("pydensecrf",), tc.filters.Lattice

    def facts(self, filters) -> dict:
        """Vertices of either lattice, per image and per pixel."""
        counts = [lattice_of(f).count / f.batch for f in filters]
        return {"vertices": counts, "vertices_per_pixel": [m / math.prod(self.size) for m in counts]}

    def _counts(self, facts, pixels):
        """Of building each filter (its normalising row sums are one application to one class) and applying it."""
        shapes = [(pixels, d + 1, m) for d, m in zip(self.dimensions, facts["vertices"])]
        builds = [floors.lattice_build(*shape[:2]) + floors.lattice_filter(1, *shape) for shape in shapes]
        return builds, [floors.lattice_filter(self.classes, *shape) for shape in shapes]


@dataclass(frozen=True)
class ExactWork(FullCRFWork):
    """W4"""

    id, filter, peers, kind = "W4", "exact", ("pykeops",), tc.filters.Exact

    def facts(self, filters) -> dict:
        """The share of pairs of blocks that either filter visits, each block with itself among them."""
        return {"live": [live_share(f) for f in filters]}

    def _counts(self, facts, pixels):
        """Of building each filter, which is one application to one class, and applying it."""
        shapes = [(pixels, d, live) for d, live in zip(self.dimensions, facts["live"])]
        return [[floors.exact_filter(c, *shape) for shape in shapes] for c in (1, self.classes)]


@dataclass(frozen=True, kw_only=True)
class GuidedWork(CRFWork):
    """W3: one guided filter, its guide the picture in grey levels. Its one theta is eps, in grey levels squared."""

    iterations: int = 3
    radius: int = 3

    id, filter, peers = "W3", "guided", ("torch_boxes", "kornia")
    thetas, weights = (1.0,), (2.0,)
    learns_image = True

    def guide(self, inputs) -> torch.Tensor:
        return inputs.image * 255

    def filters(self, inputs) -> list:
        return [tc.filters.Guided(self.guide(inputs), self.radius, *inputs.thetas, backend=inputs.backend)]

    def counts(self, facts, stage="total", learns=None) -> floors.Work:
        guide = math.prod(self.size), 3
        build, loop = floors.guided_statistics(*guide), floors.guided_step(self.classes, *guide)
        if learns is not None:
            loop += floors.guided_step_backward(self.classes, *guide, learns)
        if learns == "features":
            build += floors.guided_statistics_backward(*guide)
        build, loop = build * self.batch, loop * (self.iterations * self.batch)
        return {"build": build, "loop": loop, "total": build + loop}[stage]


def lattice_of(filter) -> Lattice:
    return Lattice(*filter.tensors[:TABLES])


def live_share(filter) -> float:
    _, _, starts, columns, *_ = filter.tensors
    images, blocks = starts.shape[0], starts.shape[1] - 1
    return (len(columns) + images * blocks) / (images * blocks**2)


def small(work: CRFWork) -> CRFWork:
    """The same work on few pixels: loads or compiles what first use needs, and touches little memory."""
    return replace(work, size=(32, 32), batch=1, iterations=2)


def load_picture(path, size=None) -> np.ndarray:
    """[H, W, 3] uint8, writable; resized to `size` if given."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR) if size else image)


def photographs(folder: Path | None) -> list[Path]:
    """The pictures in a folder, whatever its layout, without label maps."""
    if folder is None:
        return []
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    return sorted(path for path in found if not LABEL_FOLDERS.search(path.parent.name))


def brightness_bands(picture: np.ndarray, classes: int) -> np.ndarray:
    """[H, W] labels: brightness averaged over regions of about 16 pixels, cut at its quantiles."""
    grey = torch.from_numpy(picture).float().mean(-1)[None, None]
    coarse = F.adaptive_avg_pool2d(grey, [max(1, n // 16) for n in grey.shape[2:]])
    smooth = F.interpolate(coarse, grey.shape[2:], mode="bilinear")[0, 0].numpy()
    edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
    return np.digitize(smooth, edges)


@functools.lru_cache(maxsize=4)
def scene(path: str, size: tuple, classes: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of pictures [B, H, W, 3] uint8, shifted copies of one, and scores [B, C, H, W], each with its noise."""
    picture = load_picture(path, size)
    labels = brightness_bands(picture, classes)
    shifts = [16 * b for b in range(batch)]
    scores = [noisy_scores(np.roll(labels, n, axis=1), classes, seed=SEED + b) for b, n in enumerate(shifts)]
    return np.stack([np.roll(picture, n, axis=1) for n in shifts]), np.stack(scores)


class Inputs:
    """A work's tensors on a device. `learns`: None, "weights" (with the logits) or "features" (with both): what
    requires gradients. `backend`: the filters'."""

    def __init__(self, work: CRFWork, device, dtype=torch.float32, learns=None, backend="auto"):
        self.work, self.learns, self.backend = work, learns, backend
        self.form = {"device": device, "dtype": dtype}
        self.pictures, scores = scene(work.picture, work.size, work.classes, work.batch)
        self.image = torch.from_numpy(self.pictures).permute(0, 3, 1, 2).to(device, dtype).contiguous() / 255
        self.logits = torch.tensor(scores, **self.form)
        self.thetas, self.weights, self.learned = [*work.thetas], [*work.weights], []
        if learns:
            self.weights = self._leaves(self.weights)
            self.thetas = self._leaves(self.thetas) if learns == "features" else self.thetas
            self.logits.requires_grad_()
            self.image.requires_grad_(work.learns_image and learns == "features")
            tensors = [self.logits, self.image, *self.thetas, *self.weights]
            self.learned = [x for x in tensors if isinstance(x, torch.Tensor) and x.requires_grad]

    def _leaves(self, numbers):
        return [torch.tensor(n, **self.form, requires_grad=True) for n in numbers]

    @cached_property
    def cotangent(self):
        """Fixed and random: a cotangent of ones would check only the sums of a gradient."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(self.logits.shape, generator=generator).to(self.logits)


# W7: one axis grows, the others stay here.
_AXES = {
    "side": [128, 256, 512, 1024, 2048, 4096, 8192],
    "classes": [2, 8, 21, 64, 150, 256],
    "batch": [1, 4, 16, 32],
}
_BASE = {"side": 256, "classes": 21, "batch": 1}
GROWTH = {
    "window": (
        _BASE | {"window_size": 7, "features": 3},
        _AXES | {"window_size": [3, 7, 11, 15, 21, 31], "features": [1, 3, 8, 16, 32, 64]},
    ),
    "lattice": (_BASE | {"features": 5}, _AXES | {"features": [1, 2, 5, 8, 16]}),
    "guided": (
        _BASE | {"radius": 3, "features": 3},
        _AXES | {"radius": [3, 4, 8, 16, 32, 64, 128, 200], "features": [1, 2, 3, 4, 8]},
    ),
}
LARGEST_SIDE_ON_CPU = 2048


def growth_points(device_type: str) -> list[tuple[str, str, int]]:
    """(filter, axis, value)."""
    return [
        (filter, axis, value)
        for filter, (_, axes) in GROWTH.items()
        for axis, values in axes.items()
        for value in values
        if device_type != "cpu" or axis != "side" or value <= LARGEST_SIDE_ON_CPU
    ]


class GrowthPoint:
    """A filter at its base point with one axis changed: `build` makes it, `apply` applies it once."""

    def __init__(self, filter: str, axis: str, value: int, device):
        self.filter, self.point = filter, GROWTH[filter][0] | {axis: value}
        self.size = (self.point["side"],) * 2
        picture = torch.from_numpy(load_picture(GRACE_HOPPER, self.size)).to(device).permute(2, 0, 1)[None]
        self.features = self._features(picture, self.point["features"])
        # Probabilities of the right size made on the device: 8192 x 8192 scores from a label map would take minutes.
        shift = torch.linspace(-2, 2, self.point["classes"], device=device).view(1, -1, 1, 1)
        values = (shift * picture.float().mean(1, keepdim=True) / 64).softmax(1)
        self.values = values.repeat(self.point["batch"], 1, 1, 1)
        self.built = self.build()

    def _features(self, picture, count):
        """Colours, for a lattice after the positions, for a guided filter in grey levels. More than three: copies
        shifted a little, as deep features of neighbouring pixels resemble each other."""
        positions = []
        if self.filter == "lattice":
            positions = [tc.features.spatial(self.size, 80.0, device=picture.device)[:, :count]]
            count = max(0, count - 2)
        copies = -(-count // 3)
        scale = 1.0 if self.filter == "guided" else THETA_COLOR * copies**0.5
        colours = [picture.roll(d, dims=3) / scale for d in range(copies)]
        return torch.cat([*positions, *([torch.cat(colours, 1)[:, :count]] if copies else [])], 1)

    def build(self):
        if self.filter == "lattice":
            return tc.filters.Lattice(self.features)
        if self.filter == "guided":
            return tc.filters.Guided(self.features, self.point["radius"], eps=1.0)
        return tc.filters.Window(self.features, self.point["window_size"])

    def apply(self):
        with torch.no_grad():
            return self.built(self.values)

    @property
    def facts(self) -> dict:
        if self.filter == "lattice":
            return {"vertices_per_pixel": [lattice_of(self.built).count / math.prod(self.size)]}
        return {}

    @property
    def counts(self) -> dict[str, floors.Work]:
        """For each stage that is measured."""
        pixels, classes, batch = math.prod(self.size), self.point["classes"], self.point["batch"]
        if self.filter == "lattice":
            lattice = lattice_of(self.built)
            applied = floors.lattice_filter(classes, pixels, lattice.corners, lattice.count)
            return {"build": floors.lattice_build(pixels, lattice.corners), "apply": applied * batch}
        if self.filter == "guided":
            channels = self.point["features"]
            applied = floors.guided_filter(classes, pixels, channels)
            return {"build": floors.guided_statistics(pixels, channels), "apply": applied * batch}
        pairs = floors.pairs(self.size, (self.point["window_size"] // 2,) * 2)
        # values in and out; a multiply-add per pair and class, and per pair and feature; one exponential per pair
        operations = 2 * (classes + self.point["features"]) * pairs
        return {"apply": floors.Work(2 * classes * pixels * 4, operations, pairs) * batch}

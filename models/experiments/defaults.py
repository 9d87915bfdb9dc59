"""The effect of `refine` and the layers on typical scores, with default settings.

Sets of scores from real networks, and noisy label maps. `refine` with its defaults, each method with its defaults, the
settings of published pipelines, and the layers with their initial parameters are each compared with no CRF on the same
images. The defaults were chosen on the first half of every set; the table is for the second half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import tritoncrf as tc
from tritoncrf import reports
from tritoncrf.files import FileError
from tritoncrf.layers import Layer
from tritoncrf.models import checkpoints, data
from tritoncrf.models.augment import VOID
from tritoncrf.models.experiments.dot_plot import dots
from tritoncrf.models.experiments.runs import COMMAND, STAGES, Place, train
from tritoncrf.models.experiments.statistics import Estimate, in_blocks, jackknife
from tritoncrf.models.scored import BAND, MEASURES, Scored, counted, logits_of, measures
from tritoncrf.options import HARD
from tritoncrf.refine import refine
from tritoncrf.types import RefineOptions

__all__ = ["run"]

# Arguments of `refine`, or a function that makes an untrained layer for this many classes.
Way: TypeAlias = RefineOptions | Callable[[int], Layer]

NONE, DEFAULTS = "no CRF", "refine, defaults"
_old = tc.PARAMETERS["densecrf"]
WAYS: dict[str, Way] = {
    NONE: {"iterations": 0},
    DEFAULTS: {},
    "guided": {"method": "guided"},
    "lattice": {"method": "lattice"},
    "window": {"method": "window"},
    "densecrf, lattice": _old,
    "densecrf, window": {**_old, "method": "window", "blur": 4},
    "deeplab": tc.PARAMETERS["deeplab"],
    "irn": tc.PARAMETERS["irn"],
    "GuidanceCRF": tc.GuidanceCRF,
    "ConvCRF": tc.ConvCRF,
    "CRFRNN": tc.CRFRNN,
}
DRAWN = DEFAULTS, "lattice", "densecrf, lattice", "deeplab"
STRIDES = 8, 16, 32
COARSE = "unary_180_18"  # the run whose scores are made coarse
PERSON = 15  # of Pascal VOC's classes
LEAST = 0.03  # the share of a photo that a person must cover
BLOCK, WRONG = 8, 0.25  # pixels a side of a block of noisy labels, and the share of blocks whose label is wrong
EVERY = {90: 1, 180: 2, 360: 4}  # of CamVid's frames, by height


@dataclass(frozen=True)
class ScoreSet:
    """Images in order; video: neighbouring images are similar."""

    name: str
    items: Sequence[Scored]
    num_classes: int
    video: bool = False

    def half(self, second: bool) -> "ScoreSet":
        middle = len(self.items) // 2
        items = self.items[middle:] if second else self.items[:middle]
        return ScoreSet(self.name, items, self.num_classes, self.video)


# The sets ---------------------------------------------------------------------------------------------------------


def person(root: Path) -> ScoreSet:
    """The foreground of a network that finds people, on photos with a person."""
    items = []
    for path in sorted((root / "network_scores").rglob("*.npz")):
        labels = root / "voc" / "labels" / f"{path.stem}.png"
        if not labels.exists():
            continue
        truth = np.array(Image.open(labels))
        with np.load(path) as file:
            foreground = file["foreground"].astype(np.float32)
        truth = np.where(truth == VOID, VOID, truth == PERSON)
        if np.mean(truth == 1) >= LEAST and np.any(foreground > 0.5):
            items.append(Scored(_photo(root, path.stem), {"foreground": foreground}, truth))
    return ScoreSet("person network, VOC photos", items, 2)


def noisy(root: Path, count: int = 16) -> ScoreSet:
    """Label maps in blocks, a quarter of which have the label of another class in the photo, like coarse and partly
    wrong pseudo-labels."""
    items, draw = [], np.random.default_rng(0)
    for photo, truth in _labelled(root, count):
        labels = in_blocks_of_labels(np.where(truth == VOID, 0, truth), draw)
        items.append(Scored(photo, {"labels": labels, "num_classes": 21}, truth))
    return ScoreSet("noisy labels, VOC photos", items, 21)


def masks(root: Path, count: int = 16) -> ScoreSet:
    """The same for the photo's largest object."""
    items, draw = [], np.random.default_rng(0)
    for photo, truth in _labelled(root, count):
        known = np.bincount(truth[(truth > 0) & (truth != VOID)])
        truth = np.where(truth == VOID, VOID, truth == known.argmax())
        items.append(Scored(photo, {"mask": in_blocks_of_labels(truth == 1, draw)}, truth))
    return ScoreSet("noisy masks, VOC photos", items, 2)


def _labelled(root: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    paths = sorted((root / "voc" / "labels").glob("*.png"))
    for path in paths[:: max(1, len(paths) // count)]:
        yield _photo(root, path.stem), np.array(Image.open(path)).astype(np.int64)


def in_blocks_of_labels(labels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    coarse = labels[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
    wrong = draw.random(coarse.shape) < WRONG
    coarse = np.where(wrong, draw.choice(np.unique(labels), coarse.shape), coarse)
    blocks = coarse.repeat(BLOCK, 0).repeat(BLOCK, 1)
    rest = [(0, max(0, n - m)) for n, m in zip(labels.shape, blocks.shape)]
    return np.pad(blocks, rest, mode="edge")[: labels.shape[0], : labels.shape[1]]


def _photo(root: Path, stem: str) -> np.ndarray:
    [path] = (root / "voc" / "images").glob(f"{stem}.*")
    return np.array(Image.open(path).convert("RGB"))


def camvid(run: str, place: Place, every: int = 1) -> ScoreSet:
    """The logits of a network on the validation images."""
    cpu = torch.device("cpu")
    network = checkpoints.trained(place.best(run).with_name("last.pt"), cpu)
    images = data.Images(data.camvid(place.data, "val"), network.config.data.resize)
    items = logits_of(network.model, (images[n] for n in range(0, len(images), every)), cpu)
    return ScoreSet(run, items, len(network.classes), video=True)


def coarse(scores: ScoreSet, stride: int) -> ScoreSet:
    """The same scores averaged over blocks and upsampled, like those of a network with that stride."""

    def blurred(logits: np.ndarray) -> np.ndarray:
        low = F.avg_pool2d(torch.from_numpy(logits)[None], stride, ceil_mode=True, count_include_pad=False)
        return F.interpolate(low, logits.shape[1:], mode="bilinear")[0].numpy()

    items = [Scored(s.image, {"logits": blurred(s.scores["logits"])}, s.truth) for s in scores.items]
    return ScoreSet(f"{scores.name}, stride {stride}", items, scores.num_classes, scores.video)


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A set, and its counts [images, ...] for each method."""

    scores: ScoreSet
    counts: dict[str, np.ndarray]

    def estimates(self, method: str) -> dict[str, Estimate]:
        return self._estimates(self.counts[method], measures)

    def differences(self, method: str) -> dict[str, Estimate]:
        """The differences to no CRF on the same images."""
        pairs = np.stack([self.counts[method], self.counts[NONE]], 1)
        return self._estimates(pairs, lambda pair: measures(pair[0]) - measures(pair[1]))

    def _estimates(self, each: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> dict[str, Estimate]:
        return dict(zip(MEASURES, jackknife(in_blocks(each) if self.scores.video else each, of)))


def measured(scores: ScoreSet, ways: Mapping[str, Way] = WAYS) -> Measured:
    hard = any(kind in HARD for kind in scores.items[0].scores)
    found = {
        name: np.stack([_counts(item, scores.num_classes, way) for item in scores.items])
        for name, way in ways.items()
        if isinstance(way, Mapping) or not hard  # a layer's weights fit the scores of its network
    }
    return Measured(scores, found)


@torch.no_grad()
def _counts(item: Scored, num_classes: int, way: Way) -> np.ndarray:
    if isinstance(way, Mapping):
        return counted(refine(item.image, **item.scores, **way), item.truth, num_classes)
    q = np.asarray(refine(item.image, **item.scores, iterations=0))
    logits = torch.from_numpy(q if q.ndim == 3 else np.stack([1 - q, q])).float().log()
    photo = torch.as_tensor(item.image).permute(2, 0, 1)
    return counted(way(num_classes).eval()(logits[None], photo[None])[0], item.truth, num_classes)


# Reporting ------------------------------------------------------------------------------------------------------------


def sets(root: Path, place: Place) -> Iterator[ScoreSet]:
    """All sets, with both halves."""
    yield person(root)
    yield noisy(root)
    yield masks(root)
    for height, names in STAGES.items():
        for name in names:
            scores = camvid(name, place, EVERY[height])
            yield scores
            if name == COARSE:
                yield from (coarse(scores, stride) for stride in STRIDES)


def run(root: Path, out: Path) -> None:
    """The experiment: its trainings, then out/defaults.md, .csv and a figure."""
    for name in "camvid", "network_scores", "voc":
        if not (root / name).is_dir():
            raise FileError(f"--data {root}: expected a folder with camvid, network_scores and voc, got none of {name}")
    place = Place(root / "camvid", out)
    train(sum(STAGES.values(), []), place)
    results = []
    for scores in sets(root, place):
        results.append(measured(scores.half(second=True)))
        print(f"{scores.name}: {len(results[-1].scores.items)} images", flush=True)
        _write(out, results)


def _write(out: Path, results: list[Measured]) -> None:
    lines = [
        reports.head("Defaults: what a CRF does to scores as they come", COMMAND.format("defaults --data DATA")),
        "Percent on the second half of each set; the defaults were chosen on the first half. Without a CRF the "
        "values, in other rows the differences to it on the same images, ± one standard error (jackknife over "
        "images, for CamVid over stretches of similar frames); significant differences (5 %, Student's t) are bold. "
        f"Boundary IoU and trimap accuracy are within {BAND:.0%} of the diagonal of a border. `unary_HEIGHT_EPOCHS` is "
        "a small network on CamVid, `unary` the one trained for 60 epochs at 90 x 120. The earlier defaults were "
        "those of densecrf.",
        "",
    ]
    rows = []
    for result in results:
        lines += [f"## {result.scores.name}: {len(result.scores.items)} images", ""]
        table = []
        for name in result.counts:
            own, change = result.estimates(name), result.differences(name)
            table.append([name, *(own[m].percent() if name == NONE else change[m].difference() for m in MEASURES)])
            rows += [
                {
                    "set": result.scores.name, "method": name, "measure": m, "value": own[m].value,
                    "error": own[m].error, "difference": change[m].value, "difference_error": change[m].error,
                }
                for m in MEASURES
            ]  # fmt: skip
        lines += [reports.table(["", *MEASURES], table), ""]
    lines += ["![Plot of the differences](defaults.png)", ""]
    drawn = {
        m: {name: {result.scores.name: result.differences(name)[m] for result in results} for name in DRAWN}
        for m in ("mean IoU", "trimap accuracy")
    }
    reports.write(out, "defaults", "\n".join(lines), rows, {"defaults": dots(drawn, "points", differences=True)})

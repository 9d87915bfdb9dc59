"""Noisy scores of true label maps, refined: table 1 of the ConvCRF paper (Teichmann and Cipolla 2018), in detail.

In the paper, the accuracy of FullCRF, the fully connected CRF on the lattice, is 2.3 points below that of ConvCRF. The
released codes behind these numbers differ in more than the filter:

                 FullCRF                         ConvCRF
    unary        log P, down to -46              P itself as logits, within 1 of each other ("soft")
    messages     symmetrically normalised        not normalised; the first are of log-softmax, not of probabilities
    appearance   position and colour, 80 and 13  colour alone, 13
    window       all pixels                      k cells of 4 x 4 pixels a side
    weights      3 and 3                         3 and 10, times 0.2; and the unary's log-softmax times 0.8

So, beside the released settings, there are rows that change one of the first three at a time, rows that differ only in
the filter, and, on crops, the exact sum that the lattice approximates. Each image and seed has its own noise.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

import tritoncrf as tc
from tritoncrf import reports
from tritoncrf.demo import CLASSES, mask, photo
from tritoncrf.files import FileError
from tritoncrf.filters.base import Filter
from tritoncrf.models import data, metrics
from tritoncrf.models.augment import VOID
from tritoncrf.models.experiments.dot_plot import dots
from tritoncrf.models.experiments.runs import COMMAND
from tritoncrf.models.experiments.statistics import Estimate, accuracy, jackknife, miou_occurring, miou_present
from tritoncrf.synthetic import noisy_scores
from tritoncrf.types import Normalization

SEEDS = (0, 1, 2)
ITERATIONS = 5
THETA_SMOOTH, THETA_COLOR = 3.0, 13.0
SMALLEST = 1e-20  # log(P + SMALLEST), as the released code has it
CROP = 96, 128
MEASURES = {"accuracy": accuracy, "mIoU, present": miou_present, "mIoU, occurring": miou_occurring}
TOLD = "accuracy", "mIoU, present"  # the measures of the differences
Compared: TypeAlias = dict[str, dict[str, dict[str, Estimate]]]  # by effect, set and measure


@dataclass(frozen=True)
class Method:
    """A row of the table: how noisy scores P become logits, and what refines them.

    released: the layer ConvCRF(preset="released") with its own weights. Otherwise `mean_field` with two filters of one
    kind, for positions and for positions and colours, with these weights. Without a filter: the unary alone.
    """

    filter: Literal["", "lattice", "window", "exact"] = ""
    unary: Literal["log", "soft"] = "log"
    normalization: Normalization = "symmetric"
    theta_space: float | None = 80.0
    weights: tuple[float, float] = (3.0, 10.0)
    window_size: int = 7
    blur: int = 4
    released: bool = False

    def logits(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self.unary == "soft" else (scores + SMALLEST).log()

    def filters(self, image: torch.Tensor) -> list[Filter]:
        """What `refined` needs from an image; methods with the same `key` share it."""
        if not self.filter or self.released or self.theta_space is None:
            return []
        positions = tc.features.spatial(tuple(image.shape[2:]), THETA_SMOOTH, device=image.device)
        colored = tc.features.bilateral(image, self.theta_space, THETA_COLOR)
        how = self.normalization
        if self.filter == "window":
            size, blur = self.window_size, self.blur
            return [tc.filters.Window(f, size, blur=blur, normalization=how) for f in (positions, colored)]
        kind = tc.filters.Lattice if self.filter == "lattice" else tc.filters.Exact
        return [kind(f, normalization=how) for f in (positions, colored)]

    @property
    def key(self) -> tuple[Any, ...]:
        return self.filter, self.normalization, self.theta_space, self.window_size, self.blur, self.released

    def refined(self, scores: torch.Tensor, image: torch.Tensor, filters: list[Filter]) -> torch.Tensor:
        """Labels [H, W] of P [1, C, H, W]."""
        logits = self.logits(scores)
        if self.released:
            crf = tc.ConvCRF(
                scores.shape[1], self.window_size, self.blur, theta_space=self.theta_space,
                normalization=self.normalization, preset="released", device=image.device,
            )  # fmt: skip
            logits = crf(logits, image)
        elif self.filter:
            logits = tc.mean_field(logits, filters, self.weights, iterations=ITERATIONS, output="logits")
        return logits[0].argmax(0)


FULL, CONV = "FullCRF, released", "ConvCRF 7, released"
_full = Method("lattice", weights=(3.0, 3.0))
_conv = Method("window", "soft", "none", theta_space=None, released=True)
_equal = Method("window")
METHODS = {
    "unary": Method(),
    FULL: _full,
    **{f"ConvCRF {k}, released": replace(_conv, window_size=k) for k in (5, 7, 11, 13)},
    "FullCRF, soft": replace(_full, unary="soft"),
    "FullCRF, not normalised": replace(_full, normalization="none"),
    "FullCRF, reach 13": replace(_full, theta_space=13.0),
    "ConvCRF 7, log": replace(_conv, unary="log"),
    "ConvCRF 7, normalised": replace(_conv, normalization="symmetric"),
    "ConvCRF 7, position": replace(_conv, theta_space=80.0),
    "equal: lattice": Method("lattice"),
    "equal: lattice, reach 13": Method("lattice", theta_space=13.0),
    "equal: lattice, soft": Method("lattice", "soft"),
    "equal: window 7": _equal,
    "equal: window 11": replace(_equal, window_size=11),
    "equal: window 7, reach 13": replace(_equal, theta_space=13.0),
    "equal: window 31, reach 13": replace(_equal, theta_space=13.0, window_size=31),
    "equal: window 7, soft": replace(_equal, unary="soft"),
}
EXACT = {
    "equal: exact": Method("exact"),
    "equal: exact, reach 13": Method("exact", theta_space=13.0),
}
_names = (
    "unary", "equal: lattice", "equal: lattice, reach 13", "equal: window 7", "equal: window 7, reach 13",
    "equal: window 31, reach 13",
)  # fmt: skip
CROPPED = {name: METHODS[name] for name in _names} | EXACT
# The comparisons: the first row against the second.
EFFECTS = {
    "ConvCRF 7 for FullCRF, both as released": (CONV, FULL),
    "ConvCRF 13 for ConvCRF 7, both as released": ("ConvCRF 13, released", CONV),
    "FullCRF: soft unary for log": ("FullCRF, soft", FULL),
    "FullCRF: weights 3 and 10 for 3 and 3": ("equal: lattice", FULL),
    "FullCRF: no normalisation for symmetric": ("FullCRF, not normalised", FULL),
    "FullCRF: reach 13 for 80": ("FullCRF, reach 13", FULL),
    "ConvCRF 7: log unary for soft": ("ConvCRF 7, log", CONV),
    "ConvCRF 7: symmetric normalisation for none": ("ConvCRF 7, normalised", CONV),
    "ConvCRF 7: position in the colour kernel": ("ConvCRF 7, position", CONV),
    "equal but the filter: window 7 for lattice": ("equal: window 7", "equal: lattice"),
    "equal but the filter, reach 13: window 31 for lattice": ("equal: window 31, reach 13", "equal: lattice, reach 13"),
    "equal but the filter, reach 13: window 7 for 31": ("equal: window 7, reach 13", "equal: window 31, reach 13"),
    "equal but the filter, soft: window 7 for lattice": ("equal: window 7, soft", "equal: lattice, soft"),
    "equal but the filter: lattice for exact": ("equal: lattice", "equal: exact"),
    "equal but the filter, reach 13: lattice for exact": ("equal: lattice, reach 13", "equal: exact, reach 13"),
    "equal but the filter, reach 13: window 31 for exact": ("equal: window 31, reach 13", "equal: exact, reach 13"),
}
# Table 1 of the paper, percent: accuracy and mean IoU on Pascal VOC at 500 x 500.
PUBLISHED = {
    "unary": (86.60, 51.87), FULL: (94.79, 84.37), "ConvCRF 5, released": (97.13, 90.90), CONV: (97.13, 92.98),
    "ConvCRF 11, released": (98.97, 93.74), "ConvCRF 13, released": (98.99, 93.89),
}  # fmt: skip


# Label maps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """Photos [H, W, 3] uint8 with label maps [H, W], 255 where unknown.

    crops: the number of images with a crop. void_counts: unknown pixels count as class 0, as in ConvCRF's own label
    maps; otherwise they have the scores of class 0 and do not count.
    """

    name: str
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]]
    num_classes: int
    crops: int = 0
    void_counts: bool = False

    def scored(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """The name, the photo, the label map that the scores are made from, and the one that they are compared with."""
        for name, image, labels in self.pairs:
            known = np.where(labels == VOID, 0, labels)
            yield name, image, known, known if self.void_counts else labels

    def cropped(self, size: tuple[int, int], count: int) -> "Labelled":
        """The centres of `count` photos that are large enough."""
        crops = []
        for name, image, labels in [self.pairs[index] for index in _spread(len(self.pairs), count)]:
            row, column = ((n - m) // 2 for n, m in zip(labels.shape, size))
            if min(row, column) >= 0:
                window = slice(row, row + size[0]), slice(column, column + size[1])
                crops.append((name, image[window], labels[window]))
        return replace(self, name=f"{self.name}, {size[0]} x {size[1]}", pairs=crops)


@dataclass(frozen=True)
class Folder:
    """A folder of data: how it is read, and how many images are used.

    size: on a CPU, only the centre of this size is used. crops: the number of centres used for the exact sum.
    """

    format: str
    split: str
    images: int
    size: tuple[int, int] | None = None
    crops: int = 0


FOLDERS = {
    "voc": Folder("folder", "all", images=12, crops=4),
    "camvid": Folder("camvid", "val", images=6, crops=4),
    "coco_stuff": Folder("folder", "all", images=5, size=(128, 160)),  # 182 classes
}


def label_maps(root: Path | None, small: bool) -> list[Labelled]:
    """The demo's photo, or the folders in `root` that FOLDERS names; `small`: at the size for a CPU."""
    if root is None:
        return [Labelled("demo", [("grace_hopper", photo(), mask())], len(CLASSES), crops=1)]
    found = []
    for name, folder in FOLDERS.items():
        if (root / name).is_dir():
            examples = data.examples(folder.format, root / name, folder.split)
            pairs = []
            for index in _spread(len(examples), folder.images):
                image, labels = examples.read(index)
                pairs.append((examples.entries[index][0], np.array(image), labels))
            maps = Labelled(name, pairs, len(examples.classes), folder.crops, void_counts=name == "voc")
            found.append(maps.cropped(folder.size, len(pairs)) if small and folder.size else maps)
    if not found:
        raise FileError(f"--data {root}: expected a folder with some of {', '.join(FOLDERS)} in it, got none of them")
    return found


def _spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread."""
    count = min(count, length)
    return [round(n * (length - 1) / max(count - 1, 1)) for n in range(count)]


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """The results for one set: for each method, confusion matrices [images, seeds, C, C] and seconds per image."""

    labelled: Labelled
    confusions: dict[str, np.ndarray]
    seconds: dict[str, float]

    def estimates(self, method: str) -> dict[str, Estimate]:
        """The estimates of MEASURES."""
        return dict(zip(MEASURES, jackknife(self.confusions[method], _measures)))

    def effects(self, first: str, second: str) -> dict[str, Estimate]:
        """Differences of two methods on the same scores, whose error bars do not include the difficulty of the
        images."""
        pairs = np.stack([self.confusions[first], self.confusions[second]], 1)
        return dict(zip(MEASURES, jackknife(pairs, lambda pair: _measures(pair[0]) - _measures(pair[1]))))

    def over_seeds(self, method: str) -> float:
        """Standard deviation, over the seeds of the noise, of the accuracy over all images."""
        return float(np.std([accuracy(total[None]) for total in self.confusions[method].sum(0)], ddof=1))


def _measures(confusions: np.ndarray) -> np.ndarray:
    return np.array([measure(confusions) for measure in MEASURES.values()])


@torch.no_grad()
def measured(labelled: Labelled, methods: dict[str, Method], device: torch.device, seeds: Sequence[int]) -> Measured:
    """Measure every method on every photo and seed."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    seconds: dict[str, float] = {}
    for n, (_, image, known, truth) in enumerate(labelled.scored()):
        noisy = [noisy_scores(known, labelled.num_classes, seed=1000 * n + seed) for seed in seeds]
        scores = [torch.from_numpy(p).to(device)[None] for p in noisy]
        photo = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].contiguous()
        prepared: dict[tuple[Any, ...], list[Filter]] = {}
        for name, method in methods.items():
            if method.key not in prepared:
                prepared[method.key] = method.filters(photo)
            labels = [method.refined(p, photo, prepared[method.key]).cpu().numpy() for p in scores]
            counts = [metrics.confusion_matrix(each, truth.astype(int), labelled.num_classes) for each in labels]
            found[name].append(np.stack(counts))
            if name not in seconds:  # the first use, with its compilation and allocation, is over
                started = time.perf_counter()
                method.refined(scores[0], photo, method.filters(photo)).cpu()
                seconds[name] = time.perf_counter() - started
    return Measured(labelled, {name: np.stack(each) for name, each in found.items()}, seconds)


def run(root: Path | None, out: Path, device: torch.device) -> None:
    """The experiment: out/synthetic.md, .csv and figures."""
    small = device.type == "cpu"
    methods_of_all = METHODS if small else METHODS | EXACT
    results = []
    for labelled in label_maps(root, small):
        crops = labelled.cropped(CROP, labelled.crops)
        for maps, methods in ((labelled, methods_of_all), (crops, CROPPED)):
            if maps.pairs:
                results.append(measured(maps, methods, device, SEEDS))
                print(f"{maps.name}: {len(maps.pairs)} images", flush=True)
                _write(out, results, small)


# Reporting ------------------------------------------------------------------------------------------------------------


def _write(out: Path, results: list[Measured], small: bool) -> None:
    compared = _compared(results)
    arguments = "synthetic" if results[0].labelled.name == "demo" else "synthetic --data DATA"
    lines = [
        reports.head("Synthetic task: noisy scores, refined", COMMAND.format(arguments)),
        f"Scores by `tritoncrf.synthetic.noisy_scores`, {len(SEEDS)} seeds per image; {ITERATIONS} iterations. "
        "Percent, \N{PLUS-MINUS SIGN} one standard error over the images (jackknife of the mean over the seeds). "
        'Mean IoU of the whole set: over the classes in the truth ("present") or in truth or prediction ("occurring"). '
        "Seconds: one call on the first image, including the filters.",
        "",
        "Scaled down: the paper uses all of Pascal VOC at 500 x 500."
        + (f" The exact sum is computed on crops of {CROP[0]} x {CROP[1]}, since this is a CPU." if small else ""),
        "",
        "## Effects of each change",
        "",
        "The first minus the second on the same scores, in points. Significant differences (5 %, Student's "
        "t) are bold; among so many comparisons, some are bold by chance.",
        "",
        *(_effects_table(results, compared, measure) for measure in TOLD),
        "![Plot of these differences](synthetic-effects.png)",
        "",
    ]
    for result in results:
        labelled = result.labelled
        void = "; void counts as class 0" if labelled.void_counts else ""
        lines += [f"## {labelled.name}: {len(labelled.pairs)} images, {labelled.num_classes} classes{void}", ""]
        lines += [_table(result)]
    lines += ["![Plot of all rows](synthetic.png)", ""]
    sets = {result.labelled.name: result for result in results}
    estimates = {name: {row: r.estimates(row) for row in r.confusions} for name, r in sets.items()}
    effects = {name: {row: found[name] for row, found in compared.items() if name in found} for name in sets}
    drawn = {
        "synthetic": dots({name: _by_measure(found) for name, found in estimates.items()}),
        "synthetic-effects": dots(
            {name: _by_measure(found) for name, found in effects.items()}, "points", differences=True
        ),
    }
    reports.write(out, "synthetic", "\n".join(lines), _rows(results), drawn)


def _by_measure(found: dict[str, dict[str, Estimate]]) -> dict[str, dict[str, Estimate]]:
    return {measure: {row: each[measure] for row, each in found.items()} for measure in TOLD}


def _compared(results: list[Measured]) -> Compared:
    return {
        title: {r.labelled.name: r.effects(*pair) for r in results if set(pair) <= set(r.confusions)}
        for title, pair in EFFECTS.items()
    }


def _effects_table(results: list[Measured], compared: Compared, measure: str) -> str:
    names = [result.labelled.name for result in results]
    lines = [
        [title, *(by_set[name][measure].difference() if name in by_set else "" for name in names)]
        for title, by_set in compared.items()
        if by_set
    ]
    return reports.table([measure, *names], lines)


def _table(result: Measured) -> str:
    published = result.labelled.name == "voc"
    header = ["method", *MEASURES, "sd over seeds, accuracy", "s"]
    header += ["paper: accuracy", "mIoU"] if published else []
    lines = []
    for name in result.confusions:
        cells = [estimate.percent() for estimate in result.estimates(name).values()]
        cells += [f"{100 * result.over_seeds(name):.2f}", f"{result.seconds[name]:.2f}"]
        if published:
            cells += [f"{value:.2f}" for value in PUBLISHED.get(name, ())] or ["", ""]
        lines.append([name, *cells])
    return reports.table(header, lines)


def _rows(results: list[Measured]) -> list[dict[str, Any]]:
    """One row per set, image, seed and method, from which the tables are computed."""
    rows = []
    for result in results:
        for name, confusions in result.confusions.items():
            method = (METHODS | EXACT)[name]
            settings = {
                "unary": method.unary, "filter": method.filter, "normalization": method.normalization,
                "theta_space": method.theta_space, "window_size": method.window_size, "released": method.released,
            }  # fmt: skip
            for (image, _, _), by_seed in zip(result.labelled.pairs, confusions):
                for seed, confusion in zip(SEEDS, by_seed):
                    found = {title: measure(confusion[None]) for title, measure in MEASURES.items()}
                    rows.append(
                        {"set": result.labelled.name, "image": image, "seed": seed, "method": name}
                        | settings
                        | found
                        | {"seconds of one call": result.seconds[name]}
                    )
    return rows

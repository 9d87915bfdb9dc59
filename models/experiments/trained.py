"""Networks with and without CRFs, trained and compared: the tables of three papers at a small size.

`runs` trains the networks, `tables` says what is compared; this module measures the networks and writes the reports.
"""

import itertools
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import reports
from tritoncrf.models import checkpoints, config, data, evaluation, metrics, network_figures
from tritoncrf.models.data import Batch
from tritoncrf.models.experiments.dot_plot import dots
from tritoncrf.models.experiments.runs import COMMAND, PARTS, Place, train
from tritoncrf.models.experiments.searched import with_best_crf
from tritoncrf.models.experiments.statistics import BLOCKS, Estimate, in_blocks, over_seeds, student
from tritoncrf.models.experiments.tables import EXPERIMENTS, PUBLISHED, Claim, Experiment, Row
from tritoncrf.models.segmodel import SegModel
from tritoncrf.models.splits import examples_of, splits_of

MEASURES: dict[str, Callable[[metrics.Result], float]] = {
    "mean IoU": lambda result: result.miou,
    "pixel accuracy": lambda result: result.pixel_accuracy,
    "trimap accuracy, 1 pixel": lambda result: result.trimap_accuracy[1],
    "3 pixels": lambda result: result.trimap_accuracy[3],
    "Boundary IoU, 3 pixels": lambda result: result.boundary_iou[3],
}


@dataclass
class Measured:
    """A row: `Evaluation.counts` for each seed and validation image, [seeds, images, ...].

    video: neighbouring images are similar.
    learned_from: mean IoU of each seed on the images of its last training.
    settings: for each seed, the settings of a CRF that was searched for.
    """

    counts: np.ndarray
    classes: tuple[str, ...]
    video: bool
    learned_from: list[float]
    settings: list[str]

    def result(self, counts: np.ndarray) -> metrics.Result:
        evaluation = metrics.Evaluation(len(self.classes), metrics.WIDTHS)
        evaluation.counts += torch.from_numpy(counts)
        return evaluation.result(self.classes)

    def measures(self, counts: np.ndarray) -> np.ndarray:
        result = self.result(counts)
        return np.array([of(result) for of in MEASURES.values()])

    def estimates(self) -> dict[str, Estimate]:
        """The estimates of MEASURES."""
        return self._estimates(self.counts, self.measures)

    def differences(self, other: "Measured") -> dict[str, Estimate]:
        """Differences to another row with the same seeds and images, whose error bars do not include the difficulty of
        the images."""
        pairs = np.stack([self.counts, other.counts], 2)
        return self._estimates(pairs, lambda pair: self.measures(pair[0]) - self.measures(pair[1]))

    def _estimates(self, counts: np.ndarray, measures: Callable[[np.ndarray], np.ndarray]) -> dict[str, Estimate]:
        apart = np.stack([in_blocks(one) for one in counts]) if self.video else counts
        return dict(zip(MEASURES, over_seeds(apart, measures)))


def measured(row: Row, place: Place, device: torch.device, validate: str = "") -> Measured:
    """A row of a table, on the given split, or by default on that of its configuration."""
    each = [_of_seed(row, place, seed, device, validate) for seed in range(place.seeds)]
    counts, classes, learned_from, settings = zip(*each)
    video = place.format == "camvid"
    return Measured(np.stack(counts), classes[0], video, list(learned_from), [text for text in settings if text])


@torch.no_grad()
def _of_seed(
    row: Row, place: Place, seed: int, device: torch.device, validate: str
) -> tuple[np.ndarray, tuple[str, ...], float, str]:
    """The contents of `Measured` for one seed."""
    network = checkpoints.trained(place.best(row.run, seed).with_name(f"{row.checkpoint}.pt"), device)
    settings, model, classes = network.config, network.model, network.classes
    splits = splits_of(settings, place.data)
    if validate:
        splits["validate"] = examples_of(settings, validate, place.data)
    output, chosen, learned = "refined", "", settings.phases[0].split
    if row.crf == "none" and model.crf is not None:
        output = "unary"
    if row.crf == "search":
        learned = "held_out"
        kept = place.folder(row.run, seed) / f"disconnected_{row.checkpoint}.json"
        model, chosen = with_best_crf(model, data.Images(splits[learned], settings.data.resize), device, kept)

    def evaluated(batches: Iterable[Batch], **testing: Any) -> metrics.Evaluation:
        return evaluation.evaluate(model, batches, len(classes), device, **testing)[output]

    loaders = {name: _loader(splits[name], settings.data.resize) for name in ("validate", learned)}
    counts = [evaluated([batch], **row.testing).counts.numpy() for batch in loaders["validate"]]
    return np.stack(counts), classes, evaluated(loaders[learned], **row.testing).result(classes).miou, chosen


def _loader(examples: data.Examples, resize: tuple[int, int] | None) -> DataLoader[Any]:
    images = data.Images(examples, resize)
    return data.loader(images, data.Batches(len(images), 1, shuffle=False))


# Reporting ------------------------------------------------------------------------------------------------------------


def run(name: str, place: Place, device: torch.device) -> None:
    """An experiment: its trainings, then OUT/NAME.md, .csv and figures."""
    experiment = (PUBLISHED if place.format == "voc" else EXPERIMENTS)[name]
    names = list(dict.fromkeys(row.run for row in experiment.rows.values()))
    for run in names:  # so that errors in the data appear before any training
        splits_of(config.load(place.runs[run].config, place.settings(run)), place.data)
    train(names, place)
    rows: dict[str, Measured] = {}
    for title, row in experiment.rows.items():
        rows[title] = measured(row, place, device, experiment.validate)
        print(f"{title}: {rows[title].estimates()['mean IoU'].percent()}", flush=True)
    differences = {claim: rows[claim.first].differences(rows[claim.second]) for claim in experiment.claims}
    text = _markdown(name, experiment, place, rows, differences)
    if name == "segmodel":
        text += part_times(device)
    drawn = {
        f"{name}-differences": dots(
            {m: {"": {claim.title: each[m] for claim, each in differences.items()}} for m in MEASURES},
            "points",
            differences=True,
        ),
        f"{name}-trimap": network_figures.trimap(
            {title: row.result(row.counts.sum((0, 1))) for title, row in rows.items()}
        ),
    }
    reports.write(place.out, name, text, _rows(rows), drawn)


def _markdown(
    name: str,
    experiment: Experiment,
    place: Place,
    rows: dict[str, Measured],
    differences: dict[Claim, dict[str, Estimate]],
) -> str:
    trainings = ", ".join(sorted(set().union(*(place.commits(row.run) for row in experiment.rows.values()))))
    start, alike = "", "jackknife over the images"
    if any(row.checkpoint == "best" for row in experiment.rows.values()):
        start = ", except the network alone, from which the others start: its best epoch on these images"
    if place.format == "camvid":
        alike = f"jackknife over {BLOCKS} stretches of consecutive frames, which are similar"
    spread = "One seed; the error bars do not include the variation between seeds."
    if place.seeds > 1:
        spread = (
            f"Means of {place.seeds} trainings with seeds 0 to {place.seeds - 1}, whose spread the error bars include."
        )
    lines = [
        [
            title,
            *(estimate.percent() for estimate in row.estimates().values()),
            f"{100 * np.mean(row.learned_from):.2f}",
        ]
        for title, row in rows.items()
    ]
    compared = [
        [claim.title, *(estimate.difference() for estimate in by_measure.values())]
        for claim, by_measure in differences.items()
    ]
    claims = [_claim(claim, each["mean IoU"]) for claim, each in differences.items() if claim.published is not None]
    chosen = [
        f"{title}, seed {seed}: {text}, chosen on the held-out images.  "
        for title, row in rows.items()
        for seed, text in enumerate(row.settings)
    ]
    return "\n".join([
        reports.head(experiment.title, COMMAND.format(f"{name} {_command(place)}")),
        f"Trainings at commit {trainings}.", "",
        f"{place.size} {experiment.published}", "",
        f"Percent on the validation images, \N{PLUS-MINUS SIGN} one standard error ({alike}). {spread} All at the last "
        f"epoch{start}. \"Learned from\": mean IoU on the training images of the run or of its CRF.", "",
        reports.table(["", *MEASURES, "learned from"], lines),
        *chosen, "",
        "## What the papers claim", "",
        "Points of mean IoU. A difference is clear if it is significant at the 5 % level "
        "(Student's t); \"clear from\" is the smallest difference that would be clear here.", "",
        reports.table(["", "in the paper", "here", "clear from", "these data"], claims), "",
        "## Differences", "",
        "In points, with the same seeds and images; clear differences in bold.", "",
        reports.table(["", *MEASURES], compared),
        f"![Plot of these differences]({name}-differences.png)", "", f"![Near borders]({name}-trimap.png)", "",
    ])  # fmt: skip


def _command(place: Place) -> str:
    """The options that reproduce the report."""
    parts = ["--data", "VOC2012" if place.format == "voc" else "CAMVID", "--seeds", str(place.seeds)]
    parts += ["--data-format", "voc"] * (place.format == "voc") + ["--weights", "WEIGHTS"] * (place.weights is not None)
    parts += ["--full-size"] * place.large
    return shlex.join([*parts, *itertools.chain(*(("--set", change) for change in place.changes))])


def _claim(claim: Claim, found: Estimate) -> list[str]:
    """A row of the table of claims."""
    assert claim.published is not None
    verdict = "agree" if found.value * claim.published > 0 else "say the opposite"
    smallest = student(found.freedom) * found.error
    return [
        claim.title,
        f"{claim.published:+.2f}",
        found.percent("+"),
        f"{100 * smallest:.2f}",
        verdict if found.clear else "cannot tell",
    ]


def _rows(rows: dict[str, Measured]) -> list[dict[str, Any]]:
    """One row per seed, image and row of the table, with the measures of that image. The table's measures are not their
    means."""
    return [
        {"row": title, "seed": seed, "image": n} | dict(zip(MEASURES, row.measures(counts)))
        for title, row in rows.items()
        for seed, of_seed in enumerate(row.counts)
        for n, counts in enumerate(of_seed)
    ]


def part_times(device: torch.device, size: tuple[int, int] = (300, 500), depth: int = 101) -> str:
    """SegModel's table 4: the time of each part at the paper's size, as Markdown."""
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, device=device)
    lines = []
    for title, options in PARTS.items():
        model = SegModel(num_classes=21, depth=depth, **options).to(device).eval()
        lines.append([title, f"{_milliseconds(lambda: model(image)):.1f}"])  # noqa: B023
    scores = torch.randn(1, 21, *(n // 4 for n in size), device=device)
    guided = tc.GuidanceCRF(21, upsample=False).to(device)
    lines.append(["the guidance CRF alone, at 1/4", f"{_milliseconds(lambda: guided(scores, image)):.1f}"])
    heading = (
        f"\n## Time\n\nOne image of {size[0]} x {size[1]}, ResNet-{depth}, 21 classes, forward, random weights; best "
        "of three calls.\n\n"
    )
    published = (
        "\nThe paper has 43.7, 49.8, 50.0 and 54.4 ms on a Titan X, the last with 4.4 ms for the guidance CRF.\n"
    )
    return heading + reports.table(["", "ms"], lines) + published


@torch.no_grad()
def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return min(times[1:])

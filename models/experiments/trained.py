"""Networks with and without CRFs, trained and compared on CamVid: the tables of three papers at a small size.

`runs` are the trainings, `tables` say what is compared with what; here the networks are measured, and reported.
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
from tritoncrf.models import checkpoints, data, evaluation, metrics, network_figures
from tritoncrf.models.data import Batch
from tritoncrf.models.experiments.dot_plot import dots
from tritoncrf.models.experiments.runs import COMMAND, LARGE, PARTS, SMALL, Place, train
from tritoncrf.models.experiments.statistics import BLOCKS, Estimate, in_blocks, jackknife
from tritoncrf.models.experiments.tables import EXPERIMENTS, Experiment, Row
from tritoncrf.models.segmenter import Segmenter, WithCRF
from tritoncrf.models.segmodel import SegModel

WIDTHS = metrics.WIDTHS
MEASURES: dict[str, Callable[[metrics.Result], float]] = {
    "mean IoU": lambda result: result.miou,
    "pixel accuracy": lambda result: result.pixel_accuracy,
    "trimap accuracy, 1 pixel": lambda result: result.trimap_accuracy[1],
    "3 pixels": lambda result: result.trimap_accuracy[3],
    "Boundary IoU, 3 pixels": lambda result: result.boundary_iou[3],
}
# The CRF that learns nothing: theta_smooth and theta_space in shares of the image's height, 3 and 40 to 160 pixels of
# CamVid's 360.
FIXED = {"theta_smooth": 1 / 120, "weight_smooth": 1.0}
GRID = {
    "weight_appearance": (1.0, 3.0, 10.0), "theta_space": (1 / 9, 2 / 9, 4 / 9), "theta_color": (5.0, 10.0),
}  # fmt: skip


@dataclass
class Measured:
    """A row: `Evaluation.counts` of each validation image, and of all images that its last training learnt from."""

    counts: np.ndarray
    classes: tuple[str, ...]
    learnt_from: metrics.Result
    settings: str

    def result(self, counts: np.ndarray) -> metrics.Result:
        evaluation = metrics.Evaluation(len(self.classes), WIDTHS)
        evaluation.counts += torch.from_numpy(counts)
        return evaluation.result(self.classes)

    def measures(self, counts: np.ndarray) -> np.ndarray:
        result = self.result(counts)
        return np.array([of(result) for of in MEASURES.values()])

    def estimates(self) -> list[Estimate]:
        """Of MEASURES."""
        return jackknife(in_blocks(self.counts), self.measures)

    def differences(self, other: "Measured") -> list[Estimate]:
        """To another row on the same images: their error bars leave out what both find hard."""
        pairs = np.stack([self.counts, other.counts], 1)
        return jackknife(in_blocks(pairs), lambda pair: self.measures(pair[0]) - self.measures(pair[1]))


@torch.no_grad()
def measured(row: Row, place: Place, device: torch.device) -> Measured:
    """A row of a table."""
    network = checkpoints.trained(place.best(row.run).with_name(f"{row.checkpoint}.pt"), device)
    settings, model, classes = network.config, network.model, network.classes
    splits = {"train": data.examples(settings.data.format, place.data, settings.data.train)}
    if settings.data.held_out:
        splits["train"], splits["held_out"] = data.held_out(splits["train"], settings.data.held_out)
    splits["validate"] = data.examples(settings.data.format, place.data, settings.data.validate)
    loaders = {name: _loader(split, settings.data.resize) for name, split in splits.items()}
    output, chosen, learnt = "refined", "", settings.phases[0].split
    if row.crf == "none" and model.crf is not None:
        output = "unary"
    if row.crf == "grid":
        learnt = "held_out"
        model, chosen = with_best_crf(model, _loader(splits[learnt], settings.data.resize, batch=8), device)

    def evaluated(batches: Iterable[Batch], **testing: Any) -> metrics.Evaluation:
        return evaluation.evaluate(model, batches, len(classes), device, **testing)[output]

    return Measured(
        counts=np.stack([evaluated([batch], **row.testing).counts.numpy() for batch in loaders["validate"]]),
        classes=classes,
        learnt_from=evaluated(loaders[learnt], **row.testing).result(classes),
        settings=chosen,
    )


def _loader(examples: data.Examples, resize: tuple[int, int] | None, batch: int = 1) -> DataLoader[Any]:
    images = data.Images(examples, resize)
    return data.loader(images, data.Batches(len(images), batch, shuffle=False))


@torch.no_grad()
def with_best_crf(network: Segmenter, batches: Iterable[Batch], device: torch.device) -> tuple[Segmenter, str]:
    """A network with the fully connected CRF of GRID that has the best mean IoU on these images, and which that is."""
    seen = []
    for batch in batches:
        image = batch["image"].to(device)
        seen.append((image, network(image), batch["labels"].to(device)))
    height, classes = seen[0][0].shape[2], network.num_classes
    found = {}
    for values in itertools.product(*GRID.values()):
        options: dict[str, Any] = dict(zip(GRID, values)) | FIXED
        options |= {name: height * options[name] for name in ("theta_smooth", "theta_space")}
        crf = tc.CRFRNN(classes, **options).to(device).eval()
        counts = [
            metrics.confusion_matrix(crf(logits, image).argmax(1), truth, classes) for image, logits, truth in seen
        ]
        found[metrics.mean_iou(torch.stack(counts).sum(0))] = crf, options
    crf, options = found[max(found)]
    return WithCRF(network, crf).eval(), ", ".join(f"{name} {options[name]:g}" for name in (*GRID, *FIXED))


# Reporting ------------------------------------------------------------------------------------------------------------


def run(name: str, place: Place, device: torch.device) -> None:
    """An experiment: its trainings, then OUT/NAME.md, .csv and figures."""
    experiment = EXPERIMENTS[name]
    data.camvid(place.data, "train")  # what is wrong with the folder shows before any training
    train([row.run for row in experiment.rows.values()], place)
    rows = {}
    for title, row in experiment.rows.items():
        rows[title] = measured(row, place, device)
        print(f"{title}: {rows[title].result(rows[title].counts.sum(0)).miou:.2%}", flush=True)
    differences = {
        f"{first} \N{MINUS SIGN} {second}": dict(zip(MEASURES, rows[first].differences(rows[second])))
        for first, second in experiment.pairs
    }
    text = _markdown(name, experiment, place, rows, differences)
    if name == "segmodel":
        text += part_times(device)
    drawn = {
        f"{name}-differences": dots(
            {measure: {"": {pair: each[measure] for pair, each in differences.items()}} for measure in MEASURES},
            "points",
            differences=True,
        ),
        f"{name}-trimap": network_figures.trimap({title: row.result(row.counts.sum(0)) for title, row in rows.items()}),
    }
    reports.write(place.out, name, text, _rows(rows), drawn)


def _markdown(
    name: str,
    experiment: Experiment,
    place: Place,
    rows: dict[str, Measured],
    differences: dict[str, dict[str, Estimate]],
) -> str:
    large = " --full-size" if place.large else ""
    changes = "".join(f" --set {shlex.quote(change)}" for change in place.changes)
    trainings = ", ".join(sorted({place.commit(row.run) for row in experiment.rows.values()}))
    size, start = LARGE if place.large else SMALL, ""
    if any(row.checkpoint == "best" for row in experiment.rows.values()):
        start = ", but for the network alone, from which the others start: its best of 12 looks at these images"
    lines = [
        [title, *(estimate.percent() for estimate in row.estimates()), f"{100 * row.learnt_from.miou:.2f}"]
        for title, row in rows.items()
    ]
    compared = [
        [title, *(estimate.difference() for estimate in by_measure.values())]
        for title, by_measure in differences.items()
    ]
    chosen = [f"{title}: {row.settings}, chosen on the held-out images." for title, row in rows.items() if row.settings]
    return "\n".join([
        reports.head(experiment.title, COMMAND.format(f"{name} --data CAMVID{large}{changes}")),
        f"Trainings at commit {trainings}.", "",
        f"{size} {experiment.published}", "",
        f"Percent on the validation images, \N{PLUS-MINUS SIGN} one standard error (jackknife over {BLOCKS} stretches "
        f"of consecutive frames, which are alike). One seed, all at the last epoch{start}. \"Learnt from\": mean IoU "
        "on the images that the run, or its CRF, had.", "",
        reports.table(["", *MEASURES, "learnt from"], lines),
        *chosen, "",
        "## Differences", "",
        "In points, on the same images; bold: beyond what chance does to one in twenty (Student's t). Where the rows "
        "are two trainings of a network, another seed might change more than that.", "",
        reports.table(["", *MEASURES], compared),
        f"![The same, drawn]({name}-differences.png)", "", f"![Near borders]({name}-trimap.png)", "",
    ])  # fmt: skip


def _rows(rows: dict[str, Measured]) -> list[dict[str, Any]]:
    """A row for every image and row of the table: its own measures, of which the table's are no means."""
    return [
        {"row": title, "image": n} | dict(zip(MEASURES, row.measures(counts)))
        for title, row in rows.items()
        for n, counts in enumerate(row.counts)
    ]


def part_times(device: torch.device, size: tuple[int, int] = (300, 500), depth: int = 101) -> str:
    """SegModel's table 4: what each part takes at the paper's size, as Markdown."""
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
        "\nThe paper has 43.7, 49.8, 50.0 and 54.4 ms on a Titan X, the last 4.4 of them for the guidance CRF.\n"
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

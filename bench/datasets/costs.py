"""The cost of reading, refining and writing an image on one core, with files in the system's cache."""

import importlib.util
import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tritoncrf as tc
from bench import ROOT
from bench.datasets.simulation import Cost
from bench.workloads import brightness_bands, load_picture
from tritoncrf.datasets import cluster, manifest, workers
from tritoncrf.datasets.entries import Entry
from tritoncrf.datasets.file_stages import FileStages, Task
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.datasets.score_files import Reading
from tritoncrf.datasets.stages import Outcome
from tritoncrf.synthetic import noisy_scores

SIZE = 427, 640
OPTIONS = dict(tc.PARAMETERS["deeplab"])
CPU = [torch.device("cpu")]


@dataclass(frozen=True)
class Kind:
    """A kind of scores in a data set, and the number of images to measure; the first one only warms up."""

    words: str
    classes: int
    reading: Reading
    images: int


KINDS = {
    "maps": Kind("maps of 2 classes, float32", 3, Reading("probabilities", cams=True, background_power=4), 9),
    "logits": Kind("logits of 81 classes at an eighth, float16", 81, Reading("logits", upsample="bilinear"), 3),
    "scores": Kind("probabilities of 81 classes, float32", 81, Reading("probabilities"), 3),
}


@dataclass(frozen=True)
class Measured:
    """For one kind of scores: the costs of images after the first, the seconds of their stages, and the start-up
    time."""

    costs: list[Cost]
    stages: list[tuple[float, float, float]]
    start: float


class Nothing:
    """Stages that do nothing, to measure the transfer of an item and its outcome."""

    def read(self, item: Any, device: torch.device) -> Any:
        return item

    def key(self, loaded: Any) -> Hashable:
        return None

    def refine(self, loaded: list[Any]) -> list[Any]:
        return loaded

    def write(self, item: Any, refined: Any) -> Any:
        return refined


def measure(folder: Path, kind: Kind, size: Sequence[int], photos: Sequence[Path]) -> Measured:
    """Measure images one after another in a process with one thread."""
    stages, tasks = prepared(folder, kind, size, photos)
    begun = time.perf_counter()
    outcomes, first = [], 0.0
    for outcome in workers.run(stages, tasks, jobs=1, devices=CPU):
        first = first or time.perf_counter() - begun
        outcomes.append(done(outcome))
    later = outcomes[1:]
    costs = [Cost(sum(o.seconds), *traffic(stages, o.item)) for o in later]
    return Measured(
        costs, [o.seconds for o in later], max(0.0, first - sum(sum(o.seconds) for o in later) / len(later))
    )


def prepared(
    folder: Path, kind: Kind, size: Sequence[int], photos: Sequence[Path]
) -> tuple[FileStages, list[Task]]:  # fmt: skip
    """The stages for files, and the images, in `folder`."""
    folder.mkdir()
    tasks = []
    for n in range(kind.images):
        photo, name = load_picture(photos[n % len(photos)], tuple(size)), f"{n:03}"
        p = noisy_scores(brightness_bands(photo, kind.classes), kind.classes, seed=n)
        image, scores = folder / f"{name}.jpg", folder / f"{name}.npy"
        Image.fromarray(photo).save(image, quality=90)
        if kind.reading.cams:
            scores = folder / f"{name}.npz"
            np.savez(scores, keys=np.arange(1, kind.classes), cam=p[1:])
        elif kind.reading.upsample:
            np.save(scores, np.log(np.maximum(p[:, ::8, ::8], 1e-4)).astype(np.float16))
        else:
            np.save(scores, p)
        tasks.append(Task(Entry(name, image, scores)))
    outputs = Outputs(folder / "out")
    outputs.folder.mkdir()
    return FileStages(kind.reading, outputs, OPTIONS, "measured"), tasks


def done(outcome: Outcome) -> Outcome:
    """The outcome; raises its error, if any."""
    if outcome.error is not None:
        raise outcome.error
    return outcome


def traffic(stages: FileStages, task: Task) -> tuple[int, int]:
    """The bytes read and written for an image."""
    read = (task.entry.image, task.entry.scores)
    return sum(path.stat().st_size for path in read), stages.outputs.paths(task.entry.name)[-1].stat().st_size


def rate(stages: FileStages, tasks: Sequence[Task], jobs: int) -> float:
    """Images per second of processes, from the first outcome to the last."""
    times = [time.perf_counter() for outcome in workers.run(stages, tasks, jobs=jobs, devices=CPU) if done(outcome)]
    return (len(times) - 1) / (times[-1] - times[0])


def reporting(run: Callable[..., Iterator[Outcome]], items: int, **options: Any) -> float:
    """Seconds per item for the transfer of an item and its outcome alone."""
    times = [time.perf_counter() for _ in run(Nothing(), range(items), **options)]
    return (times[-1] - times[0]) / (len(times) - 1)


def reporting_by_ray(items: int) -> float | None:
    """The same with Ray on this machine; None without Ray."""
    if importlib.util.find_spec("ray") is None:
        return None
    os.environ["PYTHONPATH"] = str(ROOT)  # so that the processes of Ray find `bench`
    return reporting(cluster.run, items)


def noting(folder: Path, items: int) -> float:
    """Seconds per line of the manifest."""
    with manifest.opened(folder, {}) as lines:
        begun = time.perf_counter()
        for n in range(items):
            lines.add(manifest.Record(f"{n}", "", 0.0, 0.0))
        return (time.perf_counter() - begun) / items

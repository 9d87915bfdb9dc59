"""What reading, refining and writing an image cost on one core, from files in the system's cache."""

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
    """Scores as a data set has them: so many images are measured, the first of which only begins."""

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
    """Of one kind of scores: the costs of its images after the first, the seconds of their stages, and until the first
    has begun."""

    costs: list[Cost]
    stages: list[tuple[float, float, float]]
    start: float


class Nothing:
    """Stages that do nothing: what is left is what handing over an item and its outcome takes."""

    def read(self, item: Any, device: torch.device) -> Any:
        return item

    def key(self, loaded: Any) -> Hashable:
        return None

    def refine(self, loaded: list[Any]) -> list[Any]:
        return loaded

    def write(self, item: Any, refined: Any) -> Any:
        return refined


def measure(folder: Path, kind: Kind, size: Sequence[int], photos: Sequence[Path]) -> Measured:
    """An image after the other, in a process of one thread."""
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
    """The stages of files, and the images, in `folder`."""
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
    """An outcome, unless it is an error."""
    if outcome.error is not None:
        raise outcome.error
    return outcome


def traffic(stages: FileStages, task: Task) -> tuple[int, int]:
    """Bytes that were fetched for an image and stored of it."""
    read = (task.entry.image, task.entry.scores)
    return sum(path.stat().st_size for path in read), stages.outputs.paths(task.entry.name)[-1].stat().st_size


def rate(stages: FileStages, tasks: Sequence[Task], jobs: int) -> float:
    """Images a second of processes, from their first outcome on to the last."""
    times = [time.perf_counter() for outcome in workers.run(stages, tasks, jobs=jobs, devices=CPU) if done(outcome)]
    return (len(times) - 1) / (times[-1] - times[0])


def reporting(run: Callable[..., Iterator[Outcome]], items: int, **options: Any) -> float:
    """Seconds an item of handing over nothing but it and its outcome."""
    times = [time.perf_counter() for _ in run(Nothing(), range(items), **options)]
    return (times[-1] - times[0]) / (len(times) - 1)


def reporting_by_ray(items: int) -> float | None:
    """The same through Ray on this machine; None without Ray."""
    if importlib.util.find_spec("ray") is None:
        return None
    os.environ["PYTHONPATH"] = str(ROOT)  # the processes that Ray starts find `bench` by it
    return reporting(cluster.run, items)


def noting(folder: Path, items: int) -> float:
    """Seconds a line of the manifest."""
    with manifest.opened(folder, {}) as lines:
        begun = time.perf_counter()
        for n in range(items):
            lines.add(manifest.Record(f"{n}", "", 0.0, 0.0))
        return (time.perf_counter() - begun) / items

"""The report: measured costs, predictions for machines, and memory."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import drawing
from bench.datasets.costs import (
    CPU,
    KINDS,
    SIZE,
    Measured,
    measure,
    noting,
    prepared,
    rate,
    reporting,
    reporting_by_ray,
)  # fmt: skip
from bench.datasets.machines import COCO, CORES, COUNTS, LATENCY, LINK, STORAGE, predicted
from bench.datasets.resident import weigh
from bench.datasets.simulation import NAMES, Machines, Run, simulate
from bench.workloads import GRACE_HOPPER, photographs
from tritoncrf import reports
from tritoncrf.datasets import workers
from tritoncrf.files import save_small_figure
from tritoncrf.reports import number

FEW = 1000, 50  # number of small images, and of their sizes
GROWTH = 2 << 20  # bytes by which memory may grow in the second half
HANDED = 2000  # items for the measurement of transfers
SIMULATED = 200  # images in the simulation of this machine


@dataclass(frozen=True)
class Findings:
    """The measurements: costs of each kind; images per second by number of processes; seconds per image for its
    transfer and its line in the manifest, and with Ray, if installed; and memory after each small image."""

    kinds: dict[str, Measured]
    rates: dict[int, float]
    report: float
    by_ray: float | None
    memory: np.ndarray

    def predicted(self, kind: str, count: int) -> Run:
        """The data set on assumed machines; several form a Ray cluster."""
        report = self.report if count == 1 or self.by_ray is None else self.by_ray
        return predicted(self.kinds[kind], count, CORES, COCO, report)


def run(out: Path, data: Path | None) -> int:
    """Measure, simulate and write the report; returns 1 if memory grows."""
    photos = photographs(None if data is None else data / "coco_stuff") or [GRACE_HOPPER]
    findings = survey(SIZE, photos, FEW, HANDED)
    name = f"{reports.slug(reports.environment())}-datasets"
    figures = {f"{name}-scaling": drawing.scaling(findings), f"{name}-memory": drawing.memory(findings.memory, FEW)}
    memory, flat = memory_in_words(findings.memory, FEW)
    parts = [
        reports.head("Data sets", "python -m bench datasets" + (" --data DATA" if data else "")),
        costs_in_words(findings, SIZE), here_in_words(findings), predictions_in_words(findings),
        f"![images a second by processes and machines]({name}-scaling.png)\n",
        memory, f"![memory]({name}-memory.png)\n",
    ]  # fmt: skip
    reports.write(out, name, "\n".join(parts), rows(findings))
    for title, figure in figures.items():
        save_small_figure(out / f"{title}.png", figure, drawing.DPI, drawing.COLORS_OF_A_FILE)
    print("\n".join(parts))
    return 0 if flat else 1


def survey(size: Sequence[int], photos: Sequence[Path], few: tuple[int, int], handed: int) -> Findings:
    """Do all measurements."""
    with tempfile.TemporaryDirectory() as place:
        kinds = {name: measure(Path(place, name), kind, size, photos) for name, kind in KINDS.items()}
        stages, tasks = prepared(Path(place, "again"), KINDS["maps"], size, photos)
        rates = {jobs: rate(stages, tasks * (2 * jobs), jobs) for jobs in (1, 2)}
        noted = noting(Path(place), handed)
    report, by_ray = reporting(workers.run, handed, jobs=1, devices=CPU), reporting_by_ray(2 * handed)
    by_ray = None if by_ray is None else by_ray + noted
    return Findings(kinds, rates, report + noted, by_ray, np.array([*weigh(*few)]))


def costs_in_words(findings: Findings, size: Sequence[int]) -> str:
    lines = []
    for name, one in findings.kinds.items():
        fetched, stored = (np.median([getattr(cost, way) for cost in one.costs]) for way in ("fetched", "stored"))
        cells = [*map(number, np.median(one.stages, axis=0)), number(fetched, 1e-6), number(stored, 1e-6)]
        lines.append([name, *cells, number(one.start)])
    header = ["scores", "read s", "refine s", "write s", "MB fetched", "MB stored", "start s"]
    return "\n".join([
        "## Measured: an image on one core\n",
        f"Photos of {size[0]} x {size[1]}, DeepLab's settings, 10 iterations; medians, without the first image.",
        "Start: the additional time of the first outcome.\n",
        reports.table(header, lines),
        *(f"- {name}: {KINDS[name].words}" for name in findings.kinds), "",
    ])  # fmt: skip


def here_in_words(findings: Findings) -> str:
    """Processes on this machine and their simulation, with as many cores and files in memory."""
    lines = []
    for jobs, found in findings.rates.items():
        here = Machines(1, jobs, jobs, math.inf, math.inf, 0.0, 0.0, findings.report)
        simulated = SIMULATED / simulate(findings.kinds["maps"].costs, SIMULATED, here).seconds
        lines.append([str(jobs), number(found), number(simulated)])
    by_ray = "" if findings.by_ray is None else f", with Ray at most {number(findings.by_ray, 1e3)} ms"
    return "\n".join([
        "## Measured and simulated: maps on this machine\n",
        reports.table(["processes", "images/s", "simulated"], lines),
        f"Sending an image and recording its outcome takes {number(findings.report, 1e3)} ms{by_ray}.\n",
    ])  # fmt: skip


def predictions_in_words(findings: Findings) -> str:
    lines = []
    for row in rows(findings):
        busy = ", ".join(f"{words} {row[part]:.0%}" for part, words in NAMES.items() if row[part] >= 0.005)
        ends = [number(COCO / row["seconds"]), hours(row["seconds"]), row["bound"], busy]
        lines.append([row["scores"], str(row["machines"]), *ends])
    return "\n".join([
        f"## Predicted: {COCO:,} images of COCO\n",
        f"Assumed: machines with {CORES} cores, each with a process and as fast as the measured one; links of",
        f"{LINK * 8e-9:.0f} Gbit/s per machine; storage with a total of {STORAGE / 1e9:.0f} GB/s and "
        f"a latency of {LATENCY * 1e3:.0f} ms.",
        "The parent process receives every outcome, from Ray in the case of several machines.\n",
        reports.table(["scores", "machines", "images/s", "time", "bound by", "busy"], lines),
    ])  # fmt: skip


def rows(findings: Findings) -> list[dict[str, Any]]:
    """The predictions."""
    found = []
    for kind in findings.kinds:
        for count in COUNTS:
            ended = findings.predicted(kind, count)
            found.append(
                {"scores": kind, "machines": count, "seconds": ended.seconds, "bound": ended.bound, **ended.busy}
            )
    return found


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def memory_in_words(memory: np.ndarray, few: tuple[int, int]) -> tuple[str, bool]:
    """A description of the memory after each image, and whether it is constant."""
    images, sizes = few
    later = memory[images // 2 :, 0]
    grown = later[-sizes:].mean() - later[:sizes].mean()
    text = "\n".join([
        "## Measured: memory\n",
        f"{images} images of {sizes} sizes in a process of `refine_many`. In the second half it had",
        f"{later.min() / 1e6:.0f} to {later.max() / 1e6:.0f} MB of private memory. The mean of the last {sizes} images "
        f"differs by {grown / 1e6:+.1f} MB from that of the first {sizes}.",
        f"Including shared code it had at most {memory[:, 1].max() / 1e6:.0f} MB.\n",
    ])  # fmt: skip
    return text, bool(grown <= GROWTH)

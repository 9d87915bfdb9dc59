"""Assumptions about machines that are not present, and predictions for a data set on them."""

from bench.datasets.costs import Measured
from bench.datasets.simulation import Machines, Run, simulate

COCO = 80_000  # images

CORES = 32
LINK = 25e9 / 8  # bytes per second of each machine
STORAGE = 10e9  # bytes per second of all together
LATENCY = 0.01  # seconds
COUNTS = 1, 8, 64


def predicted(measured: Measured, count: int, processes: int, images: int, report: float) -> Run:
    """The prediction for a number of machines, with processes per machine and seconds to report an outcome."""
    where = Machines(count, CORES, processes, LINK, STORAGE, LATENCY, measured.start, report)
    return simulate(measured.costs, images, where)

"""A data set on machines that are not here, and what is assumed of them."""

from bench.datasets.costs import Measured
from bench.datasets.simulation import Machines, Run, simulate

COCO = 80_000  # images

CORES = 32
LINK = 25e9 / 8  # bytes a second of each
STORAGE = 10e9  # bytes a second of all together
LATENCY = 0.01  # seconds
COUNTS = 1, 8, 64


def predicted(measured: Measured, count: int, processes: int, images: int, report: float) -> Run:
    """What so many of them would do, with so many processes each, and so many seconds of telling an outcome."""
    where = Machines(count, CORES, processes, LINK, STORAGE, LATENCY, measured.start, report)
    return simulate(measured.costs, images, where)

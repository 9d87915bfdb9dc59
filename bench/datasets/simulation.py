"""A discrete-event simulation of a data set on machines: a prediction from the measured costs of images.

    every process:  fetch the scores -> compute (read, refine, write) -> store the labels -> report, and the next image

While a process computes, the scores of its next image are fetched. The storage, each machine's link and the parent
process, which receives all reports, serve requests one at a time in order of arrival; a core serves one process until
its image is computed. Not modelled: contention of cores for memory, failing machines, and storage with varying speed.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = {"cores": "the cores", "links": "the network", "storage": "the storage", "reports": "the parent process"}


@dataclass(frozen=True)
class Cost:
    """The cost of one image: seconds of a core, and the bytes that are read and written."""

    seconds: float
    fetched: int
    stored: int


@dataclass(frozen=True)
class Machines:
    """The machines: their number, cores and processes per machine, bytes per second of each link and of the shared
    storage, and seconds for the latency of the storage, the start of a process, and a report."""

    count: int
    cores: int
    processes: int
    link: float
    storage: float
    latency: float
    start: float
    report: float


@dataclass(frozen=True)
class Run:
    """The total time, and the share of it for which the cores, links, storage and parent process are busy."""

    seconds: float
    busy: dict[str, float]

    @property
    def bound(self) -> str:
        """The busiest resource, in words."""
        return NAMES[max(self.busy, key=lambda name: self.busy[name])]


class _Servers:
    """Equal servers, each of which serves one request at a time; a request takes the server that is free first."""

    def __init__(self, count: int) -> None:
        self.free, self.busy = [0.0] * count, 0.0

    def serve(self, now: float, seconds: float) -> float:
        """The time when a request is done."""
        done = max(now, heapq.heappop(self.free)) + seconds
        heapq.heappush(self.free, done)
        self.busy += seconds
        return done


def simulate(costs: Sequence[Cost], images: int, machines: Machines, seed: int = 0) -> Run:
    """Simulate a number of images, each with a cost drawn from the measured ones."""
    drawn = random.Random(seed).choices(costs, k=images)[::-1]
    cores = [_Servers(machines.cores) for _ in range(machines.count)]
    links = [_Servers(1) for _ in range(machines.count)]
    storage, reports = _Servers(1), _Servers(1)
    # (time, order of arrival, event, process, cost); of equal times the first to arrive
    events: list[tuple[float, int, str, int, Cost]] = []
    coming = iter(range(1 << 62))
    idle: dict[int, float] = {}  # processes that wait for a fetch
    fetched: dict[int, Cost] = {}  # and images that wait for a process
    end = 0.0

    def later(when: float, what: str, process: int, cost: Cost) -> None:
        heapq.heappush(events, (when, next(coming), what, process, cost))

    def fetch(now: float, process: int) -> None:
        if drawn:
            later(now + machines.latency, "asked", process, drawn.pop())

    def begin(now: float, process: int) -> None:
        if process in idle and process in fetched:
            del idle[process]
            cost = fetched.pop(process)
            later(cores[process % machines.count].serve(now, cost.seconds), "computed", process, cost)
            fetch(now, process)

    for process in range(machines.count * machines.processes):
        idle[process] = machines.start
        fetch(machines.start, process)
    while events:
        now, _, what, process, cost = heapq.heappop(events)
        if what == "asked":
            later(storage.serve(now, cost.fetched / machines.storage), "sent", process, cost)
        elif what == "sent":
            later(links[process % machines.count].serve(now, cost.fetched / machines.link), "fetched", process, cost)
        elif what == "fetched":
            fetched[process] = cost
            begin(now, process)
        elif what == "computed":
            later(links[process % machines.count].serve(now, cost.stored / machines.link), "out", process, cost)
        elif what == "out":
            done = storage.serve(now, cost.stored / machines.storage) + machines.latency
            later(done, "stored", process, cost)
        else:
            end = max(end, reports.serve(now, machines.report))
            idle[process] = now
            begin(now, process)
    shares = {
        "cores": sum(one.busy for one in cores) / (machines.count * machines.cores),
        "links": sum(one.busy for one in links) / machines.count,
        "storage": storage.busy,
        "reports": reports.busy,
    }
    return Run(end, {name: busy / end for name, busy in shares.items()})

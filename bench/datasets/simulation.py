"""What machines would do with a data set, by simulation of events: a prediction from the measured costs of images.

    every process:  fetch the scores -> compute (read, refine, write) -> store the labels -> report, and the next image

While a process computes, the scores of its next image are fetched. The storage, each machine's link and the parent
process, which takes all reports, serve who comes first, one at a time; a core serves one process until its image is
computed. What is not modelled: cores that slow each other down in memory, machines that fail, and storage that has slow
moments.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = {"cores": "the cores", "links": "the network", "storage": "the storage", "reports": "the parent process"}


@dataclass(frozen=True)
class Cost:
    """Of one image: seconds of a core, and the bytes that are fetched and stored."""

    seconds: float
    fetched: int
    stored: int


@dataclass(frozen=True)
class Machines:
    """Where it runs: so many machines of so many cores and processes each, bytes a second of each one's link and of the
    storage that they share, seconds until a request to it begins to be answered, until a process has begun, and of a
    report."""

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
    """How long it takes, and which share of that time the cores, links, storage and parent process are busy."""

    seconds: float
    busy: dict[str, float]

    @property
    def bound(self) -> str:
        """By what, in words: what is busiest."""
        return NAMES[max(self.busy, key=lambda name: self.busy[name])]


class _Servers:
    """Some that are alike: each serves one at a time, and who comes takes the one that is free first."""

    def __init__(self, count: int) -> None:
        self.free, self.busy = [0.0] * count, 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When it is done."""
        done = max(now, heapq.heappop(self.free)) + seconds
        heapq.heappush(self.free, done)
        self.busy += seconds
        return done


def simulate(costs: Sequence[Cost], images: int, machines: Machines, seed: int = 0) -> Run:
    """So many images, each of a cost drawn from those measured."""
    drawn = random.Random(seed).choices(costs, k=images)[::-1]
    cores = [_Servers(machines.cores) for _ in range(machines.count)]
    links = [_Servers(1) for _ in range(machines.count)]
    storage, reports = _Servers(1), _Servers(1)
    # (when, order of coming, what, process, cost); of one time the first to come
    events: list[tuple[float, int, str, int, Cost]] = []
    coming = iter(range(1 << 62))
    idle: dict[int, float] = {}  # processes that wait for a fetch
    fetched: dict[int, Cost] = {}  # and what waits for a process
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

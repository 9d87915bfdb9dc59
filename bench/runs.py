"""A call that is timed, and its row of the report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from bench import floors, timing

LONG = 2.0  # seconds; on a CPU, which compiles nothing, such a call has warmed up for those that follow


@dataclass
class Run:
    """A call that is timed.

    counts: the work in it. facts: what its row says besides. memory: measures its peak, where one is asked for.
    took: seconds of a call after warming up. repeats: calls between two readings of the clock; a graph replay is short
    beside a synchronisation, so ten share one. times: seconds of a call in each round.
    """

    call: Callable[[], object]
    counts: floors.Work
    facts: dict
    memory: Callable[[], int | None] | None = None
    took: float = 0.0
    repeats: int = 1
    times: list[float] = field(default_factory=list)

    def warm_up(self, device: torch.device):
        """Call twice, or once where a call is long and nothing is compiled."""
        self.took = timing.seconds(self.call)
        if device.type == "cuda" or self.took < LONG:
            self.took = timing.seconds(self.call)
        self.repeats = 10 if self.facts.get("mode") == "graph" and self.took < 0.01 else 1

    def several(self):
        for _ in range(self.repeats):
            self.call()

    def once(self) -> float:
        """Seconds of one call."""
        return timing.seconds(self.several) / self.repeats

    def row(self, rates: floors.Rates | None) -> dict:
        """What a report says of it."""
        lower, middle, upper = np.quantile(self.times, (0.25, 0.5, 0.75)).tolist()
        return self.facts | {
            "median": middle, "iqr": upper - lower, "times": [float(f"{time:.4g}") for time in self.times],
            **asdict(self.counts),
            "floor": (self.counts.floor(rates) or None) if rates else None,
            "copy_bandwidth": rates.bytes if rates else None,
            "peak_memory": self.memory() if self.memory else None,
        }  # fmt: skip

"""The stages of many items in one process, with threads that read ahead and, on a GPU, write in the background.

On a CPU, an item is written before the next is refined: a killed process then loses only one item, and nothing would be
gained otherwise, as writing uses the same core as refining. A GPU refines while the cores read and write, and processes
items with the same key together, for few and large launches.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from tritoncrf.datasets.stages import Outcome, Stages

__all__ = ["END", "Pace", "outcomes", "pace"]

END = object()  # from a source: no more items


@dataclass(frozen=True)
class Pace:
    """How many items a process handles at a time."""

    ahead: int  # read, or being read, in addition to those in progress
    together: int  # refined at once, if they have the same key
    behind: int  # being written, in addition to those in progress
    threads: int  # for reading, and as many for writing


def pace(device: torch.device) -> Pace:
    """The pace of a device."""
    return Pace(ahead=16, together=8, behind=16, threads=4) if device.type == "cuda" else Pace(1, 1, 0, 1)


def outcomes(stages: Stages, source: Callable[[bool], Any], device: torch.device) -> Iterator[Outcome]:
    """The outcome of each item, in order.

    Args:
        stages: the stages.
        source: returns the next item, or END; with False, None if it would have to wait.
        device: the device to compute on.
    """
    has = pace(device)
    ended = False
    with (
        ThreadPoolExecutor(has.threads, "read") as readers,
        ThreadPoolExecutor(has.threads, "write") as writers,
    ):
        reading: deque[tuple[Any, Future[Any]]] = deque()
        writing: deque[Future[Outcome]] = deque()
        try:
            while reading or writing or not ended:
                while not ended and len(reading) <= has.ahead:
                    item = source(not reading and not writing)
                    ended = item is END
                    if item is None or ended:
                        break
                    reading.append((item, readers.submit(_timed, stages.read, item, device)))
                for item, refined, error, seconds in _refined(stages, _together(stages, reading, has.together)):
                    if has.behind:
                        writing.append(writers.submit(_written, stages, item, refined, error, seconds))
                    else:
                        yield _written(stages, item, refined, error, seconds)
                while writing and (len(writing) > has.behind or not reading or writing[0].done()):
                    yield writing.popleft().result()
        finally:
            for _, future in reading:
                future.cancel()


def _timed(stage: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None, float]:
    """What a stage returns or raises, and its time in seconds."""
    start = time.perf_counter()
    try:
        result, error = stage(*arguments), None
    except Exception as raised:
        result, error = None, raised
    return result, error, time.perf_counter() - start


def _together(
    stages: Stages, reading: deque[tuple[Any, Future[Any]]], most: int
) -> list[tuple[Any, Any, Exception | None, float]]:
    """The next items that are read: the first, and those after it that are ready and have the same key."""
    batch: list[tuple[Any, Any, Exception | None, float]] = []
    key = None
    while reading and len(batch) < most and (not batch or reading[0][1].done()):
        loaded, error, seconds = reading[0][1].result()
        own = None if error else stages.key(loaded)
        if batch and (own is None or own != key):
            break
        key = own
        batch.append((reading.popleft()[0], loaded, error, seconds))
        if own is None:
            break
    return batch


def _refined(
    stages: Stages, batch: list[tuple[Any, Any, Exception | None, float]]
) -> Iterator[tuple[Any, Any, Exception | None, tuple[float, float]]]:
    """Each item of a batch with its result; they are repeated one by one if they fail together."""
    if not batch or batch[0][2] is not None:
        for item, _, error, read in batch:
            yield item, None, error, (read, 0.0)
        return
    found, error, seconds = _timed(stages.refine, [loaded for _, loaded, _, _ in batch])
    if error is not None and len(batch) > 1:
        for one in batch:
            yield from _refined(stages, [one])
        return
    for n, (item, _, _, read) in enumerate(batch):
        yield item, None if error else found[n], error, (read, seconds / len(batch))


def _written(stages: Stages, item: Any, refined: Any, error: Exception | None, seconds: tuple[float, float]) -> Outcome:
    """The outcome of an item that was refined or failed."""
    result, write = None, 0.0
    if error is None:
        result, error, write = _timed(stages.write, item, refined)
    return Outcome(item, result, error, (*seconds, write))

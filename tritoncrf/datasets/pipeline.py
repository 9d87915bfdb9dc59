"""The stages of many items in one process: reading ahead in threads, and on a GPU writing behind in threads.

On a CPU an item is written before the next is refined: a process that is killed has then one item in work, and there
is no time to win, for writing takes the core that refining takes. A GPU refines while the cores read and write, and
takes items of one key together, so that its launches are few and full.
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

END = object()  # from a source: there are no more


@dataclass(frozen=True)
class Pace:
    """How many items a process has at one time."""

    ahead: int  # read, or being read, beside those in work
    together: int  # refined at once, if of one key
    behind: int  # being written beside those in work
    threads: int  # that read, and as many that write


def pace(device: torch.device) -> Pace:
    """That of a device."""
    return Pace(ahead=16, together=8, behind=16, threads=4) if device.type == "cuda" else Pace(1, 1, 0, 1)


def outcomes(stages: Stages, source: Callable[[bool], Any], device: torch.device) -> Iterator[Outcome]:
    """One for each item, in order.

    Args:
        stages: what is done.
        source: gives the next item, or END; given False, None where it would have to wait.
        device: where.
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
    """What a stage gives, or what it raises, and the seconds that it took."""
    start = time.perf_counter()
    try:
        result, error = stage(*arguments), None
    except Exception as raised:
        result, error = None, raised
    return result, error, time.perf_counter() - start


def _together(
    stages: Stages, reading: deque[tuple[Any, Future[Any]]], most: int
) -> list[tuple[Any, Any, Exception | None, float]]:
    """The next items, read: the first, and those that are ready behind it and of one key with it."""
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
    """Each item of a batch with what it became, one by one where they fail together."""
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
    """The outcome of an item that is refined, or has failed."""
    result, write = None, 0.0
    if error is None:
        result, error, write = _timed(stages.write, item, refined)
    return Outcome(item, result, error, (*seconds, write))

"""Process many items with the processes of one machine.

Each process has its own connection, so that a killed process cannot hold a lock that others wait for. It is sent an
item whenever it can take one, so quick processes get more. The items of a killed process are retried one at a time:
an item that kills its process again fails, and the others continue.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tritoncrf.checks import expect_int
from tritoncrf.datasets.memory import keep_together
from tritoncrf.datasets.pipeline import END, outcomes, pace
from tritoncrf.datasets.processes import begin, context
from tritoncrf.datasets.stages import Outcome, Stages
from tritoncrf.devices import device_found, expect_device
from tritoncrf.filters.lattice import limit_cache

__all__ = ["places", "run", "sendable", "settle"]

PATIENCE = 30.0  # seconds that a process which should end may take for its current item before it is killed
WINDOW = 4  # finished items that may wait for an earlier one, as a multiple of those in progress
CACHE = 32 << 20  # bytes of lattices that a process caches


def places(jobs: int, devices: Sequence[torch.device | str] | None) -> list[torch.device]:
    """The device of each process; empty for this process.

    Raises:
        TypeError, ValueError: devices do not exist or are of different kinds, or jobs are given with GPUs.
    """
    jobs = expect_int("jobs", jobs, 0, 1024)
    if devices is not None and (isinstance(devices, (str, torch.device)) or len(devices) == 0):
        raise ValueError(f"devices: expected a list such as ['cuda:0', 'cuda:1'], got {devices!r}")
    found = [expect_device(d) for d in devices] if devices is not None else [device_found()]
    if all(d.type == "cpu" for d in found):
        if len(found) > 1:
            raise ValueError(
                f"devices: expected the CPU once, got {len(found)} times; jobs= sets the number of processes"
            )
        return found * jobs
    if any(d.type == "cpu" for d in found):
        raise ValueError("devices: expected GPUs or the CPU, got both")
    if jobs:
        raise ValueError(f"jobs: expected 0 on GPUs, which have one process each, got {jobs}")
    return found if len(found) > 1 else []


def run(
    stages: Stages, items: Iterable[Any], *, jobs: int = 0, devices: Sequence[torch.device | str] | None = None
) -> Iterator[Outcome]:
    """The outcome of every item, in order.

    Args:
        stages: the stages; picklable if there are other processes.
        items: the items, read in the caller's thread, a few at a time.
        jobs: number of processes on the CPU, with one thread each; 0 for this process.
        devices: GPUs, with a process for each if there are several. By default the GPU if there is one, otherwise the
            CPU.

    Raises:
        RuntimeError: processes end before they start work.
        Exception: whatever `items` raises.
    """
    where = places(jobs, devices)
    if not where:
        numbers = iter(items)
        device = device_found() if devices is None else expect_device(devices[0])
        return outcomes(stages, lambda may_wait: next(numbers, END), device)
    if getattr(multiprocessing.process.current_process(), "_inheriting", False):
        raise RuntimeError(
            "jobs: expected a script that can be imported without starting processes again; put the call "
            'below `if __name__ == "__main__":`'
        )
    return _spread(stages, items, where)


def _spread(stages: Stages, items: Iterable[Any], where: Sequence[torch.device]) -> Iterator[Outcome]:
    """Start the processes, send them items, and end them."""
    task = _packed(stages)
    begin()
    workers: list[_Worker] = []
    try:
        for device in where:
            workers.append(_Worker(task, device))
        for worker in workers:
            worker.expect_ready()
        yield from _Spread(workers, iter(enumerate(items))).outcomes()
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()


class _Spread:
    """The items that are sent to processes and received back."""

    def __init__(self, workers: list["_Worker"], items: Iterator[tuple[int, Any]]) -> None:
        self.workers, self.items = workers, items
        self.suspects: deque[tuple[int, Any]] = deque()  # items of a killed process
        self.done: dict[int, Outcome] = {}
        self.next, self.ended = 0, False  # the next outcome to yield
        self.window = WINDOW * sum(worker.most for worker in workers)

    def outcomes(self) -> Iterator[Outcome]:
        while True:
            for worker in self.workers:
                self._feed(worker)
            if not any(worker.tasks for worker in self.workers):
                return
            ready = wait([worker.connection for worker in self.workers if worker.tasks])
            for worker in [worker for worker in self.workers if worker.connection in ready]:
                self._receive(worker)
            while self.next in self.done:
                yield self.done.pop(self.next)
                self.next += 1

    def _feed(self, worker: "_Worker") -> None:
        """Send a process as many items as it can take, or a single suspect."""
        if self.suspects and not worker.tasks:
            worker.send(*self.suspects.popleft(), alone=True)
        while not self.suspects and worker.takes_more() and self._may_begin():
            number, item = next(self.items, (0, END))
            self.ended = item is END
            if not self.ended:
                worker.send(number, item)

    def _may_begin(self) -> bool:
        """Whether another item may be sent: not while too many outcomes wait in memory for a slow item."""
        under_way = sum(len(worker.tasks) for worker in self.workers)
        return not self.ended and len(self.done) + under_way < self.window

    def _receive(self, worker: "_Worker") -> None:
        """Receive an outcome from a process, or handle its end."""
        try:
            number, outcome = worker.receive()
            self.done[number] = outcome
        except (EOFError, OSError):
            lost = [*worker.tasks.items()]
            code = worker.replace()
            if len(lost) > 1:
                self.suspects.extend(lost)
            for number, item in lost if len(lost) == 1 else []:
                error = RuntimeError(f"its process was ended{_reason(code)}")
                self.done[number] = Outcome(item, None, error, (0.0, 0.0, 0.0))


def _reason(code: int | None) -> str:
    """Why a process ended."""
    if code is None or code >= 0:
        return f" with status {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f" by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
    return f" by signal {-code}"


class _Worker:
    """A process and its current items."""

    def __init__(self, task: bytes, device: torch.device) -> None:
        self.task, self.device = task, device
        has = pace(device)
        self.most = has.ahead + has.together + has.behind
        self._start()

    def _start(self) -> None:
        start = context()
        self.connection, other = start.Pipe()
        self.tasks: dict[int, Any] = {}
        self.alone = False
        self.process = start.Process(target=_work, args=(other, str(self.device)), daemon=True)
        self.process.start()
        other.close()
        with contextlib.suppress(OSError):  # `expect_ready` reports a process that has already ended
            self.connection.send_bytes(self.task)

    def expect_ready(self) -> None:
        """Raise an error unless the process has started."""
        try:
            error = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise RuntimeError(
                f"jobs: a process ended before it started work{_reason(code)}; a script needs "
                '`if __name__ == "__main__":` around the code that starts processes'
            ) from None
        if error is not None:
            raise TypeError(f"items: expected objects that other processes can import, got others: {error}")

    def takes_more(self) -> bool:
        return len(self.tasks) < (1 if self.alone else self.most)

    def send(self, number: int, item: Any, alone: bool = False) -> None:
        """Send an item."""
        message = _packed((number, item))
        self.tasks[number], self.alone = item, alone
        with contextlib.suppress(OSError):  # a process that has ended is noticed when it should answer
            self.connection.send_bytes(message)

    def receive(self) -> tuple[int, Outcome]:
        number, result, error, seconds = pickle.loads(self.connection.recv_bytes())
        self.alone = False
        return number, Outcome(self.tasks.pop(number), result, error, seconds)

    def replace(self) -> int | None:
        """Start the process again; returns how the previous one ended."""
        self.process.join()
        code = self.process.exitcode
        self.connection.close()
        self._start()
        self.expect_ready()
        return code

    def end(self) -> None:
        """Let the process finish its current item only."""
        self.connection.close()

    def join(self) -> None:
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def settle() -> None:
    """The setup of a process that refines many images."""
    torch.set_num_threads(1)
    limit_cache(CACHE)
    keep_together()


def _work(connection: Connection, device: str) -> None:
    """The main loop of a process, until its connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    settle()
    try:
        stages = pickle.loads(connection.recv_bytes())
    except Exception as error:
        connection.send_bytes(_packed(str(error)))
        return
    connection.send_bytes(_packed(None))
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    # Receive all the time, so that neither side blocks the other while it sends.
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    numbers: deque[int] = deque()

    def source(may_wait: bool) -> Any:
        try:
            message = inbox.get(block=may_wait)
        except queue.Empty:
            return None
        if message is None:
            return END
        number, item = pickle.loads(message)
        numbers.append(number)
        return item

    for outcome in outcomes(stages, source, torch.device(device)):
        message = _packed((numbers.popleft(), outcome.result, sendable(outcome.error), outcome.seconds))
        try:
            connection.send_bytes(message)
        except OSError:
            os._exit(0)  # do not wait for items that were read ahead


def _receive(connection: Connection, inbox: "queue.SimpleQueue[bytes | None]") -> None:
    """Put received items into the inbox, then None."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv_bytes())
    inbox.put(None)


def _packed(value: Any) -> bytes:
    """`value` serialised for another process."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(f"items: expected objects that can be sent to other processes, got others: {error}") from error


def sendable(error: Exception | None) -> Exception | None:
    """An error that another process can deserialise."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")

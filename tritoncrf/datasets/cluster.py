"""Items over the machines of a Ray cluster, by Ray Data: its placement, its back-pressure, its retries.

    from_items(blocks of items) -> map_batches(a pool of actors, which have the stages) -> outcomes, as they come

Items and outcomes pass through Ray and are small: images and scores are read and written where they are refined, on
storage that every machine reaches. Every machine has this library, and the Python and the Ray of the one that asks.
"""

import contextlib
import logging
import os
import pickle
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch

from tritoncrf.checks import expect_int
from tritoncrf.commands import stderr_closed
from tritoncrf.datasets.pipeline import END, outcomes
from tritoncrf.datasets.stages import Outcome, Stages
from tritoncrf.datasets.workers import sendable, settle

__all__ = ["run"]

TOGETHER = {"cpu": 16, "cuda": 64}  # items of a block, which is what is done again where a machine is lost
BLOCKS = 8  # that each actor gets at least, where there are as many items: none waits long for the last
RETRIES = 2  # of a block whose actor has died
PATIENCE = 10.0  # seconds that a cluster's door may take to open
MOMENTS = 20  # half seconds until a cluster without a free CPU or GPU is said to be busy
STORE = 128 << 20  # bytes that the processes of a cluster of this machine alone share; items and outcomes are small
QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "killed by `ray.kill`",  # the actors, where the user has stopped it
    "RAY_USAGE_STATS_ENABLED": "0",
}
ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # to reach a cluster; each takes half a minute


def run(stages: Stages, items: Iterable[Any], *, address: str | None = None, jobs: int = 0) -> Iterator[Outcome]:
    """What becomes of every item, in the order in which they are done.

    An actor takes one GPU where the cluster has any, else one CPU, and computes in one thread. An item that is lost
    every time, as one whose actor it kills, fails, and the others go on.

    Args:
        stages: what is done; picklable, by modules that every machine has.
        items: all of them; picklable.
        address: of the cluster, "HOST:PORT", or "auto" for the one that runs on this machine. Left out, the one that
            Ray finds, by RAY_ADDRESS or on this machine, or else one of this machine alone, which is ended afterwards.
        jobs: actors; 0 for as many as the cluster has GPUs, or else CPUs. It never gets more than these.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no cluster at the address, or one that has no whole CPU.
        ConnectionError: the cluster does not answer any more.
    """
    jobs = expect_int("jobs", jobs, 0)
    ray = _ray()
    with _connected(ray, address, jobs):
        device, actors = _places(ray, jobs)
        left = dict(enumerate(items))
        together = max(1, min(TOGETHER[device], len(left) // (BLOCKS * actors)))
        # What is lost is tried again, each item by itself: it may have been another that killed the process.
        for alone in (False, True):
            if left:
                for number, result, error, seconds in _pass(ray, stages, left, device, actors, together, alone):
                    yield Outcome(left.pop(number), result, error, seconds)
        for item in left.values():
            lost = RuntimeError(f"lost by the cluster, {RETRIES + 1} times in a row, as where its process is killed")
            yield Outcome(item, None, lost, (0.0, 0.0, 0.0))


class _Worker:
    """The stages, in an actor of Ray."""

    def __init__(self, stages: Stages, device: str) -> None:
        self.stages, self.device = stages, torch.device(device)
        settle()

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[bytes]]:
        numbers, items = zip(*map(pickle.loads, block["item"]))
        waiting = iter(items)
        done = outcomes(self.stages, lambda may_wait: next(waiting, END), self.device)
        packed = [
            pickle.dumps((number, outcome.result, sendable(outcome.error), outcome.seconds))
            for number, outcome in zip(numbers, done)
        ]
        return {"outcome": packed}


def _pass(
    ray: ModuleType, stages: Stages, items: Mapping[int, Any], device: str, actors: int, together: int, alone: bool
) -> Iterator[tuple[int, Any, Exception | None, tuple[float, float, float]]]:
    """The outcomes of numbered items, in blocks of so many or each alone; but of those that are lost."""
    rows = [{"item": pickle.dumps(numbered)} for numbered in items.items()]
    # From here, not from files that tasks of Ray would read: those would wait for a CPU, and the actors have them all.
    blocks = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // (1 if alone else together)))
    pool = {"size": min(actors, blocks.num_blocks()), "max_tasks_in_flight_per_actor": 1 if alone else None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ray_remote_args.* is deprecated")  # which nothing replaces
        refined = blocks.map_batches(
            _Worker, fn_constructor_args=(stages, device), batch_size=None,
            compute=ray.data.ActorPoolStrategy(**pool),
            num_cpus=1, num_gpus=1 if device == "cuda" else 0, max_restarts=-1, max_task_retries=RETRIES,
        )  # fmt: skip
    refined.context.enable_progress_bars = False
    refined.context.max_errored_blocks = -1  # those of dead actors, for all that an item raises is in its outcome
    try:
        for row in refined.iter_rows():
            yield pickle.loads(row["outcome"])
    except ray.exceptions.RayError as error:
        raise ConnectionError(f"address: expected a Ray cluster that works, got: {_line(error)}") from error


def _ray() -> ModuleType:
    """Ray, which says nothing on the way and sends no statistics."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError('a cluster needs Ray: pip install "tritoncrf[ray]"') from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None, jobs: int) -> Iterator[None]:
    """Beside a cluster; what is begun here is ended here."""
    if ray.is_initialized():
        yield
        return
    known = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else address
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    own = {"num_cpus": jobs or None, "object_store_memory": STORE, "include_dashboard": False}
    try:
        if known is not None:
            _knock(known)
        with _one_attempt(), stderr_closed():
            ray.init(address="auto" if address is None else address, **quiet)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        if address is not None or known is not None:
            got = repr(known or address)
            raise ValueError(f"address: expected a Ray cluster that answers, got {got}: {_line(error)}") from error
        with stderr_closed():
            ray.init(address="local", **quiet, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """An error unless somebody answers at HOST:PORT, which Ray itself takes many minutes to find out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


@contextlib.contextmanager
def _one_attempt() -> Iterator[None]:
    """Ray tries once to reach a cluster, where the environment does not say how often."""
    given = os.environ.get(ATTEMPTS)
    os.environ.setdefault(ATTEMPTS, "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ[ATTEMPTS]


def _places(ray: ModuleType, jobs: int) -> tuple[str, int]:
    """The device of each actor and how many there are: a machine's whole CPUs, or its GPUs with a CPU each."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([int(machine.get(kind, 0)) for machine in machines] for kind in ("CPU", "GPU"))
    device = "cuda" if any(gpus) else "cpu"
    most = sum(map(min, cpus, gpus)) if any(gpus) else sum(cpus)
    if most == 0:
        beside = " beside a GPU" if any(gpus) else ""
        raise ValueError(f"address: expected a Ray cluster with a whole CPU{beside}, got {machines}")
    kind = "GPU" if any(gpus) else "CPU"
    if not _free(ray, kind):
        warnings.warn(f"every {kind} of the Ray cluster is taken by others; waiting for one", stacklevel=2)
    return device, min(jobs or most, most)


def _free(ray: ModuleType, kind: str) -> bool:
    """Whether one of a kind is free, or soon is: what has just ended gives its own back a little later."""
    for _ in range(MOMENTS):
        if ray.available_resources().get(kind, 0) >= 1:
            return True
        time.sleep(0.5)
    return False


def _line(error: Exception) -> str:
    """The last line of what an error says: Ray puts others' tracebacks into its own."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]

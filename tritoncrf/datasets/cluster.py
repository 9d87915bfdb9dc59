"""Process items on the machines of a Ray cluster with Ray Data, which handles placement, back-pressure and retries.

    from_items(blocks of items) -> map_batches(a pool of actors with the stages) -> outcomes, as they arrive

Items and outcomes pass through Ray and are small: images and scores are read and written where they are refined, on
storage that every machine can access. Every machine needs this library, and the same Python and Ray as the caller.
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

TOGETHER = {"cpu": 16, "cuda": 64}  # items of a block, which is repeated if a machine is lost
BLOCKS = 8  # least number for each actor if there are enough items, so that none waits long for the last
RETRIES = 2  # of a block whose actor has died
PATIENCE = 10.0  # seconds to wait for a connection to a cluster
MOMENTS = 20  # half seconds until a cluster without a free CPU or GPU is reported as busy
STORE = 128 << 20  # bytes of shared memory of a local cluster; items and outcomes are small
QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "killed by `ray.kill`",  # the actors, if the user has interrupted the run
    "RAY_USAGE_STATS_ENABLED": "0",
}
ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # attempts to reach a cluster; each takes half a minute


def run(stages: Stages, items: Iterable[Any], *, address: str | None = None, jobs: int = 0) -> Iterator[Outcome]:
    """Yield the outcome of every item, in the order of completion.

    An actor takes one GPU if the cluster has any, otherwise one CPU, and computes in one thread. An item that is lost
    every time, for instance because it kills its actor, fails, and the others continue.

    Args:
        stages: the stages of an item; picklable, from modules that every machine has.
        items: all items; picklable.
        address: the cluster's address, "HOST:PORT", or "auto" for the one that runs on this machine. By default the one
            that Ray finds by RAY_ADDRESS or on this machine, or otherwise a new local cluster, which is stopped
            afterwards.
        jobs: number of actors, at most the number of GPUs, or otherwise of CPUs, of the cluster; 0 for all of these.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is no cluster at the address, or it has no whole CPU.
        ConnectionError: the cluster no longer answers.
    """
    jobs = expect_int("jobs", jobs, 0)
    ray = _ray()
    with _connected(ray, address, jobs):
        device, actors = _places(ray, jobs)
        left = dict(enumerate(items))
        together = max(1, min(TOGETHER[device], len(left) // (BLOCKS * actors)))
        # Retry lost items one at a time: another item may have killed the process.
        for alone in (False, True):
            if left:
                for number, result, error, seconds in _pass(ray, stages, left, device, actors, together, alone):
                    yield Outcome(left.pop(number), result, error, seconds)
        for item in left.values():
            lost = RuntimeError(
                f"lost by the cluster {RETRIES + 1} times in a row, for instance because its process was killed"
            )
            yield Outcome(item, None, lost, (0.0, 0.0, 0.0))


class _Worker:
    """The stages in a Ray actor."""

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
    """The outcomes of numbered items, in blocks of a given size or one at a time, except of lost items."""
    rows = [{"item": pickle.dumps(numbered)} for numbered in items.items()]
    # From memory, not from files read by Ray tasks, which would wait for a CPU while the actors have all of them.
    blocks = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // (1 if alone else together)))
    pool = {"size": min(actors, blocks.num_blocks()), "max_tasks_in_flight_per_actor": 1 if alone else None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ray_remote_args.* is deprecated")  # there is no replacement
        refined = blocks.map_batches(
            _Worker, fn_constructor_args=(stages, device), batch_size=None,
            compute=ray.data.ActorPoolStrategy(**pool),
            num_cpus=1, num_gpus=1 if device == "cuda" else 0, max_restarts=-1, max_task_retries=RETRIES,
        )  # fmt: skip
    refined.context.enable_progress_bars = False
    refined.context.max_errored_blocks = -1  # only of dead actors: the errors of items are in their outcomes
    try:
        for row in refined.iter_rows():
            yield pickle.loads(row["outcome"])
    except ray.exceptions.RayError as error:
        raise ConnectionError(f"address: expected a Ray cluster that works, got: {_line(error)}") from error


def _ray() -> ModuleType:
    """Ray, without its messages and usage statistics."""
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
    """Connect to a cluster; one that is started here is also stopped here."""
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
    """Raise an error unless HOST:PORT answers; Ray itself takes many minutes to find out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


@contextlib.contextmanager
def _one_attempt() -> Iterator[None]:
    """Let Ray try only once to reach a cluster, unless the environment says how often."""
    given = os.environ.get(ATTEMPTS)
    os.environ.setdefault(ATTEMPTS, "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ[ATTEMPTS]


def _places(ray: ModuleType, jobs: int) -> tuple[str, int]:
    """The device of the actors and their number: one for each whole CPU, or for each GPU with a CPU."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([int(machine.get(kind, 0)) for machine in machines] for kind in ("CPU", "GPU"))
    device = "cuda" if any(gpus) else "cpu"
    most = sum(map(min, cpus, gpus)) if any(gpus) else sum(cpus)
    if most == 0:
        beside = " beside a GPU" if any(gpus) else ""
        raise ValueError(f"address: expected a Ray cluster with a whole CPU{beside}, got {machines}")
    kind = "GPU" if any(gpus) else "CPU"
    if not _free(ray, kind):
        warnings.warn(f"every {kind} of the Ray cluster is in use; waiting for one", stacklevel=2)
    return device, min(jobs or most, most)


def _free(ray: ModuleType, kind: str) -> bool:
    """Whether one of a kind is free now or soon, since a job that has just ended releases its own a little later."""
    for _ in range(MOMENTS):
        if ray.available_resources().get(kind, 0) >= 1:
            return True
        time.sleep(0.5)
    return False


def _line(error: Exception) -> str:
    """The last line of an error message, since Ray includes whole tracebacks."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]

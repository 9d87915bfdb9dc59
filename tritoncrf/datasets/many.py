"""Refine the scores of many images."""

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from tritoncrf import checks
from tritoncrf.datasets import workers
from tritoncrf.options import ARGUMENTS, SCORES
from tritoncrf.problem import Problem, chosen_for, posed, solved
from tritoncrf.scores import like
from tritoncrf.types import Array, Image, RefineOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Refining", "refine_many"]


def refine_many(
    items: Iterable[tuple[str, Image, Image]] | Dataset[tuple[str, Image, Image]],
    *,
    scores: str = "probabilities",
    jobs: int = 0,
    devices: Sequence[torch.device | str] | None = None,
    errors: Literal["raise", "yield"] = "raise",
    **options: "Unpack[RefineOptions]",
) -> Iterator[tuple[Any, Any]]:
    """`refine` for every image of a data set, on all cores or GPUs of a machine.

    The result for each image is that of `refine(image, **{scores: its scores}, **options)`, on the CPU bit-identical to
    that after `torch.set_num_threads(1)`. Only a few images are in memory at a time.

    Args:
        items: (name, image, scores), with image and scores as `refine` takes them. An iterable is read in this thread;
            a map-style `torch.utils.data.Dataset` is read in the worker processes, which is faster, because they
            receive indices instead of images.
        scores: the kind of scores, an argument of `refine`: "logits", "probabilities", "energies", "labels", "mask" or
            "foreground".
        jobs: on the CPU, the number of processes with one thread each; 0 for this process and its threads. With
            processes, a script must call this below `if __name__ == "__main__":`. Not with GPUs, which read in threads.
        devices: GPUs such as ["cuda:0", "cuda:1"], with a process for each if there are several. By default the GPU if
            there is one, otherwise the CPU. On a GPU, images of the same size are batched.
        errors: "raise"; or "yield" to return the exception in place of an image's result, and continue.
        **options: the other arguments of `refine`, the same for each image. Not features, valid, device and
            return_trace.

    Yields:
        (name, q) in the order of the items, with q as `refine` returns it. With errors="yield", q may be the exception
        of an image that failed; if the items are a data set, the index is then in place of the name.

    Raises:
        TypeError, ValueError: immediately for an unknown argument or one that does not match the others; later, what
            `refine` raises for an item, with its name in front.
        RuntimeError: a process was killed while it had an item, for instance because memory ran out.

    Example:
        >>> import numpy as np, tritoncrf as tc
        >>> photo, p = np.zeros((8, 9, 3), np.uint8), np.full((2, 8, 9), 0.5, np.float32)
        >>> [(name, q.shape) for name, q in tc.refine_many([("a", photo, p), ("b", photo, p)])]
        [('a', (2, 8, 9)), ('b', (2, 8, 9))]
    """
    checks.expect_choice("scores", scores, SCORES)
    checks.expect_choice("errors", errors, ("raise", "yield"))
    _expect_options(scores, options)
    refining = Refining(scores, options)
    if isinstance(items, Dataset) and not isinstance(items, IterableDataset):
        stages, each = Many(refining, items), cast(Iterable[Any], range(len(cast(Sized, items))))
    elif isinstance(items, Iterable) and not isinstance(items, (str, dict)):
        stages, each = Many(refining, None), items
    else:
        raise TypeError(f"items: expected (name, image, scores) of each image, got {checks.kind_of(items)}")
    return _results(workers.run(stages, each, jobs=jobs, devices=devices), errors)


def _results(outcomes: Iterator[Any], errors: str) -> Iterator[tuple[Any, Any]]:
    for outcome in outcomes:
        if outcome.error is None:
            yield outcome.result
        elif errors == "raise":
            raise outcome.error
        else:
            yield outcome.item[0] if isinstance(outcome.item, tuple) else outcome.item, outcome.error


def _expect_options(scores: str, options: RefineOptions) -> None:
    """Raise an error for options that `refine` would not accept for any image."""
    for name in options:
        if name not in ("method", *ARGUMENTS):
            hint = "; use devices=" if name == "device" else ""
            raise TypeError(
                f"{name}: expected an argument of refine that is valid for many images, got another one{hint}"
            )
    chosen_for(scores, False, options)


@dataclass(frozen=True)
class Loaded:
    """An image's problem, and the form of its result."""

    name: Any
    problem: Problem
    like: Any  # an empty array of the kind of the scores


@dataclass(frozen=True)
class Refining:
    """The stages of `refine` for one kind of scores and its other arguments."""

    kind: str
    options: RefineOptions

    def load(self, name: Any, image: Image, scores: Image, device: torch.device) -> Loaded:
        """Load an image on the device."""
        value = pinned(scores) if device.type == "cuda" else scores
        return Loaded(name, posed(image, {self.kind: value}, device, self.options), _empty(scores))

    def key(self, loaded: Loaded) -> Hashable:
        return loaded.problem.key()

    def refine(self, loaded: list[Loaded]) -> list[tuple[Loaded, torch.Tensor]]:
        return [*zip(loaded, solved([one.problem for one in loaded]))]

    def result(self, refined: tuple[Loaded, torch.Tensor]) -> Array:
        """The result in the form of `refine`."""
        loaded, q = refined
        return like(q, self.kind, loaded.like)


@dataclass(frozen=True)
class Many:
    """The stages of `refine_many`; for a data set, items are its indices."""

    refining: Refining
    dataset: Any

    def read(self, item: Any, device: torch.device) -> Loaded:
        given = item if self.dataset is None else self.dataset[item]
        if not isinstance(given, (tuple, list)) or len(given) != 3:
            raise TypeError(f"items: expected (name, image, scores), got {checks.kind_of(given)}")
        name, image, scores = given
        with told_by(name):
            return self.refining.load(name, image, scores, device)

    def key(self, loaded: Loaded) -> Hashable:
        return self.refining.key(loaded)

    def refine(self, loaded: list[Loaded]) -> list[tuple[Loaded, torch.Tensor]]:
        with told_by(loaded[0].name):
            return self.refining.refine(loaded)

    def write(self, item: Any, refined: tuple[Loaded, torch.Tensor]) -> tuple[Any, Array]:
        return refined[0].name, self.refining.result(refined)


@contextlib.contextmanager
def told_by(name: Any) -> Iterator[None]:
    """Put the name of the item in front of error messages."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        error.args = (f"{name}: {error}", *error.args[1:])
        raise


def _empty(value: Any) -> Any:
    """An empty array of the kind, dtype and device of an array; other values unchanged."""
    if isinstance(value, torch.Tensor):
        return value.new_empty(0)
    return np.empty(0, value.dtype) if isinstance(value, np.ndarray) else value


def pinned(value: Any) -> Any:
    """An array in pinned memory, which a GPU can read while it computes."""
    return torch.from_numpy(value).pin_memory() if isinstance(value, np.ndarray) and value.flags.writeable else value

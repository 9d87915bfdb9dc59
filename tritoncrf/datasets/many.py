"""The scores of many images in, the sharpened scores out."""

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
    """`refine` for every image of a data set, over the cores or the GPUs of a machine.

    Each image has what `refine(image, **{scores: its scores}, **options)` gives, and on the CPU the very bits that it
    gives after `torch.set_num_threads(1)`. A few images are in memory at one time, however many there are.

    Args:
        items: (name, image, scores), image and scores as `refine` takes them. An iterable is read in this thread; a
            map-style `torch.utils.data.Dataset` is read by those that refine, which is quicker: its indices go to
            them instead of images.
        scores: the argument of `refine` that the scores are: "logits", "probabilities", "energies", "labels", "mask"
            or "foreground".
        jobs: on the CPU, how many processes of one thread each; 0 for this process and its threads. A script that
            asks for processes calls this below `if __name__ == "__main__":`. Not with GPUs, which read in threads.
        devices: such as ["cuda:0", "cuda:1"]: GPUs, with a process each where they are several. Left out, the GPU
            if there is one, else the CPU. On a GPU images of one size are refined together.
        errors: "raise", or "yield" for the exception in place of an image's result, and on with the next.
        **options: the other arguments of `refine`, the same for each image. Not features, valid, device and
            return_trace.

    Yields:
        (name, q) in the order of the items: q as `refine` gives it. With errors="yield", q may be the exception of an
        image that has failed, with the index in place of the name where the items are a data set.

    Raises:
        TypeError, ValueError: at once, an argument that is none or does not fit the others; later, what `refine` would
            raise for an item, with its name in front.
        RuntimeError: a process that was ended while it had an item, such as for want of memory.

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
    """An error for options that `refine` would take for no image."""
    for name in options:
        if name not in ("method", *ARGUMENTS):
            hint = "; devices= says where" if name == "device" else ""
            raise TypeError(f"{name}: expected an argument of refine that serves many images, got none{hint}")
    chosen_for(scores, False, options)


@dataclass(frozen=True)
class Loaded:
    """An image's problem, and what its result is to be like."""

    name: Any
    problem: Problem
    like: Any  # an array without numbers, of the kind of the scores


@dataclass(frozen=True)
class Refining:
    """The stages of `refine`, for scores of a kind and with its other arguments."""

    kind: str
    options: RefineOptions

    def load(self, name: Any, image: Image, scores: Image, device: torch.device) -> Loaded:
        """An image on the device."""
        value = pinned(scores) if device.type == "cuda" else scores
        return Loaded(name, posed(image, {self.kind: value}, device, self.options), _empty(scores))

    def key(self, loaded: Loaded) -> Hashable:
        return loaded.problem.key()

    def refine(self, loaded: list[Loaded]) -> list[tuple[Loaded, torch.Tensor]]:
        return [*zip(loaded, solved([one.problem for one in loaded]))]

    def result(self, refined: tuple[Loaded, torch.Tensor]) -> Array:
        """As `refine` gives it."""
        loaded, q = refined
        return like(q, self.kind, loaded.like)


@dataclass(frozen=True)
class Many:
    """The stages of `refine_many`; where there is a data set, items are its indices."""

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
    """Errors begin with the name of what they are about."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        error.args = (f"{name}: {error}", *error.args[1:])
        raise


def _empty(value: Any) -> Any:
    """Nothing, of the kind, dtype and device of an array; what is no array itself."""
    if isinstance(value, torch.Tensor):
        return value.new_empty(0)
    return np.empty(0, value.dtype) if isinstance(value, np.ndarray) else value


def pinned(value: Any) -> Any:
    """An array in memory that a GPU reads while it computes."""
    return torch.from_numpy(value).pin_memory() if isinstance(value, np.ndarray) and value.flags.writeable else value

"""The problem of a search: images with scores and their truth, and the measures of settings on them."""

import contextlib
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.models.scored import Scored, counts, measures
from tritoncrf.models.tuning.slopes import slopes
from tritoncrf.options import BINARY, SCORES
from tritoncrf.types import Image

__all__ = ["BY_NAME", "Asked", "Parameters", "Problem", "expect_problem", "shared", "valued"]

BY_NAME = {"miou": 0, "boundary": 1, "accuracy": 3}  # of MEASURES

Parameters: TypeAlias = dict[str, Any]
# The "counts" for `measures` of images refined with these parameters, or the "slopes" of their cross-entropy.
Asked: TypeAlias = Callable[[Literal["counts", "slopes"], Parameters, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Images with scores of one kind and truths, the number of classes, and fixed arguments of `refine`."""

    items: Sequence[Scored]
    kind: str
    num_classes: int
    options: Parameters

    def asked(self, what: Literal["counts", "slopes"], parameters: Parameters, n: int) -> np.ndarray:
        options = {**self.options, **parameters}
        return counts(self.items[n], self.num_classes, options) if what == "counts" else slopes(self.items[n], options)

    def digest(self, *settings: Any) -> str:
        """A digest of everything that a search with these settings depends on."""
        told = self.kind, self.num_classes, sorted(self.options.items()), settings
        digest = hashlib.sha256(repr(told).encode())
        for item in self.items:
            for array in (item.image, *item.scores.values(), item.truth):
                digest.update(np.ascontiguousarray(array.cpu() if isinstance(array, torch.Tensor) else array).tobytes())
        return digest.hexdigest()


def expect_problem(
    images: Sequence[Image], given: Mapping[str, Sequence[Any] | None], truths: Sequence[Any], options: Parameters
) -> Problem:
    """The problem that the arguments of `tune` describe, or an error that names one of them."""
    kinds = {name: scores for name, scores in given.items() if scores is not None}
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise TypeError(f"tune: expected exactly one of {'=, '.join(SCORES)}=, got {got}")
    [(kind, scores)] = kinds.items()
    for name, values in ("images", images), (kind, scores), ("truths", truths):
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name}: expected a list, one for each image, got {checks.kind_of(values)}")
        if len(values) != len(images):
            raise ValueError(f"{name}: expected one for each of {len(images)} images, got {len(values)}")
    if len(images) < 2:
        raise ValueError(f"images: expected 2 or more, so that some can be held out, got {len(images)}")
    if kind == "labels" and options.get("num_classes") is None:
        raise ValueError("num_classes: expected the number of classes for labels, got none")
    maps = [_truth(n, truth, score, kind) for n, (truth, score) in enumerate(zip(truths, scores))]
    if kind in BINARY:
        num_classes = 2
    else:
        sizes = {len(s) for s in scores} if kind != "labels" else {int(options["num_classes"])}
        if len(sizes) != 1:
            raise ValueError(
                f"{kind}: expected the same number of classes in each, got {', '.join(map(str, sorted(sizes)))}"
            )
        [num_classes] = sizes
    for n, truth in enumerate(maps):
        known = truth[truth != 255]
        if known.size and not 0 <= known.min() <= known.max() < num_classes:
            raise ValueError(
                f"truths[{n}]: expected classes from 0 to {num_classes - 1}, or 255 where unknown, got {known.min()} "
                f"to {known.max()}"
            )
    if not any(np.any((truth > 0) & (truth != 255)) for truth in maps):
        hint = "; for a mask of 0 and 255, use truth > 0" if kind in BINARY else ""
        raise ValueError(f"truths: expected labels other than 0 and 255 (unknown), got none{hint}")
    items = [Scored(image, {kind: score}, truth) for image, score, truth in zip(images, scores, maps)]
    return Problem(items, kind, num_classes, dict(options))


def _truth(n: int, truth: Any, score: Any, kind: str) -> np.ndarray:
    """A label map that is checked against its scores."""
    found = truth.cpu().numpy() if isinstance(truth, torch.Tensor) else np.asarray(truth)
    if found.dtype.kind not in "biu" or found.ndim != 2:
        raise ValueError(f"truths[{n}]: expected integers [H, W], got {checks.kind_of(found)}")
    shape = tuple(np.shape(score))
    size = shape[:2] if kind in (*BINARY, "labels") else shape[1:]
    if found.shape != size:
        raise ValueError(f"truths[{n}]: expected the size of {kind}[{n}], {list(size)}, got {list(found.shape)}")
    return found.astype(np.int64)


def valued(found: np.ndarray, measure: str) -> float:
    """The measure, one of BY_NAME, of counts [images, ...]."""
    return float(measures(found.sum(0))[BY_NAME[measure]])


# Processes ------------------------------------------------------------------------------------------------------------

_mine: Problem | None = None  # in a worker process


def _take(problem: Problem) -> None:
    global _mine
    _mine = problem
    torch.set_num_threads(1)


def _serve(task: tuple[Literal["counts", "slopes"], Parameters, int]) -> np.ndarray:
    assert _mine is not None
    return _mine.asked(*task)


@contextlib.contextmanager
def shared(problem: Problem, jobs: int) -> Iterator[Asked]:
    """A function that computes answers [images, ...], each with one thread, so that results are always identical."""
    if jobs == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda what, parameters, which: np.stack([problem.asked(what, parameters, n) for n in which])
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _take, (problem,)) as pool:

        def asked(what: Literal["counts", "slopes"], parameters: Parameters, which: Sequence[int]) -> np.ndarray:
            try:
                return np.stack([*pool.map(_serve, [(what, parameters, n) for n in which])])
            except BrokenProcessPool:
                raise RuntimeError(
                    'jobs: expected processes that start, got none; a script needs `if __name__ == "__main__":` '
                    "around its code"
                ) from None

        yield asked

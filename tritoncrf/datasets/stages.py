"""The interface between the stages of a data set's items and the code that runs them."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Outcome", "Stages"]


class Stages(Protocol):
    """The three stages of every item; picklable, to be sent to worker processes."""

    def read(self, item: Any, device: torch.device) -> Any:
        """Read what `refine` needs for an item; runs in a thread beside `refine` of other items."""

    def key(self, loaded: Any) -> Hashable:
        """Items with the same key can be refined together; None for an item alone."""

    def refine(self, loaded: list[Any]) -> list[Any]:
        """Refine several items with the same key; returns what `write` needs for each."""

    def write(self, item: Any, refined: Any) -> Any:
        """Write an item and return the result, which must be small if it comes from another process."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of an item.

    Attributes:
        item: the item.
        result: the result of `Stages.write`; None if a stage failed.
        error: what that stage raised, or None.
        seconds: times of read, refine and write.
    """

    item: Any
    result: Any
    error: Exception | None
    seconds: tuple[float, float, float]

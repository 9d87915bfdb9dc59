"""The agreement between what is done with an item of a data set and what runs it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Outcome", "Stages"]


class Stages(Protocol):
    """What is done with every item, in three stages; it can be pickled, for it goes to the processes that do it."""

    def read(self, item: Any, device: torch.device) -> Any:
        """What `refine` needs of an item; in a thread beside the `refine` of others."""

    def key(self, loaded: Any) -> Hashable:
        """Those of one key can be refined together; None: by itself."""

    def refine(self, loaded: list[Any]) -> list[Any]:
        """Of several of one key, what `write` needs of each."""

    def write(self, item: Any, refined: Any) -> Any:
        """The result; small, where it comes from another process."""


@dataclass(frozen=True)
class Outcome:
    """How it went with an item.

    Attributes:
        item: as it came.
        result: of `Stages.write`; None where a stage has failed.
        error: what that stage raised, or None.
        seconds: read, refine, write.
    """

    item: Any
    result: Any
    error: Exception | None
    seconds: tuple[float, float, float]

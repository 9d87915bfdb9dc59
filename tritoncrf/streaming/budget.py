"""Memory budgets, and the largest tiles within them."""

import math
import re
from typing import Any

from tritoncrf import checks
from tritoncrf.streaming.tiles import Layout, largest

__all__ = ["BudgetError", "expect_bytes", "in_words", "tile_shape"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class BudgetError(ValueError):
    """A budget is too small.

    Args:
        least: bytes that would be enough.
        budget: bytes of the budget.
        what: what does not fit.
        hint: another remedy, after a semicolon.
        words: "at least", or "more than" if the need is not completely known.
    """

    def __init__(self, least: float, budget: float, what: str, hint: str = "", words: str = "at least") -> None:
        super().__init__(f"max_memory: expected {words} {in_words(least)} for {what}, got {in_words(budget)}{hint}")
        self._least, self._what, self._hint, self._words = least, what, hint, words

    def beside(self, taken: int, budget: int) -> "BudgetError":
        """The same error for a whole process, which itself takes this many bytes."""
        what = f"{self._what}, of which the process itself takes {in_words(taken)}"
        return BudgetError(self._least + taken, budget, what, self._hint, self._words)


def expect_bytes(name: str, value: Any) -> int:
    """A budget as bytes: an int, or text such as "4GB", "500MB" or "1.5GiB"; else an error."""
    wanted = 'bytes above 0 as an int, or text such as "4GB" or "500MiB"'
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", value.upper())
        count = 0.0 if found is None else float(found[1]) * UNITS[found[2]]
        if not 0 < count < math.inf:
            raise ValueError(f"{name}: expected {wanted}, got {checks.shown(value)}")
        return max(1, int(count))
    try:
        return checks.expect_int(name, value, 1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected {wanted}, got {checks.shown(value)}") from None


def in_words(count: float) -> str:
    """Bytes as `expect_bytes` takes them, rounded up to three digits."""
    for unit, size in ("GB", 10**9), ("MB", 10**6), ("kB", 10**3):
        if count >= size:
            digits = max(0, 2 - int(math.log10(count / size)))
            return f"{math.ceil(count / size * 10**digits) / 10**digits:g}{unit}"
    return f"{math.ceil(count)}B"


def tile_shape(layout: Layout, budget: int, fixed: float, pixel: float, enough: int) -> tuple[int, ...]:
    """The shape of the largest tiles within a budget.

    Args:
        layout: the layout of the image.
        budget: total bytes.
        fixed: bytes that do not depend on the tiles.
        pixel: bytes for each pixel that a tile reads.
        enough: the most pixels that a tile may read, for any budget.

    Raises:
        BudgetError: the budget is too small for any tile; the message gives the smallest one that works.
    """
    found = largest(layout, min(max(0, int((budget - fixed) / pixel)), enough))
    if found is None:
        least = math.prod(layout.most(axis, 1) for axis in range(len(layout.size)))
        raise BudgetError(fixed + least * pixel, budget, "the smallest block of this image")
    return found

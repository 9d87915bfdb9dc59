"""Pairwise filters: what mean field passes its messages through. One file per filter."""

from tritoncrf.filters.window import Window

__all__ = ["Window"]

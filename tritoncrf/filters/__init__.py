"""Pairwise filters: what mean field passes its messages through. One file per filter."""

from tritoncrf.filters.window import MAX_WINDOW, Window

__all__ = ["MAX_WINDOW", "Window"]

"""Pairwise filters, which compute the messages of mean field. One file per filter."""

from tritoncrf.filters.base import Filter
from tritoncrf.filters.exact import Exact
from tritoncrf.filters.function import Function
from tritoncrf.filters.guided import Guided
from tritoncrf.filters.lattice import Lattice
from tritoncrf.filters.window import Window

__all__ = ["Exact", "Filter", "Function", "Guided", "Lattice", "Window"]

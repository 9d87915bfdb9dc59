"""The reference's work in PyTorch's standard operators, for graphs that are exported and run without this library.

Sizes may be symbols, a batch is computed at once, and nothing is written in place. Autograd differentiates it."""

from tritoncrf.graph import area, box, guided, window

__all__ = ["area", "box", "guided", "window"]

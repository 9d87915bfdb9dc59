"""The reference's functions in PyTorch's standard operators, for exported graphs that run without this library.

Sizes may be symbolic, a batch is computed at once, and nothing is written in place. Autograd differentiates it."""

from tritoncrf.graph import area, box, guided, window

__all__ = ["area", "box", "guided", "window"]

"""The kernels' work in plain PyTorch: the CPU path, and the truth that the kernels are tested against."""

from tritoncrf.reference import blur, box, exact, guided, lattice, window

__all__ = ["blur", "box", "exact", "guided", "lattice", "window"]

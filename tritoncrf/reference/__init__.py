"""The kernels' work in plain PyTorch: the CPU path, and the truth that the kernels are tested against."""

from tritoncrf.reference import box, exact, guided, lattice, window

__all__ = ["box", "exact", "guided", "lattice", "window"]

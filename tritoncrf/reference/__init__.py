"""The functions of the kernels in plain PyTorch: for CPUs, and as the reference for tests of the kernels."""

from tritoncrf.reference import blur, box, exact, guided, lattice, window

__all__ = ["blur", "box", "exact", "guided", "lattice", "window"]

from tritoncrf.kernels.lattice import simplex, simplex_gradient  # noqa: F401

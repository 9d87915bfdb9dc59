"""The kernels' work in plain PyTorch: the CPU path, and the truth that the kernels are tested against."""

"""`interpolate(mode="area")` in standard operators, for symbolic sizes, which its ONNX export does not support."""

import torch

from tritoncrf.reference.blur import is_symbol


def open_sizes(*sizes) -> bool:
    """Whether any of these sizes is symbolic in an export."""
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return exporting and any(is_symbol(n) for size in sizes for n in size)


def known_equal(size, other) -> bool:
    """Whether two symbolic sizes are equal in every run of the graph."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # a second, which exporters alone need

    return all(statically_known_true(n == m) for n, m in zip(size, other, strict=True))


def averaged(x: torch.Tensor, size) -> torch.Tensor:
    """x [B, C, *S] averaged to a size of at most S: of the n cells of N pixels, cell i begins at floor(i N / n) and
    ends before ceil((i + 1) N / n)."""
    for axis, n in enumerate(size, 2):
        x = _along(x, axis, n)
    return x


def _along(x: torch.Tensor, axis: int, n) -> torch.Tensor:
    pixels = x.shape[axis]
    i = torch.arange(n, device=x.device)
    start, stop = i * pixels // n, ((i + 1) * pixels + n - 1) // n
    longest = (pixels + n - 1) // n + 1
    place = start[:, None] + torch.arange(longest, device=x.device)  # [n, longest]
    inside = (place < stop[:, None]).to(x.dtype).view(n, -1, *(1,) * (x.ndim - 1 - axis))
    cells = x.index_select(axis, place.clamp_max(pixels - 1).flatten()).unflatten(axis, (n, -1))
    return (cells * inside).sum(axis + 1) / inside.sum(1)

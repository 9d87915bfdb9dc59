"""Pooling and upsampling around a low-resolution window (ConvCRF's `blur`), with their true adjoints.

    pool      mean over b x b blocks, of the pixels that are in the image
    upsample  bilinear by b (half-pixel centres), cropped back to the image

PyTorch's exporters assume that a symbolic size is not 1. With symbolic sizes `pool` can therefore append a `spare`
block to each axis that it averages: it has no pixels and a mean of 0, and no pixel reads it.

The image sits in a grid of ceil(n / b) b pixels per axis, ceil of half the surplus before it. Shapes are
[B, C, Z, Y, X]; `blur` is one factor per axis, 1 for a missing axis. A block larger than the image means the whole
image.
"""

import math

import torch
import torch.nn.functional as F


def low_size(size, blur) -> tuple[int, ...]:
    return tuple((n + b - 1) // b for n, b in zip(size, blur, strict=True))  # ONNX rounds negative numbers up


def padding(size, blur) -> tuple[int, ...]:
    """Pixels of the grid before the image, per axis."""
    return tuple((m * b - n + 1) // 2 for n, b, m in zip(size, blur, low_size(size, blur), strict=True))


def wants_spare(size, factor: int) -> bool:
    """Whether blocks of so many pixels need spare ones. An axis known to have a single pixel is not averaged."""
    open_sizes = any(map(is_symbol, size)) and all(is_symbol(n) or n > 1 for n in size)
    return factor > 1 and open_sizes


def pool(x, blur, spare: bool = False):
    """[B, C, *S] -> [B, C, *low_size], one more with `spare`. It uses 2-D passes, whose backward pass in PyTorch has a
    fixed order on a GPU, unlike that of 3-D pooling."""
    blur = inside(blur, x.shape[2:])
    if max(blur[1:]) > 1:
        x = _pooled_planes(x.flatten(1, 2), blur[1:], spare).unflatten(1, x.shape[1:3])
    if blur[0] > 1:
        x = _pooled_planes(x.flatten(3), (blur[0], 1), spare).unflatten(3, x.shape[3:])
    return x


def _pooled_planes(x, blur, spare: bool):
    """[B, C, Y, X] -> [B, C, *low_size]."""
    size = x.shape[2:]
    low, before = low_size(size, blur), padding(size, blur)
    if spare or any(map(is_symbol, size)):
        blocks = [m + (spare and b > 1) for m, b in zip(low, blur, strict=True)]
        behind = [m * b - n - s for m, b, n, s in zip(blocks, blur, size, before, strict=True)]
        x = F.pad(x, (before[1], behind[1], before[0], behind[0]))
        return F.avg_pool2d(x, blur, blur) * math.prod(blur) / pool_counts(size, blur, x.dtype, x.device, spare)
    pooled = F.avg_pool2d(x, blur, blur, before, count_include_pad=False)
    return pooled[:, :, : low[0], : low[1]]


def is_symbol(size) -> bool:
    """Whether a size is symbolic, in a graph that is exported."""
    return isinstance(size, torch.SymInt)


def inside(blur, size) -> tuple[int, ...]:
    """Blocks limited to the size of the image, if it is known."""
    return tuple(b if is_symbol(n) else min(b, n) for b, n in zip(blur, size, strict=True))


def _crop(x, size, start=(0, 0, 0)):
    for axis, (n, s) in enumerate(zip(size, start, strict=True), 2):
        x = x.narrow(axis, s, n)
    return x


def upsample(x, size, blur):
    """[B, C, *low_size] -> [B, C, *size]. A pixel's weights depend only on its place in its block."""
    if max(blur) == 1:
        return x
    blur = inside(blur, size)
    if torch.compiler.is_compiling():
        for axis, (n, b, start) in enumerate(zip(size, blur, padding(size, blur), strict=True), 2):
            x = _read(x, axis, n, b, start) if b > 1 else x
        return x
    for axis, b in enumerate(blur, 2):
        if b > 1:
            x = _between(x, axis, b)
    return _crop(x, size, padding(size, blur))


def _between(x, axis: int, b: int):
    """Each value b times along an axis, interpolated towards the nearer neighbour."""
    n = x.shape[axis]
    found = x.new_empty((*x.shape[:axis], n, b, *x.shape[axis + 1 :]))
    for phase, out in enumerate(found.unbind(axis + 1)):
        towards = (phase + 0.5) / b - 0.5
        step = 1 if towards > 0 else -1
        if towards == 0:
            out.copy_(x)
            continue
        near, own = (0, 1) if step < 0 else (1, 0)
        torch.lerp(
            x.narrow(axis, own, n - 1), x.narrow(axis, near, n - 1), abs(towards), out=out.narrow(axis, own, n - 1)
        )
        edge = 0 if step < 0 else n - 1
        out.narrow(axis, edge, 1).copy_(x.narrow(axis, edge, 1))
    return found.flatten(axis, axis + 1)


def _read(x, axis: int, n: int, b: int, start: int):
    """The same for pixels start .. start + n alone, by a place in `x` for each: sizes may be symbols."""
    pixel = torch.arange(n, device=x.device) + start
    own = pixel // b
    towards = (pixel % b + 0.5).double() / b - 0.5
    other = (own + towards.sign().long()).clamp(0, (n + b - 1) // b - 1)
    weight = towards.abs().to(x.dtype).view(-1, *(1,) * (x.ndim - 1 - axis))
    return torch.lerp(x.index_select(axis, own), x.index_select(axis, other), weight)


def pool_adjoint(y, size, blur):
    """The adjoint of `pool`: [B, C, *low_size] -> [B, C, *size]. Each pixel gets its block's value over its count."""
    if max(blur) == 1:
        return y
    count = pool_counts(size, inside(blur, size), y.dtype, y.device)
    return spread((y / count).to(y.dtype), size, blur)


def spread(y, size, blur):
    """Each pixel gets its block's value: [B, C, *low_size] -> [B, C, *size]."""
    blur = inside(blur, size)
    for axis, (n, b, start) in enumerate(zip(size, blur, padding(size, blur), strict=True), 2):
        if b > 1:
            y = y.index_select(axis, (torch.arange(n, device=y.device) + start) // b)
    return y


def pool_counts(size, blur, dtype, device, spare: bool = False):
    """Image pixels per block, [*low_size]; 1 for a spare one."""
    counts = torch.ones((), dtype=dtype, device=device)
    for n, b, p in zip(size, blur, padding(size, blur), strict=True):
        start = torch.arange((n + b - 1) // b + (spare and b > 1), device=device) * b - p
        counts = counts[..., None] * ((start + b).clamp_max(n) - start.clamp_min(0)).clamp_min(1).to(dtype)
    return counts


def upsample_adjoint(y, blur):
    """The adjoint of `upsample`: [B, C, *size] -> [B, C, *low_size]. Axis by axis a low pixel sums the 2 b pixels that
    read it: PyTorch's backward of `interpolate` adds in no fixed order on a GPU, and a matrix may multiply in TF32."""
    size = y.shape[2:]
    blur = inside(blur, size)
    axes = zip(size, blur, low_size(size, blur), padding(size, blur), strict=True)
    for axis, (n, b, low, start) in enumerate(axes, 2):
        if b > 1:
            behind = (0, 0) * (4 - axis)
            y = F.pad(y, (*behind, start + b // 2, low * b + b - b // 2 - n - start))
            pixel = torch.arange(low, dtype=y.dtype, device=y.device).view(low, *(1,) * (4 - axis))
            total = y.new_zeros(())
            for offset, reader in enumerate(y.unfold(axis, 2 * b, b).unbind(-1)):
                source = (pixel + (offset - b // 2 + 0.5) / b - 0.5).clamp(0, low - 1)
                total = torch.addcmul(total, reader, (1 - (source - pixel).abs()).clamp_min(0))
            y = total
    return y

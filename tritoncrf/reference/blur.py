"""Pooling and upsampling around a low-resolution window (ConvCRF's `blur`), with their true adjoints.

    pool      mean over b x b blocks, of the pixels that are in the image
    upsample  bilinear by b (half-pixel centres), cropped back to the image

The image sits in a grid of ceil(n / b) b pixels per axis, ceil of half the surplus before it. Shapes are
[B, C, Z, Y, X]; `blur` is one factor per axis, 1 for an axis that is not there. A block larger than the image is the
image.
"""

import torch
import torch.nn.functional as F


def low_size(size, blur) -> tuple[int, ...]:
    return tuple(-(-n // b) for n, b in zip(size, blur, strict=True))


def padding(size, blur) -> tuple[int, ...]:
    """Pixels of the grid before the image, per axis."""
    return tuple((-n % b + 1) // 2 for n, b in zip(size, blur, strict=True))


def pool(x, blur):
    """[B, C, *S] -> [B, C, *low_size]. In 2-D passes, whose backward PyTorch has in a fixed order on a GPU; its 3-D
    pooling's is not."""
    blur = _inside(blur, x.shape[2:])
    if max(blur[1:]) > 1:
        x = _pooled_planes(x.flatten(1, 2), blur[1:]).unflatten(1, x.shape[1:3])
    if blur[0] > 1:
        x = _pooled_planes(x.flatten(3), (blur[0], 1)).unflatten(3, x.shape[3:])
    return x


def _pooled_planes(x, blur):
    """[B, C, Y, X] -> [B, C, *low_size]."""
    low = low_size(x.shape[2:], blur)
    pooled = F.avg_pool2d(x, blur, blur, padding(x.shape[2:], blur), count_include_pad=False)
    return pooled[:, :, : low[0], : low[1]]


def _inside(blur, size) -> tuple[int, ...]:
    return tuple(map(min, blur, size))


def _crop(x, size, start=(0, 0, 0)):
    for axis, (n, s) in enumerate(zip(size, start, strict=True), 2):
        x = x.narrow(axis, s, n)
    return x


def upsample(x, size, blur):
    """[B, C, *low_size] -> [B, C, *size]."""
    if max(blur) == 1:
        return x
    blur = _inside(blur, size)
    grid = [n * b for n, b in zip(x.shape[2:], blur, strict=True)]
    if blur[0] == 1:
        up = F.interpolate(x.flatten(1, 2), size=grid[1:], mode="bilinear", align_corners=False)
        up = up.unflatten(1, x.shape[1:3])
    else:
        up = F.interpolate(x, size=grid, mode="trilinear", align_corners=False)
    return _crop(up, size, padding(size, blur))


def pool_adjoint(y, size, blur):
    """The adjoint of `pool`: [B, C, *low_size] -> [B, C, *size]. Each pixel gets its block's value over its count."""
    if max(blur) == 1:
        return y
    count = pool_counts(size, _inside(blur, size), y.dtype, y.device)
    return spread((y / count).to(y.dtype), size, blur)


def spread(y, size, blur):
    """Each pixel gets its block's value: [B, C, *low_size] -> [B, C, *size]."""
    blur = _inside(blur, size)
    for axis, b in enumerate(blur, 2):
        y = y.repeat_interleave(b, axis) if b > 1 else y
    return _crop(y, size, padding(size, blur))


def pool_counts(size, blur, dtype, device):
    """Image pixels per block, [*low_size]."""
    counts = torch.ones((), dtype=dtype, device=device)
    for n, b, p in zip(size, blur, padding(size, blur), strict=True):
        start = torch.arange(-(-n // b), device=device) * b - p
        counts = counts[..., None] * ((start + b).clamp_max(n) - start.clamp_min(0)).to(dtype)
    return counts


def upsample_adjoint(y, blur):
    """The adjoint of `upsample`: [B, C, *size] -> [B, C, *low_size]. Axis by axis a low pixel sums the 2 b pixels that
    read it: PyTorch's backward of `interpolate` adds in no fixed order on a GPU, and a matrix may multiply in TF32."""
    size = y.shape[2:]
    blur = _inside(blur, size)
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

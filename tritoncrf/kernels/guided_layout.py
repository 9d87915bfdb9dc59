"""Padded planes of a guided filter with short windows (guided_planes.py).

Values, guide and z are padded with zeros by the reach of a window, so that windows need no mask; two neighbours of a
row form one 64-bit number, a pair. Pixel x of a row lies in column x + RX of values and guide, x + RX + RX % 2 of z: so
the windows that a pass reads begin at a pair, and so do the pixels that it owns, those of the second pass RX % 2
columns earlier. The guide's first plane holds 1 / area. A plane has an even number of rows.
"""

import math

import triton
import triton.language as tl

from tritoncrf.kernels.box import area_of
from tritoncrf.kernels.common import ceil_div, launch, tile_and_image

LANES = tl.constexpr(32)  # pairs of columns of a warp

SIZES = {
    "do_not_specialize": [
        "C", "NY", "NX", "ROW", "ROWS", "pitch", "origin", "stride_p", "stride_gb", "stride_mb", "stride_lb",
        "stride_x", "stride_ml", "stride_mk", "stride_a",
    ],
}  # fmt: skip


@triton.jit
def clear_frame(ptr, lane, first, step, left, width, NX, NY, PLANE, RY: tl.constexpr):
    """Zeros around the NX columns of an image that begin at column `left` of a plane `width` wide, by every `step`-th
    program, this one being the `first`."""
    head = RY * width + left
    cells = (PLANE - NY * NX).to(tl.int32)
    for q in range(first * LANES, cells, step * LANES):
        q = q + lane
        rows = tl.minimum(1 + (q - head) // tl.maximum(width - NX, 1), NY)  # of the image, before this zero
        rows = tl.where(q < head, 0, tl.where(width > NX, rows, NY))
        tl.store(ptr + (q + rows.to(tl.int64) * NX), (q * 0).to(ptr.dtype.element_ty), mask=q < cells)


@triton.jit(**SIZES)
def _pad_kernel(
    x_ptr, y_ptr, C, NY, NX, ROW, AREA, stride_x, RY: tl.constexpr, RX: tl.constexpr, SHARE: tl.constexpr,
    COUNT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P numbers of one padded plane. SHARE: the first of each image's C planes is 1 / area."""
    width, rows = 2 * ROW, NY + NY % 2 + 2 * RY
    tile, plane = tile_and_image(tl.cdiv(rows * width, P))
    o = tile * P + tl.arange(0, P)
    y, x = o // width - RY, o % width - RX
    m_i = (o < rows * width) & (y >= 0) & (y < NY) & (x >= 0) & (x < NX)
    i = y * NX + x
    N = tl.full((), 1, tl.int64) * NY * NX
    b, c = plane // C, plane % C
    if SHARE:
        value = tl.load(x_ptr + b * stride_x + (c - 1) * N + i, mask=m_i & (c > 0), other=0.0)
        inside = 1.0 / area_of(i, 1, NY, NX, 0, RY, RX, AREA, COUNT)
        value = tl.where(c == 0, tl.where(m_i, inside, 0.0), value)
    else:
        value = tl.load(x_ptr + b * stride_x + c * N + i, mask=m_i, other=0.0)
    tl.store(y_ptr + plane * rows * width + o, value, mask=o < rows * width)


class Planes:
    """The layout of an image [1, NY, NX] in padded planes, for windows of these radii."""

    def __init__(self, size, radii, box: str) -> None:
        (_, ny, nx), (_, ry, rx) = size, radii
        self.size, self.radii, self.box = (ny, nx), (ry, rx), box
        self.row = (nx + 1 + rx % 2) // 2 + rx  # pairs
        self.shape = ny + ny % 2 + 2 * ry, 2 * self.row

    def padded(self, x, share: bool = False):
        """x [B, C, 1, NY, NX] in planes [B, C, *shape]; with `share`, 1 / area before its channels."""
        x = x.contiguous()
        planes = x.shape[1] + share
        y = x.new_empty((len(x), planes, *self.shape))
        area = float(math.prod(min(2 * r + 1, n) for r, n in zip(self.radii, self.size)))
        launch(
            _pad_kernel, (ceil_div(math.prod(self.shape), 1024) * len(x) * planes,), num_warps=4,
            x_ptr=x, y_ptr=y, C=planes, **self.arguments(), AREA=area, stride_x=x.stride(0), SHARE=share,
            COUNT=self.box == "count", P=1024,
        )  # fmt: skip
        return y

    def cropped(self, y):
        """The image [B, C, NY, NX] of planes, a view."""
        (ny, nx), (ry, rx) = self.size, self.radii
        return y[..., ry : ry + ny, rx : rx + nx]

    def registers(self, channels: int, few: int) -> int:
        """The registers per thread, `few` if it keeps few rows; without a limit ptxas spills some to fit one more
        program."""
        return few if self.radii[0] * (1 + channels) <= 12 else 255

    def arguments(self) -> dict:
        return {"NY": self.size[0], "NX": self.size[1], "ROW": self.row, "RY": self.radii[0], "RX": self.radii[1]}

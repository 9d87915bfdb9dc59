"""The splat by atomic additions, with which the lattice's sorted, deterministic splat (kernels/lattice.py) is compared.

    v_m = sum over pixels i and corners r with v_ir = m of b_ir (scale . x)_i

Each pixel is read once and added to its d + 1 vertices, possibly at the same time as others. This needs no table in the
order of vertices, but the order of additions, and so the rounding, differs between runs.

Bytes: x once, and (d + 1) N rows that are read and written back in the cache.
"""

import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, launch, scale

TILE = 1024  # numbers of a tile of rows
CLASS_BLOCK = 64


@triton.jit
def _atomic_splat_kernel(
    # pointers
    x_ptr, weight_ptr, scale_ptr, vertex_ptr, v_ptr,
    # sizes
    N,
    # strides: image of the vertices, of the tables in pixels (0: all images share them)
    stride_vb, stride_tb,
    # meta-parameters
    D1: tl.constexpr, CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P pixels of one image, for one block of classes; the vertices belong to all."""
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    o_c = tl.program_id(1) * CB + tl.arange(0, CB)
    tile = inside[:, None] & (o_c < CS)[None, :]
    table = b * stride_tb + i
    x = tl.load(x_ptr + (b * N + i)[:, None] * CS + o_c[None, :], mask=tile, other=0.0)
    x *= (scale(scale_ptr, table, inside) + tl.zeros((P,), tl.float32))[:, None]
    for r in range(0, D1):
        vertex = tl.load(vertex_ptr + table * D1 + r, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weight_ptr + table * D1 + r, mask=inside, other=0.0)
        o_v = (b * stride_vb + vertex * CS)[:, None] + o_c[None, :]
        tl.atomic_add(v_ptr + o_v, weight[:, None] * x, mask=tile, sem="relaxed")


def atomic_splat(rows, side):
    """S (scale . x) of rows that kernels.lattice.rows_of made: [G, M + 1, C], as kernels.lattice.splat."""
    lattice = side.lattice
    batch, pixels, classes = rows.shape
    step = rows.stride(1)
    v = rows.new_zeros((batch if lattice.shared else 1, lattice.count + 1, step))
    block = min(triton.next_power_of_2(step), CLASS_BLOCK)
    p = TILE // block
    launch(
        _atomic_splat_kernel, (ceil_div(pixels, p), ceil_div(step, block), batch), num_warps=4,
        x_ptr=rows, weight_ptr=lattice.weights, scale_ptr=side.scale, vertex_ptr=lattice.vertices, v_ptr=v, N=pixels,
        stride_vb=v.stride(0) if lattice.shared else 0, stride_tb=0 if lattice.shared else pixels, D1=lattice.corners,
        CS=step, CB=block, P=p,
    )  # fmt: skip
    return v[:, :, :classes]

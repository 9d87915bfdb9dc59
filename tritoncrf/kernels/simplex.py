"""Coordinates on the permutohedral lattice, once per image (Adams, Baek and Davis 2010, section 3.1).

    e_j = sum_{k > j} sigma_k f_k - j sigma_j f_j                a pixel's D + 1 elevated coordinates, which add up to 0
    dL/de_j = (dL/db_{D - rank_j} - dL/db_{D + 1 - rank_j}) / (D + 1)             b_r: barycentric weight of vertex r

A pixel lies in a simplex of D + 1 vertices. `cell` rounds e_j / (D + 1), `rank` orders the remainders, and both name
the vertices: vertex r lies one back along each axis whose rank is above D - r. The weights b add up to 1; their
gradient is exact between the features where a pixel changes its simplex. Sorting and numbering the vertices is
torch's work (reference/simplex.py, `connect`); where their codes are one integer each, the D + 1 next ones of a vertex
are found here, by a binary search in the sorted codes.

Ties between coordinates are common (a pixel on a grid), and a tie broken otherwise is another vertex: so every product
is rounded before it is added, as in the reference. Cost O(N D^2); reads f, writes D + 1 weights and codes a pixel.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import OF_SIZE, ceil_div, launch, tile_and_image


@triton.constexpr_function
def sigma(k, d):
    """sigma_k from a first factor in float32, as reference.lattice.sigmas: ties between coordinates stay ties."""
    first = (d + 1) * (2.0 / 3.0) ** 0.5
    split = first * (2.0**29 + 1)  # Veltkamp's splitting leaves float32's 24 bits
    return (split - (split - first)) / (k * (k + 1)) ** 0.5


@triton.jit
def _simplex(f_ptr, i, m_i, N, D: tl.constexpr, DP: tl.constexpr):
    """Cells, ranks and fractions of pixels i, [DP, P] each, all of a pixel in one thread; rows from D + 1 on pad."""
    o = tl.arange(0, DP)[:, None]
    elevated = tl.zeros((DP, i.shape[0]), tl.float32)
    total = tl.zeros((i.shape[0],), tl.float32)
    for k in tl.static_range(D, 0, -1):
        scaled = tl.load(f_ptr + (k - 1) * N + i, mask=m_i, other=0.0) * sigma(k, D)
        elevated += tl.where(o == k, (total - k * scaled)[None, :], 0.0)
        total += scaled
    elevated += tl.where(o == 0, total[None, :], 0.0)
    # The nearest integer, half to even: from 1.5 * 2^23 on float32 has no fractions.
    cell = (elevated * (1.0 / (D + 1)) + 12582912.0) - 12582912.0
    distance = elevated - cell * (D + 1)
    rank = tl.zeros((DP, i.shape[0]), tl.int32)
    for n in range(D + 1):
        other = tl.sum(tl.where(o == n, distance, 0.0), 0)[None, :]
        rank += tl.where(other > distance, 1, tl.where(other == distance, tl.where(n < o, 1, 0), 0))
    cell = cell.to(tl.int32)
    rank += tl.sum(cell, 0)[None, :]
    wrap = tl.where(rank < 0, 1, 0) - tl.where(rank > D, 1, 0)
    cell += wrap
    return cell, rank + wrap * (D + 1), distance * (1.0 / (D + 1)) - wrap


@triton.jit(**OF_SIZE)
def _simplex_kernel(
    # pointers
    f_ptr, low_ptr, stride_ptr, weight_ptr, code_ptr,
    # sizes
    N,
    # meta-parameters: FIRST, of the groups that the axes are packed in
    D: tl.constexpr, DP: tl.constexpr, FIRST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the weights and one group's codes of the D + 1 vertices around P pixels of one image."""
    tile, b = tile_and_image(tl.cdiv(N, P))
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    cell, rank, fraction = _simplex(f_ptr + b * D * N, i, m_i, N, D, DP)
    o = tl.arange(0, DP)[:, None]
    m_y = m_i[None, :] & (o < D + 1)
    o_y = (b * N + i)[None, :] * (D + 1) + o

    weight = tl.where(o == 0, 1.0, tl.zeros((DP, P), tl.float32))
    for j in range(D + 1):
        rank_j = tl.sum(tl.where(o == j, rank, 0), 0)[None, :]
        fraction_j = tl.sum(tl.where(o == j, fraction, 0.0), 0)[None, :]
        weight += tl.where(o == D - rank_j, fraction_j, 0.0)
        weight -= tl.where(o == (D + 1 - rank_j) % (D + 1), fraction_j, 0.0)
    tl.store(weight_ptr + o_y, weight, mask=m_y)

    code = tl.zeros((DP, P), tl.int64)
    for j in range(D):
        # One back along each axis whose rank is above D - r.
        stride = tl.load(stride_ptr + j)
        rank_j = tl.sum(tl.where(o == j, rank, 0), 0)[None, :]
        origin = (tl.sum(tl.where(o == j, cell, 0), 0) - tl.load(low_ptr + j)).to(tl.int64)[None, :]
        code += (origin - tl.where(rank_j > D - o, 1, 0)) * stride
    if FIRST:
        code = (code + b * tl.load(stride_ptr + D)) * (D + 1) + o
    tl.store(code_ptr + o_y, code, mask=m_y)


@triton.jit(**OF_SIZE)
def _simplex_gradient_kernel(
    # pointers
    f_ptr, d_weight_ptr, d_f_ptr,
    # sizes
    N,
    # meta-parameters
    D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns dL/df of P pixels of one image."""
    tile, b = tile_and_image(tl.cdiv(N, P))
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    _, rank, _ = _simplex(f_ptr + b * D * N, i, m_i, N, D, DP)
    o = tl.arange(0, DP)[:, None]
    m_e = m_i[None, :] & (o < D + 1)
    row_ptr = d_weight_ptr + (b * N + i)[None, :] * (D + 1)
    d_e = tl.load(row_ptr + (D - rank), mask=m_e, other=0.0)
    d_e -= tl.load(row_ptr + (D + 1 - rank) % (D + 1), mask=m_e, other=0.0)
    d_e *= 1.0 / (D + 1)
    before = tl.zeros((P,), tl.float32)
    for k in tl.static_range(1, D + 1):
        before += tl.sum(tl.where(o == k - 1, d_e, 0.0), 0)
        own = tl.sum(tl.where(o == k, d_e, 0.0), 0)
        tl.store(d_f_ptr + (b * D + k - 1) * N + i, sigma(k, D) * (before - k * own), mask=m_i)


@triton.jit(**OF_SIZE)
def _neighbours_kernel(
    # pointers
    code_ptr, stride_ptr, neighbour_ptr,
    # sizes
    V,
    # meta-parameters
    D1: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the next vertices of P vertices along one axis j, and the place of these as the ones before.

    Next: every coordinate 1 less, but coordinate j D more: r - 1 (or D and u - 1, from r = 0), then u_j + 1. Strides:
    of D + 1 axes, the last 0, and their sum."""
    p = tl.program_id(0) * P + tl.arange(0, P)
    m_p = p < V
    code = tl.load(code_ptr + p, mask=m_p, other=0).to(tl.int64)
    wanted = code + D1 * tl.load(stride_ptr + tl.program_id(1)) - 1
    wanted += tl.where(code % D1 == 0, D1 * (1 - tl.load(stride_ptr + D1)), 0)
    at = tl.zeros((P,), tl.int32)  # of the first code that is not below, between at and end
    end = at + V
    size = V
    while size > 0:
        middle = (at + end) // 2
        m_middle = at < end
        below = tl.load(code_ptr + middle, mask=m_middle, other=0).to(tl.int64) < wanted
        at, end = tl.where(m_middle & below, middle + 1, at), tl.where(m_middle & ~below, middle, end)
        size //= 2
    found = m_p & (at < V)
    found &= tl.load(code_ptr + at, mask=found, other=0).to(tl.int64) == wanted
    neighbour_ptr += tl.program_id(1).to(tl.int64) * (V + 1) * 2
    tl.store(neighbour_ptr + 2 * p.to(tl.int64), at, mask=found)
    tl.store(neighbour_ptr + 2 * at.to(tl.int64) + 1, p, mask=found)


def _launch_simplex(kernel, features, **arguments):
    images, channels, pixels = features.shape
    padded = triton.next_power_of_2(channels + 1)
    # A pixel to a thread: up to fifteen features, what belongs to a pixel never crosses threads.
    launch(
        kernel, (ceil_div(pixels, 32) * images,), num_warps=max(1, padded // 16), fp_fusion=False,
        f_ptr=features, **arguments, N=pixels, D=channels, DP=padded, P=32,
    )  # fmt: skip


def simplex(features, layout):
    """Barycentric weights [Bf, N, D + 1] and each group's codes, as reference.simplex.simplex; each pixel has a simplex
    of its own, as sorting is quick here."""
    features = features.contiguous()
    images, channels, pixels = features.shape
    weights = features.new_empty((images, pixels, channels + 1))
    low = torch.tensor(layout.low, device=features.device)
    codes = []
    for g, (strides, dtype) in enumerate(zip(layout.strides, layout.dtypes)):
        strides = torch.tensor([*strides, layout.image_stride], device=features.device)  # they follow the picture
        code = torch.empty(weights.numel(), dtype=dtype, device=features.device)
        _launch_simplex(
            _simplex_kernel, features, low_ptr=low, stride_ptr=strides,
            weight_ptr=weights, code_ptr=code, FIRST=g == 0,
        )  # fmt: skip
        codes.append(code)
    return weights, codes, None


def simplex_gradient(features, d_weights):
    """dL/df [Bf, D, N] from dL/db [Bf, N, D + 1]."""
    features = features.contiguous()
    gradient = torch.empty_like(features)
    _launch_simplex(_simplex_gradient_kernel, features, d_weight_ptr=d_weights.contiguous(), d_f_ptr=gradient)
    return gradient


def neighbours(codes, layout):
    """As reference.simplex.neighbours, of one group of codes: a binary search for every vertex and axis."""
    (codes,) = codes
    count, corners = len(codes), layout.dimensions + 1
    strides = torch.tensor([*layout.strides[0], 0, sum(layout.strides[0])], device=codes.device)
    found = torch.full((corners, count + 1, 2), count, dtype=torch.int32, device=codes.device)
    launch(
        _neighbours_kernel, (ceil_div(count, 128), corners), num_warps=4,
        code_ptr=codes, stride_ptr=strides, neighbour_ptr=found, V=count, D1=corners, P=128,
    )  # fmt: skip
    return found

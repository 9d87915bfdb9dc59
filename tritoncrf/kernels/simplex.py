"""Coordinates on the permutohedral lattice, computed once per image (Adams, Baek and Davis 2010, section 3.1).

    e_j = sum_{k > j} sigma_k f_k - j sigma_j f_j                a pixel's D + 1 elevated coordinates, which add up to 0
    dL/de_j = (dL/db_{D - rank_j} - dL/db_{D + 1 - rank_j}) / (D + 1)             b_r: barycentric weight of vertex r

A pixel lies in a simplex of D + 1 vertices. `cell` rounds e_j / (D + 1), `rank` orders the remainders, and both name
the vertices: vertex r lies one back along each axis whose rank is above D - r. The weights b add up to 1; their
gradient is exact between the features where a pixel changes its simplex.

A vertex's code is sum_j step_j cell_j, from an origin and with the image's index in front. The steps follow from the
bounds of the features (reference/simplex.py, `key_layout`) and are computed on the device, so the host waits only once
for a lattice, for the sizes of its tables (vertices.py). If one integer cannot hold the codes, or float32 cannot place
the features, the same transfer reports it, and the host lays out the codes or shifts the features.

Ties between coordinates are common (pixels on a grid), and a tie that is broken differently gives another vertex, so
every product is rounded before it is added, as in the reference. Cost O(N D^2); reads f, writes D + 1 weights and codes
a pixel.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels import vertices
from tritoncrf.kernels.common import OF_SIZE, ceil_div, launch, launches_run, tile_and_image

LEAST_EXTENT = 6  # of a difference, with what `key_layout` adds on either side


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
def _layout_kernel(
    # pointers
    end_ptr, layout_ptr,
    # sizes
    IMAGES,
    # meta-parameters
    D: tl.constexpr, MAX_COORDINATE: tl.constexpr, MAX_CODES: tl.constexpr,
):  # fmt: skip
    """One program owns the layout of the codes of features within two ends, as `packed` has it, in one integer; it has
    no codes where there is no such layout. As reference.simplex.key_layout, from the last difference on."""
    least_sum, most_sum = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    stride, origin, size = tl.full((), 1, tl.int64), tl.full((), 0, tl.int64), tl.full((), 1.0, tl.float64)
    near = size == 1.0
    tl.store(layout_ptr + D, origin)
    for n in range(D):
        j = D - 1 - n
        # sigma_{j+1} and j sigma_j
        own = sigma(1, D) * tl.sqrt(2.0 / ((j + 1) * (j + 2)).to(tl.float64))
        back = sigma(1, D) * tl.sqrt(2.0 * j.to(tl.float64) / (j + 1).to(tl.float64))
        least, most = own * tl.load(end_ptr + j).to(tl.float64), own * tl.load(end_ptr + D + j).to(tl.float64)
        least_sum += least
        most_sum += most
        least_back = back * tl.load(end_ptr + tl.maximum(j - 1, 0)).to(tl.float64)
        most_back = back * tl.load(end_ptr + D + tl.maximum(j - 1, 0)).to(tl.float64)
        near = near & (least_sum - most_back >= -MAX_COORDINATE) & (most_sum - least_back <= MAX_COORDINATE)
        first = tl.where(near, (j + 2) * least - most_back, 0.0) / (D + 1)  # near is false where they are NaN
        last = tl.where(near, (j + 2) * most - least_back, 0.0) / (D + 1)
        low = (tl.floor(first - 0.01) - 2).to(tl.int64)
        extent = (tl.ceil(last + 0.01) + 3).to(tl.int64) - low
        tl.store(layout_ptr + j, stride)
        origin -= stride * low
        stride *= extent
        size *= extent.to(tl.float64)
    tl.store(layout_ptr + D + 1, stride)
    tl.store(layout_ptr + D + 2, origin)
    size *= IMAGES
    tl.store(layout_ptr + D + 3, tl.where(near & (size <= MAX_CODES), size, 0.0).to(tl.int64))


@triton.jit(**OF_SIZE)
def _simplex_kernel(
    # pointers
    f_ptr, layout_ptr, weight_ptr, code_ptr,
    # sizes
    N,
    # meta-parameters
    D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the weights and one group's codes of the D + 1 vertices around P pixels of one image."""
    tile, b = tile_and_image(tl.cdiv(N, P))
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    m_f = m_i & (tl.load(layout_ptr + D + 3) > 0)  # what no layout holds is not read
    cell, rank, fraction = _simplex(f_ptr + b * D * N, i, m_f, N, D, DP)
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

    code = tl.zeros((DP, P), tl.int64) + (tl.load(layout_ptr + D + 2) + b * tl.load(layout_ptr + D + 1))
    before = tl.full((), 0, tl.int64)
    for j in range(D + 1):
        # One back along each axis whose rank is above D - r.
        stride = tl.load(layout_ptr + j)
        rank_j = tl.sum(tl.where(o == j, rank, 0), 0)[None, :]
        cell_j = tl.sum(tl.where(o == j, cell, 0), 0)[None, :]
        code += (cell_j - tl.where(rank_j > D - o, 1, 0)) * (stride - before)
        before = stride
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
    row_ptr = d_weight_ptr + (b * N + i) * (D + 1)
    d_e = tl.zeros((DP, P), tl.float32)
    for r in range(D + 1):
        d_r = tl.load(row_ptr + r, mask=m_i, other=0.0) - tl.load(row_ptr + (r + 1) % (D + 1), mask=m_i, other=0.0)
        d_e += tl.where(rank == D - r, d_r[None, :], 0.0)
    d_e *= 1.0 / (D + 1)
    before = tl.zeros((P,), tl.float32)
    for k in tl.static_range(1, D + 1):
        before += tl.sum(tl.where(o == k - 1, d_e, 0.0), 0)
        own = tl.sum(tl.where(o == k, d_e, 0.0), 0)
        tl.store(d_f_ptr + (b * D + k - 1) * N + i, sigma(k, D) * (before - k * own), mask=m_i)


def _launch_simplex(kernel, features, **arguments):
    images, channels, pixels = features.shape
    padded = triton.next_power_of_2(channels + 1)
    # A pixel to a thread: up to fifteen features, what belongs to a pixel never crosses threads.
    launch(
        kernel, (ceil_div(pixels, 32) * images,), num_warps=max(1, padded // 16), fp_fusion=False,
        f_ptr=features, **arguments, N=pixels, D=channels, DP=padded, P=32,
    )  # fmt: skip


def packed(layout, group: int, device):
    """A group's layout as the kernels read it, int64 [D + 4]: the strides of the D differences, a 0, the stride of the
    images, the code of the origin, and how many codes there are. A step is a stride less the one before."""
    image = layout.image_stride if group == 0 else 0
    numbers = *layout.strides[group], 0, image, layout.origins[group], layout.sizes[group]
    return torch.tensor(numbers, device=device)


def simplex(features, layout):
    """Barycentric weights [Bf, N, D + 1] and each group's codes, as reference.simplex.simplex; each pixel has a simplex
    of its own, as sorting is quick here."""
    codes = []
    for group, dtype in enumerate(layout.dtypes):
        weights, code = _coded(features.contiguous(), packed(layout, group, features.device), dtype)
        codes.append(code)
    return weights, codes, None


def _coded(features, layout, dtype):
    """Barycentric weights, and the codes of one group of differences."""
    images, channels, pixels = features.shape
    weights = features.new_empty((images, pixels, channels + 1))
    codes = torch.empty(weights.numel(), dtype=dtype, device=features.device)
    _launch_simplex(_simplex_kernel, features, layout_ptr=layout, weight_ptr=weights, code_ptr=codes)
    return weights, codes


_wide: set[int] = set()  # channels of features whose last lattice needed 63 bits; trying 31 first would wait twice


def connected(features, chunk: int, max_coordinate: int, max_codes: int):
    """Weights and tables of features [Bf, D, N], Bf N > 0, as reference.simplex.simplex and connect give them, after
    one wait for the host; None where codes or coordinates are larger than they may be."""
    features = features.contiguous()
    images, channels, pixels = features.shape
    ends = features.new_empty((2, channels))
    torch.amin(features, (0, 2), out=ends[0])
    torch.amax(features, (0, 2), out=ends[1])
    layout = torch.empty(channels + 4 + vertices.KINDS, dtype=torch.int64, device=features.device)
    launch(
        _layout_kernel, (1,), num_warps=1, end_ptr=ends, layout_ptr=layout, IMAGES=images, D=channels,
        MAX_COORDINATE=max_coordinate, MAX_CODES=max_codes,
    )  # fmt: skip
    least_codes = images * LEAST_EXTENT**channels
    for dtype in (torch.int32, torch.int64)[channels in _wide or least_codes >= 1 << 31 :]:
        weights, codes = _coded(features, layout, dtype)
        runs = vertices.counted(codes, chunk, layout[-vertices.KINDS :])
        if launches_run():
            size, *counts = layout.tolist()[channels + 3 :]
        else:  # nothing has been counted: as many of each as there may be
            size, counts = least_codes, [len(codes)] * vertices.KINDS
        if size == 0:
            break
        (_wide.discard if size < 1 << 31 else _wide.add)(channels)
        if size < 1 << 31 or dtype == torch.int64:
            return weights, *vertices.tables(*runs, counts, layout, channels + 1, chunk)
    return None


def simplex_gradient(features, d_weights):
    """dL/df [Bf, D, N] from dL/db [Bf, N, D + 1]."""
    features = features.contiguous()
    gradient = torch.empty_like(features)
    _launch_simplex(_simplex_gradient_kernel, features, d_weight_ptr=d_weights.contiguous(), d_f_ptr=gradient)
    return gradient

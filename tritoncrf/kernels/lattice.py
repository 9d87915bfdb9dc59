"""The permutohedral lattice and its fused step (Adams, Baek and Davis 2010; CRF-as-RNN, section 5; symbols of step.py).

    V = B_d ... B_1 B_0 S (in . x) ,   F = out . alpha S^T V              K^T: the blurs in the reverse order
    y_j = sum_{k > j} c_k - j c_j ,  c_k = sigma_k f_k                    a pixel's coordinates, d + 1 of them
    dL/db_ir = alpha (<y_i, V^x[v_ir]> + <x_i, V^y[v_ir]>)                for the cotangent y of K x

S splats a pixel on the d + 1 vertices of its simplex with barycentric weights b, B_j adds half of a vertex's two
neighbours along axis j, S^T slices. Sorting and numbering the vertices is torch's work (reference/lattice.py,
`connect`, which also says what the tables hold); here is all that touches pixels or values.

Form. Values are rows, all classes of a pixel or a vertex side by side, padded with zeros to a multiple of four,
so that what is gathered is gathered in whole sectors. Every kernel keeps the padding zero. The splat reads the
pairs of pixel and vertex in the order of their vertices: a vertex's pairs are cut into chunks of 16, a program
adds up a few chunks, and another launch the chunks of each vertex. There is no atomic addition anywhere: the
same bits every time, and by counts it is the cheaper form too. For d = 5 and 21 classes a pixel costs 6 gathered
rows of 96 bytes and 12 bytes of table each, out of cache; atomics would write the same six rows, each write a
read and an addition at the cache, many of them to the same few vertices. Two blurs share a launch, which reads
nine rows instead of six. How many vertices there are follows from the picture, and no kernel is specialised on it.

Bytes per iteration: 2 (d + 1) N rows gathered, U, Q in and Q out once, and (d + 1) / 2 passes over M vertices.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import ceil_div, launch, scale
from tritoncrf.kernels.step import finished, mixed

MAX_CLASSES = 256  # of the fused step: a pixel's classes are one row of registers
MAX_MATRIX_CLASSES = 64
GROUP = 8  # chunks of at most 16 pairs, or vertices, of one program
CLASS_BLOCK = 64  # classes at a time where they do not meet
TILE = 2048  # numbers of a tile of rows


# Coordinates ------------------------------------------------------------------------------------------------------


@triton.constexpr_function
def sigma(k, d):
    """sigma_k from a first factor in float32, as reference.lattice.sigmas: ties between coordinates stay ties."""
    first = (d + 1) * (2.0 / 3.0) ** 0.5
    split = first * (2.0**29 + 1)  # Veltkamp's splitting leaves float32's 24 bits
    return (split - (split - first)) / (k * (k + 1)) ** 0.5


@triton.jit
def _simplex(f_ptr, i, inside, N, D: tl.constexpr, DP: tl.constexpr):
    """Cells v, ranks and fractions of pixels i, [DP, P] each, all of a pixel in one thread; rows from D + 1 on pad."""
    o = tl.arange(0, DP)[:, None]
    y = tl.zeros((DP, i.shape[0]), tl.float32)
    total = tl.zeros((i.shape[0],), tl.float32)
    for k in tl.static_range(D, 0, -1):
        c = tl.load(f_ptr + (k - 1) * N + i, mask=inside, other=0.0) * sigma(k, D)
        y += tl.where(o == k, (total - k * c)[None, :], 0.0)
        total += c
    y += tl.where(o == 0, total[None, :], 0.0)
    v = (y * (1.0 / (D + 1)) + 12582912.0) - 12582912.0  # nearest integer, half to even: 1.5 * 2^23 has no fractions
    distance = y - v * (D + 1)
    rank = tl.zeros((DP, i.shape[0]), tl.int32)
    for n in range(D + 1):
        other = tl.sum(tl.where(o == n, distance, 0.0), 0)[None, :]
        rank += tl.where(other > distance, 1, tl.where(other == distance, tl.where(n < o, 1, 0), 0))
    v = v.to(tl.int32)
    rank += tl.sum(v, 0)[None, :]
    wrap = tl.where(rank < 0, 1, 0) - tl.where(rank > D, 1, 0)
    v += wrap
    return v, rank + wrap * (D + 1), distance * (1.0 / (D + 1)) - wrap


@triton.jit
def _simplex_kernel(
    # pointers
    f_ptr, low_ptr, stride_ptr, weight_ptr, code_ptr,
    # sizes
    N,
    # meta-parameters: FIRST, of the groups that the axes are packed in
    D: tl.constexpr, DP: tl.constexpr, FIRST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the weights and one group's codes of the d + 1 vertices around P pixels of one image."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    v, rank, fraction = _simplex(f_ptr + b * D * N, i, inside, N, D, DP)
    o = tl.arange(0, DP)[:, None]
    tile = inside[None, :] & (o < D + 1)
    o_y = (b * N + i)[None, :] * (D + 1) + o

    weight = tl.where(o == 0, 1.0, tl.zeros((DP, P), tl.float32))
    for j in range(D + 1):
        rank_j = tl.sum(tl.where(o == j, rank, 0), 0)[None, :]
        fraction_j = tl.sum(tl.where(o == j, fraction, 0.0), 0)[None, :]
        weight += tl.where(o == D - rank_j, fraction_j, 0.0)
        weight -= tl.where(o == (D + 1 - rank_j) % (D + 1), fraction_j, 0.0)
    tl.store(weight_ptr + o_y, weight, mask=tile)

    code = tl.zeros((DP, P), tl.int64)
    for j in range(D):
        # One back along each axis whose rank is above d - r.
        stride = tl.load(stride_ptr + j)
        rank_j = tl.sum(tl.where(o == j, rank, 0), 0)[None, :]
        origin = (tl.sum(tl.where(o == j, v, 0), 0) - tl.load(low_ptr + j)).to(tl.int64)[None, :]
        code += (origin - tl.where(rank_j > D - o, 1, 0)) * stride
    if FIRST:
        code = (code + b * tl.load(stride_ptr + D)) * (D + 1) + o
    tl.store(code_ptr + o_y, code, mask=tile)


@triton.jit
def _simplex_gradient_kernel(
    # pointers
    f_ptr, d_weight_ptr, d_f_ptr,
    # sizes
    N,
    # meta-parameters
    D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns dL/df of P pixels: dL/dy_j = (dL/db_{d - rank} - dL/db_{d + 1 - rank}) / (d + 1)."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    _, rank, _ = _simplex(f_ptr + b * D * N, i, inside, N, D, DP)
    o = tl.arange(0, DP)[:, None]
    tile = inside[None, :] & (o < D + 1)
    row_ptr = d_weight_ptr + (b * N + i)[None, :] * (D + 1)
    d_y = tl.load(row_ptr + (D - rank), mask=tile, other=0.0)
    d_y -= tl.load(row_ptr + (D + 1 - rank) % (D + 1), mask=tile, other=0.0)
    d_y *= 1.0 / (D + 1)
    before = tl.zeros((P,), tl.float32)
    for k in tl.static_range(1, D + 1):
        before += tl.sum(tl.where(o == k - 1, d_y, 0.0), 0)
        own = tl.sum(tl.where(o == k, d_y, 0.0), 0)
        tl.store(d_f_ptr + (b * D + k - 1) * N + i, sigma(k, D) * (before - k * own), mask=inside)


# Values -----------------------------------------------------------------------------------------------------------


@triton.jit
def _row_offsets(index, CS: tl.constexpr, CB: tl.constexpr):
    """Where the rows `index` begin for this program's block of classes, the classes in it, and which exist."""
    o_c = tl.program_id(1) * CB + tl.arange(0, CB)
    return index.to(tl.int64) * CS, o_c, o_c < CS


@triton.jit(do_not_specialize=["CHUNKS"])
def _splat_kernel(
    # pointers
    x_ptr, weight_ptr, scale_ptr, pair_ptr, start_ptr, y_ptr,
    # sizes
    CHUNKS, N,
    # meta-parameters
    D1: tl.constexpr, CS: tl.constexpr, CB: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Each program owns the sums of GROUP chunks of at most CHUNK pairs, for one block of classes."""
    image = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    m_p = p < CHUNKS
    start = tl.load(start_ptr + p, mask=m_p, other=0)
    end = tl.load(start_ptr + p + 1, mask=m_p, other=0)
    o = start[:, None] + tl.arange(0, CHUNK)[None, :]
    m_o = o < end[:, None]
    pair = tl.load(pair_ptr + o, mask=m_o, other=0)  # [GROUP, CHUNK]
    pixel = pair // D1
    weight = tl.load(weight_ptr + pair, mask=m_o, other=0.0) * scale(scale_ptr, pixel, m_o)
    o_row, o_c, m_c = _row_offsets(image * N + pixel, CS, CB)
    x = tl.load(
        x_ptr + o_row[:, :, None] + o_c[None, None, :], mask=m_o[:, :, None] & m_c[None, None, :], other=0.0
    )  # [GROUP, CHUNK, CB]
    o_y, _, _ = _row_offsets(image * CHUNKS + p, CS, CB)
    total = tl.sum(weight[:, :, None] * x, 1)
    tl.store(y_ptr + o_y[:, None] + o_c[None, :], total, mask=m_p[:, None] & m_c[None, :])


@triton.jit(do_not_specialize=["M", "CHUNKS"])
def _join_kernel(
    # pointers
    chunk_sum_ptr, vertex_chunk_ptr, v_ptr,
    # sizes
    M, CHUNKS,
    # meta-parameters
    CS: tl.constexpr, CB: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Each program owns GROUP vertices, for one block of classes: the sums of their chunks."""
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    m_m = m < M
    start = tl.load(vertex_chunk_ptr + m, mask=m_m, other=0)
    end = tl.load(vertex_chunk_ptr + m + 1, mask=m_m, other=0)
    total = tl.zeros((GROUP, CB), tl.float32)
    for first in range(0, tl.max(end - start, 0), CHUNK):
        o = start[:, None] + first + tl.arange(0, CHUNK)[None, :]
        m_o = o < end[:, None]
        o_row, o_c, m_c = _row_offsets(image * CHUNKS + o, CS, CB)
        total += tl.sum(
            tl.load(
                chunk_sum_ptr + o_row[:, :, None] + o_c[None, None, :],
                mask=m_o[:, :, None] & m_c[None, None, :], other=0.0,
            ), 1,
        )  # fmt: skip
    o_v, o_c, m_c = _row_offsets(image * (M + 1) + m, CS, CB)
    tl.store(v_ptr + o_v[:, None] + o_c[None, :], total, mask=m_m[:, None] & m_c[None, :])


@triton.jit
def _rows(v_ptr, m, M, CS: tl.constexpr, CB: tl.constexpr):
    """Rows m of a block of classes, [V, CB]; 0 where there is no such vertex."""
    o_row, o_c, m_c = _row_offsets(m, CS, CB)
    return tl.load(v_ptr + o_row[:, None] + o_c[None, :], mask=(m < M)[:, None] & m_c[None, :], other=0.0)


@triton.jit
def _neighbours(neighbour_ptr, m, M):
    """The next and the previous vertex of vertices m along an axis; M where there is none."""
    pair_ptr = neighbour_ptr + 2 * m.to(tl.int64)
    return tl.load(pair_ptr, mask=m < M, other=M), tl.load(pair_ptr + 1, mask=m < M, other=M)


@triton.jit
def _blurred(v_ptr, neighbour_ptr, m, M, CS: tl.constexpr, CB: tl.constexpr):
    """(B_j v) at vertices m, [V, CB]; neighbours of axis j. m may be M, which has none."""
    ahead, back = _neighbours(neighbour_ptr, m, M)
    around = _rows(v_ptr, ahead, M, CS, CB) + _rows(v_ptr, back, M, CS, CB)
    return _rows(v_ptr, m, M, CS, CB) + 0.5 * around


@triton.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["first_ptr", "second_ptr"])
def _blur_kernel(
    # pointers
    v_ptr, first_ptr, second_ptr, y_ptr,
    # sizes
    M,
    # meta-parameters
    CS: tl.constexpr, CB: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Each program owns V blurred vertices, for one block of classes: B_second B_first v, or B_first v alone."""
    image = tl.program_id(2).to(tl.int64) * (M + 1) * CS
    m = tl.program_id(0) * V + tl.arange(0, V)
    m_m = m < M
    y = _blurred(v_ptr + image, first_ptr, m, M, CS, CB)
    if second_ptr is not None:
        ahead, back = _neighbours(second_ptr, m, M)
        y += 0.5 * _blurred(v_ptr + image, first_ptr, ahead, M, CS, CB)
        y += 0.5 * _blurred(v_ptr + image, first_ptr, back, M, CS, CB)
    o_row, o_c, m_c = _row_offsets(m, CS, CB)
    tl.store(y_ptr + image + o_row[:, None] + o_c[None, :], y, mask=m_m[:, None] & m_c[None, :])


@triton.jit
def _sliced(
    v_ptr, vertex_ptr, weight_ptr, scale_ptr, i, inside, o_c, m_c, alpha, D1: tl.constexpr, CS: tl.constexpr,
):  # fmt: skip
    """out . alpha S^T v at the pixels i, [P, CP]."""
    total = tl.zeros((i.shape[0], o_c.shape[0]), tl.float32)
    factor = alpha * scale(scale_ptr, i, inside)
    for r in range(0, D1):
        vertex = tl.load(vertex_ptr + i * D1 + r, mask=inside, other=0).to(tl.int64)
        weight = tl.load(weight_ptr + i * D1 + r, mask=inside, other=0.0) * factor
        row = tl.load(v_ptr + vertex[:, None] * CS + o_c[None, :], mask=inside[:, None] & m_c[None, :], other=0.0)
        total += weight[:, None] * row
    return total


@triton.jit(do_not_specialize=["stride_v0b", "stride_v1b"])
def _slice_kernel(
    # pointers
    v0_ptr, vertex0_ptr, weight0_ptr, scale0_ptr, v1_ptr, vertex1_ptr, weight1_ptr, scale1_ptr,
    mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, filtered_ptr,
    # sizes
    N,
    # strides: image in vertices (0: one lattice numbers those of all images), in pixels of the tables (0: shared); A's
    stride_v0b, stride_v1b, stride_t0b, stride_t1b, stride_a, stride_mm, stride_ml, stride_mk,
    # meta-parameters
    alpha0: tl.constexpr, alpha1: tl.constexpr, C: tl.constexpr, CS: tl.constexpr, CP: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, FILTERS: tl.constexpr, MATRIX: tl.constexpr, EPILOGUE: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P pixels of one image: all classes, or a block of them where the epilogue is "sum"."""
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    o_c = tl.program_id(1) * CP + tl.arange(0, CP)
    m_c = o_c < CS
    tile = inside[:, None] & m_c[None, :]
    o_y = (b * N + i)[:, None] * CS + o_c[None, :]
    result = _sliced(
        v0_ptr + b * stride_v0b * CS, vertex0_ptr, weight0_ptr, scale0_ptr, b * stride_t0b + i, inside, o_c, m_c,
        alpha0, D0, CS,
    )  # fmt: skip
    if filtered_ptr is not None:
        tl.store(filtered_ptr + o_y, result, mask=tile)
    if EPILOGUE != "sum":
        result = mixed(result, mix_ptr, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
    if FILTERS == 2:
        other = _sliced(
            v1_ptr + b * stride_v1b * CS, vertex1_ptr, weight1_ptr, scale1_ptr, b * stride_t1b + i, inside, o_c, m_c,
            alpha1, D1, CS,
        )  # fmt: skip
        if filtered_ptr is not None:
            tl.store(filtered_ptr + tl.num_programs(2).to(tl.int64) * N * CS + o_y, other, mask=tile)
        result += mixed(other, mix_ptr + stride_mm, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
    result = finished(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, tile, o_c, C, EPILOGUE)
    tl.store(y_ptr + o_y, result, mask=tile)


@triton.jit(do_not_specialize=["stride_vb"])
def _weights_gradient_kernel(
    # pointers
    x_ptr, y_ptr, vx_ptr, vy_ptr, vertex_ptr, gradient_ptr,
    # sizes
    N,
    # strides: image in vertices, in pixels of the table (0: shared)
    stride_vb, stride_tb,
    # meta-parameters
    alpha: tl.constexpr, D1: tl.constexpr, CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns dL/db of P pixels of one image."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * P + tl.arange(0, P)
    inside = i < N
    o_x = (b * N + i)[:, None] * CS
    for r in range(0, D1):
        vertex = tl.load(vertex_ptr + (b * stride_tb + i) * D1 + r, mask=inside, other=0).to(tl.int64)
        o_v = (b * stride_vb + vertex)[:, None] * CS
        total = tl.zeros((P,), tl.float32)
        for first in range(0, CS, CB):
            o_c = first + tl.arange(0, CB)[None, :]
            tile = inside[:, None] & (o_c < CS)
            x = tl.load(x_ptr + o_x + o_c, mask=tile, other=0.0)
            y = tl.load(y_ptr + o_x + o_c, mask=tile, other=0.0)
            ahead = tl.load(vx_ptr + o_v + o_c, mask=tile, other=0.0)
            back = tl.load(vy_ptr + o_v + o_c, mask=tile, other=0.0)
            total += tl.sum(y * ahead + x * back, 1)
        tl.store(gradient_ptr + (b * N + i) * D1 + r, alpha * total, mask=inside)


# Launchers --------------------------------------------------------------------------------------------------------


def simplex(features, layout):
    """Barycentric weights [Bf, N, d + 1] and each group's codes, as reference.lattice.simplex."""
    features = features.contiguous()
    images, d, pixels = features.shape
    weights = features.new_empty((images, pixels, d + 1))
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
    return weights, codes


def simplex_gradient(features, d_weights):
    """dL/df [Bf, D, N] from dL/db [Bf, N, d + 1]."""
    features = features.contiguous()
    gradient = torch.empty_like(features)
    _launch_simplex(_simplex_gradient_kernel, features, d_weight_ptr=d_weights.contiguous(), d_f_ptr=gradient)
    return gradient


def _launch_simplex(kernel, features, **arguments):
    images, d, pixels = features.shape
    padded = triton.next_power_of_2(d + 1)
    # A pixel to a thread: up to fifteen features, what belongs to a pixel never crosses threads. Products are rounded
    # before they are added, as everywhere else, or ties between coordinates would be broken by chance.
    launch(
        kernel, (ceil_div(pixels, 32), images), num_warps=max(1, padded // 16), fp_fusion=False,
        f_ptr=features, **arguments, N=pixels, D=d, DP=padded, P=32,
    )  # fmt: skip


def rows_of(x):
    """[B, C, *S] as rows [B, N, C], their memory padded with zeros to a multiple of four classes."""
    rows = x.flatten(2).mT
    batch, pixels, classes = rows.shape
    padding = -classes % 4
    if padding == 0:
        return rows.contiguous()
    return rows.new_zeros((batch, pixels, classes + padding))[:, :, :classes].copy_(rows)


def _empty_rows(like, groups: int, count: int):
    """[groups, count, C] of the classes of `like`, rows padded alike."""
    return like.new_empty((groups, count, ceil_div(like.shape[2], 4) * 4))[:, :, : like.shape[2]]


def _classes(rows, most: int) -> tuple[int, dict]:
    """Blocks of classes, and the arguments that describe them."""
    step = ceil_div(rows.shape[2], 4) * 4
    block = min(triton.next_power_of_2(step), most)
    return ceil_div(step, block), {"CS": step, "CB": block}


def splat(rows, side):
    """S (scale . x) of rows [B, N, C], as reference.lattice.splat: [G, M + 1, C], vertex M not written."""
    lattice = side.lattice
    groups = rows.shape[0] if lattice.shared else 1
    chunks, count = len(lattice.chunk_starts) - 1, lattice.count
    blocks, arguments = _classes(rows, CLASS_BLOCK)
    parts, v = _empty_rows(rows, groups, chunks), _empty_rows(rows, groups, count + 1)
    launch(
        _splat_kernel, (ceil_div(chunks, GROUP), blocks, groups), num_warps=4,
        x_ptr=rows, weight_ptr=lattice.weights, scale_ptr=side.scale, pair_ptr=lattice.sorted_pairs,
        start_ptr=lattice.chunk_starts, y_ptr=parts, CHUNKS=chunks, N=rows.shape[1], D1=lattice.corners, **arguments,
        GROUP=GROUP, CHUNK=lattice.chunk,
    )  # fmt: skip
    launch(
        _join_kernel, (ceil_div(count, GROUP), blocks, groups), num_warps=4,
        chunk_sum_ptr=parts, vertex_chunk_ptr=lattice.vertex_chunks, v_ptr=v, M=count, CHUNKS=chunks, **arguments,
        GROUP=GROUP, CHUNK=lattice.chunk,
    )  # fmt: skip
    return v


def filtered(rows, side, reverse: bool):
    """B ... B S (scale . x) of rows [B, N, C], as reference.lattice.filtered: [G, M + 1, C], vertex M not written."""
    lattice, v = side.lattice, splat(rows, side)
    groups, count = len(v), lattice.count
    blocks, arguments = _classes(rows, CLASS_BLOCK)
    axes = [*lattice.neighbours.unbind(0)]
    axes = axes[::-1] if reverse else axes
    tile = TILE // 2 // arguments["CB"]  # vertices; nine rows of each are in flight
    for first in range(0, len(axes), 2):
        pair = (*axes[first : first + 2], None)
        blurred = _empty_rows(rows, groups, count + 1)
        launch(
            _blur_kernel, (ceil_div(count, tile), blocks, groups), num_warps=4,
            v_ptr=v, first_ptr=pair[0], second_ptr=pair[1], y_ptr=blurred, M=count, **arguments, V=tile,
        )  # fmt: skip
        v = blurred
    return v


def _launch_slice(y, vertices, sides, *, precision="default", epilogue="sum", mix=None, q=None, unary=None,
                  a=None, filtered=None):  # fmt: skip
    """y, q, unary rows [B, N, C]; vertices of `filtered` and the sides that they leave by, of one or two filters."""
    batch, pixels, classes = y.shape
    matrix = mix is not None and mix.ndim == 3
    blocks, shape = _classes(y, CLASS_BLOCK if epilogue == "sum" else MAX_CLASSES)
    padded = max(shape["CB"], 16) if matrix else shape["CB"]
    p = max(16, TILE // padded)
    filters = {}
    for m in (0, 1):  # one filter fills both places
        v, side = vertices[m % len(sides)], sides[m % len(sides)]
        lattice = side.lattice
        filters |= {
            f"v{m}_ptr": v, f"vertex{m}_ptr": lattice.vertices, f"weight{m}_ptr": lattice.weights,
            f"scale{m}_ptr": side.scale, f"D{m}": lattice.corners, f"alpha{m}": lattice.alpha,
            f"stride_v{m}b": v.shape[1] if lattice.shared else 0, f"stride_t{m}b": 0 if lattice.shared else pixels,
        }  # fmt: skip
    if mix is not None and not matrix:
        mix = mix.expand(-1, classes)  # a scalar serves all classes, with stride 0
    strides = (*(mix.stride() if mix is not None else ()), 0, 0, 0)
    launch(
        _slice_kernel, (ceil_div(pixels, p), blocks, batch), num_warps=4, **filters,
        mix_ptr=mix, unary_ptr=unary, a_ptr=a, q_ptr=q, y_ptr=y, filtered_ptr=filtered, N=pixels,
        stride_a=0 if a is None else a.stride(0), stride_mm=strides[0], stride_ml=strides[1],
        stride_mk=strides[2] if matrix else 0, C=classes, CS=shape["CS"], CP=padded, FILTERS=len(sides),
        MATRIX=matrix, EPILOGUE=epilogue, PRECISION=precision, P=p,
    )  # fmt: skip
    return y


def sliced(v, side, batch: int):
    """scale . alpha S^T v, rows [B, N, C]."""
    return _launch_slice(_empty_rows(v, batch, side.pixels), [v], [side])


def slice_step(vertices, sides, precision, mix, unary, a, last: bool):
    """The end of a step, rows: Q = softmax(S), or S itself if `last`; S = a U + sum_m A_m out_m alpha S_m^T v_m.

    `mix` holds the A_m: [M, 1] scalars, [M, C] or [M, C, C].
    """
    y = _empty_rows(unary, *unary.shape[:2])
    epilogue = "scores" if last else "softmax"
    return _launch_slice(y, vertices, sides, precision=precision, epilogue=epilogue, mix=mix, unary=unary, a=a)


def slice_step_backward(vertices, sides, precision, mix, like, q, filtered: bool):
    """The end of a step back: dQ = sum_m A_m^T B_m, through the softmax that made rows `q` if given.

    Returns rows, and the B_m [M, B, N, C] if `filtered`.
    """
    y = _empty_rows(like, *like.shape[:2])
    back = _empty_rows(like, len(sides) * len(y), y.shape[1]).unflatten(0, (len(sides), len(y))) if filtered else None
    epilogue = "weighted" if q is None else "softmax_adjoint"
    mix = mix.transpose(1, 2) if mix.ndim == 3 else mix
    _launch_slice(y, vertices, sides, precision=precision, epilogue=epilogue, mix=mix, q=q, filtered=back)
    return y, back


def weights_gradient(rows, cotangent, lattice, v_forward, v_reverse):
    """dL/db [Bf, N, d + 1] for L = <y, K x>, as reference.lattice.weights_gradient."""
    batch, pixels, _ = rows.shape
    _, arguments = _classes(rows, CLASS_BLOCK)
    p = TILE // arguments["CB"]
    gradient = rows.new_empty((batch, pixels, lattice.corners))
    launch(
        _weights_gradient_kernel, (ceil_div(pixels, p), batch), num_warps=4,
        x_ptr=rows, y_ptr=cotangent, vx_ptr=v_forward, vy_ptr=v_reverse, vertex_ptr=lattice.vertices,
        gradient_ptr=gradient, N=pixels, stride_vb=v_forward.shape[1] if lattice.shared else 0,
        stride_tb=0 if lattice.shared else pixels, alpha=lattice.alpha, D1=lattice.corners, **arguments, P=p,
    )  # fmt: skip
    return gradient.sum(0, keepdim=True) if lattice.shared else gradient

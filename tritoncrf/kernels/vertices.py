"""The numbered vertices of the permutohedral lattice and its tables, computed once per image (reference/simplex.py:
connect).

    vertex(e) = how many distinct codes are below that of e        of E pairs e of a pixel and a vertex of its simplex
    next_j(p) = the vertex whose code is step_j above that of vertex p, or none

Form. PyTorch sorts the pairs by their codes, so that a vertex's pairs form a run. `since` is how far a
pair is from the start of its run: a vertex begins where since = 0, a chunk of its pairs at multiples of CHUNK, a group
of chunks at multiples of CHUNK^2. Tiles of pairs count what begins in them, the counts are added up, and tiles write
what begins in them, each in its place. A binary search in the codes finds the start of a run that enters a tile.
Between adding up and writing, the host waits for the sizes of the tables, and for nothing else.

Cost O(E log E), most of it the sort; the tables of pairs have 2 E numbers, the others a few for each vertex.
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.common import OF_SIZE, ceil_div, launch, launches_run

TILE = 512  # pairs of a program, or tiles of the one that adds up their counts
KINDS = 3  # of what begins at a pair: vertices, chunks, groups


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _runs(code_ptr, start, E, P: tl.constexpr):
    """Of this program's P sorted pairs: which they are, which exist, their codes and `since`; `start`, where the run
    of the first began."""
    first = tl.program_id(0) * P
    p = first + tl.arange(0, P)
    m_p = tl.arange(0, P) < E - first
    code = tl.load(code_ptr + p, mask=m_p, other=0)
    differs = code != tl.load(code_ptr + p - 1, mask=m_p & (p > 0), other=0)
    begins = tl.where(m_p & differs & (p > 0), p, start)
    return p, m_p, code, p - tl.associative_scan(begins, 0, _larger)


@triton.jit
def _first_not_below(code_ptr, wanted, size):
    """Of the first `size` sorted codes, how many are below `wanted`."""
    at = 0
    while size > 0:
        half = size // 2
        below = tl.load(code_ptr + at + half) < wanted
        at = tl.where(below, at + half + 1, at)
        size = tl.where(below, size - half - 1, half)
    return at


@triton.jit(**OF_SIZE)
def _count_kernel(
    # pointers
    code_ptr, start_ptr, count_ptr,
    # sizes
    E, TILES,
    # meta-parameters
    CHUNK: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns how many vertices, chunks and groups begin in P sorted pairs, and where the run of the first
    of these began."""
    tile = tl.program_id(0)
    start = _first_not_below(code_ptr, tl.load(code_ptr + tile * P), tile * P)
    _, m_p, _, since = _runs(code_ptr, start, E, P)
    tl.store(start_ptr + tile, start)
    count_ptr += tile
    tl.store(count_ptr, tl.sum((m_p & (since == 0)).to(tl.int32), 0))
    tl.store(count_ptr + TILES, tl.sum((m_p & (since % CHUNK == 0)).to(tl.int32), 0))
    tl.store(count_ptr + 2 * TILES, tl.sum((m_p & (since % (CHUNK * CHUNK) == 0)).to(tl.int32), 0))


@triton.jit(**OF_SIZE)
def _add_up_kernel(
    # pointers
    count_ptr, before_ptr, total_ptr,
    # sizes
    TILES,
    # meta-parameters
    P: tl.constexpr,
):  # fmt: skip
    """Each program owns one kind: how many begin before each tile, and in all."""
    count_ptr += tl.program_id(0) * TILES
    before_ptr += tl.program_id(0) * TILES
    before = 0
    for first in range(0, TILES, P):
        p = first + tl.arange(0, P)
        count = tl.load(count_ptr + p, mask=p < TILES, other=0)
        tl.store(before_ptr + p, before + tl.cumsum(count, 0) - count, mask=p < TILES)
        before += tl.sum(count, 0)
    tl.store(total_ptr + tl.program_id(0), before)


@triton.jit
def _numbers(m_begins, before):
    """Of each pair, the last of what begins there or before it, `before` of these in earlier tiles."""
    return before + tl.cumsum(m_begins.to(tl.int32), 0) - 1


@triton.jit(**OF_SIZE)
def _tables_kernel(
    # pointers
    code_ptr, order_ptr, start_ptr, before_ptr, vertex_ptr, pair_ptr, chunk_ptr, group_ptr, vertex_group_ptr,
    vertex_code_ptr,
    # sizes
    E, TILES,
    # meta-parameters
    CHUNK: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns the entries of P sorted pairs in all tables: of each pair, and of all that begins there."""
    tile = tl.program_id(0)
    p, m_p, code, since = _runs(code_ptr, tl.load(start_ptr + tile), E, P)
    pair = tl.load(order_ptr + p, mask=m_p, other=0)
    m_vertex, m_chunk = m_p & (since == 0), m_p & (since % CHUNK == 0)
    m_group, m_last = m_p & (since % (CHUNK * CHUNK) == 0), m_p & (p == E - 1)
    before_ptr += tile
    vertex = _numbers(m_vertex, tl.load(before_ptr))
    chunk = _numbers(m_chunk, tl.load(before_ptr + TILES))
    group = _numbers(m_group, tl.load(before_ptr + 2 * TILES))
    tl.store(vertex_ptr + pair, vertex, mask=m_p)
    tl.store(pair_ptr + p, pair.to(tl.int32), mask=m_p)
    tl.store(vertex_code_ptr + vertex, code, mask=m_vertex)
    tl.store(chunk_ptr + chunk, p, mask=m_chunk)
    tl.store(group_ptr + group, chunk, mask=m_group)
    tl.store(vertex_group_ptr + vertex, group, mask=m_vertex)
    # Where what is last ends.
    tl.store(chunk_ptr + chunk + 1, p + 1, mask=m_last)
    tl.store(group_ptr + group + 1, chunk + 1, mask=m_last)
    tl.store(vertex_group_ptr + vertex + 1, group + 1, mask=m_last)


@triton.jit(**OF_SIZE)
def _neighbours_kernel(
    # pointers
    code_ptr, layout_ptr, neighbour_ptr,
    # sizes
    V,
    # meta-parameters
    P: tl.constexpr,
):  # fmt: skip
    """Each program owns the next vertices of P vertices along one axis, and the place of these as the ones before."""
    o = tl.arange(0, P)
    first = tl.program_id(0) * P
    p, m_p = first + o, o < V - first
    axis = tl.program_id(1)
    step = tl.load(layout_ptr + axis) - tl.load(layout_ptr + axis - 1, mask=axis > 0, other=0)
    wanted = tl.load(code_ptr + p, mask=m_p, other=0).to(tl.int64) + step
    at = tl.zeros((P,), tl.int32)  # of the first code that is not below, between at and end
    end = at + V
    size = V
    while size > 0:
        middle = at + (end - at) // 2
        m_middle = at < end
        below = tl.load(code_ptr + middle, mask=m_middle, other=0).to(tl.int64) < wanted
        at, end = tl.where(m_middle & below, middle + 1, at), tl.where(m_middle & ~below, middle, end)
        size //= 2
    found = m_p & (at < V)
    found &= tl.load(code_ptr + at, mask=found, other=0).to(tl.int64) == wanted
    neighbour_ptr += axis.to(tl.int64) * (V + 1) * 2
    tl.store(neighbour_ptr + 2 * p.to(tl.int64), at, mask=found)
    tl.store(neighbour_ptr + 2 * at.to(tl.int64) + 1, p, mask=found)


def counted(codes, chunk: int, totals):
    """What `tables` needs, of codes [E], E > 0; and how many vertices, chunks of `chunk` pairs and groups there are,
    written to the int64 `totals`."""
    pairs, tiles = len(codes), ceil_div(len(codes), TILE)
    ordered, order = torch.sort(codes, stable=True)
    starts, counts, before = (
        torch.empty(rows * tiles, dtype=torch.int32, device=codes.device) for rows in (1, KINDS, KINDS)
    )
    launch(
        _count_kernel, (tiles,), num_warps=4,
        code_ptr=ordered, start_ptr=starts, count_ptr=counts, E=pairs, TILES=tiles, CHUNK=chunk, P=TILE,
    )  # fmt: skip
    launch(
        _add_up_kernel, (KINDS,), num_warps=4,
        count_ptr=counts, before_ptr=before, total_ptr=totals, TILES=tiles, P=TILE,
    )  # fmt: skip
    return ordered, order, starts, before


def tables(ordered, order, starts, before, totals, layout, corners: int, chunk: int):
    """The tables of reference.simplex.connect, from `counted` and the totals that it found; layout: simplex.packed."""
    pairs, tiles, (vertices, chunks, groups) = len(ordered), len(starts), totals
    make = torch.empty if launches_run() else torch.zeros  # which PyTorch indexes by
    of_pairs, sorted_pairs, chunk_starts, group_starts, vertex_groups = (
        make(size, dtype=torch.int32, device=ordered.device)
        for size in (pairs, pairs, chunks + 1, groups + 1, vertices + 1)
    )
    codes = ordered.new_empty(vertices)
    launch(
        _tables_kernel, (tiles,), num_warps=4,
        code_ptr=ordered, order_ptr=order, start_ptr=starts, before_ptr=before, vertex_ptr=of_pairs,
        pair_ptr=sorted_pairs, chunk_ptr=chunk_starts, group_ptr=group_starts, vertex_group_ptr=vertex_groups,
        vertex_code_ptr=codes, E=pairs, TILES=tiles, CHUNK=chunk, P=TILE,
    )  # fmt: skip
    return of_pairs, neighbours(codes, layout, corners), sorted_pairs, chunk_starts, group_starts, vertex_groups


def neighbours(codes, layout, corners: int):
    """As reference.simplex.neighbours, of codes [V] of one integer: a binary search for every vertex and axis."""
    count = len(codes)
    found = torch.full((corners, count + 1, 2), count, dtype=torch.int32, device=codes.device)
    launch(
        _neighbours_kernel, (ceil_div(count, 128), corners), num_warps=4,
        code_ptr=codes, layout_ptr=layout, neighbour_ptr=found, V=count, P=128,
    )  # fmt: skip
    return found

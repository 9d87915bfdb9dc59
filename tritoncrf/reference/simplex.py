"""Coordinates on the permutohedral lattice in plain PyTorch, once per image (Adams, Baek and Davis 2010, section 3.1).

Features f of D channels are elevated to the hyperplane of D + 1 coordinates that add up to 0,

    e_j = sum_{k > j} sigma_k f_k - j sigma_j f_j ,    sigma_k = (D + 1) sqrt(2 / 3) / sqrt(k (k + 1))

where each lies in a simplex of D + 1 lattice vertices, with barycentric weights b that add up to 1.

The coordinates of vertex r of a simplex are (D + 1) u_j + r, with integers u: a vertex is known by u and r, packed into
an integer with mixed radix. Where one integer of 63 bits does not hold all u, groups of them are packed apart, and each
group's codes continue the numbering of those before.
"""

import itertools
import math
from dataclasses import dataclass

import torch

MAX_COORDINATE = 1 << 16  # float32 places a pixel within 1 / 128 of a coordinate up to here
MAX_CODES = 1 << 62
CHUNK = 16  # pairs that are added up at a time where vertices are served in parallel


@dataclass(frozen=True)
class KeyLayout:
    """How a vertex's integers u are packed: code_g = sum_j (u_j - low_j) stride_gj; the first, times D + 1, plus r."""

    low: tuple[int, ...]  # [D]
    strides: tuple[tuple[int, ...], ...]  # [groups][D]; 0 where another group holds the axis
    sizes: tuple[int, ...]  # codes of each group
    image_stride: int  # of the image's index in the first group

    @property
    def dimensions(self) -> int:
        return len(self.low)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of each group's codes: the smaller integers sort several times faster."""
        return [torch.int32 if size < 1 << 31 else torch.int64 for size in self.sizes]


def sigmas(d: int, dtype=torch.float64) -> list[float]:
    """sigma_k; for float32 from a first factor that is rounded as in the published code, so that ties stay ties."""
    first = torch.tensor((d + 1) * math.sqrt(2 / 3), dtype=dtype).item()
    return [first / math.sqrt(k * (k + 1)) for k in range(1, d + 1)]


def key_layout(least: list[float], most: list[float], images: int, pixels: int) -> KeyLayout:
    """Space for every vertex of features within [least, most] and for its neighbours."""
    d = len(least)
    ranges = [(s * a, s * b) for s, a, b in zip(sigmas(d), least, most)]
    low, extents = [], []
    for j in range(d):  # the last coordinate follows from the others
        terms = [*ranges[j:], *([(-j * ranges[j - 1][1], -j * ranges[j - 1][0])] if j else [])]
        ends = sum(t[0] for t in terms), sum(t[1] for t in terms)
        if not max(map(abs, ends)) <= MAX_COORDINATE:
            raise ValueError(
                f"features: expected lattice coordinates of at most {MAX_COORDINATE}, got {max(map(abs, ends)):.4g}; "
                "the theta that divides these features is too small"
            )
        # Rounding, wrapping and the simplex's vertices move u by up to 2, a neighbour by 1 more; 0.01 is float32's.
        first, last = math.floor(ends[0] / (d + 1) - 0.01) - 3, math.ceil(ends[1] / (d + 1) + 0.01) + 2
        low.append(first)
        extents.append(last - first + 1)
    groups: list[list[int]] = [[]]
    sizes, pairs = [max(images, 1) * (d + 1)], max(images * pixels * (d + 1), 1)
    for j, extent in enumerate(extents):
        limit = MAX_CODES if len(groups) == 1 else MAX_CODES // pairs
        if sizes[-1] * extent > limit:
            groups.append([])
            sizes.append(1)
        groups[-1].append(j)
        sizes[-1] *= extent
    strides = []
    for group in groups:
        suffix = [math.prod(extents[k] for k in group[n + 1 :]) for n in range(len(group))]
        held = dict(zip(group, suffix))
        strides.append(tuple(held.get(j, 0) for j in range(d)))
    return KeyLayout(tuple(low), tuple(strides), tuple(sizes), math.prod(extents[j] for j in groups[0]))


def _simplex(features):
    """Cells, ranks and fractions, each [D + 1, Bf N], of features [Bf, D, N]."""
    d = features.shape[1]
    c = [f.flatten() * s for f, s in zip(features.unbind(1), sigmas(d, features.dtype))]
    total = torch.zeros_like(c[0])
    rows = [total] * (d + 1)
    for j in range(d, 0, -1):
        rows[j] = total - j * c[j - 1]
        total = total + c[j - 1]
    rows[0] = total
    elevated = torch.stack(rows)
    cell = (elevated * (1 / (d + 1))).round()  # half to even
    distance = elevated - cell * (d + 1)
    rank = torch.zeros_like(elevated, dtype=torch.int64)
    for i, j in itertools.combinations(range(d + 1), 2):
        higher = distance[i] < distance[j]
        rank[i] += higher
        rank[j] += ~higher
    cell = cell.long()
    rank += cell.sum(0)
    wrap = (rank < 0).long() - (rank > d).long()
    rank += wrap * (d + 1)
    return cell + wrap, rank, distance * (1 / (d + 1)) - wrap


def simplex(features, layout: KeyLayout):
    """Barycentric weights [Bf, N, D + 1] and the codes of the vertices, a [Bf N (D + 1)] tensor for each group."""
    (images, d, pixels), device = features.shape, features.device
    cell, rank, fraction = _simplex(features)
    by_rank = torch.empty_like(fraction).scatter_(0, rank, fraction)
    weights = torch.empty_like(by_rank)
    weights[0] = 1 + (by_rank[d] - by_rank[0])
    weights[1:] = by_rank[:-1].flip(0) - by_rank[1:].flip(0)
    weights = weights.mT.reshape(images, pixels, d + 1)

    codes = []
    for g, (strides, dtype) in enumerate(zip(layout.strides, layout.dtypes)):
        # Vertex r lies one back along each axis whose rank is above d - r.
        stride = torch.tensor([*strides, 0], device=device)[:, None]
        origin = sum((cell[j] - low) * s for j, (low, s) in enumerate(zip(layout.low, strides)) if s)
        back = torch.zeros_like(rank).scatter_(0, rank, stride.expand_as(rank))
        code = torch.cat([torch.zeros_like(back[:1]), back.flip(0)[:-1]]).cumsum(0).neg_().add_(origin)  # [D + 1, Bf N]
        if g == 0:
            image = torch.arange(images, device=device).repeat_interleave(pixels) * layout.image_stride
            code = (code + image) * (d + 1) + torch.arange(d + 1, device=device)[:, None]
        codes.append(code.to(dtype).mT.flatten())
    return weights, codes


def simplex_gradient(features, d_weights):
    """dL/df [Bf, D, N] from dL/db [Bf, N, D + 1]; exact between the features where a pixel changes its simplex."""
    d = features.shape[1]
    _, rank, _ = _simplex(features)
    d_weights = d_weights.flatten(0, 1).mT  # [D + 1, Bf N]
    d_y = (d_weights.gather(0, d - rank) - d_weights.gather(0, (d + 1 - rank) % (d + 1))) / (d + 1)
    before = itertools.accumulate(d_y)  # not cumsum, which on a GPU adds floats in any order
    d_f = [s * (total - k * d_y[k]) for (k, s), total in zip(enumerate(sigmas(d, features.dtype), 1), before)]
    return torch.stack(d_f).view(d, *features.shape[::2]).transpose(0, 1)


def connect(codes, layout: KeyLayout):
    """The lattice's tables from the codes of all E = Bf N (D + 1) pairs of a pixel and a vertex.

    Returns int32 tensors:
        vertices: [E], the vertex of each pair, 0 .. V - 1 in the order of the codes.
        neighbours: [D + 1, V + 1, 2], next and previous along each axis; V, an empty vertex, where there is none.
        sorted_pairs: [E], the pairs in the order of their vertices, and of pixels within one.
        chunk_starts: [chunks + 1], where each chunk of at most CHUNK sorted pairs of one vertex begins.
        vertex_chunks: [V + 1], where each vertex's chunks begin.
    """
    d, device = layout.dimensions, codes[0].device
    key, tables = codes[0], []
    for code, size in zip(codes[1:], layout.sizes[1:]):
        table, key = torch.unique(key, return_inverse=True)
        tables.append(table)
        key = key * size + code
    ordered, sorted_pairs = torch.sort(key, stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = is_first.nonzero().squeeze(1)  # [V]
    of_pair = is_first.cumsum(0, dtype=torch.int32) - 1
    vertices = torch.empty_like(of_pair).scatter_(0, sorted_pairs, of_pair)
    tables.append(ordered[starts])

    count, pairs = len(starts), len(sorted_pairs)
    ends = torch.cat([starts[1:], starts.new_full((min(count, 1),), pairs)])
    vertex_chunks = torch.zeros(count + 1, dtype=torch.int64, device=device)
    torch.cumsum((ends - starts + CHUNK - 1) // CHUNK, 0, out=vertex_chunks[1:])
    chunk_vertex = torch.repeat_interleave(torch.arange(count, device=device), vertex_chunks.diff())
    within = torch.arange(len(chunk_vertex), device=device) - vertex_chunks[chunk_vertex]
    chunk_starts = torch.cat([starts[chunk_vertex] + within * CHUNK, starts.new_full((1,), pairs)])

    neighbours = torch.full((d + 1, count + 1, 2), count, dtype=torch.int32, device=device)
    codes = [code[sorted_pairs[starts]] for code in codes]
    r = codes[0] % (d + 1)
    for side, (wraps, step) in enumerate([(r == 0, 1), (r == d, -1)]):
        at, found = r.new_zeros(()), r.new_ones((), dtype=torch.bool)
        for g, (code, table, strides) in enumerate(zip(codes, tables, layout.strides)):
            # Next: every coordinate 1 less, but coordinate j d more: r - 1 (or d and u - 1, from r = 0), then u_j + 1.
            shift = step * torch.tensor([*strides, 0], device=device) - step * sum(strides) * wraps[:, None]
            if g == 0:
                shift = shift * (d + 1) + torch.where(wraps, step * d, -step)[:, None]
            wanted = (at * layout.sizes[g] + code[:, None] + shift).to(table.dtype)  # [V, D + 1]
            at = torch.searchsorted(table, wanted).clamp_max(len(table) - 1)
            found = found & (table[at] == wanted)
        neighbours[:, :count, side] = torch.where(found, at, count).mT
    return vertices, neighbours, sorted_pairs.int(), chunk_starts.int(), vertex_chunks.int()

"""Coordinates on the permutohedral lattice in plain PyTorch, computed once per image (Adams, Baek and Davis 2010,
section 3.1).

Features f of D channels are elevated to the hyperplane of D + 1 coordinates that add up to 0,

    e_j = sum_{k > j} sigma_k f_k - j sigma_j f_j ,    sigma_k = (D + 1) sqrt(2 / 3) / sqrt(k (k + 1))

where each lies in a simplex of D + 1 lattice vertices, with barycentric weights b that add up to 1.

The coordinates of vertex r of a simplex are (D + 1) u_j + r, with integers u, and add up to 0: a vertex is known by its
D differences u_j - u_{j+1}. Each follows from two features, so few values are possible, and all are packed into an
integer with mixed radix. A step along axis j adds the same number, step_j, to every vertex's code. If one integer of 63
bits cannot hold all differences, groups of them are packed separately, and each group's codes continue the numbering of
the earlier ones.
"""

import itertools
import math
import random
from dataclasses import dataclass

import torch

MAX_COORDINATE = 1 << 16  # float32 places a pixel within 1 / 128 of a coordinate up to here
MAX_CODES = 1 << 62
PART = 1 << 14  # pixels at a time, so that intermediate results stay in a core's cache
CHUNK = 16  # pairs that are summed at a time if vertices are processed in parallel


@dataclass(frozen=True)
class KeyLayout:
    """The packing of a vertex: code_g = sum_j (u_j - u_{j+1} - low_j) stride_gj = origin_g + sum_j step_gj u_j."""

    low: tuple[int, ...]  # [D]
    strides: tuple[tuple[int, ...], ...]  # [groups][D]; 0 where another group holds the difference
    sizes: tuple[int, ...]  # codes of each group
    image_stride: int  # of the image's index in the first group

    @property
    def dimensions(self) -> int:
        return len(self.low)

    @property
    def steps(self) -> list[list[int]]:
        """[groups][D + 1]"""
        return [[a - b for a, b in zip((*s, 0), (0, *s))] for s in self.strides]

    @property
    def origins(self) -> list[int]:
        return [-_dot(strides, self.low) for strides in self.strides]

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The dtypes of each group's codes; smaller integers sort several times faster."""
        return [torch.int32 if size < 1 << 31 else torch.int64 for size in self.sizes]


def sigmas(d: int, dtype=torch.float64) -> list[float]:
    """sigma_k; for float32 from a first factor that is rounded as in the published code, so that ties stay ties."""
    first = torch.tensor((d + 1) * math.sqrt(2 / 3), dtype=dtype).item()
    return [first / math.sqrt(k * (k + 1)) for k in range(1, d + 1)]


def _coordinate_ends(least: list[float], most: list[float]) -> list[tuple[float, float]]:
    """Bounds of the first D coordinates, from which the last follows, of features within [least, most]."""
    ranges = [(s * a, s * b) for s, a, b in zip(sigmas(len(least)), least, most)]
    found = []
    for j in range(len(least)):
        terms = [*ranges[j:], *([(-j * ranges[j - 1][1], -j * ranges[j - 1][0])] if j else [])]
        found.append((sum(t[0] for t in terms), sum(t[1] for t in terms)))
    return found


def far_periods(ends):
    """The shift to subtract from features within the bounds `ends` [2, Bf, D], float64 on the CPU: [Bf, D], or [0, D]
    for none.

    An image whose coordinates are all at most MAX_COORDINATE, so that float32 can place it, is not shifted. Any other
    is shifted by whole periods of the lattice, which do not change the result, since they map vertices, axes and
    remainders to themselves.
    """
    d, shifts = ends.shape[2], torch.zeros_like(ends[0])
    k = torch.arange(d + 1, dtype=ends.dtype)
    for b, (least, most) in enumerate(ends.unbind(1)):
        if all(abs(end) <= MAX_COORDINATE for pair in _coordinate_ends(least.tolist(), most.tolist()) for end in pair):
            continue
        u = (_elevated((least / 2 + most / 2)[None, :, None])[:, 0] / (d + 1)).round()
        excess = u.sum()  # a period's coordinates (D + 1) u add up to 0
        u -= excess.sign() * (k < excess.abs())
        shifts[b] = torch.tensor(sigmas(d), dtype=ends.dtype) * (u.cumsum(0)[:-1] - k[1:] * u[1:]) * (1.5 / (d + 1))
    return shifts if shifts.any() else shifts[:0]


def shifted(features, shift):
    """Features [Bf, D, N] minus `far_periods`, in float64."""
    if len(shift) == 0:
        return features
    return (features.double() - shift.to(features.device)[:, :, None]).to(features.dtype)


def with_origin(features):
    """Features [Bf, D, N] with one more pixel for each image, [Bf, D, N + 1]: at 0, like the padding of published
    codes; or at its first pixel if 0 is so far from all pixels that no blur would connect them.

    A vertex lies within sqrt(3 (D + 1) / 8) of its pixel, and a step along every axis leads at most
    sqrt(3 D (D + 1) / 2) on: from 0 to a pixel together less than 2 (D + 1).
    """
    far = (features.abs().amin(2, keepdim=True) > 2 * (features.shape[1] + 1)).any(1, keepdim=True)
    return torch.cat([features, torch.where(far, features[:, :, :1], 0.0)], 2)


def key_layout(least: list[float], most: list[float], images: int, pixels: int) -> KeyLayout:
    """A layout for all vertices of features within [least, most] and for their neighbours."""
    d = len(least)
    for ends in _coordinate_ends(least, most):
        if not all(abs(end) <= MAX_COORDINATE for end in ends):
            raise ValueError(
                f"features: expected lattice coordinates of at most {MAX_COORDINATE}, got {max(map(abs, ends)):.4g}; "
                "the theta that divides these features is too small"
            )
    low, extents, before = [], [], (0.0, 0.0)
    for j, (sigma, a, b) in enumerate(zip(sigmas(d), least, most)):
        # (e_j - e_{j+1}) / (D + 1) has these ends. A vertex lies within 1 of its pixels, a neighbour within 2; 0.01 is
        # float32's.
        own = sigma * a, sigma * b
        first = math.floor(((j + 2) * own[0] - j * before[1]) / (d + 1) - 0.01) - 2
        last = math.ceil(((j + 2) * own[1] - j * before[0]) / (d + 1) + 0.01) + 2
        low.append(first)
        extents.append(last - first + 1)
        before = own
    groups: list[list[int]] = [[]]
    sizes, pairs = [max(images, 1)], max(images * pixels * (d + 1), 1)
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


def _elevated(features):
    """The D + 1 coordinates e, [D + 1, Bf N], of features [Bf, D, N]."""
    d = features.shape[1]
    c = [f.flatten() * s for f, s in zip(features.unbind(1), sigmas(d, features.dtype))]
    total = torch.zeros_like(c[0])
    rows = [total] * (d + 1)
    for j in range(d, 0, -1):
        rows[j] = total - j * c[j - 1]
        total = total + c[j - 1]
    rows[0] = total
    return torch.stack(rows)


def _narrow(d: int) -> torch.dtype:
    """The dtype of ranks, whose intermediate values are -d .. 2 d."""
    return torch.int8 if d < 64 else torch.int16


def _simplex(features):
    """Cells, ranks and fractions, each [D + 1, Bf N], of features [Bf, D, N]; ranks are small integers."""
    d, distance = features.shape[1], _elevated(features)
    cell = (distance * (1 / (d + 1))).round_()  # half to even
    distance -= cell * (d + 1)
    narrow = _narrow(d)
    rank = torch.arange(d + 1, dtype=narrow, device=features.device)[:, None].repeat(1, distance.shape[1])
    for i, j in itertools.combinations(range(d + 1), 2):
        higher = (distance[i] < distance[j]).view(torch.int8)
        rank[i] += higher
        rank[j] -= higher
    rank += cell.sum(0).to(narrow)
    wrap = (rank < 0).view(torch.int8) - (rank > d).view(torch.int8)
    rank.add_(wrap, alpha=d + 1)
    cell += wrap
    return cell, rank, (distance * (1 / (d + 1))).sub_(wrap)


def simplex(features, layout: KeyLayout):
    """Barycentric weights [Bf, N, D + 1]; of S simplices, which hold the pixels, the codes of the vertices, a
    [S (D + 1)] tensor for each group; and the simplex of each pixel [Bf N], or None where S = Bf N, in their order.

    A simplex is known by its cell and its ranks: where they fit in one integer, each simplex comes once.
    """
    (images, d, pixels), device = features.shape, features.device
    weights = features.new_empty((images, pixels, d + 1))
    rank = torch.empty((d + 1, images, pixels), dtype=_narrow(d), device=device)
    origins = [torch.empty((images, pixels), dtype=torch.int64, device=device) for _ in layout.steps]
    for image in range(images):
        for part in _parts(pixels):
            cell, rank[:, image, part], fraction = _simplex(features[image : image + 1, :, part])
            by_rank = torch.empty_like(fraction).scatter_(0, rank[:, image, part].long(), fraction)
            own = torch.empty_like(by_rank)
            own[0] = 1 + (by_rank[d] - by_rank[0])
            own[1:] = by_rank[:-1].flip(0) - by_rank[1:].flip(0)
            weights[image, part] = own.mT
            for g, (origin, steps, first) in enumerate(zip(origins, layout.steps, layout.origins)):
                origin[image, part] = first + (image * layout.image_stride if g == 0 else 0)
                for row, step in zip(cell, steps):
                    if step:
                        origin[image, part].add_(row.long(), alpha=step)
    rank, origins = rank.flatten(1), [origin.flatten() for origin in origins]
    orders, simplices = (d + 1) ** d, None
    if len(origins) == 1 and layout.sizes[0] * orders <= MAX_CODES:
        key = origins[0] * orders
        for n, row in enumerate(rank[:-1]):
            key.add_(row.long(), alpha=(d + 1) ** n)
        simplices, starts, order = numbered(key)
        first = order.index_select(0, starts)
        origins, rank = [origins[0].index_select(0, first)], rank.index_select(1, first)

    codes = []
    for steps, origin, dtype in zip(layout.steps, origins, layout.dtypes):
        code = rank.new_empty((rank.shape[1], d + 1), dtype=dtype)
        along = torch.tensor(steps, device=device)[:, None]
        for part in _parts(rank.shape[1]):
            own = rank[:, part].long()
            # Vertex r lies one back along each axis whose rank is above d - r.
            back = torch.zeros_like(own).scatter_(0, own, along.expand_as(own))
            code[part] = (
                torch.cat([torch.zeros_like(back[:1]), back.flip(0)[:-1]]).cumsum(0).neg_().add_(origin[part]).mT
            )
        codes.append(code.flatten())
    return weights, codes, simplices


def _parts(count: int):
    """Slices of this many pixels or simplices."""
    return [slice(first, min(first + PART, count)) for first in range(0, count, PART)]


def numbered(key):
    """The distinct keys of [E] in ascending order: which each entry has, int32 [E]; where each begins in the sorted
    entries [V]; and these, [E], equal ones in their order."""
    ordered, order = torch.sort(key, stable=True)
    is_first = _is_first(ordered)
    number = is_first.cumsum(0, dtype=torch.int32).sub_(1)
    return torch.empty_like(number).scatter_(0, order, number), is_first.nonzero().squeeze(1), order


def numbered_codes(codes, layout: KeyLayout):
    """`numbered` of each group's codes [E]: first by those of the first group."""
    key = codes[0]
    for more, size in zip(codes[1:], layout.sizes[1:]):
        key = numbered(key)[0].long() * size + more
    return numbered(key)


def _is_first(ordered):
    """Whether each entry of an ascending sequence is the first of its kind."""
    found = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=found[1:])
    return found


def simplex_gradient(features, d_weights):
    """dL/df [Bf, D, N] from dL/db [Bf, N, D + 1]; exact between the features where a pixel changes its simplex."""
    d = features.shape[1]
    rank = _simplex(features)[1].long()
    d_weights = d_weights.flatten(0, 1).mT  # [D + 1, Bf N]
    d_y = (d_weights.gather(0, d - rank) - d_weights.gather(0, (d + 1 - rank) % (d + 1))) / (d + 1)
    before = itertools.accumulate(d_y)  # not cumsum, whose order of additions on a GPU is not fixed
    d_f = [s * (total - k * d_y[k]) for (k, s), total in zip(enumerate(sigmas(d, features.dtype), 1), before)]
    return torch.stack(d_f).view(d, *features.shape[::2]).transpose(0, 1)


def connect(codes, simplices, layout: KeyLayout, chunked: bool):
    """The lattice's tables, of E = Bf N (D + 1) pairs of a pixel and a vertex, from what `simplex` gave; the list of
    codes is used up.

    Vertex r of one simplex is never another vertex of another: their coordinates differ modulo D + 1. So vertices are
    sorted, numbered and looked up r by r, in tables that are small.

    Returns int32 tensors:
        vertices: [E], the vertex of each pair, 0 .. V - 1 in the order of r, and of codes within one.
        neighbours: [D + 1, V + 1, 2], next and previous along each axis; V, an empty vertex, where there is none.
        sorted_pairs: [E], the pairs in the order of their vertices, and of pixels within one.
        chunk_starts, group_starts, vertex_groups: of `in_chunks`, if `chunked`; else where each vertex's pairs begin,
            [V + 1], and two that are empty.
    """
    tables, own, bounds = tables_of_pairs(codes, simplices, layout, chunked)
    vertices, *rest = tables
    return vertices, neighbours(own, layout, bounds), *rest


def tables_of_pairs(codes, simplices, layout: KeyLayout, chunked: bool):
    """`connect`'s tables but the neighbours; each group's codes [V] of the vertices, and where those of each corner r
    begin, D + 2 integers."""
    vertices, own, bounds = _numbered_by_corner(codes, layout)
    codes.clear()
    if simplices is not None:
        vertices = vertices.index_select(0, simplices)  # quicker than indexing with brackets
    sorted_pairs, starts = _sorted_by_corner(vertices, bounds)
    return (vertices.flatten(), sorted_pairs.flatten(), *pair_tables(starts, chunked)), own, bounds


def _numbered_by_corner(codes, layout: KeyLayout):
    """The number of each vertex, int32 [S, D + 1]; each group's codes [V] in the order of the numbers; and where those
    of each r begin, D + 2 integers."""
    columns = [code.view(-1, layout.dimensions + 1) for code in codes]
    vertices = torch.empty(columns[0].shape, dtype=torch.int32, device=codes[0].device)
    own, bounds = [], [0]
    for r in range(vertices.shape[1]):
        code = [column[:, r].contiguous() for column in columns]
        number, starts, order = numbered_codes(code, layout)
        vertices[:, r] = number + bounds[-1]
        own.append([c.index_select(0, order.index_select(0, starts)) for c in code])
        bounds.append(bounds[-1] + len(starts))
    return vertices, [torch.cat(parts) for parts in zip(*own)], bounds


def _sorted_by_corner(vertices, bounds):
    """`connect`'s sorted pairs, [D + 1, Bf N], of vertices [Bf N, D + 1], and where each vertex's begin, [V + 1]."""
    pixels, corners = vertices.shape
    sorted_pairs = torch.empty((corners, pixels), dtype=torch.int32, device=vertices.device)
    starts = []
    for r, (first, last) in enumerate(itertools.pairwise(bounds)):
        narrow = torch.int16 if last - first < 1 << 15 else torch.int32  # sorts quicker
        ordered, order = torch.sort((vertices[:, r] - first).to(narrow), stable=True)
        sorted_pairs[r] = order.mul_(corners).add_(r)
        starts.append(_is_first(ordered).nonzero().squeeze(1).int() + r * pixels)  # every vertex has pixels
    return sorted_pairs, torch.cat([*starts, sorted_pairs.new_full((1,), corners * pixels)])


def pair_tables(starts, chunked: bool):
    """`connect`'s last three tables, from where each vertex's pairs begin, [V + 1]."""
    return in_chunks(starts) if chunked else (starts, starts.new_empty(0), starts.new_empty(0))


def in_chunks(starts):
    """The starts of each vertex's sorted pairs, [V + 1], cut into pieces that are summed separately.

    Returns int32 tensors:
        chunk_starts: [chunks + 1], where each chunk of at most CHUNK sorted pairs of one vertex begins.
        group_starts: [groups + 1], where each group of at most CHUNK chunks of one vertex begins.
        vertex_groups: [V + 1], where each vertex's groups begin.
    """
    vertex_chunks = _ends((starts.diff() + CHUNK - 1) // CHUNK)
    # Without chunks there is one group; as many groups as vertices means one for each.
    vertex_groups = _ends(((vertex_chunks.diff() + CHUNK - 1) // CHUNK).clamp_min_(1))
    chunks, groups = torch.stack([vertex_chunks[-1], vertex_groups[-1]]).tolist()
    group_starts = _cut_up(vertex_chunks, vertex_groups, groups)
    return _cut_up(starts.long(), vertex_chunks, chunks).int(), group_starts.int(), vertex_groups.int()


def without_last(pairs, starts, pixels: int, corners: int):
    """Sorted pairs of images of so many pixels, [E], and where each vertex's begin, [V + 1], without the last pixel of
    each image; the vertices that only it touches have no pairs."""
    place = pairs // corners
    kept = place % pixels != pixels - 1
    return (pairs - place // pixels * corners)[kept], _ends(kept.int())[starts]


def _ends(counts):
    """Where each of consecutive runs begins, [V + 1], from their lengths [V]."""
    starts = counts.new_zeros(len(counts) + 1)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts


def _cut_up(starts, run_pieces, pieces: int):
    """Where pieces of at most CHUNK begin, [pieces + 1], in runs that begin at `starts`, [V + 1]; run_pieces: the first
    piece of each run, [V + 1]."""
    runs = torch.arange(len(starts) - 1, device=starts.device)
    run = torch.repeat_interleave(runs, run_pieces.diff(), output_size=pieces)
    within = torch.arange(pieces, device=starts.device) - run_pieces[run]
    return torch.cat([starts[run] + within * CHUNK, starts[-1:]])


def neighbours(codes, layout: KeyLayout, bounds):
    """`connect`'s neighbours, from each group's codes [V] of all vertices, which ascend from each of the bounds to the
    next: those of one r, or all.

    A vertex is looked up by one integer: its code, or a hash of the codes of several groups, their sum with factors
    modulo 2^64. With many axes few neighbours exist: some bits of the hash rule out most of them, and the others are
    compared code by code.
    """
    d, count, device = layout.dimensions, len(codes[0]), codes[0].device
    found = torch.full((d + 1, count + 1, 2), count, dtype=torch.int32, device=device)
    if len(codes) > 1:
        name, factors = _hashed(codes)
        table, place = torch.sort(name)
        low_bits = (8 << count.bit_length()) - 1
        seen = torch.zeros(low_bits + 1, dtype=torch.bool, device=device)
        seen[name & low_bits] = True
    for j in range(d + 1 if count else 0):
        # Every coordinate 1 less, but coordinate j D more: u_j - 1 of the others, or r, which is in no difference.
        steps = [group[j] for group in layout.steps]
        if len(codes) == 1:
            parts = [*itertools.pairwise(bounds)]
            for (first, last), (low, high) in zip(parts, [parts[-1], *parts]):  # of r - 1
                at, rows = _matches(codes[0][low:high], codes[0][first:last] + steps[0])
                _connect(found[j], rows + first, at + low)
        else:
            wanted = name + _dot(steps, factors)
            rows = seen[wanted & low_bits].nonzero().squeeze(1)
            at, same = _find(table, wanted[rows])
            at, rows = place[at[same]], rows[same]
            true = torch.stack([c[at] == c[rows] + step for c, step in zip(codes, steps)]).all(0)
            _connect(found[j], rows[true], at[true])
    return found


def _connect(neighbours, rows, following):
    """Record which vertex follows each of these, and that they precede it."""
    neighbours[rows, 0] = following.int()
    neighbours[following, 1] = rows.int()


def _matches(one, other):
    """The positions of common values in two ascending sequences. Sorted together they are neighbours, which is quicker
    than looking each of them up."""
    ordered, order = torch.sort(torch.cat([one, other]), stable=True)
    first = (ordered[1:] == ordered[:-1]).nonzero().squeeze(1)
    return order.index_select(0, first), order.index_select(0, first + 1) - len(one)


def _find(table, wanted):
    """The position of each integer in the sorted table, and whether it is in it."""
    at = torch.searchsorted(table, wanted).clamp_max_(len(table) - 1)
    return at, table.index_select(0, at) == wanted


def _hashed(codes):
    """A unique hash [V] of each vertex's codes, and its factors."""
    for attempt in itertools.count():
        factors = hash_factors(len(codes), attempt)
        name = sum(code.long() * factor for code, factor in zip(codes, factors))
        if len(name.unique()) == len(name):
            return name, factors


def hash_factors(groups: int, attempt: int) -> list[int]:
    """Fixed odd integers of 64 bits."""
    numbers = random.Random(attempt)
    return [_signed(numbers.getrandbits(64) | 1) for _ in range(groups)]


def _dot(a, b) -> int:
    return _signed(sum(x * y for x, y in zip(a, b)))


def _signed(value: int) -> int:
    """An integer modulo 2^64, as int64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)

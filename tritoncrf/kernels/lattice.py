"""Values on the permutohedral lattice and its fused step (Adams, Baek and Davis 2010; CRF-as-RNN, section 5; symbols
of docs/symbols.md).

    v = blur_D ... blur_1 blur_0 splat(in . x) ,   F = out . alpha slice(v)          slice = splat^T
    dL/db_ir = alpha (<y_i, v^x[r]> + <x_i, v^y[r]>)                                 for the cotangent y of K x

splat adds a pixel, times its barycentric weights b, to the D + 1 vertices of its simplex; blur_j adds half of a
vertex's two neighbours along axis j; slice reads a pixel's vertices back, times b. K^T blurs in the reverse order.
Coordinates are made once per image (simplex.py); the tables are those of reference/lattice.py, `connect`.

Form. Values are rows, all classes of a pixel or a vertex side by side, padded with zeros to a multiple of four, so that
gathers read whole sectors. Every kernel keeps the padding zero. The splat reads the pairs of pixel and vertex, their
pixels and their scaled weights, in the order of their vertices: a vertex's pairs are cut into chunks, a thread sums a
chunk for four classes, pair after pair, and another launch sums the chunks of each vertex in the same way; if a vertex
has more than sixteen, a launch before sums them in groups of sixteen. There is no exchange between threads and there
are no atomics, so results are always identical. Two blurs share a launch, which reads nine rows instead of six. The
number of vertices depends on the picture, and no kernel is specialised on it.

Bytes per iteration: 2 (D + 1) N rows gathered, U, Q in and Q out once, and (D + 1) / 2 passes over V vertices.
"""

import functools

import triton
import triton.language as tl

from tritoncrf.kernels.common import OF_SIZE, ceil_div, image_base, launch, scale, tile_and_image
from tritoncrf.kernels.epilogue import epilogue, mixed
from tritoncrf.step import Step, stacked

MAX_CLASSES = 256  # of the fused step: a pixel's classes are one row of registers
MAX_MATRIX_CLASSES = 64
CLASS_BLOCK = 64  # classes at a time if they are independent
SUM_TILE = 512  # numbers that a program of the splat sums, four for each of 128 threads
JOINED = 8  # rows of a sum that are read at a time
TILE = 2048  # numbers of a tile of rows


@triton.jit
def _row_offsets(index, CS: tl.constexpr, CB: tl.constexpr):
    """The starts of the rows `index` for this program's block of classes, the classes in it, and which exist."""
    o_c = tl.program_id(1) * CB + tl.arange(0, CB)
    return index.to(tl.int64) * CS, o_c, o_c < CS


@triton.jit
def _rows(x_ptr, index, m_index, CS: tl.constexpr, CB: tl.constexpr):
    """Rows `index` of a block of classes, [P, CB]; 0 where they are masked."""
    o_row, o_c, m_c = _row_offsets(index, CS, CB)
    return tl.load(x_ptr + o_row[:, None] + o_c[None, :], mask=m_index[:, None] & m_c[None, :], other=0.0)


@triton.jit(**OF_SIZE)
def _splat_kernel(
    # pointers
    x_ptr, weight_ptr, pixel_ptr, start_ptr, y_ptr,
    # sizes
    CHUNKS, N,
    # meta-parameters
    CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Each program owns the sums of P chunks of at most CHUNK pairs, for one block of classes."""
    tile, image = tile_and_image(tl.cdiv(CHUNKS, P))
    p = tile * P + tl.arange(0, P)
    m_p = p < CHUNKS
    start = tl.load(start_ptr + p, mask=m_p, other=0)
    count = tl.load(start_ptr + p + 1, mask=m_p, other=0) - start
    total = tl.zeros((P, CB), tl.float32)
    for n in tl.static_range(CHUNK):
        m_n = n < count
        pixel = tl.load(pixel_ptr + start + n, mask=m_n, other=0)
        weight = tl.load(weight_ptr + start + n, mask=m_n, other=0.0)
        total += weight[:, None] * _rows(x_ptr + image * N * CS, pixel, m_n, CS, CB)
    o_y, o_c, m_c = _row_offsets(image * CHUNKS + p, CS, CB)
    tl.store(y_ptr + o_y[:, None] + o_c[None, :], total, mask=m_p[:, None] & m_c[None, :])


@triton.jit(**OF_SIZE)
def _join_kernel(
    # pointers
    x_ptr, start_ptr, y_ptr,
    # sizes: sums of an image; its rows in x_ptr
    V, CHUNKS,
    # meta-parameters
    CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Each program owns P sums of consecutive rows, for one block of classes; one row more follows an image's sums."""
    tile, image = tile_and_image(tl.cdiv(V, P))
    p = tile * P + tl.arange(0, P)
    m_p = p < V
    start = tl.load(start_ptr + p, mask=m_p, other=0)
    count = tl.load(start_ptr + p + 1, mask=m_p, other=0) - start
    total = tl.zeros((P, CB), tl.float32)
    for first in range(0, tl.max(count, 0), CHUNK):
        for n in tl.static_range(CHUNK):
            total += _rows(x_ptr + image * CHUNKS * CS, start + first + n, first + n < count, CS, CB)
    o_y, o_c, m_c = _row_offsets(image * (V + 1) + p, CS, CB)
    tl.store(y_ptr + o_y[:, None] + o_c[None, :], total, mask=m_p[:, None] & m_c[None, :])


@triton.jit
def _neighbours(neighbour_ptr, p, V):
    """The next and the previous vertex of vertices p along an axis; V where there is none."""
    pair_ptr = neighbour_ptr + 2 * p.to(tl.int64)
    return tl.load(pair_ptr, mask=p < V, other=V), tl.load(pair_ptr + 1, mask=p < V, other=V)


@triton.jit
def _blurred(v_ptr, neighbour_ptr, p, V, CS: tl.constexpr, CB: tl.constexpr):
    """blur_j v at vertices p, [P, CB]; neighbours of axis j. p may be V, which has none."""
    ahead, back = _neighbours(neighbour_ptr, p, V)
    around = _rows(v_ptr, ahead, ahead < V, CS, CB) + _rows(v_ptr, back, back < V, CS, CB)
    return _rows(v_ptr, p, p < V, CS, CB) + 0.5 * around


@triton.jit(**OF_SIZE)
def _blur_kernel(
    # pointers
    v_ptr, first_ptr, second_ptr, y_ptr,
    # sizes
    V,
    # meta-parameters
    CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P blurred vertices, for one block of classes: blur_second blur_first v, or blur_first v."""
    tile, image = tile_and_image(tl.cdiv(V, P))
    image *= (V + 1) * CS
    p = tile * P + tl.arange(0, P)
    y = _blurred(v_ptr + image, first_ptr, p, V, CS, CB)
    if second_ptr is not None:
        ahead, back = _neighbours(second_ptr, p, V)
        y += 0.5 * _blurred(v_ptr + image, first_ptr, ahead, V, CS, CB)
        y += 0.5 * _blurred(v_ptr + image, first_ptr, back, V, CS, CB)
    o_row, o_c, m_c = _row_offsets(p, CS, CB)
    tl.store(y_ptr + image + o_row[:, None] + o_c[None, :], y, mask=(p < V)[:, None] & m_c[None, :])


@triton.jit
def _sliced(
    v_ptr, vertex_ptr, weight_ptr, scale_ptr, i, m_i, o_c, m_c, alpha, D1: tl.constexpr, CS: tl.constexpr,
):  # fmt: skip
    """out . alpha slice(v) at the pixels i of the tables, [P, CP]."""
    total = tl.zeros((i.shape[0], o_c.shape[0]), tl.float32)
    factor = alpha * scale(scale_ptr, i, m_i)
    for r in range(0, D1):
        vertex = tl.load(vertex_ptr + i * D1 + r, mask=m_i, other=0).to(tl.int64)
        weight = tl.load(weight_ptr + i * D1 + r, mask=m_i, other=0.0) * factor
        row = tl.load(v_ptr + vertex[:, None] * CS + o_c[None, :], mask=m_i[:, None] & m_c[None, :], other=0.0)
        total += weight[:, None] * row
    return total


@triton.jit(**OF_SIZE)
def _slice_kernel(
    # pointers; of each filter: vertices, tables, scales
    v_ptrs, vertex_ptrs, weight_ptrs, scale_ptrs, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, filtered_ptr,
    # sizes: pixels; rows of an image in v_ptrs, which Triton would specialise on if they were a tuple
    N, V0, V1,
    # strides: filter of filtered, a's and A's
    stride_tm, stride_a, stride_mm, stride_ml, stride_mk,
    # meta-parameters; of each filter: whether one lattice serves all images, or numbers the vertices of all
    alpha: tl.constexpr, C: tl.constexpr, CS: tl.constexpr, CP: tl.constexpr, D1: tl.constexpr,
    SHARED: tl.constexpr, MATRIX: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P pixels of one image: all classes, or a block of them where the epilogue is "sum"."""
    tile, b = tile_and_image(tl.cdiv(N, P))
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    o_c = tl.program_id(1) * CP + tl.arange(0, CP)
    m_c = o_c < CS
    m_y = m_i[:, None] & m_c[None, :]
    o_y = (b * N + i)[:, None] * CS + o_c[None, :]
    result = tl.zeros((P, CP), tl.float32)
    for m in tl.static_range(len(D1)):
        first = b * (V0 if m == 0 else V1) * CS if SHARED[m] else 0
        message = _sliced(
            v_ptrs[m] + first, vertex_ptrs[m], weight_ptrs[m], scale_ptrs[m], image_base(b, N, SHARED[m]) + i, m_i,
            o_c, m_c, alpha[m], D1[m], CS,
        )  # fmt: skip
        if filtered_ptr is not None:
            tl.store(filtered_ptr + m * stride_tm + o_y, message, mask=m_y)
        if EPILOGUE == "sum":
            result = message
        else:
            result += mixed(message, mix_ptr + m * stride_mm, stride_ml, stride_mk, o_c, C, MATRIX, CP, PRECISION)
    result = epilogue(result, unary_ptr, a_ptr, stride_a, q_ptr, o_y, o_y, m_y, o_c, C, EPILOGUE)
    tl.store(y_ptr + o_y, result, mask=m_y)


@triton.jit(**OF_SIZE)
def _weights_gradient_kernel(
    # pointers
    x_ptr, y_ptr, vx_ptr, vy_ptr, vertex_ptr, gradient_ptr,
    # sizes: pixels; rows of an image in vx_ptr and vy_ptr
    N, V,
    # meta-parameters
    alpha: tl.constexpr, D1: tl.constexpr, SHARED: tl.constexpr, CS: tl.constexpr, CB: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns dL/db of P pixels of one image."""
    tile, b = tile_and_image(tl.cdiv(N, P))
    i = tile * P + tl.arange(0, P)
    m_i = i < N
    x_ptr += b * N * CS
    y_ptr += b * N * CS
    vx_ptr += b * V * CS if SHARED else 0
    vy_ptr += b * V * CS if SHARED else 0
    vertex_ptr += image_base(b, N, SHARED) * D1
    gradient_ptr += b * N * D1
    o_x = i.to(tl.int64)[:, None] * CS
    for r in range(0, D1):
        vertex = tl.load(vertex_ptr + i.to(tl.int64) * D1 + r, mask=m_i, other=0)
        o_v = vertex.to(tl.int64)[:, None] * CS
        total = tl.zeros((P,), tl.float32)
        for first in range(0, CS, CB):
            o_c = first + tl.arange(0, CB)[None, :]
            m_x = m_i[:, None] & (o_c < CS)
            x = tl.load(x_ptr + o_x + o_c, mask=m_x, other=0.0)
            y = tl.load(y_ptr + o_x + o_c, mask=m_x, other=0.0)
            ahead = tl.load(vx_ptr + o_v + o_c, mask=m_x, other=0.0)
            back = tl.load(vy_ptr + o_v + o_c, mask=m_x, other=0.0)
            total += tl.sum(y * ahead + x * back, 1)
        tl.store(gradient_ptr + i.to(tl.int64) * D1 + r, alpha * total, mask=m_i)


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
    """splat(scale . x) of rows [B, N, C], as reference.lattice.splat: [B or 1, V + 1, C], vertex V not written."""
    lattice = side.lattice
    images = rows.shape[0] if lattice.shared else 1
    chunks = len(lattice.chunk_starts) - 1
    blocks, arguments = _classes(rows, CLASS_BLOCK)
    # Two chunks a thread share addresses; of fewer classes, what a thread reads of them would cross shared memory.
    p = (SUM_TILE if arguments["CB"] < 16 else 2 * SUM_TILE) // arguments["CB"]
    parts = _empty_rows(rows, images, chunks)
    launch(
        _splat_kernel, (ceil_div(chunks, p) * images, blocks), num_warps=4,
        x_ptr=rows, weight_ptr=side.splat_weights, pixel_ptr=lattice.pair_pixels, start_ptr=lattice.chunk_starts,
        y_ptr=parts, CHUNKS=chunks, N=rows.shape[1], **arguments, P=p, CHUNK=lattice.chunk,
    )  # fmt: skip
    if len(lattice.group_starts) > len(lattice.vertex_groups):  # a vertex has several groups
        return _joined(_joined(parts, lattice.group_starts), lattice.vertex_groups)
    return _joined(parts, lattice.group_starts)


def _joined(rows, starts):
    """Sums of consecutive rows [B, R, C], and one row that is not written: [B, len(starts), C]."""
    blocks, arguments = _classes(rows, CLASS_BLOCK)
    images, count, p = len(rows), len(starts) - 1, SUM_TILE // arguments["CB"]
    sums = _empty_rows(rows, images, count + 1)
    launch(
        _join_kernel, (ceil_div(count, p) * images, blocks), num_warps=4,
        x_ptr=rows, start_ptr=starts, y_ptr=sums, V=count, CHUNKS=rows.shape[1], **arguments, P=p, CHUNK=JOINED,
    )  # fmt: skip
    return sums


def filtered(rows, side, reverse: bool):
    """blur ... blur splat(scale . x) of rows [B, N, C], as reference.lattice.filtered: [B or 1, V + 1, C], vertex V
    not written."""
    axes = [*side.lattice.neighbours.unbind(0)]
    return blurred(splat(rows, side), axes[::-1] if reverse else axes)[0]


def blurred(v, axes, other=None):
    """Vertices [B, V + 1, C] blurred along axes, as reference.lattice.blurred, in memory that is made if none is
    given."""
    groups, rows, _ = v.shape
    blocks, arguments = _classes(v, CLASS_BLOCK)
    p = TILE // 2 // arguments["CB"]  # vertices; nine rows of each are in flight
    for first in range(0, len(axes), 2):
        other = _empty_rows(v, groups, rows) if other is None else other
        pair = (*axes[first : first + 2], None)
        launch(
            _blur_kernel, (ceil_div(rows - 1, p) * groups, blocks), num_warps=4,
            v_ptr=v, first_ptr=pair[0], second_ptr=pair[1], y_ptr=other, V=rows - 1, **arguments, P=p,
        )  # fmt: skip
        v, other = other, v
    return v, other


def _launch_slice(y, vertices, sides, *, precision="default", epilogue="sum", mix=None, q=None, unary=None,
                  a=None, filtered=None):  # fmt: skip
    """y, q, unary rows [B, N, C]; vertices of `filtered` and the sides that they leave by, of one or two filters."""
    batch, pixels, classes = y.shape
    lattices, matrix = [side.lattice for side in sides], mix is not None and mix.ndim == 3
    blocks, shape = _classes(y, CLASS_BLOCK if epilogue == "sum" else MAX_CLASSES)
    padded = max(shape["CB"], 16) if matrix else shape["CB"]
    p = max(16, TILE // padded)
    if mix is not None and not matrix:
        mix = mix.expand(-1, classes)  # a scalar serves all classes, with stride 0
    strides = (*(mix.stride() if mix is not None else ()), 0, 0, 0)
    launch(
        _slice_kernel, (ceil_div(pixels, p) * batch, blocks), num_warps=4,
        registers=168 if padded == 64 and not matrix else None,
        v_ptrs=tuple(vertices), vertex_ptrs=tuple(lattice.vertices for lattice in lattices),
        weight_ptrs=tuple(lattice.weights for lattice in lattices), scale_ptrs=tuple(side.scale for side in sides),
        mix_ptr=mix, unary_ptr=unary, a_ptr=a, q_ptr=q, y_ptr=y, filtered_ptr=filtered,
        N=pixels, V0=vertices[0].shape[1], V1=vertices[-1].shape[1],
        stride_tm=0 if filtered is None else filtered.stride(0), stride_a=0 if a is None else a.stride(0),
        stride_mm=strides[0], stride_ml=strides[1], stride_mk=strides[2] if matrix else 0,
        alpha=tuple(lattice.alpha for lattice in lattices), C=classes, CS=shape["CS"], CP=padded,
        D1=tuple(lattice.corners for lattice in lattices), SHARED=tuple(lattice.shared for lattice in lattices),
        MATRIX=matrix, EPILOGUE=epilogue, PRECISION=precision, P=p,
    )  # fmt: skip
    return y


def sliced(v, side, batch: int):
    """scale . alpha slice(v), rows [B, N, C]."""
    return _launch_slice(_empty_rows(v, batch, side.pixels), [v], [side])


def weights_gradient(rows, cotangent, lattice, v_forward, v_reverse):
    """dL/db [Bf, N, D + 1] for L = <y, K x>, as reference.lattice.weights_gradient."""
    batch, pixels, _ = rows.shape
    _, arguments = _classes(rows, CLASS_BLOCK)
    p = TILE // 2 // arguments["CB"]  # four rows of each pixel are in flight
    gradient = rows.new_empty((batch, pixels, lattice.corners))
    launch(
        _weights_gradient_kernel, (ceil_div(pixels, p) * batch,), num_warps=4, registers=96,
        x_ptr=rows, y_ptr=cotangent, vx_ptr=v_forward, vy_ptr=v_reverse, vertex_ptr=lattice.vertices,
        gradient_ptr=gradient, N=pixels, V=v_forward.shape[1], alpha=lattice.alpha, D1=lattice.corners,
        SHARED=lattice.shared, **arguments, P=p,
    )  # fmt: skip
    return gradient.sum(0, keepdim=True) if lattice.shared else gradient


class LatticeStep(Step):
    """The step of one or two lattices: the slice includes weights, compatibility, unary and softmax.

    States, and what is kept of them, are rows with their padding, [B, N, ceil(C / 4) 4].
    """

    def __init__(self, operators, mixing, unary, unary_weight):
        super().__init__(operators, mixing, unary, unary_weight.expand(unary.shape[1]))
        self.mix, self.precision = stacked(mixing, unary.shape[1]), operators[0].precision
        self.entries, self.exits = [K.entry for K in operators], [K.exit for K in operators]

    @staticmethod
    def kept_shape(unary):
        return len(unary), unary.shape[2:].numel(), -(-unary.shape[1] // 4) * 4

    def arrange(self, x):
        return self._padded(rows_of(x))

    def image(self, x):
        return self._rows(x).mT.unflatten(2, self.unary.shape[2:])

    def next(self, state):
        return self._padded(self._run(state, "softmax"))

    def scores(self, state):
        return self.image(self._run(state, "scores"))

    @functools.cached_property
    def _unary_rows(self):
        return rows_of(self.unary)

    def _run(self, state, epilogue):
        return self._sliced(self.vertices(state), epilogue)

    def vertices(self, state):
        """As reference.lattice.LatticeStep.vertices; vertex V is not written."""
        return [filtered(self._rows(state), scaled, reverse=False) for scaled in self.entries]

    def of_vertices(self, vertices):
        """As reference.lattice.LatticeStep.of_vertices."""
        return self._padded(self._sliced(vertices, "softmax"))

    def _sliced(self, v, epilogue):
        y = _empty_rows(self._unary_rows, *self._unary_rows.shape[:2])
        return _launch_slice(
            y, v, self.exits, precision=self.precision, epilogue=epilogue, mix=self.mix, unary=self._unary_rows,
            a=self.unary_weight,
        )  # fmt: skip

    def backward(self, q, g, through_softmax: bool, messages: bool):
        rows, mix = self._rows(g), self.mix.mT if self.mix.ndim == 3 else self.mix
        v = [filtered(rows, scaled, reverse=True) for scaled in self.exits]
        y, back = _empty_rows(rows, *rows.shape[:2]), None
        if messages:
            filters, (batch, pixels, _) = len(v), rows.shape
            back = _empty_rows(rows, filters * batch, pixels).unflatten(0, (filters, batch))
        _launch_slice(
            y, v, self.entries, precision=self.precision, mix=mix, filtered=back,
            epilogue="softmax_adjoint" if through_softmax else "weighted", q=self._rows(q) if through_softmax else None,
        )  # fmt: skip
        return self._padded(y), None if back is None else [self._padded(b) for b in back]

    def _rows(self, x):
        return x[:, :, : self.unary.shape[1]]

    def _padded(self, rows):
        """The whole memory of rows whose classes are padded."""
        return rows.as_strided(self.kept_shape(self.unary), (rows.stride(0), rows.stride(1), 1), rows.storage_offset())

"""The guided filter of images with short windows, in padded planes: equations and symbols of guided.py.

Planes. Values, guide and z lie in planes of NY + 2 RY rows, padded with zeros as far as a window reaches: a window needs
no mask, and two neighbours of a row are one 64-bit number, a pair. Pixel x of a row lies in column x + RX of values and
guide, x + RX + RX % 2 of z: so both the windows that a pass reads and the pixels that it writes begin at a pair, those
of the second pass RX % 2 columns earlier. The guide's first plane holds 1 / area, zeros around it.

Form. A thread owns 2 columns of K rows. Of a row its two windows share 2 RX numbers, and of a column all K share
2 RY + 2 - K rows, which are summed once; rows before these are summed from the last one on, rows behind them from the
first one on, as in box.py:

    box_k = before_k + common + after_k     before_k: rows k .. K - 2 of the thread's K + 2 RY,  after_k: as many behind

about 2 RX + 1 additions for each row that is read, and three a pixel. Nothing is ever subtracted. A warp owns 64
columns; of the second pass G groups of warps own every G-th class each, so that few pixels still occupy a GPU.

K is P^T fit P with P x = [x, I x] in the windows, so K^T, which scales its values by 1 / area as they are read, and not
the messages, needs no other form. Cost O(N C D R), memory (1 + D) Q. Exact but for rounding.
"""

import math

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.box import area_of, batch_stride
from tritoncrf.kernels.common import ceil_div, launch, tile_and_image
from tritoncrf.kernels.epilogue import end_step

SHORT = 7  # longest radius: beyond, two passes along an axis each move fewer bytes through the cache

LANES = tl.constexpr(32)  # pairs of columns of a warp
THREADS = tl.constexpr(128)

SIZES = {
    "do_not_specialize": ["C", "channels", "NY", "NX", "ROW", "pitch", "origin", "stride_p", "stride_gb", "stride_mb", "stride_lb",
                          "stride_x", "stride_ml", "stride_mk", "stride_a"],
}


@triton.jit
def _halves(pair):
    """The two numbers of a pair."""
    return pair.to(tl.int32).to(tl.float32, bitcast=True), (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _pair(left, right):
    low = left.to(tl.uint32, bitcast=True).to(tl.int64)
    return low | (right.to(tl.uint32, bitcast=True).to(tl.int64) << 32)


@triton.jit
def _numbers(pairs, R: tl.constexpr):
    """The 2 R + 2 numbers under the two windows of a row, the first of which begins at `pairs`."""
    found = ()
    for m in tl.static_range(R + 1):
        found = found + _halves(tl.load(pairs + m))
    return found


@triton.jit
def _two_sums(v, R: tl.constexpr):
    """Of 2 R + 2 numbers, the sum of all but the last and of all but the first."""
    if R == 0:
        return v
    else:
        middle = v[1] + v[2]
        for n in tl.static_range(3, 2 * R + 1):
            middle += v[n]
        return v[0] + middle, middle + v[2 * R + 1]


@triton.jit
def _sums(pairs, R: tl.constexpr):
    return _two_sums(_numbers(pairs, R), R)


@triton.jit
def _fields(x, guide, PLANE, D: tl.constexpr, R: tl.constexpr, SCALED: tl.constexpr):
    """Of a row of x, and of each of D channels times it, its sums over both windows, 2 (1 + D); of x / area if SCALED."""
    values = _numbers(x, R)
    if SCALED:
        share = _numbers(guide, R)
        scaled = ()
        for n in tl.static_range(2 * R + 2):
            scaled = scaled + (values[n] * share[n],)
        values = scaled
    sums = _two_sums(values, R)
    for d in tl.static_range(D):
        channel = _numbers(guide + (d + 1) * PLANE, R)
        products = ()
        for n in tl.static_range(2 * R + 2):
            products = products + (values[n] * channel[n],)
        sums = sums + _two_sums(products, R)
    return sums


@triton.jit
def _boxes(
    x, guide, ROW, PLANE, D: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, K: tl.constexpr, SCALED: tl.constexpr
):
    """box(x) and box(I x) of a thread's pixels: of row k what `_fields` gives begins at 2 (1 + D) k."""
    W: tl.constexpr = 2 * (1 + D)
    rows = ()
    for k in tl.static_range(K - 1):
        rows = rows + _fields(x + k * ROW, guide + k * ROW, PLANE, D, RX, SCALED)
    before = ()
    for k in tl.static_range(K - 2, -1, -1):
        longer = ()
        for w in tl.static_range(W):
            longer = longer + (rows[k * W + w] + before[w] if k < K - 2 else rows[k * W + w],)
        before = longer + before
    x += (K - 1) * ROW
    guide += (K - 1) * ROW
    common = _fields(x, guide, PLANE, D, RX, SCALED)
    for _ in range(2 * RY + 1 - K):
        x += ROW
        guide += ROW
        row = _fields(x, guide, PLANE, D, RX, SCALED)
        longer = ()
        for w in tl.static_range(W):
            longer = longer + (common[w] + row[w],)
        common = longer
    boxes = ()
    after = common
    for k in tl.static_range(K):
        if k > 0:
            row = _fields(x + k * ROW, guide + k * ROW, PLANE, D, RX, SCALED)
        longer = ()
        for w in tl.static_range(W):
            box = before[k * W + w] + common[w] if k < K - 1 else common[w]
            if k > 0:
                longer = longer + (row[w] if k == 1 else after[w] + row[w],)
                box += longer[w]
            boxes = boxes + (box,)
        if k > 0:
            after = longer
    return boxes


@triton.jit
def _own(ptr, i, m_right, EVEN: tl.constexpr):
    """The numbers of two neighbouring pixels, the first at i; as a pair if rows are EVEN."""
    if EVEN:
        return _halves(tl.load(ptr + i))
    else:
        return tl.load(ptr + i), tl.load(ptr + i + 1, mask=m_right, other=0.0)


@triton.jit
def fit(sums, share, mean, cholesky, D: tl.constexpr):
    """(offset, slope) of windows from box(x) and box(I x), 1 / area, mean and cholesky."""
    offset = sums[0] * share
    solved = ()
    for e in tl.static_range(D):
        entry = sums[1 + e] * share - mean[e] * offset
        for d in tl.static_range(e):
            entry -= cholesky[e * (e + 1) // 2 + d] * solved[d]
        solved = solved + (entry,)
    slopes = ()
    for e in tl.static_range(D - 1, -1, -1):
        slope = solved[e] * cholesky[e * (e + 3) // 2]
        for d in tl.static_range(e + 1, D):
            slope -= cholesky[d * (d + 1) // 2 + e] * slopes[d - e - 1]
        slopes = (slope,) + slopes
        offset -= mean[e] * slope
    return (offset,) + slopes


@triton.jit
def _clear_frame(ptr, first, step, left, width, NX, NY, RY: tl.constexpr):
    """Zeros around the NX columns of an image that begin at column `left` of a plane `width` wide, by every `step`-th
    program, this one being the `first`."""
    o = tl.arange(0, THREADS)
    head = RY * width + left
    cells = (NY + 2 * RY) * width - NY * NX
    for q in range(first * THREADS, cells, step * THREADS):
        q = q + o
        rows = tl.where(q < head, 0, tl.minimum(1 + (q - head) // (width - NX), NY))  # of the image, before this zero
        tl.store(ptr + (q + rows.to(tl.int64) * NX), (q * 0).to(ptr.dtype.element_ty), mask=q < cells)


@triton.jit(**SIZES)
def _fit_kernel(
    # pointers; x, guide and z as pairs, mean and cholesky if EVEN; what the second pass will write, as numbers
    x_ptr, guide_ptr, mean_ptr, cholesky_ptr, z_ptr, y_ptr,
    # sizes: ROW pairs of a padded row
    C, NY, NX, ROW,
    # strides: the batch of guide, mean, and cholesky (0: one serves all)
    stride_gb, stride_mb, stride_lb,
    # meta-parameters
    D: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, K: tl.constexpr, SCALED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Each program owns offset and slope, z, of 64 x 4 K pixels of one class of one image, and a share of the frames of
    z and of the next state, which the second pass will not write."""
    tiles_x = tl.cdiv(NX, 2 * LANES)
    tiles = tiles_x * tl.cdiv(NY, 4 * K)
    tile, plane = tile_and_image(tiles)
    b, c = plane // C, plane % C
    PLANE = tl.full((), 1, tl.int64) * (NY + 2 * RY) * ROW
    o = tl.arange(0, THREADS)
    last = (NX - 1) // 2
    own, y = tile % tiles_x * LANES + o % LANES, (tile // tiles_x * 4 + o // LANES) * K
    # Threads beyond the image repeat its last pixels, and rows before `low` are another thread's.
    xp, first = tl.minimum(own, last), tl.minimum(y, NY - K)
    low = tl.where(own <= last, y - first, K)
    m_right = 2 * xp + 1 < NX
    corner = first * ROW + xp
    boxes = _boxes(
        x_ptr + plane * PLANE + corner, guide_ptr + b * stride_gb + corner, ROW, PLANE, D, RY, RX, K, SCALED
    )
    W: tl.constexpr = 2 * (1 + D)
    N = tl.full((), 1, tl.int64) * NY * NX
    if EVEN:
        N //= 2
    mean_ptr += b * stride_mb
    cholesky_ptr += b * stride_lb
    guide_ptr += b * stride_gb
    z_own = z_ptr + (b * (D + 1) * C + c) * PLANE + (corner + RY * ROW + (RX + 1) // 2)
    for k in tl.static_range(K):
        i = (first + k) * NX + 2 * xp
        if EVEN:
            i //= 2
        shares = ()
        for right in tl.static_range(2):
            shares = shares + (
                _halves(tl.load(guide_ptr + corner + (RY + k) * ROW + (RX + right) // 2))[(RX + right) % 2],
            )
        means = ()
        for d in tl.static_range(D):
            means = means + _own(mean_ptr + d * N, i, m_right, EVEN)
        factors = ()
        for n in tl.static_range(D * (D + 1) // 2):
            factors = factors + _own(cholesky_ptr + n * N, i, m_right, EVEN)
        found = ()
        for right in tl.static_range(2):
            sums = ()
            mean = ()
            cholesky = ()
            for f in tl.static_range(D + 1):
                sums = sums + (boxes[k * W + 2 * f + right],)
            for d in tl.static_range(D):
                mean = mean + (means[2 * d + right],)
            for n in tl.static_range(D * (D + 1) // 2):
                cholesky = cholesky + (factors[2 * n + right],)
            found = found + fit(sums, shares[right], mean, cholesky, D)
        for f in tl.static_range(D + 1):
            right = tl.where(m_right, found[D + 1 + f], 0.0)
            tl.store(z_own + f * C * PLANE + k * ROW, _pair(found[f], right), mask=low <= k)

    z_ptr += (b * (D + 1) * C + c) * PLANE
    for f in tl.static_range(D + 1):
        _clear_frame(z_ptr + f * C * PLANE, tile, tiles, (RX + 1) // 2, ROW, (NX + 1) // 2, NY, RY)
    if y_ptr is not None:
        _clear_frame(y_ptr + plane * 2 * PLANE, tile, tiles, RX, 2 * ROW, NX, NY, RY)


@triton.jit(**SIZES)
def _planes_step_kernel(
    # pointers; z and guide as pairs; messages [B, C, *], which may be y
    z_ptr, guide_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, message_ptr, y_ptr,
    # sizes: ROW pairs of a padded row; of messages, q and y a row's numbers, and where the image begins
    C, channels, NY, NX, ROW, pitch, origin,
    # strides: a class of messages, q and y; the batch of the guide (0: one serves all), a's and A's
    stride_p, stride_gb, stride_a, stride_ml, stride_mk,
    # meta-parameters
    RY: tl.constexpr, RX: tl.constexpr, K: tl.constexpr, G: tl.constexpr, SCALED: tl.constexpr,
    EPILOGUE: tl.constexpr, MATRIX: tl.constexpr, PRECISION: tl.constexpr, CP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of 64 x 4 K / G pixels of one image, and ends the step for P of them at a time."""
    V: tl.constexpr = 4 // G
    S: tl.constexpr = RX % 2
    tiles_x = tl.cdiv(NX + S, 2 * LANES)
    tile, b = tile_and_image(tiles_x * tl.cdiv(NY, V * K))
    PLANE = tl.full((), 1, tl.int64) * (NY + 2 * RY) * ROW
    o = tl.arange(0, THREADS)
    last = (NX - 1 + S) // 2
    own, y = tile % tiles_x * LANES + o % LANES, (tile // tiles_x * V + o // LANES % V) * K
    xp, first = tl.minimum(own, last), tl.minimum(y, NY - K)  # as above
    left = 2 * xp - S
    low = tl.where(own <= last, y - first, K)
    corner = first * ROW + xp
    z_ptr += b * (channels + 1) * C * PLANE
    guide_ptr += b * stride_gb + corner + (RY * ROW + RX // 2)
    image = b * C * stride_p + origin
    o_y = first.to(tl.int64) * pitch + left
    for start in range(0, C, G):
        c = start + o // (LANES * V)
        m_c = c < C
        c = tl.minimum(c, C - 1).to(tl.int64)
        z = z_ptr + c * PLANE + corner
        total = _boxes(z, z, ROW, PLANE, 0, RY, RX, K, False)
        guide = guide_ptr
        for _ in range(channels):
            z += C * PLANE
            guide += PLANE
            boxes = _boxes(z, z, ROW, PLANE, 0, RY, RX, K, False)
            longer = ()
            for k in tl.static_range(K):
                channel = _halves(tl.load(guide + k * ROW))
                longer = longer + (total[2 * k] + boxes[2 * k] * channel[0],)
                longer = longer + (total[2 * k + 1] + boxes[2 * k + 1] * channel[1],)
            total = longer
        low_left = tl.where(m_c & (left >= 0), low, K)
        low_right = tl.where(m_c & (left + 1 < NX), low, K)
        message = message_ptr + (image + c * stride_p + o_y)
        for k in tl.static_range(K):
            sums = (total[2 * k], total[2 * k + 1])
            if SCALED:
                share = _halves(tl.load(guide_ptr + k * ROW))
                sums = (sums[0] * share[0], sums[1] * share[1])
            tl.store(message + k * pitch, sums[0], mask=low_left <= k)
            tl.store(message + k * pitch + 1, sums[1], mask=low_right <= k)

    if EPILOGUE != "sum":
        tl.debug_barrier()  # the messages that this program's other threads have written
        N = tl.full((), 1, tl.int64) * NY * NX
        stride_y = tl.full((), 1, tl.int64) * stride_p
        for p in range(0, V * K * 2 * LANES, P):
            o = p + tl.arange(0, P)
            row = tile // tiles_x * V * K + o // (2 * LANES)
            column = tile % tiles_x * 2 * LANES - S + o % (2 * LANES)
            m_p = (o < V * K * 2 * LANES) & (row < NY) & (column >= 0) & (column < NX)
            row = row.to(tl.int64)
            end_step(
                message_ptr, mix_ptr, unary_ptr, a_ptr, q_ptr, y_ptr, image, b * C * N,
                row * pitch + column, row * NX + column, m_p, C, stride_y, N, stride_a, stride_ml, stride_mk,
                EPILOGUE, MATRIX, PRECISION, CP,
            )  # fmt: skip


@triton.jit(**SIZES)
def _pad_kernel(
    x_ptr, y_ptr, C, NY, NX, ROW, AREA, stride_x, RY: tl.constexpr, RX: tl.constexpr, SHARE: tl.constexpr,
    COUNT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Each program owns P numbers of one padded plane. SHARE: the first of each image's C planes is 1 / area."""
    width, rows = 2 * ROW, NY + 2 * RY
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


NO_STEP = {
    "mix_ptr": None, "unary_ptr": None, "a_ptr": None, "q_ptr": None, "stride_a": 0, "stride_ml": 0, "stride_mk": 0,
    "MATRIX": False, "PRECISION": "default",
}  # fmt: skip


def step_tile(classes: int, warps: int, step: dict) -> dict:
    """How many pixels end their step at a time, and of a matrix the classes, padded."""
    if not step.get("MATRIX", False):
        return {"CP": 1, "P": 256 * warps}
    columns = max(16, triton.next_power_of_2(classes))
    return {"CP": columns, "P": max(16, min(128, 128 * warps // columns))}


class Planes:
    """How an image [1, NY, NX] lies in padded planes, for windows of these radii."""

    def __init__(self, size, radii, box: str) -> None:
        (_, ny, nx), (_, ry, rx) = size, radii
        self.size, self.radii, self.box = (ny, nx), (ry, rx), box
        self.row = (nx + 1 + rx % 2) // 2 + rx  # pairs
        self.shape = ny + 2 * ry, 2 * self.row

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

    def arguments(self) -> dict:
        return {"NY": self.size[0], "NX": self.size[1], "ROW": self.row, "RY": self.radii[0], "RX": self.radii[1]}


def _pairs(x):
    """Numbers side by side as one."""
    return x.view(torch.int64)


def _rows(planes: Planes, fields: int) -> int:
    """Rows of a thread: at most so many that all their windows share one, and `before` fits in registers."""
    return min(8, 2 * planes.radii[0] + 1, planes.size[0], 1 + 24 // fields)


def fitted(x, planes: Planes, guide, mean, cholesky, adjoint: bool, y=None):
    """z of x, or of x / area, in planes [B, 1 + D, C, *shape]; x and guide in planes of their own. Of y, planes that
    the second pass will write, the frame is made zero."""
    batch, classes = x.shape[:2]
    d, even, k = guide.shape[1] - 1, planes.size[1] % 2 == 0, _rows(planes, guide.shape[1])
    z = x.new_empty((batch, 1 + d, classes, *planes.shape))
    mean, cholesky = (t.contiguous() for t in (mean, cholesky))
    tiles = ceil_div(planes.size[1], 64) * ceil_div(planes.size[0], 4 * k)
    launch(
        _fit_kernel, (tiles * classes * batch,), num_warps=4,
        x_ptr=_pairs(x), guide_ptr=_pairs(guide), mean_ptr=_pairs(mean) if even else mean,
        cholesky_ptr=_pairs(cholesky) if even else cholesky, z_ptr=_pairs(z), y_ptr=y, C=classes,
        **planes.arguments(), stride_gb=batch_stride(guide) // 2, stride_mb=batch_stride(mean) // (1 + even),
        stride_lb=batch_stride(cholesky) // (1 + even), D=d, K=k, SCALED=adjoint, EVEN=even,
    )  # fmt: skip
    return z


def _groups(classes: int) -> int:
    """Groups of warps that take turns with the classes: as many as leave at most a sixteenth of the turns idle."""
    return max(g for g in (1, 2, 4) if 16 * (-classes % g) <= classes)


def combined(z, planes: Planes, guide, adjoint: bool, epilogue: str, y, message, **step) -> None:
    """K x or K^T x, from z of x, into `message`, and the step into `y`, both planes or both images."""
    batch, fields, classes = z.shape[:3]
    groups, k = _groups(classes), _rows(planes, 1)
    padded = y.shape[-2:] == planes.shape
    pitch, origin = (planes.shape[1], planes.radii[0] * planes.shape[1] + planes.radii[1]) if padded else (planes.size[1], 0)
    launch(
        _planes_step_kernel,
        (ceil_div(planes.size[1] + planes.radii[1] % 2, 64) * ceil_div(planes.size[0], 4 // groups * k) * batch,),
        num_warps=4, z_ptr=_pairs(z), guide_ptr=_pairs(guide), message_ptr=message, y_ptr=y, C=classes,
        channels=fields - 1, **planes.arguments(), pitch=pitch, origin=origin,
        stride_p=math.prod(y.shape[-2:]), stride_gb=batch_stride(guide) // 2, K=k, G=groups, SCALED=not adjoint,
        EPILOGUE=epilogue, **(NO_STEP | step), **step_tile(classes, 4, step),
    )  # fmt: skip

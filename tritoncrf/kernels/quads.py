"""Window sums of images with few classes, and the ConvCRF step that ends with them: 2 x 2 pixels a thread (ConvCRF
paper, section 4; symbols of docs/symbols.md; adjoint and feature gradient stand in window.py).

    (K x)_i = sum_j k_ij x_j ,  k_ij = 2^(-|f_i - f_j|^2 / (2 ln 2))
    F_m = out_m . K_m (in_m . Q) ,  S = a U + sum_m A_m F_m

and where the A_m are two numbers c_m, one weight meets the classes: with W = max |c_m|, s the sign of c_r,

    sum_m c_m F_m = s W out_r . sum_j (2^(log2 |c_r| / W - ..) in_r,j + rho_i k_o,ij in_o,j) Q_j ,
    rho = c_o / (s W) out_o / out_r            r: the filter whose coefficient is in its exponent, o: the other

Form. States and features lie in padded planes (planes.py). A thread owns ROWS x 2 pixels and all their classes, in
blocks of powers of two (class_blocks.py). It sums over its windows (quads_sums.py), then ends the step for its left
pixels and for its right ones. Cost O(N (D + C)) for each tap of the window, memory O(B C N).
"""

import torch
import triton
import triton.language as tl

from tritoncrf.kernels.class_blocks import blocks, offsets, per_class, softmax
from tritoncrf.kernels.common import MOST_REGISTERS, ceil_div, launch, product, scale
from tritoncrf.kernels.planes import (
    COLUMNS,
    PIXELS,
    UNKNOWN,
    WARPS,
    Planes,
    by_pixel,
    own_channels,
    part_of_row,
    quad_tile,
    suits,
)
from tritoncrf.kernels.quads_sums import of_steps, window_sums

MAX_CLASSES = 24
MAX_REGISTERS = 168  # by `_registers`; beyond either, some kernel spills


@triton.constexpr_function
def reference(D):
    """The filter whose coefficient is in its exponent: the last one that is not of positions, or -1."""
    return max([m for m in range(len(D)) if D[m] > 0], default=-1)


@triton.jit
def _coefficients(c0, c1, REFERENCE: tl.constexpr):
    """Of two weights c_m: log2 |c_r| / W, c_0 / (s W), c_1 / (s W) and s W, for filter r; without sign s if r is -1."""
    most = tl.maximum(tl.abs(c0), tl.abs(c1))
    most = tl.where(most > 0, most, 1.0)
    c = c0 if REFERENCE == 0 else c1
    factor = most if REFERENCE == -1 else tl.where(c < 0, -most, most)
    return tl.log2(tl.abs(c) / most), c0 / factor, c1 / factor, factor


@triton.jit(do_not_specialize=UNKNOWN)
def _window_quads_kernel(
    # pointers: planes of x; of each filter: planes of features, or positions [2, N]; planes of in; out; a and A, each
    # number P times, [1 + M, C, P], so that no thread gets it from another
    x_ptr, f_ptrs, in_ptrs, out_ptrs, numbers_ptr, unary_ptr, q_ptr, y_ptr, filtered_ptr,
    # sizes; ROW in pairs; EACH: 1 if a filter has features for each image, 0 if one image's serve all; ZERO: 0
    NY, NX, STEP, ROW, EACH_0, EACH_1, ZERO,
    # strides: filter of filtered; class of y and filtered, N if none is given
    stride_tm, stride_yc,
    # meta-parameters; PLANE in pairs; of each filter: channels, 0 of positions, and whether a pixel sees itself
    C: tl.constexpr, D: tl.constexpr, SELF: tl.constexpr, R: tl.constexpr, MERGE: tl.constexpr, EPILOGUE: tl.constexpr,
    ROWS: tl.constexpr, PART: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Each program owns all classes of one tile of one phase of one image."""
    REFERENCE: tl.constexpr = reference(D)
    N = tl.full((), 1, tl.int64) * NY * NX
    IMAGE = N if stride_yc is None else stride_yc
    b, phase, image, x, y, corner, i_y, m_y = quad_tile(NY, NX, STEP, ROW, ZERO, R, ROWS)
    o_p = tl.arange(0, PIXELS)[None, None, :]
    o_r = tl.arange(0, ROWS)[:, None, None]
    x_ptr += image * (C * PLANE)
    first = 0.0
    if MERGE:
        coefficients = _coefficients(
            tl.load(numbers_ptr + C * PIXELS), tl.load(numbers_ptr + 2 * C * PIXELS), REFERENCE
        )
        first = coefficients[0]

    bases = ()
    out_bases = (b * EACH_0 * N, b * EACH_1 * N)
    own = ()
    rho = ()
    gx = ()
    spacings = ()
    starts = ()
    for m in tl.static_range(len(D)):
        bases = bases + ((b * (EACH_0 if m == 0 else EACH_1) * (STEP * STEP) + phase) * PLANE,)
        features = ()
        relative = ()
        for s in tl.static_range(2):
            features = features + (own_channels(f_ptrs[m] + bases[m] * D[m], corner, s, ROW, D[m], R, ROWS, PLANE),)
            r = 1.0
            if MERGE and m != REFERENCE:
                r = coefficients[1 + m] * scale(out_ptrs[m], i_y[s], m_y[s], out_bases[m])
                if REFERENCE >= 0 and out_ptrs[REFERENCE] is not None:
                    r /= tl.load(out_ptrs[REFERENCE] + out_bases[REFERENCE] + i_y[s], mask=m_y[s], other=1.0)
            relative = relative + (r,)
        own = own + (features,)
        rho = rho + (relative,)
        starts = starts + (first if m == REFERENCE else 0.0,)
        spacing = (0.0, 0.0)
        of_columns = ()
        if D[m] == 0:  # evenly spaced
            spacing = (
                STEP * (tl.load(f_ptrs[m] + N - 1) - tl.load(f_ptrs[m])) / tl.maximum(NY - 1, 1),
                STEP * (tl.load(f_ptrs[m] + 2 * N - 1) - tl.load(f_ptrs[m] + N)) / tl.maximum(NX - 1, 1),
            )
            for t in tl.static_range(R + 1):
                of_columns = of_columns + (of_steps(t, spacing[1]),)
        gx = gx + (of_columns,)
        spacings = spacings + (spacing,)
    sums = window_sums(
        x_ptr, f_ptrs, in_ptrs, bases, corner, ROW, own, rho, starts, gx, spacings,
        C, D, SELF, R, MERGE, ROWS, PART, PLANE,
    )  # fmt: skip

    if EPILOGUE == "softmax" or EPILOGUE == "scores":
        a = per_class(numbers_ptr, 0, o_p + ZERO, C)
    mix = ()
    if not MERGE and EPILOGUE != "sum":
        for m in tl.static_range(len(D)):
            mix = mix + (per_class(numbers_ptr, 1 + m, o_p + ZERO, C),)
    for s in tl.static_range(2):
        messages = ()
        for m in tl.static_range(1 if MERGE else len(D)):
            if not MERGE:
                factor = scale(out_ptrs[m], i_y[s], m_y[s], out_bases[m])
            elif REFERENCE >= 0:
                factor = coefficients[3] * scale(out_ptrs[REFERENCE], i_y[s], m_y[s], out_bases[REFERENCE])
            else:
                factor = coefficients[3]
            for c in tl.static_range(blocks(C)):
                messages = messages + (sums[s][m * blocks(C) + c] * factor,)
        result = ()
        for c in tl.static_range(blocks(C)):
            o_y = offsets(b * C, IMAGE, i_y[s], C, c)
            for m in tl.static_range(len(messages) // blocks(C)):
                if filtered_ptr is not None:
                    tl.store(filtered_ptr + m * stride_tm + o_y, messages[m * blocks(C) + c], mask=m_y[s])
            total = messages[c]
            if not MERGE and EPILOGUE != "sum":
                total = messages[c] * mix[0][c]
                if len(D) == 2:
                    total += messages[blocks(C) + c] * mix[1][c]
            if EPILOGUE == "softmax" or EPILOGUE == "scores":
                total += a[c] * tl.load(unary_ptr + o_y, mask=m_y[s], other=0.0)
            result = result + (total,)
        if EPILOGUE == "softmax":
            result = softmax(result)
            at = by_pixel(2 * ((y + o_r + R) * ROW + x) + R + s, ZERO)
        if EPILOGUE == "softmax_adjoint":
            q = ()
            along = tl.zeros((ROWS, 1, PIXELS), tl.float32)
            for c in tl.static_range(blocks(C)):
                q = q + (tl.load(q_ptr + offsets(b * C, IMAGE, i_y[s], C, c), mask=m_y[s], other=0.0),)
                along += tl.sum(product(q[c], result[c]), 1, keep_dims=True)
        for c in tl.static_range(blocks(C)):
            value = result[c]
            if EPILOGUE == "softmax":
                tl.store(y_ptr + offsets(image * C, 2 * PLANE, at, C, c), value, mask=m_y[s])
            else:
                if EPILOGUE == "softmax_adjoint":
                    value = q[c] * (value - along)
                tl.store(y_ptr + offsets(b * C, IMAGE, i_y[s], C, c), value, mask=m_y[s])


def _registers(classes: int, sums: int, rows: int, channels, scaled: bool) -> int:
    """Of a thread, about: its sums, a pair's values, its own features and the pair's, scales."""
    return 2 * classes * (rows * sums + 1) + 2 * (rows + 1) * sum(channels) + 8 * scaled


def _rows(*needs) -> int:
    """Rows of pixels in a thread, or 0 where even one does not fit."""
    classes, sums, *rest = needs
    return max((n for n in (1, 2) if _registers(classes, sums, n, *rest) <= MAX_REGISTERS), default=0)


class State:
    """Planes [B, phases, C, plane] of a Q. When it is released, they return to `spare` with their halos still zero, so
    that a loop needs only two."""

    def __init__(self, planes, spare: list):
        self.planes, self.spare = planes, spare

    def __del__(self):
        self.spare.append(self.planes)


class Quads:
    """The windows of one or two filters over images of one size, and the mean-field step that ends with them."""

    @staticmethod
    def serve(size, radii, dilation: int, batch: int, classes: int, filters, matrix: bool) -> bool:
        """Whether these are windows of images for which a thread can hold all classes and features. Others have
        neighbours along other axes, or classes in several threads."""
        scaled = any(f.scale_in is not None or f.scale_out is not None for f in filters)
        needs = classes, len(filters), [f.channels for f in filters], scaled
        few = classes <= MAX_CLASSES and _rows(*needs) > 0
        return few and not matrix and suits(size, radii, dilation, batch * classes)

    def __init__(self, size, radii, dilation: int, filters, mix=None, unary_weight=None, most_rows: int = 2):
        self.most_rows = most_rows  # of pixels in a thread
        merges = mix is not None and len(filters) == 2 and mix.shape[1] == 1
        self.filters, self.merges = filters, merges and not any(f.masked for f in filters)  # rho divides by out_r
        self.layout = Planes(size[1:], radii[2], dilation)
        self.class_step = {"LOW": 2 * self.layout.plane, "low_step": None}  # of a state: a constexpr, or a number
        self.spare: list = []
        self.features = [f.features if f.positions else self._pairs(f.features) for f in filters]
        self.scales = {}
        if mix is not None:
            rows = torch.cat([unary_weight[None], mix.expand(-1, len(unary_weight))])
            self.numbers = rows[:, :, None].expand(-1, -1, PIXELS.value).contiguous()

    def _pairs(self, x):
        return self.layout.of(x).view(torch.int64)

    def _scale_pairs(self, scale):
        """Planes of a filter's scales, made once."""
        if scale is None:
            return None
        if id(scale) not in self.scales:
            self.scales[id(scale)] = self._pairs(scale)
        return self.scales[id(scale)]

    def blank(self, like):
        """A state of as many images and classes as `like` [B, C, ..], to be written."""
        return State(self.spare.pop() if self.spare else self.layout.empty(like), self.spare)

    def state(self, x):
        """x [B, C, ..] as `run` reads it."""
        state = self.blank(x)
        self.layout.fill(state.planes, x)
        return state

    def place(self, state):
        """The planes of a state, and where its pixels lie in them."""
        row = 2 * self.layout.row
        start = self.layout.radius * (row + 1)
        return state.planes, {"ROW": row, "START": start, "STEP": self.layout.step}

    def image(self, state):
        return self.layout.image(state.planes)

    def next(self, state, unary):
        """The state of softmax(a U + sum_m A_m F_m)."""
        found = self.blank(unary)
        self.run(state, found.planes, "softmax", unary=unary)
        return found

    def damped(self, new, old, share: float):
        """Of planes, whose halos stay zero."""
        new.planes.lerp_(old.planes, share)
        return new

    def run(self, state, y, epilogue: str, unary=None, q=None, filtered=None, adjoint: bool = False):
        """F_m of a state, or of its adjoint, to y as `epilogue` says, and each by itself to `filtered`."""
        batch, _, classes, _ = state.planes.shape
        ins, outs = zip(*((f.scale_out, f.scale_in) if adjoint else (f.scale_in, f.scale_out) for f in self.filters))
        merge = self.merges and filtered is None
        channels = tuple(f.channels for f in self.filters)
        sums = 1 if merge else len(channels)
        layout, (ny, nx) = self.layout, self.layout.size
        scaled = any(s is not None for s in (*ins, *outs))
        rows = min(self.most_rows, _rows(classes, sums, channels, scaled))
        tiles = ceil_div(layout.low[0], rows * WARPS) * ceil_div(layout.low[1], 2 * COLUMNS.value)
        each = [int(len(f.features) > 1) for f in self.filters]
        launch(
            _window_quads_kernel, (tiles * layout.step**2 * batch,), num_warps=WARPS,
            # By default ptxas takes 255, or 40 for one class, and spills two; with a limit it needs fewer.
            registers=80 if classes == 1 and sum(channels) <= 3 else 252 if scaled and 0 in channels else 248,
            registers_before_90=MOST_REGISTERS if scaled and 0 in channels and classes > 1 else None,
            x_ptr=state.planes.view(torch.int64), f_ptrs=tuple(self.features),
            in_ptrs=tuple(self._scale_pairs(s) for s in ins), out_ptrs=outs,
            numbers_ptr=None if epilogue == "sum" else self.numbers, unary_ptr=unary, q_ptr=q, y_ptr=y,
            filtered_ptr=filtered, NY=ny, NX=nx, STEP=layout.step, ROW=layout.row, EACH_0=each[0], EACH_1=each[-1],
            ZERO=0, stride_tm=0 if filtered is None else filtered.stride(0),
            stride_yc=None if epilogue == "softmax" or y.stride(1) == ny * nx else y.stride(1), C=classes, D=channels,
            SELF=tuple(f.include_self for f in self.filters), R=layout.radius, MERGE=merge, EPILOGUE=epilogue,
            ROWS=rows, PART=part_of_row(layout.radius),
            PLANE=layout.plane,
        )  # fmt: skip

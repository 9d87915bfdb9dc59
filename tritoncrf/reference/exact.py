"""The Gaussian over all pairs of pixels in PyTorch, tile by tile, and the choice of tiles to visit.

    (K x)_i = sum_j k_ij x_j ,   k_ij = exp(-|f_i - f_j|^2 / 2)                all pixels j, i itself included
    dL/df_i = sum_j k_ij (<y_i, x_j> + <y_j, x_i>) (f_j - f_i)                 for the cotangent y of K x

Pixels are sorted so that neighbours in memory have near features, and cut into blocks. A block of rows
skips a block of columns only if everything that it skips sums to at most `rtol` (`live_blocks`). The set of
pairs of blocks that are left is symmetric, so K is too: each pair is formed once and serves both blocks.

The exponents of a pair of blocks are one matrix product of features centred on the row block,
a . b - |a|^2 / 2 - |b|^2 / 2, which rounds like |a|^2 and |b - a|^2: right where the row block is small in
feature space. Where it is not, differences are taken one channel at a time.

Cost O(N^2) work, O(N) memory: at most MAX_BLOCKS^2 pairs of blocks are listed.
"""

import torch

TILE = 128  # pixels: a block is a power of two of them
MAX_BLOCKS = 4096  # of one image, to keep the list of their pairs small
LISTED = 1 << 21  # pairs of blocks that are processed together while the list is made
UNITS = 1 << 40  # units of rtol; MAX_BLOCKS shares of up to 2^50 fit in 64 bits
LEAST_RTOL = 1e-280  # instead of 0
CHUNK = 1 << 20  # pairs of pixels whose weights are in memory together: few calls, and in cache
LEAST = {torch.float32: -80.0, torch.float64: -700.0}  # exponents: below, the CPU's exp takes ten times as long
WIDE = {torch.float32: 12.5, torch.float64: 1e3}  # |f - centre|^2 / 2 from where a product loses accuracy


def block_size(pixels: int) -> int:
    """Pixels of a block: TILE, or as many times 2 of it as MAX_BLOCKS need."""
    size = TILE
    while size * MAX_BLOCKS < pixels:
        size *= 2
    return size


# What is visited -------------------------------------------------------------------------------------------------


def tree_order(features, block: int):
    """Pixels sorted so that every `block` of them are near in feature space: order [N], and each block's bounds [T, D].

    features [N, D]. A tree that halves at the widest axis: at each level every segment of 2^l blocks is sorted
    along the axis in which its bounding box is longest. Unlike a curve through a grid of cells, it has no jumps, needs
    no cell size, and works in any number of dimensions.
    """
    n = features.shape[0]
    levels = (-(-n // block) - 1).bit_length()
    order = torch.arange(block << levels, device=features.device)
    real = order < n  # the rest sorts last in every segment, and so stays last
    order.clamp_(max=n - 1)
    for level in range(levels + 1):
        segments = features[order].view(1 << level, -1, features.shape[1])  # [2^l, pixels, D]
        inside = real.view(1 << level, -1)
        low = torch.where(inside[..., None], segments, torch.inf).amin(1)
        high = torch.where(inside[..., None], segments, -torch.inf).amax(1)
        if level < levels:
            axis = (high - low).argmax(1)[:, None, None].expand(-1, segments.shape[1], 1)
            key = torch.where(inside, segments.gather(2, axis)[..., 0], torch.inf)
            order = order.view(key.shape).gather(1, key.argsort(dim=1, stable=True)).flatten()
    blocks = -(-n // block)
    return order[:n], low[:blocks], high[:blocks]


def live_blocks(low, high, block: int, pixels: int, rtol: float):
    """The pairs of different blocks that count, [T, T]: symmetric, false on the diagonal.

    All pixels of block j together weigh at most b_ij = n_j exp(-gap_ij^2 / 2) for any pixel of block i, where
    gap is the distance of the blocks' bounds. Row i drops its smallest b_ij while their sum is at most rtol;
    a pair stays if either of its rows keeps it.
    """
    blocks = low.shape[0]
    count = torch.full((blocks,), float(block), dtype=low.dtype, device=low.device)
    count[-1] = pixels - (blocks - 1) * block
    live = torch.zeros(blocks, blocks, dtype=torch.bool, device=low.device)
    for rows in torch.arange(blocks, device=low.device).split(max(1, LISTED // blocks)):
        gap = torch.zeros(len(rows), blocks, dtype=low.dtype, device=low.device)
        for lo, hi in zip(low.unbind(1), high.unbind(1)):
            apart = torch.maximum(lo - hi[rows, None], lo[rows, None] - hi).clamp_(min=0)
            gap.addcmul_(apart, apart)
        bound, column = (count * gap.mul_(-0.5).exp_()).sort(dim=1, stable=True)
        # A GPU adds floats in no fixed order: integers, rounded up, so that the same pairs are kept every time.
        shares = bound.double().mul_(UNITS / max(rtol, LEAST_RTOL)).ceil_().clamp_(max=2.0**50)
        live[rows] = torch.zeros_like(live[rows]).scatter_(1, column, shares.long().cumsum(1) > UNITS)
    live |= live.T.clone()
    return live.fill_diagonal_(False)


def prepare(features, rtol: float):
    """The visited blocks for features [B, D, N]: order [B, N], starts [B, T + 1] and columns.

    order: the pixels in sorted order. columns[starts[b, i] : starts[b, i + 1]] are the blocks other than i that
    block i of image b needs, ascending; every block needs itself.
    """
    images, _, n = features.shape
    block = block_size(n)
    blocks = -(-n // block)
    order = torch.empty(images, n, dtype=torch.int32, device=features.device)
    counts = torch.zeros(images, blocks, dtype=torch.int64, device=features.device)
    columns = [torch.empty(0, dtype=torch.int32, device=features.device)]
    for b in range(images):
        order[b], low, high = tree_order(features[b].T.contiguous(), block)
        live = live_blocks(low, high, block, n, rtol)
        counts[b] = live.sum(1)
        columns += [rows.nonzero()[:, 1].int() for rows in live.split(max(1, LISTED // blocks))]
    ends = counts.flatten().cumsum(0).view(images, blocks)
    return order, torch.cat([ends[:, :1] - counts[:, :1], ends], 1), torch.cat(columns)


def sort_features(features, order):
    """Features [B, D, N] in sorted order, [B, D, T S]; the last pixel fills what is left of its block."""
    n, index = order.shape[1], order.long()
    index = torch.cat([index, index[:, -1:].expand(-1, -n % block_size(n))], 1)
    return features.gather(2, index[:, None].expand(-1, features.shape[1], -1))


# What is done there ----------------------------------------------------------------------------------------------


class Blocks:
    """The blocks of one image: its features and the pairs it visits.

    features [D, T S] as `sort_features` gives them; order [N], starts [T + 1] and columns as `prepare` does.
    """

    def __init__(self, features, order, starts, columns):
        self.order, self.starts, self.columns = order.long(), starts.tolist(), columns
        self.size = block_size(len(order))
        self.features = features.view(len(features), -1, self.size)  # [D, T, S]
        self.centres = (self.features.amin(2) + self.features.amax(2)) / 2  # [D, T]
        self.norms = (self.features - self.centres[:, :, None]).square_().sum(0).mul_(0.5)  # [T, S]
        self.wide = (self.norms.amax(1) > WIDE[features.dtype]).tolist()

    def sort(self, x):
        """x [R, N] in sorted order, [R, T, S]; zeros fill the last block."""
        x = torch.nn.functional.pad(x[:, self.order], (0, -len(self.order) % self.size))
        return x.view(len(x), -1, self.size)

    def unsort(self, x):
        """The inverse of `sort`."""
        pixels = x.new_empty(len(x), len(self.order))
        pixels[:, self.order] = x.flatten(1)[:, : len(self.order)]
        return pixels

    def pairs(self):
        """Yield (i, js, own): a block with itself (own), then with those after it that it visits."""
        most = max(1, CHUNK // self.size**2)
        for i in range(len(self.starts) - 1):
            yield i, torch.full((1,), i, device=self.order.device), True
            row = self.columns[self.starts[i] : self.starts[i + 1]].long()
            for js in row[row > i].split(most):
                if len(js):
                    yield i, js, False

    def weights(self, i: int, js):
        """k between block i and the blocks js, [S, len(js) S], and their features, [D, S] and [D, len(js) S]: those
        centred on i, or as they are where no one centre is near all of i."""
        a, b = self.features[:, i], self.features.index_select(1, js).flatten(1)
        if self.wide[i]:
            exponent = a.new_zeros(a.shape[1], b.shape[1])
            for a_d, b_d in zip(a, b):
                difference = a_d[:, None] - b_d
                exponent.addcmul_(difference, difference)
            exponent.mul_(-0.5)
        else:
            a, b = a - self.centres[:, i, None], b - self.centres[:, i, None]
            half = b.square().sum(0, keepdim=True).mul_(-0.5)
            left = torch.cat([a, -self.norms[i, None], torch.ones_like(a[:1])])
            exponent = left.T @ torch.cat([b, torch.ones_like(half), half])
        return exponent.clamp_(min=LEAST[a.dtype]).exp_(), a, b


def exact_sum(x, features, order, starts, columns, include_self: bool, precision: str = "default"):
    """K x: x [B, R, N], features [B, D, T S] sorted; see `prepare` for the rest. There is one precision here."""
    out = torch.zeros_like(x)
    if x.numel() == 0:
        return out
    for b in range(x.shape[0]):
        blocks = Blocks(features[b], order[b], starts[b], columns)
        values = blocks.sort(x[b])
        sums = torch.zeros_like(values)
        for i, js, own in blocks.pairs():
            k, _, _ = blocks.weights(i, js)
            if own:
                k.fill_diagonal_(float(include_self))
            sums[:, i] += values.index_select(1, js).flatten(1) @ k.T
            if not own:
                sums.index_add_(1, js, (values[:, i] @ k).view(len(x[b]), *blocks.norms[js].shape))
        out[b] = blocks.unsort(sums)
    return out


def exact_feature_gradient(x, y, features, order, starts, columns):
    """The gradient of <y, K x> with respect to the features, [B, D, N], for x and y [B, R, N]."""
    gradient = features.new_zeros(*features.shape[:2], order.shape[1])
    if x.numel() == 0:
        return gradient
    for b in range(x.shape[0]):
        blocks = Blocks(features[b], order[b], starts[b], columns)
        values, exchanged = blocks.sort(torch.cat([x[b], y[b]])), blocks.sort(torch.cat([y[b], x[b]]))
        sums = torch.zeros_like(blocks.features)
        for i, js, own in blocks.pairs():
            k, at_i, at_js = blocks.weights(i, js)
            if own:
                k.fill_diagonal_(0)  # contributes nothing, but rounding errors
            pull = k.mul_(values[:, i].T @ exchanged.index_select(1, js).flatten(1))  # k_ij (<x_i, y_j> + <y_i, x_j>)
            if blocks.wide[i]:
                moved = _moved_apart(pull, at_i, at_js)
            else:
                moved = at_js @ pull.T - at_i * pull.sum(1), at_i @ pull - at_js * pull.sum(0)
            sums[:, i] += moved[0]
            if not own:
                sums.index_add_(1, js, moved[1].view(len(at_i), len(js), -1))
        gradient[b] = blocks.unsort(sums)
    return gradient


def _moved_apart(pull, at_i, at_js):
    """sum_j pull_ij (f_j - f_i) and sum_i pull_ij (f_i - f_j), one difference at a time: for blocks in which
    these are small beside the features."""
    ahead, back = torch.empty_like(at_i), torch.empty_like(at_js)
    for d, (a_d, b_d) in enumerate(zip(at_i, at_js)):
        moved = pull * (b_d - a_d[:, None])
        ahead[d], back[d] = moved.sum(1), -moved.sum(0)
    return ahead, back


def exact_rows(values, features, rows):
    """(K x)_i at some pixels only, [C, R]: values [C, N], features [D, N], rows [R] of pixels. All pairs, in float64.

    For comparison with an approximation on a whole photo: 2000 pixels of 500 x 334 take two seconds.
    """
    f = features.flatten(1).double()
    f = (f - f.mean(1, keepdim=True)).T  # [N, D]
    x = values.flatten(1).double()
    half = f.square().sum(1, keepdim=True) / -2
    one = torch.ones_like(half)
    left = torch.cat([f, half, one], 1)[rows]
    right = torch.cat([f, one, half], 1)
    out = x.new_zeros(len(left), x.shape[0])
    step = max(1, CHUNK // max(1, len(left)))
    for start in range(0, len(f), step):
        k = (left @ right[start : start + step].T).clamp_(min=LEAST[left.dtype]).exp_()
        out.addmm_(k, x[:, start : start + step].T)
    return out.T.to(values.dtype)

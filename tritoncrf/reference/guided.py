"""The guided filter in plain PyTorch (He, Sun and Tang 2013; SegModel, guidance CRF): K = 1 / area . (symmetric).

With I the guide at a pixel, m(x) = box(x) / area the mean over a window, and for every window

    mean = m(I) ,  Sigma = m(I I^T) - mean mean^T                                              of the guide alone
    cov = m(I x) - mean m(x) ,  slope = (Sigma + eps)^-1 cov ,  offset = m(x) - slope . mean
    (K x)_i = m(slope)_i . I_i + m(offset)_i

Going back, K^T y is the same with the division by area moved from the end to the beginning. All the rest is symmetric,
and so are the gradients of <y, K x>: with ~ for what x~ = y / area gives as x does,

    dI = sum_c x~ box(slope) + x box(slope~) ,   dmean = - sum_c box(x~) slope + box(x) slope~
    dSigma = - sum_c area (slope~ slope^T + slope slope~^T) / 2

Equal channels, as in a grey photo, make Sigma + eps nearly singular. An inverse in float32 would give meaningless
slopes. Solving with its factors gives the slopes of a matrix that differs by a rounding error, in directions in which
the guide does not vary. So the matrix is represented by

    cholesky: L below the diagonal and 1 / pivots on it, Sigma + eps = L diag(pivots) L^T

computed in float64. Its gradient is given as dSigma, not as that of its numbers. Since m(I x) is rounded too, eps is at
least a `floor`, a share of m(I_d^2), below which slopes would be rounding errors. Gradients use the floor in place of
eps.

With a mask, 0 at invalid pixels and 1 elsewhere, values, messages, slopes and offsets are multiplied by the mask, the
guide is 0 off the mask, and areas are box(mask) ("count"). Everything else is unchanged.

With `factors` f > 1 (fast guided filter: He and Sun 2015) slope and offset come from x and I averaged over blocks of f
pixels a side, and their means are upsampled before they meet I at full resolution.

Shapes are those of reference.blur: guides [Bf, D, Z, Y, X], values [B, C, Z, Y, X]; cholesky and dSigma are packed as
lower triangles by rows, [Bf, D (D + 1) / 2, Z, Y, X]. `box_sum` is box, of reference.box or a kernel. Classes are
processed a few at a time, so that the data of a window stays in the cache.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tritoncrf.reference import blur
from tritoncrf.reference.box import areas

CHUNK = 1 << 20  # numbers that are filtered together, of one class or several


@dataclass
class Guide:
    """A prepared guide, with the statistics of all windows."""

    image: torch.Tensor  # I, [Bf, D, Z, Y, X]
    low: torch.Tensor  # the guide averaged over blocks
    mean: torch.Tensor  # of `low`
    cholesky: torch.Tensor  # packed
    radii: tuple[int, ...]  # of windows on `low`
    box: str
    factors: tuple[int, ...]
    box_sum: Callable[..., torch.Tensor]  # box(x) for (x, radii)
    mask: torch.Tensor | None = None  # [Bf, 1, Z, Y, X]; None if all pixels are valid
    spare: int = 0  # the number of last axes of `low` that end with a spare block; see reference.blur

    @functools.cached_property
    def area(self):
        """Pixels of each window, or a constant: [Bf or 1, 1, Z, Y, X]."""
        found = window_areas(self.low, self.mask, self.radii, self.box, self.box_sum, self.spare)
        return found.to(self.low.dtype)

    def of(self, image: int) -> "Guide":
        """The guide of one image of a batch, without the batch axis; the area is computed once for all."""
        b = image if len(self.image) > 1 else 0
        mask = None if self.mask is None else self.mask[b]
        one = replace(
            self, image=self.image[b], low=self.low[b], mean=self.mean[b], cholesky=self.cholesky[b], mask=mask
        )  # fmt: skip
        one.area = self.area[b if len(self.area) > 1 else 0]
        return one

    def there(self, x):
        """x, 0 off the mask."""
        return x if self.mask is None else x * self.mask

    def sums(self, fields):
        """box of fields [n, fields, Z, Y, X]."""
        return self.box_sum(fields, self.radii)

    def enter(self, x):
        """The fields of x, [x, I x] at the windows' resolution: [n, Z, Y, X] -> [n, 1 + D, Z, Y, X]."""
        low = blur.pool(self.there(x)[:, None], self.factors)
        return _products(low[:, 0], self.low)

    def enter_adjoint(self, fields, size):
        return self.there(blur.pool_adjoint(_combined(fields, self.low)[:, None], size, self.factors)[:, 0])

    def leave(self, fields):
        """up(fields / area) combined with the guide: [n, 1 + D, Z, Y, X] -> [n, Z, Y, X]."""
        means = fields.div_(self.area)
        return self.there(_combined(blur.upsample(means, self.image.shape[1:], self.factors), self.image))

    def leave_adjoint(self, y):
        return blur.upsample_adjoint(_products(self.there(y), self.image), self.factors).div_(self.area)

    def windows(self, fields):
        """[slope, offset] of fields: all but the last sum."""
        return self.fitted(self.sums(fields).div_(self.area))

    def fitted(self, means):
        """[slope, offset] of the means of fields, in place."""
        return self.there(coefficients(means, self.mean, self.cholesky))


def window_areas(guide, mask, radii, box: str, box_sum, spare: int = 0):
    """Pixels of each window that are there, or a constant, in float64, [Bf or 1, 1, Z, Y, X]. Windows without any sum
    up to 0, over an area of 1."""
    if mask is None or box == "constant":
        return areas(guide.shape[2:], radii, 1, box, spare, dtype=torch.float64, device=guide.device)[None, None]
    return box_sum(mask.double(), radii).clamp_min(1)


def packed(e: int, d: int) -> int:
    """Where entry (e, d) of a symmetric matrix is in its lower triangle, by rows."""
    e, d = max(e, d), min(e, d)
    return e * (e + 1) // 2 + d


def pairs(dimensions: int) -> list[tuple[int, int]]:
    """(e, d) of the lower triangle, in packed order."""
    return [(e, d) for e in range(dimensions) for d in range(e + 1)]


def _dimensions(matrix) -> int:
    """D of a packed [Bf, D (D + 1) / 2, ...]."""
    return math.isqrt(2 * matrix.shape[1])


def statistics(guide, eps, floor, area, box_sum):
    """mean [Bf, D, *S] and cholesky [Bf, D (D + 1) / 2, *S] of a guide."""
    channels, mean = guide.split(1, 1), (box_sum(guide) / area).split(1, 1)
    matrix = []
    for e, d in pairs(len(channels)):
        moment = box_sum(channels[e] * channels[d]) / area
        matrix.append(moment - mean[e] * mean[d])
        if e == d:
            matrix[-1] += torch.maximum(eps, floor * moment)
    return torch.cat(mean, 1), factored(torch.cat(matrix, 1))


def factored(matrix):
    """cholesky of symmetric positive definite matrices [Bf, D (D + 1) / 2, *S], column by column."""
    dimensions, matrix = _dimensions(matrix), [*matrix.unbind(1)]
    for k in range(dimensions):
        pivot = 1 / matrix[packed(k, k)]
        for e, d in pairs(dimensions):
            if d > k:
                matrix[packed(e, d)] = matrix[packed(e, d)] - matrix[packed(e, k)] * matrix[packed(d, k)] * pivot
        for e in range(k + 1, dimensions):
            matrix[packed(e, k)] = matrix[packed(e, k)] * pivot
        matrix[packed(k, k)] = pivot
    return torch.stack(matrix, 1)


def guided_filter(x, guide: Guide, adjoint: bool):
    """K x for x [B, C, Z, Y, X], or K^T x."""
    found = torch.empty_like(x)
    for _, seen, (values, out) in _chunks(guide, x, found):
        if adjoint:
            out.copy_(seen.enter_adjoint(seen.sums(seen.windows(seen.leave_adjoint(values))), x.shape[2:]))
        else:
            out.copy_(seen.leave(seen.sums(seen.windows(seen.enter(values)))))
    return found


def gradients(x, y, guide: Guide):
    """The gradients of <y, K x> with respect to image, low, mean and Sigma separately; at full resolution, image and
    low are the same guide, and autograd adds the first two."""
    image, low, mean, sigma = (torch.zeros_like(t) for t in (guide.image, guide.low, guide.mean, guide.cholesky))
    for b, seen, (values, cotangents) in _chunks(guide, x, y):
        fields, ending = seen.enter(values), seen.leave_adjoint(cotangents)
        sums, other_sums = seen.sums(fields), seen.sums(ending)
        found, other = (seen.fitted(s / seen.area) for s in (sums, other_sums))

        mean[b] -= (other_sums[:, :1] * found[:, 1:] + sums[:, :1] * other[:, 1:]).sum(0)
        for n, (e, d) in enumerate(pairs(len(seen.low))):
            product = found[:, 1 + e] * other[:, 1 + d]
            if e != d:
                product += found[:, 1 + d] * other[:, 1 + e]
            sigma[b, n] -= (seen.area * product).sum(0)
        low[b] += (fields[:, :1] * seen.sums(other[:, 1:])).sum(0)
        spread = blur.upsample(seen.sums(found[:, 1:]).div_(seen.area), x.shape[2:], seen.factors)
        image[b] += (seen.there(cotangents)[:, None] * spread).sum(0)
    return image, low, mean, sigma


def statistics_gradient(guide, mean, d_mean, d_sigma, area, box_sum):
    """The gradients of <d_mean, mean> + <d_sigma, Sigma + eps> with respect to the guide, and to eps.

    d_eps = trace dSigma ,  dI = box((d_mean - 2 dSigma mean) / area) + 2 box(dSigma / area) I
    """
    diagonal = [packed(d, d) for d in range(guide.shape[1])]
    doubled = d_sigma.clone()  # an off-diagonal entry already counts twice
    doubled[:, diagonal] *= 2
    d_mean = d_mean - (full(doubled) * mean[:, None]).sum(2)
    spread = full(box_sum(doubled / area))
    return box_sum(d_mean / area) + (spread * guide[:, None]).sum(2), d_sigma[:, diagonal].sum()


def full(matrix):
    """A packed matrix [Bf, D (D + 1) / 2, ...] as [Bf, D, D, ...]."""
    d = range(_dimensions(matrix))
    return torch.stack([matrix[:, packed(i, j)] for i in d for j in d], 1).unflatten(1, (len(d), len(d)))


def coefficients(means, mean, cholesky):
    """[m(x), m(I x)] -> [offset, slope], [n, 1 + D, Z, Y, X], in place."""
    means[:, 1:].addcmul_(mean, means[:, :1], value=-1)
    _solve(cholesky, means[:, 1:])
    means[:, 0] -= (means[:, 1:] * mean).sum(1)
    return means


def _solve(cholesky, x):
    """(Sigma + eps)^-1 x from cholesky [D (D + 1) / 2, Z, Y, X], for x [n, D, Z, Y, X], in place."""
    dimensions = range(x.shape[1])
    for e in dimensions:
        for d in dimensions[:e]:
            x[:, e].addcmul_(x[:, d], cholesky[packed(e, d)], value=-1)
    for e in reversed(dimensions):
        x[:, e] *= cholesky[packed(e, e)]
        for d in dimensions[e + 1 :]:
            x[:, e].addcmul_(x[:, d], cholesky[packed(e, d)], value=-1)


def _products(x, guide):
    """[x, I x]: x [n, Z, Y, X] -> [n, 1 + D, Z, Y, X]."""
    found = x.new_empty((len(x), 1 + len(guide), *x.shape[1:]))
    found[:, 0] = x
    torch.mul(x[:, None], guide, out=found[:, 1:])
    return found


def _combined(fields, guide):
    """offset + slope . I: [n, 1 + D, Z, Y, X] -> [n, Z, Y, X]."""
    found = fields[:, 0].clone()
    for d, channel in enumerate(guide, 1):
        found.addcmul_(fields[:, d], channel)
    return found


def _chunks(guide: Guide, *tensors):
    """The index of an image's guide, that guide, and some classes [n, Z, Y, X] of each [B, C, Z, Y, X]."""
    count = max(1, CHUNK // (tensors[0].shape[2:].numel() * (1 + guide.image.shape[1])))
    for b in range(len(tensors[0])):
        seen = guide.of(b)
        for chunks in zip(*(t[b].split(count) for t in tensors)):
            yield (b if len(guide.image) > 1 else 0), seen, chunks

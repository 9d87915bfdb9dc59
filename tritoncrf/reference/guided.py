"""The guided filter in plain PyTorch (He, Sun and Tang 2013; SegModel, guidance CRF): W = D^-1 G with G symmetric.

With m the box mean, I the guide at a pixel, and for every window k

    mu = m(I) ,  Sigma = m(I I^T) - mu mu^T ,  A = (Sigma + eps)^-1                            of the guide alone
    s = m(x) ,  cov = m(I x) - mu s ,  a = A cov ,  b = s - a . mu ,  (W x)_i = m(a)_i . I_i + m(b)_i

Going back, W^T y is the same with the division by D moved from the end to the beginning. All of G is symmetric, and so
are the gradients of <y, W x>: with ~ for what x~ = y / D gives as x does,

    dI = sum_c x~ P a + x P a~ ,  dmu = - sum_c (P x~) a + (P x) a~ ,  dA = sum_c D (cov~ cov^T + cov cov~^T) / 2

With `factors` f > 1 (fast guided filter: He and Sun 2015) a and b come from x and I averaged over blocks of f pixels a
side, and m(a) and m(b) are upsampled before they meet I at full resolution: W = Î^T up D^-1 G' Î_low pool, Î = (1, I).

Shapes are those of reference.blur: guides [Bf, D, Z, Y, X], values [B, C, Z, Y, X]; A is packed as its lower triangle
by rows, [Bf, D (D + 1) / 2, Z, Y, X]. `box_sum` is P, of this module's neighbour or a kernel. Classes are taken a few
at a time, so that what a window needs stays in the cache.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tritoncrf.reference import blur
from tritoncrf.reference.box import areas

CHUNK = 1 << 20  # numbers of one class or several that are filtered together


@dataclass
class Guide:
    """A guide made ready: what all windows know of it."""

    image: torch.Tensor  # I, [Bf, D, Z, Y, X]
    low: torch.Tensor  # the same averaged over blocks
    mu: torch.Tensor  # of `low`
    inverse: torch.Tensor  # A, packed
    radii: tuple[int, ...]  # of windows on `low`
    box: str
    factors: tuple[int, ...]
    box_sum: Callable[..., torch.Tensor]  # P x for (x, radii)

    @functools.cached_property
    def area(self):
        """D."""
        form = {"dtype": self.low.dtype, "device": self.low.device}
        return areas(self.low.shape[2:], self.radii, 1, self.box, **form)

    def of(self, image: int) -> "Guide":
        """What one image of a batch sees, without the batch's axis; D is worked out once for all."""
        b = image if len(self.image) > 1 else 0
        one = replace(self, image=self.image[b], low=self.low[b], mu=self.mu[b], inverse=self.inverse[b])
        one.area = self.area
        return one

    def sums(self, fields):
        """P of fields [n, fields, Z, Y, X]."""
        return self.box_sum(fields, self.radii)

    def enter(self, x):
        """The fields of x, [x, I x] at the windows' resolution: [n, Z, Y, X] -> [n, 1 + D, Z, Y, X]."""
        low = blur.pool(x[:, None], self.factors)
        return _products(low[:, 0], self.low)

    def enter_adjoint(self, fields, size):
        return blur.pool_adjoint(_combined(fields, self.low)[:, None], size, self.factors)[:, 0]

    def leave(self, fields):
        """up(fields / D) combined with the guide: [n, 1 + D, Z, Y, X] -> [n, Z, Y, X]."""
        means = fields.div_(self.area)
        return _combined(blur.upsample(means, self.image.shape[1:], self.factors), self.image)

    def leave_adjoint(self, y):
        return blur.upsample_adjoint(_products(y, self.image), self.factors).div_(self.area)

    def windows(self, fields):
        """P and A of fields: what G does to them but for its last sum."""
        return coefficients(self.sums(fields).div_(self.area), self.mu, self.inverse)


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


def statistics(guide, eps, area, box_sum):
    """mu [Bf, D, *S] and A [Bf, D (D + 1) / 2, *S] of a guide."""
    channels, mu = guide.split(1, 1), (box_sum(guide) / area).split(1, 1)
    sigma = []
    for e, d in pairs(len(channels)):
        sigma.append(box_sum(channels[e] * channels[d]) / area - mu[e] * mu[d])
        if e == d:
            sigma[-1] += eps
    return torch.cat(mu, 1), inverse(torch.cat(sigma, 1))


def inverse(matrix):
    """Of symmetric positive definite matrices [Bf, D (D + 1) / 2, *S], packed: one sweep per row.

    Sweeping row k with pivot p = M_kk sets M_ed -= M_ek M_kd / p, M_ek /= p and M_kk = -1 / p; after all rows M is
    minus the inverse. Positive definite matrices need no other order of pivots.
    """
    dimensions, matrix = _dimensions(matrix), [*matrix.unbind(1)]
    for k in range(dimensions):
        pivot = 1 / matrix[packed(k, k)]
        row = [matrix[packed(k, d)] for d in range(dimensions)]
        for e, d in pairs(dimensions):
            if k not in (e, d):
                matrix[packed(e, d)] = matrix[packed(e, d)] - row[e] * row[d] * pivot
        for d in range(dimensions):
            matrix[packed(k, d)] = -pivot if d == k else row[d] * pivot
    return -torch.stack(matrix, 1)


def guided_filter(x, guide: Guide, adjoint: bool):
    """W x for x [B, C, Z, Y, X], or W^T x."""
    found = torch.empty_like(x)
    for _, seen, (values, out) in _chunks(guide, x, found):
        if adjoint:
            out.copy_(seen.enter_adjoint(seen.sums(seen.windows(seen.leave_adjoint(values))), x.shape[2:]))
        else:
            out.copy_(seen.leave(seen.sums(seen.windows(seen.enter(values)))))
    return found


def gradients(x, y, guide: Guide):
    """Of <y, W x> with respect to image, low, mu and the packed A, each by itself: where nothing is averaged, image and
    low are one guide, and autograd adds the first two."""
    image, low, mu, inverse = (torch.zeros_like(t) for t in (guide.image, guide.low, guide.mu, guide.inverse))
    for b, seen, (values, cotangents) in _chunks(guide, x, y):
        fields, ending = seen.enter(values), seen.leave_adjoint(cotangents)
        sums, other_sums = seen.sums(fields), seen.sums(ending)
        means, other_means = sums / seen.area, other_sums / seen.area
        covariances = means[:, 1:] - seen.mu * means[:, :1]
        others = other_means[:, 1:] - seen.mu * other_means[:, :1]
        found, other = (coefficients(m, seen.mu, seen.inverse) for m in (means, other_means))

        mu[b] -= (other_sums[:, :1] * found[:, 1:] + sums[:, :1] * other[:, 1:]).sum(0)
        for n, (e, d) in enumerate(pairs(len(seen.low))):
            product = covariances[:, e] * others[:, d]
            if e != d:
                product += covariances[:, d] * others[:, e]
            inverse[b, n] += (seen.area * product).sum(0)
        low[b] += (fields[:, :1] * seen.sums(other[:, 1:])).sum(0)
        spread = blur.upsample(seen.sums(found[:, 1:]).div_(seen.area), x.shape[2:], seen.factors)
        image[b] += (cotangents[:, None] * spread).sum(0)
    return image, low, mu, inverse


def statistics_gradient(guide, mu, matrix, d_mu, d_matrix, area, box_sum):
    """The gradients of <d_mu, mu> + <d_matrix, A> with respect to the guide, and to eps.

    dSigma = -A dA A,  d_eps = trace dSigma,  dI = P ((d_mu - 2 dSigma mu) / D) + 2 P (dSigma / D) I
    """
    inverse = full(matrix)
    half = d_matrix.clone()
    for n, (e, d) in enumerate(pairs(guide.shape[1])):
        if e != d:
            half[:, n] /= 2
    d_sigma = -torch.einsum("bef...,bfg...,bgd...->bed...", inverse, full(half), inverse)
    d_mu = d_mu - 2 * torch.einsum("bed...,bd...->be...", d_sigma, mu)
    spread = box_sum((d_sigma / area).flatten(1, 2)).view(d_sigma.shape)
    d_guide = box_sum(d_mu / area) + 2 * torch.einsum("bed...,bd...->be...", spread, guide)
    return d_guide, torch.diagonal(d_sigma, dim1=1, dim2=2).sum()


def full(matrix):
    """A packed [Bf, D (D + 1) / 2, ...] as [Bf, D, D, ...]."""
    d = range(_dimensions(matrix))
    return torch.stack([matrix[:, packed(i, j)] for i in d for j in d], 1).unflatten(1, (len(d), len(d)))


def coefficients(means, mu, matrix):
    """[s, m(I x)] -> [b, a], [n, 1 + D, Z, Y, X], in place."""
    means[:, 1:].addcmul_(mu, means[:, :1], value=-1)
    means[:, 1:] = _times(matrix, means[:, 1:])
    means[:, 0] -= (means[:, 1:] * mu).sum(1)
    return means


def _times(matrix, x):
    """A x for a packed A [D (D + 1) / 2, Z, Y, X] and x [n, D, Z, Y, X]."""
    found = torch.empty_like(x)
    for e in range(x.shape[1]):
        torch.mul(x[:, 0], matrix[packed(e, 0)], out=found[:, e])
        for d in range(1, x.shape[1]):
            found[:, e].addcmul_(x[:, d], matrix[packed(e, d)])
    return found


def _products(x, guide):
    """[x, I x]: x [n, Z, Y, X] -> [n, 1 + D, Z, Y, X]."""
    found = x.new_empty((len(x), 1 + len(guide), *x.shape[1:]))
    found[:, 0] = x
    torch.mul(x[:, None], guide, out=found[:, 1:])
    return found


def _combined(fields, guide):
    """b + a . I: [n, 1 + D, Z, Y, X] -> [n, Z, Y, X]."""
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

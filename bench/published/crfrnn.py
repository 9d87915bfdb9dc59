"""CRF-RNN as its three published codes compute it on a CPU (Zheng et al. 2015, Algorithm 1), forward and backward.

The lattice is that of Adams, Baek and Davis (2010, section 3): a point is elevated by a matrix, its simplex is found by
sorting what is left of its coordinates, and vertices are rows of integers, looked up in a dictionary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.published.arrays import softmax

SIMD = 4  # points that the codes place at a time
THETA_SMOOTH, THETA_SPACE, THETA_COLOR = 3.0, 160.0, 3.0
NAMES = SMOOTH, APPEARANCE, COMPATIBILITY = "spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Code:
    """S = U + sign mu M, from colours minus a mean of blue, green and red; `added` to a row sum before it divides."""

    sign: int
    mean: tuple[float, float, float]
    added: float


CODES = {
    "released": Code(-1, (104.00698793, 116.66876762, 122.67891434), 1e-20),  # Caffe
    "released-keras": Code(-1, (103.939, 116.779, 123.68), 0.0),
    "released-pytorch": Code(1, (103.939, 116.779, 123.68), float(np.finfo(float).eps)),
}


def scores(logits: np.ndarray, image: np.ndarray, parameters: Arrays, code: str, iterations: int) -> np.ndarray:
    """S_T [B, C, H, W], from S_0 = U:

        Q = softmax(S) ,  M = W_s F_s Q + W_b F_b Q ,  S <- U + sign mu M ,  F x = K x / K 1

    Args:
        logits, image: U, and red, green and blue in 0..255, [B or 1, 3, H, W].
        parameters: W_s, W_b and mu, [C, C], by NAMES.
        code: a name in CODES.
        iterations: T.
    """
    filters = [_filters(photo, CODES[code]) for photo in image]
    found = [
        _forward(u.reshape(len(u), -1), filters[n % len(filters)], parameters, CODES[code], iterations)[0]
        for n, u in enumerate(logits)
    ]
    return np.stack(found).reshape(logits.shape)


def gradients(
    logits: np.ndarray, image: np.ndarray, parameters: Arrays, code: str, iterations: int, cotangent: np.ndarray
) -> dict[str, np.ndarray]:
    """Of <cotangent, S_T> with respect to "logits" and each of the parameters, as the codes propagate it back: F^T
    divides by the row sums, then blurs in the reverse order."""
    found = {name: np.zeros_like(value) for name, value in parameters.items()}
    images = []
    for u, photo, g in zip(logits, image, cotangent, strict=True):
        d_logits, own = _backward(
            u.reshape(len(u), -1), g.reshape(len(u), -1), _filters(photo, CODES[code]), parameters, CODES[code],
            iterations,
        )  # fmt: skip
        images.append(d_logits)
        for name, value in own.items():
            found[name] = found[name] + value
    return {"logits": np.stack(images).reshape(logits.shape), **found}


def _forward(u, filters, parameters, code: Code, iterations: int):
    """S_T [C, N], and of every update Q and the two filtered Q."""
    smooth, appearance, mu = (parameters[name] for name in (SMOOTH, APPEARANCE, COMPATIBILITY))
    kept, s = [], u
    for _ in range(iterations):
        q = softmax(s[None])[0]
        near, alike = (f.apply(q) for f in filters)
        kept.append((q, near, alike))
        s = u + code.sign * mu @ (smooth @ near + appearance @ alike)
    return s, kept


def _backward(u, g, filters, parameters, code: Code, iterations: int):
    smooth, appearance, mu = (parameters[name] for name in (SMOOTH, APPEARANCE, COMPATIBILITY))
    _, kept = _forward(u, filters, parameters, code, iterations)
    d_u, d_smooth, d_appearance, d_mu = (np.zeros_like(x) for x in (u, smooth, appearance, mu))
    for q, near, alike in reversed(kept):
        d_u += g
        d_pairwise = code.sign * g
        d_mu += d_pairwise @ (smooth @ near + appearance @ alike).T
        d_message = mu.T @ d_pairwise
        d_smooth += d_message @ near.T
        d_appearance += d_message @ alike.T
        d_q = filters[0].adjoint(smooth.T @ d_message) + filters[1].adjoint(appearance.T @ d_message)
        g = q * (d_q - np.sum(q * d_q, 0))
    return d_u + g, {SMOOTH: d_smooth, APPEARANCE: d_appearance, COMPATIBILITY: d_mu}


def _filters(photo, code: Code):
    """Those of one image [3, H, W]: of (x, y), and of (x, y) and blue, green, red."""
    y, x = np.indices(photo.shape[1:]).reshape(2, -1)
    position = np.stack([x, y], 1)
    bgr = photo[::-1].reshape(3, -1).T - np.array(code.mean)
    alike = np.concatenate([position / THETA_SPACE, bgr / THETA_COLOR], 1)
    return [Normalized(position / THETA_SMOOTH, code.added), Normalized(alike, code.added)]


class Normalized:
    """F x = K x / K 1 of values [C, N], and F^T."""

    def __init__(self, points: np.ndarray, added: float) -> None:
        self.lattice = Permutohedral(points)
        self.sums = self.lattice(np.ones((1, len(points)))) + added

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self.lattice(x) / self.sums

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        return self.lattice(y / self.sums, reverse=True)


class Permutohedral:
    """The lattice of points [N, D]; the last few are filled up with zeros, which have vertices but no values."""

    def __init__(self, points: np.ndarray) -> None:
        n, d = points.shape
        corners, weights = simplices(np.concatenate([points, np.zeros((-n % SIMD, d))]))
        vertices, index = np.unique(corners.reshape(-1, d + 1), axis=0, return_inverse=True)
        self.count, self.alpha = len(vertices), 1 / (1 + 2.0**-d)
        self.index, self.weights = index.reshape(-1, d + 1)[:n], weights[:n]
        numbers = {tuple(vertex): number for number, vertex in enumerate(vertices.tolist())}
        steps = (d + 1) * np.eye(d + 1, dtype=int) - 1  # along axis j: D, and 1 less of all others
        self.neighbours = [
            [[numbers.get(tuple(v), self.count) for v in (vertices + sign * step).tolist()] for sign in (1, -1)]
            for step in steps
        ]

    def __call__(self, values: np.ndarray, reverse: bool = False) -> np.ndarray:
        """K x, or K^T x, of values [C, N]."""
        v = np.zeros((self.count + 1, len(values)), values.dtype)  # the last is none
        np.add.at(v, self.index, self.weights[:, :, None] * values.T[:, None])
        for ahead, back in self.neighbours[::-1] if reverse else self.neighbours:
            v[:-1] += (v[ahead] + v[back]) / 2
        return self.alpha * np.einsum("nr,nrc->cn", self.weights, v[self.index])


def simplices(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices [N, D + 1, D + 1] around points [N, D], by remainder, and the barycentric weights [N, D + 1]."""
    d = points.shape[1]
    k = np.arange(1, d + 1)
    elevation = np.triu(np.ones((d + 1, d))) - np.diag(k.astype(float), -1)[:, :d]
    elevated = points @ (elevation * (d + 1) * np.sqrt(2 / 3) / np.sqrt(k * (k + 1))).T
    nearest = (d + 1) * np.rint(elevated / (d + 1)).astype(int)
    rank = _ranks(elevated - nearest)
    # Rounded coordinates that do not add up to 0: as many as are too many, farthest from what they were, go one back.
    rank += nearest.sum(1, keepdims=True) // (d + 1)
    wrong = (rank < 0).astype(int) - (rank > d)
    nearest, rank = nearest + (d + 1) * wrong, rank + (d + 1) * wrong
    left = np.take_along_axis(elevated - nearest, np.argsort(rank, 1), 1) / (d + 1)  # largest first
    weights = -np.diff(left, axis=1)[:, ::-1]
    weights = np.concatenate([1 - left[:, :1] + left[:, -1:], weights], 1)
    remainder = np.arange(d + 1)[:, None]
    back = rank[:, None] > d - remainder  # [N, D + 1, D + 1]
    return nearest[:, None] + remainder - (d + 1) * back, weights


def _ranks(left: np.ndarray) -> np.ndarray:
    """The place of each among those of its row, largest first; of equal ones the first comes first."""
    order = np.argsort(-left, 1, kind="stable")
    return np.argsort(order, 1, kind="stable")

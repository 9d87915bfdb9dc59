"""The permutohedral lattice in dictionaries and tuples: slow, and hard to get wrong. No gradient reaches its features."""

import math

import numpy as np
import torch


class DictionaryLattice:
    """The permutohedral lattice as its definition reads: vertices are tuples of integers, pixels come one by one.

    The simplex of a point is found by sorting, not by counting ranks, and a vertex's neighbours by adding tuples.
    """

    def __init__(self, points: np.ndarray, padding: str | None = None):
        n, d = points.shape
        self.d, self.alpha = d, 1 / (1 + 2.0**-d)
        self.weights = [self._simplex(p) for p in points]  # of each point: {vertex: weight}
        padded = [self._simplex(np.zeros(d))] if padding == "four" and n % 4 else []
        self.vertices = sorted(set().union(*self.weights, *padded))
        self.index = {v: i for i, v in enumerate(self.vertices)}

    def _simplex(self, f):
        d = self.d
        c = [(d + 1) * math.sqrt(2 / 3) / math.sqrt(k * (k + 1)) * f[k - 1] for k in range(1, d + 1)]
        y = np.array([sum(c[j:]) - (j * c[j - 1] if j else 0.0) for j in range(d + 1)])
        # The remainder-0 point whose cell holds y: round to multiples of d + 1, then mend the sum, which counts how
        # many coordinates were rounded the wrong way, at those that were rounded farthest.
        base = np.round(y / (d + 1)).astype(int) * (d + 1)
        order = sorted(range(d + 1), key=lambda j: (-(y[j] - base[j]), j))  # largest difference first
        excess = base.sum() // (d + 1)
        for j in order[d + 1 - excess :] if excess > 0 else order[:-excess]:
            base[j] -= (d + 1) * int(np.sign(excess))
        # Going up from base, one more coordinate has come down by d + 1 at each vertex, largest difference last.
        difference = y - base
        order = sorted(range(d + 1), key=lambda j: (-difference[j], j))
        found = {}
        for r in range(d + 1):
            vertex = base + r
            for j in order[d + 1 - r :]:
                vertex[j] -= d + 1
            assert vertex.sum() == 0
            if r:
                weight = difference[order[d - r]] - difference[order[d - r + 1]]
            else:
                weight = d + 1 + difference[order[d]] - difference[order[0]]
            found[tuple(map(int, vertex))] = weight / (d + 1)
        return found

    def splat(self) -> np.ndarray:
        """S, [M, N]."""
        matrix = np.zeros((len(self.vertices), len(self.weights)))
        for i, corners in enumerate(self.weights):
            for vertex, weight in corners.items():
                matrix[self.index[vertex], i] = weight
        return matrix

    def blur(self, j: int) -> np.ndarray:
        """B_j, [M, M]."""
        matrix = np.eye(len(self.vertices))
        for i, vertex in enumerate(self.vertices):
            for sign in (1, -1):
                step = [-sign] * (self.d + 1)
                step[j] = sign * self.d
                neighbour = self.index.get(tuple(a + b for a, b in zip(vertex, step)))
                if neighbour is not None:
                    matrix[i, neighbour] = 0.5
        return matrix

    def matrix(self) -> torch.Tensor:
        """K = alpha S^T B_d ... B_0 S, [N, N]."""
        splat = self.splat()
        blurred = splat
        for j in range(self.d + 1):
            blurred = self.blur(j) @ blurred
        return torch.from_numpy(self.alpha * splat.T @ blurred)


def dense_lattice(features, include_self=True, normalization="none", padding=None) -> torch.Tensor:
    """The matrix of `filters.Lattice`, [Bf, N, N]."""
    matrices = []
    for f in features.flatten(2):
        oracle = DictionaryLattice(f.mT.numpy(), padding)
        k = oracle.matrix()
        if not include_self:
            own = torch.from_numpy(dense_self(oracle))
            k = k - torch.diag(own)
        r = k.sum(1)
        r = r if include_self else torch.where(r > own / 2, r, torch.inf)  # isolated pixels receive nothing
        before = {"before": 1 / r, "symmetric": r.rsqrt()}.get(normalization, torch.ones_like(r))
        after = {"after": 1 / r, "symmetric": r.rsqrt()}.get(normalization, torch.ones_like(r))
        matrices.append(after[:, None] * k * before)
    return torch.stack(matrices)


def dense_self(oracle) -> np.ndarray:
    """K_ii where every vertex exists: the same lattice with all vertices around each point, that point alone."""
    found = []
    for corners in oracle.weights:
        v = dict(corners)
        for j in range(oracle.d + 1):
            blurred = dict(v)
            for vertex, weight in v.items():
                for sign in (1, -1):
                    step = [-sign] * (oracle.d + 1)
                    step[j] = sign * oracle.d
                    neighbour = tuple(a + b for a, b in zip(vertex, step))
                    blurred[neighbour] = blurred.get(neighbour, 0.0) + weight / 2
            v = blurred
        found.append(oracle.alpha * sum(weight * v[vertex] for vertex, weight in corners.items()))
    return np.array(found)

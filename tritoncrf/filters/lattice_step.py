"""The mean-field steps of lattices; each stands in for reference.step.Step, which it is tested against.

States are rows, [B, N, C] in memory, so that a vertex or a pixel is read at once; they are handed out, and taken,
as [B, C, *S].
"""

import torch

from tritoncrf.reference import lattice as reference
from tritoncrf.reference.step import mix


def rows_of(x):
    """[B, C, *S] as rows [B, N, C]; no copy where `image_of` made it."""
    return x.flatten(2).mT.contiguous()


def image_of(rows, like):
    """Rows [B, N, C] as [B, C, *S], the shape of `like`; a view."""
    return rows.mT.unflatten(2, like.shape[2:])


def mixed(a, rows):
    """A x on the last axis, for A of shape [], [C] or [C, C]."""
    return rows @ a.mT if a.ndim == 2 else rows * a


class LatticeStep:
    """The step in PyTorch: A_m acts on the vertices, and all filters are sliced in one pass."""

    def __init__(self, plans, prepared, mixing, unary, unary_weight):
        self.prepared, self.mixing = prepared, mixing
        self.unary = rows_of(mix(unary_weight, unary))

    def forward(self, q, last: bool):
        v = [reference.filtered(rows_of(q), p.lattice, p.scale_in, reverse=False) for p in self.prepared]
        v = [mixed(a, x) for a, x in zip(self.mixing, v, strict=True)]
        scores = self._sliced(v, [p.scale_out for p in self.prepared]).add_(self.unary)
        return image_of(scores if last else torch.softmax(scores, 2), q)

    def backward(self, q, g, through_softmax: bool, filtered: bool):
        rows, back = rows_of(g), None
        v = [reference.filtered(rows, p.lattice, p.scale_out, reverse=True) for p in self.prepared]
        if filtered:
            back = [reference.sliced(x, p.lattice, p.scale_in, len(rows)) for x, p in zip(v, self.prepared)]
            gradient = sum(mixed(a.mT if a.ndim == 2 else a, b) for a, b in zip(self.mixing, back))
            back = [image_of(b, q) for b in back]
        else:
            v = [mixed(a.mT if a.ndim == 2 else a, x) for a, x in zip(self.mixing, v, strict=True)]
            gradient = self._sliced(v, [p.scale_in for p in self.prepared])
        if through_softmax:
            q_rows = rows_of(q)
            gradient = q_rows * (gradient - torch.linalg.vecdot(q_rows, gradient)[..., None])
        return image_of(gradient, q), back

    def _sliced(self, vertices, scales):
        """sum_m scale_m . alpha S_m^T v_m: [B, N, C]."""
        batch, index, weights, first = len(self.unary), [], [], 0
        for v, p, scale in zip(vertices, self.prepared, scales, strict=True):
            index.append(reference.vertex_index(p.lattice, batch) + first)
            weights.append(reference.slice_weights(p.lattice, scale, batch))
            first += v.shape[0] * v.shape[1]
        rows = torch.cat([v.flatten(0, 1) for v in vertices])
        total = reference.weighted_sums(rows, torch.cat(index, 1), None, torch.cat(weights, 1))
        return total.unflatten(0, (batch, -1))


class TritonLatticeStep:
    pass

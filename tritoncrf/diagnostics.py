r"""What mean field minimises, at each iteration.

With logits U, mixing A_m = -mu W_m and messages F_m = K_m Q, the field Q of independent pixels has

    energy       <E>  = -sum_i Q_i . a U_i - 1/2 sum_i Q_i . sum_m A_m F_m,i
    free energy  F    = <E> + tau sum_i Q_i . log Q_i,      tau KL(Q || P) = F + tau log Z,   P = exp(-E / tau) / Z

at the temperature tau; the half because every pair of pixels is counted from both sides (Krähenbühl and Koltun 2011,
section 3; CRF-as-RNN, section 4). log Z does not depend on Q and is not known, so F is tau times the KL divergence up
to a constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tritoncrf.backends import without_autocast
from tritoncrf.filters import Filter
from tritoncrf.mean_field import checked, expect_update, possible, started
from tritoncrf.step import mix
from tritoncrf.types import Compatibility, Initial

__all__ = ["Record", "trace"]


@dataclass(frozen=True)
class Record:
    """The state after `iteration` updates of mean field; energies in nats, summed over pixels and batch.

    Attributes:
        iteration: number of updates before this record.
        energy: the expected energy <E> under Q.
        free_energy: <E> minus temperature times the entropy, which at 1 is KL(Q || P) - log Z.
        pydensecrf_kl: pydensecrf's klDivergence: without the factor of a half, so each pair counts twice.
        entropy: mean over pixels of the entropy of a pixel's label, in nats; from 0 (certain) to log C.
        changed: the fraction of pixels whose most probable label changed since the previous iteration; 0 at iteration
            0.
    """

    iteration: int
    energy: float
    free_energy: float
    pydensecrf_kl: float
    entropy: float
    changed: float


@torch.no_grad()
def trace(
    logits: torch.Tensor, filters: Sequence[Filter], weights: Sequence[float | torch.Tensor],
    compatibility: Compatibility = "potts", iterations: int = 5, unary_weight: float | torch.Tensor = 1.0,
    initial: Initial = "softmax", damping: float = 0.0, temperature: float | torch.Tensor = 1.0,
) -> tuple[torch.Tensor, list[Record]]:  # fmt: skip
    r"""`mean_field` with a record of every iteration.

    .. math::
        F(Q) = \sum_i Q_i \cdot (\tau \log Q_i - a\,U_i) + \tfrac12 \sum_i Q_i \cdot \mu \sum_m W_m (K_m Q)_i

    F decreases with every update if all A_m = -mu W_m and all K_m are symmetric and positive semidefinite: the pairwise
    term is then concave, and an update is a step of the concave-convex procedure (Krähenbühl and Koltun 2013). This
    holds for mu = -I with weights above 0 and exact Gaussians of all pixels, including each pixel itself, with
    normalization "none" or "symmetric", and nearly holds for the lattice. Otherwise F may increase, since all pixels
    are updated in parallel; with enough damping it decreases.

    F is KL(Q || P) - log Z of the CRF's own energy, a sum over pairs i < j, where the filters are symmetric and leave
    out each pixel itself (`include_self=False`); with it, K_ii adds 1/2 Q_i . mu W_m K_ii Q_i for each pixel.

    Args:
        logits, filters, weights, compatibility, iterations, unary_weight, initial, damping, temperature: as
            `mean_field` takes them.

    Returns:
        The probabilities [B, C, *S] of `mean_field` (up to rounding, without gradients), and a list of `iterations` + 1
        records of type `Record`, the first for softmax(U). Each of them applies each filter once (the first one once
        more with initial="log_softmax"). It waits for a GPU once, at the end.

    Raises:
        TypeError, ValueError: as `mean_field`.

    Example:
        >>> import torch, tritoncrf as tc
        >>> K = tc.filters.Window(tc.features.spatial((20, 30), theta=3), window_size=31, normalization="symmetric")
        >>> q, records = tc.trace(torch.randn(1, 4, 20, 30), [K], weights=[3.0], iterations=3)
        >>> [r.iteration for r in records]
        [0, 1, 2, 3]
        >>> records[3].free_energy < records[0].free_energy
        True
    """
    mixing, scale = checked(logits, filters, weights, compatibility, iterations, unary_weight, initial)
    damping, tau = expect_update(damping, temperature, logits, initial)
    unary = possible(logits).contiguous()
    with without_autocast(unary):
        operators = [f.operator(unary) for f in filters]

        def messages(q: torch.Tensor) -> torch.Tensor:
            return sum(mix(a, K.apply(q)) for a, K in zip(mixing, operators, strict=True))  # type: ignore[return-value]

        weighted, q, rows = mix(scale, unary), torch.softmax(unary, 1), []
        labels = q.argmax(1)
        for t in range(iterations + 1):
            found, best = messages(q), q.argmax(1)
            rows.append(torch.stack([*_sums(q, weighted, found), (best != labels).sum(dtype=torch.float64)]))
            labels = best
            if t < iterations:
                if t == 0 and initial == "log_softmax":
                    found = messages(started(unary, initial))
                scores = weighted + found
                q = torch.lerp(torch.softmax(scores if tau is None else scores / tau, 1), q, damping)

    pixels, heat = max(unary[:, 0].numel(), 1), 1.0 if tau is None else tau.item()
    records = [_record(t, pixels, heat, *row) for t, row in enumerate(torch.stack(rows).tolist())]
    return q.to(logits.dtype), records


def _sums(q: torch.Tensor, weighted: torch.Tensor, found: torch.Tensor) -> list[torch.Tensor]:
    """sum Q log Q, sum Q . aU and sum Q . A F, accumulated in float64."""
    terms = torch.special.xlogy(q, q), q * weighted, q * found
    return [term.sum(dtype=torch.float64) for term in terms]


def _record(
    iteration: int, pixels: int, temperature: float, logarithms: float, unary: float, pairwise: float, changed: float
) -> Record:  # fmt: skip
    energy = -unary - pairwise / 2
    return Record(
        iteration=iteration,
        energy=energy,
        free_energy=energy + temperature * logarithms,
        pydensecrf_kl=temperature * logarithms - unary - pairwise,
        entropy=-logarithms / pixels,
        changed=changed / pixels,
    )

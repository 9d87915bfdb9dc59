r"""What mean field minimises, iteration by iteration.

With logits U, mixing A_m = -mu W_m and messages F_m = K_m Q, the field Q of independent pixels has

    energy       <E>  = -sum_i Q_i . a U_i - 1/2 sum_i Q_i . sum_m A_m F_m,i
    free energy  F    = <E> + tau sum_i Q_i . log Q_i,      tau KL(Q || P) = F + tau log Z,   P = exp(-E / tau) / Z

at the temperature tau; the half because every pair of pixels is met from both ends (Krähenbühl and Koltun 2011, section
3; CRF-as-RNN, section 4). log Z does not depend on Q and is not known, so F is tau times the KL divergence up to a
constant.
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
        iteration: how many updates came before.
        energy: the expected energy <E> under Q.
        free_energy: <E> minus temperature times the entropy, which at 1 is KL(Q || P) - log Z.
        pydensecrf_kl: what pydensecrf's klDivergence gives: without the half, so each pair counts twice.
        entropy: of a pixel's labels in nats, the mean over pixels; from 0 (certain) to log C.
        changed: the share of pixels whose best label is another than one iteration before; 0 at iteration 0.
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
    r"""Mean-field inference that tells how it went: `mean_field`, and a record of every iteration.

    .. math::
        F(Q) = \sum_i Q_i \cdot (\tau \log Q_i - a\,U_i) + \tfrac12 \sum_i Q_i \cdot \mu \sum_m W_m (K_m Q)_i

    F falls with every update where all A_m = -mu W_m and all K_m are symmetric and positive semidefinite: the pairwise
    term is then concave, and an update is a step of the concave-convex procedure (Krähenbühl and Koltun 2013).
    mu = -I with weights above 0 and exact Gaussians of all pixels, each pixel itself included, with normalization
    "none" or "symmetric", are such; the lattice nearly is. Elsewhere F may rise, since all pixels move at once, and
    falls with enough damping.

    F is KL(Q || P) - log Z of the CRF's own energy, a sum over pairs i < j, where the filters are symmetric and leave
    out each pixel itself (`include_self=False`); with it, K_ii adds 1/2 Q_i . mu W_m K_ii Q_i for each pixel.

    Args:
        logits, filters, weights, compatibility, iterations, unary_weight, initial, damping, temperature: as
            `mean_field` takes them.

    Returns:
        The probabilities [B, C, *S] that `mean_field` gives (to rounding; no gradients), and a list of `iterations` + 1
        records, each a `Record`, the first of softmax(U). Each of them applies each filter once (the first one once
        more with initial="log_softmax"). A GPU is waited for once, at the end.

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

"""The cross-entropy of refined scores, and its derivatives with respect to the settings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import nll_loss

from tritoncrf.mean_field import mean_field
from tritoncrf.models.scored import Scored
from tritoncrf.problem import kernels, posed

__all__ = ["LEARNED", "slopes"]

WEIGHTS = "weight_smooth", "weight_appearance"
LEARNED = "theta_space", "theta_color", "theta_smooth", *WEIGHTS  # by their logarithms
CPU = torch.device("cpu")


def slopes(item: Scored, parameters: Mapping[str, Any]) -> np.ndarray:
    """Derivatives of one image's cross-entropy, which is the mean over the pixels with a known truth.

    Args:
        item: an image, its scores and its truth.
        parameters: arguments of `refine`, with a Gaussian method and weights above 0.

    Returns:
        float64 [len(LEARNED) + C^2]: with respect to the logarithms of LEARNED, then to the costs.
    """
    problem = posed(item.image, item.scores, CPU, parameters)
    unary, chosen = problem.unary, dict(problem.whole.chosen)

    # Each is multiplied by a factor 1 = exp(0); the derivative is with respect to the exponent.
    factors = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in LEARNED}
    for name in "theta_space", "theta_color", "theta_smooth":
        chosen[name] = _times(chosen[name], factors[name])
    costs = chosen["compatibility"]
    costs = -torch.eye(len(unary)) if isinstance(costs, str) else torch.as_tensor(costs)
    costs = costs.to(unary.dtype).detach().requires_grad_()
    whole, photo = replace(problem.whole, chosen=chosen), None if problem.photo is None else problem.photo[None]
    refined = mean_field(
        unary[None], kernels(whole, problem.start, photo, None, unary[None]),
        [(chosen[name] * factors[name].exp()).to(unary.dtype) for name in WEIGHTS], costs, chosen["iterations"],
        output="log_probabilities", damping=chosen["damping"], temperature=chosen["temperature"],
    )  # fmt: skip
    truth = torch.from_numpy(item.truth)[None]
    known = max(1, int((truth != 255).sum()))
    loss = nll_loss(refined, truth, ignore_index=255, reduction="sum") / known
    found = torch.autograd.grad(loss, [*factors.values(), costs])
    return torch.cat([g.double().reshape(-1) for g in found]).numpy()


def _times(theta: Any, factor: torch.Tensor) -> Any:
    return [t * factor.exp() for t in theta] if isinstance(theta, (list, tuple)) else theta * factor.exp()

"""The Gaussian over all pairs of pixels: the user's filter, and its plan and operator for both backends."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tritoncrf import checks, reference
from tritoncrf.backends import modules
from tritoncrf.filters.base import (
    Gaussian,
    GaussianOperator,
    GaussianPlan,
    centred,
    checked_features,
    gaussian_fields,
)
from tritoncrf.filters.plan import operator
from tritoncrf.types import Backend, Normalization, Precision


class Exact(Gaussian):
    r"""Gaussian messages between all pixels, summed pair by pair.

    .. math::
        (K x)_i = \sum_j k_{ij}\, x_j, \qquad k_{ij} = \exp(-|f_i - f_j|^2 / 2)

    over all pixels j of the image, the same for all classes: the kernel of fully connected CRFs (Krähenbühl and
    Koltun 2011), which `filters.Lattice` approximates. Pixels are sorted into blocks that are near in feature space. A
    block skips other blocks as long as the sum of everything it skips is, for each of its pixels, at most `rtol` times
    the largest \|x\|. K remains symmetric. With `normalization` and r = K 1: "before" K (x / r), "after" K x / r,
    "symmetric" r^-1/2 K (r^-1/2 x).

    Args:
        features: floating, [B, D, *S] or [1, D, *S], 1 to 3 spatial axes (a point set is [B, D, N]), D of any size,
            already divided by the bandwidths (`tritoncrf.features` makes them). Gradients reach them. Only differences
            matter: a distant origin costs no accuracy as long as the dtype of the features represents the differences.
        include_self: whether a pixel's own value, whose weight is 1, is included.
        normalization: "none", "before", "after" or "symmetric".
        rtol: 0 or more; the bound above holds before normalisation. If the pixel itself is included, r is at least 1,
            and the error of normalised messages stays of that order; otherwise a pixel with r near `rtol` loses its
            messages. 0 skips only weights that are 0 in floating point.
        precision: "default" keeps float32's accuracy; "fast" multiplies weights and values in float16 on a GPU (1e-3).
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Work O(B N^2 (D + C)) for the
    pairs that are not skipped, memory O(B C N): no weights are stored. On a photo of 500 x 334 with bandwidths of 80
    pixels and 13 grey levels about a third of all pairs remains. Preparing synchronises with a GPU; applying does
    not. Sums are made in a fixed order: the same bits every time.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, an option or a value is out of bounds.

    Example:
        >>> import torch, tritoncrf as tc
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> K = tc.filters.Exact(tc.features.bilateral(image, 80, 13), normalization="symmetric")
        >>> K(torch.rand(1, 21, 20, 30)).shape
        torch.Size([1, 21, 20, 30])
    """

    def __init__(
        self, features: torch.Tensor, include_self: bool = True, normalization: Normalization = "none",
        rtol: float = 1e-4, precision: Precision = "default", backend: Backend = "auto",
    ) -> None:  # fmt: skip
        features = centred(checked_features(features))
        plan = ExactPlan(**gaussian_fields(features, include_self, normalization, precision, backend))
        if checks.expect_number("rtol", rtol) < 0:
            raise ValueError(f"rtol: expected a finite number of at least 0, got {rtol}")
        self.prepare(plan, features, [features, *visited(features.detach().flatten(2), rtol)])


@operator("exact_visited")
def visited(features: torch.Tensor, rtol: float) -> list[torch.Tensor]:
    """The pairs of blocks that are not skipped: order, starts and columns of `reference.exact.prepare`, for [Bf, D,
    N]."""
    return list(reference.exact.prepare(features, rtol))


@visited.register_fake
def _(features: torch.Tensor, rtol: float) -> list[torch.Tensor]:
    images, _, pixels = features.shape
    starts, columns = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    order = features.new_empty((images, pixels), dtype=torch.int32)
    return [order, order.new_empty((images, starts), dtype=torch.int64), order.new_empty((columns,))]


@dataclass(frozen=True)
class ExactPlan(GaussianPlan):
    """The plan of `Exact`; its tensors are the features, the results of `visited`, and the scales in use."""

    @property
    def tensor_count(self) -> int:
        return 4 + self.scale_count

    def operator(self, tensors: list[torch.Tensor], budget: float = 0) -> "ExactOperator":
        return ExactOperator(self, tensors)


class ExactOperator(GaussianOperator):
    """K, which is symmetric: features in sorted order, and the pairs of blocks that it visits."""

    def __init__(self, plan: ExactPlan, tensors: list[torch.Tensor]) -> None:
        super().__init__(plan, tensors)
        features, order, starts, columns = tensors[:4]
        self.shape, self.module = features.shape, modules(plan.backend).exact
        self.visits = reference.exact.sort_features(features.flatten(2), order), order, starts, columns

    def bare(self, x: torch.Tensor, adjoint: bool) -> torch.Tensor:
        found: torch.Tensor = self.module.exact_sum(self._rows(x), *self.visits, self.include_self, self.precision)
        return found.view(x.shape)

    def bare_gradients(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[list[torch.Tensor], Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        gradient = self.module.exact_feature_gradient(self._rows(x), self._rows(y), *self.visits)
        return [gradient.view(self.shape)], lambda: self.bare(x, False), lambda: self.bare(y, True)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, *S] as [Bf, R, N]: images that share features become further classes of one image."""
        rows = x.flatten(2)
        return rows.flatten(0, 1)[None] if self.shared else rows

"""The Gaussian over all pixel pairs: what a user calls, and its plan for both backends."""

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch

from tritoncrf import checks
from tritoncrf.filters.base import Filter, Plan, checked_features, shared_fields, summed
from tritoncrf.reference import exact as reference
from tritoncrf.reference.step import scaled
from tritoncrf.types import Backend, Normalization, Precision


class Exact(Filter):
    r"""Gaussian messages between all pixels, summed pair by pair.

    .. math::
        (K x)_i = \sum_j k_{ij}\, x_j, \qquad k_{ij} = \exp(-|f_i - f_j|^2 / 2)

    over all pixels j of the image, the same for all classes: the kernel of fully connected CRFs (Krähenbühl and
    Koltun 2011), which `filters.Lattice` approximates. Pixels are sorted into blocks that are near in feature
    space; a block skips others as long as all it skips adds up, for any of its pixels, to at most `rtol` times the
    largest \|x\|. What is left is symmetric. With `normalization` and r = K 1: "before" K (x / r),
    "after" K x / r, "symmetric" r^-1/2 K (r^-1/2 x).

    Args:
        features: floating, [B, D, *S] or [1, D, *S], 1 to 3 spatial axes (a point set is [B, D, N]), D of any size,
            already divided by the bandwidths (`tritoncrf.features` makes them). Gradients reach them.
        include_self: whether a pixel's own value, whose weight is 1, counts.
        normalization: "none", "before", "after" or "symmetric".
        rtol: 0 or more; the bound above holds before normalization. With the pixel itself r is at least 1, and
            normalised messages keep the order of the bound; without it a pixel of r near `rtol` loses what it hears.
            0 skips only weights that are 0 in floating point.
        precision: "default" keeps float32's accuracy; "fast" multiplies weights and values in float16 on a GPU (1e-3).
        backend: "auto" (Triton on a GPU, PyTorch elsewhere), "triton" or "torch".

    Calling it takes values [B, C, *S], floating, and returns the same shape and dtype. Work O(B N^2 (D + C)) for the
    pairs that are not skipped, memory O(B C N): no weights are kept. On a photo of 500 x 334 with bandwidths of 80
    pixels and 13 grey levels about a third of all pairs is left. Preparing synchronises with a GPU; applying does
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
        features = checked_features(features)
        self.size, self.batch = features.shape[2:], features.shape[0]
        self.plan = ExactPlan(**shared_fields(features, include_self, normalization, precision, backend))
        if checks.expect_number("rtol", rtol) < 0:
            raise ValueError(f"rtol: expected a finite number of at least 0, got {rtol}")
        self.tensors = [features, *visited(features.detach().flatten(2), rtol)]
        self.normalize(normalization)


@torch.library.custom_op("tritoncrf::exact_visited", mutates_args=())
def visited(features: torch.Tensor, rtol: float) -> list[torch.Tensor]:
    """order, starts and columns of `reference.prepare`: the pairs of blocks that are not skipped, for [Bf, D, N]."""
    return list(reference.prepare(features, rtol))


@visited.register_fake
def _(features: torch.Tensor, rtol: float) -> list[torch.Tensor]:
    images, _, pixels = features.shape
    starts, columns = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    order = features.new_empty((images, pixels), dtype=torch.int32)
    return [order, order.new_empty((images, starts), dtype=torch.int64), order.new_empty((columns,))]


@dataclass
class Prepared:
    """One exact filter ready for use: its features in sorted order, and the pairs of blocks that it visits."""

    shape: torch.Size  # of the features
    visits: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # sorted features, order, starts, columns
    scale_in: torch.Tensor | None  # [Bf, 1, *S]
    scale_out: torch.Tensor | None

    @property
    def shared(self) -> bool:
        """Whether one image's features serve the whole batch."""
        return self.shape[0] == 1


@dataclass(frozen=True)
class ExactPlan(Plan[Prepared]):
    """The static half of `Exact`; its tensors are features, what `visited` gives, and the scales in use."""

    include_self: bool
    scaled_in: bool
    scaled_out: bool

    @property
    def tensor_count(self) -> int:
        return 4 + self.scaled_in + self.scaled_out

    def prepare(self, tensors: list[torch.Tensor], budget: float) -> Prepared:
        features, order, starts, columns, *scale = tensors
        return Prepared(
            shape=features.shape,
            visits=(reference.sort_features(features.flatten(2), order), order, starts, columns),
            scale_in=scale[0] if self.scaled_in else None,
            scale_out=scale[-1] if self.scaled_out else None,
        )

    def apply(self, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        return scaled(self._sum(scaled(x, prepared.scale_in), prepared), prepared.scale_out)

    def adjoint(self, y: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        """K is symmetric: only the scales change places."""
        return scaled(self._sum(scaled(y, prepared.scale_out), prepared), prepared.scale_in)

    def _sum(self, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        rows = _rows(x, prepared)
        if self.backend == "triton":
            return _kernels().exact_sum(rows, *prepared.visits, self.include_self, self.precision).view(x.shape)
        return reference.exact_sum(rows, *prepared.visits, self.include_self).view(x.shape)

    def gradients(self, x: torch.Tensor, y: torch.Tensor, prepared: Prepared) -> list[torch.Tensor]:
        """Of <y, K x>: features pair by pair, scales through the products that they are in."""
        scale_in, scale_out = prepared.scale_in, prepared.scale_out
        scaled_x, scaled_y = scaled(x, scale_in), scaled(y, scale_out)
        gradient = (_kernels() if self.backend == "triton" else reference).exact_feature_gradient
        found = [gradient(_rows(scaled_x, prepared), _rows(scaled_y, prepared), *prepared.visits).view(prepared.shape)]
        if scale_in is not None:
            found.append(summed(x * self._sum(scaled_y, prepared), prepared.shared))
        if scale_out is not None:
            found.append(summed(y * self._sum(scaled_x, prepared), prepared.shared))
        return found


def _rows(x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    """x [B, C, *S] as [Bf, R, N]: images that share their features are so many more classes of one."""
    rows = x.flatten(2)
    return rows.flatten(0, 1)[None] if prepared.shared else rows


def _kernels() -> ModuleType:
    """The Triton kernels, imported when first used: the package works without triton."""
    return importlib.import_module("tritoncrf.kernels.exact")

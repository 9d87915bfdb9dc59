"""pydensecrf's classes, argument order and conventions, based on `filters.Lattice` and `mean_field`.

    Q <- softmax(-U - sum_k C_k(K_k Q))        from Q = softmax(-U)

U are energies: minus logits. K is the permutohedral lattice over all pixels, including each pixel's message to itself,
with the number of pixels padded to a multiple of four, `Lattice(padding="four")`. The form of `compat` determines the
compatibility C and its sign:

    number w         C(Q) = -w Q               attracts like labels where w > 0
    vector v (L,)    C(Q) = diag(v) Q          repels where v > 0
    matrix M (L, L)  C(Q) = (M + M^T)/2 Q      costs: positive repels

Everything is computed in float32, on the GPU if this process can use one, otherwise on the CPU.
"""

import enum
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.densecrf.utils import MOST_POINTS, Float32, expect_array
from tritoncrf.devices import device_found
from tritoncrf.filters import Lattice
from tritoncrf.filters.lattice import near_features
from tritoncrf.mean_field import mean_field
from tritoncrf.types import Normalization, Padding, Theta

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
]


class KernelType(enum.IntEnum):
    """The learnable form of a kernel in pydensecrf's C++ code. It has no effect on inference."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(enum.IntEnum):
    """How K is scaled, with r = K 1: not at all; by 1/r on its input; by 1/r on its output; by r^-1/2 on both."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL
NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC

Compat: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray
Member = TypeVar("Member", bound=enum.IntEnum)

LATTICE_NORMALIZATIONS: dict[NormalizationType, Normalization] = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}


class Unary:
    """An argument of `DenseCRF.setUnary`, with `energy`, float32 (nlabels, nvar)."""

    energy: Float32


class ConstUnary(Unary):
    """The energies u, floating (nlabels, nvar).

    Raises:
        TypeError, ValueError: another dtype or shape, NaN, minus infinity, or a pixel with only infinite energies.
    """

    def __init__(self, u: np.ndarray) -> None:
        self.energy = _energies("u", u)


class LogisticUnary(Unary):
    """The energies L f of weights L (nlabels, D) and features f (D, nvar), floating.

    Raises:
        TypeError, ValueError: as `ConstUnary`, and sizes that do not fit.
    """

    def __init__(self, L: np.ndarray, f: np.ndarray) -> None:
        weights, features = _matrix("L", L, "weights (nlabels, D)"), _matrix("f", f, "features (D, nvar)")
        if weights.shape[1] != features.shape[0]:
            raise ValueError(f"f: expected {weights.shape[1]} rows, the columns of L, got shape {features.shape}")
        self.energy = _energies("L f", weights @ features)


class DenseCRF:
    """A fully connected CRF over `nvar` points and `nlabels` labels, with pydensecrf's methods.

    Kernels are prepared once, when they are added. Arguments may have any memory order and any floating-point dtype;
    arrays are copied.

    Raises:
        TypeError, ValueError: numbers that are not integers, or below 1.

    Example:
        >>> features = np.random.rand(7, 100).astype(np.float32)
        >>> d = DenseCRF(100, 5)
        >>> d.setUnaryEnergy(np.random.rand(5, 100))
        >>> d.addPairwiseEnergy(features, compat=3)
        >>> d.inference(5).shape
        (5, 100)
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._nvar = _whole("nvar", nvar, least=1, most=MOST_POINTS)
        self._nlabels = checks.expect_num_classes("nlabels", _whole("nlabels", nlabels, 0))
        self._size: tuple[int, ...] = (self._nvar,)  # the shape of the points for this library's filters
        self._device = device_found()
        self._logits = torch.zeros((1, self._nlabels, self._nvar), dtype=torch.float32, device=self._device)
        self._filters: list[Lattice] = []
        self._weights: list[torch.Tensor] = []  # one per filter: scores += weight K Q

    def setUnary(self, u: Unary) -> None:
        """Set the energies from a `ConstUnary` or `LogisticUnary`.

        Raises:
            TypeError, ValueError: another type, or energies whose shape is not (nlabels, nvar).
        """
        if not isinstance(u, Unary):
            raise TypeError(f"u: expected a ConstUnary or LogisticUnary, got {checks.kind_of(u)}")
        if u.energy.shape != (self._nlabels, self._nvar):
            raise ValueError(self._explain_shape(u.energy.shape))
        self._logits = torch.from_numpy(-u.energy)[None].to(self._device)

    def setUnaryEnergy(self, u: np.ndarray, f: np.ndarray | None = None) -> None:
        """Set the energies: minus log-probabilities, floating (nlabels, nvar). Without them all are 0.

        An energy of +inf rules a label out. With `f` (D, nvar) the energies are u f, with u (nlabels, D). Energies that
        look like probabilities give a warning.

        Raises:
            TypeError, ValueError: as `ConstUnary`, and for another shape; the message says what to pass instead.
        """
        if f is not None:
            return self.setUnary(LogisticUnary(u, f))
        expect_array("u", u, f"floating energies {(self._nlabels, self._nvar)}; for labels see unary_from_labels")
        if u.shape != (self._nlabels, self._nvar):
            raise ValueError(self._explain_shape(u.shape))
        if _are_probabilities(u):
            warnings.warn(
                "u: the values of every pixel sum to 1, as probabilities do; energies are expected: "
                "unary_from_softmax(p), or -np.log(p)",
                stacklevel=2,
            )
        return self.setUnary(ConstUnary(u))

    def addPairwiseEnergy(
        self, features: np.ndarray, compat: Compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """Add the kernel exp(-|f_i - f_j|^2 / 2) of `features`, floating (D, nvar), divided by bandwidths. Their origin
        may be far away: float64 keeps their differences until whole periods of the lattice are subtracted.

        Args:
            compat: a number, (nlabels,) or (nlabels, nlabels); mind the signs, at the top of this module.
            kernel: CONST_KERNEL, DIAG_KERNEL or FULL_KERNEL; no effect on inference.
            normalization: NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER or NORMALIZE_SYMMETRIC.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        features = _matrix("features", features, f"features (D, {self._nvar})", np.float64)
        if features.shape[1] != self._nvar or features.shape[0] == 0:
            hint = "; pass features.T" if features.shape[0] == self._nvar else ""
            raise ValueError(f"features: expected shape (D, {self._nvar}), got {features.shape}{hint}")
        if not np.isfinite(features).all():
            raise ValueError("features: expected finite values, got NaN or infinity")
        near, shifted = near_features(torch.from_numpy(features)[None])
        # If the features are shifted, no padding pixels at 0 are added; pydensecrf's 16-bit keys do not reach so far.
        lattice = partial(self._lattice, near[0].numpy(), padding=None if shifted else "four")
        self._add(lattice, "features", compat, kernel, normalization)

    def _lattice(
        self, features: Float32, normalization: Normalization, padding: Padding | None = "four"
    ) -> Lattice:  # fmt: skip
        """The filter of float32 features, an array [D, N]."""
        f = torch.from_numpy(features).view(1, -1, *self._size).to(self._device)
        return Lattice(f, normalization=normalization, padding=padding)

    def _add(
        self, lattice: Callable[..., Lattice], made_of: str, compat: Compat, kernel: int, normalization: int
    ) -> None:
        """Add the kernel that `lattice` returns for a normalization; its features are made from the arguments
        `made_of`."""
        weight = _mixing(compat, self._nlabels)
        _member("kernel", kernel, KernelType)
        scaled = LATTICE_NORMALIZATIONS[_member("normalization", normalization, NormalizationType)]
        with torch.no_grad(), checks.renamed("features", made_of):
            self._filters.append(lattice(normalization=scaled))
        self._weights.append(weight.to(self._device))

    @torch.no_grad()
    def inference(self, niter: int) -> Float32:
        """The marginals after `niter` iterations, float32 (nlabels, nvar), a NumPy array.

        Raises:
            TypeError, ValueError: `niter` is not an integer, or below 0.
        """
        niter = _whole("niter", niter, 0, checks.MOST_ITERATIONS)
        if not self._filters or niter == 0:
            return self.startInference()[0]
        logits = self._logits.view(1, self._nlabels, *self._size)
        q = mean_field(logits, self._filters, self._weights, iterations=niter)
        return q[0].flatten(1).cpu().numpy()

    def startInference(self) -> tuple[Float32, Float32, Float32]:
        """(Q, tmp1, tmp2): the marginals softmax(-U), and two empty arrays that `stepInference` takes and ignores."""
        q = torch.softmax(self._logits[0], 0).cpu().numpy()
        return q, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    @torch.no_grad()
    def stepInference(self, Q: np.ndarray, tmp1: object, tmp2: object) -> None:
        """One iteration from the marginals Q (nlabels, nvar), written into Q.

        Raises:
            TypeError, ValueError: Q is not a floating-point array of this shape.
        """
        q = self._marginals(Q)
        scores = sum(self._messages(q), start=self._logits)
        Q[...] = torch.softmax(scores[0], 0).cpu().numpy()

    @torch.no_grad()
    def klDivergence(self, Q: np.ndarray) -> float:
        """pydensecrf's number for the marginals Q: sum Q log Q + sum U Q + sum_k sum Q C_k(K_k Q).

        It counts every pair twice and omits log Z, so it is not a divergence: it may be negative, and it may rise
        between iterations. `tritoncrf.trace` records the free energy, which counts every pair once.

        Raises:
            TypeError, ValueError: Q is not a floating-point array (nlabels, nvar).
        """
        q = self._marginals(Q)
        expected = q.clamp_min(1e-20).log() - self._logits - sum(self._messages(q))
        return (q.double() * expected).sum().item()

    def _messages(self, q: torch.Tensor) -> Iterator[torch.Tensor]:
        """weight K Q of each kernel, [1, L, N]: minus pydensecrf's C(K Q)."""
        for weight, f in zip(self._weights, self._filters):
            message = f(q.view(1, self._nlabels, *self._size)).flatten(2)
            yield weight @ message if weight.ndim == 2 else weight.reshape(-1, 1) * message

    def _marginals(self, Q: np.ndarray) -> torch.Tensor:
        """The marginals Q on the device, [1, L, N]."""
        shape = self._nlabels, self._nvar
        expect_array("Q", Q, f"marginals {shape}, floating, as startInference gives them")
        if Q.shape != shape:
            raise ValueError(f"Q: expected shape {shape}, got {Q.shape}")
        if not np.isfinite(Q).all():
            raise ValueError("Q: expected finite marginals, got NaN or infinity")
        return torch.from_numpy(np.array(Q, dtype=np.float32, order="C"))[None].to(self._device)

    def _explain_shape(self, shape: tuple[int, ...]) -> str:
        expected = self._nlabels, self._nvar
        hint, fits = "", math.prod(shape) == math.prod(expected)
        if shape == expected[::-1]:
            hint = "; pass u.T"
        elif fits and shape[0] == self._nlabels:
            hint = f"; pass u.reshape({self._nlabels}, -1)"
        elif fits and shape[-1] == self._nlabels:
            hint = f"; pass np.moveaxis(u, -1, 0).reshape({self._nlabels}, -1)"
        return f"u: expected shape (nlabels, nvar) = {expected}, got {shape}{hint}"


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over an image of width w and height h: width first, as in pydensecrf.

    Example:
        >>> image = np.random.randint(0, 256, (6, 8, 3), dtype=np.uint8)
        >>> p = np.full((2, 6, 8), 0.5, dtype=np.float32)
        >>> from tritoncrf.densecrf.utils import unary_from_softmax
        >>> d = DenseCRF2D(8, 6, 2)
        >>> d.setUnaryEnergy(unary_from_softmax(p))
        >>> d.addPairwiseGaussian(sxy=3, compat=3)
        >>> d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
        >>> np.argmax(d.inference(5), axis=0).reshape(6, 8).shape
        (6, 8)
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._w, self._h = _whole("w", w, 1, MOST_POINTS), _whole("h", h, 1, MOST_POINTS)
        if self._w * self._h > MOST_POINTS:
            raise ValueError(f"w, h: expected at most {MOST_POINTS} pixels, got {self._w} x {self._h}")
        super().__init__(self._w * self._h, nlabels)
        self._size = self._h, self._w

    def addPairwiseGaussian(
        self, sxy: Theta, compat: Compat, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """Add the kernel of positions (x, y) / sxy, in pixels, where sxy is a number or (sx, sy). For the rest see
        `DenseCRF.addPairwiseEnergy`."""
        sx, sy = _bandwidths(sxy)
        positions = partial(Lattice.spatial, self._size, (sy, sx), flip=True, device=self._device)
        self._add(positions, "sxy", compat, kernel, normalization)

    def addPairwiseBilateral(
        self, sxy: Theta, srgb: Theta, rgbim: np.ndarray, compat: Compat, kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:  # fmt: skip
        """Add the kernel of positions (x, y) / sxy and colours / srgb; for the rest see `DenseCRF.addPairwiseEnergy`.

        Args:
            sxy: bandwidth in pixels, a number or (sx, sy).
            srgb: bandwidth in grey levels of 0..255, a number or one per channel.
            rgbim: uint8 (h, w, 3). For other images see `utils.create_pairwise_bilateral`.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came, with what to pass instead.
        """
        sx, sy = _bandwidths(sxy)
        scales = checks.expect_positive("srgb", srgb, 3, each="channel")
        self._check_image(rgbim)
        y, x = np.indices(self._size, dtype=np.float32).reshape(2, -1)
        channels = rgbim.reshape(-1, 3).T.astype(np.float32)
        colors = [channel / np.float32(s) for channel, s in zip(channels, scales)]
        features = np.stack([x / sx, y / sy, *colors])
        self._add(partial(self._lattice, features), "sxy, srgb", compat, kernel, normalization)

    def _check_image(self, rgbim: np.ndarray) -> None:
        wanted = f"a uint8 NumPy array {(self._h, self._w, 3)}"
        expect_array("rgbim", rgbim, wanted, kinds="uifb")
        expected = self._h, self._w, 3
        if rgbim.shape != expected:
            hint = ""
            if rgbim.shape == (self._w, self._h, 3):
                hint = "; DenseCRF2D takes the width first: DenseCRF2D(w, h, nlabels)"
            elif rgbim.shape == (3, self._h, self._w):
                hint = "; pass rgbim.transpose(1, 2, 0)"
            elif rgbim.shape[:2] == expected[:2]:
                hint = "; for other than 3 channels: addPairwiseEnergy(utils.create_pairwise_bilateral(...), compat)"
            raise ValueError(f"rgbim: expected shape (h, w, 3) = {expected}, got {rgbim.shape}{hint}")
        if rgbim.dtype != np.uint8:
            hint = "rgbim.astype(np.uint8) if it is 0..255"
            if rgbim.dtype.kind == "f":
                hint += ", (rgbim * 255).astype(np.uint8) if it is 0..1"
            raise TypeError(f"rgbim: expected {wanted}, got dtype {rgbim.dtype}; pass {hint}")


def _bandwidths(sxy: Theta) -> list[float]:
    """(sx, sy), rounded to float32 as pydensecrf does."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = [float(np.float32(s)) for s in checks.expect_positive("sxy", sxy, 2)]
    checks.expect_positive("sxy", rounded, 2)  # again: float32 may round to 0 or infinity
    return rounded


def _whole(name: str, value: float, least: int, most: int | None = None) -> int:
    """An int; floats that are whole numbers are accepted, as in pydensecrf."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return checks.expect_int(name, value, least, most)


def _member(name: str, value: int, kind: type[Member]) -> Member:
    """`value`, an integer or a member of the enum of this name (pydensecrf's too), as a member of `kind`."""
    other_enum = isinstance(value, enum.Enum) and type(value).__name__ != kind.__name__
    if isinstance(value, (int, np.integer)) and value in list(kind) and not other_enum:
        return kind(value)
    raise ValueError(f"{name}: expected one of {', '.join(kind.__members__)}, got {checks.shown(value)}")


def _matrix(name: str, value: np.ndarray, wanted: str, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """A copy of a floating matrix."""
    expect_array(name, value, f"floating {wanted}")
    if value.ndim != 2:
        raise ValueError(f"{name}: expected {wanted}, got shape {value.shape}")
    return np.array(value, dtype=dtype, order="C")


def _energies(name: str, u: np.ndarray) -> Float32:
    """A float32 copy of energies, with large numbers in place of infinity."""
    u = _matrix(name, u, "energies (nlabels, nvar)")
    if np.isnan(u).any() or (u == -np.inf).any():
        raise ValueError(f"{name}: expected energies above minus infinity, got NaN or -inf; for logits pass -logits")
    if np.isposinf(u).all(axis=0).any():
        raise ValueError(f"{name}: expected a finite energy in every column, got pixels for which every label is inf")
    return np.minimum(u, checks.RULED_OUT)


def _are_probabilities(u: np.ndarray) -> bool:
    """Whether u looks like probabilities of several classes; equal energies do not count."""
    if len(u) < 2 or not (u.min() >= 0 and u.max() <= 1) or u.min() == u.max():
        return False
    return bool((np.abs(u.sum(axis=0, dtype=np.float64) - 1) < 1e-3).all())


def _mixing(compat: Compat, nlabels: int) -> torch.Tensor:
    """The weight W that adds W K Q to the scores, a float32 tensor [], [L] or [L, L]."""
    wanted = f"a number, or numbers of shape ({nlabels},) or ({nlabels}, {nlabels})"
    try:
        given = np.asarray(compat) if isinstance(compat, (list, tuple)) else compat
    except ValueError:  # rows of different lengths
        raise TypeError(f"compat: expected {wanted}, got {checks.kind_of(compat)}") from None
    if not isinstance(given, np.ndarray):
        given = np.array(checks.expect_number("compat", given))
    if given.dtype.kind not in "iuf":
        raise TypeError(f"compat: expected {wanted}, got {checks.kind_of(given)}")
    if given.shape not in ((), (nlabels,), (nlabels, nlabels)):
        raise ValueError(f"compat: expected {wanted}, got shape {given.shape}")
    with np.errstate(over="ignore"):
        weight = torch.tensor(given.astype(np.float32))
    if not torch.isfinite(weight).all():
        raise ValueError(f"compat: expected finite numbers in the range of float32, got {checks.shown(compat)}")
    if weight.ndim == 2:
        weight = (weight + weight.mT) / 2
    return weight if weight.ndim == 0 else -weight

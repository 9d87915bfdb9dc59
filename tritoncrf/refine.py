"""One call: scores of a network in, scores sharpened against the image out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, TypeVar, Union, overload

import numpy as np
import torch

from tritoncrf import checks, diagnostics, filters
from tritoncrf.devices import device_found
from tritoncrf.features import bilateral, color, spatial
from tritoncrf.filters.base import Filter
from tritoncrf.mean_field import mean_field
from tritoncrf.options import METHODS, UNKNOWN, settings
from tritoncrf.summary import Trace, summarized
from tritoncrf.types import Array, Image, Method, RefineOptions, Theta

if TYPE_CHECKING:
    import PIL.Image
    from typing_extensions import Unpack

__all__ = ["refine"]

CLIP = 1e-5

Scores = TypeVar("Scores", np.ndarray, torch.Tensor)
Device: TypeAlias = torch.device | str | None


@overload
def refine(
    image: Image | None = None, *, logits: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, probabilities: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, energies: Scores, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> Scores: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: torch.Tensor, return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> torch.Tensor: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[False] = False,
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> np.ndarray: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, logits: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, probabilities: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, energies: Scores, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[Scores, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: torch.Tensor, return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[torch.Tensor, Trace]: ...  # fmt: skip
@overload
def refine(
    image: Image | None = None, *, labels: Union[np.ndarray, "PIL.Image.Image"], return_trace: Literal[True],
    device: Device = None, **options: "Unpack[RefineOptions]",
) -> tuple[np.ndarray, Trace]: ...  # fmt: skip
@checks.old_names(trace="return_trace=True, which gives (result, trace)")
@torch.no_grad()
def refine(
    image: Image | None = None,
    *,
    logits: Array | None = None,
    probabilities: Array | None = None,
    energies: Array | None = None,
    labels: Image | None = None,
    method: Method = "lattice",
    theta_space: Theta | None = None,
    theta_color: Theta | None = None,
    weight_appearance: float | None = None,
    theta_smooth: Theta | None = None,
    weight_smooth: float | None = None,
    iterations: int | None = None,
    window_size: int | None = None,
    blur: int | None = None,
    radius: int | Sequence[int] | None = None,
    eps: float | None = None,
    label_confidence: float | None = None,
    num_classes: int | None = None,
    features: Array | None = None,
    device: Device = None,
    return_trace: bool = False,
) -> Array | tuple[Array, Trace]:
    """Refine the scores of one image by mean field in a dense CRF.

        Q <- softmax(U + weight_appearance K_a Q + weight_smooth K_s Q)     `iterations` times, Q0 = softmax(U)

    K_a is the Gaussian of (position / theta_space, color / theta_color), K_s that of position / theta_smooth,
    both symmetrically normalised. U are the logits: given as they are, log(max(p, 1e-5)) of probabilities,
    minus the energies, or from labels the logarithm of label_confidence for the label and of
    (1 - label_confidence) / (C - 1) for every other class, equal where the label is unknown.

    With method="guided" there is one kernel:

        Q <- softmax(U + weight_appearance W Q)

    W is the guided filter by the image in 0..255 units, see `filters.Guided`.

    What is not given has the value in parentheses. What is given where it plays no part is an error.

    Args:
        image: a PIL image, a NumPy array [H, W, 3] or [H, W], or a torch tensor [3, H, W] or [1, H, W]; uint8, or
            floating from 0 to 1. It may be left out where `features` are given.
        logits, probabilities, energies: exactly one of these or `labels`; a NumPy array or a torch tensor [C, H, W]
            of floating dtype ([C, W] or [C, D, H, W] with `features`). Logits are minus energies.
        labels: [H, W] integers from 0, 255 where unknown; NumPy, torch or a PIL image of one channel.
        method: which pixels see each other. "lattice": all, by the permutohedral lattice's approximation, in a time
            that grows with their number (Krähenbühl and Koltun 2011). "exact": all, in a time that grows with its
            square. "window": those of a square neighbourhood, as in ConvCRF (Teichmann and Cipolla 2018). "guided":
            those at most 2 radius away, by the guided filter, in a time that does not depend on it (SegModel: Shen et
            al. 2017, with weight_appearance=2 and iterations=3).
        theta_space, theta_smooth: bandwidths in pixels (80, 3); one number or one per axis. Not with "guided".
        theta_color: bandwidth in 0..255 units (13); one number or one per channel. Not with "guided".
        weight_appearance, weight_smooth: weights of the two kernels (10, 3); the second not with "guided".
        iterations: mean-field steps (5); 0 gives softmax(U).
        window_size: with "window", the side of the neighbourhood, odd, in pixels of the blurred image (11).
        blur: with "window", the messages are passed on the image averaged over blur x blur pixels, so that the
            neighbourhood is window_size * blur pixels wide (4); 1 for full resolution.
        radius: with "guided", the radius of the filter's windows in pixels, at least 1 (3); one int or one per axis.
        eps: with "guided", what counts as an edge, in 0..255 units squared, or in the unit of `features` squared:
            variances below are smoothed over. Above 0 (1).
        label_confidence: with `labels`, the probability that a label is right, between 0 and 1 (0.7).
        num_classes: number of classes C of `labels` (the largest label + 1, at least 2); of scores, what they must
            have.
        features: [D, *S], already divided by bandwidths, in place of (position, color), so without theta_space and
            theta_color: for depth, several modalities, volumes, or features of a network. With "guided", D from 1 to
            8, in any unit, in place of the image as the guide.
        device: where it is computed: "cuda", "cpu" or a `torch.device` (for torch, where the scores are; else the GPU
            if there is one).
        return_trace: also return how it went.

    The arguments of known pipelines are in `tritoncrf.PARAMETERS` by name, see `tritoncrf.published`:
    refine(image, probabilities=p, **tritoncrf.PARAMETERS["deeplab"]).

    Returns:
        Probabilities [C, *S], of the kind, the dtype and on the device of the scores; for labels float32, as a
        NumPy array unless the labels were a torch tensor. Computed in float64 for float64 scores, else in float32.
        With return_trace=True a pair of these and a `Trace`: `trace.records` are those of `tritoncrf.trace`, one for
        the start and each iteration, with the energy, the free energy (the KL divergence up to log Z) and the share of
        labels that changed; `trace.summary` says what changed in all, by class, and the confidence.

    Raises:
        TypeError: a kind or dtype other than the above, none or several of the scores.
        ValueError: shapes that do not fit, a value out of range, NaN or infinite, an argument that plays no part; the
            message names the argument.

    Example:
        >>> image = np.zeros((8, 9, 3), dtype=np.uint8)
        >>> refine(image, labels=np.zeros((8, 9), dtype=int)).shape
        (2, 8, 9)
    """
    checks.expect_choice("method", method, METHODS)
    checks.expect_bool("return_trace", return_trace)
    scores = {"logits": logits, "probabilities": probabilities, "energies": energies, "labels": labels}
    given = {name: value for name, value in scores.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise TypeError(f"refine: expected exactly one of logits=, probabilities=, energies=, labels=, got {got}")
    if image is None and features is None:
        raise TypeError("image: expected a PIL image, a NumPy array or a torch tensor (or pass features=), got None")
    [(name, value)] = given.items()
    chosen = settings(method, name, features is not None, {
        "theta_space": theta_space, "theta_color": theta_color, "weight_appearance": weight_appearance,
        "theta_smooth": theta_smooth, "weight_smooth": weight_smooth, "iterations": iterations,
        "window_size": window_size, "blur": blur, "radius": radius, "eps": eps,
        "label_confidence": label_confidence, "num_classes": num_classes,
    })  # fmt: skip
    where = value.device if device is None and isinstance(value, torch.Tensor) else device_found(device)

    with checks.check_values(True):
        if name == "labels":
            unary = _from_labels(value, where, chosen["num_classes"], chosen["label_confidence"])
        else:
            unary = _from_scores(name, value, where, chosen["num_classes"])
        size = unary.shape[1:]
        photo = appearance = None
        if image is not None:
            photo = _image(image, where)
            _expect_size("image", photo, name, size)
        if features is not None:
            appearance = _features(features, name, size, where).to(unary.dtype)
        kernels, weights = _kernels(method, photo, appearance, unary, chosen)
        if not return_trace:
            return _like(mean_field(unary[None], kernels, weights, iterations=chosen["iterations"])[0], name, value)
        q, records = diagnostics.trace(unary[None], kernels, weights, iterations=chosen["iterations"])
    return _like(q[0], name, value), Trace(records, summarized(torch.softmax(unary, 0), q[0]))


def _kernels(
    method: Method, photo: torch.Tensor | None, appearance: torch.Tensor | None, unary: torch.Tensor,
    chosen: Mapping[str, Any],
) -> tuple[list[Filter], list[float]]:  # fmt: skip
    """The method's filters and their weights, of features [1, D, *S] or else of a photo [C, H, W]."""
    weights, made_of = [checks.expect_number("weight_appearance", chosen["weight_appearance"])], "features"
    if appearance is None:
        assert photo is not None
        if method == "guided":
            appearance = color(photo[None], 1.0)
        else:
            made_of = "theta_space, theta_color"
            appearance = bilateral(photo[None], chosen["theta_space"], chosen["theta_color"])
        appearance = appearance.to(unary.dtype)
    if method == "guided":
        with checks.renamed("guide", "features"):
            return [filters.Guided(appearance, chosen["radius"], chosen["eps"])], weights
    weights = [checks.expect_number("weight_smooth", chosen["weight_smooth"]), *weights]
    window_size, blur = chosen["window_size"], chosen["blur"]
    with checks.renamed("features", "theta_smooth"):
        smoothness = _smoothness(method, unary.shape[1:], chosen["theta_smooth"], unary, window_size, blur)
    with checks.renamed("features", made_of):
        return [smoothness, _gaussian(method, appearance, window_size, blur)], weights


def _gaussian(method: Method, features: torch.Tensor, window_size: int, blur: int) -> Filter:
    """The method's filter of features."""
    if method == "window":
        return filters.Window(features, window_size, blur=blur, normalization="symmetric")
    kind = filters.Exact if method == "exact" else filters.Lattice
    return kind(features, normalization="symmetric")


def _smoothness(
    method: Method, size: torch.Size, theta: Theta, unary: torch.Tensor, window_size: int, blur: int
) -> Filter:
    """The method's filter of positions, beside `unary`; a lattice from its cache."""
    thetas = checks.expect_positive("theta_smooth", theta, len(size))
    device, dtype = unary.device, unary.dtype
    if method == "lattice":
        return filters.Lattice.spatial(size, thetas, normalization="symmetric", device=device, dtype=dtype)
    return _gaussian(method, spatial(size, thetas, device=device, dtype=dtype), window_size, blur)


def _from_scores(name: str, value: Image, device: torch.device, num_classes: int | None) -> torch.Tensor:
    """Logits [C, *S] in float32 or float64."""
    scores = _tensor(name, value).to(device)
    checks.expect_tensor(name, scores, "a floating-point NumPy array or torch.Tensor")
    if not 2 <= scores.ndim <= 4 or 0 in scores.shape:
        raise ValueError(f"{name}: expected [C, H, W], or [C, *S] with features, got {checks.kind_of(value)}")
    if num_classes is not None and checks.expect_int("num_classes", num_classes, 1) != len(scores):
        raise ValueError(f"num_classes: expected {len(scores)}, as in {name} {list(scores.shape)}, got {num_classes}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    checks.expect_finite(name, scores)
    if name != "probabilities":
        return scores if name == "logits" else -scores
    low, high = (v.item() for v in torch.aminmax(scores))
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"probabilities: expected 0 to 1, got {low:.4g} to {high:.4g}; pass scores before the softmax as logits=, "
            "and costs as energies="
        )
    return scores.clamp(min=CLIP).log()


def _from_labels(value: Image, device: torch.device, num_classes: int | None, confidence: float) -> torch.Tensor:
    """log-probabilities [C, *S], float32."""
    labels = _tensor("labels", value).to(device)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels: expected integers, got {checks.kind_of(value)}; pass scores as logits=")
    if not 1 <= labels.ndim <= 3 or 0 in labels.shape:
        raise ValueError(f"labels: expected [H, W], or [*S] with features, got {checks.kind_of(value)}")
    confidence = checks.expect_number("label_confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"label_confidence: expected a probability between 0 and 1, got {confidence}")
    labels = labels.long()
    known = labels != UNKNOWN
    low, high = (int(v) for v in torch.aminmax(labels[known])) if known.any() else (0, -1)
    if num_classes is None:
        if high < 0:
            raise ValueError(f"num_classes: expected the number of classes where every label is {UNKNOWN} (unknown)")
        num_classes = max(high + 1, 2)
    num_classes = checks.expect_int("num_classes", num_classes, 2)
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels: expected 0 to {num_classes - 1}, or {UNKNOWN} where unknown, got {low} to {high}")
    classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * labels.ndim)
    right = classes == labels
    p = torch.where(right, confidence, (1 - confidence) / (num_classes - 1))
    return torch.where(known, p, 1 / num_classes).float().log()  # [C, *S]


def _image(value: Image, device: torch.device) -> torch.Tensor:
    """The image [C, H, W], uint8 or floating, on `device`."""
    wanted = "a PIL image, a NumPy array [H, W, 3] or [H, W], or a torch tensor [3, H, W] or [1, H, W]"
    if _is_pil(value):
        if value.mode.startswith(("I", "F")):
            raise TypeError(f"image: expected 8 bits a channel, got a PIL image of mode {value.mode!r}")
        value = np.asarray(value.convert("L" if value.mode in ("1", "L") else "RGB"))
    if isinstance(value, np.ndarray) and (value.ndim == 2 or value.ndim == 3 and value.shape[2] == 3):
        image = _tensor("image", np.atleast_3d(value)).permute(2, 0, 1)
    elif isinstance(value, torch.Tensor) and value.ndim == 3 and value.shape[0] in (1, 3):
        image = value
    else:
        known = isinstance(value, (np.ndarray, torch.Tensor))
        raise (ValueError if known else TypeError)(f"image: expected {wanted}, got {checks.kind_of(value)}")
    return image.to(device)


def _features(value: Array, name: str, size: torch.Size, device: torch.device) -> torch.Tensor:
    """Appearance features [1, D, *S] on `device`."""
    appearance = _tensor("features", value)
    checks.expect_tensor("features", appearance, "a floating-point NumPy array or torch.Tensor")
    if appearance.ndim != len(size) + 1 or len(appearance) == 0:
        raise ValueError(f"features: expected [D, *S] with S = {list(size)}, got {checks.kind_of(value)}")
    _expect_size("features", appearance, name, size)
    checks.expect_finite("features", appearance)
    return appearance.to(device)[None]


def _expect_size(what: str, value: torch.Tensor, name: str, size: torch.Size) -> None:
    if value.shape[1:] != size:
        raise ValueError(f"{what}: expected the size of {name}, {list(size)}, got {list(value.shape[1:])}")


def _tensor(name: str, value: Image) -> torch.Tensor:
    """`value` as a tensor; NumPy memory is shared where it can be."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if name == "labels" and _is_pil(value):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array or a torch.Tensor, got {checks.kind_of(value)}")
    native = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
    try:
        return torch.from_numpy(np.ascontiguousarray(native))
    except TypeError:
        raise TypeError(f"{name}: expected numbers of a dtype that torch knows, got {checks.kind_of(value)}") from None


def _is_pil(value: object) -> "TypeGuard[PIL.Image.Image]":
    return type(value).__module__.startswith("PIL.")


def _like(refined: torch.Tensor, name: str, value: Image) -> Array:
    """`refined` in the kind, the dtype and on the device of what it was made from."""
    if isinstance(value, torch.Tensor):
        return refined.to(value.device, refined.dtype if name == "labels" else value.dtype)
    array = refined.cpu().numpy()
    if name == "labels" or not isinstance(value, np.ndarray):
        return array
    return array.astype(value.dtype, copy=False)

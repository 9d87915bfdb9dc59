"""The CRF that a call of `refine` describes, for an image or a part of one, and the joint solution of several."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf import checks, diagnostics, filters
from tritoncrf.devices import device_found
from tritoncrf.features import bandwidths, color, evenly_spaced, over_bandwidths, positions
from tritoncrf.filters.base import Filter
from tritoncrf.images import axes_of, expect_size, image_from, shape_of
from tritoncrf.levels import Levels, levels
from tritoncrf.mean_field import NOT_FINITE, mean_field
from tritoncrf.options import ARGUMENTS, METHODS, SCORES, method_for, settings
from tritoncrf.replay import replayed
from tritoncrf.scores import as_tensor, expect_unknown, replaced, unary_from
from tritoncrf.step import softmax
from tritoncrf.types import Array, Compatibility, Costs, Image, Method

__all__ = [
    "Problem", "Whole", "chosen_for", "expect_an_image", "features", "kernels", "kernels_of", "loop", "one_kind",
    "part", "posed", "solved", "traced", "whole_of",
]  # fmt: skip

REPLAYED: tuple[Method, ...] = "window", "guided"
EVERYWHERE: tuple[Method, ...] = "lattice", "exact"  # methods with messages between all pixels


@dataclass(frozen=True)
class Whole:
    """The part of a problem that is the same for all parts of an image.

    Attributes:
        method: the method of `refine`.
        name: the kind of scores.
        size: the size of the image, S.
        chosen: every argument of `refine` with its value; bandwidths of positions and spacing have one value per axis.
        levels: the levels of the image's channels, if `value_range` is given.
    """

    method: Method
    name: str
    size: tuple[int, ...]
    chosen: Mapping[str, Any]
    levels: Levels | None


def whole_of(
    method: Method, name: str, size: Sequence[int], chosen: Mapping[str, Any], levels: Levels | None
) -> Whole:  # fmt: skip
    """The `Whole` of an image of a given size, from the arguments or their defaults."""
    spacing = 1.0 if chosen["spacing"] is None else chosen["spacing"]
    own = {**chosen, "spacing": checks.expect_positive("spacing", spacing, len(size))}
    own["iterations"] = checks.expect_int("iterations", chosen["iterations"], 0, checks.MOST_ITERATIONS)
    if method in ARGUMENTS["theta_space"].methods:
        for theta in "theta_space", "theta_smooth":
            own[theta] = bandwidths(theta, own[theta], size, own["spacing"])
    return Whole(method, name, tuple(size), own, levels)


@dataclass(frozen=True)
class Problem:
    """A CRF of an image or of a part of one, on the device where it is solved.

    Attributes:
        whole: what belongs to the whole image.
        start: where the part begins.
        photo: [M, *s], of any real dtype; None if there are only features.
        appearance: features [D, *s] instead of the photo, or None.
        unary: logits [C, *s].
        valid: bool [*s], the valid pixels; None if all are.
    """

    whole: Whole
    start: tuple[int, ...]
    photo: torch.Tensor | None
    appearance: torch.Tensor | None
    unary: torch.Tensor
    valid: torch.Tensor | None = None

    def key(self) -> Hashable:
        """Problems with the same key differ only in the values of photo and unary; None if other arguments are not
        plain values, or there are features or invalid pixels."""
        whole, plain = self.whole, all(map(_is_plain, self.whole.chosen.values()))
        if self.photo is None or self.appearance is not None or self.valid is not None or not plain:
            return None
        shapes = self.photo.shape, self.photo.dtype, self.unary.shape, self.unary.dtype
        return whole.method, whole.levels, self.start, *map(_hashable, whole.chosen.values()), *shapes


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a word, or a sequence of them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float, str))


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def one_kind(scores: Mapping[str, Any]) -> tuple[str, Any]:
    """The given kind of scores and the scores; an error unless exactly one is given."""
    kinds = {name: value for name, value in scores.items() if value is not None}
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise TypeError(f"refine: expected exactly one of {'=, '.join(SCORES)}=, got {got}")
    return next(iter(kinds.items()))


def chosen_for(scores: str, features: bool, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method and every other argument of `refine`, with defaults filled in.

    Args:
        scores: the kind of scores.
        features: whether features replace the image.
        given: arguments by name; None or missing if not given.

    Raises:
        TypeError, ValueError: an argument is unknown, or is not used with the others.
    """
    method = given.get("method")
    if method is not None:
        checks.expect_choice("method", method, METHODS)
    arguments = {name: given.get(name) for name in ARGUMENTS}
    arguments["unknown"] = expect_unknown(given.get("unknown", "auto"))
    method = method or method_for(scores, features, arguments)
    return method, settings(method, scores, features, arguments)


@torch.no_grad()
def posed(image: Image | None, scores: Mapping[str, Any], device: Any, given: Mapping[str, Any]) -> Problem:
    """The problem of an image.

    Args:
        image: an image as for `refine`.
        scores: the kinds of scores by name; None for those that are not given.
        device: the device of `refine`.
        given: the other arguments; None or missing if not given.

    Raises:
        TypeError, ValueError: as `refine`.
    """
    name, value = one_kind(scores)
    own, mask = given.get("features"), given.get("valid")
    expect_an_image(image, own)
    method, chosen = chosen_for(name, own is not None, given)
    where = value.device if device is None and isinstance(value, torch.Tensor) else device_found(device)
    ranged = chosen["value_range"] is not None

    with checks.check_values(True):
        photo = appearance = valid = None
        axes = axes_of(name, value, image)
        if image is not None:
            shape = shape_of(value)
            size = shape[-axes:] if len(shape) >= axes else None
            photo, turned = image_from(image, where, axes, size, ranged or own is not None)
        if mask is not None:
            valid = valid_from(mask, where, shape_of(value)[-axes:])
            value = replaced(name, value, valid)
        unary = unary_from(name, value, None if photo is None else photo.shape[1:], where, chosen)
        size = unary.shape[1:]
        if photo is not None:
            expect_size("image", photo, name, size, turned)
            photo = cleared(photo, valid)
        if own is not None:
            appearance = features_from(own, name, size, where).to(unary.dtype)
        found = None
        if photo is not None and ranged:
            parts = [(photo, valid)]
            found = levels(chosen["value_range"], photo.dtype, len(photo), lambda: parts)
        whole = whole_of(method, name, size, chosen, found)
        return Problem(whole, (0,) * len(size), photo, appearance, unary, valid)


def expect_an_image(image: Any, features: Any) -> None:
    """Raise an error if there is neither an image nor features."""
    if image is None and features is None:
        raise TypeError("image: expected a PIL image, a NumPy array or a torch tensor (or pass features=), got None")


@torch.no_grad()
def part(
    whole: Whole, start: Sequence[int], image: Array | None, scores: Array, features: Array | None, valid: Array | None,
    device: torch.device,
) -> Problem:  # fmt: skip
    """The problem of a part of an image, from slices of the arguments of `refine`.

    Args:
        whole: what belongs to the whole image.
        start: where the part begins.
        image, scores, features, valid: slices, or None.
        device: the device to compute on.

    Raises:
        TypeError, ValueError: as `refine`, for the values of the slices.
    """
    axes, chosen, name = len(whole.size), whole.chosen, whole.name
    with checks.check_values(True):
        mask = None if valid is None else valid_from(valid, device, tuple(scores.shape)[-axes:])
        known: Image = scores if mask is None else replaced(name, scores, mask)
        unary = unary_from(name, known, tuple(scores.shape)[-axes:], device, chosen)
        size, photo, appearance = unary.shape[1:], None, None
        if features is not None:
            appearance = features_from(features, name, size, device).to(unary.dtype)
        elif image is not None:
            photo, _ = image_from(image, device, axes, size, chosen["value_range"] is not None)
            expect_size("image", photo, name, size)
            photo = cleared(photo, mask)
    return Problem(whole, tuple(start), photo, appearance, unary, mask)


def features(problem: Problem) -> list[torch.Tensor]:
    """The features of the filters, [1, D, *s], in the order of their weights in `loop`: the guide; or positions over
    theta_smooth, and positions and colours over their bandwidths. Features of a part are slices of those of the
    whole."""
    whole, start, unary = problem.whole, problem.start, problem.unary[None]
    look = _appearance(whole, start, _batch(problem.photo), _batch(problem.appearance), unary)
    return [look] if whole.method == "guided" else [_positions(whole, start, unary), look]


def _batch(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x[None]


def _positions(whole: Whole, start: Sequence[int], unary: torch.Tensor) -> torch.Tensor:
    """Positions over theta_smooth, for a unary [B, C, *s]."""
    theta, spacing = whole.chosen["theta_smooth"], whole.chosen["spacing"]
    return evenly_spaced(
        positions(unary.shape[2:], theta, spacing, device=unary.device, dtype=unary.dtype, start=start)
    )


def _appearance(
    whole: Whole, start: Sequence[int], photo: torch.Tensor | None, appearance: torch.Tensor | None, unary: torch.Tensor
) -> torch.Tensor:
    """The guide, or the features of the appearance kernel, [B, D, *s], from photos [B, M, *s] or from given
    features."""
    if appearance is not None:
        return appearance
    assert photo is not None
    if whole.method == "guided":
        return _colors(photo, whole.levels, 1.0).to(unary.dtype)
    chosen, colors = whole.chosen, _colors(photo, whole.levels, whole.chosen["theta_color"])
    own = positions(
        photo.shape[2:], chosen["theta_space"], chosen["spacing"], device=colors.device, dtype=colors.dtype, start=start
    )
    return torch.cat([own.expand(len(photo), *own.shape[1:]), colors], 1).to(unary.dtype)


def _colors(photo: torch.Tensor, levels: Levels | None, theta: Any) -> torch.Tensor:
    """The channels over their bandwidths, in 0..255 units."""
    if levels is None:
        return color(photo, theta)
    form = torch.float64 if photo.dtype == torch.float64 else torch.float32
    channels = zip(photo.unbind(1), levels)
    found = torch.stack([((v.double() - low) * (255 / (high - low))).to(form) for v, (low, high) in channels], 1)
    checks.expect_finite("image", found)
    return over_bandwidths(found, theta)


@torch.no_grad()
def solved(problems: Sequence[Problem]) -> torch.Tensor:
    """Q, [B, C, *s], of problems with the same key, or of a single one. It is replayed as a CUDA graph unless values
    are read on the way: those of floating-point photos, and of features that determine sizes, as for a lattice."""
    first = problems[0]
    whole, start = first.whole, first.start
    with checks.check_values(True):
        if first.valid is not None:
            return _placed(first, mean_field(*_for_loop(first), **_loop_of(first)) if first.valid.any() else None)
        photo = None if first.photo is None else _stacked([p.photo for p in problems if p.photo is not None])
        unary, appearance = _stacked([p.unary for p in problems]), _batch(first.appearance)

        def solve(photo: torch.Tensor | None, unary: torch.Tensor) -> torch.Tensor:
            return mean_field(unary, kernels(whole, start, photo, appearance, unary), **_loop_of(first))

        key = first.key()
        if whole.method not in REPLAYED or key is None or photo is None or photo.dtype != torch.uint8:
            return solve(photo, unary)
        q = replayed((key, len(problems)), solve, photo, unary)
        if q.is_cuda and not checks.all_finite(q):  # a replayed loop has not checked any values
            raise ValueError(NOT_FINITE)
        return q


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack to [B, ...], without a copy for a single one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


@torch.no_grad()
def traced(problem: Problem) -> tuple[torch.Tensor, list[diagnostics.Record]]:
    """Q, [C, *s], and the records of the loop, for the valid pixels."""
    with checks.check_values(True):
        if problem.valid is not None and not problem.valid.any():
            raise ValueError("return_trace: expected at least one valid pixel, got none")
        q, records = diagnostics.trace(*_for_loop(problem), **_loop_of(problem))
        return _placed(problem, q)[0], records


def _for_loop(problem: Problem) -> tuple[torch.Tensor, list[Filter]]:
    """A unary [1, C, *s] and its filters; or only the valid pixels, [1, C, N], if only distances matter."""
    unary, valid = problem.unary[None], problem.valid
    if valid is not None and problem.whole.method in EVERYWHERE:
        unary = unary[..., valid]
    return unary, kernels_of(problem)


def _placed(problem: Problem, q: torch.Tensor | None) -> torch.Tensor:
    """Q from `_for_loop`, or None for no pixels, as [1, C, *s]; invalid pixels keep their scores."""
    if problem.valid is None and q is not None:
        return q
    found = softmax(problem.unary[None])
    if q is not None:
        found[..., problem.valid] = q if problem.whole.method in EVERYWHERE else q[..., problem.valid]
    return found


def _loop_of(problem: Problem) -> dict[str, Any]:
    return loop(problem.whole.method, problem.whole.chosen, problem.unary)


def loop(method: Method, chosen: Mapping[str, Any], unary: torch.Tensor) -> dict[str, Any]:
    """The other arguments of `mean_field` for a unary."""
    names = ("weight_appearance",) if method == "guided" else ("weight_smooth", "weight_appearance")
    return {
        "weights": [checks.expect_number(name, chosen[name]) for name in names],
        "compatibility": _costs(chosen["compatibility"], unary),
        "iterations": chosen["iterations"],
        "damping": chosen["damping"],
        "temperature": checks.expect_number("temperature", chosen["temperature"], positive=True),
    }


def _costs(value: Costs, unary: torch.Tensor) -> Compatibility:
    """A compatibility on the device of the unary; `mean_field` checks its shape."""
    if isinstance(value, str):
        checks.expect_choice("compatibility", value, ("potts",))
        return "potts"
    try:
        array = value if isinstance(value, torch.Tensor) else np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"compatibility: expected 'potts' or [C, C] numbers, got {checks.kind_of(value)}") from None
    return as_tensor("compatibility", array).to(unary.device, unary.dtype)


def kernels_of(problem: Problem) -> list[Filter]:
    """The filters of a single problem."""
    photo, appearance = _batch(problem.photo), _batch(problem.appearance)
    return kernels(problem.whole, problem.start, photo, appearance, problem.unary[None], problem.valid)


def kernels(
    whole: Whole, start: Sequence[int], photo: torch.Tensor | None, appearance: torch.Tensor | None,
    unary: torch.Tensor, valid: torch.Tensor | None = None,
) -> list[Filter]:  # fmt: skip
    """The method's filters for photos [B, M, *s], or for features [B, D, *s] instead, and a unary [B, C, *s];
    bandwidths may be tensors. Only between the pixels of `valid`, [*s], if given."""
    chosen, look = whole.chosen, _appearance(whole, start, photo, appearance, unary)
    if whole.method == "guided":
        with checks.renamed("guide", "features" if appearance is not None else "image"):
            return [filters.Guided(look, chosen["radius"], chosen["eps"], valid=_batch(valid))]
    with checks.renamed("features", "theta_smooth"):
        if whole.method == "lattice" and valid is None and tuple(unary.shape[2:]) == whole.size:  # from its cache
            theta, spacing = chosen["theta_smooth"], chosen["spacing"]
            smoothness: Filter = filters.Lattice.spatial(
                whole.size, theta, spacing, normalization="symmetric", device=unary.device, dtype=unary.dtype
            )
        else:
            smoothness = _gaussian(whole, _positions(whole, start, unary), valid)
    with checks.renamed("features", "features" if appearance is not None else "theta_space, theta_color"):
        return [smoothness, _gaussian(whole, look, valid)]


def _gaussian(whole: Whole, made_of: torch.Tensor, valid: torch.Tensor | None) -> Filter:
    """The method's filter for features."""
    if whole.method == "window":
        size, blur = whole.chosen["window_size"], whole.chosen["blur"]
        return filters.Window(made_of, size, blur=blur, normalization="symmetric", valid=_batch(valid))
    kind = filters.Exact if whole.method == "exact" else filters.Lattice
    return kind(made_of if valid is None else made_of[..., valid], normalization="symmetric")


def valid_from(value: Array, device: torch.device, size: Sequence[int]) -> torch.Tensor:
    """The valid pixels, bool [*S] on `device`."""
    valid = as_tensor("valid", value)
    if valid.is_floating_point() or valid.is_complex():
        raise TypeError(f"valid: expected bool, or integers where 0 means not valid, got {checks.kind_of(value)}")
    if tuple(valid.shape) != tuple(size):
        raise ValueError(f"valid: expected the size of the scores, {list(size)}, got {checks.kind_of(value)}")
    return valid.to(device) != 0


def cleared(photo: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """A photo with 0 in place of NaN and infinity at invalid pixels."""
    if valid is None or not photo.is_floating_point():
        return photo
    return torch.where(valid | photo.isfinite(), photo, 0)


def features_from(value: Array, name: str, size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Appearance features [D, *S] on `device`."""
    appearance = as_tensor("features", value)
    checks.expect_tensor("features", appearance, "a floating-point NumPy array or torch.Tensor")
    if appearance.ndim != len(size) + 1 or len(appearance) == 0:
        raise ValueError(f"features: expected [D, *S] with S = {list(size)}, got {checks.kind_of(value)}")
    expect_size("features", appearance, name, size)
    checks.expect_finite("features", appearance)
    return appearance.to(device)

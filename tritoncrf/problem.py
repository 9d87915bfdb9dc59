"""The CRF that a call of `refine` describes, and those of several images solved together."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf import checks, diagnostics, filters
from tritoncrf.devices import device_found
from tritoncrf.features import bandwidths, bilateral, color, evenly_spaced, spatial
from tritoncrf.filters.base import Filter
from tritoncrf.mean_field import NOT_FINITE, mean_field
from tritoncrf.options import ARGUMENTS, METHODS, SCORES, method_for, settings
from tritoncrf.replay import replayed
from tritoncrf.scores import as_tensor, expect_unknown, is_pil, unary_from, upright
from tritoncrf.types import Array, Compatibility, Costs, Image, Method, Theta

__all__ = ["Problem", "chosen_for", "kernels", "loop", "photo_from", "posed", "solved", "traced"]

REPLAYED: tuple[Method, ...] = "window", "guided"


@dataclass(frozen=True)
class Problem:
    """An image's CRF, on the device where it is solved.

    Attributes:
        method: that of `refine`.
        photo: [C, H, W], uint8 or floating; None where there are features alone.
        appearance: features [D, *S] in the photo's place, or None.
        unary: logits [C, *S].
        chosen: every argument of `refine` with its value.
        name: the kind of scores.
    """

    method: Method
    photo: torch.Tensor | None
    appearance: torch.Tensor | None
    unary: torch.Tensor
    chosen: Mapping[str, Any]
    name: str

    def key(self) -> Hashable:
        """Problems of one key differ in the values of photo and unary alone; None where the others are no plain
        values, or there are features."""
        fixed = [tuple(value) if isinstance(value, (list, tuple)) else (value,) for value in self.chosen.values()]
        plain = all(v is None or isinstance(v, (int, float, str)) for values in fixed for v in values)
        if self.photo is None or self.appearance is not None or not plain:
            return None
        return self.method, *fixed, self.photo.shape, self.photo.dtype, self.unary.shape, self.unary.dtype


def chosen_for(scores: str, features: bool, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method and every other argument of `refine`, as they are given or by default.

    Args:
        scores: the kind of scores.
        features: whether they take the place of the image.
        given: arguments by name; None, or left out, where they are not given.

    Raises:
        TypeError, ValueError: one that is not known, or plays no part beside the others.
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
        image: as `refine` takes it.
        scores: one of the kinds of scores by name; None for those that are not given.
        device: of `refine`.
        given: its other arguments; None, or left out, where they are not given.

    Raises:
        TypeError, ValueError: as `refine`.
    """
    features = given.get("features")
    kinds = {name: value for name, value in scores.items() if value is not None}
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise TypeError(f"refine: expected exactly one of {'=, '.join(SCORES)}=, got {got}")
    if image is None and features is None:
        raise TypeError("image: expected a PIL image, a NumPy array or a torch tensor (or pass features=), got None")
    [(name, value)] = kinds.items()
    method, chosen = chosen_for(name, features is not None, given)
    where = value.device if device is None and isinstance(value, torch.Tensor) else device_found(device)

    with checks.check_values(True):
        photo = appearance = None
        if image is not None:
            photo, turned = photo_from(image, where)
        unary = unary_from(name, value, None if photo is None else photo.shape[1:], where, chosen)
        size = unary.shape[1:]
        if photo is not None:
            _expect_size("image", photo, name, size, turned)
        if features is not None:
            appearance = _features(features, name, size, where).to(unary.dtype)
    return Problem(method, photo, appearance, unary, chosen, name)


@torch.no_grad()
def solved(problems: Sequence[Problem]) -> torch.Tensor:
    """Q, [B, C, *S], of problems of one key, or of a single one; replayed unless values are looked at on the way:
    those of photos of floats, and of features where what is made of them is as large as they say, such as a lattice."""
    first = problems[0]
    photo = None if first.photo is None else _stacked([p.photo for p in problems if p.photo is not None])
    appearance = None if first.appearance is None else first.appearance[None]
    unary = _stacked([p.unary for p in problems])

    def solve(photo: torch.Tensor | None, unary: torch.Tensor) -> torch.Tensor:
        own = kernels(first.method, photo, appearance, unary, first.chosen)
        return mean_field(unary, own, **loop(first.method, first.chosen, unary))

    with checks.check_values(True):
        key = first.key()
        if first.method not in REPLAYED or key is None or photo is None or photo.dtype != torch.uint8:
            return solve(photo, unary)
        q = replayed((key, len(problems)), solve, photo, unary)
        if q.is_cuda and not checks.all_finite(q):  # replayed, the loop has looked at nothing
            raise ValueError(NOT_FINITE)
        return q


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """[B, ...]; one without a copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


@torch.no_grad()
def traced(problem: Problem) -> tuple[torch.Tensor, list[diagnostics.Record]]:
    """Q, [C, *S], and how the loop went."""
    unary, appearance = problem.unary[None], problem.appearance
    photo = None if problem.photo is None else problem.photo[None]
    with checks.check_values(True):
        own = kernels(problem.method, photo, None if appearance is None else appearance[None], unary, problem.chosen)
        q, records = diagnostics.trace(unary, own, **loop(problem.method, problem.chosen, unary))
    return q[0], records


def loop(method: Method, chosen: Mapping[str, Any], unary: torch.Tensor) -> dict[str, Any]:
    """What else `mean_field` takes."""
    names = ("weight_appearance",) if method == "guided" else ("weight_smooth", "weight_appearance")
    return {
        "weights": [checks.expect_number(name, chosen[name]) for name in names],
        "compatibility": _costs(chosen["compatibility"], unary),
        "iterations": chosen["iterations"],
        "damping": chosen["damping"],
        "temperature": checks.expect_number("temperature", chosen["temperature"], positive=True),
    }


def _costs(value: Costs, unary: torch.Tensor) -> Compatibility:
    """A compatibility beside the unary; its shape `mean_field` looks at."""
    if isinstance(value, str):
        checks.expect_choice("compatibility", value, ("potts",))
        return "potts"
    try:
        array = value if isinstance(value, torch.Tensor) else np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"compatibility: expected 'potts' or [C, C] numbers, got {checks.kind_of(value)}") from None
    return as_tensor("compatibility", array).to(unary.device, unary.dtype)


def kernels(
    method: Method, photo: torch.Tensor | None, appearance: torch.Tensor | None, unary: torch.Tensor,
    chosen: Mapping[str, Any],
) -> list[Filter]:  # fmt: skip
    """The method's filters of features [B, D, *S], or else of photos [B, C, H, W], beside a unary [B, C, *S];
    bandwidths may be tensors."""
    made_of = "features"
    if appearance is None:
        assert photo is not None
        if method == "guided":
            appearance = color(photo, 1.0)
        else:
            made_of = "theta_space, theta_color"
            appearance = bilateral(photo, chosen["theta_space"], chosen["theta_color"])
        appearance = appearance.to(unary.dtype)
    if method == "guided":
        with checks.renamed("guide", "features"):
            return [filters.Guided(appearance, chosen["radius"], chosen["eps"])]
    window_size, blur = chosen["window_size"], chosen["blur"]
    with checks.renamed("features", "theta_smooth"):
        smoothness = _smoothness(method, unary.shape[2:], chosen["theta_smooth"], unary, window_size, blur)
    with checks.renamed("features", made_of):
        return [smoothness, _gaussian(method, appearance, window_size, blur)]


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
    thetas = bandwidths("theta_smooth", theta, size)
    device, dtype = unary.device, unary.dtype
    if method == "lattice":
        return filters.Lattice.spatial(size, thetas, normalization="symmetric", device=device, dtype=dtype)
    positions = evenly_spaced(spatial(size, thetas, device=device, dtype=dtype))
    return _gaussian(method, positions, window_size, blur)


def photo_from(value: Image, device: torch.device) -> tuple[torch.Tensor, str]:
    """The image [C, H, W], uint8 or floating, on `device`; and how it was turned, for an error about its size."""
    wanted = "a PIL image, a NumPy array [H, W, 3] or [H, W], or a torch tensor [3, H, W] or [1, H, W]"
    turned = ""
    if is_pil(value):
        if value.mode.startswith(("I", "F")):
            raise TypeError(f"image: expected 8 bits a channel, got a PIL image of mode {value.mode!r}")
        picture = upright(value)
        if picture.size != value.size:
            turned = "; its EXIF orientation turned it, np.asarray(image) is as stored"
        value = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    if isinstance(value, np.ndarray) and (value.ndim == 2 or value.ndim == 3 and value.shape[2] in (1, 3)):
        image = as_tensor("image", np.atleast_3d(value)).permute(2, 0, 1)
    elif isinstance(value, torch.Tensor) and as_tensor("image", value).ndim == 3 and value.shape[0] in (1, 3):
        image = as_tensor("image", value)
    else:
        if isinstance(value, (np.ndarray, torch.Tensor)):
            raise ValueError(f"image: expected {wanted}, got {checks.kind_of(value)}{_image_hint(value)}")
        raise TypeError(f"image: expected {wanted}, got {checks.kind_of(value)}")
    if image.dtype != torch.uint8 and image.dtype not in checks.FLOATS:
        most = "image / 65535" if "uint16" in str(image.dtype) else "bytes, image.astype(np.uint8), if it is 0..255"
        raise TypeError(f"image: expected uint8, or floats from 0 to 1, got {checks.kind_of(value)}; pass {most}")
    return image.to(device), turned


def _image_hint(value: Array) -> str:
    """What to do about an image of other axes, where a guess is safe."""
    shape, tensor = tuple(value.shape), isinstance(value, torch.Tensor)
    if len(shape) == 4 and shape[0] == 1:
        return "; remove the batch axis: image[0]"
    if len(shape) == 2:
        return "; add the channel's axis: image[None]"
    if len(shape) == 3 and tensor and shape[2] in (1, 3):
        return "; channels come first in tensors: image.permute(2, 0, 1)"
    if len(shape) == 3 and not tensor and shape[0] in (1, 3):
        return "; channels come last in arrays: image.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[0 if tensor else 2] == 4:
        return f"; leave out the fourth channel: {'image[:3]' if tensor else 'image[..., :3]'}"
    return "; volumes and other channels go in as features=, divided by their bandwidths"


def _features(value: Array, name: str, size: torch.Size, device: torch.device) -> torch.Tensor:
    """Appearance features [D, *S] on `device`."""
    appearance = as_tensor("features", value)
    checks.expect_tensor("features", appearance, "a floating-point NumPy array or torch.Tensor")
    if appearance.ndim != len(size) + 1 or len(appearance) == 0:
        raise ValueError(f"features: expected [D, *S] with S = {list(size)}, got {checks.kind_of(value)}")
    _expect_size("features", appearance, name, size)
    checks.expect_finite("features", appearance)
    return appearance.to(device)


def _expect_size(what: str, value: torch.Tensor, name: str, size: torch.Size, hint: str = "") -> None:
    if value.shape[1:] != size:
        raise ValueError(f"{what}: expected the size of {name}, {list(size)}, got {list(value.shape[1:])}{hint}")

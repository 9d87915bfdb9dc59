"""The six kinds of scores that `refine` takes: each is converted to logits, and results are returned in the form of the
input."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F

from tritoncrf import checks
from tritoncrf.options import BINARY, SCORES, UNKNOWN
from tritoncrf.types import Array, Image

if TYPE_CHECKING:
    import PIL.Image

CLIP = 1e-5
MOST_INFERRED = 200  # classes of labels without num_classes; more are probably grey levels, instances or colours
AXES = {1: "W", 2: "H, W", 3: "D, H, W"}
COUNTED = 1 << 16  # distinct labels below this are found by counting
GREY = 8  # the largest difference between the channels of a grey picture after JPEG's rounding
MAPS = {  # hints for maps that are not [*S]
    "labels": "; a palette's indices are labels, its colours are not",
    "mask": "; pass one mask, mask[0]",
    "foreground": "; pass probabilities of several classes as probabilities=",
}
TENSOR = "a floating-point NumPy array or torch.Tensor"


def unary_from(
    name: str, value: Image, size: Sequence[int] | None, device: torch.device, chosen: Mapping[str, Any]
) -> torch.Tensor:
    """Logits [C, *S] in float32 or float64.

    Args:
        name: the kind of scores.
        value: the scores.
        size: the size of the image; None if there are features instead.
        device: the device of the logits.
        chosen: the arguments of `refine`.
    """
    if name == "labels":
        return _from_labels(value, size, device, chosen)
    if name == "mask":
        c, v = expect_confidence(chosen["label_confidence"]), mask_values(name, value, size, device).double()
        return _binary(c * v + (1 - c) * (1 - v)).float()
    if name == "foreground":
        return _binary(_foreground(value, size, device).clamp(CLIP, 1 - CLIP))
    return _from_scores(name, value, size, device, chosen["num_classes"])


def replaced(name: str, value: Image, valid: torch.Tensor) -> Image:
    """The scores with equal values for all classes in place of NaN and infinity at invalid pixels."""
    if is_pil(value):
        return value
    scores = as_tensor(name, value).to(valid.device)
    if not scores.is_floating_point() or scores.shape[-valid.ndim :] != valid.shape:
        return value
    if name in ("logits", "energies"):
        ruled_out = scores == (-torch.inf if name == "logits" else torch.inf)
        none = ~scores.isfinite() & (~ruled_out | ruled_out.all(0))
    else:
        none = ~((scores >= 0) & (scores <= 1))
    if name in SCORES[:3]:
        none = none.any(0)
    alike = 1 / len(scores) if name == "probabilities" else 0.5 if name in BINARY else 0.0
    return torch.where(none & ~valid, alike, scores)


def like(refined: torch.Tensor, name: str, value: Image) -> Array:
    """Probabilities [C, *S] in the type and dtype and on the device of the input; for one object the foreground's
    [*S]."""
    if name in BINARY:
        refined = refined[1].float()
    scores = name not in (*BINARY, "labels")
    if isinstance(value, torch.Tensor):
        return refined.to(value.device, value.dtype if scores else refined.dtype)
    array = refined.cpu().numpy()
    return array.astype(value.dtype, copy=False) if scores and isinstance(value, np.ndarray) else array


def _from_scores(
    name: str, value: Image, size: Sequence[int] | None, device: torch.device, num_classes: int | None
) -> torch.Tensor:
    scores = as_tensor(name, value).to(device)
    checks.expect_tensor(name, scores, TENSOR)
    _expect_classes(name, value, size, num_classes)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if name != "probabilities":
        sign = 1 if name == "logits" else -1
        checks.expect_logits(name, scores, axis=0, sign=sign)
        return sign * scores
    checks.expect_probabilities(name, scores, "pass scores before the softmax as logits=, and costs as energies=")
    return scores.clamp(min=CLIP).log_()


def expect_axes(name: str, value: Any, size: Sequence[int] | None, num_classes: int | None) -> None:
    """Raise an error unless scores with a known shape have the axes of `unary_from`."""
    if name in SCORES[:3]:
        _expect_classes(name, value, size, num_classes)
    else:
        _expect_map(name, value, value, size, MAPS[name])


def _expect_classes(name: str, value: Any, size: Sequence[int] | None, num_classes: int | None) -> None:
    """Raise a ValueError unless `value` is [C, *S] with C at least 2 and equal to num_classes."""
    shape = tuple(value.shape)
    if size is None:
        axes, fits = "[C, *S]", 2 <= len(shape) <= 4
    else:  # the image shows whether classes are last
        axes = f"[C, {AXES[len(size)]}]"
        fits = len(shape) == len(size) + 1 and not shape[1:] != tuple(size) == shape[:-1]
    if not fits or 0 in shape:
        raise ValueError(f"{name}: expected {axes}, got {checks.kind_of(value)}{_axes_hint(name, shape, size)}")
    if num_classes is not None and checks.expect_int("num_classes", num_classes, 1) != shape[0]:
        raise ValueError(f"num_classes: expected {shape[0]}, as in {name} {list(shape)}, got {num_classes}")
    if shape[0] == 1:
        one = {"probabilities": "p[0]", "logits": "torch.sigmoid(z[0])", "energies": "torch.sigmoid(-e[0])"}[name]
        batch = f"remove the batch axis, {name[0]}[0]; or " if len(shape) == 4 else ""
        raise ValueError(
            f"{name}: expected at least 2 classes, got shape {list(shape)}; {batch}pass one object's probability as "
            f"foreground={one}"
        )


def _axes_hint(name: str, shape: Sequence[int], size: Sequence[int] | None) -> str:
    """A hint for scores that are not [C, *S], if a guess is safe."""
    shape, x = tuple(shape), name[0]
    if size is None or len(shape) not in (2, 3, 4):
        return f"; remove the batch axis: {x}[0]" if len(shape) > 1 and shape[0] == 1 else ""
    if shape == tuple(size):
        given = {"probabilities": "p", "logits": "torch.sigmoid(z)"}.get(name, "torch.sigmoid(-e)")
        return f"; pass one object's probability as foreground={given}"
    if len(shape) == 4 and shape[0] == 1:
        return f"; remove the batch axis: {x}[0]"
    if len(shape) == 4:
        return "; pass one image per call, and volumes with scores of the same size"
    if shape[:-1] == tuple(size):
        order = ", ".join(map(str, (len(size), *range(len(size)))))
        return f"; classes come first: {x}.permute({order}) of a tensor, {x}.transpose({order}) of an array"
    return ""


def _from_labels(
    value: Image, size: Sequence[int] | None, device: torch.device, chosen: Mapping[str, Any]
) -> torch.Tensor:
    """log-probabilities [C, *S], float32."""
    labels = _integers("labels", value).to(device)
    _expect_map("labels", labels, value, size, MAPS["labels"])
    confidence = expect_confidence(chosen["label_confidence"])
    values = distinct("labels", labels)
    num_classes, marks = classes_of(values, chosen), _marks(chosen)
    labels = labels.long()
    known = ~torch.isin(labels, torch.tensor(marks, dtype=torch.long, device=device))
    classes = torch.arange(num_classes, device=labels.device).view(-1, *[1] * labels.ndim)
    p = torch.where(classes == labels, confidence, (1 - confidence) / (num_classes - 1))
    return torch.where(known, p, 1 / num_classes).float().log()  # [C, *S]


def _integers(name: str, value: Image) -> torch.Tensor:
    found = as_tensor(name, value)
    if found.is_floating_point() or found.is_complex():
        raise TypeError(
            f"{name}: expected integers, got {checks.kind_of(value)}; pass {name}.astype(int), or logits= for scores"
        )
    return found


def settled(name: str, parts: Iterable[Array], chosen: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What all values of scores that are read in parts determine: the arguments of `refine` with the number of classes
    of labels, and the divisor for the integers of a mask.

    Raises:
        ValueError: as `unary_from`, for values that are not labels or not a mask.
    """
    found = torch.zeros(0, dtype=torch.long)
    for part in parts:
        found = torch.cat([found, distinct(name, _integers(name, part))]).unique()
    if name == "labels":
        return {**chosen, "num_classes": classes_of(found, chosen)}, 1
    return dict(chosen), mask_unit(name, found)


def distinct(name: str, values: torch.Tensor) -> torch.Tensor:
    """The distinct values of integers, int64, sorted, on the CPU."""
    if values.dtype == torch.uint64 and (values.view(torch.int64) < 0).any():
        raise ValueError(f"{name}: expected integers below 2**63, got larger ones in {checks.kind_of(values)}")
    values = values.long().flatten()
    low, high = (int(v) for v in torch.aminmax(values))
    few = low >= 0 and high < COUNTED  # counting is much quicker than sorting
    return (torch.bincount(values).nonzero().flatten() if few else values.unique()).cpu()


def _marks(chosen: Mapping[str, Any]) -> list[int]:
    """The labels that mark unknown pixels."""
    unknown = chosen["unknown"]
    return [UNKNOWN] if unknown == "auto" else list(unknown)


def classes_of(values: torch.Tensor, chosen: Mapping[str, Any]) -> int:
    """The number of classes of labels with these distinct values, or an error if they are not labels."""
    marks, default, asked = _marks(chosen), chosen["unknown"] == "auto", chosen["num_classes"]
    known = values[~torch.isin(values, torch.tensor(marks, dtype=torch.long))]
    low, high = (int(known[0]), int(known[-1])) if len(known) else (0, -1)
    all_known = len(known) == len(values)
    words = f", or {' or '.join(map(str, marks))} where unknown" if marks else ""
    if low < 0:
        hint = f"; pass unknown={low} if it marks unknown pixels"
        raise ValueError(f"labels: expected 0 or more{words}, got {low} to {high}{hint}")
    if asked is None:
        if high < 0:
            raise ValueError("num_classes: expected the number of classes if every label is unknown, got none")
        if default and not all_known and low == high:
            raise ValueError(
                f"labels: expected classes{words}, got only {low} and {UNKNOWN}; pass a mask of one object as "
                f"mask=, or labels with num_classes= or unknown={UNKNOWN}"
            )
        if high >= MOST_INFERRED:
            raise ValueError(
                f"labels: expected 0 to {MOST_INFERRED - 1}{words}, got {low} to {high}, {len(values)} of them "
                "distinct; pass num_classes= if they are classes, unknown= if one marks unknown pixels, mask= "
                "for grey levels, or np.unique(labels, return_inverse=True)[1] to number them"
            )
        asked = max(high + 1, 2)
    num_classes = checks.expect_num_classes("num_classes", asked)
    if high >= num_classes:
        raise ValueError(f"labels: expected 0 to {num_classes - 1}{words}, got {low} to {high}")
    if default and num_classes > UNKNOWN and not all_known:
        raise ValueError(
            f"unknown: expected {UNKNOWN} or None, since num_classes={num_classes} makes {UNKNOWN} a class, got none"
        )
    return num_classes


def expect_unknown(value: object) -> tuple[int, ...] | None:
    """The argument `unknown` of refine as a tuple of labels; None in `options` if it is not given."""
    if isinstance(value, str):
        checks.expect_choice("unknown", value, ("auto",))
        return None
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(checks.expect_int("unknown", v, -(1 << 63), (1 << 63) - 1) for v in value)
    return (checks.expect_int("unknown", value, -(1 << 63), (1 << 63) - 1),)


def expect_confidence(value: Any) -> float:
    """A probability that a label is right."""
    confidence = checks.expect_number("label_confidence", value)
    if not checks.LEAST <= confidence < 1:
        raise ValueError(f"label_confidence: expected a probability between 0 and 1, got {confidence}")
    return confidence


def mask_values(
    name: str, value: Image, size: Sequence[int] | None, device: torch.device | None = None
) -> torch.Tensor:
    """A mask as float32 [*S] from 0 to 1: it may be bool, integers 0 and 1 or up to 255, or floats from 0 to 1; a grey
    picture may have several equal channels."""
    found = as_tensor(name, value).to(device)
    if found.is_complex():
        raise TypeError(f"{name}: expected bool, integers or floats, got {checks.kind_of(value)}")
    if size is not None and len(size) == 2 and found.ndim == 3:
        found = grey(name, found, value)
    _expect_map(name, found, value, size, MAPS["mask"] if found.ndim > 2 else "")
    if found.is_floating_point():
        checks.expect_tensor(name, found, TENSOR)
        v = found.float()
        checks.expect_probabilities(name, v, f"pass {name} / 255, or integers")
        return v.clamp(0, 1)
    return found.float() / mask_unit(name, distinct(name, found))


def mask_unit(name: str, values: torch.Tensor) -> int:
    """The value of the object in a mask of integers with these distinct values: 1 or 255, or an error."""
    low, high = int(values[0]), int(values[-1])
    others = values[(values > 0) & (values < high)]
    are_labels = high > 1 and (bool((others == 1).all()) if len(others) else high < 250)
    if low < 0 or high > 255 or 1 < high < 128 or are_labels:  # labels: an object 1 with a border 255, or an object 200
        hint = "pass labels as labels= with unknown=; " if high <= 255 else ""
        raise ValueError(
            f"{name}: expected 0 and 1, or grey levels of which some exceed 127, got {low} to {high}; {hint}pass "
            "weak masks as floats from 0 to 1"
        )
    return 255 if high > 1 else 1


def grey(name: str, mask: torch.Tensor, value: Image) -> torch.Tensor:
    """The channel of a mask with several equal ones, such as a picture [H, W, 3]."""
    channels = mask if isinstance(value, torch.Tensor) else mask.movedim(-1, 0)
    if len(channels) not in (1, 2, 3, 4) or not channels.numel():
        return mask
    if len(channels) in (2, 4):
        if (channels[-1] != channels[-1].flatten()[0]).any():
            raise ValueError(f"{name}: expected no transparency, got a varying one; pass that channel as the {name}")
        channels = channels[:-1]
    channels = channels.double() * (255 if channels.is_floating_point() else 1)
    spread = (channels.amax(0) - channels.amin(0)).max()
    if spread > (GREY if channels.amax() > 1 else 0):
        raise ValueError(f"{name}: expected one channel, or a grey picture, got colours in {checks.kind_of(value)}")
    return mask[0] if isinstance(value, torch.Tensor) else mask[..., 0]


def _foreground(value: Image, size: Sequence[int] | None, device: torch.device) -> torch.Tensor:
    """The foreground's probability [*S], in float32 or float64."""
    p = as_tensor("foreground", value).to(device)
    checks.expect_tensor("foreground", p, TENSOR)
    _expect_map("foreground", p, value, size, MAPS["foreground"])
    p = p.to(torch.promote_types(p.dtype, torch.float32))
    checks.expect_probabilities("foreground", p, "pass a network's output after the sigmoid")
    return p


def _binary(p: torch.Tensor) -> torch.Tensor:
    """Logits [2, *S] of background and foreground."""
    return torch.stack([1 - p, p]).log()


def _expect_map(name: str, found: Any, value: Any, size: Sequence[int] | None, hint: str) -> None:
    """Raise a ValueError unless `found`, made from `value`, is [H, W], or [*S] with features."""
    axes, fits = ("[*S]", 1 <= len(found.shape) <= 3)
    if size is not None:
        axes, fits = f"[{AXES[len(size)]}]", len(found.shape) == len(size)
    if fits and 0 not in found.shape:
        return
    if len(found.shape) == 3 and size is not None and len(size) == 2 and (found.shape[0] == 1 or found.shape[-1] == 1):
        hint = f"; remove the axis of 1: {name}.squeeze()"
    raise ValueError(f"{name}: expected {axes}, got {checks.kind_of(value)}{hint}")


def labels_of(kind: str, scores: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """The input labels: the best class of scores, -1 where a label is unknown."""
    if kind in BINARY:
        return (scores > 0.5) * 1
    if kind == "labels":
        marks = settings.get("unknown", "auto")
        return np.where(np.isin(scores, UNKNOWN if marks == "auto" else marks), -1, scores.astype(np.int64))
    return scores.argmin(0) if kind == "energies" else scores.argmax(0)


def resized(name: str, scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Scores [C, h, w], or a map [h, w], resized: labels to the nearest neighbour, all else bilinearly."""
    planes = torch.from_numpy(scores)[None] if scores.ndim == 3 else torch.from_numpy(scores)[None, None]
    if name == "labels":
        planes = F.interpolate(planes.double(), tuple(size), mode="nearest-exact")
    else:
        if name in ("logits", "energies"):
            checks.expect_logits(name, planes, axis=1, sign=1 if name == "logits" else -1)
        planes = planes.to(torch.promote_types(planes.dtype, torch.float32)).clamp(-checks.RULED_OUT, checks.RULED_OUT)
        planes = F.interpolate(planes, tuple(size), mode="bilinear", align_corners=False)
    return planes.view(*scores.shape[:-2], *size).numpy().astype(scores.dtype, copy=False)


def as_tensor(name: str, value: Image) -> torch.Tensor:
    """`value` as a dense tensor; NumPy memory is shared if possible."""
    if isinstance(value, torch.Tensor):
        return checks.expect_values(name, value).detach()
    if name in ("labels", *BINARY) and is_pil(value):
        value = as_stored(name, upright(value))
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; {name}.filled(value) makes one")
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array or a torch.Tensor, got {checks.kind_of(value)}")
    native = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
    try:
        return torch.from_numpy(np.ascontiguousarray(native))
    except TypeError:
        raise TypeError(
            f"{name}: expected numbers of a dtype that torch supports, got {checks.kind_of(value)}"
        ) from None


def upright(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    """A picture rotated by its EXIF orientation, as a viewer shows it."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def as_stored(name: str, picture: "PIL.Image.Image") -> np.ndarray:
    """The values of a picture of labels or of one object. For a palette these are its indices, except for a mask with a
    grey palette, where they are its colours."""
    if name != "labels" and picture.mode == "P":
        colors = np.asarray(picture.convert("RGB"))
        return colors if (colors == colors[..., :1]).all() else np.asarray(picture)
    known = ("1", "L", "LA", "P", "RGB", "RGBA")
    return np.asarray(picture if picture.mode in known or picture.mode[0] in "IF" else picture.convert("RGB"))


def is_pil(value: object) -> "TypeGuard[PIL.Image.Image]":
    return type(value).__module__.startswith("PIL.")

"""The inputs of a run: an image and its scores as given, and the problems of its parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tritoncrf import checks
from tritoncrf.devices import device_found
from tritoncrf.images import axes_of, channels_first, from_pil, image_from, picture
from tritoncrf.levels import levels
from tritoncrf.options import BINARY, HARD
from tritoncrf.problem import Problem, Whole, chosen_for, expect_an_image, one_kind, part, valid_from, whole_of
from tritoncrf.scores import as_stored, as_tensor, expect_axes, grey, is_pil, settled, upright
from tritoncrf.streaming.outputs import Form, form_of
from tritoncrf.streaming.sources import Window, expect_source, extent, kind_of_dtype, read
from tritoncrf.streaming.tiles import Layout, largest, tiles
from tritoncrf.types import Array, Method

MOST_READ = 1 << 18  # pixels that are read at a time before the work begins


@dataclass(frozen=True)
class Inputs:
    """Sources that are read in windows of the image.

    Attributes:
        name: the kind of scores.
        scores, image, features, valid: as for `refine`, or anything that can be sliced like an array.
        method, chosen: every argument of `refine`.
        size: the size of the image.
        device: the device to compute on.
        unit: the value of the object in a mask of integers, once the whole mask has been read.
    """

    name: str
    scores: Any
    image: Any
    features: Any
    valid: Any
    method: Method
    chosen: Mapping[str, Any]
    size: tuple[int, ...]
    device: torch.device
    unit: int = 0

    def named(self) -> dict[str, Any]:
        """The sources by the names of the arguments."""
        found = {self.name: self.scores, "image": self.image, "features": self.features, "valid": self.valid}
        return {name: source for name, source in found.items() if source is not None}

    def piece(self, name: str, window: Window) -> Array | None:
        """A window of a source."""
        source = self.named().get(name)
        if source is None:
            return None
        shape, axes = tuple(source.shape), len(self.size)
        if len(shape) == axes:
            whole = window
        elif name == "image" and not isinstance(source, torch.Tensor):
            whole = (*window, slice(0, shape[-1]))
        else:
            whole = (slice(0, shape[0]), *window)
        if isinstance(source, torch.Tensor):
            return source.detach()[whole]
        return read(name, source, whole)

    def part(self, whole: Whole, window: Window) -> Problem:
        """The problem of a window."""
        scores = self.piece(self.name, window)
        assert scores is not None
        if self.unit:  # as for a mask of integers that is read at once
            scores = as_tensor(self.name, scores).float() / self.unit
        image, features, valid = (self.piece(name, window) for name in ("image", "features", "valid"))
        return part(whole, [s.start for s in window], image, scores, features, valid, self.device)

    def windows(self, budget: int) -> list[Window]:
        """The windows that are read in order before the work begins."""
        channels = 1 if self.image is None else channels_first(self.image, len(self.size))[0]
        plain = (0,) * len(self.size), (1,) * len(self.size)
        layout = Layout(self.size, *plain)
        shape = largest(layout, max(1, min(MOST_READ, budget // (100 + 16 * channels))))
        assert shape is not None
        return [tile.own for tile in tiles(layout, shape)]

    def surveyed(self, budget: int) -> tuple["Inputs", Whole]:
        """The same inputs with what all values of the scores determine, and the part for the whole image."""
        own, found = self, None
        if self.name == "labels" or self.name == "mask" and kind_of_dtype(self.scores.dtype) in "iub":
            pieces = (piece for w in self.windows(budget) if (piece := self.piece(self.name, w)) is not None)
            chosen, unit = settled(self.name, pieces, self.chosen)
            own = replace(self, chosen=chosen, unit=unit if self.name == "mask" else 0)
        if self.image is not None and self.chosen["value_range"] is not None:
            parts = list(self.windows(budget))
            channels = channels_first(self.image, len(self.size))[0]
            first = next(self._levelled(parts[:1]))[0]
            found = levels(self.chosen["value_range"], first.dtype, channels, lambda: self._levelled(parts))
        return own, whole_of(self.method, self.name, self.size, own.chosen, found)

    def _levelled(self, windows: list[Window]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The parts of the image, [M, *s], and their valid pixels."""
        axes = len(self.size)
        for window in windows:
            piece, valid = self.piece("image", window), self.piece("valid", window)
            assert piece is not None
            size = extent(window)
            image, _ = image_from(piece, torch.device("cpu"), axes, size, ranged=True)
            yield image, None if valid is None else valid_from(valid, image.device, size)

    @property
    def form(self) -> Form:
        """The form of the result."""
        classes = self.chosen["num_classes"] if self.name == "labels" else self.scores.shape[0]
        return form_of(self.name, self.size, classes, self.scores.dtype)

    def empty(self) -> Array:
        """A new array for the result, with the type, dtype and device of the scores."""
        form = self.form
        shape = form.shape_of("out")
        if not isinstance(self.scores, torch.Tensor):
            return np.empty(shape, form.dtype)
        keeps = self.name not in (*BINARY, "labels")
        return torch.empty(shape, dtype=self.scores.dtype if keeps else torch.float32, device=self.scores.device)


def inputs_of(image: Any, scores: Mapping[str, Any], device: Any, given: Mapping[str, Any]) -> Inputs:
    """The inputs from the arguments of `refine`.

    Raises:
        TypeError, ValueError: a source cannot be read in windows, or shapes do not match.
    """
    name, value = one_kind(scores)
    features, valid = given.get("features"), given.get("valid")
    expect_an_image(image, features)
    method, chosen = chosen_for(name, features is not None, given)
    where = value.device if device is None and isinstance(value, torch.Tensor) else device_found(device)
    axes = axes_of(name, value, image)
    ranged, turned = chosen["value_range"] is not None or features is not None, ""
    if is_pil(image):
        image, turned = from_pil(image, ranged)
    if is_pil(value):
        value = as_stored(name, upright(value))
        if name == "mask" and value.ndim == 3:
            value = grey(name, as_tensor(name, value), value).numpy()
    sources = {name: value, "image": image, "features": features, "valid": valid}
    for argument, source in sources.items():
        if source is not None:
            expect_source(argument, source)
    seen = None
    if image is not None:
        if axes == 2:
            picture(image, torch.zeros(()).expand(image.shape), value.shape[-2:], ranged)
        seen = channels_first(image, axes)[1:]
    expect_axes(name, value, seen, chosen["num_classes"])
    if name not in HARD and kind_of_dtype(value.dtype) != "f":
        raise TypeError(f"{name}: expected floats, got {checks.kind_of(value)}")
    size = tuple(int(n) for n in value.shape[-axes:])
    found = {
        "image": seen,
        "features": None if features is None else tuple(features.shape[1:]),
        "valid": None if valid is None else tuple(valid.shape),
    }
    for argument, own in found.items():
        if own is not None and tuple(own) != size:
            hint = turned if argument == "image" else ""
            raise ValueError(f"{argument}: expected the size of {name}, {list(size)}, got {list(own)}{hint}")
    return Inputs(name, value, image, features, valid, method, chosen, size, where)

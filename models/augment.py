"""Random changes of a photo and its labels for training: one geometric warp, and jitter of the colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageEnhance

from tritoncrf.checks import expect_choice, expect_int, expect_number, kind_of

VOID = 255
MOST_SCALE = 1000
MOST_SIDE = 2**14  # pixels a side of a crop or of a resized image
MEAN_COLOR = (124, 117, 104)  # of ImageNet's photos: zero or nearly zero after a network's normalisation
Law: TypeAlias = Literal["uniform", "normal"]
LAWS: tuple[Law, ...] = get_args(Law)
Shift: TypeAlias = Literal["joint", "released"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)
MOST_SHIFT = {"joint": 255, "released": 127}  # networks take photos from -0.5 to 1.5


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The changes of one call: `Augment.draw` chooses them and `Augment.apply` makes them.

    A factor of 1, a turn or a shift of 0 and `mirror=False` change nothing.
    """

    size: tuple[int, int]  # (H, W) of the crop
    corner: tuple[int, int]  # (row, column) of the crop in the scaled image; negative if it starts outside
    scale: tuple[float, float]  # pixels of the crop for one of the image, down and across
    mirror: bool
    rotation: float  # degrees, counterclockwise, about the centre of the crop
    brightness: float
    contrast: float
    saturation: float
    hue: float  # in turns of the colour circle
    channel_shift: tuple[int, int, int]
    cut_off: bool = True  # shift only the photo and clip to 0..255; otherwise shift the whole crop, in floating point


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Draws and applies random changes: `augment(image, labels, rng)` gives the changed pair.

    Every amount comes from a number u in [-1, 1]. A range (low, high) is covered geometrically, from low at u = -1 to
    high at u = 1; an angle or a shift is its bound times u; a colour factor is 1 + strength u.

    Args:
        scale: (low, high) of the zoom; above 1 magnifies.
        aspect: (low, high) of the factor on width / height; the area does not change.
        mirror: probability of a horizontal flip.
        rotation: largest angle in degrees, in either direction.
        brightness, contrast, saturation: strengths in 0..1.
        hue: largest shift in turns of the colour circle, 0..0.5.
        channel_shift: s in 0..255; red, green and blue are shifted with probability 1/2 by whole numbers in -s..s - 1.
        shift: "joint" shifts all three channels or none, and clips to 0..255. "released", as in SegModel's code, shifts
            each channel independently, also shifts the area outside the photo, and does not clip: the photo is then in
            floating point, and `channel_shift` is at most 127.
        crop: (H, W) of the result; the size of the image if None.
        law: the distribution of u: "uniform", or "normal" with a standard deviation of 1/2, clipped to [-1, 1].

    Raises:
        TypeError, ValueError: an argument outside these bounds.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> augment = Augment(scale=(0.5, 2.0), mirror=0.5, crop=(32, 48))
        >>> photo, labels = Image.new("RGB", (60, 40)), Image.new("L", (60, 40))
        >>> photo, labels = augment(photo, labels, np.random.default_rng(0))
        >>> photo.size, labels.size
        ((48, 32), (48, 32))
    """

    scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    mirror: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    channel_shift: int = 0
    shift: Shift = "joint"
    crop: tuple[int, int] | None = None
    law: Law = "uniform"

    def __post_init__(self) -> None:
        for name in ("scale", "aspect"):
            low, high = _pair(name, getattr(self, name), "(low, high)")
            if not 1 / MOST_SCALE <= expect_number(name, low) <= expect_number(name, high) <= MOST_SCALE:
                wanted = f"0 < low <= high, both from 1 / {MOST_SCALE} to {MOST_SCALE}"
                raise ValueError(f"{name}: expected {wanted}, got ({low}, {high})")
        for name, most in dict(mirror=1, rotation=180, brightness=1, contrast=1, saturation=1, hue=0.5).items():
            if not 0 <= expect_number(name, getattr(self, name)) <= most:
                raise ValueError(f"{name}: expected a number from 0 to {most}, got {getattr(self, name)}")
        expect_choice("shift", self.shift, SHIFTS)
        expect_int("channel_shift", self.channel_shift, 0, MOST_SHIFT[self.shift])
        if self.crop is not None:
            for side in _pair("crop", self.crop, "(H, W)"):
                if expect_int("crop", side, 1) > MOST_SIDE:
                    raise ValueError(f"crop: expected at most {MOST_SIDE}, got {side}")
        expect_choice("law", self.law, LAWS)

    def __call__(
        self, image: Image.Image, labels: Image.Image, rng: np.random.Generator
    ) -> tuple[Image.Image | np.ndarray, Image.Image]:
        """The changed pair.

        Args:
            image: RGB.
            labels: of the same size, mode "L", 255 where unknown.
            rng: the random generator; equal states give identical results.

        Returns:
            (image, labels) of the size of the crop. The area outside the photo has the mean colour, and its labels are
            void. With shift="released" the image is float32 [H, W, 3], with 0..255 as 0..1.
        """
        width, height = image.size
        return self.apply(image, labels, self.draw((height, width), rng))

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Drawn:
        """Choose the changes of an image of `size` (H, W). Every number is always drawn, so that options do not affect
        each other."""
        zoom, stretch, rotation, brightness, contrast, saturation, hue = self._draw_amounts(rng, 7)
        zoom, stretch = _between(self.scale, zoom), math.sqrt(_between(self.aspect, stretch))
        mirror, shifted = rng.random(2) < (self.mirror, 0.5)
        shift = rng.integers(-self.channel_shift, max(self.channel_shift, 1), 3).tolist()
        scale = zoom / stretch, zoom * stretch
        height, width = size if self.crop is None else self.crop
        # Along each axis, all positions of the crop in the image, or of the image in the crop, are equally likely.
        spare = [round(s * f) - c for s, f, c in zip(size, scale, (height, width))]
        top, left = (int(rng.integers(min(s, 0), max(s, 0), endpoint=True)) for s in spare)
        # Drawn last, so that these three numbers do not affect the others.
        coins = [shifted] * 3 if self.shift == "joint" else rng.random(3) < 0.5
        red, green, blue = (s if coin else 0 for s, coin in zip(shift, coins))
        return Drawn(
            size=(height, width),
            corner=(top, left),
            scale=scale,
            mirror=bool(mirror),
            rotation=self.rotation * rotation,
            brightness=1 + self.brightness * brightness,
            contrast=1 + self.contrast * contrast,
            saturation=1 + self.saturation * saturation,
            hue=self.hue * hue,
            channel_shift=(red, green, blue),
            cut_off=self.shift == "joint",
        )

    @staticmethod
    def apply(image: Image.Image, labels: Image.Image, drawn: Drawn) -> tuple[Image.Image | np.ndarray, Image.Image]:
        """The pair after the changes `drawn`. The image is a picture if shifts are clipped, otherwise an array."""
        if image.mode != "RGB" or labels.mode != "L" or image.size != labels.size:
            raise ValueError(
                f"image, labels: expected an RGB picture and an 'L' picture of one size, got {image.mode} of "
                f"{image.size} and {labels.mode} of {labels.size}"
            )
        # Before the warp, so that the area outside the photo keeps its colour.
        photo = _recolored(_shrunk(image, drawn.scale), drawn)
        photo = _warped(photo, image.size, drawn, Image.Resampling.BILINEAR, MEAN_COLOR)
        labels = _warped(labels, image.size, drawn, Image.Resampling.NEAREST, VOID)
        if drawn.cut_off:
            return photo, labels
        return (np.asarray(photo, np.float32) + np.array(drawn.channel_shift, np.float32)) / np.float32(255), labels

    def _draw_amounts(self, rng: np.random.Generator, count: int) -> list[float]:
        if self.law == "uniform":
            return rng.uniform(-1, 1, count).tolist()
        u = rng.normal(0, 0.5, count)
        while (outside := np.abs(u) > 1).any():
            u[outside] = rng.normal(0, 0.5, outside.sum())
        return u.tolist()


def _pair(name: str, value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected {what}, got {kind_of(value)}")
    return value


def _between(bounds: tuple[float, float], u: float) -> float:
    low, high = bounds
    return math.sqrt(low * high) * (high / low) ** (u / 2)


def _shrunk(image: Image.Image, scale: tuple[float, float]) -> Image.Image:
    """The image, reduced along the axes where the scale is below 1.

    A warp reads only the 2 x 2 nearest pixels and would alias; resizing averages all pixels that a new one covers.
    """
    width, height = (max(round(n * min(f, 1)), 1) for n, f in zip(image.size, reversed(scale)))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _recolored(image: Image.Image, drawn: Drawn) -> Image.Image:
    for factor, enhancer in (
        (drawn.brightness, ImageEnhance.Brightness),
        (drawn.contrast, ImageEnhance.Contrast),
        (drawn.saturation, ImageEnhance.Color),
    ):
        image = image if factor == 1 else enhancer(image).enhance(factor)
    if turned := round(255 * drawn.hue):
        hue, *others = image.convert("HSV").split()
        hue = hue.point([(h + turned) % 255 for h in range(256)])  # Pillow's full circle is 255
        image = Image.merge("HSV", (hue, *others)).convert("RGB")
    if drawn.cut_off and any(drawn.channel_shift):
        image = image.point([min(max(v + shift, 0), 255) for shift in drawn.channel_shift for v in range(256)])
    return image


def _warped(
    picture: Image.Image, full: tuple[int, int], drawn: Drawn, resample: Image.Resampling,
    fill: int | tuple[int, int, int],
) -> Image.Image:  # fmt: skip
    """The crop of `drawn`; one affine map gives the place in `picture` of every pixel.

    The map, in (column, row) with pixel centres at halves: turn about the centre of the crop, move to its place in the
    scaled image, divide by the scale, mirror. `full` is the (width, height) that `picture` had before it was shrunk.
    """
    height, width = drawn.size
    top, left = drawn.corner
    turn = math.radians(drawn.rotation)
    cos, sin = math.cos(turn), math.sin(turn)
    down, across = (n / (f * m) for n, f, m in zip(reversed(picture.size), drawn.scale, reversed(full)))
    rows = [
        (across * cos, -across * sin, across * (left + width / 2 - cos * width / 2 + sin * height / 2)),
        (down * sin, down * cos, down * (top + height / 2 - sin * width / 2 - cos * height / 2)),
    ]
    if drawn.mirror:
        a, b, c = rows[0]
        rows[0] = -a, -b, picture.width - c
    return picture.transform(
        (width, height), Image.Transform.AFFINE, (*rows[0], *rows[1]), resample=resample, fillcolor=fill
    )

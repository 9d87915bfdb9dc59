"""The pictures of the gallery, and the masks drawn over them by hand.

Hopper and the scan come with matplotlib. The astronaut and the coffee are scikit-image's, which installs with the extra
`gallery`: NASA's portrait of Eileen Collins is in the public domain, the coffee is CC0 by Rachel Michetti.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw

from tritoncrf import PARAMETERS, demo, refine

# The scores have noise as coarse as that of pseudo-labels, so the settings are those of pipelines for these.
SETTINGS = {
    "lattice": PARAMETERS["densecrf"],
    "exact": PARAMETERS["densecrf"],
    "window": {**PARAMETERS["densecrf"], "blur": 4},
    "guided": {},
}


@dataclass(frozen=True)
class Picture:
    """An image [H, W, 3] or [H, W] in uint8, and its classes, [H, W]."""

    image: np.ndarray
    truth: np.ndarray
    classes: tuple[str, ...]

    def halved(self) -> "Picture":
        return Picture(np.array(Image.fromarray(self.image).reduce(2)), self.truth[::2, ::2], self.classes)

    def refined(self, method: str = "lattice", **options) -> np.ndarray:
        """Probabilities [C, H, W] by a method with its SETTINGS, unless `options` say otherwise."""
        return refine(self.image, method=method, **{**SETTINGS[method], **options})

    def cropped(self, detail: tuple[slice, slice]) -> "Picture":
        return Picture(self.image[detail], self.truth[detail], self.classes)


# Outlines in pixels (x, y), painted in this order over the first class.
ASTRONAUT = ("backdrop", "flag", "suit", "collar", "hair", "skin", "shuttle", "table", "helmet")
ASTRONAUT_OUTLINES = (
    ("flag", "0,0 42,0 50,30 57,56 62,84 69,100 78,125 84,160 85,180 96,222 60,300 40,512 0,512"),
    (
        "suit",
        "112,206 98,220 80,234 62,254 52,268 41,290 34,316 27,336 24,360 20,392 23,430 24,452 28,488 38,512 300,512 "
        "380,380 364,348 360,320 354,296 347,276 337,258 322,241 303,234 270,190 150,160",
    ),
    (
        "collar",
        "186,148 160,149 143,154 130,163 122,177 113,188 114,202 118,214 128,230 140,246 155,260 172,273 192,285 "
        "214,291 240,293 262,291 284,280 298,265 305,248 304,232 296,213 284,197 270,185 256,175 254,184 186,175",
    ),
    (
        "hair",
        "188,36 175,42 160,55 153,70 154,85 158,102 165,112 172,119 180,122 272,130 280,125 290,118 298,105 301,88 "
        "298,68 292,50 280,35 262,24 248,19 232,15 215,18 200,26",
    ),
    (
        "skin",
        "186,76 205,80 240,83 258,87 268,98 270,128 279,127 276,135 268,137 263,153 256,164 254,184 248,188 236,191 "
        "220,188 202,185 190,181 186,173 186,158 182,143 181,131 175,129 171,121 179,119 181,103 184,86",
    ),
    (
        "shuttle",
        "410,0 422,0 431,12 436,30 437,48 443,40 449,44 454,60 455,110 456,240 458,262 472,270 472,276 430,283 "
        "400,290 368,284 367,266 376,240 380,226 355,222 356,210 366,197 378,181 378,114 381,98 381,64 386,46 389,42 "
        "394,52 396,36 401,12",
    ),
    ("table", "374,285 400,290 430,283 472,275 512,274 512,470 480,460 360,360 366,346 367,310 370,298"),
    (
        "helmet",
        "279,512 276,480 278,452 283,430 291,410 302,393 316,376 332,363 350,355 364,350 380,345 398,343 418,345 "
        "440,354 460,366 477,383 488,402 494,424 497,450 504,455 505,480 509,490 506,512",
    ),
)

COFFEE = ("table", "floor", "saucer", "cup", "spoon", "coffee")
COFFEE_OUTLINES = (
    ("floor", "0,0 152,0 100,34 60,60 0,106"),
    (
        "saucer",
        "180,70 160,78 140,91 115,113 100,132 85,165 78,195 77,220 83,255 97,290 118,320 140,342 170,362 200,376 "
        "240,387 280,390 320,389 360,382 390,370 420,350 445,325 465,290 475,255 478,220 473,190 460,160 440,130 "
        "420,110",
    ),
    (
        "cup",
        "173,108 178,85 190,63 210,42 235,27 262,19 290,18 320,22 348,33 373,48 392,67 403,88 408,110 404,140 396,165 "
        "386,190 375,215 360,240 340,262 328,278 300,284 270,282 256,246 248,262 240,285 234,300 222,307 207,304 "
        "197,295 196,275 200,258 208,245 217,234 205,226 190,206 180,180 176,150 173,130",
    ),
    (
        "spoon",
        "397,71 405,66 418,68 424,77 421,92 416,110 408,140 398,172 388,200 384,222 388,240 399,255 406,275 402,298 "
        "390,315 372,324 352,325 338,316 330,300 327,282 331,264 345,251 364,241 372,231 377,214 386,192 396,166 "
        "405,138 409,112 404,90",
    ),
    (
        "coffee",
        "203,146 210,130 224,108 245,100 270,96 298,96 324,104 345,117 360,136 368,156 352,173 330,186 304,193 "
        "280,192 255,185 232,174 214,161",
    ),
)

SCAN = ("air", "head", "brain")
SCAN_OUTLINES = (
    (
        "head",
        "120,29 135,28 150,30 162,37 175,50 186,65 194,80 198,100 196,112 191,130 185,145 175,160 165,172 160,185 "
        "159,200 161,217 164,227 172,226 196,250 196,256 122,256 118,240 110,232 95,231 80,232 71,231 60,220 48,202 "
        "39,182 37,172 41,162 35,154 29,146 25,140 27,135 26,120 24,105 29,88 40,75 56,61 75,49 95,36 108,30",
    ),
    (
        "brain",
        "41,105 45,91 51,80 62,70 77,59 92,49 107,41 122,37 137,37 152,41 165,49 175,60 181,72 184,85 185,100 184,112 "
        "179,120 180,125 175,135 170,147 160,154 147,155 140,156 134,150 132,141 131,135 126,132 119,136 114,140 "
        "107,144 97,146 89,144 80,136 74,129 67,125 59,125 51,124 46,120 42,112",
    ),
)


def hopper() -> Picture:
    return Picture(demo.photo(), demo.mask(), demo.CLASSES)


def astronaut() -> Picture:
    return _of_skimage("astronaut", ASTRONAUT, ASTRONAUT_OUTLINES)


def coffee() -> Picture:
    return _of_skimage("coffee", COFFEE, COFFEE_OUTLINES)


def scan() -> Picture:
    """A magnetic resonance slice of a head."""
    with get_sample_data("s1045.ima.gz") as file:
        values = np.frombuffer(file.read(), np.uint16).reshape(256, 256)
    return Picture((values >> 8).astype(np.uint8), painted((256, 256), SCAN, SCAN_OUTLINES), SCAN)


def painted(size, classes, outlines) -> np.ndarray:
    """[H, W] uint8: polygons in their order."""
    labels = Image.new("L", size[::-1])
    draw = ImageDraw.Draw(labels)
    for name, outline in outlines:
        draw.polygon([tuple(map(int, corner.split(","))) for corner in outline.split()], fill=classes.index(name))
    return np.array(labels)


def _of_skimage(name: str, classes, outlines) -> Picture:
    from skimage import data

    image = getattr(data, name)()
    return Picture(image, painted(image.shape[:2], classes, outlines), classes)

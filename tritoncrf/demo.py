"""The demo: a photo with a rough hand-drawn mask, noisy scores of the mask, and their refinement."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from tritoncrf.options import PARAMETERS
from tritoncrf.refine import refine
from tritoncrf.synthetic import noisy_scores
from tritoncrf.types import RefineOptions

__all__ = ["CLASSES", "SETTINGS", "Outcome", "mask", "photo", "run", "scores"]

CLASSES = ("backdrop", "flag", "hair", "skin", "hat", "uniform", "shirt")

# The noise is as coarse as that of labels, and uses their settings. Blur 2 keeps the thin collar; the weight is
# doubled, because a noise cell outvotes its own pixels.
SETTINGS: RefineOptions = {**PARAMETERS["densecrf"], "method": "window", "blur": 2, "weight_appearance": 20}

# Outlines in pixels (x, y) of the photo, painted in this order.
OUTLINES = (
    ("flag", "0,0 236,0 231,45 231,330 0,600"),
    (
        "hair",
        "206,145 178,145 163,160 157,180 156,200 160,240 160,262 162,276 168,286 182,292 200,300 206,300 "
        "330,300 336,306 348,301 356,290 361,275 363,262 366,200 369,180 358,160 345,148 330,130",
    ),
    (
        "skin",
        "185,125 181,155 178,170 178,184 166,185 158,187 153,193 154,205 158,220 163,235 166,250 172,264 180,269 "
        "188,266 191,262 195,275 200,290 203,302 206,316 203,330 204,350 207,362 215,378 222,387 235,400 245,408 "
        "255,407 272,406 278,402 290,390 305,370 320,345 330,330 330,313 332,300 336,290 340,275 341,266 346,268 "
        "354,264 362,260 366,250 370,235 373,215 375,200 372,190 365,182 357,184 352,172 345,158 334,125",
    ),
    (
        "hat",
        "175,80 177,72 184,60 195,50 207,43 219,40 221,34 228,29 240,25 255,23 270,24 285,28 293,34 299,41 310,42 "
        "325,49 338,57 348,70 354,84 355,88 360,86 364,88 368,97 370,108 371,120 372,135 371,150 370,165 368,180 "
        "362,166 352,154 342,146 335,141 322,135 305,131 290,130 270,132 250,132 230,132 212,134 198,139 185,144 "
        "176,148 168,156 161,166 157,180 148,182 146,165 149,140 153,120 157,106 163,92 172,85",
    ),
    (
        "uniform",
        "11,600 14,570 17,540 21,500 25,450 28,436 34,420 40,400 46,386 55,380 62,379 72,371 85,366 105,361 125,357 "
        "142,351 165,343 180,336 195,322 204,313 206,330 207,362 245,410 275,408 300,390 331,312 336,318 345,325 "
        "362,339 380,346 400,356 420,364 440,370 460,376 480,386 488,388 494,394 500,412 506,430 512,448 512,600",
    ),
    (
        "skin",
        "206,316 206,330 204,350 207,362 215,378 222,387 235,400 245,408 255,407 272,406 278,402 290,390 305,370 "
        "320,345 330,330 330,310",
    ),
    (
        "shirt",
        "204,315 199,325 197,340 198,360 199,380 203,395 208,415 216,441 225,430 245,413 258,413 272,410 277,408 "
        "290,420 300,432 307,415 316,395 322,378 328,355 329,332 320,345 305,370 290,390 278,402 272,406 255,407 "
        "245,409 235,402 222,388 215,378 207,362 204,355 203,340 205,325",
    ),
    (
        "shirt",
        "248,446 262,447 280,445 285,448 288,455 285,466 275,485 262,510 252,529 245,518 238,500 228,478 240,465",
    ),
)


def photo() -> np.ndarray:
    """[600, 512, 3] uint8: the portrait of Grace Hopper that matplotlib ships."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:  # type: ignore[union-attr]  # a file
        return np.array(image.convert("RGB"))


def mask() -> np.ndarray:
    """[600, 512] uint8: the class of each pixel of the photo, an index into `CLASSES`, drawn by hand."""
    from PIL import Image, ImageDraw

    labels = Image.new("L", (512, 600))
    draw = ImageDraw.Draw(labels)
    for name, outline in OUTLINES:
        corners = [tuple(map(int, corner.split(","))) for corner in outline.split()]
        draw.polygon(corners, fill=CLASSES.index(name))
    return np.array(labels)


def scores() -> np.ndarray:
    """[7, 600, 512] float32 probabilities: the mask with noise."""
    return noisy_scores(mask(), num_classes=len(CLASSES))


@dataclass(frozen=True)
class Outcome:
    """The result of `run`: label maps [H, W], and the time of the CRF in seconds."""

    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    seconds: float

    def __str__(self) -> str:
        wrong = self.before != self.truth
        repaired = wrong & (self.after == self.truth)
        broken = ~wrong & (self.after != self.truth)
        height, width = self.truth.shape
        return (
            f"{width} x {height} pixels, {len(CLASSES)} classes, {wrong.sum():,} noisy pixels\n"
            f"repaired {repaired.sum():,} of them ({repaired.sum() / wrong.sum():.1%}), broke {broken.sum():,} others\n"
            f"right: {1 - wrong.mean():.1%} before, {(self.after == self.truth).mean():.1%} after\n"
            f"the CRF took {self.seconds:.2f} s"
        )


def run(device: torch.device | str = "cpu") -> Outcome:
    """Refine noisy scores of the photo on `device`."""
    image, truth = photo(), mask()
    noisy = scores()
    probabilities = torch.from_numpy(noisy).to(device)
    refine(image[:16, :16], probabilities=probabilities[:, :16, :16], **SETTINGS)  # imports and compiles, untimed
    start = time.perf_counter()
    refined = refine(image, probabilities=probabilities, **SETTINGS).argmax(0).cpu()  # .cpu() waits for a GPU
    seconds = time.perf_counter() - start
    return Outcome(image, truth, noisy.argmax(0), refined.numpy(), seconds)

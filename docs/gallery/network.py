"""The scores of a real network for the demo's photo, before and after `refine`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from docs.gallery.sheet import Panel, sheet
from tritoncrf import demo, refine
from tritoncrf.files import FileError, decoded

PLACE = np.s_[0:360, 60:510]  # rows and columns of the photo
DETAIL = np.s_[110:230, 70:220]  # of the same proportions
WIDTH = 450


def network(scores: Path) -> Figure:
    """The person that a network found, cut out, and a detail of it below.

    Args:
        scores: an `.npz` with the `foreground` [600, 512] of the demo's photo.

    Raises:
        FileError: no such file, or an array of another name or shape.
    """
    photo = demo.photo()
    found = decoded(scores, "an .npz with a foreground", lambda path: np.load(path)["foreground"].astype(np.float32))
    if found.shape != photo.shape[:2]:
        raise FileError(f"{scores}: expected a foreground of {list(photo.shape[:2])}, got {list(found.shape)}")
    refined = refine(photo, foreground=found, method="guided", radius=8)
    pictures = {"The photo": photo / 255, "The network's person": cut_out(photo, found)}
    pictures["After refine"] = cut_out(photo, refined)
    remarks = ["512 x 600 pixels", "scores of 256 x 256, upsampled", 'method="guided", radius=8']
    panels = [Panel(title, remark, picture[PLACE]) for (title, picture), remark in zip(pictures.items(), remarks)]
    names = ["A detail of each", "", ""]
    details = [Panel(name, "", enlarged(picture[DETAIL])) for name, picture in zip(names, pictures.values())]
    return sheet([*panels, *details], 3)


def cut_out(photo: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """The photo where the foreground is, white elsewhere."""
    share = foreground[..., None].clip(0, 1).astype(np.float64)
    return photo / 255 * share + (1 - share)


def enlarged(picture: np.ndarray) -> np.ndarray:
    size = WIDTH, WIDTH * picture.shape[0] // picture.shape[1]
    pixels = Image.fromarray((255 * picture).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(pixels) / 255

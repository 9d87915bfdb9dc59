"""Which pixels a pixel depends on, and how strongly: its row of each filter, over the photo."""

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import tritoncrf as tc
from docs.gallery import pictures
from docs.gallery.pictures import Picture
from docs.gallery.sheet import Panel, enlarged, sheet
from tritoncrf.figures import BROKEN, INK, REPAIRED, grey_of

DETAIL = np.s_[40:140, 66:194]  # of Hopper at half its size
PIXEL = (70, 54)  # row and column in it: on the cheek
POSITIVE, NEGATIVE = to_rgb(BROKEN), to_rgb(REPAIRED)
# theta_space and theta_color of the first three columns; radius and eps of the last.
ROWS = (((80, 13), (8, 1)), ((20, 13), (20, 1)), ((80, 40), (20, 1000)))


def weights() -> Figure:
    picture = pictures.hopper().halved().cropped(DETAIL)
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None]
    panels = []
    for (theta_space, theta_color), (radius, eps) in ROWS:
        features = tc.features.bilateral(image, theta_space, theta_color)
        thetas = f"thetas {theta_space}, {theta_color}"
        panels += [
            panel("Exact", thetas, picture, tc.filters.Exact(features)),
            panel("Lattice", thetas, picture, tc.filters.Lattice(features)),
            panel("Window", thetas, picture, tc.filters.Window(features, 11, blur=4)),
            panel("Guided", f"r {radius}, eps {eps}", picture, tc.filters.Guided(image.float(), radius, eps)),
        ]
    return sheet(panels, 4)


def panel(title: str, settings: str, picture: Picture, kernel) -> Panel:
    row = row_of(kernel, picture.truth.shape)
    strength = np.abs(row)
    label = picture.truth[PIXEL]
    share = strength[picture.truth == label].sum() / strength.sum()
    color = np.where(row[..., None] > 0, POSITIVE, NEGATIVE)
    strength = (strength / strength.max())[..., None]
    drawn = enlarged((1 - strength) * (0.6 + 0.4 * grey_of(picture.image)) + strength * color)
    frame(drawn, drawn.shape[0] // picture.truth.shape[0])
    return Panel(title, f"{settings}: {share:.0%} on {picture.classes[label]}", drawn)


def row_of(kernel, size) -> np.ndarray:
    """[H, W]: the row of K that belongs to the pixel, as the gradient of its result."""
    values = torch.zeros(1, 1, *size, requires_grad=True)
    kernel(values)[0, 0][PIXEL].backward()
    return values.grad[0, 0].numpy()


def frame(drawn: np.ndarray, factor: int) -> None:
    """Draws a square around the pixel, at a distance of three."""
    inside = tuple(slice(factor * (at - 3), factor * (at + 4)) for at in PIXEL)
    around = tuple(slice(part.start - 3, part.stop + 3) for part in inside)
    kept = drawn[inside].copy()
    drawn[around] = to_rgb(INK)
    drawn[inside] = kept

"""Sheets of panels: rows of pictures, each under two lines of text, and the names of the classes below them."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from docs.gallery.pictures import Picture
from tritoncrf.figures import grey_of, head, legend, legend_entries, overlay

INCHES = 9.6  # a page shows a sheet about 900 pixels wide, which makes 10 points 13 pixels
GAP, HEAD, LEGEND = 0.12, 0.62, 0.32  # inches
FINE = 500  # a picture is enlarged to about this width, so that the lines along its borders are thin


@dataclass(frozen=True)
class Panel:
    title: str
    subtitle: str
    picture: np.ndarray  # [H, W, 3], floats from 0 to 1


def sheet(panels: list[Panel], columns: int, picture: Picture | None = None) -> Figure:
    """A matplotlib Figure of `panels`, row by row, all of one shape; a legend names the classes of `picture`."""
    height, width, _ = panels[0].picture.shape
    panel_width = (INCHES - GAP) / columns - GAP
    panel_height = panel_width * height / width
    below = GAP if picture is None else LEGEND + GAP
    size = (INCHES, -(-len(panels) // columns) * (HEAD + panel_height) + below)
    figure = Figure(figsize=size, facecolor="white")
    for n, panel in enumerate(panels):
        row, column = divmod(n, columns)
        left, bottom = GAP + column * (panel_width + GAP), size[1] - (row + 1) * (HEAD + panel_height)
        place = (left / size[0], bottom / size[1], panel_width / size[0], panel_height / size[1])
        axes = figure.add_axes(place, xticks=[], yticks=[], frame_on=False)
        axes.imshow(panel.picture, interpolation="antialiased", aspect="auto")
        head(axes, panel.title, panel.subtitle)
    if picture is not None:
        entries = legend_entries([picture.truth.astype(int)], picture.classes)
        legend(figure, entries, len(entries), "lower left", (GAP / size[0], GAP / size[1]))
    return figure


def photographed(title: str, subtitle: str, picture: Picture) -> Panel:
    image = picture.image if picture.image.ndim == 3 else np.repeat(picture.image[..., None], 3, axis=2)
    return Panel(title, subtitle, enlarged(image / 255))


def labelled(title: str, picture: Picture, labels: np.ndarray, remark: str = "") -> Panel:
    """Labels over the grey picture, and the share of right ones."""
    right = f"{(labels == picture.truth).mean():.1%} right"
    drawn = overlay(enlarged(grey_of(picture.image)), enlarged(labels.astype(int)))
    return Panel(title, f"{right}, {remark}" if remark else right, drawn)


def enlarged(values: np.ndarray) -> np.ndarray:
    factor = max(1, round(FINE / values.shape[1]))
    return values.repeat(factor, axis=0).repeat(factor, axis=1)

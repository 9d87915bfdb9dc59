"""Sparse or coarse labels, and the masks that `refine` makes from them."""

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from docs.gallery import pictures
from docs.gallery.pictures import Picture
from docs.gallery.sheet import labelled, sheet

UNKNOWN = 255  # as in `refine`; figures leave negative labels out
BLOCK = 16
# Lines through pixels (x, y) of the astronaut, 9 pixels wide.
SCRIBBLES = (
    ("backdrop", "120,30 130,110 95,160"),
    ("backdrop", "330,40 330,200"),
    ("backdrop", "480,40 490,230"),
    ("flag", "20,20 25,120 25,200 20,300"),
    ("flag", "50,140 75,210"),
    ("suit", "70,300 60,440 120,470"),
    ("suit", "150,300 230,330 215,430"),
    ("suit", "320,290 330,330"),
    ("collar", "135,180 135,220 180,265 240,280 280,250 290,220"),
    ("collar", "190,200 240,210 250,240"),
    ("hair", "165,70 180,95"),
    ("hair", "210,40 250,45 285,80 280,110"),
    ("skin", "200,110 240,150 220,170"),
    ("shuttle", "415,20 425,120"),
    ("shuttle", "388,70 390,220"),
    ("shuttle", "445,70 445,220"),
    ("table", "390,310 500,330"),
    ("helmet", "300,480 350,400 420,440 470,480"),
    ("helmet", "400,350 480,410"),
)


def labels() -> Figure:
    picture = pictures.astronaut()
    scribbles, blocks = scribbled(picture), coarsened(picture)

    def panel(title, given, remark, **settings):
        refined = picture.refined(labels=given, num_classes=len(picture.classes), **settings).argmax(0)
        return labelled(title, picture, refined, remark)

    known = scribbles != UNKNOWN
    drawn = labelled("Scribbles", picture, np.where(known, scribbles.astype(int), -1))
    sure = {"label_confidence": 0.99, "iterations": 20}
    panels = [
        replace(drawn, subtitle=f"{known.mean():.1%} of the pixels, by hand"),
        panel("Lattice", scribbles, "theta_space 40", theta_space=40, **sure),
        panel("Window", scribbles, "31 x 31, blur 4", method="window", window_size=31, **sure),
        labelled("Coarse labels", picture, blocks, f"blocks of {BLOCK}"),
        panel("Window", blocks, "11 x 11, blur 4", method="window"),
        panel("Guided", blocks, f"radius {BLOCK}", method="guided", radius=BLOCK),
    ]
    return sheet(panels, 3, picture)


def scribbled(picture: Picture) -> np.ndarray:
    """Labels [H, W] uint8, unknown except on the lines."""
    canvas = Image.new("L", picture.truth.shape[::-1], UNKNOWN)
    draw = ImageDraw.Draw(canvas)
    for name, line in SCRIBBLES:
        corners = [tuple(map(int, corner.split(","))) for corner in line.split()]
        draw.line(corners, fill=picture.classes.index(name), width=9, joint="curve")
    return np.array(canvas)


def coarsened(picture: Picture) -> np.ndarray:
    """Labels [H, W] in blocks with the label of their centre, like those of a network for patches."""
    middle = slice(BLOCK // 2, None, BLOCK)
    return picture.truth[middle, middle].repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)

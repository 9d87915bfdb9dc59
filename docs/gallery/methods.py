"""Before and after, by every method of `refine`: noisy scores of masks that were drawn by hand, and their refinement.

All use the settings of `pictures`, except for the guided filter's radius.
"""

import time

import numpy as np
from matplotlib.figure import Figure

from docs.gallery import pictures
from docs.gallery.pictures import Picture
from docs.gallery.sheet import labelled, photographed, sheet
from tritoncrf import figures
from tritoncrf.synthetic import noisy_scores

# The windows reach beyond a cell of the noise, which is 8 pixels wide.
METHODS = {"guided": {"radius": 8}, "window": {}, "lattice": {}, "exact": {}}


def methods() -> Figure:
    """Hopper, and the seconds of each method."""
    picture = pictures.hopper().halved()
    scores = noisy_scores(picture.truth, len(picture.classes))
    refined = {}
    for method, settings in METHODS.items():
        picture.cropped(np.s_[:16, :16]).refined(method, probabilities=scores[:, :16, :16], **settings)  # untimed
        start = time.perf_counter()
        labels = picture.refined(method, probabilities=scores, **settings).argmax(0)
        refined[method.capitalize()] = labels, time.perf_counter() - start
    return figures.methods(picture.image, scores.argmax(0), refined, truth=picture.truth, names=picture.classes)


def astronaut() -> Figure:
    return before_and_after("Photo", pictures.astronaut().halved())


def coffee() -> Figure:
    return before_and_after("Photo", pictures.coffee().halved())


def scan() -> Figure:
    return before_and_after("Scan", pictures.scan())


def before_and_after(kind: str, picture: Picture) -> Figure:
    height, width = picture.truth.shape
    scores = noisy_scores(picture.truth, len(picture.classes))
    panels = [
        photographed(kind, f"{width} x {height} pixels", picture),
        labelled("Input labels", picture, scores.argmax(0)),
    ]
    for method, settings in METHODS.items():
        labels = picture.refined(method, probabilities=scores, **settings).argmax(0)
        remark = ", ".join(f"{name} {value}" for name, value in settings.items())
        panels.append(labelled(method.capitalize(), picture, labels, remark))
    return sheet(panels, 3, picture)

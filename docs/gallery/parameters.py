"""The effect of each parameter of `refine`: a small value, that of `pictures` and a large one, with all else equal."""

import numpy as np
from matplotlib.figure import Figure

from docs.gallery import pictures
from docs.gallery.sheet import labelled, sheet
from tritoncrf.synthetic import noisy_scores

DETAIL = np.s_[100:200, 40:215]  # of Hopper at half its size; all of it is refined
# For each parameter a small, the usual and a large value, and the effects of the first and the last.
GAUSSIAN = {
    "theta_color": ((3, 13, 100), "like colours only", "unlike ones too"),
    "theta_space": ((5, 80, 400), "near pixels only", "far ones too"),
    "theta_smooth": ((1, 3, 30), "close by", "far, and thinly"),
    "weight_appearance": ((0, 10, 50), "colour is mute", "colour overrules"),
    "weight_smooth": ((0, 3, 100), "rough borders", "round borders"),
    "iterations": ((0, 5, 20), "the input", "little changes"),
}
WINDOW = {
    "window_size": ((3, 11, 31), "12 pixels wide", "124 pixels wide"),
    "blur": ((1, 4, 12), "11 pixels wide", "thin things go"),
}
GUIDED = {
    "radius": ((1, 3, 12), "reaches 2 pixels", "24 pixels"),
    "eps": ((0.01, 1, 10000), "faint edges count", "few edges count"),
}


def parameters() -> Figure:
    """The parameters of the Gaussian kernels, with the lattice."""
    return drawn({"lattice": GAUSSIAN})


def parameters_local() -> Figure:
    """The parameters of the window and of the guided filter."""
    return drawn({"window": WINDOW, "guided": GUIDED})


def drawn(of_methods) -> Figure:
    picture = pictures.hopper().halved()
    scores = noisy_scores(picture.truth, len(picture.classes))
    detail = picture.cropped(DETAIL)
    panels = []
    for method, rows in of_methods.items():
        for name, (values, small, large) in rows.items():
            for value, remark in zip(values, (small, "as usual", large)):
                q = picture.refined(method, probabilities=scores, **{name: value})
                panels.append(labelled(f"{name} {value}", detail, q.argmax(0)[DETAIL], remark))
    return sheet(panels, 3, picture)

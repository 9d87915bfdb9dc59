"""How each method fails: one row per method, with its failure in the middle."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from docs.gallery import pictures
from docs.gallery.pictures import Picture
from docs.gallery.sheet import Panel, enlarged, labelled, sheet
from tritoncrf.figures import BROKEN, grey_of
from tritoncrf.synthetic import noisy_scores

# Details of Hopper at half its size: rows and columns. The small ones let the exact sum run in a second.
LOWER, UPPER = np.s_[100:300, 0:256], np.s_[0:200, 0:256]
HEAD, NECK = np.s_[20:120, 66:194], np.s_[110:210, 66:194]


def failures() -> Figure:
    whole = pictures.hopper().halved()
    panels = [*window(whole), *guided(whole), *lattice(whole.cropped(HEAD)), *exact(whole.cropped(NECK))]
    return sheet(panels, 3, whole)


def window(whole: Picture) -> list[Panel]:
    scores = noisy_scores(whole.truth, len(whole.classes), scale=32)
    near, far = (refined(whole, scores, method=method)[LOWER] for method in ("window", "lattice"))
    shown = whole.cropped(LOWER)
    return [
        labelled("Input labels", shown, scores.argmax(0)[LOWER], "flaws 32 pixels wide"),
        labelled("Window: wide flaws stay", shown, near, "reaches 22 pixels"),
        labelled("Lattice", shown, far, "reaches all pixels"),
    ]


def guided(whole: Picture) -> list[Panel]:
    scores = noisy_scores(whole.truth, len(whole.classes), scale=16)
    near, far = (refined(whole, scores, method="guided", radius=radius)[UPPER] for radius in (3, 16))
    shown = whole.cropped(UPPER)
    return [
        labelled("Input labels", shown, scores.argmax(0)[UPPER], "flaws 16 pixels wide"),
        labelled("Guided: wide flaws stay", shown, near, f"radius 3, {hair_found(shown, near):.0%} of hair"),
        labelled("Guided: small things go", shown, far, f"radius 16, {hair_found(shown, far):.0%} of hair"),
    ]


def lattice(picture: Picture) -> list[Panel]:
    scores = noisy_scores(picture.truth, len(picture.classes))
    sharp = {"probabilities": scores, "theta_color": 3}
    rough, exact = (picture.refined(method, **sharp) for method in ("lattice", "exact"))
    error = np.abs(rough - exact).max(0)
    drawn = 0.6 + 0.4 * grey_of(picture.image)
    drawn = drawn + error[..., None] * (to_rgb(BROKEN) - drawn)
    unlike = (rough.argmax(0) != exact.argmax(0)).mean()
    return [
        labelled("Exact", picture, exact.argmax(0), "theta_color 3"),
        labelled("Lattice: approximate", picture, rough.argmax(0), "theta_color 3"),
        Panel("Where they differ", f"{unlike:.1%} of the labels", enlarged(drawn)),
    ]


def exact(picture: Picture) -> list[Panel]:
    scores = noisy_scores(picture.truth, len(picture.classes))

    def panel(title, labels):
        return labelled(title, picture, labels, f"{hair_found(picture, labels):.0%} of hair")

    return [
        panel("Input labels", scores.argmax(0)),
        panel("Exact: like colours merge", refined(picture, scores, method="exact")),
        panel("Guided, radius 8", refined(picture, scores, method="guided", radius=8)),
    ]


def refined(picture: Picture, scores: np.ndarray, **settings) -> np.ndarray:
    return picture.refined(probabilities=scores, **settings).argmax(0)


def hair_found(picture: Picture, labels: np.ndarray) -> float:
    hair = picture.classes.index("hair")
    return (labels == hair)[picture.truth == hair].mean()

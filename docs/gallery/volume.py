"""A volume refined as one, and slice by slice: a phantom of ellipsoids, not a patient."""

import numpy as np
import torch
from matplotlib.figure import Figure

import tritoncrf as tc
from docs.gallery.pictures import Picture
from docs.gallery.sheet import Panel, labelled, photographed, sheet
from tritoncrf.synthetic import noisy_scores

SIZE, SPACING = (24, 112, 112), (2.5, 0.8, 0.8)  # voxels, (z, y, x); millimetres from one to the next
CLASSES = ("air", "body", "large organ", "small organ", "bone", "lesion")
# Centre and half axes in millimetres, and the grey level, of each class after the first.
ELLIPSOIDS = (
    ((0, 0, 0), (34, 38, 41), 90),
    ((0, -4, -16), (22, 20, 17), 150),
    ((3, 4, 22), (15, 14, 8), 120),
    ((0, 24, 0), (60, 7, 7), 215),
    ((-2, -8, -18), (7, 6, 6), 75),
)
NOISE = 25  # grey levels
SHOWN = (9, 13)  # slices


def volume() -> Figure:
    scan, truth = phantom()
    noisy = [noisy_scores(labels, len(CLASSES), keep=0.7, seed=z) for z, labels in enumerate(truth)]
    scores = np.stack(noisy, axis=1)  # [C, Z, Y, X]
    image, logits = torch.from_numpy(scan)[None, None], torch.from_numpy(scores)[None].clamp(min=1e-5).log()
    # A voxel depends on about as many: 19 x 19 are 361, 7 x 7 x 7 are 343.
    slices = [refined(logits[:, :, z], image[:, :, z], 19, SPACING[1:]) for z in range(SIZE[0])]
    results = {
        "Input labels": scores.argmax(0),
        "Slice by slice": np.stack(slices),
        "As one volume": refined(logits, image, 7, SPACING),
    }
    shown = [Picture(scan[z], truth[z], CLASSES) for z in SHOWN]
    depth, height, width = SIZE
    size = f"{depth} slices of {width} x {height}"
    panels = [column("Phantom", size, [photographed("", "", picture) for picture in shown])]
    for title, labels in results.items():
        parts = [labelled("", picture, labels[z]) for z, picture in zip(SHOWN, shown)]
        panels.append(column(title, f"{(labels == truth).mean():.1%} of voxels right", parts))
    return sheet(panels, 4, Picture(scan, truth, CLASSES))


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """The scan and the classes, [Z, Y, X] in uint8."""
    axes = [(np.arange(n) - (n - 1) / 2) * spacing for n, spacing in zip(SIZE, SPACING)]
    position = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)  # [Z, Y, X, 3]
    truth, grey = np.zeros(SIZE, np.uint8), np.full(SIZE, 20.0)
    for number, (centre, half_axes, level) in enumerate(ELLIPSOIDS, 1):
        inside = (((position - centre) / half_axes) ** 2).sum(-1) < 1
        truth[inside], grey[inside] = number, level
    noise = np.random.default_rng(0).normal(0, NOISE, SIZE)
    return np.clip(grey + noise, 0, 255).astype(np.uint8), truth


def refined(logits: torch.Tensor, image: torch.Tensor, window_size: int, spacing) -> np.ndarray:
    """Labels [*S]; bandwidths are in millimetres."""
    near = tc.features.spatial(image.shape[2:], theta=2.4, spacing=spacing)
    alike = tc.features.bilateral(image, theta_space=20, theta_color=20, spacing=spacing)
    filters = [tc.filters.Window(f, window_size, normalization="symmetric") for f in (near, alike)]
    return tc.mean_field(logits, filters, weights=[3.0, 10.0])[0].argmax(0).numpy()


def column(title: str, subtitle: str, parts: list[Panel]) -> Panel:
    """The pictures of the parts, one above the other."""
    gap = np.ones((16, *parts[0].picture.shape[1:]))
    stacked = [row for part in parts for row in (part.picture, gap)]
    return Panel(title, subtitle, np.concatenate(stacked[:-1]))

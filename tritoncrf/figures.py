"""Figures of a refinement, and the colours of its labels."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tritoncrf.diagnostics import Record

__all__ = [
    "comparison",
    "OUTSIDE",
    "grey_of",
    "head",
    "legend",
    "legend_entries",
    "methods",
    "overlay",
    "palette",
    "plain",
    "trace",
    "voc_palette",
]

# A grey for class 0, usually the background; then the seven colours of Okabe and Ito (2008); then 13 chosen one by one,
# each farthest in OKLab from the earlier ones for normal, protanopic and deuteranopic vision.
DISTINCT = (
    "5B6066 E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7 222255 FFFFFF 2F4BFF "
    "99DDFF 5B3A1E 5D2E8C FFD9B3 EE99AA DDCC77 666633 AA4499 6699CC EE6677"
)
REPAIRED, BROKEN, STILL_WRONG = "#0072B2", "#D55E00", "#F0E442"
INK, MUTED = "#1F2328", "#6B7280"
GAP, TITLE_HEIGHT = 0.12, 0.62  # inches
MOST_PIXELS = 1200  # a side; the most that a panel shows
MOST_NAMES = 24
OUTSIDE = -2  # in a label map: not a pixel of the picture

Entry: TypeAlias = tuple[Any, str]  # of a legend: a colour in matplotlib's form, and the text


def palette() -> npt.NDArray[np.uint8]:
    """[256, 3] uint8 colours: 21 that colour-blind readers can distinguish, then hues by the golden angle."""
    distinct = [[int(h[i : i + 2], 16) for i in (0, 2, 4)] for h in DISTINCT.split()]
    others = []
    for n in range(256 - len(distinct)):
        saturation, value = ((0.55, 0.95), (0.85, 0.75), (0.75, 0.45))[n % 3]
        others.append([round(255 * v) for v in colorsys.hsv_to_rgb(n * 0.618034 % 1, saturation, value)])
    return np.array(distinct + others, dtype=np.uint8)


def voc_palette() -> npt.NDArray[np.uint8]:
    """[256, 3] uint8 colours of PASCAL VOC's label files: the bits of a label, from the lowest, in turn to red, green
    and blue, from the highest."""
    label = np.arange(256)[:, None]
    bits = [(label >> 3 * n + np.arange(3) & 1) << 7 - n for n in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


def comparison(
    image: npt.ArrayLike, before: npt.ArrayLike, after: npt.ArrayLike, *, truth: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None, seconds: float | None = None,
) -> "Figure":  # fmt: skip
    """Image, input labels, refined labels and what changed, side by side.

    Args:
        image: [H, W, 3] or [H, W]; uint8, or floating-point from 0 to 1.
        before, after: integer labels [H, W]; negative where unknown, OUTSIDE where there is no picture.
        truth: [H, W] integer labels, if known: the last panel then distinguishes repaired from broken
            pixels, and the titles give the accuracies.
        names: class names in order; numbers by default.
        seconds: time of the refinement, for its title.

    Returns:
        A matplotlib Figure without a window; `figure.savefig(file)` writes it.
    """
    before, after = (np.asarray(labels).astype(int) for labels in (before, after))
    height, width = before.shape
    grey = grey_of(image)
    panels = [
        ("Image", f"{width} x {height} pixels", _rgb(image)),
        ("Input labels", _accuracy(before, truth), overlay(grey, before)),
        ("Refined labels", _join(_accuracy(after, truth), _duration(seconds)), overlay(grey, after)),
        ("What changed", *_changes(grey, before, after, truth)),
    ]
    rows, columns = (1, 4) if width <= 1.15 * height else (2, 2)
    return _figure(
        panels, rows, columns, 3.6 if rows == 1 else 5.6, legend_entries([before, after], names), _key(truth)
    )


def methods(
    image: npt.ArrayLike, before: npt.ArrayLike, refined: Mapping[str, tuple[npt.ArrayLike, float]], *,
    truth: npt.ArrayLike | None = None, names: Sequence[str] | None = None,
) -> "Figure":  # fmt: skip
    """Input labels and the results of several methods, side by side.

    Args:
        image, before, truth, names: as in `comparison`.
        refined: by the method's name, [H, W] integer labels and the seconds that they took.

    Returns:
        A matplotlib Figure without a window; `figure.savefig(file)` writes it.
    """
    before, grey = np.asarray(before).astype(int), grey_of(image)
    panels = [("Input labels", _accuracy(before, truth), overlay(grey, before))]
    for name, (labels, seconds) in refined.items():
        labels = np.asarray(labels).astype(int)
        panels.append((name, _join(_accuracy(labels, truth), _duration(seconds)), overlay(grey, labels)))
    return _figure(panels, 1, len(panels), 2.9, legend_entries([before], names), [])


def _figure(
    panels: Sequence[tuple[str, str, np.ndarray]], rows: int, columns: int, panel_width: float,
    entries: Sequence[Entry], key: Sequence[Entry],
) -> "Figure":  # fmt: skip
    """(title, subtitle, picture) of each panel, over a key on the right and the legend of the classes."""
    from matplotlib.figure import Figure

    height, width, _ = panels[0][2].shape
    step = -(-max(height, width) // MOST_PIXELS)
    panel_height = panel_width * height / width
    per_row = max(1, int(columns * panel_width / 2.05))
    key_height = 0.3 if key else 0
    legend_height = 0.28 + key_height + 0.22 * -(-len(entries) // per_row)
    size = (columns * (panel_width + GAP) + GAP, rows * (panel_height + TITLE_HEIGHT) + legend_height)

    figure = Figure(figsize=size, dpi=150, facecolor="white")
    for n, (title, subtitle, picture) in enumerate(panels):
        row, column = divmod(n, columns)
        left = GAP + column * (panel_width + GAP)
        bottom = size[1] - (row + 1) * (panel_height + TITLE_HEIGHT)
        axes = figure.add_axes(
            (left / size[0], bottom / size[1], panel_width / size[0], panel_height / size[1]), xticks=[], yticks=[]
        )
        axes.imshow(picture[::step, ::step], interpolation="antialiased", aspect="auto")
        axes.spines[:].set_visible(False)
        head(axes, title, subtitle)

    if key:
        legend(figure, key, len(key), "upper right", (1 - GAP / size[0], (legend_height - 0.1) / size[1]))
    legend(figure, entries, per_row, "upper left", (GAP / size[0], (legend_height - 0.1 - key_height) / size[1]))
    return figure


def trace(records: Sequence["Record"]) -> "Figure":
    """The course of mean field: free energy, energy, entropy and changed labels over the iterations.

    Args:
        records: those of `tritoncrf.trace`, at least one.

    Returns:
        A matplotlib Figure without a window; `figure.savefig(file)` writes it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    iterations = [r.iteration for r in records]
    changes = records[1:]  # nothing precedes the first
    total = {
        "energy": (MUTED, [r.energy for r in records]),
        "free energy": (REPAIRED, [r.free_energy for r in records]),
    }
    panels = [
        ("Free energy", "KL divergence up to a constant, nats", iterations, total),
        ("Entropy", "nats per pixel", iterations, {"": (REPAIRED, [r.entropy for r in records])}),
        (
            "Labels changed", "% of the pixels, since the previous iteration", [r.iteration for r in changes],
            {"": (REPAIRED, [100 * r.changed for r in changes])},
        ),
    ]  # fmt: skip
    figure = Figure(figsize=(13.5, 4), dpi=150, facecolor="white")
    for n, (title, subtitle, x, curves) in enumerate(panels):
        axes = figure.add_axes((0.06 + 0.325 * n, 0.13, 0.26, 0.68))
        for name, (color, y) in curves.items():
            axes.plot(x, y, color=color, marker="o", markersize=4, label=name)
        plain(axes, "iteration")
        axes.set_xlim(-0.3, iterations[-1] + 0.3)
        axes.yaxis.set_major_formatter(EngFormatter() if curves is total else ScalarFormatter(useOffset=False))
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK)
        head(axes, title, subtitle)
    return figure


def plain(axes: "Axes", xlabel: str) -> None:
    """Format axes for curves over integers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E7EB")


def head(axes: "Axes", title: str, subtitle: str) -> None:
    """Write two lines above a panel."""
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "left", "va": "baseline"}
    axes.annotate(title, (0, 1), (0, 21), fontsize=13, fontweight="bold", color=INK, **above)
    axes.annotate(subtitle, (0, 1), (0, 7), fontsize=10, color=MUTED, **above)


def _rgb(image: npt.ArrayLike) -> np.ndarray:
    """[H, W, 3] floats from 0 to 1."""
    image = np.asarray(image)
    image = image / 255 if image.dtype == np.uint8 else image
    image = np.clip(image, 0, 1)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def grey_of(image: npt.ArrayLike) -> np.ndarray:
    """The grey levels of an image [H, W, 3] or [H, W], uint8 or floating-point from 0 to 1: [H, W, 3] floats from 0 to
    1, equal in all channels."""
    return np.repeat((_rgb(image) @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)


def overlay(grey: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The colours of the labels over the grey image, none where negative, with a light line along borders."""
    colors = palette()[labels % 256] / 255
    mixed = np.where((labels < 0)[..., None], grey, 0.35 * grey + 0.65 * colors)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return np.where(edge[..., None], 0.5 * mixed + 0.5, mixed)


def _changes(
    grey: np.ndarray, before: np.ndarray, after: np.ndarray, truth: npt.ArrayLike | None
) -> tuple[str, np.ndarray]:
    """A subtitle, and the picture of the changes over a pale image."""
    from matplotlib.colors import to_rgb

    pale = 0.72 + 0.28 * grey
    changed = before != after
    if truth is None:
        colors = palette()[after % 256] / 255
        share = changed.sum() / (after > OUTSIDE).sum()
        return f"{share:.1%} of the pixels", np.where(changed[..., None], 0.15 * pale + 0.85 * colors, pale)
    repaired, broken = changed & (after == truth), changed & (before == truth)
    for mask, color in ((repaired, REPAIRED), (broken, BROKEN), ((before != truth) & (after != truth), STILL_WRONG)):
        pale = np.where(mask[..., None], to_rgb(color), pale)
    return f"{repaired.sum():,} repaired, {broken.sum():,} broken", pale


def _accuracy(labels: np.ndarray, truth: npt.ArrayLike | None) -> str:
    return "" if truth is None else f"{(labels == truth).mean():.1%} right"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def legend_entries(maps: Sequence[np.ndarray], names: Sequence[str] | None) -> list[Entry]:
    """(colour, text) of the classes present, sorted by their share in the last map; with several maps, the text has the
    share in each."""
    shares = [{c: n / (x > OUTSIDE).sum() for c, n in zip(*np.unique(x, return_counts=True)) if c >= 0} for x in maps]
    present = sorted(set().union(*shares), key=lambda c: -shares[-1].get(c, 0))
    entries = []
    for c in present[:MOST_NAMES]:
        name = f"class {c}" if names is None else names[c]
        change = " \N{RIGHTWARDS ARROW} ".join(f"{100 * share.get(c, 0):.1f}" for share in shares)
        entries.append((palette()[c % 256] / 255, f"{name}  {change} %" if len(maps) > 1 else name))
    if len(present) > MOST_NAMES:
        entries.append(("none", f"and {len(present) - MOST_NAMES} more"))
    return entries


def _key(truth: npt.ArrayLike | None) -> list[Entry]:
    if truth is None:
        return []
    return [(REPAIRED, "repaired"), (BROKEN, "broken"), (STILL_WRONG, "still wrong")]


def legend(figure: "Figure", entries: Sequence[Entry], columns: int, corner: str, at: tuple[float, float]) -> None:
    """Rows of coloured squares with names, with the given corner at a place in the figure."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor="#9CA3AF", linewidth=0.5, label=text) for color, text in entries]
    style: dict[str, Any] = {
        "handlelength": 1.1, "handleheight": 1.1, "columnspacing": 1.3, "borderpad": 0, "borderaxespad": 0,
        "ncols": min(columns, len(handles)), "loc": corner, "bbox_to_anchor": at, "frameon": False,
    }  # fmt: skip
    figure.legend(handles=handles, fontsize=10, labelcolor=INK, **style)

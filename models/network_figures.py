"""Figures of a segmentation network: its training, its mistakes, its learned CRF and what the CRF changes.

Each function returns a matplotlib Figure without a window; `figure.savefig(file)` writes it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tritoncrf.figures import (
    BROKEN,
    GAP,
    INK,
    MOST_PIXELS,
    MUTED,
    REPAIRED,
    TITLE_HEIGHT,
    grey_of,
    head,
    legend,
    legend_entries,
    overlay,
    palette,
    plain,
)
from tritoncrf.models.metrics import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tritoncrf.models.tuning import Tuned

__all__ = ["compatibility", "confusion", "curves", "overlay_picture", "panel", "searched", "trimap"]

LINES = palette()[[5, 6, 3, 7, 1, 2, 8]] / 255  # the colours that are visible on white
MOST_NUMBERS = 24  # classes; with more, numbers do not fit into the cells
MISSING = "#F3F4F6"
PANEL_WIDTH = 2.9  # inches


def curves(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Training by epoch: the loss above, the mean IoU of the validation split below.

    Args:
        rows: one per epoch of all phases in order, with numbers or strings, as csv.DictReader reads a log. It draws
            "loss" and "val_loss", "val_miou" and "val_unary_miou" (from 0 to 1), and a line where "phase" changes;
            None, "" or a missing entry is a gap.

    Raises:
        ValueError: no rows.

    Example:
        >>> figure = curves([{"phase": "unary", "loss": 2.0, "val_miou": 0.25}, {"phase": "crf", "loss": 1.0}])
    """
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("rows: expected at least one epoch, got none")
    epochs = range(1, len(rows) + 1)
    starts = [n for n in epochs if n == 1 or rows[n - 1].get("phase") != rows[n - 2].get("phase")]
    panels = [
        ("Loss", "mean cross-entropy, nats per pixel", 1, {"loss": "training", "val_loss": "validation"}),
        ("Mean IoU", "validation, %", 100, {"val_unary_miou": "without CRF", "val_miou": "with CRF"}),
    ]
    figure = Figure(figsize=(9, 7), dpi=150, facecolor="white")
    for n, (title, subtitle, scale, lines) in enumerate(panels):
        axes = figure.add_axes((0.08, 0.56 - 0.475 * n, 0.88, 0.335))
        found = {label: [scale * _number(row.get(key)) for row in rows] for key, label in lines.items()}
        found = {label: values for label, values in found.items() if not all(map(math.isnan, values))}
        for label, values in found.items():
            color = MUTED if label in ("training", "without CRF") else REPAIRED
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, linewidth=1.5, label=label)
        for start in starts[1:]:
            axes.axvline(start - 0.5, color=MUTED, linewidth=0.8)
        plain(axes, "epoch")
        axes.set_xlim(0.5, len(rows) + 0.5)
        if len(found) > 1:
            axes.legend(
                frameon=False, labelcolor=INK, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2
            )
        head(axes, title, subtitle)

    upper = figure.axes[0]
    upper.set_xlabel("")
    upper.tick_params(labelbottom=False)
    for n, (start, after) in enumerate(zip(starts, [*starts[1:], len(rows) + 1])):
        upper.annotate(
            rows[start - 1].get("phase") or "", ((start + after - 1) / 2, 0), (0, -14 - 12 * (n % 2)),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    return figure


def confusion(matrix: npt.ArrayLike, names: Sequence[str]) -> "Figure":
    """A confusion matrix; every row shows shares of the pixels of its true class.

    Args:
        matrix: counts [C, C], rows truth; an array, or a tensor on the CPU.
        names: of the classes.

    Raises:
        ValueError: not [C, C] for C names.

    Example:
        >>> figure = confusion([[90, 10], [5, 20]], names=["road", "tree"])
    """
    counts = _square(matrix, names)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    subtitle = "% of the pixels of a true class (row), by predicted class (column)"
    return _heat_map(shares, names, "Confusion", subtitle, ["white", REPAIRED], (0, 100), 0)


def compatibility(matrix: npt.ArrayLike, names: Sequence[str]) -> "Figure":
    """A compatibility matrix that a CRF learned, as in figure 5 of Zheng et al., "Conditional Random Fields as
    Recurrent Neural Networks" (ICCV 2015).

    Args:
        matrix: mu [C, C]; an array, or a tensor on the CPU without a gradient. Rows are the label of a pixel, columns
            that of its neighbour; positive costs repel.
        names: of the classes.

    Raises:
        ValueError: not [C, C] for C names, or not finite.
    """
    costs = _square(matrix, names)
    if not np.isfinite(costs).all():
        raise ValueError("matrix: expected finite numbers, got NaN or infinite ones")
    largest = float(np.abs(costs).max()) or 1.0
    subtitle = "cost of a label (row) beside another (column): positive repels, negative attracts"
    colors = [REPAIRED, "white", BROKEN]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return _heat_map(costs, names, "Compatibility", subtitle, colors, (-largest, largest), decimals)


def panel(
    images: Sequence[np.ndarray], truths: Sequence[np.ndarray], unaries: Sequence[np.ndarray],
    refined: Sequence[np.ndarray] | None, names: Sequence[str],
) -> "Figure":  # fmt: skip
    """Rows of image, truth, labels without the CRF and labels with it.

    Args:
        images: [H, W, 3] or [H, W] each, uint8, or floating-point from 0 to 1; sizes may differ.
        truths, unaries: integer labels [H, W] each; a true label that is not an index of `names` is unknown, and is
            left out of the shares of right pixels in the titles.
        refined: like `unaries`, or None without a CRF.
        names: of the classes.

    Raises:
        ValueError: no images, or another number of label maps.
    """
    from matplotlib.figure import Figure

    columns = {"Truth": truths, "Without CRF" if refined is not None else "Predicted": unaries}
    if refined is not None:
        columns["With CRF"] = refined
    if not len(images) or any(len(maps) != len(images) for maps in columns.values()):
        raise ValueError(f"images: expected as many as maps, at least one, got {len(images)} and {len(truths)} truths")
    columns = {title: [_classes(labels, len(names)) for labels in maps] for title, maps in columns.items()}
    pictures = [[grey_of(image) if np.ndim(image) == 2 else image for image in images]]
    pictures += [[_labelled(image, x) for image, x in zip(images, maps)] for maps in columns.values()]
    subtitles = ["", "", *(_right(maps, columns["Truth"]) for maps in list(columns.values())[1:])]

    shown = np.concatenate([labels.ravel() for maps in columns.values() for labels in maps])
    entries = legend_entries([shown], names)
    if (shown < 0).any():
        entries.append((MISSING, "unknown (striped)"))
    width = len(pictures) * (PANEL_WIDTH + GAP) + GAP
    per_row = max(1, int(width / 1.7))
    legend_height = 0.28 + 0.22 * -(-len(entries) // per_row)
    heights = [PANEL_WIDTH * np.shape(image)[0] / np.shape(image)[1] for image in images]
    height = TITLE_HEIGHT + sum(heights) + GAP * (len(images) - 1) + legend_height

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    top = height - TITLE_HEIGHT
    for row, row_height in enumerate(heights):
        for column, (title, subtitle) in enumerate(zip(("Image", *columns), subtitles)):
            left = GAP + column * (PANEL_WIDTH + GAP)
            place = left / width, (top - row_height) / height, PANEL_WIDTH / width, row_height / height
            axes = figure.add_axes(place, xticks=[], yticks=[])
            picture = pictures[column][row]
            step = -(-max(picture.shape[:2]) // MOST_PIXELS)
            axes.imshow(picture[::step, ::step], interpolation="antialiased", aspect="auto")
            axes.spines[:].set_visible(False)
            if row == 0:
                head(axes, title, subtitle)
        top -= row_height + GAP
    legend(figure, entries, per_row, "upper left", (GAP / width, (legend_height - 0.1) / height))
    return figure


def overlay_picture(image: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The colours of labels over a grey photo, uint8 [H, W, 3].

    Args:
        image: [H, W, 3] or [H, W]; uint8, or floating from 0 to 1.
        labels: [H, W] integers; negative where unknown, which stays grey.

    Example:
        >>> overlay_picture(np.full((2, 3, 3), 100, np.uint8), np.full((2, 3), 3))[0, 0]
        array([ 35, 138, 110], dtype=uint8)
    """
    return np.round(255 * overlay(grey_of(image), np.asarray(labels).astype(int))).astype(np.uint8)


def trimap(results: Mapping[str, Result]) -> "Figure":
    """Metrics near the borders of objects against the width of the band, for several labellings.

    Args:
        results: results by name of the labelling, with at least one width.

    Raises:
        ValueError: no results.
    """
    from matplotlib.figure import Figure

    if not results:
        raise ValueError("results: expected at least one, got none")
    panels = [
        ("Trimap accuracy", "% of the pixels near a border that are right", "trimap_accuracy"),
        ("Trimap mean IoU", "% over the pixels near a border", "trimap_miou"),
        ("Boundary IoU", "% mean over the classes", "boundary_iou"),
    ]
    figure = Figure(figsize=(13.5, 4.2), dpi=150, facecolor="white")
    for n, (title, subtitle, field) in enumerate(panels):
        axes = figure.add_axes((0.05 + 0.33 * n, 0.22, 0.27, 0.60))
        for k, (name, result) in enumerate(results.items()):
            values = getattr(result, field)
            style = {"color": LINES[k % len(LINES)], "linestyle": ("-", "--", ":")[k // len(LINES) % 3]}
            axes.plot([*values], [100 * v for v in values.values()], marker="o", markersize=4, label=name, **style)
        plain(axes, "width of the band, pixels")
        head(axes, title, subtitle)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", ncols=7, frameon=False, labelcolor=INK, bbox_to_anchor=(0.04, 0))
    return figure


def _heat_map(
    values: np.ndarray, names: Sequence[str], title: str, subtitle: str, colors: list[str],
    limits: tuple[float, float], decimals: int,
) -> "Figure":  # fmt: skip
    """A picture of a matrix, its numbers in the cells where they fit; NaN is blank."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    count = len(names)
    cell = min(0.5, max(0.09, 9 / count))  # inches
    font = min(10, 55 * cell)
    margin = 0.35 + font / 72 * 0.6 * max(len(name) for name in names)
    side = max(count * cell, 1.6)
    width, height = margin + side + 1.1, margin + side + TITLE_HEIGHT
    width = max(width, margin + 5.6)  # the width of the subtitle

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    colormap = LinearSegmentedColormap.from_list("", colors).with_extremes(bad=MISSING)
    drawn = axes.imshow(values, cmap=colormap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_xticks(range(count), names, rotation=90, fontsize=font, color=INK)
    axes.set_yticks(range(count), names, fontsize=font, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    head(axes, title, subtitle)
    if count <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                size = abs(value) / limits[1]
                color = "white" if size > 0.6 else INK if size >= 0.005 else MUTED
                place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 0.75 * font, "color": color}
                axes.text(column, row, f"{round(value, decimals) + 0.0:.{decimals}f}", **place)
    bar = figure.colorbar(
        drawn, cax=figure.add_axes(((margin + side + 0.2) / width, margin / height, 0.15 / width, side / height))
    )
    bar.ax.tick_params(colors=MUTED)
    bar.outline.set_visible(False)
    return figure


def _square(matrix: npt.ArrayLike, names: Sequence[str]) -> npt.NDArray[np.float64]:
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (len(names), len(names)):
        wanted = f"[{len(names)}, {len(names)}] for {len(names)} names"
        raise ValueError(f"matrix: expected {wanted}, got shape {list(values.shape)}")
    return values


def _number(value: float | str | None) -> float:
    return math.nan if value is None or value == "" else float(value)


def _classes(labels: npt.ArrayLike, count: int) -> np.ndarray:
    """Integers, with -1 for values that are not a class."""
    labels = np.asarray(labels).astype(int)
    return np.where(labels < count, labels, -1)


def _labelled(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An overlay with pale stripes, which no class has, where the label is unknown."""
    grey = grey_of(image)
    period = 1 + max(labels.shape) // 60
    stripes = np.add.outer(*map(np.arange, labels.shape)) // period % 2 / 4  # 0 or 1/4
    pale = (0.6 + 0.4 * grey) * (1 - stripes[..., None])
    return overlay(np.where((labels < 0)[..., None], pale, grey), labels)


def _right(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> str:
    known = sum((truth >= 0).sum() for truth in truths)
    right = sum(((labels == truth) & (truth >= 0)).sum() for labels, truth in zip(maps, truths))
    return f"{right / known:.1%} right" if known else ""


def searched(tuned: "Tuned") -> "Figure":
    """A search for settings: the measure of every trial against each parameter, a colour for each fold.

    Args:
        tuned: the result of `tritoncrf.tune`. A line marks each fold's choice if it is a trial.
    """
    from matplotlib.figure import Figure

    trials = [trial for fold in tuned.folds for trial in fold.trials]
    names = [name for name in trials[0].parameters if name not in ("method", "compatibility")]
    width, height = PANEL_WIDTH * min(3, len(names)), 2.3 * -(-len(names) // 3)
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    for n, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // 3), min(3, len(names)), n + 1)
        for k, fold in enumerate(tuned.folds):
            color = LINES[k % len(LINES)]
            axes.plot(
                [_setting(trial.parameters[name]) for trial in fold.trials], [100 * t.value for t in fold.trials], "o",
                color=color, markersize=3, alpha=0.6,
            )  # fmt: skip
            if name in fold.parameters and fold.chosen.startswith("trial"):
                axes.axvline(_setting(fold.parameters[name]), color=color, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlabel(name, color=MUTED)
        axes.tick_params(colors=MUTED, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("percent", color=MUTED, fontsize=9)
    return figure


def _setting(value: float | str) -> float:
    return float(value.removesuffix("%")) if isinstance(value, str) else float(value)

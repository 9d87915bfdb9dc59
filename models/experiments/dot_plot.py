"""Plots of estimates with error bars."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tritoncrf.figures import INK, MUTED, head, palette
from tritoncrf.models.experiments.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = palette()[[5, 6, 3, 7]] / 255
ROW, PANEL, SPACE, TOP, BELOW = 0.27, 3.3, 0.3, 0.75, 0.55  # inches


def dots(
    found: Mapping[str, Mapping[str, Mapping[str, Estimate]]], unit: str = "%", differences: bool = False
) -> "Figure":
    """Estimates with their error bars: a panel for each outer key, a colour for each inner one, a row for each name.

    Args:
        found: shares, by panel, series and name.
        unit: the unit of 100 times a share, for the axis.
        differences: draw a line at zero.
    """
    from matplotlib.figure import Figure

    legend: list[str] = []
    names = list(dict.fromkeys(name for panel in found.values() for series in panel.values() for name in series))
    labels = 0.075 * max(map(len, names)) + 0.3
    width, height = labels + len(found) * (PANEL + SPACE), TOP + ROW * len(names) + BELOW
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    for n, (title, series) in enumerate(found.items()):
        place = (labels + n * (PANEL + SPACE)) / width, BELOW / height, PANEL / width, ROW * len(names) / height
        axes = figure.add_axes(place)
        for k, (label, estimates) in enumerate(series.items()):
            # Offset from each other where several share a row.
            shift = 0.5 * (k - (len(series) - 1) / 2) / len(series)
            at = [names.index(name) + shift for name in estimates]
            values = [100 * estimate.value for estimate in estimates.values()]
            errors = [100 * estimate.error for estimate in estimates.values()]
            style = {"color": COLORS[k % len(COLORS)], "markersize": 4.5, "elinewidth": 1.3, "label": label}
            axes.errorbar(values, at, xerr=errors, fmt="o", **style)
        if differences:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names if n == 0 else [], fontsize=10, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", colors=MUTED)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="both", color="#E5E7EB")
        axes.set_axisbelow(True)
        axes.set_xlabel(unit, color=MUTED)
        head(axes, title, "")
        if len(series) > 1 and list(series) != legend:  # neighbouring panels share the first one's legend
            legend = list(series)
            axes.legend(
                frameon=False, labelcolor=INK, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1), borderpad=0,
                handletextpad=0.2, columnspacing=1.0, fontsize=9,
            )  # fmt: skip
    return figure

"""Figures of a report: the growth of times, and times compared with those of peers.

Each function returns a matplotlib Figure without a window.
"""

import math
from pathlib import Path

import numpy as np

from bench import growth
from bench.measurements import key, ratios
from bench.workloads import GRACE_HOPPER
from tritoncrf.figures import INK, MUTED, REPAIRED, head, legend, palette
from tritoncrf.files import save_small_figure
from tritoncrf.reports import number

OURS = "tritoncrf"
COLORS = {OURS: REPAIRED} | dict(
    zip(("im2col", "pydensecrf", "torch_boxes", "kornia", "pykeops"), palette()[[1, 2, 3, 7, 6]] / 255)
)
STAGE_COLORS = {"apply": REPAIRED, "build": palette()[6] / 255}
WORKS = {"window": "W1", "lattice": "W2", "guided": "W3", "exact": "W4"}
COUNTED = "#C4C8CE"  # the counted work
PANEL, COLUMN, BAR, GAP = (2.75, 3.05), 6.8, 0.19, 0.6  # inches, except the gap between groups, in bars
DPI = 100
COLORS_OF_A_FILE = 64


def draw(name: Path, rows: list[dict]) -> dict[str, str]:
    """Save name-times.png and name-growth.png if there are rows for them; returns their captions by file name."""
    drawn = {}
    if groups := whole_calls(rows):
        drawn["times"] = times(groups), "times of whole calls, with those of peers"
    if curves := growth.curves(rows):
        drawn["growth"] = growing(curves), "growth of times along one axis at a time"
    for kind, (figure, _) in drawn.items():
        save_small_figure(Path(f"{name}-{kind}.png"), figure, DPI, COLORS_OF_A_FILE)
    return {f"{name.name}-{kind}.png": words for kind, (_, words) in drawn.items()}


def growing(curves: list[growth.Curve]):
    """A row of panels for each filter, a panel for each axis: points, fitted power law, and the expected slope."""
    from matplotlib.figure import Figure

    filters = list(dict.fromkeys(curve.filter for curve in curves))
    axes_of = {f: list(dict.fromkeys(curve.axis for curve in curves if curve.filter == f)) for f in filters}
    columns = max(map(len, axes_of.values()))
    width, height = max(6.0, 0.4 + PANEL[0] * columns), 0.5 + PANEL[1] * len(filters)
    figure = Figure(figsize=(width, height), facecolor="white")
    for row, filter in enumerate(filters):
        for column, axis in enumerate(axes_of[filter]):
            place = 0.65 + PANEL[0] * column, height - PANEL[1] * (row + 1) + 0.45
            axes = figure.add_axes((place[0] / width, place[1] / height, 2.15 / width, 1.95 / height))
            chosen = [curve for curve in curves if (curve.filter, curve.axis) == (filter, axis)]
            _panel(axes, chosen, axis, f"{filter} filter" if column == 0 else "")
    entries = [(STAGE_COLORS["apply"], "one application"), (STAGE_COLORS["build"], "build")]
    entries += [(COUNTED, "growth of the counted work (dashed)")]
    legend(figure, entries, 3, "lower left", (0.65 / width, 0.1 / height))
    return figure


def _panel(axes, curves: list[growth.Curve], axis: str, title: str):
    lowest, highest = (edge([s for c in curves for s in c.seconds]) * 1e3 for edge in (min, max))
    for n, curve in enumerate(curves):
        color, values = STAGE_COLORS[curve.stage], curve.values
        axes.plot(values, [1e3 * s for s in curve.seconds], "o", color=color, markersize=4)
        fitted = values[curve.fitted]
        axes.plot(fitted, 1e3 * curve.law.at(fitted), color=color, linewidth=1.5)
        # Through the end of the fitted line, since only the slopes are compared.
        counted = curve.expected.at(values)
        axes.plot(values, 1e3 * curve.law.at(fitted[-1]) * counted / counted[-1], "--", color=COUNTED, zorder=0)
        text = "{}, expected {}".format(*growth.in_words(curve))
        axes.annotate(text, (0.03, 0.9 - 0.12 * n), xycoords="axes fraction", fontsize=8.5, color=color)
    axes.set(xscale="log", yscale="log", ylim=(lowest / 2, max(20 * lowest, 8 * highest)))
    values = curves[0].values
    axes.set_xticks(values, [f"{math.isqrt(v)}²" if axis == "pixels" else v for v in values])
    axes.set_xlabel(axis, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=7.5)
    axes.tick_params(which="minor", bottom=False, labelbottom=False, labelleft=False)
    axes.spines[["top", "right"]].set_visible(False)
    head(axes, title, "ms" if title else "")


def whole_calls(rows: list[dict]) -> list[list[dict]]:
    """For each work, the fastest run of this library and of its peers, for the picture that all have."""
    groups = {}
    for row in rows:
        whole = row["work"] in ("W1", "W2", "W3", "W4", "W5") and row.get("stage", "total") == "total"
        if whole and row["picture"] == GRACE_HOPPER.stem:
            groups.setdefault(key(row, ("provider", "mode")), []).append(row)
    found = []
    for group in sorted(groups.values(), key=lambda group: WORKS[group[0]["filter"]]):
        ours = [row for row in group if row["provider"] == OURS]
        if ours:
            others = [row for row in group if row["provider"] != OURS]
            found.append([min(ours, key=lambda row: row["median"]), *others])
    return found


def times(groups: list[list[dict]]):
    """Bars, forward passes on the left, training steps on the right; a tick marks a floor."""
    from matplotlib.figure import Figure

    forward = [group for group in groups if group[0]["work"] != "W5"]
    panels = [("Forward", forward), ("Training step", [group for group in groups if group[0]["work"] == "W5"])]
    panels = [(title, chosen) for title, chosen in panels if chosen]
    tall = [BAR * (sum(map(len, chosen)) + GAP * len(chosen)) for _, chosen in panels]
    width, height = COLUMN * len(panels), 1.75 + max(tall)
    figure = Figure(figsize=(width, height), facecolor="white")
    for n, (title, chosen) in enumerate(panels):
        place = 2.05 + COLUMN * n, height - 0.7 - tall[n]
        axes = figure.add_axes((place[0] / width, place[1] / height, 4.65 / width, tall[n] / height))
        _bars(axes, chosen)
        floors = any(row["floor"] for group in chosen for row in group)
        head(axes, title, "median; in brackets: peers over ours" + (", ours over the floor (tick)" if floors else ""))
    shown = dict.fromkeys(row["provider"] for group in groups for row in group)
    legend(figure, [(COLORS[name], name) for name in shown], len(shown), "lower left", (0.1 / width, 0.1 / height))
    return figure


def _bars(axes, groups: list[list[dict]]):
    at, places, labels = 0.0, [], []
    medians = [row["median"] for group in groups for row in group]
    left = min(medians + [row["floor"] for group in groups for row in group if row["floor"]]) / 2
    for group in groups:
        ours = group[0]
        places.append(at + (len(group) - 1) / 2)
        labels.append(label(ours))
        for row in group:
            axes.barh(at, row["median"] - left, left=left, height=0.8, color=COLORS[row["provider"]])
            text = duration(row["median"])
            if row["provider"] != OURS:
                text += f"  ({number(float(np.median(ratios(ours, row))))} x)"
            elif row["floor"]:
                axes.plot([row["floor"]] * 2, [at - 0.45, at + 0.45], color=INK, linewidth=1.5)
                text += f"  ({number(row['median'] / row['floor'])} x)"
            axes.annotate(text, (row["median"], at), (4, 0), textcoords="offset points", va="center", fontsize=8)
            at += 1
        at += GAP
    axes.set(xscale="log", xlim=(left, max(medians) * (max(medians) / left) ** 0.3), ylim=(at - 0.4, -0.7))
    axes.set_yticks(places, labels, fontsize=9, color=INK)
    axes.set_xlabel("seconds", color=MUTED)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=MUTED, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def label(row: dict) -> str:
    """A work's name and what distinguishes it from similar ones."""
    words = [WORKS[row["filter"]]]
    if row["filter"] == "window":
        words += [f"k={row['window_size']}", f"blur {row['blur']}"]
        words += [row["normalization"]] if row["normalization"] != "none" else []
    if row["filter"] == "guided" and row["work"] != "W5":
        words += ["x".join(map(str, row["size"]))]
    if row["filter"] == "lattice" and row["work"] != "W5":
        words += [f"T={row['iterations']}"]
    if row["filter"] != "window" and row["work"] == "W5":
        words += ["all" if row["learns"] == "features" else "weights"]
    return " ".join(words) + (f", {row['batch']} images" if row["batch"] > 1 else "")


def duration(seconds: float) -> str:
    scale, unit = next(unit for unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * unit[0] >= 1)
    return f"{number(seconds, scale)} {unit}"

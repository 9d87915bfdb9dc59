"""The figures of the report, without a window."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from bench.datasets.costs import KINDS
from bench.datasets.machines import COCO, CORES, COUNTS, predicted
from tritoncrf import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.datasets.report import Findings

COLORS = dict(zip(KINDS, figures.palette()[[1, 2, 3]] / 255))
SHARED = "#9CA3AF"
EACH = 100  # images per process
DPI, COLORS_OF_A_FILE = 100, 64


def scaling(findings: "Findings") -> Figure:
    """Images per second against the number of processes of one machine, and of machines."""
    figure = Figure(figsize=(9.6, 4.1), facecolor="white")
    left, right = (figure.add_axes((place, 0.24, 0.4, 0.56)) for place in (0.075, 0.575))
    processes, machines = ([2**n for n in range(most.bit_length())] for most in (2 * CORES, COUNTS[-1]))
    for name, one in findings.kinds.items():
        runs = [predicted(one, 1, n, EACH * n, findings.report) for n in processes]
        _line(left, processes, [EACH * n / (run.seconds - one.start) for n, run in zip(processes, runs)], name)
        ends = [findings.predicted(name, n) for n in machines]
        _line(right, machines, [COCO / run.seconds for run in ends], name)
    left.plot([*findings.rates], [*findings.rates.values()], "s", ms=9, mfc="none", mec=figures.INK, zorder=3)
    _dress(left, "One machine", f"predicted for {CORES} cores; squares: measured, maps", "processes")
    _dress(right, "Several", f"predicted, {CORES} processes each, including the start", "machines")
    for axes in left, right:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for axis in axes.xaxis, axes.yaxis:
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: "")
        axes.set_ylabel("images per second", color=figures.MUTED)
    figures.legend(
        figure, [(COLORS[name], KINDS[name].words) for name in findings.kinds], 3, "lower left", (0.03, 0.02)
    )
    return figure


def memory(memory: np.ndarray, few: tuple[int, int]) -> Figure:
    """The memory of a process after each image."""
    figure = Figure(figsize=(6.4, 3.3), facecolor="white")
    axes = figure.add_axes((0.11, 0.27, 0.86, 0.47))
    entries = [(figures.REPAIRED, "its own (RssAnon)"), (SHARED, "with shared code (VmRSS)")]
    for column, (color, _) in enumerate(entries):
        axes.plot(1 + np.arange(len(memory)), memory[:, column] / 1e6, color=color, lw=1.2)
    axes.set(xlim=(0, len(memory)), ylim=(0, None))
    _dress(axes, "Memory of a process of refine_many", f"MB after each of {few[0]} images of {few[1]} sizes", "images")
    figures.legend(figure, entries, 2, "lower left", (0.03, 0.02))
    return figure


def _line(axes: "Axes", x: list[int], y: list[float], name: str) -> None:
    axes.plot(x, y, color=COLORS[name], marker="o", ms=3, lw=1.2)


def _dress(axes: "Axes", title: str, subtitle: str, label: str) -> None:
    figures.head(axes, title, subtitle)
    axes.set_xlabel(label, color=figures.MUTED)
    axes.grid(color="#E5E7EB", lw=0.6)
    axes.tick_params(colors=figures.MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

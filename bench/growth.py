"""The growth of times along one axis: power laws fitted to the rows of W7.

    t = a v^p, so log t = log a + p log v: p by least squares

At small values of an axis, launches and Python dominate the time: only the upper half of its points, at least three, is
fitted. The expected p is the exponent of the counted work of the same points.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# From names in rows to words in tables and figures.
AXES = {
    "side": "pixels",
    "classes": "classes",
    "window_size": "window size k",
    "radius": "radius",
    "batch": "images",
    "features": "features",
}
FEWEST = 3


@dataclass(frozen=True)
class PowerLaw:
    """exp(`offset`) v^`exponent`; `error` is the exponent's standard error, None for two points."""

    exponent: float
    error: float | None
    offset: float

    def at(self, values):
        return np.exp(self.offset) * np.asarray(values, float) ** self.exponent


def power_law(values, results) -> PowerLaw:
    """Fitted to at least two points."""
    x, y = np.log(values), np.log(results)
    centred = x - x.mean()
    exponent = centred @ y / (centred @ centred)
    offset = y.mean() - exponent * x.mean()
    residual = y - offset - exponent * x
    error = math.sqrt(residual @ residual / (len(x) - 2) / (centred @ centred)) if len(x) > 2 else None
    return PowerLaw(float(exponent), error, float(offset))


@dataclass(frozen=True)
class Curve:
    """One stage of a filter along one axis, in order: times in seconds, and the counted work: operations, or bytes if
    no operations are counted. For the side of a square image, the values are the pixels."""

    filter: str
    stage: str
    axis: str
    values: list[int]
    seconds: list[float]
    work: list[float]

    @property
    def fitted(self) -> slice:
        count = len(self.values)
        return slice(max(0, count - max(FEWEST, -(-count // 2))), count)

    @cached_property
    def law(self) -> PowerLaw:
        return power_law(self.values[self.fitted], self.seconds[self.fitted])

    @cached_property
    def expected(self) -> PowerLaw:
        """The power law of the counted work."""
        return power_law(self.values[self.fitted], self.work[self.fitted])


def curves(rows: list[dict]) -> list[Curve]:
    """The curves with two points or more, in the order of the rows."""
    found = {}
    for row in rows:
        if row["work"] == "W7":
            found.setdefault((row["filter"], row.get("stage", "apply"), row["axis"]), []).append(row)
    made = []
    for (filter, stage, axis), points in found.items():
        points = sorted(points, key=lambda row: row["value"])
        values = [row["value"] ** 2 if axis == "side" else row["value"] for row in points]
        work = [row["operations"] or row["bytes"] for row in points]
        if len(points) > 1:
            made.append(Curve(filter, stage, AXES[axis], values, [row["median"] for row in points], work))
    return made


def in_words(curve: Curve) -> tuple[str, str]:
    """The exponent with its error, and the expected one."""
    law, (found, expected) = curve.law, (round(law.exponent, 2) + 0.0 for law in (curve.law, curve.expected))
    return f"{found:.2f}" + (f" ± {law.error:.2f}" if law.error is not None else ""), f"{expected:.2f}"

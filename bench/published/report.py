"""The table: each published system at sizes divisible by four and not, T = 1, 5 and 10, in both precisions."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.published.systems import SYSTEMS, System
from tritoncrf import reports

ITERATIONS = (1, 5, 10)
PRECISIONS = (torch.float64, torch.float32)
FORWARD = ("scores", *(f"pool{n}" for n in range(1, 6)), "fc6", "fc7")
WORDS = """\
Each system beside a form of it in NumPy, in float64, that shares no line with it (`bench/published`). Errors are
relative, |a - b| / |b| over all elements: of the scores S, and of the gradient of <a random cotangent, S> with respect
to what the column names. The form's gradients are complex steps, exact to rounding; of CRF-RNN alone, those that its
codes propagate back. Both get the same numbers: parameters a tenth away from where they start, and a picture of two
colours close to each other, so that kernels fill (0, 1).

Networks have few channels. Their gradients are compared along three random directions in all parameters and the image
at once, scaled to the same length in each. SegModel's begins with the features that a backbone would give. CRF-RNN
takes its image in bytes, which have no gradient.
"""


def run(out: Path | None) -> int:
    """Compare everything and print the report; with a folder, also write it there, <device>-<date>-published.md and
    .csv."""
    rows = survey()
    text = "\n".join([reports.head("The published systems", "python -m bench published"), WORDS, *in_words(rows)])
    if out is not None:
        reports.write(out, f"{reports.slug(reports.environment())}-published", text, rows)
    print(text)
    return 0


def survey(chosen: Mapping[str, System] = SYSTEMS, iterations: Sequence[int] = ITERATIONS) -> list[dict[str, Any]]:
    """A row for each system, size, T, precision and quantity."""
    rows = []
    for name, system in chosen.items():
        for size, t in product(system.sizes, iterations if system.iterated else (None,)):
            case = system.case(name, size, t)
            place = {"system": name, "size": " x ".join(map(str, size)), "T": "" if t is None else t}
            for dtype in PRECISIONS:
                precision = str(dtype).removeprefix("torch.")
                for quantity, error in case.errors(dtype).items():
                    rows.append({**place, "precision": precision, "quantity": quantity, "error": error})
    return rows


def in_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The worst errors of each system, then every system with all of its rows."""
    names = list(dict.fromkeys(row["system"] for row in rows))
    return [overview(rows, names), *(f"## {name}\n\n{details(rows, name)}" for name in names)]


def overview(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The worst of each system's sizes and T: forward, and of its gradients."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = []
    for name, precision, forward in product(names, precisions, (True, False)):
        if precision == precisions[0] and forward:
            lines.append([name])
        errors = [
            row["error"]
            for row in rows
            if (row["system"], row["precision"], row["quantity"] in FORWARD) == (name, precision, forward)
        ]
        lines[-1].append(digits(np.max(errors)))
    ways = [f"{precision}: {way}" for precision in precisions for way in ("forward", "gradients")]
    return reports.table(["worst error", *ways], lines)


def details(rows: Sequence[dict[str, Any]], name: str) -> str:
    """All errors of a system: a line for each precision, size and T."""
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["system"] == name:
            found.setdefault((row["precision"], row["size"], str(row["T"])), {})[row["quantity"]] = row["error"]
    quantities = list(next(iter(found.values())))
    lines = [[*place, *(digits(errors[q]) for q in quantities)] for place, errors in sorted(found.items(), key=_order)]
    return reports.table(["precision", "size", "T", *quantities], lines)


def _order(item: tuple[tuple, dict]) -> bool:
    """float64 first, else as they come."""
    return item[0][0] != "float64"


def digits(error: float) -> str:
    return f"{error:.1e}"

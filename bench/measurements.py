"""Rows of measurements: what identifies them, and their report in Markdown."""

import json
from pathlib import Path

import numpy as np

from bench import growth
from bench.peers import versions
from tritoncrf import reports
from tritoncrf.reports import number, table

KEY = (
    "work", "filter", "picture", "size", "batch", "iterations", "window_size", "radius", "blur", "normalization",
    "stage", "learns", "pipeline", "mode", "axis", "value", "provider",
)  # fmt: skip
STAGES = {
    "smooth": "filter of smoothness", "appearance": "filter of appearance", "loop": "loop", "total": "total",
    "kept": "total, smoothness kept", "build": "build", "apply": "one application",
}  # fmt: skip
ANY = ""
SECTIONS = [
    ("W1", "window", "ConvCRF"),
    ("W2", "lattice", "fully connected CRF on the lattice"),
    ("W3", "guided", "guidance CRF"),
    ("W4", "exact", "exact fully connected CRF"),
    ("W5", "window", "training step of W1"),
    ("W5", "lattice", "training step of W2"),
    ("W5", "guided", "training step of W3"),
    ("W5", "exact", "training step of W4"),
    ("W6", ANY, "whole pipelines"),
    ("W7", "window", "growth of the window filter"),
    ("W7", "lattice", "growth of the lattice"),
    ("W7", "guided", "growth of the guided filter"),
    ("splat", "lattice", "sorted (tritoncrf) and by atomic additions"),
]


def environment(commit: str | None = None) -> dict:
    return reports.environment(commit) | {"peers": {"im2col": "here", "torch_boxes": "here", **versions()}}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: dict, without=()) -> tuple[str, ...]:
    """The identity of a row, by `KEY`."""
    found = (row.get(name, "") for name in KEY if name not in without)
    return tuple("x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) for value in found)


def peers(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows of the peers by what was computed; they are compared with every mode of this library."""
    found = {}
    for row in rows:
        if row["provider"] != "tritoncrf":
            found.setdefault(key(row, ("provider", "mode")), []).append(row)
    return found


def peers_of(row: dict, found: dict) -> list[dict]:
    """No peer reuses a filter for the next picture, so our calls that do are compared with its whole call."""
    stage = "total" if row.get("stage") == "kept" else row.get("stage", "")
    return found.get(key(row | {"stage": stage}, ("provider", "mode")), []) if row["provider"] == "tritoncrf" else []


def ratios(row: dict, peer: dict) -> np.ndarray:
    """Of a peer's time over ours: one of each round if they were timed in turn, else that of the medians."""
    if len(row["times"]) == len(peer["times"]):
        return np.array(peer["times"]) / np.array(row["times"])
    return np.array([peer["median"] / row["median"]])


def faster(row: dict, peer: dict) -> str:
    """The median ratio, and the range of the rounds'."""
    found = ratios(row, peer)
    text = number(float(np.median(found))) + " x"
    return text if len(found) == 1 else f"{text} ({number(found.min())} to {number(found.max())})"


def markdown(environment: dict, rows: list[dict], drawn: dict[str, str]) -> str:
    """The report; `drawn` are figures beside it, with their captions by file name."""
    lines = [*head(environment, rows)]
    for file, words in drawn.items():
        lines += ["", f"![{words}]({file})"]
    found = peers(rows)
    for work, filter, title in SECTIONS:
        chosen = [row for row in rows if row["work"] == work and filter in (ANY, row["filter"])]
        if chosen:
            lines += ["", f"## {work}: {title}", "", cells_table([cells(row, peers_of(row, found)) for row in chosen])]
    if curves := growth.curves(rows):
        lines += ["", "## W7: exponents", "", "t = a v^p, fitted to the upper half of an axis' values, at least three;"]
        lines += ["expected: the exponent of the counted work of the same points.", "", exponents(curves)]
    return "\n".join(lines) + "\n"


def head(environment: dict, rows: list[dict]) -> list[str]:
    """The environment, and what was not measured."""
    lines = [f"# {environment['device']}, {environment['date']}", "", reports.versions(environment), ""]
    lines += ["Peers: " + ", ".join(f"{name}: {version}" for name, version in environment["peers"].items()) + "."]
    lines += ["", f"Clocks while measuring: {clocks(rows)}."]
    for filter, outcome in environment["tests"].items():
        if outcome != "green":
            lines += ["", f"**The {filter} filter is not measured: its equivalence tests are {outcome}.**"]
    if bandwidth := next((row["copy_bandwidth"] for row in rows if row["copy_bandwidth"]), None):
        lines += ["", f"Copy bandwidth, measured: {bandwidth / 1e12:.2f} TB/s (bytes read plus written)."]
    return lines


def clocks(rows: list[dict]) -> str:
    """The range of each clock over the rows, in MHz."""
    seen = {}
    for row in rows:
        for name, rate in row["clocks"].items():
            seen.setdefault(name, []).append(rate)
    ranges = [f"{name} {min(rates):.0f} to {max(rates):.0f} MHz" for name, rates in seen.items()]
    return ", ".join(ranges) or "not readable"


def exponents(curves: list[growth.Curve]) -> str:
    header = ["filter", "stage", "axis", "from", "to", "points", "exponent", "expected"]
    lines = []
    for curve in curves:
        values = curve.values[curve.fitted]
        place = [curve.filter, STAGES[curve.stage], curve.axis, str(values[0]), str(values[-1]), str(len(values))]
        lines.append([*place, *growth.in_words(curve)])
    return table(header, lines)


def cells(row: dict, peers: list[dict]) -> dict[str, str]:
    """A row as text by column, empty where it has no value."""
    q = None
    if "size" in row and "classes" in row:
        q = row["batch"] * row["classes"] * row["size"][0] * row["size"][1] * 4
    peak, grows = row["peak_memory"], row["work"] == "W7"
    features = "guide, eps" if row["filter"] == "guided" else "thetas"
    learns = {"weights": "logits, weights", "features": f"logits, weights, {features}"}.get(row.get("learns"), "")
    return {
        "pipeline": row.get("pipeline", ""),
        "axis": row.get("axis", ""),
        "value": str(row.get("value", "")),
        "picture": row.get("picture", ""),
        "size": "x".join(map(str, row.get("size", ()))),
        "batch": "" if grows else str(row["batch"]),
        "T": str(row.get("iterations", "")),
        "k": "" if grows else str(row.get("window_size", "")),
        "r": "" if grows else str(row.get("radius", "")),
        "blur": str(row.get("blur", "")),
        "norm": row.get("normalization", ""),
        "M/N": ", ".join(map(number, row.get("vertices_per_pixel", ()))),
        "live": ", ".join(map(number, row.get("live", ()))),
        "gradients of": learns,
        "stage": STAGES.get(row.get("stage"), ""),
        "run": "" if grows else f"{row['provider']} {row['mode']}",
        "ms": number(row["median"], 1e3),
        "IQR": number(row["iqr"], 1e3),
        **_parts(row),
        "ns per pixel": number(row["median"] / (row["batch"] * row["side"] ** 2), 1e9) if grows else "",
        "ps per multiply-add": number(row["median"] / row["operations"], 2e12) if grows and row["operations"] else "",
        "floor ms": number(row["floor"], 1e3),
        "x floor": number(row["median"] / row["floor"]) if row["floor"] else "",
        "GB": number(row["bytes"] or None, 1e-9),
        "gathered GB": number(row.get("gathered") or None, 1e-9),
        "Gop": number(row["operations"] or None, 1e-9),
        "matrix Gop": number(row.get("products") or None, 1e-9),
        "Gexp": number(row["exponentials"] or None, 1e-9),
        "MB": number(peak, 1e-6),
        "x Q": number(peak / q) if peak is not None and q else "",
        "faster": ", ".join(faster(row, peer) for peer in peers),
        "memory": ", ".join(share(peak / peer["peak_memory"]) for peer in peers if peak and peer["peak_memory"]),
        "error": number(row.get("loop_rms", row.get("gradient_rms"))),
        "worst": number(row.get("loop_max")),
    }


def _parts(row: dict) -> dict[str, str]:
    """The parts of a pipeline's time; empty for other work."""
    names = ["network ms", "CRF ms", "CRF's share", "images/s"]
    if "crf" not in row:
        return dict.fromkeys(names, "")
    whole, crf = row["median"], row["crf"]
    cells = number(whole - crf, 1e3), number(crf, 1e3), f"{crf / whole:.1%}", number(row["batch"] / whole)
    return dict(zip(names, cells))


def share(part: float) -> str:
    return f"1/{number(1 / part)}" if part < 1 else f"{number(part)} x"


def cells_table(lines: list[dict[str, str]]) -> str:
    """A table of the columns that have a value in any row."""
    header = [name for name in lines[0] if any(line[name] for line in lines)]
    return table(header, [[line[name] for name in header] for line in lines])

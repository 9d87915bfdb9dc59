"""Rows of measurements as JSON and Markdown, and two reports side by side."""

import json
import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

import torch
import triton

from bench.peers import versions

KEY = (
    "work", "filter", "picture", "size", "batch", "iterations", "window_size", "radius", "blur", "normalization",
    "stage", "learns", "mode", "axis", "value", "provider",
)  # fmt: skip
OLDER = {"filter": "window", "learns": "features"}  # what a report's rows mean that do not say so
STAGES = {
    "smooth": "filter of smoothness", "appearance": "filter of appearance", "loop": "loop", "total": "total",
    "kept": "total, smoothness kept", "build": "build", "apply": "one application",
}  # fmt: skip
SECTIONS = [
    ("W1", "window", "ConvCRF"),
    ("W2", "lattice", "fully connected CRF on the lattice"),
    ("W3", "guided", "guidance CRF"),
    ("W4", "exact", "exact fully connected CRF"),
    ("W5", "window", "training step of W1"),
    ("W5", "lattice", "training step of W2"),
    ("W5", "guided", "training step of W3"),
    ("W5", "exact", "training step of W4"),
    ("W7", "window", "growth of the window filter"),
    ("W7", "lattice", "growth of the lattice"),
    ("W7", "guided", "growth of the guided filter"),
    ("splat", "lattice", "sorted (tritoncrf) and by atomic additions"),
]


def environment(commit: str | None = None) -> dict:
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} threads",
        "date": date.today().isoformat(),
        "commit": commit or _commit(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "peers": {"im2col": "here", "torch_boxes": "here", **versions()},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def slug(environment: dict) -> str:
    """File name of a report: device and date."""
    name = re.sub(r"\((R|TM)\)|@.*", "", environment["device"].split(",")[0])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + "-" + environment["date"]


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(out: Path, environment: dict, rows: list[dict]) -> Path:
    """<device>-<date>.json and .md in `out`; returns the Markdown's path."""
    return write_both(out / slug(environment), environment, rows, markdown(environment, rows))


def write_both(name: Path, environment: dict, rows: list[dict], text: str) -> Path:
    """name.json and name.md, and the folder they are in; returns the Markdown's path."""
    name.parent.mkdir(parents=True, exist_ok=True)
    save(name.with_suffix(".json"), json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    save(name.with_suffix(".md"), text)
    return name.with_suffix(".md")


def save(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def table(header: list[str], lines: list[list[str]]) -> str:
    """Markdown, aligned so that it also reads on a terminal."""
    rows = [header, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]]) + "\n"


def number(value, scale=1.0) -> str:
    return "" if value is None else f"{value * scale:.3g}" if abs(value * scale) < 1000 else f"{value * scale:.0f}"


def key(row: dict, without=()) -> tuple:
    return tuple(str(row.get(name, OLDER.get(name, ""))) for name in KEY if name not in without)


def peers(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows of the peers by what was computed; they are compared with every mode of ours."""
    found = {}
    for row in rows:
        if row["provider"] != "tritoncrf":
            found.setdefault(key(row, ("provider", "mode")), []).append(row)
    return found


def peers_of(row: dict, found: dict) -> list[dict]:
    """No peer keeps a filter from one picture to the next: its whole call is what that is compared with."""
    stage = "total" if row.get("stage") == "kept" else row.get("stage", "")
    return found.get(key(row | {"stage": stage}, ("provider", "mode")), []) if row["provider"] == "tritoncrf" else []


def markdown(environment: dict, rows: list[dict]) -> str:
    bandwidth = next((row["copy_bandwidth"] for row in rows if row["copy_bandwidth"]), None)
    lines = [f"# {environment['device']}, {environment['date']}", ""]
    others = {name: value for name, value in environment.items() if name not in ("device", "date", "peers")}
    lines += [", ".join(f"{name} {value}" for name, value in others.items()), ""]
    lines += ["Peers: " + ", ".join(f"{name}: {version}" for name, version in environment["peers"].items()) + "."]
    if bandwidth:
        lines += ["", f"Copy bandwidth, measured: {bandwidth / 1e12:.2f} TB/s (bytes read plus written)."]
    found = peers(rows)
    for work, filter, title in SECTIONS:
        chosen = [row for row in rows if (row["work"], row["filter"]) == (work, filter)]
        if chosen:
            lines += ["", f"## {work}: {title}", "", cells_table([cells(row, peers_of(row, found)) for row in chosen])]
    return "\n".join(lines) + "\n"


def cells(row: dict, peers: list[dict]) -> dict[str, str]:
    """A row as text by column; empty where it says nothing."""
    q = None
    if "size" in row:
        q = row["batch"] * row["classes"] * row["size"][0] * row["size"][1] * 4
    peak, growth = row["peak_memory"], row["work"] == "W7"
    features = "guide, eps" if row["filter"] == "guided" else "thetas"
    learns = {"weights": "logits, weights", "features": f"logits, weights, {features}"}.get(row.get("learns"), "")
    return {
        "axis": row.get("axis", ""),
        "value": str(row.get("value", "")),
        "picture": row.get("picture", ""),
        "size": "x".join(map(str, row.get("size", ()))),
        "batch": "" if growth else str(row["batch"]),
        "T": str(row.get("iterations", "")),
        "k": "" if growth else str(row.get("window_size", "")),
        "r": "" if growth else str(row.get("radius", "")),
        "blur": str(row.get("blur", "")),
        "norm": row.get("normalization", ""),
        "M/N": ", ".join(map(number, row.get("vertices_per_pixel", ()))),
        "live": ", ".join(map(number, row.get("live", ()))),
        "gradients of": learns,
        "stage": STAGES.get(row.get("stage"), ""),
        "run": "" if growth else f"{row['provider']} {row['mode']}",
        "ms": number(row["median"], 1e3),
        "IQR": number(row["iqr"], 1e3),
        "ns per pixel": number(row["median"] / (row["batch"] * row["side"] ** 2), 1e9) if growth else "",
        "ps per multiply-add": number(row["median"] / row["operations"], 2e12) if growth and row["operations"] else "",
        "floor ms": number(row["floor"], 1e3),
        "x floor": number(row["median"] / row["floor"]) if row["floor"] else "",
        "GB": number(row["bytes"] or None, 1e-9),
        "gathered GB": number(row.get("gathered") or None, 1e-9),
        "Gop": number(row["operations"] or None, 1e-9),
        "matrix Gop": number(row.get("products") or None, 1e-9),
        "Gexp": number(row["exponentials"] or None, 1e-9),
        "MB": number(peak, 1e-6),
        "x Q": number(peak / q) if peak is not None and q else "",
        "faster": ", ".join(number(peer["median"] / row["median"]) + " x" for peer in peers),
        "memory": ", ".join(share(peak / peer["peak_memory"]) for peer in peers if peak and peer["peak_memory"]),
        "error": number(row.get("loop_rms", row.get("gradient_rms"))),
        "worst": number(row.get("loop_max")),
    }


def share(part: float) -> str:
    return f"1/{number(1 / part)}" if part < 1 else f"{number(part)} x"


def cells_table(lines: list[dict[str, str]]) -> str:
    """The columns that say something in any line."""
    header = [name for name in lines[0] if any(line[name] for line in lines)]
    return table(header, [[line[name] for name in header] for line in lines])


def compare(before: Path, after: Path) -> str:
    """Medians of the rows that two reports share, and what became of them."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    known = {key(row): row for row in old["rows"]}
    lines = [
        [*key(row), number(known[key(row)]["median"], 1e3), number(row["median"], 1e3),
         number(known[key(row)]["median"] / row["median"]) + " x"]
        for row in new["rows"]
        if key(row) in known
    ]  # fmt: skip
    title = " against ".join(f"{r['environment']['device']} at {r['environment']['commit']}" for r in (new, old))
    return f"{title}\n\n" + table([*KEY, "before ms", "after ms", "faster"], lines)


def compilation_markdown(environment: dict, binaries: dict) -> str:
    """Registers, spills, shared memory and the instruction mix of every launched configuration, per target."""
    from bench.compilation import MIX

    lines = ["# Compiled kernels", "", f"triton {environment['triton']}, commit {environment['commit']}", ""]
    lines += ["Static instruction counts of the whole kernel; a loop's body counts once."]
    for target, compiled in binaries.items():
        spilled = sum(b.spills for b in compiled)
        lines += ["", f"## {target}: {len(compiled)} configurations, {spilled} with spills", ""]
        columns = [*MIX, "other"] if compiled and compiled[0].mix else []
        lines += [
            table(
                ["kernel", "constants", "warps", "registers", "stack", "local", "shared", *columns],
                [
                    [
                        b.kernel, b.options, str(b.num_warps), str(b.registers), str(b.stack),
                        str(b.local), str(b.shared), *(str(b.mix[c]) for c in columns),
                    ]
                    for b in compiled
                ],
            )
        ]  # fmt: skip
    return "\n".join(lines)

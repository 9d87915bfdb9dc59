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

KEY = ("work", "picture", "size", "batch", "window_size", "blur", "normalization", "mode", "axis", "value", "provider")


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
    out.mkdir(parents=True, exist_ok=True)
    name = out / slug(environment)
    save(name.with_suffix(".json"), json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    save(name.with_suffix(".md"), markdown(environment, rows))
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
    return tuple(str(row.get(name, "")) for name in KEY if name not in without)


def peers(rows: list[dict]) -> dict:
    """Rows of im2col by what was computed; it is timed eagerly, and compared with every mode of ours."""
    return {key(row, ("provider", "mode")): row for row in rows if row["provider"] == "im2col"}


def markdown(environment: dict, rows: list[dict]) -> str:
    bandwidth = next((row["copy_bandwidth"] for row in rows if row["copy_bandwidth"]), None)
    lines = [f"# {environment['device']}, {environment['date']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("device", "date"))]
    if bandwidth:
        lines += ["", f"Copy bandwidth, measured: {bandwidth / 1e12:.2f} TB/s (bytes read plus written)."]
    sections = [("W1", "ConvCRF, T = 5"), ("W5", "its training step"), ("W7", "growth of the window filter")]
    for work, title in sections:
        chosen = [row for row in rows if row["work"] == work]
        if chosen:
            lines += ["", f"## {work}: {title}", "", _growth(chosen) if work == "W7" else _work(chosen, rows)]
    return "\n".join(lines) + "\n"


def _work(chosen: list[dict], rows: list[dict]) -> str:
    header = ["picture", "size", "batch", "k", "blur", "norm", "run", "ms", "IQR", "floor ms", "x floor", "GB", "Gop"]
    header += ["Gexp", "MB", "x Q", "faster", "memory", "error", "worst"]
    found = peers(rows)
    lines = []
    for row in chosen:
        q = row["batch"] * row["classes"] * row["size"][0] * row["size"][1] * 4
        peer = found.get(key(row, ("provider", "mode"))) if row["provider"] == "tritoncrf" else None
        peak, peer_peak = row["peak_memory"], peer and peer["peak_memory"]
        lines.append([
            row["picture"], "x".join(map(str, row["size"])), str(row["batch"]), str(row["window_size"]),
            str(row["blur"]), row["normalization"], f"{row['provider']} {row['mode']}",
            number(row["median"], 1e3), number(row["iqr"], 1e3), number(row["floor"], 1e3),
            number(row["median"] / row["floor"]) if row["floor"] else "",
            number(row["bytes"], 1e-9), number(row["operations"], 1e-9), number(row["exponentials"], 1e-9),
            number(peak, 1e-6), number(peak / q) if peak is not None else "",
            number(peer["median"] / row["median"]) + " x" if peer else "",
            f"1/{number(peer_peak / peak)}" if peak and peer_peak else "",
            number(row.get("loop_rms", row.get("gradient_rms"))), number(row.get("loop_max")),
        ])  # fmt: skip
    return table(header, lines)


def _growth(chosen: list[dict]) -> str:
    header = ["axis", "value", "ms", "IQR", "ps per pixel, class, tap", "floor ms", "x floor", "MB"]
    return table(header, [
        [
            row["axis"], str(row["value"]), number(row["median"], 1e3), number(row["iqr"], 1e3),
            number(row["median"] / row["operations"], 2e12), number(row["floor"], 1e3),
            number(row["median"] / row["floor"]) if row["floor"] else "", number(row["peak_memory"], 1e-6),
        ]
        for row in chosen
    ])  # fmt: skip


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

"""Reports of measurements: their environment, tables as Markdown and CSV, and files."""

import csv
import io
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tritoncrf.files import save_figure
from tritoncrf.files import write as write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["environment", "head", "number", "processor", "slug", "table", "versions", "write"]


def environment(commit: str | None = None) -> dict[str, str | None]:
    """Device, date, commit and versions.

    Args:
        commit: by default from TRITONCRF_COMMIT in the environment, or from git if this package is in a checkout;
            "unknown" otherwise.
    """
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} threads",
        "date": date.today().isoformat(),
        "commit": commit or os.environ.get("TRITONCRF_COMMIT") or _commit(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(environment: dict[str, str | None]) -> str:
    """Commit and versions in one line."""
    return ", ".join(f"{name} {environment[name]}" for name in ("commit", "torch", "triton", "cuda", "python"))


def slug(environment: dict[str, Any]) -> str:
    """Device and date for a file name."""
    name = re.sub(r"\((R|TM)\)|@.*", "", environment["device"].split(",")[0])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + "-" + environment["date"]


def head(title: str, command: str) -> str:
    """The title, the environment, and the command that reproduces the report."""
    made = environment()
    return f"# {title}\n\n{made['device']}, {made['date']}, {versions(made)}. Made by\n\n    {command}\n"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it is also readable in a terminal."""
    rows = [header, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]]) + "\n"


def number(value: float | None, scale: float = 1.0) -> str:
    """A number with three digits; empty for None."""
    return "" if value is None else f"{value * scale:.3g}" if abs(value * scale) < 999.5 else f"{value * scale:.0f}"


def write(
    out: Path, name: str, text: str, rows: Sequence[Mapping[str, Any]], figures: "Mapping[str, Figure] | None" = None
) -> None:
    """Write out/name.md, out/name.csv with a column for each key of the rows, and the figures by name."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(out / f"{name}.csv", lines.getvalue().encode())
    for title, figure in (figures or {}).items():
        save_figure(out / f"{title}.png", figure)
    write_file(out / f"{name}.md", text.encode())

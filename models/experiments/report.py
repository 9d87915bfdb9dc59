"""What an experiment leaves in its folder: NAME.md, NAME.csv and figures, each written whole."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritoncrf.files import save_figure
from tritoncrf.files import write as write_file
from tritoncrf.reports import environment, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def head(title: str, arguments: str) -> str:
    """Title, where and with what it was made, and how to make it again."""
    made = environment()
    command = f"python -m tritoncrf.models experiments {arguments} -o OUT"
    return f"# {title}\n\n{made['device']}, {made['date']}, {versions(made)}. Made by\n\n    {command}\n"


def write(out: Path, name: str, text: str, rows: list[dict[str, Any]], drawn: "dict[str, Figure]") -> None:
    """`text`, `rows` and the figures of `drawn`, which is by name."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(out / f"{name}.csv", table.getvalue().encode())
    for title, figure in drawn.items():
        save_figure(out / f"{title}.png", figure)
    write_file(out / f"{name}.md", text.encode())

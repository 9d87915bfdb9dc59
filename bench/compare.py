"""Compare two reports row by row: what became slower or faster, and what is in only one of them."""

import json
from pathlib import Path
from statistics import median

from bench.measurements import KEY, key
from tritoncrf.files import decoded
from tritoncrf.reports import number, table

SHARE = 0.1  # of a time: the usual difference between two runs on one machine
RULE = f"more than {SHARE:.0%}, and more than the interquartile ranges of both together"


def compare(before: Path, after: Path) -> tuple[str, bool]:
    """The comparison in Markdown, and whether a time of this library regressed. Times of peers only show how the
    machine changed."""
    (old, known), (new, found) = (decoded(path, "a report of the suite, .json", _read) for path in (before, after))
    shared = sorted((k for k in found if k in known), key=lambda k: -slowdown(known[k], found[k]))
    verdicts = {k: verdict(known[k], found[k]) for k in shared}
    regressions = [k for k in shared if verdicts[k] == "slower" and _ours(k)]
    faster = [k for k in shared if verdicts[k] == "faster" and _ours(k)]
    lines = [f"# {new} against {old}", "", f"{len(shared)} rows in both; slower or faster means {RULE}."]
    lines += [f"Of tritoncrf's rows, {len(regressions)} are slower and {len(faster)} faster."]
    if peers := [slowdown(known[k], found[k]) for k in shared if not _ours(k)]:
        lines += [f"The peers took {number(median(peers))} times as long (median of {len(peers)})."]
    if shared:
        lines += ["", _table(shared, known, found, verdicts).rstrip()]
    for words, only in ("before", known.keys() - found.keys()), ("after", found.keys() - known.keys()):
        if only:
            lines += ["", f"Only {words}:", "", *(f"- {_words(k)}" for k in sorted(only))]
    return "\n".join(lines) + "\n", bool(regressions)


def _read(path: Path) -> tuple[str, dict[tuple, dict]]:
    """The place of measurement of a report, and its rows."""
    report = json.loads(path.read_text())
    environment = report["environment"]
    rows = {key(row): {**row, "median": float(row["median"]), "iqr": float(row["iqr"])} for row in report["rows"]}
    return f"{environment['device']} at {environment['commit']}", rows


def slowdown(before: dict, after: dict) -> float:
    return after["median"] / before["median"]


def verdict(before: dict, after: dict) -> str:
    """ "slower" or "faster" by the rule, otherwise empty."""
    change, spread = after["median"] - before["median"], before["iqr"] + after["iqr"]
    if abs(change) <= max(spread, SHARE * before["median"]):
        return ""
    return "slower" if change > 0 else "faster"


def _words(key: tuple) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(KEY, key) if value)


def _ours(key: tuple) -> bool:
    return key[KEY.index("provider")] == "tritoncrf"


def _table(shared: list[tuple], known: dict, found: dict, verdicts: dict) -> str:
    """The columns in which rows differ, and the times."""
    telling = [n for n, name in enumerate(KEY) if name == "work" or len({k[n] for k in shared}) > 1]
    header = [KEY[n] for n in telling] + ["before ms", "IQR", "after ms", "IQR", "after / before", ""]
    lines = []
    for k in shared:
        times = [number(row[name], 1e3) for row in (known[k], found[k]) for name in ("median", "iqr")]
        lines.append([*(k[n] for n in telling), *times, number(slowdown(known[k], found[k])), verdicts[k]])
    return table(header, lines)

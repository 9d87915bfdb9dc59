"""Compare `tritoncrf refine FOLDER` with pydensecrf in a pool: the same photos, scores, settings and number of
processes.

Wall time is for the whole command. Memory is the peak resident memory (VmHWM) of any process, parent or worker. Linux
only.
"""

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench import ROOT
from tritoncrf import reports
from tritoncrf.commands import CommandError
from tritoncrf.reports import number
from tritoncrf.synthetic import noisy_scores

JOBS = 2
SETTINGS = ["--parameters", "deeplab", "--method", "lattice", "--jobs", str(JOBS)]
KINDS = {
    "maps": ["--probabilities", "--cams", "--background-power", "4"],
    "foreground": ["--foreground"],
    "21 classes": ["--probabilities"],
}
WORDS = {
    "maps": "maps made from the labels, for the classes present: 2 to 5 with the background",
    "foreground": "probabilities of a person by a network",
    "21 classes": "probabilities made from the labels, float32",
}
ROUNDS = 3


@dataclass(frozen=True)
class Finding:
    """For a command: total seconds, seconds until the first image was written, and the peak resident memory of any
    process in bytes."""

    seconds: float
    first: float
    memory: int


def run(out: Path, data: Path) -> int:
    """Measure, write the report and print it."""
    if importlib.util.find_spec("pydensecrf") is None:
        raise CommandError("--beside: expected pydensecrf to be installed, got none")
    with tempfile.TemporaryDirectory() as place:
        found = {kind: measured(kind, Path(place, kind), data) for kind in KINDS}
    text = in_words(found)
    rows = [{"scores": kind, "round": n, "by": by, **vars(one)}
            for kind, rounds in found.items() for n, pair in enumerate(rounds) for by, one in pair.items()]  # fmt: skip
    reports.write(out, f"{reports.slug(reports.environment())}-datasets-beside", text, rows)
    print(text)
    return 0


def measured(kind: str, folder: Path, data: Path) -> list[dict[str, Finding]]:
    """Measure the commands in turn, several times."""
    images, scores = folder / "images", folder / "scores"
    write(kind, images, scores, data)
    command, *more = KINDS[kind]
    rounds = []
    for n in range(ROUNDS):
        ours, theirs = folder / f"ours {n}", folder / f"theirs {n}"
        theirs.mkdir()
        pool = [ROOT / "bench" / "datasets" / "pool.py", kind, images, scores, theirs, JOBS]
        refine = ["-m", "tritoncrf", "refine", images, command, scores, *more, *SETTINGS, "-o", ours]
        rounds.append({"tritoncrf": watched(refine, ours), "pydensecrf": watched(pool, theirs)})
    return rounds


def write(kind: str, images: Path, scores: Path, data: Path) -> None:
    """Write the photos and their scores to files."""
    images.mkdir(parents=True)
    scores.mkdir()
    with open(data / "voc" / "index.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    for n, row in enumerate(rows):
        name, photo = row["name"], data / "voc" / row["image"]
        shutil.copy(photo, images / photo.name)
        target = scores / f"{name}.npz"
        if kind == "foreground":
            shutil.copy(data / "network_scores" / "voc" / f"{name}.npz", target)
            continue
        labels = np.asarray(Image.open(data / "voc" / row["label"]))
        labels = np.where(labels == 255, 0, labels)
        if kind == "maps":
            keys = np.setdiff1d(labels, [0]) - 1
            p = noisy_scores(np.searchsorted(keys + 1, labels, side="right") * (labels > 0), len(keys) + 1, seed=n)
            np.savez(target, keys=keys, cam=p[1:] / p[1:].max((1, 2), keepdims=True))
        else:
            np.savez(target, p=noisy_scores(labels, 21, seed=n))


def watched(command: list[object], out: Path) -> Finding:
    """Run a Python command with one thread per process, and watch it until it ends."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))
    reader.start()
    first, memory = 0.0, 0
    while process.poll() is None:
        if not first and out.is_dir() and any(out.glob("*.png")):
            first = time.perf_counter() - start
        memory = max(memory, resident(process.pid))
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    reader.join()
    if process.returncode:
        raise CommandError(f"{command}: {said[0][-500:]}")
    return Finding(seconds, first, memory)


def resident(pid: int) -> int:
    """The peak resident memory so far of a process or its children."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return 0
    return max([int(found[1]) * 1024 if found else 0, *(resident(int(child)) for child in children)])


def in_words(found: dict[str, list[dict[str, Finding]]]) -> str:
    lines = []
    for kind, rounds in found.items():
        for by in rounds[0]:
            middle = [np.median([getattr(pair[by], name) for pair in rounds]) for name in ("seconds", "first")]
            memory = max(pair[by].memory for pair in rounds)
            ratio = np.median([pair[by].seconds / pair["pydensecrf"].seconds for pair in rounds])
            lines.append([kind, by, *map(number, middle), number(memory, 1e-6), number(ratio)])
    header = ["scores", "by", "seconds", "first image s", "MB of a process", "time to pydensecrf's"]
    return "\n".join([
        reports.head("Data sets beside pydensecrf", "python -m bench datasets --data DATA --beside"),
        f"The 32 VOC photos, {JOBS} processes, DeepLab's settings, 10 iterations; {ROUNDS} alternating rounds:",
        "median times, and the peak memory of any process in any round.\n",
        reports.table(header, lines),
        *(f"- {kind}: {words}" for kind, words in WORDS.items()), "",
    ])  # fmt: skip

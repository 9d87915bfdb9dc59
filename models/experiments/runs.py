"""The trainings of the experiments: bundled configurations with changes, and the run whose network each starts from.

Runs stay in OUT/runs: one that was stopped goes on, one that is done is taken as it is, and all experiments of one OUT
share them.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tritoncrf.commands import CommandError
from tritoncrf.reports import environment

COMMAND = "tritoncrf experiments {} -o OUT"  # makes a report again
SIDE_BY_SIDE = 4  # runs at a time, where there are as many cores


@dataclass(frozen=True)
class Run:
    """A training: a bundled configuration, the run that it starts from, changes to the configuration as of --set.

    large: further changes for ResNet-101 at CamVid's own size; thetas are in pixels.
    """

    config: str
    start: str | None = None
    changes: tuple[str, ...] = ()
    large: tuple[str, ...] = ()


_camvid_size = "[360, 480]"
_large = (
    "network.depth=101", "network.width=1", f"data.resize={_camvid_size}", "data.workers=8", 'amp="bfloat16"',
    "validate_every=10",
)  # fmt: skip
_crop = (f"augment.crop={_camvid_size}",)
_window = ("crf.window_size=11", "crf.blur=4", "crf.theta_smooth=3", "crf.theta_space=40")
_lattice = ("crf.theta_smooth=3", "crf.theta_space=160")
_positions = (
    "crf.learn_positions=[90, 120]",
    'phases.crf.optimizer.multipliers={ "crf.log_theta_*" = 0.5, "crf.positions" = 0.1 }',
)
_large_positions = (f"crf.learn_positions={_camvid_size}",)
_compatibility = ("crf.compatibility=true",)

RUNS = {
    "unary": Run("small_unary", large=_crop),
    "longer": Run("small_unary_longer", "unary", large=_crop),
    "convcrf": Run("small_convcrf", "unary", large=_window),
    "convcrf_t": Run("small_convcrf", "unary", _positions, _window + _large_positions),
    "convcrf_c": Run("small_convcrf", "unary", _compatibility, _window),
    "convcrf_ct": Run("small_convcrf", "unary", _positions + _compatibility, _window + _large_positions),
    "crfrnn": Run("small_crfrnn", "unary", large=_lattice),
    "convcrf_joint": Run("small_convcrf_joint", "convcrf", large=_crop + _window),
    "crfrnn_joint": Run("small_crfrnn_joint", "crfrnn", large=_crop + _lattice),
}
# SegModel's ablation: options of the class.
PARTS: dict[str, dict[str, Any]] = {
    "Unary": {"context": "none", "patch": 1, "guidance": False},
    "Context": {"patch": 1, "guidance": False},
    "Patch": {"guidance": False},
    "Guide": {},
}
RUNS |= {
    f"segmodel_{part.lower()}": Run(
        "small_segmodel", None,
        ("phases.train.epochs=12", *(f"network.{key}={json.dumps(value)}" for key, value in options.items())),
        ("augment.crop=[320, 480]",),
    )
    for part, options in PARTS.items()
}  # fmt: skip
# The small network at three sizes, by height; early, midway and when done, each with a schedule of its own.
WIDTHS = {90: 120, 180: 240, 360: 480}
EPOCHS = {90: (4, 12), 180: (2, 6, 18), 360: (1, 2, 6)}
STAGES = {height: [f"unary_{height}_{n}" for n in epochs] for height, epochs in EPOCHS.items()}
RUNS |= {
    name: Run(
        "small_unary", None,
        (
            f"phases.unary.epochs={epochs}",
            *(f"{key}=[{height}, {WIDTHS[height]}]" for key in ("data.resize", "augment.crop")),
        ),
    )
    for height, names in STAGES.items()
    for name, epochs in zip(names, EPOCHS[height])
}  # fmt: skip
STAGES[90].append("unary")
SMALL = (
    "Scaled down: CamVid, 367 training and 101 validation images, at a quarter of its size, 90 x 120; networks on a "
    "ResNet-18 at half width, from random weights. The papers have a ResNet-101 or VGG-16 from ImageNet, on Pascal VOC."
)
LARGE = (
    "Scaled down: CamVid, 367 training and 101 validation images, at its own size, 360 x 480; networks on a ResNet-101 "
    "from random weights. The papers start from ImageNet, on Pascal VOC."
)


@dataclass(frozen=True)
class Place:
    """Where the images are, where runs and reports go, and how large the runs are."""

    data: Path
    out: Path
    large: bool
    changes: tuple[str, ...] = ()

    def best(self, run: str) -> Path:
        return self.out / "runs" / run / "best.pt"

    def commit(self, run: str) -> str:
        """Of the code that trained it."""
        return self.best(run).with_name("commit.txt").read_text().strip()

    def minutes(self, run: str) -> float:
        with open(self.best(run).with_name("log.csv"), newline="") as file:
            return float(list(csv.DictReader(file))[-1]["seconds"]) / 60


def train(names: Sequence[str], place: Place) -> None:
    """These runs and those that they start from, as many at a time as do not wait for each other."""
    waves: dict[int, list[str]] = {}
    for name in dict.fromkeys(itertools.chain(*(lineage(name) for name in names))):
        waves.setdefault(len(lineage(name)), []).append(name)
    for _, wave in sorted(waves.items()):
        cores = os.cpu_count() or 1
        workers = min(SIDE_BY_SIDE, cores, len(wave))
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(partial(_train, place=place, threads=cores // workers), wave))


def lineage(name: str) -> list[str]:
    """A run after all that it starts from."""
    start = RUNS[name].start
    return [*(lineage(start) if start else []), name]


def changes(name: str, place: Place) -> list[str]:
    """All that a run changes of its configuration, as of --set."""
    run = RUNS[name]
    return [*run.changes, *((*_large, *run.large) if place.large else ()), *place.changes]


def _train(name: str, place: Place, threads: int) -> None:
    run, folder = RUNS[name], place.best(name).parent
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "commit.txt"
    if not noted.exists():
        noted.write_text(f"{environment()['commit']}\n")
    command = [sys.executable, "-m", "tritoncrf.models", "train", run.config, "--data", str(place.data)]
    command += ["-o", str(folder), "--resume"]
    command += ["--weights", str(place.best(run.start))] if run.start else []
    command += [part for change in changes(name, place) for part in ("--set", change)]
    with open(folder / "output.txt", "w+") as output:
        status = subprocess.run(
            command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
        ).returncode
        output.seek(0)
        said = output.read().split("\n")
    if status:
        last = next((line for line in reversed(said) if line.strip()), "no output")
        raise CommandError(f"run {name!r}: the training failed: {last.strip()}; {folder / 'output.txt'} has all of it")
    print(f"{name}: trained, {place.minutes(name):.1f} min", flush=True)

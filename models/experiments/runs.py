"""The runs of the experiments: bundled configurations with changes, and the run that each starts from.

Runs are kept in OUT/runs/NAME/seed_N. A stopped run resumes, a finished run is reused, and all experiments with the
same OUT share them. RUNS are on CamVid, PUBLISHED_RUNS the papers' own on Pascal VOC.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tritoncrf.commands import CommandError
from tritoncrf.reports import environment

COMMAND = "tritoncrf experiments {} -o OUT"  # reproduces a report
SIDE_BY_SIDE = 4  # runs at a time, if there are as many cores


@dataclass(frozen=True)
class Run:
    """A run: a bundled configuration, the run that it starts from, and changes to the configuration as for --set.

    large: further changes for a ResNet-101 at CamVid's full size; thetas are in pixels.
    weights: instead of a run, the beginning of the file name of torchvision's backbone weights.
    """

    config: str
    start: str | None = None
    changes: tuple[str, ...] = ()
    large: tuple[str, ...] = ()
    weights: str | None = None


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


def _parts(config: str, *changes: str, large: tuple[str, ...] = (), weights: str | None = None) -> dict[str, Run]:
    """A run for each of PARTS."""
    found = {}
    for part, options in PARTS.items():
        own = tuple(f"network.{key}={json.dumps(value)}" for key, value in options.items())
        found[f"segmodel_{part.lower()}"] = Run(config, None, (*changes, *own), large, weights)
    return found


RUNS |= _parts("small_segmodel", "phases.train.epochs=12", large=("augment.crop=[320, 480]",))
_resnet, _vgg, _torchvision = "resnet101", "vgg16", ("network.pixels=imagenet",)
PUBLISHED_RUNS = {
    "unary": Run("convcrf_unary", weights=_resnet),
    "longer": Run("convcrf_unary", changes=("phases.unary.epochs=250",), weights=_resnet),
    "convcrf": Run("convcrf_decoupled", "unary"),
    "convcrf_t": Run("convcrf_decoupled_t", "unary"),
    "convcrf_c": Run("convcrf_decoupled_c", "unary"),
    "convcrf_ct": Run("convcrf_decoupled_ct", "unary"),
    "convcrf_joint": Run("convcrf_end_to_end", weights=_resnet),
    "fcn8s": Run("crfrnn_fcn8s", changes=(*_torchvision, "data.held_out=200"), weights=_vgg),
    "crfrnn": Run("crfrnn", "fcn8s", (*_torchvision, "data.held_out=200")),
    **_parts("segmodel", weights=_resnet),
}
# The small network at three sizes, by height, and three numbers of epochs, each with its own schedule.
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
    "Scaled down: CamVid with 367 training and 101 validation images at 90 x 120, a quarter of its size; networks on a "
    "ResNet-18 of half width, from random weights. The papers use a ResNet-101 or VGG-16 from ImageNet, on Pascal VOC."
)
LARGE = (
    "Scaled down: CamVid with 367 training and 101 validation images at 360 x 480, the full size; a ResNet-101 "
    "from random weights. The papers start from ImageNet, on Pascal VOC."
)


VOC = (
    "Pascal VOC 2012 with SBD's annotations, the papers' own configurations, from torchvision's ImageNet weights "
    "(the papers also train on COCO where they say so)."
)


@dataclass(frozen=True)
class Place:
    """Where the images are, where runs and reports are written, and which runs to use.

    format: "camvid", or "voc" for the papers' own.
    large: use CamVid at its full size.
    changes: changes to all configurations, as for --set.
    seeds: number of trainings of each run, with seeds 0 to `seeds` - 1.
    weights: a folder with torchvision's weights, if runs start from them.
    """

    data: Path
    out: Path
    large: bool = False
    changes: tuple[str, ...] = ()
    seeds: int = 1
    format: Literal["camvid", "voc"] = "camvid"
    weights: Path | None = None

    @property
    def runs(self) -> Mapping[str, Run]:
        return RUNS if self.format == "camvid" else PUBLISHED_RUNS

    @property
    def size(self) -> str:
        """A description of the runs."""
        return VOC if self.format == "voc" else LARGE if self.large else SMALL

    def folder(self, run: str, seed: int = 0) -> Path:
        return self.out / "runs" / run / f"seed_{seed}"

    def best(self, run: str, seed: int = 0) -> Path:
        return self.folder(run, seed) / "best.pt"

    def commits(self, run: str) -> set[str]:
        """The commits of the code that trained it."""
        return {(self.folder(run, seed) / "commit.txt").read_text().strip() for seed in range(self.seeds)}

    def minutes(self, run: str, seed: int) -> float:
        with open(self.folder(run, seed) / "log.csv", newline="") as file:
            return float(list(csv.DictReader(file))[-1]["seconds"]) / 60

    def lineage(self, run: str) -> list[str]:
        """A run, after the runs that it starts from."""
        start = self.runs[run].start
        return [*(self.lineage(start) if start else []), run]

    def settings(self, run: str, seed: int = 0) -> list[str]:
        """All changes of a run to its configuration, as for --set."""
        own = self.runs[run]
        large = (*_large, *own.large) if self.large else ()
        return [*own.changes, *large, *self.changes, f"seed={seed}"]

    def start(self, run: str, seed: int) -> Path | None:
        """The file that it starts from.

        Raises:
            CommandError: no folder of weights, or none for this backbone in it.
        """
        own = self.runs[run]
        if own.start is not None:
            return self.best(own.start, seed)
        if own.weights is None:
            return None
        wanted = f"a folder with torchvision's {own.weights}*.pth"
        if self.weights is None:
            raise CommandError(f"--weights: expected {wanted}, got none")
        found = sorted(self.weights.glob(f"{own.weights}*.pth"))
        if len(found) != 1:
            raise CommandError(f"--weights: expected {wanted}, got {len(found)} of that name in {self.weights}")
        return found[0]


def train(names: Sequence[str], place: Place) -> None:
    """Train these runs and those that they start from with every seed, in parallel where they do not depend on each
    other."""
    waves: dict[int, list[str]] = {}
    for name in dict.fromkeys(itertools.chain(*(place.lineage(name) for name in names))):
        place.start(name, 0)
        waves.setdefault(len(place.lineage(name)), []).append(name)
    for _, wave in sorted(waves.items()):
        pairs = list(itertools.product(wave, range(place.seeds)))
        cores = os.cpu_count() or 1
        workers = min(SIDE_BY_SIDE, cores, len(pairs))
        with ThreadPoolExecutor(workers) as pool:
            started = [pool.submit(_train, name, seed, place, cores // workers) for name, seed in pairs]
        for training in started:
            training.result()


def _train(name: str, seed: int, place: Place, threads: int) -> None:
    folder, start = place.folder(name, seed), place.start(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "commit.txt"
    if not noted.exists():
        noted.write_text(f"{environment()['commit']}\n")
    command = [sys.executable, "-m", "tritoncrf.models", "train", place.runs[name].config, "--data", str(place.data)]
    command += ["-o", str(folder), "--resume"]
    command += ["--weights", str(start)] if start else []
    command += [part for change in place.settings(name, seed) for part in ("--set", change)]
    with open(folder / "output.txt", "w+") as output:
        status = subprocess.run(
            command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
        ).returncode
        output.seek(0)
        said = output.read().split("\n")
    if status:
        last = next((line for line in reversed(said) if line.strip()), "no output")
        raise CommandError(
            f"run {name!r}, seed {seed}: the training failed: {last.strip()}; {folder / 'output.txt'} has all of it"
        )
    print(f"{name}, seed {seed}: trained, {place.minutes(name, seed):.1f} min", flush=True)

"""Training: the phases of a configuration, epoch by epoch. It can be stopped and resumed at any time.

A step depends only on the configuration, the seed and the number of the step, which determine images, augmentation
and dropout. So a run that was killed and resumed from its last checkpoint ends with the same weights as an
uninterrupted one, and several ranks together see the same batches as one.

A run's folder:

    config.json      the configuration as it was read
    last.pt          the last checkpoint: parameters, optimizers and the progress of the run
    best.pt          the parameters of the best validation so far
    log.csv          a row per epoch
    curves.png       a plot of the same
    panels/          predictions on some images of the validation split, by epoch
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from tritoncrf.checks import kind_of
from tritoncrf.files import FileError, save_figure, temporaries, write
from tritoncrf.locks import locked
from tritoncrf.models import checkpoints, data, evaluation, network_figures
from tritoncrf.models.augment import Augment
from tritoncrf.models.checkpoints import field, number
from tritoncrf.models.config import Config, Phase, parse
from tritoncrf.models.distributed import World
from tritoncrf.models.losses import cross_entropy
from tritoncrf.models.optimization import (
    batch_norms,
    expect_learnable,
    optimizer,
    restore,
    select,
    set_modes,
    set_rates,
)
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.models.timm_fcn import synchronized

COLUMNS = (
    "turn", "phase", "epoch", "steps", "seconds", "lr", "loss",
    "val_loss", "val_miou", "val_accuracy", "val_unary_miou", "val_unary_accuracy",
)  # fmt: skip
CHECKPOINT_SECONDS = 300.0  # between checkpoints within an epoch; there is also one after each epoch
LOOK = 10  # steps between readings of the loss, each of which waits for the GPU
AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PANEL = 4  # images
FILES, PANELS = r"(config\.json|last\.pt|best\.pt|log\.csv|curves\.png)", r"epoch_\d+\.png"  # patterns of names

Row: TypeAlias = dict[str, Any]  # of the log: a value or None for each of COLUMNS


class Trainer:
    """The training of one run.

    Args:
        config: the configuration.
        model: from `config.build`, on the CPU, with weights from a file already loaded.
        splits: "train", "held_out" and "validate" as `data.Examples`, checked.
        augment: from `config.augmentation`.
        folder: the folder of the run; created if it does not exist.
        world: the ranks.
        resume: continue from the folder's last checkpoint, if there is one.

    Raises:
        FileError: the folder holds a run and `resume` is False, the run has another configuration, its checkpoint is
            invalid, or another process is running it.
        ValueError: a batch that the ranks cannot divide, batch norm on several ranks without GPUs, or a phase that
            trains nothing or names parameters that do not exist.
    """

    def __init__(
        self, config: Config, model: Segmenter, splits: Mapping[str, data.Examples], augment: Augment | None,
        folder: Path, world: World, resume: bool,
    ) -> None:  # fmt: skip
        self.config, self.world, self.folder, self.augment = config, world, folder, augment
        self.classes = splits["train"].classes
        self.splits = splits
        self.turns = list(config.turns())
        self.before = [0, *itertools.accumulate(self._steps(n) for n, _ in self.turns)]  # steps, by turn
        self.turn = self.step = 0
        self.seconds, self.best = 0.0, -1.0
        self.rows: list[Row] = []
        self.optimizers: dict[int, torch.optim.Optimizer] = {}

        world.first(lambda: self._expect_sound(model))
        if world.size > 1 and batch_norms(model):
            model = synchronized(model)
        self.model = model.to(world.device)
        self.loss = torch.zeros((), dtype=torch.float64, device=world.device)  # summed over this epoch's steps
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "float16")
        self.loaders: dict[int, DataLoader[data.Item]] = {}
        self.lock = contextlib.ExitStack()  # until `run` ends
        self.validation = self._load(data.Images(splits["validate"], config.data.resize), batch=1, shuffle=False)
        self._open(resume)

    def _expect_sound(self, model: Segmenter) -> None:
        ranks = self.world.size
        if ranks > 1 and batch_norms(model) and self.world.device.type == "cpu":
            raise ValueError(
                "torchrun: expected GPUs for a network with batch norm, which ranks can share only on GPUs, got CPUs"
            )
        for phase in self.config.phases:
            if phase.batch % ranks:
                raise ValueError(f"phases.{phase.name}.batch: expected a multiple of {ranks} ranks, got {phase.batch}")
            images = len(self.splits[phase.split])
            if images < phase.batch:
                wanted = f"at most the {images} images of its split"
                raise ValueError(f"phases.{phase.name}.batch: expected {wanted}, got {phase.batch}")
            expect_learnable(model, phase)

    # The run's folder ------------------------------------------------------------------------------------------

    def _open(self, resume: bool) -> None:
        last = self.folder / "last.pt"

        def begin() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.enter_context(locked(self.folder))
            self._expect_new_run(last, resume)
            if last.exists():
                self._restore(last)
            self._prepare_folder()

        with self.lock:
            self.world.first(begin)
            if self.world.rank and last.exists():
                self._restore(last)
            self.lock = self.lock.pop_all()

    def _expect_new_run(self, last: Path, resume: bool) -> None:
        if last.exists() and not resume:
            raise FileError(f"{self.folder}: expected a new folder, got one with a run; --resume continues it")

    def _prepare_folder(self) -> None:
        (self.folder / "panels").mkdir(exist_ok=True)
        for folder, names in (self.folder, FILES), (self.folder / "panels", PANELS):
            for leftover in temporaries(folder, names):
                leftover.unlink(missing_ok=True)
        write(self.folder / "config.json", json.dumps(self.config.table(), indent=2).encode())

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the earlier one: everything except where and how images are
        read."""
        names = {name: [entry[0] for entry in split.entries] for name, split in self.splits.items()}
        return {**_told(self.config), "classes": list(self.classes), "images": names}

    def _restore(self, path: Path) -> None:
        state = checkpoints.read(path)
        if "training" not in state:
            raise FileError(f"{path}: expected the checkpoint of a run, got one with only a network")
        training, where = state["training"], f"{path}: training."
        identity = field(training, "identity", dict, where)
        checkpoints.expect_plain(identity, f"{where}identity")
        # Parsed again, so that a key that is newer than the run has its default.
        keys = {entry.name for entry in dataclasses.fields(Config)} & identity.keys()
        identity |= _told(parse({key: identity[key] for key in keys}, f"{where}identity"))
        changed = [key for key, value in self._identity().items() if identity.get(key) != value]
        if changed:
            raise FileError(
                f"{path}: expected a run of this configuration and data, got one that differs in {', '.join(changed)}"
            )
        self.turn = number(field(training, "turn", int, where), f"{where}turn", most=len(self.turns))
        steps = self._steps(self.turns[self.turn][0]) if self.turn < len(self.turns) else 0
        self.step = number(field(training, "step", int, where), f"{where}step", most=steps)
        self.seconds = number(training.get("seconds"), f"{where}seconds")
        self.best = number(training.get("best"), f"{where}best", least=-1, most=1)
        self.loss.fill_(number(training.get("loss"), f"{where}loss"))
        self.rows = field(training, "rows", list, where)
        phases = [self.config.phases[n].name for n, _ in self.turns[: self.turn]]
        _expect_rows(self.rows, phases, f"{where}rows")
        scaler = field(training, "scaler", dict, where)
        if scaler.keys() != self.scaler.state_dict().keys():
            raise FileError(f"{where}scaler: expected {list(self.scaler.state_dict())}, got {list(scaler)}")
        for name, value in scaler.items():
            number(value, f"{where}scaler.{name}")
        self.scaler.load_state_dict(scaler)
        checkpoints.restore(self.model, state["model"], path)
        optimizers = field(training, "optimizers", dict, where)
        begun = {n for n, _ in self.turns[: self.turn + (self.step > 0)]} & {n for n, _ in self.turns[self.turn :]}
        wanted = {n for n in begun if self.config.phases[n].optimizer is not None}
        if optimizers.keys() != wanted:
            raise FileError(f"{where}optimizers: expected those of the phases {wanted}, got {list(optimizers)}")
        for n in wanted:
            self.optimizers[n] = self._new_optimizer(n)
            saved = field(optimizers, n, dict, f"{where}optimizers.")
            restore(self.optimizers[n], saved, f"{where}optimizers.{n}.")

    def _new_optimizer(self, n: int) -> torch.optim.Optimizer:
        """The optimizer of a phase; enables the gradients of the parameters that it trains."""
        phase = self.config.phases[n]
        assert phase.optimizer is not None
        select(self.model, phase)
        return optimizer(self.model, phase.optimizer)

    def _checkpoint(self) -> None:
        if self.world.rank == 0:
            training = {
                "identity": self._identity(),
                "turn": self.turn, "step": self.step, "seconds": self.seconds, "best": self.best, "rows": self.rows,
                "loss": self.loss.item(), "scaler": self.scaler.state_dict(),
                "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
            }  # fmt: skip
            checkpoints.save(self.folder / "last.pt", self.model, self.config, self.classes, training=training)

    # The loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do the rest of the run."""
        shown = self.world.rank == 0
        total, done = self.before[-1], self.before[self.turn] + self.step
        hidden = None if shown else True
        with self.lock, tqdm(total=total, initial=done, unit="step", disable=hidden, dynamic_ncols=True) as bar:
            if not self.rows and not self.step:
                self._checkpoint()  # so that a run killed in the first epoch can resume
            while self.turn < len(self.turns):
                self._epoch(*self.turns[self.turn], bar)

    def _steps(self, n: int) -> int:
        """The number of steps in an epoch of a phase."""
        phase = self.config.phases[n]
        return len(self.splits[phase.split]) // phase.batch

    def _loader(self, n: int) -> DataLoader[data.Item]:
        if n not in self.loaders:
            phase = self.config.phases[n]
            augment = self.augment if phase.augment else None
            images = data.Images(self.splits[phase.split], self.config.data.resize, augment, self.config.seed)
            self.loaders[n] = self._load(images, phase.batch // self.world.size, shuffle=True)
        return self.loaders[n]

    def _load(self, images: data.Images, batch: int, shuffle: bool) -> DataLoader[data.Item]:
        """Load this rank's part of the images."""
        rank, ranks = self.world.rank, self.world.size
        batches = data.Batches(len(images), batch, self.config.seed, shuffle=shuffle, rank=rank, ranks=ranks)
        return data.loader(images, batches, self.config.data.workers)

    def _epoch(self, n: int, epoch: int, bar: tqdm) -> None:
        phase, steps = self.config.phases[n], self._steps(n)
        select(self.model, phase)
        set_modes(self.model, phase)
        if phase.optimizer is None:  # statistics
            if epoch % phase.epochs == self.step == 0:
                for norm in batch_norms(self.model):
                    norm.reset_running_stats()
        elif n not in self.optimizers:
            self.optimizers[n] = self._new_optimizer(n)
        network = self._shared(phase)
        started = saved = time.monotonic()
        bar.set_description(f"{phase.name} {epoch + 1}/{self.config.epochs(n)}", refresh=False)

        loader = self._loader(n)
        assert isinstance(loader.batch_sampler, data.Batches)
        loader.batch_sampler.set_epoch(self.turn, start=self.step)
        for batch in loader:
            images, labels = (batch[k].to(self.world.device, non_blocking=True) for k in ("image", "labels"))
            if phase.optimizer is None:
                with torch.no_grad(), self._autocast():
                    network(images, "unary")
            else:
                done = (epoch * steps + self.step) / (self.config.epochs(n) * steps)
                set_rates(self.optimizers[n], phase.optimizer.power, done)
                self.loss += self._learn(network, images, labels, phase, self.optimizers[n])
            self.step += 1
            bar.update()
            if self.step % LOOK == 0:
                bar.set_postfix(loss=f"{self._finite_loss():.3f}", refresh=False)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._finite_loss()
                self.seconds += time.monotonic() - started
                started = saved = time.monotonic()
                self._checkpoint()

        row: Row = {"turn": self.turn, "phase": phase.name, "epoch": epoch + 1, "steps": steps}
        row["loss"] = self._finite_loss()
        if phase.optimizer is None:
            row["loss"] = None
        else:
            row["lr"] = self.optimizers[n].param_groups[0]["lr"]
        last = self.turn + 1 == len(self.turns)
        if (epoch + 1) % self.config.validate_every == 0 or last:
            row.update(self._validate())
        self.seconds += time.monotonic() - started
        self._finish_epoch({**row, "seconds": round(self.seconds, 1)}, bar)

    def _finish_epoch(self, row: Row, bar: tqdm) -> None:
        """Finish an epoch. The checkpoint is written last, so that a run killed before it repeats the end of the
        epoch."""
        self.rows.append({name: row.get(name) for name in COLUMNS})
        self.turn, self.step = self.turn + 1, 0
        self.loss.zero_()
        running = {n for n, _ in self.turns[self.turn :]}
        self.optimizers = {n: o for n, o in self.optimizers.items() if n in running}
        self.loaders = {n: loader for n, loader in self.loaders.items() if n in running}
        validated = row.get("val_miou") is not None
        better = validated and row["val_miou"] > self.best
        if better:
            self.best = row["val_miou"]
        if self.world.rank == 0:
            if better:
                checkpoints.save(self.folder / "best.pt", self.model, self.config, self.classes)
            self._log()
            self._panel()
            if validated:
                save_figure(self.folder / "curves.png", network_figures.curves(self.rows))
            bar.write(self._line(row))
        self._checkpoint()
        self.world.wait()

    # One step --------------------------------------------------------------------------------------------------

    def _learn(
        self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, phase: Phase,
        optimizer: torch.optim.Optimizer,
    ) -> torch.Tensor:  # fmt: skip
        """One step; returns the mean loss over the pixels that count, on all ranks."""
        step = self.before[self.turn] + self.step  # of the run
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 4096 + self.world.rank)
        n, epoch = self.turns[self.turn]
        taken = epoch * self._steps(n) + self.step  # of this phase
        unary_only = phase.train == "unary" or (phase.alternate and taken % 2 == 0)
        output = "unary" if unary_only else "both" if phase.auxiliary else "refined"
        with self._diverged_if_not_finite(), self._autocast():
            found = network(images, output)
        pairs = [(found, 1.0)] if output != "both" else [(found[1], 1.0), (found[0], phase.auxiliary)]

        losses = [cross_entropy(logits, labels, phase.ohem, phase.hardest, phase.robust) for logits, _ in pairs]
        sums, counts = zip(*losses)
        total = self.world.total(torch.stack(counts)).clamp(min=1)
        weights = torch.tensor([weight for _, weight in pairs], device=total.device)
        means = weights * torch.stack(sums) / total
        objective = (means * total if phase.loss == "sum" else means).sum()

        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(objective * self.world.size).backward()  # the ranks' gradients are averaged
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.world.total(means.detach().sum().double())

    def _autocast(self) -> torch.autocast:
        dtype = AMP[self.config.amp]
        return torch.autocast(self.world.device.type, dtype, enabled=dtype is not None)

    def _shared(self, phase: Phase) -> nn.Module:
        """The network with its gradients averaged over the ranks."""
        if self.world.size == 1 or phase.train == "statistics":
            return self.model
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            self.model, device_ids=devices, find_unused_parameters=phase.alternate
        )

    def _finite_loss(self) -> float:
        """The mean over the epoch's steps so far; if it is not finite, raise an error before anything is written."""
        loss = self.loss.item() / max(self.step, 1)
        if not math.isfinite(loss):
            raise self._diverged()
        return loss

    @contextlib.contextmanager
    def _diverged_if_not_finite(self) -> Iterator[None]:
        """A CRF does not accept logits that are not finite; raise the error about the loss instead."""
        try:
            yield
        except ValueError as error:
            if all(bool(p.isfinite().all()) for p in self.model.parameters()):
                raise
            raise self._diverged() from error

    def _diverged(self) -> ValueError:
        phase = self.config.phases[self.turns[self.turn][0]]
        return ValueError(
            f"phases.{phase.name}: the loss is not finite at step {self.step} of the epoch; start a new run with a "
            f"smaller optimizer.lr, from --weights {self.folder / 'last.pt'} to keep earlier progress"
        )

    # Progress of a run -------------------------------------------------------------------------------------

    def _validate(self) -> Row:
        self.model.eval()
        found = evaluation.validate(self.model, self.validation, len(self.classes), self.world, self._autocast)
        row = {"val_loss": found.loss, "val_miou": found.refined.miou, "val_accuracy": found.refined.pixel_accuracy}
        if found.unary is not None:
            row |= {"val_unary_miou": found.unary.miou, "val_unary_accuracy": found.unary.pixel_accuracy}
        return row

    def _log(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.folder / "log.csv", text.getvalue().encode())

    @torch.no_grad()
    def _panel(self) -> None:
        self.model.eval()
        images = data.Images(self.splits["validate"], self.config.data.resize)
        shown = [images[n] for n in range(0, len(images), max(1, len(images) // PANEL))][:PANEL]
        found = []
        for example in shown:
            with self._autocast():
                logits = evaluation.by_output(self.model, example["image"][None].to(self.world.device))
            found.append({name: x[0].argmax(0).cpu().numpy() for name, x in logits.items()})
        unary = [labels.get("unary", labels["refined"]) for labels in found]
        refined = [labels["refined"] for labels in found] if self.model.crf is not None else None
        photos = [example["image"].permute(1, 2, 0).numpy() for example in shown]
        truths = [example["labels"].numpy() for example in shown]
        figure = network_figures.panel(photos, truths, unary, refined, self.classes)
        save_figure(self.folder / "panels" / f"epoch_{self.turn:04d}.png", figure)

    def _line(self, row: Row) -> str:
        taken, total = self.before[self.turn], self.before[-1]
        minutes = self.seconds / taken * (total - taken) / 60
        said = [f"{row['phase']} {row['epoch']}"]
        said += [f"{name} {row[name]:.4g}" for name in COLUMNS[5:] if row.get(name) is not None]
        return "  ".join([*said, f"{minutes:.0f} min left"])


def _told(config: Config) -> dict[str, Any]:
    """A configuration without the keys for where and how images are read."""
    table = config.table()
    table["data"] = {key: value for key, value in table["data"].items() if key not in ("root", "workers")}
    return table


def _expect_rows(rows: list[Any], phases: list[str], where: str) -> None:
    """Raise an error unless these are the rows of a log with epochs of these phases."""
    checkpoints.expect_plain(rows, where)
    if len(rows) != len(phases):
        raise FileError(f"{where}: expected one for each of {len(phases)} epochs, got {len(rows)}")
    for turn, (row, phase) in enumerate(zip(rows, phases)):
        if not isinstance(row, dict) or tuple(row) != COLUMNS or (row["turn"], row["phase"]) != (turn, phase):
            raise FileError(f"{where}.{turn}: expected {', '.join(COLUMNS)} of phase {phase!r}, got {kind_of(row)}")
        for name, value in row.items():
            if name != "phase" and type(value) not in (int, float, type(None)):
                raise FileError(f"{where}.{turn}.{name}: expected a number, got {kind_of(value)}")

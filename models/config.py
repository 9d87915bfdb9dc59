"""The configuration of a run: a TOML file, read strictly, into frozen dataclasses.

    seed = 0
    [network]            name = "ResNetFCN" and its arguments
    [crf]                name = "ConvCRF" and its arguments; if omitted: no CRF, or the network's own
    [data]               `Data`
    [augment]            arguments of `Augment`; if omitted: no augmentation
    [[phases]]           `Phase`, one after another
    [phases.optimizer]   `Optimizer`

Unknown keys, missing keys and values of another type are errors that name the file and the key.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tritoncrf import CRFRNN, ConvCRF, GuidanceCRF
from tritoncrf.files import FileError
from tritoncrf.layers import Layer
from tritoncrf.models import BUNDLED, toml_tables
from tritoncrf.models.augment import MOST_SIDE, Augment
from tritoncrf.models.fcn import FCN8s, FCN16s, FCN32s
from tritoncrf.models.losses import Hardest
from tritoncrf.models.resnet_fcn import ResNetFCN
from tritoncrf.models.segmenter import Segmenter, WithCRF
from tritoncrf.models.segmodel import SegModel
from tritoncrf.models.timm_fcn import TimmFCN

Made = TypeVar("Made")

MOST_EPOCHS = 100_000  # of a whole run
MOST_WORKERS = 256
PLACES = "device", "dtype"  # arguments of a layer that a run chooses

NETWORKS: dict[str, type[Segmenter]] = {
    network.__name__: network for network in (FCN32s, FCN16s, FCN8s, ResNetFCN, SegModel, TimmFCN)
}
CRFS: dict[str, type[Layer]] = {crf.__name__: crf for crf in (ConvCRF, CRFRNN, GuidanceCRF)}


@dataclass(frozen=True)
class Data:
    """The data set: see `tritoncrf.models.data`.

    Attributes:
        format: the layout.
        root: the folder of the data set; --data overrides it.
        train, validate: names of splits.
        held_out: number of training images set apart for the phases that ask for them, the same ones in every run.
        resize: [H, W], the size to which every image is resized.
        sbd, coco: VOC only, the folders of its extra annotations and of COCO.
        void: for a plain folder, the value of unknown pixels in the masks.
        workers: number of processes that load images, at most 256.
    """

    format: Literal["camvid", "voc", "folder", "cityscapes", "ade20k", "pascal_context", "coco"]
    root: str = ""
    train: str = "train"
    validate: str = "val"
    held_out: int = 0
    resize: tuple[int, int] | None = None
    sbd: str = ""
    coco: str = ""
    void: int = 255
    workers: int = 2


@dataclass(frozen=True)
class Optimizer:
    """SGD, Adam or AdamW, with lr x (1 - step / steps)^power: power 0 is a fixed rate.

    Weight decay applies to kernels of convolutions and matrices of linear layers.

    Attributes:
        name: the optimizer.
        lr, momentum, weight_decay, power: its parameters.
        multipliers: factors of the learning rate, by patterns of parameter names ("crf.*"); all matching factors apply.
        also_decay: name patterns of further parameters with weight decay.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    power: float = 0.0
    multipliers: dict[str, float] = field(default_factory=dict)
    also_decay: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        name: its name in changes and in the log.
        train: what is trained: "unary", the network on its logits before the CRF; "crf", the CRF on a frozen network in
            evaluation mode; "all"; or "statistics", only the averages of batch norm, computed again.
        epochs, batch: passes over the images, and images per step on all ranks together.
        optimizer: required unless `train` is "statistics".
        split: "train", or the images that data.held_out keeps apart.
        augment: whether [augment] is used.
        follows: the name of an earlier phase; this one then runs for `epochs` epochs after each epoch of that phase.
        loss: "mean" over the valid pixels of the batch, or their "sum".
        ohem: the share of hard pixels that count.
        hardest: how hard pixels are chosen, "known" or "released", see `losses.hard_pixels`.
        robust: a number from 0 (the cross-entropy) to 1 that is added to the probability of the right class before the
            logarithm is taken, see `losses.cross_entropy`.
        auxiliary: weight of the loss of the unary logits, relative to that of the refined ones.
        alternate: every other step uses the loss of the unary logits alone.
        freeze: name patterns of parameters that are not trained in this phase.
    """

    name: str
    train: Literal["unary", "crf", "all", "statistics"]
    epochs: int
    batch: int
    optimizer: Optimizer | None = None
    split: Literal["train", "held_out"] = "train"
    augment: bool = True
    follows: str = ""
    loss: Literal["mean", "sum"] = "mean"
    ohem: float | None = None
    hardest: Hardest = "known"
    robust: float = 0.0
    auxiliary: float = 0.0
    alternate: bool = False
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        network, crf, augment: their arguments, including the name; None for no CRF and no augmentation.
        data: the data set.
        phases: one after another.
        seed: of all random numbers.
        amp: the dtype of the network under autocast, "off" for none.
        validate_every: number of epochs between validations.
    """

    network: dict[str, Any]
    data: Data
    phases: tuple[Phase, ...]
    crf: dict[str, Any] | None = None
    augment: dict[str, Any] | None = None
    seed: int = 0
    amp: Literal["off", "bfloat16", "float16"] = "off"
    validate_every: int = 1

    def turns(self) -> Iterator[tuple[int, int]]:
        """(phase, epoch of that phase) in the order in which they run."""
        for n, phase in enumerate(self.phases):
            for epoch in range(0 if phase.follows else phase.epochs):
                yield n, epoch
                for m, other in enumerate(self.phases):
                    if other.follows == phase.name:
                        yield from ((m, epoch * other.epochs + e) for e in range(other.epochs))

    def epochs(self, phase: int) -> int:
        """How many epochs of a phase there are in all."""
        return sum(n == phase for n, _ in self.turns())

    def table(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers for a checkpoint; `parse` reads them back."""
        return toml_tables.plain(dataclasses.asdict(self))


def load(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration from a file, or one of the bundled configurations by its name.

    Args:
        path: "run.toml", or "convcrf_decoupled" for configs/convcrf_decoupled.toml.
        changes: "key=value" in TOML; dots select tables, and a phase is selected by its name: "phases.unary.epochs=3".

    Raises:
        FileError: no such file, not TOML, or an invalid key or value.
    """
    path = Path(path)
    if not path.is_file() and path.suffix != ".toml" and (BUNDLED / f"{path}.toml").is_file():
        path = BUNDLED / f"{path}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.toml")))
        raise FileError(f"{path}: expected a configuration file, or one of {names}, got no such file")
    table = toml_tables.load(path)
    for change in changes:
        toml_tables.change(table, change)
    return parse(table, str(path))


def parse(table: dict[str, Any], source: str) -> Config:
    """A `Config` from plain dicts; error messages begin with `source`."""
    toml_tables.expect_plain(table, source)
    config: Config = toml_tables.read(Config, table, source)
    for key, kinds, given in (("network", NETWORKS, config.network), ("crf", CRFS, config.crf)):
        if given is not None and (not isinstance(given.get("name"), str) or given["name"] not in kinds):
            raise FileError(f"{source}: {key}.name: expected one of {', '.join(kinds)}, got {given.get('name')!r}")
    for key, value, least, most in (
        ("phases", len(config.phases), 1, None), ("seed", config.seed, 0, 2**32 - 1),
        ("validate_every", config.validate_every, 1, None), ("data.held_out", config.data.held_out, 0, None),
        ("data.workers", config.data.workers, 0, None), ("data.resize", min(config.data.resize or (1,)), 1, None),
    ):  # fmt: skip
        if value < least or (most is not None and value > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise FileError(f"{source}: {key}: expected a number {bounds}, got {value}")
    for key, value, most in (
        ("data.workers", config.data.workers, MOST_WORKERS),
        ("data.resize", max(config.data.resize or (1,)), MOST_SIDE),
    ):
        if value > most:
            raise FileError(f"{source}: {key}: expected a number of at most {most}, got {value}")
    for n, phase in enumerate(config.phases):
        _check_phase(phase, config.phases[:n], config, source)
    leading = {phase.name: phase.epochs for phase in config.phases if not phase.follows}
    epochs = sum(phase.epochs * leading.get(phase.follows, 1) for phase in config.phases)
    if epochs > MOST_EPOCHS:
        raise FileError(f"{source}: phases: expected at most {MOST_EPOCHS} epochs in all, got {epochs}")
    return config


def build(config: Config, num_classes: int, source: str) -> Segmenter:
    """The network of a configuration, with its CRF; error messages begin with `source`."""
    network = _made("network", NETWORKS, config.network, num_classes, source)
    return network if config.crf is None else WithCRF(network, layer(config.crf, num_classes, source))


def layer(crf: Mapping[str, Any], num_classes: int, source: str) -> Layer:
    """The CRF of a configuration's table; error messages begin with `source`."""
    return _made("crf", CRFS, crf, num_classes, source)


def _made(
    section: str, kinds: Mapping[str, Callable[..., Made]], given: Mapping[str, Any], num_classes: int, source: str
) -> Made:
    kind, arguments = kinds[given["name"]], {key: value for key, value in given.items() if key != "name"}
    known = [key for key in inspect.signature(kind).parameters if key != "num_classes" and key not in PLACES]
    for key in arguments:
        if key in PLACES:
            raise FileError(f"{source}: {section}.{key}: expected none, since the run chooses it, got {given[key]!r}")
        if key not in known:
            raise FileError(f"{source}: {section}.{key}: unknown key{toml_tables.hint(key, known)}")
    try:
        return kind(num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise FileError(f"{source}: {section}: {error}") from error


def augmentation(config: Config, source: str) -> Augment | None:
    """The augmentation of a configuration; error messages begin with `source`."""
    if config.augment is None:
        return None
    try:
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.augment.items()}
        return Augment(**arguments)
    except (TypeError, ValueError) as error:
        raise FileError(f"{source}: augment: {error}") from error


def _check_phase(phase: Phase, earlier: tuple[Phase, ...], config: Config, source: str) -> None:
    """Check what the types of the values do not express."""
    leaders = [other.name for other in earlier if not other.follows]
    optimized, joint = phase.train != "statistics", phase.train == "all"
    has_crf = config.crf is not None or (config.network["name"] == "SegModel" and config.network.get("guidance", True))
    refused = [
        ("name", phase.name in [other.name for other in earlier], "a name of its own"),
        ("train", phase.train == "crf" and not has_crf, "something else where there is no CRF"),
        ("epochs", phase.epochs < 1, "at least 1"),
        ("epochs", phase.epochs > MOST_EPOCHS, f"at most {MOST_EPOCHS}"),
        ("batch", phase.batch < 1, "at least 1"),
        ("follows", phase.follows and phase.follows not in leaders, "an earlier phase that follows none itself"),
        ("ohem", phase.ohem is not None and not 0 < phase.ohem <= 1, "a share above 0 and at most 1"),
        ("hardest", phase.ohem is None and phase.hardest != "known", "'known' where all pixels count: set ohem"),
        ("robust", not 0 <= phase.robust <= 1, "a number from 0 to 1"),
        ("split", phase.split == "held_out" and not config.data.held_out, "images of it: set data.held_out"),
        ("optimizer", (phase.optimizer is not None) != optimized, "one where something is learned, else none"),
        ("auxiliary", phase.auxiliary < 0, "at least 0"),
        ("auxiliary", phase.auxiliary and not (joint and has_crf), "0 unless a network and its CRF learn together"),
        ("alternate", phase.alternate and not (joint and has_crf), "false unless a network and its CRF learn together"),
    ]
    for key, wrong, wanted in refused:
        if wrong:
            raise FileError(f"{source}: phases.{phase.name}.{key}: expected {wanted}, got {getattr(phase, key)!r}")
    if phase.optimizer is not None:
        options = phase.optimizer
        for key, wrong, wanted in (
            ("lr", options.lr <= 0, "above 0"),
            ("momentum", not 0 <= options.momentum < 1, "from 0 to below 1"),
            ("weight_decay", options.weight_decay < 0, "of at least 0"),
            ("power", options.power < 0, "of at least 0"),
            ("multipliers", min(options.multipliers.values(), default=0) < 0, "of at least 0"),
        ):
            if wrong:
                found = getattr(options, key)
                raise FileError(
                    f"{source}: phases.{phase.name}.optimizer.{key}: expected numbers {wanted}, got {found}"
                )


def changed(config: Config, changes: Sequence[str]) -> Config:
    """A configuration with changes as of `load`."""
    table = config.table()
    for change in changes:
        toml_tables.change(table, change)
    return parse(table, "--set")

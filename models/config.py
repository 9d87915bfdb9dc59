"""The configuration of a run: a TOML file, read strictly, into frozen dataclasses.

    seed = 0
    [network]            name = "ResNetFCN" and its arguments
    [crf]                name = "ConvCRF" and its arguments; left out: no CRF, or the network's own
    [data]               `Data`
    [augment]            arguments of `Augment`; left out: none
    [[phases]]           `Phase`, one after another
    [phases.optimizer]   `Optimizer`

Unknown keys, missing keys and values of another type are errors that name the file and the key.
"""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tritoncrf import CRFRNN, ConvCRF, GuidanceCRF
from tritoncrf.files import FileError
from tritoncrf.layers import Layer
from tritoncrf.models import BUNDLED
from tritoncrf.models.augment import MOST_SIDE, Augment
from tritoncrf.models.fcn8s import FCN8s
from tritoncrf.models.resnet_fcn import ResNetFCN
from tritoncrf.models.segmenter import Segmenter, WithCRF
from tritoncrf.models.segmodel import SegModel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Made = TypeVar("Made")

MOST_EPOCHS = 100_000  # of a whole run
MOST_WORKERS = 256
DEEPEST = 8  # of tables and lists in one another
PLACES = "device", "dtype"  # arguments of a layer that a run chooses

NETWORKS: dict[str, type[Segmenter]] = {network.__name__: network for network in (FCN8s, ResNetFCN, SegModel)}
CRFS: dict[str, type[Layer]] = {crf.__name__: crf for crf in (ConvCRF, CRFRNN, GuidanceCRF)}


@dataclass(frozen=True)
class Data:
    """The data set: see `tritoncrf.models.data`.

    Attributes:
        format: the layout.
        root: the folder of the data set; --data overrides it.
        train, validate: names of splits.
        held_out: number of training images that are kept apart for phases that ask for them, the same in every run.
        resize: [H, W] to which every image is resized.
        sbd: for VOC only, the folder with the SBD annotations.
        void: the value of unknown pixels in the masks of a plain folder.
        workers: number of loading processes, at most 256.
    """

    format: Literal["camvid", "voc", "folder"]
    root: str = ""
    train: str = "train"
    validate: str = "val"
    held_out: int = 0
    resize: tuple[int, int] | None = None
    sbd: str = ""
    void: int = 255
    workers: int = 2


@dataclass(frozen=True)
class Optimizer:
    """SGD, or Adam, with lr x (1 - step / steps)^power: power 0 is a fixed rate. Only kernels of convolutions decay.

    Attributes:
        name: which of the two.
        lr, momentum, weight_decay, power: its settings.
        multipliers: of the learning rate, by patterns of parameter names ("crf.*"); all that match are multiplied.
    """

    name: Literal["sgd", "adam"]
    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    power: float = 0.0
    multipliers: dict[str, float] = field(default_factory=dict)


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
        ohem: the fraction of pixels, the hardest ones, that the loss counts.
        auxiliary: weight of an additional loss on the unary logits.
        alternate: train every other step on the unary logits alone.
        freeze: name patterns of parameters that this phase does not train.
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
        """As plain dicts, lists and numbers, to be kept in a checkpoint; `parse` reads it back."""
        return _plain(dataclasses.asdict(self))


def load(path: str | Path, changes: typing.Sequence[str] = ()) -> Config:
    """Read a configuration: a file, or the name of one of those that are installed.

    Args:
        path: "run.toml", or "convcrf_decoupled" for configs/convcrf_decoupled.toml.
        changes: "key=value" in TOML, with dots into tables and a phase by its name: "phases.unary.epochs=3".

    Raises:
        FileError: no such file, not TOML, or an invalid key or value.
    """
    path = Path(path)
    if not path.is_file() and path.suffix != ".toml" and (BUNDLED / f"{path}.toml").is_file():
        path = BUNDLED / f"{path}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.toml")))
        raise FileError(f"{path}: expected a configuration file, or one of {names}, got no such file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, UTF-8, numbers of thousands of digits
        raise FileError(f"{path}: expected TOML, unreadable: {error}") from error
    for change in changes:
        _change(table, change)
    return parse(table, str(path))


def parse(table: dict[str, Any], source: str) -> Config:
    """A `Config` of plain dicts; errors begin with `source`."""
    _expect_plain(table, source)
    config = _read(Config, table, source, "")
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
    """The network of a configuration, with its CRF; errors begin with `source`."""

    def made(section: str, kinds: Mapping[str, Callable[..., Made]], given: Mapping[str, Any]) -> Made:
        arguments = {key: value for key, value in given.items() if key != "name"}
        for key in arguments.keys() & PLACES:
            raise FileError(f"{source}: {section}.{key}: expected none, for a run chooses it, got {given[key]!r}")
        try:
            return kinds[given["name"]](num_classes, **arguments)
        except (TypeError, ValueError) as error:
            raise FileError(f"{source}: {section}: {error}") from error

    network = made("network", NETWORKS, config.network)
    return network if config.crf is None else WithCRF(network, made("crf", CRFS, config.crf))


def augmentation(config: Config, source: str) -> Augment | None:
    """The augmentation of a configuration; errors begin with `source`."""
    if config.augment is None:
        return None
    try:
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.augment.items()}
        return Augment(**arguments)
    except (TypeError, ValueError) as error:
        raise FileError(f"{source}: augment: {error}") from error


def _check_phase(phase: Phase, earlier: tuple[Phase, ...], config: Config, source: str) -> None:
    """What the types of its values do not say."""
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
        ("split", phase.split == "held_out" and not config.data.held_out, "images of it: set data.held_out"),
        ("optimizer", (phase.optimizer is not None) != optimized, "one where something is learnt, else none"),
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


def changed(config: Config, changes: typing.Sequence[str]) -> Config:
    """A configuration with changes as of `load`."""
    table = config.table()
    for change in changes:
        _change(table, change)
    return parse(table, "--set")


def _change(table: Any, change: str) -> None:
    """Set one key of a table that TOML gave."""
    key, equals, text = change.partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise FileError(f"--set {key}: expected a value, got one too deep to read") from None
    except ValueError:
        value = text  # a bare word: network.name=FCN8s
    if not equals or not all(key.split(".")):
        raise FileError(f"--set {change}: expected key=value, such as data.workers=4 or phases.unary.epochs=3")
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(table, list):
            table = next((entry for entry in table if isinstance(entry, dict) and entry.get("name") == parent), None)
        else:
            table = table.setdefault(parent, {})
        if not isinstance(table, (dict, list)):
            raise FileError(f"--set {change}: expected a key inside a table, got nothing of that name at {parent!r}")
    if isinstance(table, list):
        raise FileError(f"--set {change}: expected the name of a phase and its key")
    table[last] = value


def _expect_plain(value: Any, source: str, key: str = "", depth: int = 0) -> None:
    """An error for tables too deep for what reads them, and for numbers that TOML has none of."""
    if isinstance(value, (dict, list, tuple)):
        if depth > DEEPEST:
            raise FileError(f"{source}: {key}: expected at most {DEEPEST} tables or lists in one another, got more")
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _expect_plain(entry, source, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FileError(f"{source}: {key}: expected a number of at most 64 bits, got {value.bit_length()} bits")


def _read(kind: Any, value: Any, source: str, key: str) -> Any:
    """`value` as a type of the dataclasses above: nested ones, tuples, unions with None, literals and numbers."""

    def refused(wanted: str) -> FileError:
        return FileError(f"{source}: {key}: expected {wanted}, got {value!r}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(arguments[0], value, source, key)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise refused(f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        repeated = arguments[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (repeated or len(value) == len(arguments)):
            raise refused("a list" if repeated else f"a list of {len(arguments)}")
        inner = arguments[:1] * len(value) if repeated else arguments
        return tuple(_read(i, v, source, f"{key}[{n}]") for n, (i, v) in enumerate(zip(inner, value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise refused("a table")
        return {k: v if arguments[1] is Any else _read(arguments[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise refused("a table")
        return _read_table(kind, value, source, key)
    plain = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not plain or (kind is not bool and isinstance(value, bool)) or (kind is float and not math.isfinite(value)):
        raise refused({int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}[kind])
    return kind(value)


def _read_table(kind: Any, table: dict[str, Any], source: str, key: str) -> Any:
    fields, hints = dataclasses.fields(kind), typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in table:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(hints)}"
            raise FileError(f"{source}: {prefix}{name}: unknown key{hint}")
    for entry in fields:
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in table:
            raise FileError(f"{source}: {prefix}{entry.name}: expected a value, got none")
    if kind is Phase:  # the name tells more than a number does
        prefix = f"phases.{table.get('name', '')}."
    return kind(**{name: _read(hints[name], value, source, f"{prefix}{name}") for name, value in table.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value

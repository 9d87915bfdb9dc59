"""Checkpoints of a run, written completely or not at all, to resume it or to load its network.

A checkpoint is the zip file that `torch.save` writes, with the SHA-256 of its content as the zip comment. So
`torch.load` can read it, and a single changed bit is detected.
"""

import hashlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tritoncrf.checks import kind_of
from tritoncrf.files import FileError, decoded, replacing
from tritoncrf.models.config import Config, build, parse
from tritoncrf.models.fcn import FCN
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.models.weights import load_backbone, some, unusual

FORMAT, VERSION = "tritoncrf segmenter", 2
SEAL = b"sha256 "
SEAL_BYTES = 2 + len(SEAL) + 64  # the comment and, before it, its length in a zip file
KINDS: dict[type, str] = {dict: "a dict", list: "a list", int: "a whole number"}
DEEPEST = 20  # of nested tables
LARGEST = sys.float_info.max

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Trained:
    """A network from a checkpoint, in evaluation mode, and the task it was trained for."""

    model: Segmenter
    config: Config
    classes: tuple[str, ...]


def save(path: Path, model: Segmenter, config: Config, classes: Sequence[str], **others: Any) -> None:
    """Write a checkpoint of a network; `others` is the state of its training."""
    write(path, {"config": config.table(), "classes": list(classes), "model": model.state_dict(), **others})


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of these fields."""
    buffer = io.BytesIO()  # torch does not report a full disk as an OSError
    torch.save({"mark": f"{FORMAT} {VERSION}", **state}, buffer)
    content = buffer.getbuffer()[:-2]
    with replacing(path) as file:
        file.write(content)
        file.write(_seal(content))


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this package; the state of its training, if any, is not checked.

    Raises:
        FileError: the file is missing, truncated, damaged, of another version or not a checkpoint, or a field is
            missing or invalid.
    """
    state, sealed = _load(path, "a checkpoint")
    if not _is_ours(state):
        raise FileError(f"{path}: expected a checkpoint of tritoncrf.models, got another file")
    return _expect_sound(state, sealed, path)


def trained(path: str | Path, device: torch.device) -> Trained:
    """The network of a checkpoint.

    Raises:
        FileError: as `read`, or the parameters do not fit the network that the configuration describes.
    """
    state = read(path)
    source = f"{path}: config"
    config = parse(state["config"], source)
    model = build(config, len(state["classes"]), source)
    restore(model, state["model"], path)
    return Trained(model.to(device).eval(), config, tuple(state["classes"]))


def restore(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """`model.load_state_dict(state)`, or one error that names the file and the first parameters that do not fit."""
    own = model.state_dict()
    wrong = [f"{name} missing" for name in own if name not in state]
    wrong += [f"{name} unknown" for name in state if name not in own]
    wrong += [
        f"{name} of shape {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong += [
        f"{name} of {state[name].dtype} for {own[name].dtype}"
        for name in own
        if name in state and state[name].dtype != own[name].dtype
    ]
    if wrong:
        raise FileError(f"{path}: expected the parameters of this network, got {some(wrong)}")
    model.load_state_dict(state)


def load_weights(model: Segmenter, path: str | Path) -> list[str]:
    """Load the initial weights of a network: a checkpoint of this package, or torchvision's or timm's weights of its
    backbone.

    A checkpoint gives the network, and the CRF if it has the same parameters. An FCN can also start from an FCN with a
    larger stride, see `FCN.continued`.

    Returns:
        Sentences that say what was left out of the checkpoint, and which parts of the network keep their initial
        weights.

    Raises:
        FileError: not such a file, or one of another network.
    """
    state, sealed = _load(path, "weights")
    network = getattr(model, "network", model)
    if not _is_ours(state):
        try:
            load_backbone(network, state)
        except (TypeError, ValueError) as error:
            raise FileError(f"{path}: {error}") from error
        return []
    given, own = _expect_sound(state, sealed, path)["model"], model.state_dict()
    if {name: x.shape for name, x in given.items()} == {name: x.shape for name, x in own.items()}:
        restore(model, given, path)
        return []
    said = []
    if inner := {name.removeprefix("network."): x for name, x in given.items() if name.startswith("network.")}:
        said.append("loaded the network; the CRF is a different one and starts from its initial parameters")
        given = inner
    begun = network.continued(given) if isinstance(network, FCN) else given
    restore(network, begun, path)
    if new := dict.fromkeys(name.rpartition(".")[0] for name in begun if name not in given):
        said.append(f"its network has a larger stride; {', '.join(new)} start from initial weights")
    return said


def field(table: Mapping[Any, Any], name: str | int, kind: type[Kind], where: str) -> Kind:
    """An entry of a checkpoint; error messages begin with `where` and the name."""
    value = table.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FileError(f"{where}{name}: expected {KINDS[kind]}, got {kind_of(value) if name in table else 'none'}")
    return value


def number(value: Any, where: str, least: float = 0, most: float = LARGEST) -> Any:
    """`value` itself if it is a finite number within these bounds."""
    if type(value) not in (int, float) or not least <= value <= most:
        bounds = f"from {least} to {most}" if most < LARGEST else f"of at least {least}"
        raise FileError(f"{where}: expected a finite number {bounds}, got {kind_of(value)}")
    return value


def expect_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raise an error unless `value` consists of dicts, lists, strings and numbers."""
    if isinstance(value, (dict, list)) and depth < DEEPEST:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in entries:
            if isinstance(value, dict) and not isinstance(name, str):
                raise FileError(f"{where}: expected names, got {kind_of(name)}")
            expect_plain(entry, f"{where}.{name}", depth + 1)
    elif not (value is None or isinstance(value, (str, int, float))):
        raise FileError(f"{where}: expected texts and numbers, got a {type(value).__name__}")


def expect_finite(value: Any, where: str) -> None:
    """Raise an error unless `value` is a tensor of finite real numbers."""
    found = unusual(value) or (None if value.isfinite().all() else "one with NaN or infinity")
    if found is not None:
        raise FileError(f"{where}: expected a tensor of finite real numbers, got {found}")


def _seal(content: memoryview) -> bytes:
    comment = SEAL + hashlib.sha256(content).hexdigest().encode()
    return len(comment).to_bytes(2, "little") + comment


def _load(path: str | Path, what: str) -> tuple[dict[str, Any], bool]:
    """A dict of tensors and plain values that torch saved, and whether it has a checksum, which is then correct."""

    def read(path: Path) -> tuple[dict[str, Any], bool]:
        content = path.read_bytes()
        whole, seal = memoryview(content)[:-SEAL_BYTES], content[-SEAL_BYTES:]
        sealed = seal[2 : 2 + len(SEAL)] == SEAL
        if sealed and seal != _seal(whole):
            raise FileError(f"{path}: expected {what}, got a damaged one: the checksum differs")
        state = _safetensors(content) if path.suffix == ".safetensors" else _torch(content)
        if not isinstance(state, dict):
            raise FileError(f"{path}: expected {what}, got a {type(state).__name__}")
        return state, sealed

    return decoded(Path(path), what, read)


def _torch(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _safetensors(content: bytes) -> dict[str, torch.Tensor]:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError('weights in .safetensors need timm\'s extra: pip install "tritoncrf[timm]"') from None
    return safetensors.torch.load(content)


def _is_ours(state: Mapping[str, Any]) -> bool:
    mark = state.get("mark")
    return isinstance(mark, str) and mark.startswith(FORMAT)


def _expect_sound(state: dict[str, Any], sealed: bool, path: str | Path) -> dict[str, Any]:
    """`state` itself, or an error that names the file and the first invalid field."""
    version = re.fullmatch(rf"{FORMAT} (\d{{1,9}})", state["mark"])
    if version is None or int(version[1]) != VERSION:
        which = "no known" if version is None else "a later" if int(version[1]) > VERSION else "an earlier"
        raise FileError(f"{path}: expected a checkpoint of version {VERSION}, got {state['mark']!r}, {which} one")
    where = f"{path}: "
    expect_plain(field(state, "config", dict, where), f"{where}config")
    classes = field(state, "classes", list, where)
    if not all(isinstance(name, str) and name for name in classes) or not 0 < len(set(classes)) == len(classes) <= 255:
        raise FileError(f"{where}classes: expected 1 to 255 different names, got {kind_of(classes)}")
    for name, value in field(state, "model", dict, where).items():
        if not isinstance(name, str):
            raise FileError(f"{where}model: expected names of parameters, got {kind_of(name)}")
        expect_finite(value, f"{where}model.{name}")
    if "training" in state:
        field(state, "training", dict, where)
    if not sealed:
        raise FileError(f"{path}: expected a checkpoint with a checksum, got one without")
    return state

"""What a run leaves behind: checkpoints, whole or not at all, from which it goes on or a network is built again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tritoncrf.files import FileError, decoded, replacing
from tritoncrf.models.config import Config, build, parse
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.models.weights import load_backbone, some

MARK = "tritoncrf segmenter 1"


@dataclass(frozen=True)
class Trained:
    """A network from a checkpoint, in evaluation mode, and what it was trained for."""

    model: Segmenter
    config: Config
    classes: tuple[str, ...]


def save(path: Path, model: Segmenter, config: Config, classes: Sequence[str], **others: Any) -> None:
    """Write a checkpoint of a network; `others` is the state of its training."""
    state = {"mark": MARK, "config": config.table(), "classes": list(classes), "model": model.state_dict(), **others}
    with replacing(path) as file:
        torch.save(state, file)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours as it was saved.

    Raises:
        FileError: no such file, cut short, or something else.
    """
    state = _read(path, "a checkpoint")
    if state.get("mark") != MARK:
        raise FileError(f"{path}: expected a checkpoint of tritoncrf.models, got a file of something else")
    return state


def trained(path: str | Path, device: torch.device) -> Trained:
    """The network of a checkpoint.

    Raises:
        FileError: as of `read`, or parameters that do not fit the network its configuration describes.
    """
    state = read(path)
    config = parse(state["config"], str(path))
    model = build(config, len(state["classes"]), str(path))
    restore(model, state["model"], path)
    return Trained(model.to(device).eval(), config, tuple(state["classes"]))


def restore(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """`model.load_state_dict(state)`, or one error that names the file and the first names that do not fit."""
    own = model.state_dict()
    wrong = [f"{name} missing" for name in own if name not in state]
    wrong += [f"{name} unknown" for name in state if name not in own]
    wrong += [
        f"{name} of shape {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise FileError(f"{path}: expected the parameters of this network, got {some(wrong)}")
    model.load_state_dict(state)


def load_weights(model: Segmenter, path: str | Path) -> bool:
    """Start a network from a file: a checkpoint of ours, or torchvision's weights of its backbone.

    Of a checkpoint the network is taken, and its CRF if it has the same parameters.

    Returns:
        Whether a CRF in the file was left out.

    Raises:
        FileError: not such a file, or of another network.
    """
    state = _read(path, "weights")
    network = getattr(model, "network", model)
    if state.get("mark") != MARK:
        try:
            load_backbone(network, state)
        except (TypeError, ValueError) as error:
            raise FileError(f"{path}: {error}") from error
        return False
    given, own = state["model"], model.state_dict()
    if {name: x.shape for name, x in given.items()} == {name: x.shape for name, x in own.items()}:
        model.load_state_dict(given)
        return False
    inner = {name.removeprefix("network."): value for name, value in given.items() if name.startswith("network.")}
    restore(network, inner or given, path)
    return bool(inner)


def _read(path: str | Path, what: str) -> dict[str, Any]:
    """A dict that torch saved, of tensors and plain values alone."""

    def read(path: Path) -> dict[str, Any]:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise FileError(f"{path}: expected {what}, got a {type(state).__name__}")
        return state

    return decoded(Path(path), what, read)

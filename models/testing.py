"""The options of `evaluate` and `predict`: the networks, the CRF after them, and the views of the images."""

import argparse
import dataclasses
from collections.abc import Sequence

import torch

from tritoncrf.commands import CommandError
from tritoncrf.layers import Layer
from tritoncrf.models import checkpoints, config, evaluation
from tritoncrf.models.disconnected import LAYERS
from tritoncrf.models.weights import some

__all__ = ["disconnected", "networks", "views"]


def networks(options: argparse.Namespace, device: torch.device) -> tuple[list[checkpoints.Trained], config.Config]:
    """The networks of the checkpoints, which must be compatible, and the settings of the first, changed by --set."""
    first, *others = options.checkpoints
    changes = [change for change in options.changes if not _is_of_crf(change)]
    found = [checkpoints.trained(path, device) for path in options.checkpoints]
    settings, *further = (config.changed(network.config, changes) for network in found)
    for path, network, own in zip(others, found[1:], further):
        if network.classes != found[0].classes:
            wanted, got = (some(list(each.classes)) for each in (found[0], network))
            raise CommandError(f"{path}: expected the classes of {first}, {wanted}, got {got}")
        if own.data.resize != settings.data.resize:
            sizes = f"{first}, {settings.data.resize}, got {own.data.resize}"
            raise CommandError(f"{path}: expected data.resize of {sizes}; --set data.resize=[H,W] sets it for all")
    return found, settings


def disconnected(
    options: argparse.Namespace, networks: Sequence[checkpoints.Trained], device: torch.device
) -> Layer | None:
    """The CRF of --crf, which replaces the networks' own."""
    changes = [change for change in options.changes if _is_of_crf(change)]
    if options.crf is None:
        if changes:
            raise CommandError(f"--set {changes[0]}: expected --crf, since a trained CRF cannot be changed, got none")
        return None
    table = {"name": LAYERS[options.crf].__name__}
    settings = config.changed(dataclasses.replace(networks[0].config, crf=table), changes)
    if settings.crf is None or settings.crf["name"] != table["name"]:
        raise CommandError(f"--set crf.name: expected none beside --crf {options.crf}, got one")
    crf = config.layer(settings.crf, len(networks[0].classes), "--set").to(device).eval()
    for path, network in zip(options.checkpoints, networks):
        if network.model.crf is not None:
            print(f"{path}: its own CRF is not used; --crf {options.crf} refines the scores before it")
    return crf


def views(options: argparse.Namespace, crf: Layer | None) -> evaluation.Testing:
    """The arguments of `evaluation.scores`."""
    for scale in options.scales:
        if not scale > 0:
            raise CommandError(f"--scales: expected numbers above 0, got {scale}")
        if scale > evaluation.MOST_SCALE:
            raise CommandError(f"--scales: expected numbers of at most {evaluation.MOST_SCALE}, got {scale}")
    return {"scales": tuple(options.scales), "flip": options.flip, "fuse": options.fuse, "crf": crf}


def _is_of_crf(change: str) -> bool:
    return change.partition("=")[0].split(".")[0] == "crf"

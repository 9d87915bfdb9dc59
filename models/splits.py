"""The images that a configuration names."""

from pathlib import Path
from typing import Any

from tritoncrf.checks import renamed
from tritoncrf.commands import CommandError
from tritoncrf.models import config, data


def examples_of(settings: config.Config, split: str, root: str | Path | None) -> data.Examples:
    """A split of the data of a configuration, in `root` or by default in its data.root."""
    root = root or settings.data.root
    if not root:
        raise CommandError("--data: expected the data set's folder, either here or as data.root in the configuration")
    given: dict[str, dict[str, Any]] = {
        "voc": {"sbd": settings.data.sbd or None, "coco": settings.data.coco or None},
        "folder": {"void": settings.data.void},
    }
    with renamed("sbd", "data.sbd"), renamed("coco", "data.coco"):
        return data.examples(settings.data.format, root, split, **given.get(settings.data.format, {}))


def splits_of(settings: config.Config, root: str | Path | None) -> dict[str, data.Examples]:
    """The images of a run: "train", "held_out" if there are any, and "validate"."""
    found = {"train": examples_of(settings, settings.data.train, root)}
    if settings.data.held_out:
        if settings.data.held_out >= len(found["train"]):
            raise CommandError(
                f"data.held_out: expected fewer than the {len(found['train'])} images of {settings.data.train!r}, "
                f"got {settings.data.held_out}"
            )
        # The same for every seed: a CRF that is trained on them must not get training images of its network.
        found["train"], found["held_out"] = data.held_out(found["train"], settings.data.held_out)
    return found | {"validate": examples_of(settings, settings.data.validate, root)}

"""The disconnected CRF that is best for a network: searched for once, and kept for the reports that ask again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tritoncrf as tc
from tritoncrf import files, reports
from tritoncrf.models import data, tuning
from tritoncrf.models.scored import Scored, logits_of
from tritoncrf.models.segmenter import Segmenter, WithCRF


@torch.no_grad()
def with_best_crf(
    network: Segmenter, images: data.Images, device: torch.device, kept: Path
) -> tuple[Segmenter, str]:  # fmt: skip
    """A network with the fully connected CRF that is best on these images, and which that is.

    kept: a file for what the search finds. It also says what that depends on: the scores that the network gives the
        images, the images and their truth, and the commit. Where all of these are the same, nothing is searched; with
        changes beyond the commit it always is.
    """
    scored = logits_of(network, (images[n] for n in range(len(images))), device)
    origin = _origin(scored, network.num_classes)
    found = files.decoded(kept, "what a search found", _read) if kept.exists() else {}
    if found.get("of") != origin or origin["commit"].endswith("-dirty"):
        best = tuning.disconnected(scored, network.num_classes, device=device)
        found = {"of": origin, "settings": best.settings, "on_edge": list(best.on_edge)}
        files.write(kept, json.dumps(found, indent=2).encode() + b"\n")
    settings, on_edge = found["settings"], found["on_edge"]
    crf = tc.CRFRNN(network.num_classes, **settings).to(device)
    edge = f" ({', '.join(on_edge)} on the edge of what was searched)" if on_edge else ""
    return WithCRF(network, crf).eval(), ", ".join(f"{k} {v:g}" for k, v in settings.items()) + edge


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _origin(scored: Sequence[Scored], num_classes: int) -> dict[str, Any]:
    """What a search depends on."""
    content = hashlib.sha256()
    for item in scored:
        for array in map(np.asarray, (item.image, item.scores["logits"], item.truth)):
            content.update(f"{array.dtype} {array.shape}".encode())
            content.update(array.tobytes())
    return {"commit": reports.environment()["commit"], "classes": num_classes, "scores": content.hexdigest()}

"""The best disconnected CRF for a network: searched for once, and kept for later reports."""

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
def with_best_crf(network: Segmenter, images: data.Images, device: torch.device, kept: Path) -> tuple[Segmenter, str]:
    """A network with the fully connected CRF that is best on these images, and its settings.

    kept: a file for the result of the search, and for what it depends on: the images, their truth, the scores of the
        network, and the commit. The search is repeated if any of these differ, or if the commit does not tell the code:
        it is unknown, or there are uncommitted changes.
    """
    scored = logits_of(network, (images[n] for n in range(len(images))), device)
    origin = _origin(scored, network.num_classes)
    found = files.decoded(kept, "the result of a search", _read) if kept.exists() else {}
    if found.get("of") != origin or origin["commit"].endswith(("-dirty", "unknown")):
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

"""Scores with their truth, and measures of the scores that `refine` has refined."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritoncrf.models.data import Item
from tritoncrf.models.metrics import Evaluation
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.refine import refine
from tritoncrf.types import Image

__all__ = ["BAND", "MEASURES", "Scored", "band", "counted", "counts", "logits_of", "measures"]

BAND = 0.02  # of the image's diagonal: how far from a border trimaps and Boundary IoU reach (Cheng et al. 2021)
MEASURES = "mean IoU", "Boundary IoU", "trimap accuracy", "pixel accuracy"


@dataclass(frozen=True)
class Scored:
    """An image, its scores by name, both as `refine` takes them, and its truth [H, W], 255 where unknown."""

    image: Image
    scores: Mapping[str, Any]
    truth: np.ndarray


@torch.no_grad()
def logits_of(network: Segmenter, examples: Iterable[Item], device: torch.device) -> list[Scored]:
    """Examples with the "logits" [C, H, W] of a network on this device."""
    found = []
    for example in examples:
        photo = example["image"]
        logits = network(photo[None].to(device))[0].float().cpu().numpy()
        found.append(Scored(photo.permute(1, 2, 0).numpy(), {"logits": logits}, example["labels"].numpy()))
    return found


def band(size: Sequence[int]) -> int:
    """The width of the band along borders, in pixels."""
    return max(1, round(BAND * math.hypot(*size)))


def counts(item: Scored, num_classes: int, options: Mapping[str, Any]) -> np.ndarray:
    """What `measures` needs from one image, refined with these options of `refine`."""
    return counted(refine(item.image, **item.scores, **options), item.truth, num_classes)


def counted(probabilities: Any, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """What `measures` needs from one image: int64 counts that can be summed.

    Confusion matrices of all pixels and of the band, and its intersections and unions: [C, 2 C + 2].

    Args:
        probabilities: [C, H, W], or [H, W] for one object; an array or a tensor.
        truth: [H, W], 255 where unknown.
        num_classes: C.
    """
    q = np.asarray(probabilities.cpu() if isinstance(probabilities, torch.Tensor) else probabilities)
    labels = q > 0.5 if q.ndim == 2 else q.argmax(0)
    evaluation = Evaluation(num_classes, (band(truth.shape),))
    evaluation.add(labels.astype(np.int64), truth.astype(np.int64))
    confusion, trimap, boundary = evaluation.counts.split([num_classes**2, num_classes**2, 2 * num_classes])
    parts = confusion.view(num_classes, -1), trimap.view(num_classes, -1), boundary.view(num_classes, 2)
    return torch.cat(parts, 1).numpy()


def measures(total: np.ndarray) -> np.ndarray:
    """MEASURES of counts [C, 2 C + 2], summed over images."""
    classes = len(total)
    evaluation = Evaluation(classes, (1,))  # any width: the band's width was chosen for each image
    parts = total[:, :classes], total[:, classes : 2 * classes], total[:, 2 * classes :]
    evaluation.counts += torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
    result = evaluation.result()
    return np.array([result.miou, result.boundary_iou[1], result.trimap_accuracy[1], result.pixel_accuracy])

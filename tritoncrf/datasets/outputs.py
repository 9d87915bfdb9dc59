"""What is written of an image: whole or not at all, marked with the settings that made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["Outputs"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a data set's images.

    Attributes:
        folder: NAME.png, or NAME.npz of probabilities; pictures in its subfolder overlays.
        save: labels as a .png with the palette of PASCAL VOC, from 256 classes on grey of 16 bits; probabilities as
            float16 in an .npz, in the array "probabilities", with the labels of its channels in "classes".
        confidence: pixels whose best class is less probable are labelled unknown, 255, or 65535 of 16 bits.
        overlay: also draw the labels over the picture.
        num_classes: of the data set, which says how many bits a label has.
    """

    folder: Path
    save: Literal["labels", "probabilities"] = "labels"
    confidence: float | None = None
    overlay: bool = False
    num_classes: int | None = None

    def paths(self, name: str) -> list[Path]:
        """The files of an image, the marked one last."""
        raise NotImplementedError

    def write(
        self, name: str, image: np.ndarray, refined: np.ndarray, kind: str, classes: np.ndarray | None,
        mark: Mapping[str, Any],
    ) -> np.ndarray:  # fmt: skip
        """Write them; the labels [H, W] that are written, or would be."""
        raise NotImplementedError

    def mark(self, name: str) -> dict[str, Any] | None:
        """What the outputs of an image are marked with; None where they are not all there and whole."""
        raise NotImplementedError

"""Read masks in their various formats."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tritoncrf.files import FileError, decoded, read_labels


@dataclass(frozen=True)
class Regions:
    """Labels given by regions of a photo on a background of 0; later regions cover earlier ones.

    Attributes:
        source: the file of annotations that they come from.
        size: (H, W).
        regions: (value, run lengths as pycocotools packs them) of each.
    """

    source: Path
    size: tuple[int, int]
    regions: tuple[tuple[int, bytes], ...]

    def draw(self) -> np.ndarray:
        """uint8 [H, W]."""
        decode = coco_masks().decode
        labels = np.zeros(self.size, np.uint8)
        for value, runs in self.regions:
            labels[decode({"size": list(self.size), "counts": runs}) == 1] = value
        return labels


Mask: TypeAlias = Path | Regions


def file_of(mask: Mask) -> Path:
    """The file that a mask comes from."""
    return mask.source if isinstance(mask, Regions) else mask


def read_mask(mask: Mask) -> np.ndarray:
    """The values of a mask; a .mat file may be SBD's or Pascal Context's."""
    if isinstance(mask, Regions):
        return mask.draw()
    if mask.suffix != ".mat":
        return read_labels(mask)

    def read(path: Path) -> np.ndarray:
        content = loadmat()(path)
        if "LabelMap" in content:
            return np.asarray(content["LabelMap"])
        if "GTcls" in content:
            return np.asarray(content["GTcls"][0, 0]["Segmentation"])
        raise FileError(f"{path}: expected SBD's GTcls or Pascal Context's LabelMap, got neither")

    return decoded(mask, "a .mat of SBD or of Pascal Context", read)


def loadmat() -> Callable[[Path], Any]:
    """SciPy's."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('.mat masks are read with scipy; `pip install "tritoncrf[sbd]"`') from error
    return loadmat


def coco_masks() -> Any:
    """The module `mask` of pycocotools."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('regions of COCO are read with pycocotools; `pip install "tritoncrf[coco]"`') from error
    return mask

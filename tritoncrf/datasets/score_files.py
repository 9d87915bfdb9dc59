"""Read the scores of a data set's images, including class activation maps, from files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from tritoncrf.commands import CommandError
from tritoncrf.datasets.cams import classes_of, keys_and_maps, with_background
from tritoncrf.datasets.pickles import read_npy
from tritoncrf.datasets.stored import Stored, read_stored
from tritoncrf.files import Arrays, one_array, read_arrays
from tritoncrf.readers import fitted, is_picture, read_pixels

__all__ = ["Found", "Reading"]

Content = TypeVar("Content")


@dataclass(frozen=True)
class Found:
    """The scores of an image.

    Attributes:
        kind: the argument of `refine` that they are.
        array: its value.
        classes: the label of each channel, or of each number in a label map, if they are not 0, 1, 2 and so on; for
            class activation maps the background, 0, and the classes of the image. With only one class there is nothing
            to refine.
    """

    kind: str
    array: np.ndarray
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How score files are read; the names are those of the command line.

    Attributes:
        kind: the argument of `refine` that they are.
        resize: resize them to the image's size, labels to the nearest neighbour, all else bilinearly.
        upsample: "bilinear" enlarges smaller scores to the image's size, logits before any softmax.
        as_stored: ignore the EXIF orientation of pictures of labels and masks.
        scores_key: the name of the array in files with several.
        cams: the files hold class activation maps: [K, h, w] beside K keys, or a map [h, w] for each key.
        background_power: the background's score is (1 - max_k cam_k) to this power.
        background_score: the background's score everywhere.
        cam_offset: what is added to a key for the label of its class.
        allow_pickle: also read pickled arrays in an .npy, without running code from the file.

    A class activation map is a score from 0 to 1. The maps are converted as in published pipelines. As "probabilities"
    they are used without normalisation, with the background's scores first: refine's logits log(max(p, 1e-5)) are those
    of pydensecrf's unary_from_softmax (`_crf_with_alpha` in SEAM's infer_SEAM.py, with the powers 4 and 24;
    `crf_with_alpha` in CLIMS's demo_utils.py). As "labels" the best class is used, with a score of 0.3 or 0.05 for the
    background and refine's label_confidence of 0.7 (`cam_to_ir_label.py` of IRN and CLIMS). Smaller maps are upsampled
    before the background is computed.

    Raises:
        CommandError: arguments are not compatible.
    """

    kind: str
    resize: bool = False
    upsample: Literal["bilinear"] | None = None
    as_stored: bool = False
    scores_key: str | None = None
    cams: bool = False
    background_power: float | None = None
    background_score: float | None = None
    cam_offset: int = 1
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.upsample is not None and self.kind == "labels" and not self.cams:
            raise CommandError("--upsample: expected scores, got --labels; --resize takes the nearest")
        if not self.cams:
            for name, default in ("background_power", None), ("background_score", None), ("cam_offset", 1):
                if getattr(self, name) != default:
                    raise CommandError(f"--{name.replace('_', '-')}: expected --cams beside it, got none")
            return
        if self.kind not in ("probabilities", "labels"):
            raise CommandError(f"--cams: expected --probabilities, or --labels for the best class, got --{self.kind}")
        if (self.background_power is None) == (self.background_score is None):
            raise CommandError("--cams: expected exactly one of --background-power and --background-score beside it")
        if self.background_power is not None and not 0 < self.background_power < math.inf:
            raise CommandError(f"--background-power: expected a number above 0, got {self.background_power}")
        if self.background_score is not None and not 0 <= self.background_score <= 1:
            raise CommandError(f"--background-score: expected a score from 0 to 1, got {self.background_score}")
        if self.cam_offset < 0:
            raise CommandError(f"--cam-offset: expected 0 or more, got {self.cam_offset}")

    def scores(self, source: Path | Stored, image: Path, size: Sequence[int]) -> Found:
        """The scores of an image of that size.

        Raises:
            FileError: the file contains something else.
            CommandError: the scores have another size.
            ImportError: no package that reads HDF5 or Zarr is installed.
        """

        def at_size(kind: str, scores: np.ndarray) -> np.ndarray:
            return fitted(kind, scores, source, image, size, self.resize, self.upsample is not None)

        if not self.cams:
            return Found(self.kind, at_size(self.kind, self._array(source)))
        keys, maps = self._read(source, lambda arrays: keys_and_maps(source, arrays, self.scores_key))
        classes = classes_of(source, keys, len(maps), self.cam_offset)
        maps = at_size("probabilities", maps) if len(maps) else np.zeros((0, *size), np.float32)
        scores = with_background(maps, self.background_power, self.background_score)
        return Found(self.kind, scores.argmax(0) if self.kind == "labels" else scores, classes)

    def _array(self, source: Path | Stored) -> np.ndarray:
        if not isinstance(source, Stored) and is_picture(self.kind, source):
            return read_pixels(self.kind, source, self.as_stored)
        return self._read(source, lambda arrays: one_array(source, arrays, self.scores_key))

    def _read(self, source: Path | Stored, choose: Callable[[Arrays], Content]) -> Content:
        """What `choose` selects from a file of arrays."""
        if isinstance(source, Stored):
            return read_stored(source, choose)
        if source.suffix.lower() == ".npy":
            return read_npy(source, choose, self.allow_pickle)
        return read_arrays(source, choose)

"""The scores of a data set's images as their files hold them, class activation maps among them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tritoncrf.commands import CommandError
from tritoncrf.datasets.pickles import read_pickled
from tritoncrf.datasets.stored import Stored, read_stored
from tritoncrf.files import Arrays, FileError, one_array, read_arrays
from tritoncrf.options import HARD, SCORES
from tritoncrf.readers import fitted, is_picture, read_pixels

__all__ = ["Found", "Reading"]

MAPS = ("high_res", "hr_cam", "rw", "cam")  # of class activation maps beside their keys, the finest first
SLACK = 1e-3  # by which scores may pass 1


@dataclass(frozen=True)
class Found:
    """The scores of an image.

    Attributes:
        kind: the argument of `refine` that they are.
        array: its value.
        classes: the label of each channel, or of each number in a label map, where they are not 0, 1, 2 and so on;
            of class activation maps the background, 0, and the classes that the image has. With one class alone there
            is nothing to refine.
    """

    kind: str
    array: np.ndarray
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How files of scores are read; the names are those of the command line.

    Attributes:
        kind: the argument of `refine` that they are.
        resize: bring them to the image's size: bilinear, labels the nearest.
        upsample: "bilinear" brings scores that are smaller to the image's size, logits before any softmax.
        as_stored: leave pictures of labels and masks unturned, whatever their EXIF orientation.
        scores_key: the name of the array, where a file has several.
        cams: the files hold class activation maps: [K, h, w] beside K keys, or a map [h, w] for each key.
        background_power: the background's score is (1 - max_k cam_k) to this power.
        background_score: the background's score everywhere.
        cam_offset: what is added to a key for the label of its class.
        allow_pickle: also read arrays that are pickled in an .npy, running nothing of what the file says.

    A class activation map is a score from 0 to 1. What becomes of them is what published pipelines give their CRF:
    as "probabilities" the scores themselves with the background's before them, which are not normalised, for refine's
    logits log(max(p, 1e-5)) are pydensecrf's unary_from_softmax (`_crf_with_alpha` of SEAM's infer_SEAM.py, with the
    powers 4 and 24; `crf_with_alpha` of CLIMS's demo_utils.py); as "labels" the best of them, with a score of 0.3 or
    0.05 for the background and refine's label_confidence of 0.7 (`cam_to_ir_label.py` of IRN and CLIMS). Smaller maps
    are upsampled before the background is made.

    Raises:
        CommandError: arguments that do not go together.
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

    def scores(self, source: Path | Stored, image: Path, size: Sequence[int]) -> Found:
        """The scores of an image of that size.

        Raises:
            FileError: a file that holds something else.
            CommandError: scores of another size.
            ImportError: HDF5 or Zarr, and no package that reads it.
        """
        raise NotImplementedError

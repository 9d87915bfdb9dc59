"""A data set with pydensecrf in a pool of processes, as its users write it: read, refine, write labels.

`python bench/datasets/pool.py KIND IMAGES SCORES OUT JOBS`, with nothing imported that pydensecrf does not need.
"""

import functools
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as dcrf
from PIL import Image
from pydensecrf.utils import unary_from_softmax


def scores_of(kind: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The scores [C, H, W], and the label of each channel."""
    with np.load(path) as file:
        if kind == "maps":
            maps = file["cam"]
            p = np.concatenate([(1 - maps.max(0, keepdims=True)) ** 4, maps])
            return p, np.concatenate([[0], file["keys"] + 1])
        p = file[file.files[0]].astype(np.float32)
    return (np.stack([1 - p, p]), np.array([0, 255])) if kind == "foreground" else (p, np.arange(len(p)))


def refine(kind: str, scores: Path, out: Path, path: Path) -> str:
    """Refine one image with DeepLab's settings."""
    photo = np.array(Image.open(path).convert("RGB"))  # writable, as pydensecrf requires
    p, labels = scores_of(kind, scores / f"{path.stem}.npz")
    crf = dcrf.DenseCRF2D(photo.shape[1], photo.shape[0], len(p))
    crf.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(p, np.float32)))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=photo, compat=4)
    q = np.array(crf.inference(10)).reshape(p.shape)
    Image.fromarray(labels[q.argmax(0)].astype(np.uint8)).save(out / f"{path.stem}.png")
    return path.stem


if __name__ == "__main__":
    kind, images, scores, out, jobs = sys.argv[1:]
    task = functools.partial(refine, kind, Path(scores), Path(out))
    with multiprocessing.Pool(int(jobs)) as pool:
        for _ in pool.imap_unordered(task, sorted(Path(images).iterdir())):
            pass

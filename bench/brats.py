"""The BRATS volume as NIfTI, with noisy scores, for `tritoncrf refine`; and the Dice of label maps against the truth.

The scores are those of `tritoncrf.synthetic.noisy_scores`, drawn anew for each slice [x, y] of the true labels: blurred
by a resize to an eighth and back, with a random class in a fifth of the cells of 8 x 8 voxels, and normalised to sum 1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tritoncrf.commands import CommandError
from tritoncrf.synthetic import noisy_scores

VOLUME = Path("volumes", "brats_2013_pat0006_1.npz")
CLASSES = "other", "necrosis", "oedema", "non-enhancing tumour", "enhancing tumour"
ORIGIN = 0, 239, 0  # of voxel 0 of the full volume, from BRATS' header, whose first two axes point left and front


def scores_of(labels: np.ndarray) -> np.ndarray:
    """Probabilities [x, y, z, C] of labels [x, y, z]."""
    found = np.stack([noisy_scores(labels[..., z], len(CLASSES), seed=z) for z in range(labels.shape[2])], axis=-1)
    return np.moveaxis(found / found.sum(0), 0, -1).astype(np.float32)


def convert(data: Path, out: Path) -> None:
    """flair.nii.gz, t1c.nii.gz, mask.nii.gz, truth.nii.gz and probabilities.nii.gz."""
    import nibabel

    source = data / VOLUME
    if not source.is_file():
        raise CommandError(f"--data: expected a folder with {VOLUME}, got {data}")
    volume = np.load(source)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = ORIGIN + affine.diagonal()[:3] * volume["crop_start"]
    files = {name: volume[name] for name in ("flair", "t1c", "mask")} | {"truth": volume["label"]}
    for name, voxels in {**files, "probabilities": scores_of(volume["label"])}.items():
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        if name in ("flair", "t1c"):
            image.header.set_slope_inter(float(volume[f"{name}_slope"]), float(volume[f"{name}_inter"]))
        nibabel.save(image, out / f"{name}.nii.gz")


def dice(labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """2 |A and B| / (|A| + |B|) of each class except the first, and of all of these merged."""
    pairs = {name: (labels == c, truth == c) for c, name in enumerate(CLASSES) if c}
    pairs["tumour"] = labels > 0, truth > 0
    return {name: float(2 * (a & b).sum() / max(1, a.sum() + b.sum())) for name, (a, b) in pairs.items()}


def run(out: Path, data: Path, results: Sequence[Path]) -> int:
    """Convert the volume if needed, and print the Dice of the scores and of label maps."""
    import nibabel

    if not (out / "truth.nii.gz").is_file():
        convert(data, out)
        print(f"wrote flair, t1c, mask, truth and probabilities as .nii.gz to {out}")
    truth = np.asarray(nibabel.load(out / "truth.nii.gz").dataobj)
    maps = {"probabilities.nii.gz": np.asarray(nibabel.load(out / "probabilities.nii.gz").dataobj).argmax(-1)}
    maps |= {path.name: np.asarray(nibabel.load(path).dataobj) for path in results}
    for name, labels in maps.items():
        print(f"{name:24}" + "  ".join(f"{part} {value:.4f}" for part, value in dice(labels, truth).items()))
    return 0

"""Predict labels and overlays for a folder of photos."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tritoncrf.files import FileError, decoded, expect_apart, read_image, replacing, write_labels
from tritoncrf.models import network_figures
from tritoncrf.models.data import IMAGES
from tritoncrf.models.evaluation import Networks, Testing, scores

if TYPE_CHECKING:
    from typing_extensions import Unpack


def photos(source: Path) -> list[Path]:
    """The photos of a folder sorted by name, or `source` itself if it is a photo.

    Raises:
        FileError: the folder does not exist or has no photos, a file is not a picture, or two photos have the same
            name.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileError(f"{source}: expected a photo or a folder of photos, got no such file or folder")
    found = sorted(
        path for path in source.iterdir()
        if path.suffix.lower() in IMAGES and path.is_file() and not path.name.startswith(".")
    )  # fmt: skip
    if not found:
        raise FileError(f"{source}: expected photos ending in {', '.join(IMAGES)}, got none")
    stems: dict[str, Path] = {}
    for path in found:
        decoded(path, "a picture", lambda path: Image.open(path).close())
        if stems.setdefault(path.stem, path) is not path:
            raise FileError(f"{path}: expected one photo of this name, got {stems[path.stem].name} as well")
    return found


def outputs(paths: Sequence[Path], out: Path) -> list[Path]:
    """The files that `predict` writes."""
    return [out / name / f"{path.stem}.png" for name in ("labels", "overlays") for path in paths]


def predict(
    model: Networks, paths: Sequence[Path], out: Path, output: str, device: torch.device | str,
    resize: tuple[int, int] | None = None, **testing: "Unpack[Testing]",
) -> None:  # fmt: skip
    """Write `out`/labels/NAME.png, indexed with a palette, and `out`/overlays/NAME.png, for every photo.

    Photos are rotated by their EXIF orientation, as viewers show them.

    Args:
        model: a network in evaluation mode, or several, see `scores`.
        paths: the result of `photos`.
        out: a folder, created if it does not exist. The outputs must not be written among the photos.
        output: "refined", or "unary" for the scores without the CRF.
        device: the device of the network.
        resize: (H, W) to which every photo is resized for the network; the labels have the photo's own size.
        testing: arguments of `scores`.

    Raises:
        FileError: `out`/labels or `out`/overlays is a folder of the photos, or a photo cannot be read. Outputs that
            were already written remain complete.
    """
    expect_apart(outputs(paths, out), paths)
    for name in ("labels", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, "predicting", unit="image", disable=None):
        photo = read_image(path, upright=True).convert("RGB")
        seen = photo if resize is None else photo.resize(resize[::-1], Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].to(device)
        found = scores(model, image, **testing)
        maps = found[output if output in found else "refined"]
        if resize is not None:
            maps = torch.nn.functional.interpolate(maps, size=photo.size[::-1], mode="bilinear", align_corners=False)
        labels = maps[0].argmax(0).cpu().numpy()
        overlay = Image.fromarray(network_figures.overlay_picture(np.array(photo), labels))
        with (
            replacing(out / "labels" / f"{path.stem}.png") as label_file,
            replacing(out / "overlays" / f"{path.stem}.png") as overlay_file,
        ):
            write_labels(label_file, labels)
            overlay.save(overlay_file, format="png")

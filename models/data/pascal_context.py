"""Pascal Context (Mottaghi et al. 2014): the photos of VOC 2010 labelled throughout, 59 classes and background."""

from pathlib import Path

from tritoncrf.checks import expect_choice
from tritoncrf.files import FileError
from tritoncrf.models.data.labelled import Examples
from tritoncrf.models.data.listing import IMAGES, expect_folder, files_of, matched, names_in
from tritoncrf.models.data.masks import loadmat

# As in 59_labels.txt, each with its number in labels.txt, whose 459 names include "cloth" for clothes and "bedclothes"
# for bedcloth.
IN_459 = {
    "aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34, "bus": 45, "car": 59, "cat": 65, "chair": 72,
    "cow": 98, "diningtable": 397, "dog": 113, "horse": 207, "motorbike": 258, "person": 284, "pottedplant": 308,
    "sheep": 347, "sofa": 368, "train": 416, "tvmonitor": 427, "bag": 9, "bed": 18, "bench": 22, "book": 33,
    "building": 44, "cabinet": 46, "ceiling": 68, "clothes": 80, "computer": 85, "cup": 104, "door": 115, "fence": 144,
    "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "keyboard": 220, "light": 232,
    "mountain": 259, "mouse": 260, "curtain": 105, "platform": 296, "sign": 355, "plate": 295, "road": 324, "rock": 326,
    "shelves": 349, "sidewalk": 354, "sky": 360, "snow": 366, "bedcloth": 19, "track": 415, "tree": 420, "truck": 424,
    "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CONTEXT_CLASSES = ("background", *IN_459)
NUMBERS = (0, *IN_459.values())  # of each class, background's first
ALL_NUMBERS = 459

# The class of every mask value, by the folder of the masks.
TABLES = {
    "59_context_labels": tuple(range(len(NUMBERS))),  # as published
    "SegmentationClassContext": tuple(NUMBERS.index(n) for n in sorted(NUMBERS)),  # of mmsegmentation's converter
    "trainval": tuple(NUMBERS.index(n) if n in NUMBERS else 0 for n in range(ALL_NUMBERS + 1)),  # published .mat
}
LISTS = ("SegmentationContext", "Main")
OTHER_FORMS = ("33_context_labels", "trainval_merged.json")


def pascal_context(root: str | Path, split: str) -> Examples:
    """Pascal Context with 60 classes: background, and the 59 named classes.

    Args:
        root: the folder `VOC2010`, with JPEGImages, ImageSets and the masks, which are the first of these that exists:
            `59_context_labels/*.png` as published, `SegmentationClassContext/*.png` as mmsegmentation's converter
            writes them from trainval_merged.json, or the published `trainval/*.mat` of all 459 classes, read with
            scipy. The classes are always those of 59_labels.txt in that order, after background.
        split: "train" (4,998 photos) or "val" (5,105), listed in `ImageSets/SegmentationContext` or else
            `ImageSets/Main`.

    Raises:
        ImportError: the masks are .mat files and scipy is not installed.
    """
    expect_choice("split", split, ("train", "val"))
    root = expect_folder(Path(root))
    form = next((name for name in TABLES if (root / name).is_dir()), None)
    if form is None:
        others = [name for name in OTHER_FORMS if (root / name).exists()]
        raise FileError(f"{root}: expected a folder {', '.join(TABLES)} of masks, got {' and '.join(others) or 'none'}")
    if form == "trainval":
        loadmat()
    image_folder, mask_folder = root / "JPEGImages", root / form
    images = files_of(image_folder, IMAGES)
    masks = files_of(mask_folder, (".mat",) if form == "trainval" else (".png",))
    listed = [root / "ImageSets" / name / f"{split}.txt" for name in LISTS]
    names = names_in(listed[0] if listed[0].is_file() else listed[1])
    entries = matched(names, images, masks, image_folder, mask_folder)
    return Examples(entries, CONTEXT_CLASSES, void=(), table=TABLES[form])

"""Cityscapes (Cordts et al. 2016) with the 19 classes that its benchmark evaluates."""

from collections.abc import Sequence
from pathlib import Path

from tritoncrf.checks import expect_choice
from tritoncrf.files import FileError
from tritoncrf.models.augment import VOID
from tritoncrf.models.data.labelled import Examples
from tritoncrf.models.data.listing import IMAGES, expect_folder, paired

# In order of "train id", each with its label id.
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CITYSCAPES_CLASSES, IDS = tuple(CITYSCAPES_IDS), tuple(CITYSCAPES_IDS.values())
CITYSCAPES_TABLE = tuple(IDS.index(n) if n in IDS else VOID for n in range(max(IDS) + 1))  # of label ids
ANNOTATIONS = {"train": "gtFine", "val": "gtFine", "test": "gtFine", "train_extra": "gtCoarse"}  # of each split
PHOTOS = "leftImg8bit"


def cityscapes(root: str | Path, split: str) -> Examples:
    """Cityscapes with 19 classes; the classes that its benchmark does not evaluate are void.

    Args:
        root: the folder with `leftImg8bit/<split>` and `gtFine/<split>` (`gtCoarse/<split>` for "train_extra"), or with
            these inside `leftImg8bit_trainvaltest`, `gtFine_trainvaltest` and so on, as the archives unpack.
            Photos and masks lie in one folder per city or in a single folder. The masks are the published
            `*_labelIds.png` or otherwise `*_labelTrainIds.png`, which cityscapesScripts writes.
        split: "train" (2,975 photos), "val" (500), "test" (1,525, whose masks are void throughout: their labels are not
            public) or "train_extra" (19,998, coarsely labelled).
    """
    expect_choice("split", split, ANNOTATIONS)
    root, kind = expect_folder(Path(root)), ANNOTATIONS[split]
    image_folder, mask_folder = _folder(root, PHOTOS, split), _folder(root, kind, split)
    images = _files(image_folder, f"_{PHOTOS}", IMAGES)
    by_id, by_train_id = f"_{kind}_labelIds", f"_{kind}_labelTrainIds"
    published = _files(mask_folder, by_id, (".png",))
    masks = published or _files(mask_folder, by_train_id, (".png",))
    if not images:
        raise FileError(f"{image_folder}: expected photos named *_{PHOTOS}.png, got none")
    if not masks:
        raise FileError(f"{mask_folder}: expected masks named *{by_id}.png or *{by_train_id}.png, got none")
    entries = paired(images, masks, image_folder, mask_folder)
    if published:
        return Examples(entries, CITYSCAPES_CLASSES, void=(), table=CITYSCAPES_TABLE)
    return Examples(entries, CITYSCAPES_CLASSES)


def _folder(root: Path, kind: str, split: str) -> Path:
    """The folder of one kind of files, directly in the root or in the folder of its archive."""
    places = [root / kind / split, *sorted(root.glob(f"{kind}*/{kind}/{split}"))]
    found = [place for place in places if place.is_dir()]
    if len(found) != 1:
        got = " and ".join(map(str, found)) or "none"
        raise FileError(f"{root}: expected one folder {kind}/{split} in it, or in a folder {kind}_..., got {got}")
    return found[0]


def _files(folder: Path, ending: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by "city_sequence_frame", sorted, from a folder and its subfolders for cities."""
    found: dict[str, Path] = {}
    for path in sorted((*folder.glob("*"), *folder.glob("*/*")), key=lambda path: path.name):
        if path.stem.endswith(ending) and path.suffix.lower() in suffixes and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in found:
                raise FileError(f"{path}: expected one file of this name, got {found[name]} as well")
            found[name] = path
    return found

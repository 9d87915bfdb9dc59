"""Pascal VOC 2012 (Everingham et al. 2010), and further annotated photos of its classes."""

from pathlib import Path

from tritoncrf.checks import expect_choice
from tritoncrf.files import FileError
from tritoncrf.models.data.coco import coco_entries
from tritoncrf.models.data.labelled import Entry, Examples
from tritoncrf.models.data.listing import IMAGES, MASKS, expect_folder, files_of, matched, names_in, without
from tritoncrf.models.data.masks import file_of, loadmat
from tritoncrf.models.data.voc_classes import VOC_CLASSES

VOC_LISTS = ("train", "val", "trainval")
VOC_WITH_SBD = ("train_aug", "train_sbd", "val_reduced", "train_coco")


def voc(root: str | Path, split: str, sbd: str | Path | None = None, coco: str | Path | None = None) -> Examples:
    """Pascal VOC 2012 with its 21 classes, and the further annotations of SBD (Hariharan et al. 2011) and of COCO.

    Args:
        root: the folder `VOC2012`, with JPEGImages, SegmentationClass and ImageSets.
        split: "train", "val" or "trainval", VOC's own lists. With `sbd`, also "train_aug", train and SBD without val
            (10,582 images), "train_sbd", train and SBD (11,685), and "val_reduced", val without SBD (346). With `sbd`
            and `coco`, also "train_coco", train_sbd followed by the photos of `data.coco` from COCO's train (11,685 +
            66,099).
        sbd: a folder with `SegmentationClassAug/*.png` or SBD's own `cls/*.mat`, read with scipy, and optionally
            `img/*.jpg`. Its images are those listed in `train.txt` and `val.txt`, or all if there are no lists. A mask
            of VOC takes precedence over one of SBD.
        coco: the folder of COCO, see `data.coco`.

    Raises:
        ImportError: SBD's masks are .mat files and scipy is not installed, or COCO is used and pycocotools is not
            installed.
    """
    expect_choice("split", split, VOC_LISTS + VOC_WITH_SBD)
    root = expect_folder(Path(root))
    lists = root / "ImageSets" / "Segmentation"
    image_folder, mask_folder = root / "JPEGImages", root / "SegmentationClass"
    images, masks = files_of(image_folder, IMAGES), files_of(mask_folder, MASKS)
    if split in VOC_LISTS:
        names = names_in(lists / f"{split}.txt")
        return Examples(matched(names, images, masks, image_folder, mask_folder), VOC_CLASSES)
    if sbd is None:
        raise ValueError(f"sbd: expected the folder of SBD's annotations for the split {split!r}, got None")
    if split == "train_coco" and coco is None:
        raise ValueError(f"coco: expected the folder of COCO for the split {split!r}, got None")

    sbd = expect_folder(Path(sbd))
    sbd_masks = _sbd_masks(sbd)
    lists_of_sbd = [sbd / f"{part}.txt" for part in ("train", "val")]
    listed = all(path.is_file() for path in lists_of_sbd)
    sbd_names = [name for path in lists_of_sbd for name in names_in(path)] if listed else list(sbd_masks)
    train, val = names_in(lists / "train.txt"), names_in(lists / "val.txt")
    if split != "train_aug" and set(val) <= set(sbd_names):
        # The usual copies of SegmentationClassAug also contain VOC's own masks, including those of val.
        raise FileError(f"{sbd}: expected SBD's train.txt and val.txt, as these masks cover all of val, unlike SBD's")

    names = {
        "train_aug": without(train + sbd_names, val),
        "train_sbd": without(train + sbd_names, []),
        "train_coco": without(train + sbd_names, []),
        "val_reduced": without(val, sbd_names),
    }[split]
    if (sbd / "img").is_dir():
        images = files_of(sbd / "img", IMAGES) | images
    found = matched(names, images, sbd_masks | masks, image_folder, mask_folder)
    if any(file_of(mask).suffix == ".mat" for _, _, mask in found):
        loadmat()
    further: tuple[Entry, ...] = coco_entries(coco, "train") if coco is not None and split == "train_coco" else ()
    return Examples(found + further, VOC_CLASSES)


def _sbd_masks(sbd: Path) -> dict[str, Path]:
    for name, suffix in (("SegmentationClassAug", ".png"), ("cls", ".mat")):
        if (sbd / name).is_dir():
            return files_of(sbd / name, (suffix,))
    raise FileError(f"{sbd}: expected a folder SegmentationClassAug or cls, got neither")

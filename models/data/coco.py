"""COCO (Lin et al. 2014), its annotations of objects turned into labels of VOC's classes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tritoncrf.checks import expect_choice, shown
from tritoncrf.files import FileError, decoded
from tritoncrf.models.augment import MOST_SIDE
from tritoncrf.models.data.labelled import Entry, Examples
from tritoncrf.models.data.listing import IMAGES, expect_folder, files_of
from tritoncrf.models.data.masks import Regions, coco_masks
from tritoncrf.models.data.voc_classes import COCO_NAMES, VOC_CLASSES

COCO_SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val")}
LEAST_PIXELS = 200  # of VOC's classes, in every photo that is used
LISTS = ("images", "annotations", "categories")


def coco(root: str | Path, split: str) -> Examples:
    """The photos of COCO 2014 that show enough of VOC's 20 classes, labelled with VOC's 21 classes.

    Photos with at least 200 pixels of these classes are used, as in CRF-RNN (Zheng et al. 2015, experiments; 66,099 of
    train). The paper does not say which of two overlapping objects counts: here it is the smaller one. A crowd is
    labelled as its class, and what COCO does not annotate is background.

    Args:
        root: a folder with `train2014` and `val2014`, possibly inside `images`, and with
            `annotations/instances_train2014.json` and `instances_val2014.json`. COCO's own file of train needs about
            4 GB of memory while it is read.
        split: "train", "val" or "trainval".

    Raises:
        ImportError: pycocotools is not installed.
    """
    return Examples(coco_entries(root, split), VOC_CLASSES, void=())


def coco_entries(root: str | Path, split: str) -> tuple[Entry, ...]:
    """The entries of `coco`, sorted by name in each part of the split."""
    expect_choice("split", split, COCO_SPLITS)
    root = expect_folder(Path(root))
    coco_masks()
    return tuple(entry for part in COCO_SPLITS[split] for entry in _part(root, f"{part}2014"))


def _part(root: Path, part: str) -> list[Entry]:
    source = root / "annotations" / f"instances_{part}.json"
    folder = root / "images" / part if (root / "images" / part).is_dir() else root / part
    regions = decoded(source, "COCO's annotations of objects", lambda path: _regions(path, _lists(path)))
    photos = files_of(folder, IMAGES)
    if missing := sorted(regions.keys() - photos.keys()):
        raise FileError(f"{folder / missing[0]}: expected an image of this name, as {source.name} has it, got none")
    if not regions:
        raise FileError(f"{source}: expected photos with {LEAST_PIXELS} pixels of VOC's classes, got none")
    return [(name, photos[name], regions[name]) for name in sorted(regions)]


def _lists(source: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of a file of annotations."""
    content = json.loads(source.read_bytes())
    for name in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise FileError(f"{source}: expected the lists {', '.join(LISTS)} of COCO's instances, got no {name}")
        if not all(isinstance(entry, dict) for entry in content[name]):
            raise FileError(f"{source}: expected tables in {name}, got something else")
    return content


def _regions(source: Path, content: dict[str, list[dict[str, Any]]]) -> dict[str, Regions]:
    """The regions by name of the photo, for photos with enough pixels of VOC's classes."""
    categories = {entry["name"]: entry["id"] for entry in content["categories"]}
    if absent := [name for name in COCO_NAMES if name not in categories]:
        raise FileError(f"{source}: expected COCO's categories, got none named {absent[0]!r}")
    labels = {categories[name]: label for label, name in enumerate(COCO_NAMES, 1)}
    images = {image["id"]: image for image in content["images"]}
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["category_id"] in labels:
            image = annotation["image_id"]
            if image not in images:
                raise FileError(f"{source}: annotation {annotation['id']}: expected the id of an image, got {image!r}")
            objects[image].append(annotation)

    masks = coco_masks()
    found: dict[str, Regions] = {}
    for key, annotations in objects.items():
        name, size = Path(images[key]["file_name"]).stem, _size(source, images[key])
        if name in found:
            raise FileError(f"{source}: expected every image once, got {name} 2 times")
        packed = [(labels[one["category_id"]], _runs(source, one, size)) for one in annotations]
        drawn = [(label, runs) for label, runs in packed if runs]
        if drawn and masks.area(masks.merge([runs for _, runs in drawn])) >= LEAST_PIXELS:
            drawn.sort(key=lambda region: int(masks.area(region[1])), reverse=True)
            found[name] = Regions(source, size, tuple((label, runs["counts"]) for label, runs in drawn))
    return found


def _size(source: Path, image: dict[str, Any]) -> tuple[int, int]:
    height, width = image["height"], image["width"]
    if not all(isinstance(side, int) and 1 <= side <= MOST_SIDE for side in (height, width)):
        raise FileError(f"{source}: image {image['id']}: expected sides from 1 to {MOST_SIDE}, got {height} x {width}")
    return height, width


def _runs(source: Path, annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The region of an object, packed by pycocotools; empty if it encloses nothing."""
    masks, (height, width) = coco_masks(), size
    given, where = annotation["segmentation"], f"{source}: annotation {annotation['id']}"
    if isinstance(given, dict):
        counts = np.asarray(given["counts"])
        if given["size"] != [height, width] or counts.dtype.kind != "i" or counts.ndim != 1:
            raise FileError(f"{where}: expected a list of run lengths in {height} x {width}, got {shown(given)}")
        pixels = height * width
        if not ((counts >= 0) & (counts <= pixels)).all() or counts.sum() != pixels:
            raise FileError(f"{where}: expected run lengths of {pixels} pixels in all, got {shown(given)}")
        crowd: dict[str, Any] = masks.frPyObjects(given, height, width)
        return crowd
    if not isinstance(given, list):
        raise FileError(f"{where}: expected polygons or run lengths, got {shown(given)}")
    polygons = []
    for polygon in given:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 1 or len(corners) % 2 or not (np.abs(corners) <= 2 * MOST_SIDE).all():
            raise FileError(f"{where}: expected x and y of a polygon's corners, got {shown(polygon)}")
        if len(corners) >= 6:
            polygons.append(corners.tolist())
    return masks.merge(masks.frPyObjects(polygons, height, width)) if polygons else {}

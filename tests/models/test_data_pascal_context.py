"""Pascal Context from small trees of files in its three forms."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest

from data_files import listing, names, write_mask, write_photo
from tritoncrf.files import FileError
from tritoncrf.models import data

CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
    "bag",
    "bed",
    "bench",
    "book",
    "building",
    "cabinet",
    "ceiling",
    "clothes",
    "computer",
    "cup",
    "door",
    "fence",
    "floor",
    "flower",
    "food",
    "grass",
    "ground",
    "keyboard",
    "light",
    "mountain",
    "mouse",
    "curtain",
    "platform",
    "sign",
    "plate",
    "road",
    "rock",
    "shelves",
    "sidewalk",
    "sky",
    "snow",
    "bedcloth",
    "track",
    "tree",
    "truck",
    "wall",
    "water",
    "window",
    "wood",
]
OF_459 = {  # some names of labels.txt, by number
    1: "accordion", 2: "aeroplane", 9: "bag", 19: "bedcloth", 23: "bicycle", 80: "clothes", 105: "curtain",
    284: "person", 397: "diningtable", 398: "tableware", 431: "unknown", 440: "wall", 458: "wood", 459: "wool",
}  # fmt: skip
VALUES = np.arange(60).reshape(6, 10)


@pytest.fixture
def context(tmp_path):
    """VOC 2010 with the masks as published."""
    for name in ("2008_000002", "2008_000003", "2008_000007"):
        write_photo(tmp_path / "JPEGImages" / f"{name}.jpg", VALUES.shape)
        write_mask(tmp_path / "59_context_labels" / f"{name}.png", VALUES)
    write_photo(tmp_path / "JPEGImages" / "2010_000001.jpg")
    listing(tmp_path / "ImageSets" / "Main" / "train.txt", "2008_000003", "2008_000002")
    listing(tmp_path / "ImageSets" / "Main" / "val.txt", "2008_000007")
    return tmp_path


def test_masks_as_published(context):
    examples = data.examples("pascal_context", context, "train")
    assert names(examples) == ["2008_000003", "2008_000002"] and list(examples.classes) == CLASSES
    assert np.array_equal(examples.read(0)[1], VALUES)
    assert names(data.pascal_context(context, "val")) == ["2008_000007"]


def test_masks_of_the_converter_are_in_alphabetical_order_of_labels_txt(context):
    shutil.rmtree(context / "59_context_labels")
    write_mask(context / "SegmentationClassContext" / "2008_000007.png", VALUES)
    listing(context / "ImageSets" / "SegmentationContext" / "val.txt", "2008_000007")
    in_labels_txt = {"diningtable": "table", "clothes": "cloth", "bedcloth": "bedclothes"}
    order = ["background", *sorted(CLASSES[1:], key=lambda name: in_labels_txt.get(name, name))]
    examples = data.pascal_context(context, "val")
    assert list(examples.classes) == CLASSES
    assert [CLASSES[label] for label in examples.read(0)[1].ravel()] == order


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")
def test_masks_of_all_459_classes(context):
    from scipy.io import savemat

    shutil.rmtree(context / "59_context_labels")
    (context / "trainval").mkdir()
    values = np.zeros(VALUES.shape, np.uint16)
    values.flat[: len(OF_459)] = list(OF_459)
    savemat(context / "trainval" / "2008_000007.mat", {"LabelMap": values})
    examples = data.pascal_context(context, "val")
    found = [CLASSES[label] for label in examples.read(0)[1].flat[: len(OF_459)]]
    assert found == [name if name in CLASSES else "background" for name in OF_459.values()]
    savemat(context / "trainval" / "2008_000007.mat", {"LabelMap": values + 1})
    with pytest.raises(FileError, match="2008_000007.mat: expected labels from 0 to 459, got 460"):
        examples.check()
    savemat(context / "trainval" / "2008_000007.mat", {"Labels": values})
    with pytest.raises(FileError, match="2008_000007.mat: expected SBD's GTcls or Pascal Context's LabelMap"):
        examples.check()


def test_without_scipy_the_mat_files_are_refused_at_once(context, monkeypatch):
    (context / "59_context_labels").rename(context / "trainval")
    for name in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"pip install \"tritoncrf\[sbd\]\""):
        data.pascal_context(context, "val")


def test_faults(context):
    with pytest.raises(ValueError, match="split: expected one of 'train', 'val', got 'test'"):
        data.pascal_context(context, "test")
    write_mask(context / "59_context_labels" / "2008_000002.png", VALUES + 1)
    with pytest.raises(FileError, match="2008_000002.png: expected labels from 0 to 59, got 60"):
        data.pascal_context(context, "train").check()
    (context / "59_context_labels" / "2008_000003.png").unlink()
    with pytest.raises(FileError, match="2008_000003: expected a mask for 2008_000003.jpg, got none"):
        data.pascal_context(context, "train")
    (context / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(FileError, match="Main/val.txt: expected a list of image names, got no such file"):
        data.pascal_context(context, "val")


def test_other_forms_are_refused_by_name(context):
    (context / "59_context_labels").rename(context / "33_context_labels")
    (context / "trainval_merged.json").touch()
    wanted = "expected a folder 59_context_labels, SegmentationClassContext, trainval of masks"
    with pytest.raises(FileError, match=f"{wanted}, got 33_context_labels and trainval_merged.json"):
        data.pascal_context(context, "train")

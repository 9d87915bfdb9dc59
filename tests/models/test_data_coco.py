"""COCO's annotations turned into labels of VOC's classes, from small files of annotations."""

import json
import pickle
import re
import sys

import numpy as np
import pytest

from data_files import listing, names, write, write_photo
from tritoncrf.files import FileError
from tritoncrf.models import data

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
# Of pycocotools 2.0.11 with NumPy 2.
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]

SIZE = (20, 24)
# COCO's id and name of each of VOC's classes, and of two others.
CATEGORIES = {
    5: "airplane", 2: "bicycle", 16: "bird", 9: "boat", 44: "bottle", 6: "bus", 3: "car", 17: "cat", 62: "chair",
    21: "cow", 67: "dining table", 18: "dog", 19: "horse", 4: "motorcycle", 1: "person", 64: "potted plant",
    20: "sheep", 63: "couch", 7: "train", 72: "tv", 8: "truck", 53: "apple",
}  # fmt: skip
TRUCK, CAR, PERSON, TABLE, BOTTLE = 8, 3, 1, 67, 44


def box(top, left, bottom, right):
    """A polygon around the pixels of [top:bottom, left:right]."""
    return [left, top, right, top, right, bottom, left, bottom]


def photo(number):
    return f"COCO_train2014_{number:012}"


class Annotations:
    """COCO of 2014 with what `add` puts into it; `write` writes it."""

    def __init__(self, root, part="train2014"):
        self.root, self.part = root, part
        categories = [{"id": key, "name": name, "supercategory": "thing"} for key, name in CATEGORIES.items()]
        self.content = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": categories}

    def add(self, number, *objects, size=SIZE):
        """A photo with objects (category, segmentation)."""
        name = photo(number).replace("train2014", self.part)
        write_photo(self.root / self.part / f"{name}.jpg", size)
        image = {"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
        self.content["images"].append(image)
        for category, segmentation in objects:
            key = 100 + len(self.content["annotations"])
            crowd = int(isinstance(segmentation, dict))
            self.content["annotations"].append(
                {"id": key, "image_id": number, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}
            )
        return self

    def write(self):
        listing(self.root / "annotations" / f"instances_{self.part}.json", json.dumps(self.content))
        return self.root


@pytest.fixture
def annotations(tmp_path):
    return Annotations(tmp_path)


def labels(annotations, split="train"):
    return data.coco(annotations.write(), split).read(0)[1]


@pytest.mark.parametrize("name", data.VOC_CLASSES[1:])
def test_every_class_of_voc(annotations, name):
    ids = dict(zip(data.VOC_CLASSES[1:], CATEGORIES))
    expected = np.zeros(SIZE, int)
    expected[2:18, 3:20] = data.VOC_CLASSES.index(name)
    annotations.add(7, (ids[name], [box(2, 3, 18, 20)]), (TRUCK, [box(0, 0, 10, 10)]))
    assert np.array_equal(labels(annotations), expected)


def test_photos_with_200_pixels_of_the_classes_are_taken(annotations):
    annotations.add(5, (PERSON, [box(0, 0, 10, 20)]))  # 200
    annotations.add(4, (PERSON, [box(0, 0, 1, 1), box(2, 0, 12, 20)]), (CAR, [box(19, 0, 20, 3)]))
    annotations.add(3, (PERSON, [box(0, 0, 19, 10)]), (CAR, [box(0, 0, 19, 10)]))  # 190, twice
    annotations.add(2, (TRUCK, [box(0, 0, 20, 20)]))
    annotations.add(1)
    examples = data.examples("coco", annotations.write(), "train")
    assert names(examples) == [photo(4), photo(5)]
    assert examples.classes == data.VOC_CLASSES
    assert examples.check() == ({SIZE}, {0, 7, 15})
    assert [path.name for path in examples.files()] == [
        f"{photo(4)}.jpg", "instances_train2014.json", f"{photo(5)}.jpg"
    ]  # fmt: skip


def test_the_smaller_of_two_objects_is_seen(annotations):
    table, bottle = (TABLE, [box(0, 0, 20, 20)]), (BOTTLE, [box(5, 5, 10, 8)])
    expected = np.zeros(SIZE, int)
    expected[:, :20], expected[5:10, 5:8] = 11, 5
    assert np.array_equal(labels(annotations.add(1, table, bottle)), expected)
    other = Annotations(annotations.root / "other").add(1, bottle, table)
    assert np.array_equal(labels(other), expected)


def test_a_crowd_is_labelled_and_too_few_corners_enclose_nothing(annotations):
    """Run lengths go down the columns, from 0 on."""
    runs = {"size": list(SIZE), "counts": [20, 200, 260]}
    annotations.add(1, (PERSON, runs), (CAR, [[1, 1, 5, 5]]), (CAR, [[1, 1, 5, 5], box(0, 12, 20, 14)]))
    expected = np.zeros(SIZE, int)
    expected[:, 1:11], expected[:, 12:14] = 15, 7
    assert np.array_equal(labels(annotations), expected)


def test_splits_and_a_folder_of_images(annotations):
    region = (CAR, [box(0, 0, 20, 20)])
    root = annotations.add(1, region).write()
    Annotations(root, "val2014").add(9, region).write()
    assert names(data.coco(root, "val")) == ["COCO_val2014_000000000009"]
    expected = [photo(1), "COCO_val2014_000000000009"]
    assert names(data.coco(root, "trainval")) == expected
    (root / "images").mkdir()
    for part in ("train2014", "val2014"):
        (root / part).rename(root / "images" / part)
    assert names(data.coco(root, "trainval")) == expected
    with pytest.raises(ValueError, match="split: expected one of 'train', 'val', 'trainval', got 'test'"):
        data.coco(root, "test")


def test_regions_travel_to_workers(annotations):
    examples = data.coco(annotations.add(1, (CAR, [box(0, 0, 20, 20)])).write(), "train")
    again = pickle.loads(pickle.dumps(examples))
    assert again == examples and np.array_equal(again.read(0)[1], examples.read(0)[1])


def test_voc_with_sbd_and_coco(annotations, tmp_path):
    """The first stage of CRF-RNN's training: the masks of files first, then the drawn ones."""
    root, sbd = tmp_path / "VOC2012", tmp_path / "sbd"
    write(root, "JPEGImages/t1.jpg", "JPEGImages/v1.jpg", "JPEGImages/s1.jpg", size=SIZE)
    write(root, "SegmentationClass/t1.png", "SegmentationClass/v1.png", value=20, size=SIZE)
    write(sbd, "SegmentationClassAug/s1.png", value=9, size=SIZE)
    listing(root / "ImageSets" / "Segmentation" / "train.txt", "t1")
    listing(root / "ImageSets" / "Segmentation" / "val.txt", "v1")
    coco = annotations.add(1, (CAR, [box(0, 0, 20, 20)])).write()
    examples = data.voc(root, "train_coco", sbd=sbd, coco=coco)
    assert names(examples) == ["t1", "s1", photo(1)]
    assert [set(np.unique(examples.read(n)[1])) for n in range(3)] == [{20}, {9}, {0, 7}]
    assert names(data.voc(root, "train_sbd", sbd=sbd, coco=coco)) == ["t1", "s1"]


# Faults ---------------------------------------------------------------------------------------------------------


def test_without_pycocotools(annotations, monkeypatch):
    root = annotations.add(1, (CAR, [box(0, 0, 20, 20)])).write()
    monkeypatch.setitem(sys.modules, "pycocotools", None)  # as where it is not installed
    with pytest.raises(
        ImportError, match=r"regions of COCO are read with pycocotools; `pip install \"tritoncrf\[coco\]\"`"
    ):
        data.coco(root, "train")


def segmentation(value):
    def change(content):
        content["annotations"][0]["segmentation"] = value

    change.__name__ = json.dumps(value)[:40]
    return change


def no_annotations(content):
    del content["annotations"]


def no_tables(content):
    content["images"].append("a.jpg")


def no_category(content):
    content["categories"] = content["categories"][1:]


def no_image(content):
    content["images"].pop()


def no_file_name(content):
    del content["images"][0]["file_name"]


def no_height(content):
    content["images"][0]["height"] = "20"


def huge(content):
    content["images"][0]["width"] = 10**9


def twice(content):
    content["images"].append(content["images"][0] | {"id": 2})
    content["annotations"].append(content["annotations"][0] | {"id": 2, "image_id": 2})


def too_few_pixels(content):
    content["annotations"][0]["segmentation"] = [box(0, 0, 10, 10)]


@pytest.mark.parametrize(
    "change, message",
    [
        (no_annotations, "expected the lists images, annotations, categories of COCO's instances, got no annotations"),
        (no_tables, "expected tables in images, got something else"),
        (no_category, "expected COCO's categories, got none named 'airplane'"),
        (no_image, "annotation 100: expected the id of an image, got 1"),
        (no_file_name, "expected COCO's annotations of objects, unreadable: 'file_name'"),
        (no_height, "image 1: expected sides from 1 to 16384, got 20 x 24"),
        (huge, "image 1: expected sides from 1 to 16384, got 20 x 1000000000"),
        (twice, f"expected every image once, got {photo(1)} 2 times"),
        (too_few_pixels, "expected photos with 200 pixels of VOC's classes, got none"),
        (segmentation([]), "expected photos with 200 pixels of VOC's classes, got none"),
        (segmentation("M0 0"), "annotation 100: expected polygons or run lengths, got 'M0 0'"),
        (segmentation([[0, 0, 1, 1, 2]]), "annotation 100: expected x and y of a polygon's corners, got [0, 0, 1, 1, 2]"),
        (segmentation([[0, 0, 1, 1, 2, 1e30]]), "annotation 100: expected x and y of a polygon's corners, got [0, 0,"),
        (segmentation([[0, 0, 1, 1, 2, float("nan")]]), "annotation 100: expected x and y of a polygon's corners, got"),
        (segmentation([["a"]]), "expected COCO's annotations of objects, unreadable: could not convert string"),
        (segmentation({"size": [20, 24], "counts": [20, 30]}), "annotation 100: expected run lengths of 480 pixels in all"),
        (segmentation({"size": [20, 24], "counts": [490, -10]}), "annotation 100: expected run lengths of 480 pixels"),
        (segmentation({"size": [20, 24], "counts": [2**63 - 1, 2**63 - 1, 482]}), "annotation 100: expected run lengths"),
        (segmentation({"size": [24, 20], "counts": [480]}), "annotation 100: expected a list of run lengths in 20 x 24"),
        (segmentation({"size": [20, 24], "counts": "04200"}), "annotation 100: expected a list of run lengths in 20 x 24"),
        (segmentation({"counts": [480]}), "expected COCO's annotations of objects, unreadable: 'size'"),
    ],
)  # fmt: skip
def test_faults_of_the_annotations(annotations, change, message):
    annotations.add(1, (CAR, [box(0, 0, 20, 20)]))
    change(annotations.content)
    with pytest.raises(FileError, match=re.escape(f"instances_train2014.json: {message}")):
        data.coco(annotations.write(), "train")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected COCO's annotations of objects, unreadable: Expecting property name"),
        ("[1]", "expected the lists images, annotations, categories of COCO's instances, got no images"),
        ("[" * 100_000, "expected COCO's annotations of objects, unreadable: "),
    ],
)
def test_what_is_no_table_of_annotations(annotations, text, message):
    path = annotations.root / "annotations" / "instances_train2014.json"
    with pytest.raises(
        FileError, match="instances_train2014.json: expected COCO's annotations of objects, got no such file"
    ):
        data.coco(annotations.root, "train")
    listing(path, text)
    with pytest.raises(FileError, match=re.escape(f"{path}: {message}")):
        data.coco(annotations.root, "train")


def test_photos_that_are_missing_or_of_another_size(annotations):
    root = annotations.add(1, (CAR, [box(0, 0, 20, 20)])).add(2, (CAR, [box(0, 0, 20, 20)])).write()
    write_photo(root / "train2014" / f"{photo(2)}.jpg", (24, 20))
    with pytest.raises(FileError, match=f"json: expected 24 x 20 labels, the size of {photo(2)}.jpg, got 20 x 24"):
        data.coco(root, "train").check()
    (root / "train2014" / f"{photo(2)}.jpg").unlink()
    with pytest.raises(
        FileError, match=f"{photo(2)}: expected an image of this name, as instances_train2014.json has it"
    ):
        data.coco(root, "train")

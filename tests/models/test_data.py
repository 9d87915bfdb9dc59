"""Data sets from small trees of files, and their faults."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import SIZE, listing, names, write, write_mask, write_photo
from tritoncrf.files import FileError
from tritoncrf.models import data

DATA = Path(os.environ.get("TRITONCRF_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_camvid_as_segnet_lays_it_out(tmp_path):
    write(tmp_path, "train/b.png", "train/a.png", "train/c.png", *(f"trainannot/{n}.png" for n in "abc"), value=11)
    examples = data.examples("camvid", tmp_path, "train")
    assert names(examples) == ["a", "b", "c"] and examples.void == (11,)
    assert examples.classes[:2] == ("sky", "building") and len(examples.classes) == 11
    assert (examples.read(0)[1] == 255).all()

    listing(tmp_path / "train.txt", *(f"/SegNet/train/{n}.png /SegNet/trainannot/{n}.png" for n in "cb"))
    examples = data.camvid(tmp_path, "train")
    assert examples.entries[0] == ("c", tmp_path / "train" / "c.png", tmp_path / "trainannot" / "c.png")
    assert names(examples) == ["c", "b"]


def test_camvid_with_folders_of_images_and_labels(tmp_path):
    write(tmp_path, "val/images/b.jpg", "val/images/a.jpg", "val/labels/a.png", "val/labels/b.png")
    listing(tmp_path / "splits" / "val.txt", "b", "a")
    assert names(data.camvid(tmp_path, "val")) == ["b", "a"]


@pytest.mark.skipif(not (DATA / "camvid").is_dir(), reason=f"no CamVid in {DATA}; TRITONCRF_DATA names the folder")
def test_the_real_camvid_is_sound():
    examples = data.camvid(DATA / "camvid", "val")
    examples.check()
    assert len(examples) == 101 and len(data.camvid(DATA / "camvid", "train")) == 367
    by_file = data.folder(DATA / "camvid", "val", void=11)  # whose classes.csv names void as well
    assert by_file.classes == examples.classes and by_file.entries == examples.entries


def test_folder_by_split_by_list_and_whole(plain):
    write(plain, "val/images/v.jpg", "val/masks/v.png")
    listing(plain / "splits" / "odd.txt", "a3", "a1", "", "a9.png")
    listing(plain / "even.txt", "elsewhere/a2.png")
    assert names(data.folder(plain, "val")) == ["v"]
    assert names(data.folder(plain, "odd")) == ["a3", "a1", "a9"]
    assert names(data.folder(plain, "even")) == ["a2"]
    assert names(data.folder(plain, "all")) == [f"a{i}" for i in range(10)]


def test_classes_come_from_either_file_or_the_call(plain):
    assert data.folder(plain, "all").classes == ("sky", "road", "tree")
    assert data.folder(plain, "all", classes=["x", "y"], void=[254, 255]).void == (254, 255)
    listing(plain / "classes.csv", "index,name,r", "1,b,9", "0,a,9", "9,nothing,0")
    assert data.folder(plain, "all", void=9).classes == ("a", "b")
    with pytest.raises(FileError, match=r"classes.csv: expected the indices from 0 to 2, got \[0, 1, 9\]"):
        data.folder(plain, "all")


@pytest.mark.parametrize(
    "name, lines, message",
    [
        ("classes.txt", ["a", "a"], "classes: expected different names, got 'a' 2 times"),
        ("classes.csv", ["index,name", "0,a", "1,a"], "classes: expected different names, got 'a' 2 times"),
        ("classes.csv", ["index,name", "0,a", "1"], "classes.csv: expected a name for every index, got none for 1"),
        ("classes.csv", ["index,name", "0,a", "1, "], "classes.csv: expected a name for every index, got none for 1"),
        ("classes.csv", ["index,name", "0,a", "0,b"], "classes.csv: expected the indices from 0 to 1, got [0, 0]"),
        ("classes.csv", ["number,name", "0,a"], "classes.csv: expected columns index and name, unreadable: 'index'"),
    ],
)
def test_faults_of_class_names(plain, name, lines, message):
    listing(plain / name, *lines)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.folder(plain, "all")


def test_what_a_split_holds(plain):
    write(plain, "labels/a7.png", value=2)
    write(plain, "labels/a8.png", value=255)
    sizes, labels = data.folder(plain, "all").check()
    assert sizes == {SIZE} and {2, 255} <= labels <= {0, 1, 2, 255}


# Faults ---------------------------------------------------------------------------------------------------------


def no_list(root):
    return "missing", f"{root}: expected missing/images, splits/missing.txt or missing.txt"


def no_mask(root):
    (root / "labels" / "a4.png").unlink()
    return "all", f"{root / 'labels' / 'a4'}: expected a mask for a4.png, got none"


def unknown_name(root):
    listing(root / "train.txt", "a1", "b1")
    return "train", f"{root / 'images' / 'b1'}: expected an image of this name"


def empty_list(root):
    listing(root / "train.txt", "")
    return "train", f"{root / 'train.txt'}: expected one image name per line, got none"


def name_twice(root):
    listing(root / "train.txt", "a1", "a2", "a1")
    return "train", f"{root / 'train.txt'}: expected every name once, got a1 2 times"


def empty_folder(root):
    (root / "train" / "images").mkdir(parents=True)
    return "train", f"{root / 'train' / 'images'}: expected files ending in .jpg"


def no_mask_folder(root):
    (root / "labels").rename(root / "annotations")
    return "all", f"{root / 'masks'}: expected a folder, got no such folder"


def two_of_a_name(root):
    write(root, "images/a4.jpg")
    return "all", f"{root / 'images' / 'a4.png'}: expected one file of this name, got a4.jpg as well"


def no_classes(root):
    (root / "classes.txt").unlink()
    return "all", f"{root / 'classes.txt'}: expected class names here or in classes.csv"


TREES = [
    no_list,
    no_mask,
    unknown_name,
    empty_list,
    name_twice,
    empty_folder,
    no_mask_folder,
    two_of_a_name,
    no_classes,
]


@pytest.mark.parametrize("change", TREES, ids=lambda change: change.__name__)
def test_faults_of_the_tree(plain, change):
    split, message = change(plain)
    with pytest.raises(FileError) as raised:
        data.folder(plain, split)
    assert str(raised.value).startswith(message)


def wrong_label(root):
    write(root, "labels/a7.png", value=37)
    return "a7.png: expected labels from 0 to 2 or void 255, got 37"


def other_size(root):
    write(root, "labels/a7.png", size=(8, 6))
    return "a7.png: expected 6 x 8 labels, the size of a7.png, got 8 x 6"


def broken_image(root):
    path = root / "images" / "a7.png"
    path.write_bytes(path.read_bytes()[:60])
    return "a7.png: expected a picture, unreadable"


def broken_mask(root):
    (root / "labels" / "a7.png").write_bytes(b"nothing")
    return "a7.png: expected a .png of labels, unreadable"


def colored_mask(root):
    Image.new("RGB", SIZE[::-1]).save(root / "labels" / "a7.png")
    return "a7.png: expected label indices, one channel or a palette, got RGB"


def fractions(root):
    (root / "labels" / "a7.png").unlink()
    np.save(root / "labels" / "a7.npy", np.zeros(SIZE, dtype=np.float32))
    return "a7.npy: expected integers [H, W], got a ndarray of shape [6, 8] and dtype float32"


def negative_label(root):
    (root / "labels" / "a7.png").unlink()
    np.save(root / "labels" / "a7.npy", np.full(SIZE, -1))
    return "a7.npy: expected labels from 0 to 2 or void 255, got -1"


FILES = [wrong_label, other_size, broken_image, broken_mask, colored_mask, fractions, negative_label]


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__)
def test_check_names_the_first_faulty_file(plain, change):
    data.folder(plain, "all").check()
    write(plain, "labels/a9.png", value=99)
    message = change(plain)
    with pytest.raises(FileError) as raised:
        data.folder(plain, "all").check()
    assert str(raised.value).removeprefix(f"{plain}{os.sep}").split(os.sep, 1)[1].startswith(message)


def test_a_folder_that_is_not_there(tmp_path):
    for format in data.FORMATS:
        with pytest.raises(FileError, match="nowhere: expected a folder, got no such folder"):
            data.examples(format, tmp_path / "nowhere", "train")


def test_options_out_of_range(plain):
    formats = "'camvid', 'voc', 'folder', 'cityscapes', 'ade20k', 'pascal_context', 'coco'"
    with pytest.raises(ValueError, match=f"format: expected one of {formats}, got 'kitti'"):
        data.examples("kitti", plain, "all")
    with pytest.raises(ValueError, match="void: expected a value that is not a class, got 1 with 3 classes"):
        data.folder(plain, "all", void=1)
    with pytest.raises(ValueError, match="entries: expected at least one image"):
        data.Examples((), ("a",))


def test_a_table_says_what_the_values_of_masks_mean(plain):
    """Values below, inside and above what void and classes are."""
    mask = np.array([[0, 1, 2, 3], [9, 3, 2, 1]])
    write_mask(plain / "labels" / "a0.png", mask)
    write_photo(plain / "images" / "a0.png", mask.shape)
    entries = (("a0", plain / "images" / "a0.png", plain / "labels" / "a0.png"),)
    examples = data.Examples(entries, ("sky", "road"), void=(9,), table=(255, 1, 0, 1))
    assert examples.read(0)[1].tolist() == [[255, 1, 0, 1], [255, 1, 0, 1]]
    with pytest.raises(FileError, match="a0.png: expected labels from 0 to 2 or void 9, got 3"):
        data.Examples(entries, ("sky", "road"), void=(9,), table=(255, 1, 0)).read(0)
    with pytest.raises(ValueError, match="table: expected an int from 0 to 1, got 2"):
        data.Examples(entries, ("sky", "road"), table=(255, 2))
    with pytest.raises(ValueError, match="void: expected a value that is not a class, got 2 with 3 classes"):
        data.Examples(entries, ("sky", "road"), void=(2,), table=(255, 1, 0))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint64])
def test_masks_of_any_integers(plain, dtype):
    (plain / "labels" / "a0.png").unlink()
    values = np.arange(np.prod(SIZE)).reshape(SIZE) % 2
    np.save(plain / "labels" / "a0.npy", values.astype(dtype))
    assert np.array_equal(data.folder(plain, "all").read(0)[1], values)

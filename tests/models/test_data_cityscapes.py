"""Cityscapes from small trees of files in its several layouts."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_files import listing, names, write_mask, write_photo
from tritoncrf.files import FileError
from tritoncrf.models import data
from tritoncrf.models.__main__ import main

# (label id, train id) of cityscapesScripts, helpers/labels.py; all other ids are not evaluated.
TRAIN_IDS = [(7, 0), (8, 1), (11, 2), (12, 3), (13, 4), (17, 5), (19, 6), (20, 7), (21, 8), (22, 9), (23, 10), (24, 11)]
TRAIN_IDS += [(25, 12), (26, 13), (27, 14), (28, 15), (31, 16), (32, 17), (33, 18)]
IDS = np.arange(34).reshape(2, 17)  # every label id that masks hold
EXPECTED = np.array([dict(TRAIN_IDS).get(n, 255) for n in range(34)]).reshape(2, 17)
FRAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")


def tree(
    root: Path, split="train", photos="leftImg8bit", masks="gtFine", cities=True, kind="gtFine", values=IDS,
    ending="labelIds", frames=FRAMES,
):  # fmt: skip
    for frame in frames:
        city = frame.split("_")[0] if cities else ""
        write_photo(root / photos / split / city / f"{frame}_leftImg8bit.png", values.shape)
        write_mask(root / masks / split / city / f"{frame}_{kind}_{ending}.png", values)
        for other in ("color", "instanceIds"):
            write_mask(root / masks / split / city / f"{frame}_{kind}_{other}.png", np.zeros((3, 3)))


def test_the_ids_that_are_evaluated_become_classes_and_all_others_void(tmp_path):
    tree(tmp_path)
    examples = data.examples("cityscapes", tmp_path, "train")
    assert names(examples) == list(FRAMES) and len(examples.classes) == 19
    assert (examples.classes[0], examples.classes[9], examples.classes[18]) == ("road", "terrain", "bicycle")
    assert np.array_equal(examples.read(0)[1], EXPECTED)
    assert examples.check().labels == {*range(19), 255}


ARCHIVES = dict(photos="leftImg8bit_trainvaltest/leftImg8bit", masks="gtFine_trainvaltest/gtFine")


@pytest.mark.parametrize("layout", [dict(cities=False), ARCHIVES, dict(masks="gtFine_trainvaltest/gtFine")], ids=str)
def test_layouts_are_read_alike(tmp_path, layout):
    tree(tmp_path / "published", split="val")
    tree(tmp_path / "other", split="val", **layout)
    published, other = (data.cityscapes(tmp_path / name, "val") for name in ("published", "other"))
    assert names(other) == names(published)
    assert np.array_equal(other.read(2)[0], published.read(2)[0])
    assert np.array_equal(other.read(2)[1], published.read(2)[1])


def test_train_ids_are_read_where_there_are_no_label_ids(tmp_path):
    tree(tmp_path, ending="labelTrainIds", values=EXPECTED)
    assert np.array_equal(data.cityscapes(tmp_path, "train").read(1)[1], EXPECTED)
    tree(tmp_path, values=np.full((2, 17), 7))
    assert (data.cityscapes(tmp_path, "train").read(1)[1] == 0).all()


def test_train_extra_has_coarse_masks(tmp_path):
    tree(tmp_path, "train_extra", "leftImg8bit_trainextra/leftImg8bit", "gtCoarse/gtCoarse", kind="gtCoarse")
    assert np.array_equal(data.cityscapes(tmp_path, "train_extra").read(0)[1], EXPECTED)


def test_a_label_id_that_there_is_not(tmp_path):
    tree(tmp_path, values=IDS + 1)
    with pytest.raises(
        FileError, match="aachen_000000_000019_gtFine_labelIds.png: expected labels from 0 to 33, got 34"
    ):
        data.cityscapes(tmp_path, "train").check()
    tree(tmp_path / "b", ending="labelTrainIds", values=IDS)
    with pytest.raises(FileError, match="labelTrainIds.png: expected labels from 0 to 18 or void 255, got 19"):
        data.cityscapes(tmp_path / "b", "train").check()


def no_masks(root):
    for path in root.glob("gtFine/train/*/*labelIds.png"):
        path.unlink()
    return f"{root / 'gtFine' / 'train'}: expected masks named *_gtFine_labelIds.png or *_gtFine_labelTrainIds.png, got none"


def no_photos(root):
    for path in root.glob("leftImg8bit/train/*/*"):
        path.unlink()
    return f"{root / 'leftImg8bit' / 'train'}: expected photos named *_leftImg8bit.png, got none"


def no_folder(root):
    (root / "gtFine").rename(root / "gt")
    return f"{root}: expected one folder gtFine/train in it, or in a folder gtFine_..., got none"


def two_folders(root):
    (root / "leftImg8bit_trainvaltest" / "leftImg8bit" / "train").mkdir(parents=True)
    return f"{root}: expected one folder leftImg8bit/train in it, or in a folder leftImg8bit_..., got {root}"


def no_mask(root):
    (root / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png").unlink()
    mask = root / "gtFine" / "train" / "bochum_000000_000313"
    return f"{mask}: expected a mask for bochum_000000_000313_leftImg8bit.png, got none"


def no_photo(root):
    (root / "leftImg8bit/train/bochum/bochum_000000_000313_leftImg8bit.png").unlink()
    return f"{root / 'leftImg8bit' / 'train' / 'bochum_000000_000313'}: expected an image of this name, got none"


def one_twice(root):
    write_photo(root / "leftImg8bit" / "train" / f"{FRAMES[0]}_leftImg8bit.jpg")
    return str(root / "leftImg8bit" / "train")


@pytest.mark.parametrize("change", [no_masks, no_photos, no_folder, two_folders, no_mask, no_photo, one_twice])
def test_faults_of_the_tree(tmp_path, change):
    tree(tmp_path)
    message = change(tmp_path)
    with pytest.raises(FileError, match=re.escape(message)):
        data.cityscapes(tmp_path, "train")


def test_splits(tmp_path):
    tree(tmp_path, "test", values=np.full((2, 17), 3))
    assert (data.cityscapes(tmp_path, "test").read(0)[1] == 255).all()
    with pytest.raises(
        ValueError, match="split: expected one of 'train', 'val', 'test', 'train_extra', got 'demoVideo'"
    ):
        data.cityscapes(tmp_path, "demoVideo")


def test_a_network_is_trained_and_evaluated(tmp_path, capsys):
    run = [
        "[network]", 'name = "ResNetFCN"', "depth = 18", "width = 0.0625", "[data]", 'format = "cityscapes"', "workers = 0",
        "[[phases]]", 'name = "unary"', 'train = "unary"', "epochs = 1", "batch = 2",
        "[phases.optimizer]", 'name = "sgd"', "lr = 0.01",
    ]  # fmt: skip
    listing(tmp_path / "run.toml", *run)
    values = np.tile(IDS, (16, 2))
    tree(tmp_path / "data", values=values)
    tree(tmp_path / "data", "val", values=values, frames=FRAMES[:1])
    folder = ["--data", str(tmp_path / "data")]
    assert main(["train", str(tmp_path / "run.toml"), *folder, "-o", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run" / "last.pt"), *folder]) == 0
    assert "IoU motorcycle" in capsys.readouterr().out

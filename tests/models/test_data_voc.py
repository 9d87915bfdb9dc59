"""Pascal VOC with SBD from a small tree of files."""

import importlib.util
import sys

import numpy as np
import pytest

from data_files import SIZE, listing, names, write
from tritoncrf.files import FileError
from tritoncrf.models import data
from tritoncrf.models.__main__ import main


@pytest.fixture
def voc(tmp_path):
    """VOC: train t1 t2, val v1 v2. SBD: t2, v2, s1, s2, of which s2 has its photo with SBD alone."""
    root, sbd = tmp_path / "VOC2012", tmp_path / "sbd"
    write(root, *(f"JPEGImages/{n}.jpg" for n in ("t1", "t2", "v1", "v2", "s1")))
    write(root, *(f"SegmentationClass/{n}.png" for n in ("t1", "t2", "v1", "v2")), value=20)
    lists = root / "ImageSets" / "Segmentation"
    listing(lists / "train.txt", "t1", "t2")
    listing(lists / "val.txt", "v1", "v2")
    listing(lists / "trainval.txt", "t1", "t2", "v1", "v2")
    write(sbd, *(f"SegmentationClassAug/{n}.png" for n in ("s1", "s2", "t2", "v2")), "img/s1.jpg", "img/s2.jpg")
    return root, sbd


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", "t1 t2"),
        ("val", "v1 v2"),
        ("trainval", "t1 t2 v1 v2"),
        ("train_aug", "t1 t2 s1 s2"),
        ("train_sbd", "t1 t2 s1 s2 v2"),
        ("val_reduced", "v1"),
    ],
)
def test_voc_splits(voc, split, expected):
    root, sbd = voc
    examples = data.voc(root, split, sbd=sbd)
    assert names(examples) == expected.split()
    assert len(examples.classes) == 21 and examples.classes[20] == "tvmonitor" and examples.void == (255,)
    examples.check()
    for name, image, mask in examples.entries:
        assert image.parent == (sbd / "img" if name == "s2" else root / "JPEGImages")
        assert mask.parent.name == ("SegmentationClassAug" if name[0] == "s" else "SegmentationClass")


def test_masks_that_mix_voc_into_sbd_need_the_lists_of_sbd(voc):
    root, sbd = voc
    write(sbd, "SegmentationClassAug/v1.png", "SegmentationClassAug/t1.png")
    assert names(data.voc(root, "train_aug", sbd=sbd)) == ["t1", "t2", "s1", "s2"]
    with pytest.raises(FileError, match="expected SBD's train.txt and val.txt"):
        data.voc(root, "val_reduced", sbd=sbd)
    listing(sbd / "train.txt", "s1", "t2")
    listing(sbd / "val.txt", "s2", "v2")
    assert names(data.voc(root, "val_reduced", sbd=sbd)) == ["v1"]
    assert names(data.voc(root, "train_sbd", sbd=sbd)) == ["t1", "t2", "s1", "s2", "v2"]


def matlab(voc):
    """The tree with .mat files in place of SBD's PNGs; their content is not MATLAB's."""
    root, sbd = voc
    (sbd / "cls").mkdir()
    for path in (sbd / "SegmentationClassAug").iterdir():
        path.unlink()
        (sbd / "cls" / path.with_suffix(".mat").name).write_bytes(b"broken")
    (sbd / "SegmentationClassAug").rmdir()
    return root, sbd


def test_without_scipy_the_mat_files_of_sbd_are_refused_at_once(voc, monkeypatch):
    root, sbd = matlab(voc)
    for name in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"pip install \"tritoncrf\[sbd\]\""):
        data.voc(root, "train_aug", sbd=sbd)
    assert names(data.voc(root, "val_reduced", sbd=sbd)) == ["v1"]


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")
def test_the_mat_files_of_sbd(voc):
    from scipy.io import savemat

    root, sbd = matlab(voc)
    labels = np.arange(48, dtype=np.uint8).reshape(SIZE) % 21
    for path in (sbd / "cls").iterdir():
        savemat(path, {"GTcls": {"Segmentation": labels, "Boundaries": np.zeros(SIZE), "CategoriesPresent": [1]}})
    examples = data.voc(root, "train_aug", sbd=sbd)
    assert np.array_equal(examples.read(2)[1], labels)
    (sbd / "cls" / "s1.mat").write_bytes(b"broken")
    with pytest.raises(FileError, match="s1.mat: expected a .mat of SBD or of Pascal Context, unreadable"):
        examples.check()
    savemat(sbd / "cls" / "s1.mat", {"other": labels})
    with pytest.raises(FileError, match="s1.mat: expected SBD's GTcls or Pascal Context's LabelMap"):
        examples.check()


def test_splits_and_folders_that_are_not_there(voc):
    root, sbd = voc
    with pytest.raises(ValueError, match="split: expected one of 'train', .* got 'test'"):
        data.voc(root, "test")
    with pytest.raises(ValueError, match="sbd: expected the folder of SBD's annotations for the split 'train_aug'"):
        data.voc(root, "train_aug")
    with pytest.raises(ValueError, match="coco: expected the folder of COCO for the split 'train_coco', got None"):
        data.voc(root, "train_coco", sbd=sbd)
    with pytest.raises(FileError, match="expected a folder SegmentationClassAug or cls, got neither"):
        data.voc(root, "train_aug", sbd=root)


@pytest.mark.parametrize("changes, key", [((), "sbd"), (("data.sbd={sbd}",), "coco")])
def test_the_command_line_names_the_keys_of_the_configuration(voc, tmp_path, capsys, changes, key):
    root, sbd = voc
    listed = [part for change in ("data.train=train_coco", *changes) for part in ("--set", change.format(sbd=sbd))]
    assert main(["train", "convcrf_unary", "--data", str(root), "-o", str(tmp_path / "run"), *listed]) == 2
    assert f"error: data.{key}: expected the folder of " in capsys.readouterr().err

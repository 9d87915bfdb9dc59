"""ADE20K's scene parsing from small trees of files, and from two real photos."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import listing, names, write_mask, write_photo
from tritoncrf.files import FileError
from tritoncrf.models import data

DATA = Path(os.environ.get("TRITONCRF_DATA", Path(__file__).parents[3] / "shared" / "data"))
VALUES = np.arange(151 + 5).reshape(12, 13) % 151


@pytest.fixture
def ade(tmp_path):
    for part, name, count in (("training", "train", 3), ("validation", "val", 2)):
        for n in range(1, count + 1):
            write_photo(tmp_path / "images" / part / f"ADE_{name}_{n:08}.jpg", VALUES.shape)
            write_mask(tmp_path / "annotations" / part / f"ADE_{name}_{n:08}.png", VALUES)
    return tmp_path


def test_zero_is_void_and_one_the_first_class(ade):
    examples = data.examples("ade20k", ade, "train")
    assert names(examples) == [f"ADE_train_{n:08}" for n in (1, 2, 3)]
    assert len(examples.classes) == 150
    assert (examples.classes[0], examples.classes[12], examples.classes[149]) == ("wall", "person", "flag")
    assert np.array_equal(examples.read(0)[1], np.where(VALUES == 0, 255, VALUES - 1))
    assert len(data.ade20k(ade, "val")) == 2 and data.ade20k(ade, "val").check().labels == {*range(150), 255}


def test_plain_folders(tmp_path):
    write_photo(tmp_path / "images" / "a.jpg", VALUES.shape)
    write_mask(tmp_path / "labels" / "a.png", VALUES)
    listing(tmp_path / "train.txt", "a")
    assert np.array_equal(data.ade20k(tmp_path, "train").read(0)[1], np.where(VALUES == 0, 255, VALUES - 1))


@pytest.mark.skipif(not (DATA / "ade20k").is_dir(), reason=f"no ADE20K in {DATA}; TRITONCRF_DATA names the folder")
def test_real_photos():
    examples = data.ade20k(DATA / "ade20k", "all")
    listed = [row.split(",") for row in (DATA / "ade20k" / "classes.csv").read_text().splitlines()[1:]]
    assert [name.split()[0] for name in examples.classes] == [name.split(";")[0] for _, name in listed[1:]]
    stored = np.array(Image.open(DATA / "ade20k" / "labels" / f"{names(examples)[0]}.png"))
    labels = examples.read(0)[1]
    assert (labels[stored == 0] == 255).all() and (labels[stored > 0] == stored[stored > 0] - 1).all()
    examples.check()


def test_faults(ade):
    with pytest.raises(ValueError, match="split: expected one of 'train', 'val', got 'testing'"):
        data.ade20k(ade, "testing")
    write_mask(ade / "annotations" / "training" / "ADE_train_00000002.png", VALUES + 1)
    with pytest.raises(FileError, match="ADE_train_00000002.png: expected labels from 0 to 150, got 151"):
        data.ade20k(ade, "train").check()
    (ade / "images" / "training" / "ADE_train_00000003.jpg").unlink()
    with pytest.raises(FileError, match="ADE_train_00000003: expected an image of this name, got none"):
        data.ade20k(ade, "train")
    (ade / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    with pytest.raises(FileError, match="ADE_val_00000002: expected a mask for ADE_val_00000002.jpg, got none"):
        data.ade20k(ade, "val")
    (ade / "index_ade20k.mat").touch()
    with pytest.raises(FileError, match="expected ADEChallengeData2016, got the full ADE20K"):
        data.ade20k(ade, "train")

"""Data sets from small trees of files, their faults, and batches that come out the same however they are loaded."""

import importlib.util
import os
import re
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tritoncrf.files import FileError
from tritoncrf.models import data
from tritoncrf.models.augment import Augment

DATA = Path(os.environ.get("TRITONCRF_DATA", Path(__file__).parents[3] / "shared" / "data"))
SIZE = (6, 8)
# Python 3.12 warns of every fork beside threads, torch of more workers than the machine has cores.
quiet_workers = pytest.mark.filterwarnings("ignore:.*use of fork.*", "ignore:This DataLoader will create")


def write(root: Path, *paths: str, value: int = 1, size=SIZE):
    """A file at every path: an image of noise, or a mask all `value`, by the name of its folder."""
    for path in map(root.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name in ("labels", "masks", "SegmentationClass", "SegmentationClassAug", "trainannot"):
            Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)
        else:
            noise = np.random.default_rng(list(path.stem.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)


def listing(path: Path, *lines: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def names(examples) -> list[str]:
    return [name for name, _, _ in examples.entries]


@pytest.fixture
def plain(tmp_path):
    """Ten images a0 to a9 of three classes in `images` and `labels`."""
    write(tmp_path, *(f"images/a{i}.png" for i in range(10)), *(f"labels/a{i}.png" for i in range(10)))
    listing(tmp_path / "classes.txt", "sky", "road", "tree")
    return tmp_path


# Formats --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ImportError, match="pip install scipy"):
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
    with pytest.raises(FileError, match="s1.mat: expected a .mat of SBD, unreadable"):
        examples.check()


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
    return "train", f"{root / 'train.txt'}: expected one image name a line, got none"


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


def test_options_out_of_range(plain, voc):
    with pytest.raises(ValueError, match="format: expected one of 'camvid', 'voc', 'folder', got 'coco'"):
        data.examples("coco", plain, "all")
    with pytest.raises(ValueError, match="split: expected one of 'train', .* got 'test'"):
        data.voc(voc[0], "test")
    with pytest.raises(ValueError, match="sbd: expected the folder of SBD's annotations for the split 'train_aug'"):
        data.voc(voc[0], "train_aug")
    with pytest.raises(FileError, match="expected a folder SegmentationClassAug or cls in it"):
        data.voc(voc[0], "train_aug", sbd=voc[0])
    with pytest.raises(ValueError, match="void: expected a value that is no class, got 1 of 3 classes"):
        data.folder(plain, "all", void=1)
    with pytest.raises(ValueError, match="entries: expected at least one image"):
        data.Examples((), ("a",))


# Items ----------------------------------------------------------------------------------------------------------


def test_an_item_holds_the_photo_the_labels_and_255_where_unknown(plain):
    mask = np.array([[0, 1, 2, 7], [7, 2, 1, 0]], dtype=np.uint8)
    photo = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(mask).save(plain / "labels" / "a0.png")
    Image.fromarray(photo).save(plain / "images" / "a0.png")
    item = data.Images(data.folder(plain, "all", void=7))[0]
    assert item["name"] == "a0"
    assert item["image"].dtype == torch.uint8 and item["image"].permute(1, 2, 0).tolist() == photo.tolist()
    assert item["labels"].dtype == torch.int64
    assert item["labels"].tolist() == [[0, 1, 2, 255], [255, 2, 1, 0]]


def test_grey_photos_become_rgb(plain):
    Image.fromarray(np.full(SIZE, 9, dtype=np.uint8)).save(plain / "images" / "a0.png")
    assert (data.Images(data.folder(plain, "all"))[0]["image"] == 9).all()


def test_resize_averages_photos_and_picks_labels(plain):
    board = np.indices((32, 48)).sum(0) % 2
    Image.fromarray(np.repeat(255 * board[..., None], 3, axis=2).astype(np.uint8)).save(plain / "images" / "a0.png")
    Image.fromarray((2 * board).astype(np.uint8)).save(plain / "labels" / "a0.png")
    item = data.Images(data.folder(plain, "all"), resize=(8, 12))[0]
    assert item["image"].shape == (3, 8, 12) and (item["image"].int() - 127).abs().max() <= 2
    assert item["labels"].shape == (8, 12) and set(item["labels"].unique().tolist()) <= {0, 2}


AUGMENT = Augment(scale=(0.7, 1.5), mirror=0.5, rotation=10, brightness=0.3, hue=0.1, crop=(5, 7))


def test_an_item_is_a_function_of_seed_epoch_and_index(plain):
    examples = data.folder(plain, "all")
    images = data.Images(examples, augment=AUGMENT, seed=1)
    first = images[2, 3]["image"]
    images[5, 0]
    assert torch.equal(first, data.Images(examples, augment=AUGMENT, seed=1)[2, 3]["image"])
    assert not torch.equal(first, images[3, 3]["image"])
    assert not torch.equal(first, data.Images(examples, augment=AUGMENT, seed=2)[2, 3]["image"])


def test_held_out_images_are_apart_and_the_same_every_time(plain):
    examples = data.folder(plain, "all")
    rest, held = data.held_out(examples, 4, seed=3)
    assert len(held) == 4 and sorted(names(rest) + names(held)) == names(examples)
    assert names(held) == sorted(names(held))
    assert data.held_out(examples, 4, seed=3) == (rest, held)
    assert data.held_out(examples, 4, seed=4)[1] != held
    with pytest.raises(ValueError, match="count: expected an int from 1 to 9, got 10"):
        data.held_out(examples, 10)


# Batches --------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    batches = data.Batches(12, 3, seed=5)
    epochs = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        keys = list(chain(*batches))
        assert {e for e, _ in keys} == {epoch} and sorted(i for _, i in keys) == list(range(12))
        epochs.append([i for _, i in keys])
    assert epochs[0] != epochs[1]
    assert [i for _, i in chain(*data.Batches(12, 3, seed=6))] != epochs[0]


def test_training_drops_what_fills_no_batch_and_evaluation_keeps_it():
    assert [len(b) for b in data.Batches(11, 4)] == [4, 4] and len(data.Batches(11, 4)) == 2
    in_order = data.Batches(11, 4, shuffle=False)
    assert list(chain(*in_order)) == [(0, i) for i in range(11)] and len(in_order) == 3


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", range(8, 25))
def test_ranks_share_the_steps_of_one(length, shuffle):
    whole = list(data.Batches(length, 8, seed=1, epoch=2, shuffle=shuffle))
    ranks = [data.Batches(length, 2, seed=1, epoch=2, shuffle=shuffle, rank=r, ranks=4) for r in range(4)]
    parts = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(part) for part in parts]
    for step, batch in enumerate(whole):
        assert batch == list(chain(*(part[step] for part in parts if step < len(part))))
    assert all(parts[0]) and len(parts[0]) == len(whole)


def test_a_resumed_epoch_goes_on_where_it_stopped():
    whole = list(data.Batches(20, 3, seed=1, epoch=4))
    resumed = data.Batches(20, 3, seed=1, epoch=4, start=2)
    assert list(resumed) == whole[2:] and len(resumed) == 4
    resumed.set_epoch(5)
    assert len(resumed) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(length=3, batch=4), "batch: expected at most the 3 images there are, got 4 on 1 rank"),
        (dict(length=3, batch=2, ranks=2), "batch: expected at most the 3 images there are, got 2 on 2 rank"),
        (dict(length=3, batch=0), "batch: expected an int of at least 1"),
        (dict(length=3, batch=1, start=4), "start: expected an int from 0 to 3"),
        (dict(length=3, batch=1, rank=1), "rank: expected an int from 0 to 0"),
        (dict(length=3, batch=1, seed=-1), "seed: expected an int from 0"),
    ],
    ids=str,
)
def test_batches_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(**arguments)


def loaded(examples, workers=0, epochs=(0, 1), start=0):
    """All batches of the epochs, the first from step `start` on."""
    batches = data.Batches(len(examples), 3, seed=2)
    loader = data.loader(data.Images(examples, augment=AUGMENT, seed=1), batches, workers)
    found = []
    for epoch in epochs:
        batches.set_epoch(epoch, start if epoch == epochs[0] else 0)
        found += list(loader)
    return found


def equal(first, second):
    return len(first) == len(second) and all(
        a["name"] == b["name"] and torch.equal(a["image"], b["image"]) and torch.equal(a["labels"], b["labels"])
        for a, b in zip(first, second)
    )


def test_a_batch_is_stacked(plain):
    batch = loaded(data.folder(plain, "all"), epochs=[0])[0]
    assert batch["image"].shape == (3, 3, 5, 7) and batch["image"].dtype == torch.uint8
    assert batch["labels"].shape == (3, 5, 7) and batch["labels"].dtype == torch.int64
    assert len(batch["name"]) == 3


@quiet_workers
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_change_no_bit(plain, workers):
    examples = data.folder(plain, "all")
    expected = loaded(examples)
    assert not equal(expected[:3], expected[3:])
    assert equal(loaded(examples, workers), expected)
    assert equal(loaded(examples, workers, start=2), expected[2:])
    assert equal(loaded(examples, workers, epochs=[1], start=1), expected[4:])


@quiet_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generators(plain, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    loaded(data.folder(plain, "all"), workers)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


@quiet_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_whoever_reads_it(plain, workers):
    examples = data.folder(plain, "all")
    wrong_label(plain)
    with pytest.raises(FileError, match="a7.png: expected labels from 0 to 2 or void 255, got 37"):
        loaded(examples, workers)


def test_images_of_several_sizes_make_no_batch(plain):
    write(plain, "images/a0.png", "labels/a0.png", size=(4, 4))
    examples = data.folder(plain, "all")
    loader = data.loader(data.Images(examples), data.Batches(len(examples), 2, shuffle=False))
    with pytest.raises(ValueError, match="batch: expected images of one size .*, got a0 of 4 x 4, a1 of 6 x 8"):
        next(iter(loader))

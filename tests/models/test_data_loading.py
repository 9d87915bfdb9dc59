"""Batches of labelled photos: they come out the same however they are loaded."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from data_files import SIZE, names, write
from tritoncrf.files import FileError
from tritoncrf.models import data
from tritoncrf.models.augment import Augment

# Python 3.12 warns of every fork beside threads, torch of more workers than the machine has cores.
quiet_workers = pytest.mark.filterwarnings("ignore:.*use of fork.*", "ignore:This DataLoader will create")


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
        (dict(length=3, batch=4), "batch: expected at most 3, the number of images, got 4 on 1 rank"),
        (dict(length=3, batch=2, ranks=2), "batch: expected at most 3, the number of images, got 2 on 2 rank"),
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
    write(plain, "labels/a7.png", value=37)
    with pytest.raises(FileError, match="a7.png: expected labels from 0 to 2 or void 255, got 37"):
        loaded(examples, workers)


def test_images_of_several_sizes_make_no_batch(plain):
    write(plain, "images/a0.png", "labels/a0.png", size=(4, 4))
    examples = data.folder(plain, "all")
    loader = data.loader(data.Images(examples), data.Batches(len(examples), 2, shuffle=False))
    with pytest.raises(ValueError, match="batch: expected images of one size .*, got a0 of 4 x 4, a1 of 6 x 8"):
        next(iter(loader))

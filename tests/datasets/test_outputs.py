"""What is written of an image, whole or not at all, and the mark that it carries."""

import errno
import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from tritoncrf import figures
from tritoncrf.commands import CommandError
from tritoncrf.datasets.outputs import Outputs
from tritoncrf.files import FileError, address, read_labels

H, W = 9, 13
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
MARK = {"settings": "0123abcd", "changed": 0.25}


def drawn(classes):
    p = RNG.random((classes, H, W), dtype=np.float32) ** 8
    return p / p.sum(0)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_labels(tmp_path):
    outputs, q = Outputs(tmp_path / "out"), drawn(21)
    assert outputs.paths("day 1/é") == [tmp_path / "out" / "day 1" / "é.png"]
    found = outputs.write("day 1/é", IMAGE, q, "probabilities", None, MARK)
    assert files(tmp_path) == ["out/day 1/é.png"]
    np.testing.assert_array_equal(found, q.argmax(0))
    with Image.open(outputs.paths("day 1/é")[0]) as picture:
        assert picture.mode == "P" and picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    np.testing.assert_array_equal(read_labels(outputs.paths("day 1/é")[0]), found)
    np.testing.assert_array_equal(outputs.labels("day 1/é"), found)
    assert outputs.mark("day 1/é") == MARK


def test_the_palette_of_voc():
    """As in the data set's own files."""
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128),
                21: (128, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {n: tuple(figures.voc_palette()[n].tolist()) for n in expected} == expected


def test_classes_under_their_own_numbers(tmp_path):
    q, classes = drawn(3), np.array([0, 15, 4])
    outputs = Outputs(tmp_path)
    found = outputs.write("a", IMAGE, q, "probabilities", classes, MARK)
    np.testing.assert_array_equal(found, classes[q.argmax(0)])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), found)
    outputs.write("one", IMAGE, np.ones((1, H, W), np.float32), "probabilities", classes[:1], MARK)
    assert not outputs.labels("one").any()


@pytest.mark.parametrize("classes, bits", [(255, 8), (256, 16), (300, 16)])
@pytest.mark.parametrize("said", ["channels", "classes", "num_classes"])
def test_bits_of_labels(tmp_path, classes, bits, said):
    """From 256 classes on 16, unknown 65535, whichever way their number is known."""
    q = drawn(classes if said == "channels" else 3)
    sure = float(np.median(q.max(0)))
    outputs = Outputs(tmp_path, confidence=sure, num_classes=classes if said == "num_classes" else None)
    labels = np.array([0, classes - 1, 7]) if said == "classes" else None
    found = outputs.write("a", IMAGE, q, "probabilities", labels, MARK)
    stored = read_labels(tmp_path / "a.png")
    assert stored.dtype == {8: np.uint8, 16: np.uint16}[bits]
    best = q.argmax(0) if labels is None else labels[q.argmax(0)]
    unknown = q.max(0) < sure
    assert 0.4 < unknown.mean() < 0.6
    np.testing.assert_array_equal(stored, np.where(unknown, 255 if bits == 8 else 65535, best))
    np.testing.assert_array_equal(found, np.where(unknown, -1, best))
    np.testing.assert_array_equal(outputs.labels("a"), found)
    assert outputs.mark("a") == MARK


def test_more_classes_than_labels_have_numbers(tmp_path):
    with pytest.raises(
        ValueError, match="expected at most 65535 classes in a .png, got 65537; use --save probabilities"
    ):
        Outputs(tmp_path).write("a", IMAGE, drawn(2), "probabilities", np.array([0, 65536]), MARK)
    assert files(tmp_path) == []


@pytest.mark.parametrize("kind", ["mask", "foreground"])
def test_one_object(tmp_path, kind):
    """0 and 255; where some is unknown, labels 0 and 1."""
    p = RNG.random((H, W), dtype=np.float32)
    outputs = Outputs(tmp_path / "mask")
    outputs.write("a", IMAGE, p, kind, None, MARK)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask/a.png")), (p > 0.5) * np.uint8(255))
    np.testing.assert_array_equal(outputs.labels("a"), p > 0.5)
    outputs = Outputs(tmp_path / "sure", confidence=0.8)
    outputs.write("a", IMAGE, p, kind, None, MARK)
    expected = np.where(p > 0.5, 1, 0)
    expected[(p > 0.2) & (p < 0.8)] = 255
    np.testing.assert_array_equal(read_labels(tmp_path / "sure/a.png"), expected)
    np.testing.assert_array_equal(outputs.labels("a"), np.where(expected == 255, -1, expected))
    outputs = Outputs(tmp_path / "p", save="probabilities")
    outputs.write("a", IMAGE, p, kind, None, MARK)
    with np.load(tmp_path / "p/a.npz") as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], p.astype(np.float16), strict=True)
    np.testing.assert_array_equal(outputs.labels("a"), p.astype(np.float16) > 0.5)


@pytest.mark.parametrize("classes", [None, np.array([0, 15, 4])])
def test_probabilities(tmp_path, classes):
    outputs, q = Outputs(tmp_path, save="probabilities"), np.repeat(drawn(3), 20, axis=1)
    outputs.write("a", IMAGE, q, "probabilities", classes, MARK)
    assert outputs.paths("a") == [tmp_path / "a.npz"] and files(tmp_path) == ["a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], q.astype(np.float16), strict=True)
        assert json.loads(arrays["tritoncrf"].item()) == MARK
        assert ("classes" in arrays) is (classes is not None)
    assert (tmp_path / "a.npz").stat().st_size < q.size * 2
    best = q.astype(np.float16).argmax(0)
    np.testing.assert_array_equal(outputs.labels("a"), best if classes is None else classes[best])
    assert outputs.mark("a") == MARK


def test_the_same_bytes_every_time(tmp_path):
    q = drawn(3)
    for save in "labels", "probabilities":
        written = []
        for folder in "one", "two":
            outputs = Outputs(tmp_path / folder, save, overlay=True)
            outputs.write("a", IMAGE, q, "probabilities", None, MARK)
            written.append([path.read_bytes() for path in outputs.paths("a")])
        assert written[0] == written[1]


@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., 0]])
def test_overlays(tmp_path, image):
    q, outputs = drawn(3), Outputs(tmp_path, overlay=True)
    assert outputs.paths("b/a") == [tmp_path / "overlays/b/a.jpg", tmp_path / "b/a.png"]
    labels = outputs.write("b/a", image, q, "probabilities", None, MARK)
    assert files(tmp_path) == ["b/a.png", "overlays/b/a.jpg"]
    with Image.open(tmp_path / "overlays/b/a.jpg") as picture:
        found = np.asarray(picture) / 255
    assert np.abs(found - figures.overlay(figures.grey_of(image), labels)).mean() < 0.15  # JPEG, of noise
    (tmp_path / "overlays/b/a.jpg").unlink()
    assert outputs.mark("b/a") is None  # not all there


def test_marks_of_what_is_not_whole_or_not_ours(tmp_path):
    for save, name in ("labels", "a.png"), ("probabilities", "a.npz"):
        outputs = Outputs(tmp_path, save)
        assert outputs.mark("a") is None
        outputs.write("a", IMAGE, drawn(3), "probabilities", None, MARK)
        content = (tmp_path / name).read_bytes()
        for length in 0, 20, len(content) // 2, len(content) - 30:
            (tmp_path / name).write_bytes(content[:length])
            assert outputs.mark("a") is None, length
            with pytest.raises(FileError, match=name):
                outputs.labels("a")
    Image.fromarray(IMAGE[..., 0]).save(tmp_path / "b.png")
    assert Outputs(tmp_path).mark("b") is None
    for arrays in {"x": IMAGE}, {"probabilities": drawn(2)}, {"probabilities": drawn(2), "tritoncrf": "no JSON"}:
        np.savez(tmp_path / "b.npz", **arrays)
        assert Outputs(tmp_path, "probabilities").mark("b") is None


@pytest.mark.parametrize("save", ["labels", "probabilities"])
@pytest.mark.parametrize("failing", ["main", "overlay"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, save, failing):
    """The main output comes last: it is not there where another is missing, and an old one stays as it was."""
    outputs = Outputs(tmp_path, save, overlay=True)
    outputs.write("a", IMAGE, drawn(3), "probabilities", None, MARK)
    old = outputs.paths("a")[-1].read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    suffix = {"main": outputs.paths("a")[-1].suffix, "overlay": ".jpg"}[failing]
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", *more, **how: (
            Full(path, "x") if mode == "xb" and f"a{suffix}." in str(path) else real(path, mode, *more, **how)
        ),
    )
    with pytest.raises(OSError, match=rf"No space left on device: '.*a\{suffix}'"):
        outputs.write("a", IMAGE, drawn(3), "probabilities", None, {"settings": "new"})
    assert files(tmp_path) == sorted(path.relative_to(tmp_path).as_posix() for path in outputs.paths("a"))
    assert outputs.paths("a")[-1].read_bytes() == old and outputs.mark("a") == MARK


@pytest.mark.parametrize("save", ["labels", "probabilities"])
def test_a_limit_of_the_system(tmp_path, save):
    """The same by a real error of the system, in the middle of a file."""
    resource = pytest.importorskip("resource", reason="no limits on files on this system")
    q, image = np.repeat(drawn(3), 40, axis=1), np.repeat(IMAGE, 40, axis=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*a\.(png|npz)'"):
            Outputs(tmp_path, save).write("a", image, q, "probabilities", None, MARK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Outputs(tmp_path / "file").write("a", IMAGE, drawn(3), "probabilities", None, MARK)


@pytest.mark.parametrize("save", ["labels", "probabilities"])
def test_addresses(save):
    pytest.importorskip("upath")
    outputs = pickle.loads(pickle.dumps(Outputs(address(f"memory://outputs/{save}"), save, overlay=True)))
    labels = outputs.write("day/a", IMAGE, drawn(3), "logits", None, MARK)
    assert outputs.mark("day/a") == MARK and outputs.mark("day/b") is None
    if save == "labels":
        np.testing.assert_array_equal(outputs.labels("day/a"), labels)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"save": "probabilities", "confidence": 0.9}, "--confidence: expected --save labels, got"),
        ({"confidence": 0.0}, "--confidence: expected a probability above 0, at most 1, got 0.0"),
        ({"confidence": 95.0}, "--confidence: expected a probability above 0, at most 1, got 95.0"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, how, message):
    with pytest.raises(CommandError, match=message):
        Outputs(tmp_path, **how)

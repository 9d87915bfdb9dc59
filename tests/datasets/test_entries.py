"""Images and what belongs to them, matched by name."""

import os
import re
import unicodedata
from pathlib import Path

import pytest

from tritoncrf.commands import CommandError
from tritoncrf.datasets.entries import Entry, matched, stem
from tritoncrf.datasets.stored import Stored
from tritoncrf.files import FileError, address

LINKS = pytest.mark.skipif(os.name == "nt", reason="no symbolic links for every user on this system")


def made(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(images, scores="scores", kind="probabilities", **how):
    entries, missing = matched(images, kind, Path(scores), **how)
    return {entry.name: (str(entry.image), str(entry.scores)) for entry in entries}, missing


def refused(*images, error=CommandError, **how):
    """The message of an error."""
    with pytest.raises(error) as caught:
        found(images, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("x.jpg", "x"), ("x.nii.gz", "x"), ("frame.0001.png", "frame.0001"), ("a.b/x.npy", "a.b/x"), ("x", "x"),
        (unicodedata.normalize("NFD", "é.npz"), "é"),
    ],
)  # fmt: skip
def test_stems(name, expected):
    assert stem(name) == expected


def test_a_folder(folder):
    """In order of name; what is hidden, or is no picture or no score, is passed over, and so are further scores."""
    made(folder / "images", "b 2.JPG", "a.png", ".c.png", ".a.png.0123456789abcdef.part", "notes.txt", "below/d.png")
    made(folder / "scores", "a.npy", "a.png", "b 2.npz", "other.npy", ".b 2.npy")
    expected = {"a": ("images/a.png", "scores/a.npy"), "b 2": ("images/b 2.JPG", "scores/b 2.npz")}
    assert found(["images"]) == (expected, [])
    assert list(found(["images"])[0]) == ["a", "b 2"]


def test_subfolders(folder):
    made(folder / "images", "day1/f.png", "day2/f.png", "top.png", ".git/f.png")
    made(folder / "scores", "day1/f.npy", "day2/f.npy", "top.npy")
    expected = {name: (f"images/{name}.png", f"scores/{name}.npy") for name in ("day1/f", "day2/f", "top")}
    assert found(["images"], recursive=True) == (expected, [])
    assert found(["images"]) == ({"top": expected["top"]}, [])
    assert found(["images/**/*.png"], recursive=True) == (expected, [])
    assert "one picture for each name, got images/day1/f.png and images/day2/f.png" in refused("images/*/*.png")


def test_files_folders_and_globs_together(folder):
    made(folder, "a/1.jpg", "b/2.jpg", "b/2.json", "c/x[3].jpg", "c/no.jpg")
    made(folder / "scores", "1.npy", "2.npy", "x[3].npy")
    entries, _ = found(["a", "b/*.jp*g", f"file://{folder}/c/x[3].jpg", "a/1.jpg"])
    assert [image for image, _ in entries.values()] == ["a/1.jpg", "b/2.jpg", f"{folder}/c/x[3].jpg"]


def test_names_of_a_list(folder):
    """With or without an ending, with another, with subfolders, with spaces, and a second column."""
    made(folder / "images", "a.jpg", "b.1.png", "c d.png", "sub/e.png", "f.png")
    made(folder / "scores", "a.npy", "b.1.npy", "c d.npy", "e.npy", "f.npy")
    Path("list.txt").write_text("\ufeff./a  1\n\nb.1 -1\nc d\n/sub/e.png /labels/e.png\nf.jpg\na\n", "utf-8")
    entries, missing = found(["list.txt"], images_dir=Path("images"))
    assert {name: image for name, (image, _) in entries.items()} == {
        "a": "images/a.jpg", "b.1": "images/b.1.png", "c d": "images/c d.png", "e": "images/sub/e.png",
        "f": "images/f.png",
    }  # fmt: skip
    assert missing == []


def test_lists_that_do_not_fit(folder):
    made(folder / "images", "a.jpg", "x/b.jpg", "x/b.png")
    made(folder / "scores", "a.npy", "b.npy")
    Path("list.txt").write_text("a\ngone\nalso/gone\n")
    assert "expected --images-dir, the folder of the pictures that list.txt names" in refused("list.txt")
    where = {"images_dir": Path("images")}
    assert refused("list.txt", **where) == (
        "IMAGES: expected a picture in images for each name, got none for 2 of 3: gone, also/gone; --skip-missing skips "
        "them"
    )
    entries, missing = found(["list.txt"], skip_missing=True, **where)
    assert list(entries) == ["a"] and missing == ["gone", "also/gone"]
    assert "--images-dir: expected a folder, got nowhere" in refused("list.txt", images_dir=Path("nowhere"))
    Path("list.txt").write_text("x/b\n")
    assert "expected one file for each name, got b.jpg and b.png in images/x" in refused("list.txt", **where).replace(
        "b.png and b.jpg", "b.jpg and b.png"
    )
    Path("list.txt").write_text("x/b.png\n")
    assert list(found(["list.txt"], **where)[0]) == ["b"]
    Path("list.txt").write_bytes(b"\xff\xfe\xfa")
    assert "list.txt: expected a list of names, unreadable" in refused("list.txt", error=FileError, **where)


def test_a_list_leads_out_of_no_folder(folder):
    """The names with subfolders are those of the outputs."""
    made(folder, "images/in.png", "other/a.png", "scores/other/a.npy")
    Path("list.txt").write_text("../other/a\n")
    assert "expected pictures below --images-dir" in refused("list.txt", images_dir=Path("images"), recursive=True)


def test_composed_and_decomposed_letters(folder):
    composed, decomposed = "Grüße é", unicodedata.normalize("NFD", "Grüße é")
    assert composed != decomposed
    made(folder, f"images/{decomposed}.jpg", f"scores/{composed}.npy")
    Path("list.txt").write_text(composed, "utf-8")
    for images, how in (["images"], {}), (["list.txt"], {"images_dir": Path("images")}):
        entries, _ = found(images, **how)
        assert entries == {composed: (f"images/{decomposed}.jpg", f"scores/{composed}.npy")}


def test_two_of_one_name(folder):
    made(folder, "images/a.jpg", "images/a.png", "one/b.png", "two/b.png", "scores/b.npy", "scores/b.npz")
    assert re.search(r"one file for each name, got a.(jpg and a.png|png and a.jpg) in images", refused("images"))
    assert "one picture for each name, got one/b.png and two/b.png" in refused("one", "two")
    message = refused("one")
    assert re.search(r"--probabilities: expected one file for each name, got b.np(y and b.npz|z and b.npy)", message)


def test_images_without_scores(folder):
    made(folder, *(f"images/{n}.png" for n in range(9)), "scores/3.npy", "truth/3.png")
    assert refused("images") == (
        "--probabilities: expected a file in scores for each image, got none for 8 of 9: 0, 1, 2, ...; --skip-missing "
        "skips them"
    )
    entries, missing = found(["images"], skip_missing=True)
    assert list(entries) == ["3"] and missing == ["0", "1", "2", "4", "5", "6", "7", "8"]
    (folder / "scores/3.npy").unlink()
    assert "expected an image with scores in scores, got none" in refused("images", skip_missing=True)


def test_truth(folder):
    """An image without is an error; where what is missing is skipped, it stays, with none."""
    made(folder, "images/a.png", "images/b.png", "scores/a.npy", "scores/b.npy", "truth/a.png", "truth/a.jpg")
    truth = {"truth": Path("truth")}
    assert "--ground-truth: expected a file in truth for each image, got none for 1 of 2: b" in refused(
        "images", **truth
    )
    entries, missing = matched(["images"], "probabilities", Path("scores"), skip_missing=True, **truth)
    assert [entry.truth for entry in entries] == [Path("truth/a.png"), None] and missing == []


@pytest.mark.parametrize(
    "kind, used", [("labels", "a.png"), ("mask", "a.jpg"), ("foreground", "a.jpg"), ("logits", "a.npy")]
)
def test_which_files_hold_scores(folder, kind, used):
    made(folder, "images/a.png", f"scores/{used}", "scores/a.txt")
    assert found(["images"], kind=kind)[0] == {"a": ("images/a.png", f"scores/{used}")}


@pytest.mark.parametrize(
    "images, message",
    [
        ("nowhere", "expected a picture, a folder, a glob or a list, got nothing at nowhere"),
        ("nowhere/*.png", "got nothing at nowhere/*.png"),
        ("empty", "expected pictures in empty, got none"),
    ],
)
def test_nothing_there(folder, images, message):
    made(folder, "empty/notes.md", "images/a.png", "scores/a.npy")
    assert message in refused(images)
    assert "--probabilities: expected a folder, got gone" in refused("images", scores="gone")
    assert (
        "--probabilities: expected a folder, got scores/a.npy; for one image, --modality adds further files"
        in refused("images", scores="scores/a.npy")
    )
    assert "--ground-truth: expected a folder, got gone" in refused("images", truth=Path("gone"))


@LINKS
def test_links(folder):
    """They are followed, to folders too and in no circle; one that leads nowhere is named, unless it is skipped."""
    made(folder, "store/a.png", "store/deep/c.png", "scores/a.npy", "scores/b.npy", "scores/deep/c.npy", "images/a.png")
    (folder / "images/deep").symlink_to(folder / "store/deep")
    (folder / "store/deep/again").symlink_to(folder / "images")
    (folder / "images/b.png").symlink_to(folder / "gone.png")
    message = "images/b.png: expected a file, got a broken link"
    assert refused("images", error=FileError) == message
    assert "images/b.png: expected a picture, got a broken link" in refused("images/b.png", error=FileError)
    assert list(found(["images"], skip_missing=True)[0]) == ["a"]
    (folder / "gone.png").touch()
    assert list(found(["images"], recursive=True)[0]) == ["a", "b", "deep/c"]
    (folder / "scores/b.npy").unlink()
    (folder / "scores/b.npy").symlink_to("gone.npy")
    assert "scores/b.npy: expected a file, got a broken link" in refused("images", error=FileError)


def test_one_listing_a_folder_and_no_question_a_file(folder, monkeypatch):
    made(folder, *(f"images/{n}.png" for n in range(50)), *(f"scores/{n}.npy" for n in range(50)))
    asked, listed = [], []
    real_stat, real_scandir = os.stat, os.scandir
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(str(path)) or real_stat(path, **how))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or real_scandir(path))
    entries, _ = matched(["images"], "probabilities", Path("scores"))
    assert len(entries) == 50 and sorted(listed) == ["images", "scores"]
    assert not [path for path in asked if path.endswith((".png", ".npy"))]


def test_addresses(folder):
    pytest.importorskip("upath")
    images, scores = address("memory://entries/images"), address("memory://entries/scores")
    for path in images / "a.png", images / "day/b.png", images / ".c.png", scores / "a.npy", scores / "day/b.npy":
        path.fs.pipe_file(path.path, b"")
    expected = [
        Entry("a", images / "a.png", scores / "a.npy"),
        Entry("day/b", images / "day/b.png", scores / "day/b.npy"),
    ]
    assert matched(["memory://entries/images"], "logits", scores) == (expected[:1], [])
    assert matched(["memory://entries/images"], "logits", scores, recursive=True) == (expected, [])
    assert matched(["memory://entries/images/*.png"], "logits", scores) == (expected[:1], [])
    assert matched(["memory://entries/images/a.png"], "logits", scores) == (expected[:1], [])
    with pytest.raises(CommandError, match="memory://entries/gone"):
        matched(["memory://entries/gone"], "logits", scores)
    with pytest.raises(CommandError, match="--logits: memory://entries/gone: expected a folder that can be listed"):
        matched(["memory://entries/images"], "logits", address("memory://entries/gone"))


def write_hdf5(path, names):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = [0.0]


def write_zarr(path, names):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    for name in names:
        group.create_array(name, shape=(1,), dtype="f4")


@pytest.mark.parametrize("write, name", [(write_hdf5, "all.h5"), (write_zarr, "all.zarr")])
def test_one_file_of_all_scores(folder, write, name):
    made(folder, "images/é.png", "images/b.png", "images/day/c.png")
    decomposed = unicodedata.normalize("NFD", "é")
    write(folder / name, [decomposed, "b", "day/c", "more"])
    expected = {"b": "b", "é": decomposed}
    entries, _ = matched(["images"], "logits", Path(name))
    assert {entry.name: entry.scores for entry in entries} == {n: Stored(Path(name), k) for n, k in expected.items()}
    assert list(found(["images"], name, recursive=True)[0]) == ["b", "day/c", "é"]
    made(folder, "images/d.png")
    assert f"expected one in {name} for each image, got none for 1 of 3: d" in refused("images", scores=name)
    assert list(found(["images"], name, skip_missing=True)[0]) == ["b", "é"]


def test_a_file_that_holds_none(folder):
    pytest.importorskip("h5py")
    made(folder, "images/a.png", "scores.h5")
    message = refused("images", scores="scores.h5", error=FileError)
    assert "scores.h5: expected scores by name, unreadable" in message
    assert "gone.h5: expected scores by name, got no such file" in refused("images", scores="gone.h5", error=FileError)

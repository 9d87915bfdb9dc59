"""Files: whole or not at all, nobody else's touched, and errors that name the file."""

import errno
import os
import stat
import struct
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tritoncrf.commands import CommandError, check_output, make_folder
from tritoncrf.files import (
    FileError,
    address,
    expect_apart,
    is_local,
    read_array,
    read_image,
    read_labels,
    read_picture,
    replacing,
    temporaries,
    write,
)

ONLY_UNIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes and devices on this system")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_many_threads_write_one_file(tmp_path):
    contents = [bytes([n]) * 1000 for n in range(8)]
    ready = threading.Barrier(len(contents))

    def work(content):
        with replacing(tmp_path / "out") as file:
            file.write(content[:500])
            ready.wait()
            file.write(content[500:])

    threads = [threading.Thread(target=work, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "out").read_bytes() in contents and names(tmp_path) == ["out"]


def test_a_temporary_file_is_a_new_one(tmp_path, monkeypatch):
    """One that is there already, or a link that somebody prepared, is neither written nor followed."""
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / f".out.{'0' * 16}.part").symlink_to("victim")
    with pytest.raises(FileExistsError):
        write(tmp_path / "out", b"new")
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_an_output_follows_its_links_and_the_mask(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    before = os.umask(0o027)
    try:
        write(tmp_path / "link", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "ü" * 125 + ".png", "🦊" * 62 + ".png"])
def test_long_names(tmp_path, name):
    write(tmp_path / name, b"content")
    assert names(tmp_path) == [name]


@ONLY_UNIX
def test_a_device_and_a_pipe_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe.png").read_bytes()))
    reader.start()
    check_output("--out", tmp_path / "pipe.png", (".png",))
    write(tmp_path / "pipe.png", b"content")
    reader.join()
    assert found == [b"content"] and stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    write(tmp_path / "null", b"content")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode) and names(tmp_path) == ["null", "pipe.png"]


@ONLY_UNIX
def test_errors_of_the_system_name_the_file(tmp_path):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{full}'"):
        write(full, b"content")
    with pytest.raises(OSError, match="No space left on device: '.*/out'"), replacing(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="No such file or directory: '.*/gone/out'"):
        write(tmp_path / "gone" / "out", b"content")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write(tmp_path, b"content")
    assert names(tmp_path) == ["full"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(FileError, match=r"a.png: expected a picture, got a broken link"):
        read_image(tmp_path / "a.png")
    with pytest.raises(CommandError, match=r"--out: expected a usable file name, got .*a.png: Too many levels"):
        check_output("--out", tmp_path / "a.png", (".png",))
    with pytest.raises(OSError, match=r"Too many levels of symbolic links: '.*a.png'"):
        write(tmp_path / "a.png", b"content")
    assert names(tmp_path) == ["a.png", "b.png"]


def test_a_name_too_long(tmp_path):
    with pytest.raises((CommandError, OSError), match="File name too long"):
        check_output("--out", tmp_path / ("a" * 256 + ".png"), (".png",))


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CommandError, match=f"--out: expected a folder that can be created, got {path}: "):
            make_folder("--out", path)


def test_outputs_among_inputs(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").touch()
    (tmp_path / "same").symlink_to("photos")
    (tmp_path / "link.png").symlink_to("photos/a.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").symlink_to("../photos/a.png")
    expect_apart([tmp_path / "new" / "a.png", tmp_path / "other" / "b.png"], [photos / "a.png"])
    for path in (photos / "b.png", tmp_path / "same" / "a.png", tmp_path / "other" / "a.png", tmp_path / "link.png"):
        with pytest.raises(FileError, match=f"{path}: expected a folder of its own to write to"):
            expect_apart([path], [photos / "a.png"])
    with pytest.raises(FileError, match="expected a folder of its own"):
        expect_apart([photos / "b.png"], [tmp_path / "link.png"])


FOUR = np.dstack([np.full((3, 4), n, np.uint8) for n in (10, 20, 30, 40)])
SIXTEEN = np.full((3, 4), 500, np.uint16)


@pytest.mark.parametrize("mode", ["RGBA", "RGBX"])
def test_a_fourth_channel_of_a_tiff_is_not_dropped(tmp_path, mode):
    Image.frombytes(mode, (4, 3), FOUR.tobytes()).save(tmp_path / "four.tif")
    with pytest.raises(
        FileError, match=r"four.tif: expected 1 or 3 channels, got 4; for a single image, --bands selects them"
    ):
        read_image(tmp_path / "four.tif")


def test_opacity_is_no_channel_of_a_photo(tmp_path):
    """Of a PNG; and of a TIFF where it hides nothing. Other TIFFs are as they were."""
    opaque = np.dstack([FOUR[..., :3], np.full((3, 4), 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "opaque.tif")
    Image.fromarray(FOUR).save(tmp_path / "four.png")
    Image.fromarray(FOUR[..., :3]).save(tmp_path / "three.tif")
    Image.fromarray(FOUR[..., 0]).save(tmp_path / "grey.tif")
    for name in ("opaque.tif", "four.png", "three.tif"):
        assert np.array_equal(read_image(tmp_path / name), FOUR[..., :3])
    assert read_image(tmp_path / "grey.tif").mode == "L"
    for mode in ("1", "P", "CMYK"):
        Image.new(mode, (4, 3)).save(tmp_path / "other.tif")
        assert read_image(tmp_path / "other.tif").size == (4, 3)


def test_pictures_of_other_kinds_say_what_to_do(tmp_path):
    Image.fromarray(SIXTEEN).save(tmp_path / "deep.tif")
    with pytest.raises(
        FileError, match=r"deep.tif: expected 8 bits per channel, .*mode 'I;16.*; for a single image, --value-range"
    ):
        read_image(tmp_path / "deep.tif")
    Image.fromarray(SIXTEEN.astype(np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(
        FileError, match=r"floats.tif: expected 8 bits per channel, got a picture of mode 'F'; for a single"
    ):
        read_image(tmp_path / "floats.tif")
    (tmp_path / "t1.nii.gz").write_bytes(b"a volume")
    with pytest.raises(FileError, match=r"t1.nii.gz: expected a picture, got a volume; refine takes a single .nii"):
        read_image(tmp_path / "t1.nii.gz")
    with pytest.raises(
        FileError, match=r"t1.nii.gz: expected a file ending in .npy or .npz; a single volume may also be .nii"
    ):
        read_array(tmp_path / "t1.nii.gz")


def test_a_png_of_16_bits_a_channel_is_not_cut_to_8(tmp_path):
    """Pillow writes none of colours, and reads their upper 8 bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header, rows = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0), 3 * (b"\0" + 4 * struct.pack(">3H", 1, 500, 4000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for read in read_image, read_picture:
        with pytest.raises(
            FileError, match=r"deep.png: expected 8 bits per channel, got 16 in a picture of mode 'RGB'"
        ):
            read(tmp_path / "deep.png")
    Image.fromarray(SIXTEEN).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png"), SIXTEEN)


def test_an_npz_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("notes.txt", "no array")
    with pytest.raises(FileError, match=r"text.npz: expected one array, got a file 'notes.txt' that is not an array"):
        read_array(tmp_path / "text.npz")


def test_leftovers_are_told_from_other_files(tmp_path):
    token = "0123456789abcdef"
    own = tmp_path / f".out.{token}.part"
    own.touch()
    for name in (f".other.{token}.part", ".movie.mkv.part", ".out.part", f"x.out.{token}.part", "out"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{token}.part").mkdir()
    assert temporaries(tmp_path, "(out|folder)") == [own]
    with replacing(tmp_path / "out"):
        assert len(temporaries(tmp_path, "out")) == 2


@pytest.mark.parametrize(
    "text, path",
    [
        ("a/b.png", "a/b.png"),
        ("/a b", "/a b"),
        ("file:///a/b.png", "/a/b.png"),
        ("local:///a/ü", "/a/ü"),
        ("s3:/b", "s3:/b"),
    ],
)
def test_local_paths_need_nothing(text, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    assert address(text) == Path(path) and is_local(address(text))


def test_addresses_that_cannot_be_opened(monkeypatch):
    pytest.importorskip("upath")
    with pytest.raises(FileError, match=r"nosuch://b/x: expected a local path or an address that fsspec knows"):
        address("nosuch://b/x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match="s3://b/x: Install s3fs to access S3") as error:
        address("s3://b/x")
    assert error.value.name is None  # for the command line: no bug
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(ImportError, match=r"s3://b/x: opening it needs universal-pathlib; `pip install") as error:
        address("s3://b/x")
    assert error.value.name is None


def test_files_at_an_address():
    pytest.importorskip("upath")
    folder = address("memory://files/folder")
    assert not is_local(folder) and str(folder / "a b") == "memory://files/folder/a b"
    with replacing(folder / "a.npy") as file:
        np.save(file, np.arange(3))
    with replacing(folder / "a.png") as file:
        Image.fromarray(np.eye(3, dtype=np.uint8)).save(file, format="png")
    np.testing.assert_array_equal(read_array(folder / "a.npy"), np.arange(3))
    np.testing.assert_array_equal(read_labels(folder / "a.png"), np.eye(3))
    assert read_image(folder / "a.png").size == (3, 3)
    with pytest.raises(FileError, match=r"memory://files/folder/b.npy: expected an array, got no such file"):
        read_array(folder / "b.npy")
    write(folder / "b.npy", b"no array")
    with pytest.raises(FileError, match=r"memory://files/folder/b.npy: expected an array, unreadable"):
        read_array(folder / "b.npy")


def test_nothing_reaches_an_address_before_it_is_whole():
    pytest.importorskip("upath")
    path = address("memory://files/whole.png")
    with pytest.raises(ValueError), replacing(path) as file:
        file.write(b"half")
        raise ValueError
    assert not path.exists()
    write(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"

"""Match the images of a data set with their scores by name."""

import glob
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tritoncrf.commands import CommandError
from tritoncrf.datasets.stored import MANY, Stored, stored_names
from tritoncrf.files import FileError, address, decoded, explained, is_local
from tritoncrf.options import BINARY, SCORES

__all__ = ["PICTURES", "Entry", "matched", "stem"]

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
ARRAYS = (".npy", ".npz")
LABELS = (".png", *ARRAYS)
SHOWN = 3  # names without a match in an error message


@dataclass(frozen=True)
class Entry:
    """An image of a data set.

    Attributes:
        name: the name of its outputs: the picture's name without its suffix, with subfolders in a recursive search.
        image: the picture.
        scores: their file, or their place in a file with the scores of many images.
        truth: the true labels, if any.
    """

    name: str
    image: Path
    scores: Path | Stored
    truth: Path | None = None


def matched(
    images: Sequence[str], kind: str, scores: Path, *, images_dir: Path | None = None, truth: Path | None = None,
    recursive: bool = False, skip_missing: bool = False,
) -> tuple[list[Entry], list[str]]:  # fmt: skip
    """The images sorted by name, and the names without a match.

    Names are compared in Unicode's composed form (NFC), in any file system. Every folder is listed once, without
    further calls per file; hidden files are skipped.

    Args:
        images: pictures, folders of pictures, globs, or .txt files with one name per line; text after a space is
            ignored.
        kind: the kind of scores, as in `refine`.
        scores: a folder of files, or one .h5, .hdf5 or .zarr for all images.
        images_dir: the folder of the pictures that .txt files name, with or without suffix and subfolders.
        truth: a folder of label files.
        recursive: also search subfolders, which are then part of the names.
        skip_missing: skip images without scores. Images without true labels are kept, with None.

    Raises:
        CommandError: the arguments name nothing, two files have one name, or, unless skipped, images have no scores or
            true labels.
        FileError: a list cannot be read, or a link is broken.
    """
    search = _Search(recursive, skip_missing)
    pictures, missing = _pictures(images, images_dir, search)
    names = sorted(pictures)
    found = _partners(f"--{kind}", scores, _endings(kind), names, search)
    truths = {} if truth is None else _files("--ground-truth", truth, LABELS, names, search)
    alone = [name for name in names if name not in found]
    entries = [Entry(name, pictures[name], found[name], truths.get(name)) for name in names if name in found]
    if not entries:
        raise CommandError(f"IMAGES: expected an image with scores in {scores}, got none")
    return entries, missing + alone


def stem(name: str) -> str:
    """A file's name without its suffix, or both suffixes of "x.nii.gz", in composed form."""
    head, ending = os.path.splitext(name)
    return _composed(os.path.splitext(head)[0] if ending.lower() == ".gz" else head)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class _Search:
    """How files are searched for."""

    recursive: bool
    skip_missing: bool

    def expect_none(self, option: str, wanted: str, missing: Sequence[str], total: int) -> None:
        """Raise an error with the first names that have no match, unless they are skipped."""
        if missing and not self.skip_missing:
            few = ", ".join([*missing[:SHOWN], *["..."] * (len(missing) > SHOWN)])
            raise CommandError(
                f"{option}: expected {wanted}, got none for {len(missing)} of {total}: {few}; --skip-missing skips them"
            )


class _Folder:
    """The files of a folder by their stems, listed once."""

    def __init__(self, option: str, path: Path, endings: tuple[str, ...], search: _Search) -> None:
        """Raises a CommandError that names `option` if the folder does not exist."""
        self._option, self._path, self._skip = option, path, search.skip_missing
        self._found: dict[str, list[str]] = {}
        self._dangling: set[str] = set()  # broken links
        for name, leads in _listed(option, path, search.recursive):
            if name.lower().endswith(endings):
                self._found.setdefault(stem(name), []).append(name)
                if not leads:
                    self._dangling.add(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def at(self, name: str) -> tuple[str, Path] | None:
        """The stem and the path of the file of that stem."""
        return self._one(name, self._found.get(name, []))

    def named(self, text: str) -> tuple[str, Path] | None:
        """The same for the file with that name, or otherwise with that name and another suffix."""
        name = _composed(text)
        alike = self._found.get(stem(name), [])
        exact = [file for file in alike if _composed(file) == name]
        return self._one(stem(name), exact) or self.at(name) or self._one(stem(name), alike)

    def _one(self, name: str, found: Sequence[str]) -> tuple[str, Path] | None:
        if len(found) > 1:
            raise CommandError(
                f"{self._option}: expected one file for each name, got {' and '.join(found)} in {self._path}"
            )
        if not found or found[0] in self._dangling and self._skip:
            return None
        path = self._path / found[0]
        if found[0] in self._dangling:
            raise FileError(f"{path}: expected a file, got a broken link")
        return name, path


def _listed(option: str, folder: Path, recursive: bool) -> Iterator[tuple[str, bool]]:
    """The files of a folder that are not hidden, by relative name, with False for a broken link."""
    if not is_local(folder):
        yield from _listed_remotely(option, folder, recursive)
    elif not folder.is_dir():
        hint = "; for one image, --modality adds further files" if folder.is_file() and option[2:] in SCORES else ""
        raise CommandError(f"{option}: expected a folder, got {folder}{hint}")
    else:
        yield from _listed_here(os.fspath(folder), "", (os.path.realpath(folder),) if recursive else None)


def _listed_here(folder: str, below: str, above: tuple[str, ...] | None) -> Iterator[tuple[str, bool]]:
    """Like `_listed`, including subfolders unless `above`, the resolved parent folders, is None."""
    with os.scandir(folder) as files:
        for file in files:
            if file.name.startswith("."):
                continue
            if not file.is_dir():
                yield below + file.name, not file.is_symlink() or os.path.exists(file.path)
            elif above is not None and (real := os.path.realpath(file.path)) not in above:  # no cycle of links
                yield from _listed_here(file.path, f"{below}{file.name}/", (*above, real))


def _listed_remotely(option: str, folder: Path, recursive: bool) -> Iterator[tuple[str, bool]]:
    fs, root = cast(Any, folder).fs, cast(Any, folder).path.rstrip("/")
    try:
        with explained(folder, "a folder that can be listed"):
            found = (
                fs.find(root, detail=True) if recursive else {file["name"]: file for file in fs.ls(root, detail=True)}
            )
    except FileError as error:
        raise CommandError(f"{option}: {error}") from error
    for path, file in found.items():
        name = path.removeprefix(f"{root}/")
        if file["type"] == "file" and not _is_hidden(name):
            yield name, True


def _is_hidden(name: str) -> bool:
    """Whether a file, given by a name with subfolders, or a folder above it is hidden."""
    return any(part.startswith(".") for part in name.split("/"))


def _pictures(images: Sequence[str], images_dir: Path | None, search: _Search) -> tuple[dict[str, Path], list[str]]:
    """The pictures by name, and the names in lists without a picture."""
    found: dict[str, Path] = {}
    missing: list[str] = []

    def add(name: str, path: Path) -> None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        name = "/".join(parts) if search.recursive else parts[-1]
        if ".." in parts[:-1]:
            raise CommandError(f"IMAGES: expected pictures below --images-dir, got {path}")
        other = found.setdefault(name, path)
        if other != path:
            raise CommandError(f"IMAGES: expected one picture for each name, got {other} and {path}")

    for text in images:
        path = address(text)
        if path.is_dir():
            folder = _Folder("IMAGES", path, PICTURES, search)
            pairs = [pair for name in folder if (pair := folder.at(name))]
            if not pairs:
                raise CommandError(f"IMAGES: expected pictures in {path}, got none; {', '.join(PICTURES)}")
        elif text.lower().endswith(".txt"):
            pairs, without = _of_list(path, images_dir, search)
            missing += without
        elif os.path.lexists(path) if is_local(path) else path.is_file():
            if not path.exists():
                raise FileError(f"{path}: expected a picture, got a broken link")
            pairs = [(stem(path.name), path)]
        else:
            pairs = [(stem(name), path) for name, path in _globbed(text)]
            if not pairs:
                raise CommandError(f"IMAGES: expected a picture, a folder, a glob or a list, got nothing at {text}")
        for pair in pairs:
            add(*pair)
    search.expect_none("IMAGES", f"a picture in {images_dir} for each name", missing, len(found) + len(missing))
    return found, missing


def _of_list(path: Path, images_dir: Path | None, search: _Search) -> tuple[list[tuple[str, Path]], list[str]]:
    """The stems and paths of the pictures that a list names, one per line, and the names without a picture."""
    if images_dir is None:
        raise CommandError(f"IMAGES: expected --images-dir, the folder of the pictures that {path} names, got none")
    lines = decoded(path, "a list of names", lambda path: path.read_text(encoding="utf-8-sig")).splitlines()
    folders: dict[str, _Folder | None] = {}
    found, missing = [], []

    def find(name: str) -> tuple[str, Path] | None:
        below, slash, last = name.lstrip("/").rpartition("/")
        if below not in folders:
            there = images_dir / below if below else images_dir
            looked = there.is_dir() or not below
            folders[below] = (
                _Folder("--images-dir", there, PICTURES, _Search(False, search.skip_missing)) if looked else None
            )
        folder = folders[below]
        pair = folder.named(last) if folder else None
        return pair and (below + slash + pair[0], pair[1])

    for line in filter(None, map(str.strip, lines)):
        pair = find(line) or find(line.split()[0])
        if pair:
            found.append(pair)
        else:
            missing.append(line.split()[0])
    return found, missing


def _globbed(text: str) -> Iterator[tuple[str, Path]]:
    """The pictures of a glob, by their names relative to its last folder before the pattern."""
    magic = re.search("[*?[]", text)
    if magic is None:
        return
    root, slash, _ = text[: magic.start()].rpartition("/")
    folder, pattern = address(root + slash if root or slash else "."), text[len(root + slash) :]
    if is_local(folder):
        names = glob.glob(pattern, root_dir=folder, recursive=True)
    else:
        remote, start = cast(Any, folder).fs, cast(Any, folder).path.rstrip("/") + "/"
        names = [path.removeprefix(start) for path in remote.glob(start + pattern)]
    for name in names:
        if name.lower().endswith(PICTURES) and not _is_hidden(name):
            yield name, folder / name


def _endings(kind: str) -> tuple[str, ...]:
    """The suffixes of files with scores of a kind."""
    return (*PICTURES, *ARRAYS) if kind in BINARY else LABELS if kind == "labels" else ARRAYS


def _partners(
    option: str, scores: Path, endings: tuple[str, ...], names: Sequence[str], search: _Search
) -> Mapping[str, Path | Stored]:
    """The scores of the images by name."""
    if scores.suffix.lower() not in MANY:
        return _files(option, scores, endings, names, search)
    keys = {_composed(key): key for key in stored_names(scores, search.recursive)}
    search.expect_none(option, f"one in {scores} for each image", [n for n in names if n not in keys], len(names))
    return {name: Stored(scores, keys[name]) for name in names if name in keys}


def _files(option: str, path: Path, endings: tuple[str, ...], names: Sequence[str], search: _Search) -> dict[str, Path]:
    """The files of the images by name."""
    folder = _Folder(option, path, endings, search)
    found = {name: pair[1] for name in names if (pair := folder.at(name))}
    search.expect_none(option, f"a file in {path} for each image", [n for n in names if n not in found], len(names))
    return found

"""Match the files of a folder with the names of a list; each error names the file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tritoncrf.files import FileError, decoded
from tritoncrf.models.data.labelled import Entry

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
MASKS = (".png", ".npy", ".npz")


def expect_folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileError(f"{path}: expected a folder, got {'a file' if path.exists() else 'no such folder'}")
    return path


def files_of(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by name without suffix, in order of name."""
    found: dict[str, Path] = {}
    for path in sorted(expect_folder(folder).iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise FileError(f"{path}: expected one file of this name, got {found[path.stem].name} as well")
            found[path.stem] = path
    if not found:
        raise FileError(f"{folder}: expected files ending in {', '.join(suffixes)}, got none")
    return found


def names_in(path: Path) -> list[str]:
    """The names in a list: the first name or path of each line; names contain no spaces."""
    lines = decoded(path, "a list of image names", lambda path: path.read_text(encoding="utf-8").splitlines())
    firsts = [Path(line.split()[0]) for line in lines if line.strip()]
    names = [first.stem if first.suffix.lower() in IMAGES else first.name for first in firsts]
    if not names:
        raise FileError(f"{path}: expected one image name per line, got none")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise FileError(f"{path}: expected every name once, got {name} {times} times")
    return names


def matched(
    names: Sequence[str], images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path
) -> tuple[Entry, ...]:
    """The entries of `names`; the folders are only for error messages."""
    for name in names:
        if name not in images:
            raise FileError(f"{image_folder / name}: expected an image of this name, got none")
        if name not in masks:
            raise FileError(f"{mask_folder / name}: expected a mask for {images[name].name}, got none")
    return tuple((name, images[name], masks[name]) for name in names)


def paired(
    images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path
) -> tuple[Entry, ...]:
    """The entries of all images and masks; every mask must have an image too."""
    return matched(list({**images, **masks}), images, masks, image_folder, mask_folder)


def without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Each of `names` once, without `others`."""
    taken = set(others)
    return [name for name in dict.fromkeys(names) if name not in taken]

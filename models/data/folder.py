"""Photos and masks in two plain folders."""

import csv
from collections.abc import Sequence
from pathlib import Path

from tritoncrf.files import FileError, decoded
from tritoncrf.models.augment import VOID
from tritoncrf.models.data.labelled import Examples
from tritoncrf.models.data.listing import IMAGES, MASKS, expect_folder, files_of, matched, names_in


def folder(
    root: str | Path, split: str, classes: Sequence[str] | None = None, void: int | Sequence[int] = VOID
) -> Examples:
    """Photos and masks in two folders, matched by name.

    Args:
        root: a folder with `<split>/images` or `images`, and `labels` or `masks` beside it. The images and their order:
            `splits/<split>.txt` or `<split>.txt`, one name or path a line; without a list all of `<split>/images`, or
            all of `images` if the split is "all".
        split: its name.
        classes: names in order of index; by default from `classes.csv` in `root` (columns index and name) or
            `classes.txt` (one name a line).
        void: the value or values in the masks that mark unknown pixels.
    """
    root = expect_folder(Path(root))
    own = (root / split / "images").is_dir()
    base = root / split if own else root
    image_folder = base / "images"
    mask_folder = base / "labels" if (base / "labels").is_dir() else base / "masks"
    images, masks = files_of(image_folder, IMAGES), files_of(mask_folder, MASKS)
    listed = [path for path in (root / "splits" / f"{split}.txt", root / f"{split}.txt") if path.is_file()]
    if not (listed or own or split == "all"):
        raise FileError(f"{root}: expected {split}/images, splits/{split}.txt or {split}.txt for the split {split!r}")
    names = names_in(listed[0]) if listed else list(images)
    void = (void,) if isinstance(void, int) else tuple(void)
    classes = _read_classes(root, void) if classes is None else tuple(classes)
    return Examples(matched(names, images, masks, image_folder, mask_folder), classes, void)


def _read_classes(root: Path, void: Sequence[int]) -> tuple[str, ...]:
    """Class names in order of index; they may include a name for a void value."""
    path = root / "classes.csv"
    if not path.is_file():
        path = root / "classes.txt"
        lines = decoded(path, "class names here or in classes.csv", lambda path: path.read_text(encoding="utf-8"))
        return tuple(line.strip() for line in lines.splitlines() if line.strip())

    def read(path: Path) -> list[tuple[int, str]]:
        with open(path, newline="", encoding="utf-8") as file:
            return [(int(row["index"]), (row["name"] or "").strip()) for row in csv.DictReader(file)]

    rows = decoded(path, "columns index and name", read)
    names = {index: name for index, name in rows if index not in void}
    indices = sorted(index for index, _ in rows if index not in void)
    if indices != list(range(len(indices))):
        raise FileError(f"{path}: expected the indices from 0 to {len(indices) - 1}, got {indices}")
    if nameless := [index for index, name in names.items() if not name]:
        raise FileError(f"{path}: expected a name for every index, got none for {nameless[0]}")
    return tuple(names[index] for index in range(len(names)))

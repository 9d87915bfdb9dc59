"""Labelled photos for training and evaluation: finding them, checking them, and loading batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritoncrf.checks import expect_choice
from tritoncrf.models.data.ade20k import ADE20K_CLASSES, ade20k
from tritoncrf.models.data.camvid import CAMVID_CLASSES, camvid
from tritoncrf.models.data.cityscapes import CITYSCAPES_CLASSES, cityscapes
from tritoncrf.models.data.coco import coco
from tritoncrf.models.data.folder import folder
from tritoncrf.models.data.labelled import Contents, Entry, Examples, held_out
from tritoncrf.models.data.listing import IMAGES
from tritoncrf.models.data.loading import Batch, Batches, Images, Item, collate, loader
from tritoncrf.models.data.pascal_context import CONTEXT_CLASSES, pascal_context
from tritoncrf.models.data.voc import voc
from tritoncrf.models.data.voc_classes import VOC_CLASSES

__all__ = [
    "ADE20K_CLASSES", "CAMVID_CLASSES", "CITYSCAPES_CLASSES", "CONTEXT_CLASSES", "FORMATS", "IMAGES", "VOC_CLASSES",
    "Batch", "Batches", "Contents", "Entry", "Examples", "Images", "Item", "ade20k", "camvid", "cityscapes", "coco",
    "collate", "examples", "folder", "held_out", "loader", "pascal_context", "voc",
]  # fmt: skip

FORMATS: dict[str, Callable[..., Examples]] = {
    "camvid": camvid, "voc": voc, "folder": folder, "cityscapes": cityscapes, "ade20k": ade20k,
    "pascal_context": pascal_context, "coco": coco,
}  # fmt: skip


def examples(format: str, root: str | Path, split: str, **options: Any) -> Examples:
    """A split of a data set in one of FORMATS; `options` are the options of the format.

    Raises:
        FileError: folders, lists or files that are missing, or names that do not match.
        ImportError: a package that the format needs is not installed.
        ValueError: an unknown format, or an argument that the format does not accept.
    """
    return FORMATS[expect_choice("format", format, FORMATS)](root, split, **options)

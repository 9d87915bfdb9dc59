"""The outputs of an image, written completely or not at all, with a mark of their settings."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tritoncrf import figures
from tritoncrf.commands import CommandError
from tritoncrf.files import FileError, decoded, is_local, replacing, write
from tritoncrf.options import BINARY, UNKNOWN

__all__ = ["UNKNOWN_16", "Outputs"]

UNKNOWN_16 = 65535  # the unknown label in 16 bits
MARK = "tritoncrf"  # the PNG chunk, or the array of an .npz, that contains the mark
QUALITY = 90  # of a JPEG


@dataclass(frozen=True)
class Outputs:
    """The outputs of a data set's images.

    Attributes:
        folder: the folder for NAME.png, or NAME.npz for probabilities, and for the overlays, overlays/NAME.jpg.
        save: "labels" for a .png with the palette of PASCAL VOC, with 16-bit grey levels from 256 classes on, or with 0
            and 255 for one object; or "probabilities" for an .npz with an array of this name, float16 [C, H, W], or [H,
            W] for one object, and with the labels of the channels as "classes" unless they are 0, 1, 2 and so on.
        confidence: pixels whose best class is less probable get the unknown label, 255, or 65535 in 16 bits. One object
            then has the label 1.
        overlay: also draw the labels over the picture.
        num_classes: number of classes of the data set, which determines the bits of a label if an image has only some
            of them.

    Raises:
        CommandError: arguments are not compatible.
    """

    folder: Path
    save: Literal["labels", "probabilities"] = "labels"
    confidence: float | None = None
    overlay: bool = False
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.confidence is None:
            return
        if self.save != "labels":
            raise CommandError("--confidence: expected --save labels, got --save probabilities")
        if not 0 < self.confidence <= 1:
            raise CommandError(f"--confidence: expected a probability above 0, at most 1, got {self.confidence}")

    def paths(self, name: str) -> list[Path]:
        """The files of an image; the one with the mark is last."""
        main = self.folder / f"{name}{'.png' if self.save == 'labels' else '.npz'}"
        return [self.folder / "overlays" / f"{name}.jpg", main] if self.overlay else [main]

    def write(
        self, name: str, image: np.ndarray, refined: np.ndarray, kind: str, classes: np.ndarray | None,
        mark: Mapping[str, Any],
    ) -> np.ndarray:  # fmt: skip
        """Write the outputs of an image.

        Args:
            name: name of the image.
            image: [H, W, 3] or [H, W], uint8.
            refined: probabilities [C, H, W], or [H, W] for one object.
            kind: the kind of scores, as in `refine`.
            classes: the labels of the channels, if they are not 0, 1, 2 and so on.
            mark: what `mark` returns; values for JSON.

        Returns:
            Integer labels [H, W], -1 where unknown.
        """
        labels = self._best(refined, kind, classes)
        paths = self.paths(name)
        for path in filter(is_local, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.overlay:
            write(paths[0], _drawn(image, labels))
        if self.save == "probabilities":
            arrays = {} if classes is None else {"classes": classes}
            with replacing(paths[-1]) as file:
                np.savez_compressed(
                    file, allow_pickle=False, probabilities=refined.astype(np.float16), **arrays,
                    **{MARK: np.array(json.dumps(mark))},
                )  # fmt: skip
        else:
            count = 2 if kind in BINARY else len(refined) if classes is None else int(classes.max()) + 1
            text = PngInfo()
            text.add_text(MARK, json.dumps(mark))
            picture = self._picture(labels, count, kind)
            with replacing(paths[-1]) as file:
                picture.save(file, format="png", pnginfo=text)
        return labels

    def _best(self, refined: np.ndarray, kind: str, classes: np.ndarray | None) -> np.ndarray:
        """The labels of probabilities."""
        labels = (refined > 0.5).astype(np.int64) if kind in BINARY else refined.argmax(0)
        if classes is not None:
            labels = classes[labels]
        if self.confidence is not None:
            best = np.maximum(refined, 1 - refined) if kind in BINARY else refined.max(0)
            labels[best < self.confidence] = -1
        return labels

    def _picture(self, labels: np.ndarray, count: int, kind: str) -> Image.Image:
        """A picture of labels with this many classes."""
        if kind in BINARY and self.confidence is None:
            return Image.fromarray((labels * 255).astype(np.uint8))
        count = max(count, self.num_classes or 0)
        if count > UNKNOWN_16:
            raise ValueError(
                f"--save: expected at most {UNKNOWN_16} classes in a .png, got {count}; use --save probabilities"
            )
        wide = count > UNKNOWN
        known = np.where(labels < 0, UNKNOWN_16 if wide else UNKNOWN, labels)
        picture = Image.fromarray(known.astype(np.uint16 if wide else np.uint8))
        if not wide:
            picture.putpalette(figures.voc_palette().tobytes())
        return picture

    def labels(self, name: str) -> np.ndarray:
        """The labels in the outputs of an image, as `write` returns them.

        Raises:
            FileError: the outputs are missing or incomplete.
        """
        return self._read(name)[0]

    def mark(self, name: str) -> dict[str, Any] | None:
        """The mark of an image's outputs; None if any is missing or incomplete."""
        try:
            if not all(path.exists() for path in self.paths(name)):
                return None
            return self._read(name)[1]
        except FileError:
            return None

    def _read(self, name: str) -> tuple[np.ndarray, dict[str, Any] | None]:
        """The labels of the main output, and its mark."""

        def of_png(path: Path) -> tuple[np.ndarray, dict[str, Any] | None]:
            with path.open("rb") as file, Image.open(file) as picture:
                found, mode, text = np.asarray(picture), picture.mode, picture.info.get(MARK)
            if mode == "L":
                labels = (found > 127).astype(np.int64)
            else:
                labels = np.where(found == (UNKNOWN if mode == "P" else UNKNOWN_16), -1, found.astype(np.int64))
            return labels, _parsed(text)

        def of_npz(path: Path) -> tuple[np.ndarray, dict[str, Any] | None]:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                refined = arrays["probabilities"]
                labels = (refined > 0.5).astype(np.int64) if refined.ndim == 2 else refined.argmax(0)
                mark = _parsed(arrays[MARK].item() if MARK in arrays else None)
                return arrays["classes"][labels] if "classes" in arrays else labels, mark

        return decoded(self.paths(name)[-1], "an output of refine", of_npz if self.save == "probabilities" else of_png)


def _drawn(image: np.ndarray, labels: np.ndarray) -> bytes:
    """A JPEG of the labels over the picture, in memory, since Pillow does not report a full disk for a file."""
    picture, drawn = figures.overlay(figures.grey_of(image), labels), io.BytesIO()
    Image.fromarray((255 * picture).round().astype(np.uint8)).save(drawn, format="jpeg", quality=QUALITY)
    return drawn.getvalue()


def _parsed(text: object) -> dict[str, Any] | None:
    """The mark, or None if the file has no mark of this library."""
    try:
        mark = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return mark if isinstance(mark, dict) else None

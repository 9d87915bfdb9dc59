"""Pictures and arrays on disk: read with one clear error naming the file, written whole or not at all."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from tritoncrf.figures import palette

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

Content = TypeVar("Content")

__all__ = [
    "FileError", "decoded", "read_array", "read_image", "read_labels", "read_mask", "replacing", "save_figure",
    "save_small_figure", "write", "write_labels", "write_mask",
]  # fmt: skip


class FileError(ValueError):
    """A file that is not what was expected; the message begins with its name."""


def decoded(path: Path, what: str, read: Callable[[Path], Content]) -> Content:
    """What `read(path)` gives; one error, naming the file, for all that decoders raise."""
    if not path.is_file():
        raise FileError(f"{path}: expected {what}, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        return read(path)
    except FileError:
        raise
    except Exception as error:  # broken files make decoders raise nearly anything, SyntaxError included
        raise FileError(f"{path}: expected {what}, unreadable: {error}") from error


def read_image(path: Path, upright: bool = False) -> "PIL.Image.Image":
    """A PIL image, RGB or grey ("L"); its pixels as they are stored, or turned as a viewer shows them."""
    from PIL import Image, ImageOps

    def read(path: Path) -> Image.Image:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise FileError(f"{path}: expected 8 bits a channel, got a picture of mode {image.mode!r}")
            turned = ImageOps.exif_transpose(image) if upright else image
            return turned.convert("L" if turned.mode in ("1", "L") else "RGB")

    return decoded(path, "a picture", read)


def read_labels(path: Path) -> np.ndarray:
    """[H, W] integers; the indices of a palette picture, not its colours."""
    if path.suffix.lower() != ".png":
        return read_array(path, extensions=(".png", ".npy", ".npz"))
    from PIL import Image

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                raise FileError(f"{path}: expected label indices, one channel or a palette, got {image.mode}")
            return np.array(image)

    return decoded(path, "a .png of labels", read)


def read_mask(path: Path, upright: bool = False) -> np.ndarray:
    """[H, W] or, of a picture with several channels, [H, W, channels]; the indices of a palette picture."""
    if path.suffix.lower() in (".npy", ".npz"):
        return read_array(path)
    from PIL import Image, ImageOps

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            image.load()
            turned = ImageOps.exif_transpose(image) if upright else image
            return np.array(turned.convert("L") if turned.mode == "LA" else turned)

    return decoded(path, "a picture, .npy or .npz of a mask", read)


def read_array(path: Path, extensions: Sequence[str] = (".npy", ".npz")) -> np.ndarray:
    """The one array of a file, in this machine's byte order."""
    if path.suffix.lower() not in extensions:
        raise FileError(f"{path}: expected a file ending in {' or '.join(extensions)}")

    def read(path: Path) -> np.ndarray:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if len(loaded.files) != 1:
                raise FileError(f"{path}: expected one array, got {len(loaded.files)}: {', '.join(loaded.files)}")
            return loaded[loaded.files[0]]

    array = decoded(path, "an array", read)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise FileError(f"{path}: expected numbers of at most 64 bits, got dtype {array.dtype}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def write_labels(file: IO[bytes], labels: np.ndarray) -> None:
    """[H, W] labels from 0 to 255 into an open file, as a PNG with a palette."""
    from PIL import Image

    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette().tobytes())
    picture.save(file, format="png")


def write_mask(file: IO[bytes], mask: np.ndarray) -> None:
    """[H, W] of 0 and 1 into an open file, as a PNG of 0 and 255."""
    from PIL import Image

    Image.fromarray((mask * 255).astype(np.uint8), mode="L").save(file, format="png")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and leaves nothing behind when not."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes) -> None:
    """`content` as a file, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def save_figure(path: Path, figure: "Figure") -> None:
    """A figure of matplotlib, in the format that the name of `path` says."""
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def save_small_figure(path: Path, figure: "Figure", dpi: float, colors: int) -> None:
    """A figure of matplotlib as a PNG with a palette of so many colours, which makes the file small."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    # This way to choose the colours keeps a legend's few pixels in theirs.
    how, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    with Image.open(drawn) as picture, replacing(path) as file:
        picture.convert("RGB").quantize(colors, method=how, kmeans=1, dither=plain).save(
            file, format="png", optimize=True
        )

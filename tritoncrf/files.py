"""Pictures and arrays on disk: errors name the file, and files are written completely or not at all.

A path is a `pathlib.Path`, or what `address` makes of "s3://bucket/name" and its like.
"""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import PIL.Image
    import PIL.TiffImagePlugin
    from matplotlib.figure import Figure

Content = TypeVar("Content")
#: The array of an .npy, or the arrays of an .npz by name.
Arrays: TypeAlias = np.ndarray | Mapping[str, np.ndarray]

__all__ = [
    "Arrays", "FileError", "address", "decoded", "errors_name", "expect_apart", "explained", "is_local", "one_array",
    "placed", "read_array", "read_arrays", "read_image", "read_labels", "read_picture", "replacing", "save_figure",
    "save_small_figure", "temporaries", "write", "write_labels", "write_mask",
]  # fmt: skip

SAMPLES_PER_PIXEL = 277  # a tag of TIFF
VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm", ".mgz")
SHOWN = 50  # characters of a file's name in its temporary one: at most 200 bytes of the 255 that a name may have


class FileError(ValueError):
    """A file that is not what was expected; the message begins with its name."""


def address(text: str) -> Path:
    """A local path, also for "file:///x"; for any other "scheme://..." a `upath.UPath`, which is used like a path.

    Raises:
        ImportError: an address, and no universal-pathlib, or not what its scheme needs beside it.
        ValueError: a scheme that fsspec does not know.
    """
    scheme = re.match("([a-z][a-z0-9+.-]+)://", text)
    if scheme is None:
        return Path(text)
    if scheme[1] in ("file", "local"):
        return Path(text[scheme.end() :])
    try:
        from upath import UPath
    except ImportError as error:
        raise ImportError(f"{text}: universal-pathlib opens addresses; `pip install 'tritoncrf[data]'`") from error
    try:
        path = UPath(text)
        # Made now, of a package that may be missing.
        path.fs  # noqa: B018
    except ImportError as error:
        raise ImportError(f"{text}: {_reason(error)}") from error
    except ValueError as error:
        raise FileError(f"{text}: expected a local path or an address that fsspec knows, {_reason(error)}") from error
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Whether a path is local, not a `upath.UPath`."""
    return isinstance(path, Path)


def decoded(path: Path, what: str, read: Callable[[Path], Content]) -> Content:
    """The result of `read(path)`; all errors of decoders become one error that names the file."""
    if is_local(path) and not path.is_file():
        kind = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no such file"
        raise FileError(f"{path}: expected {what}, got {kind}")
    with explained(path, what):
        return read(path)


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """All errors of decoders become one error that names the file."""
    try:
        yield
    except (FileError, ImportError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileError(f"{path}: expected {what}, got no such file") from error
    except Exception as error:  # broken files make decoders raise nearly anything, SyntaxError included
        raise FileError(f"{path}: expected {what}, unreadable: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What a decoder says, in one line of sensible length."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


@contextlib.contextmanager
def _picture(path: Path) -> "Iterator[PIL.Image.Image]":
    """A picture, its pixels read."""
    from PIL import Image, UnidentifiedImageError

    with path.open("rb") as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise ValueError("no format that Pillow reads") from None  # its own names the open file
        with image:
            deep = any(str(tile[3]).endswith(";16B") for tile in image.tile)  # as they are stored
            if image.format == "PNG" and deep and not image.mode.startswith("I"):
                raise FileError(
                    f"{path}: expected 8 bits a channel, got 16 in a picture of mode {image.mode!r}, of which Pillow "
                    "keeps 8; of a TIFF by itself --value-range LOW,HIGH says which values are black and white"
                )
            image.load()
            yield image


def read_image(path: Path, upright: bool = False) -> "PIL.Image.Image":
    """A PIL image, RGB or grey ("L"); its pixels as they are stored, or turned as a viewer shows them."""
    from PIL import Image, ImageOps
    from PIL.TiffImagePlugin import TiffImageFile

    def read(path: Path) -> Image.Image:
        if path.name.lower().endswith(VOLUMES):
            raise FileError(f"{path}: expected a picture, got a volume; of such files refine takes one .nii or .nii.gz")
        with _picture(path) as image:
            if image.mode.startswith(("I", "F")):
                hint = "; of one by itself --value-range LOW,HIGH says which values are black and white"
                raise FileError(f"{path}: expected 8 bits a channel, got a picture of mode {image.mode!r}{hint}")
            if isinstance(image, TiffImageFile) and (channels := _further_channels(image)):
                raise FileError(f"{path}: expected 1 or 3 channels, got {channels}; of one --bands says which")
            turned = ImageOps.exif_transpose(image) if upright else image
            return turned.convert("L" if turned.mode in ("1", "L", "LA") else "RGB")

    return decoded(path, "a picture", read)


def _further_channels(image: "PIL.TiffImagePlugin.TiffImageFile") -> int:
    """How many channels a TIFF has where some are neither grey nor colours: Pillow passes over them, or takes near
    infrared for opacity, and only of opacity that hides nothing it is right."""
    bands, channels = image.getbands(), int(image.tag_v2.get(SAMPLES_PER_PIXEL, 1))
    opaque = bands[-1] != "A" or image.getchannel("A").getextrema() == (255, 255)
    return 0 if opaque and channels == len(bands) else channels


def read_labels(path: Path, upright: bool = False) -> np.ndarray:
    """[H, W] integers; the indices of a palette picture, not its colours."""
    if path.suffix.lower() != ".png":
        return read_array(path, extensions=(".png", ".npy", ".npz"))
    from PIL import ImageOps

    def read(path: Path) -> np.ndarray:
        with _picture(path) as image:
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                raise FileError(f"{path}: expected label indices, one channel or a palette, got {image.mode}")
            return np.array(ImageOps.exif_transpose(image) if upright else image)

    return decoded(path, "a .png of labels", read)


def read_picture(path: Path) -> "PIL.Image.Image":
    """A PIL image of any mode, as it is stored."""

    def read(path: Path) -> "PIL.Image.Image":
        with _picture(path) as image:
            return image

    return decoded(path, "a picture", read)


def read_array(path: Path, extensions: Sequence[str] = (".npy", ".npz")) -> np.ndarray:
    """The only array of a file, in this machine's byte order."""
    if path.suffix.lower() not in extensions:
        hint = "; of a volume .nii and .nii.gz too, of one at a time" if path.name.lower().endswith(VOLUMES) else ""
        raise FileError(f"{path}: expected a file ending in {' or '.join(extensions)}{hint}")
    return read_arrays(path, lambda arrays: one_array(path, arrays))


def read_arrays(path: Path, choose: Callable[[Arrays], Content]) -> Content:
    """What `choose` selects from an .npy or .npz. Only that is read, and no pickled objects."""

    def read(path: Path) -> Content:
        with path.open("rb") as file:
            return choose(np.load(file, allow_pickle=False))

    return decoded(path, "an array", read)


def one_array(source: object, arrays: Arrays, key: str | None = None) -> np.ndarray:
    """The only array of a source, or the one of that name, in this machine's byte order."""
    if isinstance(arrays, np.ndarray):
        if key is not None:
            raise FileError(f"{source}: expected an array named {key!r}, got one without a name")
        array = arrays
    else:
        if key is None and len(arrays) != 1 or key is not None and key not in arrays:
            wanted = "one array" if key is None else f"an array named {key!r}"
            raise FileError(f"{source}: expected {wanted}, got {len(arrays)}: {', '.join(map(str, arrays))}")
        name = next(iter(arrays)) if key is None else key
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise FileError(f"{source}: expected one array, got a file {name!r} that is none")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise FileError(f"{source}: expected numbers of at most 64 bits, got dtype {array.dtype}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def write_labels(file: IO[bytes], labels: np.ndarray) -> None:
    """[H, W] labels from 0 to 255 into an open file, as a PNG with a palette."""
    from PIL import Image

    from tritoncrf.figures import palette

    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette().tobytes())
    picture.save(file, format="png")


def write_mask(file: IO[bytes], mask: np.ndarray) -> None:
    """[H, W] of 0 and 1 into an open file, as a PNG of 0 and 255."""
    from PIL import Image

    Image.fromarray((mask * 255).astype(np.uint8), mode="L").save(file, format="png")


def expect_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """An error if an output would be in a folder of inputs, where it could replace one of them."""
    folders = {folder for path in inputs for folder in (path.parent.resolve(), _target(path).parent)}
    for path in outputs:
        if _target(path).parent in folders:
            raise FileError(f"{path}: expected a folder of its own to write to, got one that is read from")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` when the block ends without an error, and is otherwise removed.

    What is no file, such as a device or a pipe, is written at the end of the block; an address too, in one request.
    """
    if not is_local(path):
        buffer = io.BytesIO()
        yield buffer
        remote = cast(Any, path)
        remote.fs.pipe_file(remote.path, buffer.getvalue())
        return
    if path.exists() and not path.is_file():
        buffer = io.BytesIO()
        yield buffer
        with errors_name(path), open(path, "wb") as device:
            device.write(buffer.getbuffer())
        return
    with placed(path) as temporary, open(temporary, "xb") as file:  # a new file: no symbolic link is followed
        yield file


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """The name of a new file that replaces `path` when the block ends without an error, and is otherwise removed."""
    path = _target(path)
    temporary = path.with_name(f".{path.name[:SHOWN]}.{secrets.token_hex(8)}.part")
    try:
        with errors_name(path, temporary):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def errors_name(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make system errors that name no file, or the temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def temporaries(folder: Path, names: str) -> list[Path]:
    """What `replacing` left in a folder where its process was killed, of files of these names, a regular expression."""
    pattern = re.compile(rf"\.{names}\.[0-9a-f]{{16}}\.part")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()]


def _target(path: Path) -> Path:
    """Where a path leads through all symbolic links; an OSError where they lead in a circle."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)
    return Path(os.path.realpath(path))


def write(path: Path, content: bytes) -> None:
    """Write `content` to a file, completely or not at all."""
    with replacing(path) as file:
        file.write(content)


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a matplotlib figure, in the format of the extension of `path`."""
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def save_small_figure(path: Path, figure: "Figure", dpi: float, colors: int) -> None:
    """Write a matplotlib figure as a PNG with a palette, which keeps the file small."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    # This way to choose the colours keeps a legend's few pixels in theirs.
    how, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    with Image.open(drawn) as picture, replacing(path) as file:
        picture.convert("RGB").quantize(colors, method=how, kmeans=1, dither=plain).save(
            file, format="png", optimize=True
        )

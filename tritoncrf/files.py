"""Pictures and arrays on disk: errors name the file, and files are written completely or not at all.

A path is a `pathlib.Path`, or the result of `address` for URLs such as "s3://bucket/name".
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
SHOWN = 50  # characters of a file's name in the name of its temporary file: at most 200 bytes of the 255 in a name


class FileError(ValueError):
    """A file is not what was expected; the message begins with its name."""


def address(text: str) -> Path:
    """A local path, also for "file:///x"; for any other "scheme://..." a `upath.UPath`, which is used like a path.

    Raises:
        ImportError: universal-pathlib, or another package that the scheme needs, is not installed.
        ValueError: fsspec does not know the scheme.
    """
    scheme = re.match("([a-z][a-z0-9+.-]+)://", text)
    if scheme is None:
        return Path(text)
    if scheme[1] in ("file", "local"):
        return Path(text[scheme.end() :])
    try:
        from upath import UPath
    except ImportError as error:
        raise ImportError(f"{text}: opening it needs universal-pathlib; `pip install 'tritoncrf[data]'`") from error
    try:
        path = UPath(text)
        # Create the file system now, since its package may be missing.
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
    """The result of `read(path)`; any error of a decoder becomes one error that names the file."""
    if is_local(path) and not path.is_file():
        kind = "a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "no such file"
        raise FileError(f"{path}: expected {what}, got {kind}")
    with explained(path, what):
        return read(path)


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn any error of a decoder into one error that names the file."""
    try:
        yield
    except (FileError, ImportError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileError(f"{path}: expected {what}, got no such file") from error
    except Exception as error:  # broken files make decoders raise nearly anything, even SyntaxError
        raise FileError(f"{path}: expected {what}, unreadable: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """A decoder's message, in one line of limited length."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."


@contextlib.contextmanager
def _picture(path: Path) -> "Iterator[PIL.Image.Image]":
    """A picture with its pixels loaded."""
    from PIL import Image, UnidentifiedImageError

    with path.open("rb") as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise ValueError("no format that Pillow reads") from None  # Pillow's message has the open file object
        with image:
            deep = any(str(tile[3]).endswith(";16B") for tile in image.tile)  # as they are stored
            if image.format == "PNG" and deep and not image.mode.startswith("I"):
                raise FileError(
                    f"{path}: expected 8 bits per channel, got 16 in a picture of mode {image.mode!r}, of which Pillow "
                    "keeps 8; for a single TIFF, --value-range LOW,HIGH sets the values for black and white"
                )
            image.load()
            yield image


def read_image(path: Path, upright: bool = False) -> "PIL.Image.Image":
    """A PIL image, RGB or grey ("L"), either as stored or rotated by its EXIF orientation."""
    from PIL import Image, ImageOps
    from PIL.TiffImagePlugin import TiffImageFile

    def read(path: Path) -> Image.Image:
        if path.name.lower().endswith(VOLUMES):
            raise FileError(f"{path}: expected a picture, got a volume; refine takes a single .nii or .nii.gz")
        with _picture(path) as image:
            if image.mode.startswith(("I", "F")):
                hint = "; for a single image, --value-range LOW,HIGH sets the values for black and white"
                raise FileError(f"{path}: expected 8 bits per channel, got a picture of mode {image.mode!r}{hint}")
            if isinstance(image, TiffImageFile) and (channels := _further_channels(image)):
                raise FileError(
                    f"{path}: expected 1 or 3 channels, got {channels}; for a single image, --bands selects them"
                )
            turned = ImageOps.exif_transpose(image) if upright else image
            return turned.convert("L" if turned.mode in ("1", "L", "LA") else "RGB")

    return decoded(path, "a picture", read)


def _further_channels(image: "PIL.TiffImagePlugin.TiffImageFile") -> int:
    """The number of channels of a TIFF if some are neither grey nor colours. Pillow ignores these, or treats near
    infrared as opacity, which is right only for an opacity that is 255 everywhere."""
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
    """A PIL image of any mode, as stored."""

    def read(path: Path) -> "PIL.Image.Image":
        with _picture(path) as image:
            return image

    return decoded(path, "a picture", read)


def read_array(path: Path, extensions: Sequence[str] = (".npy", ".npz")) -> np.ndarray:
    """The only array of a file, in this machine's byte order."""
    if path.suffix.lower() not in extensions:
        hint = "; a single volume may also be .nii or .nii.gz" if path.name.lower().endswith(VOLUMES) else ""
        raise FileError(f"{path}: expected a file ending in {' or '.join(extensions)}{hint}")
    return read_arrays(path, lambda arrays: one_array(path, arrays))


def read_arrays(path: Path, choose: Callable[[Arrays], Content]) -> Content:
    """What `choose` selects from an .npy or .npz. Nothing else is read, and no pickled objects."""

    def read(path: Path) -> Content:
        with path.open("rb") as file:
            return choose(np.load(file, allow_pickle=False))

    return decoded(path, "an array", read)


def one_array(source: object, arrays: Arrays, key: str | None = None) -> np.ndarray:
    """The only array of a source, or the one with the given name, in this machine's byte order."""
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
            raise FileError(f"{source}: expected one array, got a file {name!r} that is not an array")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise FileError(f"{source}: expected numbers of at most 64 bits, got dtype {array.dtype}")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def write_labels(file: IO[bytes], labels: np.ndarray) -> None:
    """Write labels [H, W] from 0 to 255 into an open file, as a PNG with a palette."""
    from PIL import Image

    from tritoncrf.figures import palette

    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette().tobytes())
    picture.save(file, format="png")


def write_mask(file: IO[bytes], mask: np.ndarray) -> None:
    """Write a mask [H, W] of 0 and 1 into an open file, as a PNG of 0 and 255."""
    from PIL import Image

    Image.fromarray((mask * 255).astype(np.uint8), mode="L").save(file, format="png")


def expect_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise an error if an output would be in a folder of inputs, where it could replace one of them."""
    folders = {folder for path in inputs for folder in (path.parent.resolve(), _target(path).parent)}
    for path in outputs:
        if _target(path).parent in folders:
            raise FileError(f"{path}: expected a folder of its own to write to, got one that is read from")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` if the block ends without an error, and is otherwise removed.

    A path that is not a regular file, such as a device or a pipe, is written at the end of the block; so is a remote
    path, in one request.
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
    """The name of a new file that replaces `path` if the block ends without an error, and is otherwise removed."""
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
    """Make system errors without a file name, or with the temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def temporaries(folder: Path, names: str) -> list[Path]:
    """The temporary files that killed processes left in a folder, for file names that match a regular expression."""
    pattern = re.compile(rf"\.{names}\.[0-9a-f]{{16}}\.part")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()]


def _target(path: Path) -> Path:
    """The target of a path through all symbolic links; an OSError if they form a cycle."""
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
    # This method keeps the colours of a legend, which has few pixels.
    how, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    with Image.open(drawn) as picture, replacing(path) as file:
        picture.convert("RGB").quantize(colors, method=how, kmeans=1, dither=plain).save(
            file, format="png", optimize=True
        )

"""What an output folder says of itself: the settings of its images, and how it went with each of them.

OUT/settings.json           all that decides the bits, written before any image
OUT/manifest.jsonl          a line an image, appended once its outputs are whole
OUT/manifest-2-of-8.jsonl   the same of a shard; on reading, all manifests are one
OUT/records/NAME.json       in place of lines on an object store, which cannot append; uploads need no lock
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from tritoncrf.files import FileError, is_local, write
from tritoncrf.locks import locked

__all__ = ["Manifest", "Record", "digest", "in_shard", "opened"]

SHOWN = 40  # characters of a setting, in an error
UPLOADS = 16  # records at a time


@dataclass(frozen=True)
class Record:
    """How it went with an image.

    Attributes:
        name: as of its `Entry`.
        settings: their digest.
        seconds: to read, refine and write it; None where its outputs were found without a record.
        changed: the share of its pixels whose label is another one now; None where it failed.
        error: what went wrong, in one line, or None.
    """

    name: str
    settings: str
    seconds: float | None
    changed: float | None
    error: str | None = None

    def line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None of what a machine that lost its power, or a full disk, has left of one."""
    try:
        record = Record(**json.loads(line))
    except (TypeError, ValueError):
        return None
    return record if isinstance(record.name, str) else None


def _whole(lines: bytes) -> bytes:
    """Without the last one, if it is not finished."""
    return lines[: lines.rfind(b"\n") + 1]


class Manifest(Protocol):
    """The records of a folder, of which there is one an image."""

    records: dict[str, Record]

    def add(self, record: Record) -> None:
        """Keeps the record of an image whose outputs are whole, or that has failed."""


class _Lines:
    """The records in a folder's files of lines, one of which grows."""

    def __init__(self, file: IO[bytes], others: Sequence[Path]):
        self._file = file
        self.records: dict[str, Record] = {}
        content = file.read()
        for lines in (*(other.read_bytes() for other in others), content):
            for line in _whole(lines).splitlines():
                if (record := _parsed(line)) is not None:
                    self._take(record)
        file.truncate(len(_whole(content)))
        file.seek(0, os.SEEK_END)

    def _take(self, record: Record) -> None:
        """An image that failed in one shard may have been refined in another."""
        known = self.records.get(record.name)
        if known is None or known.error is not None or record.error is None:
            self.records[record.name] = record

    def add(self, record: Record) -> None:
        line = record.line()
        try:
            whole = self._file.write(line) == len(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._file.name)) from error
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file.name))
        self._take(record)


class _Objects:
    """A small file a record, uploaded beside the work."""

    def __init__(self, folder: Any):
        self._folder = folder
        self.records: dict[str, Record] = {}
        if folder.exists():
            for content in folder.fs.cat(folder.fs.find(folder.path)).values():
                if (record := _parsed(content)) is not None:
                    self.records[record.name] = record
        self._pool = ThreadPoolExecutor(UPLOADS)
        self._uploads: list[Future[None]] = []

    def add(self, record: Record) -> None:
        self.records[record.name] = record
        self._uploads.append(self._pool.submit(write, self._folder / f"{record.name}.json", record.line()))
        if len(self._uploads) >= 4 * UPLOADS:
            self._uploads.pop(0).result()

    def close(self) -> None:
        self._pool.shutdown()
        for upload in self._uploads:
            upload.result()


@contextlib.contextmanager
def opened(folder: Path, settings: Mapping[str, Any], shard: tuple[int, int] | None = None) -> Iterator[Manifest]:
    """The manifest of a folder for one run, which nobody else has meanwhile; other shards have theirs.

    Args:
        folder: that exists, unless it is an address.
        settings: all that decides the bits, by the names that a user knows; values as of JSON.
        shard: which of how many, from 1.

    Raises:
        FileError: another run has it; the images that are there have other settings.
    """
    if not is_local(folder):
        _agree(folder, settings)
        with contextlib.closing(_Objects(folder / "records")) as objects:
            yield objects
        return
    with locked(folder, shared=shard is not None):
        if shard is not None:
            _agree(folder, settings)
        path = folder / ("manifest.jsonl" if shard is None else f"manifest-{shard[0]}-of-{shard[1]}.jsonl")
        path.touch()
        with locked(path), path.open("r+b", buffering=0) as file:
            lines = _Lines(file, [other for other in sorted(folder.glob("manifest*.jsonl")) if other != path])
            if shard is None:
                _agree(folder, settings, used=any(record.error is None for record in lines.records.values()))
            yield lines


def _agree(folder: Path, settings: Mapping[str, Any], used: bool = True) -> None:
    """Writes the settings of a folder; an error where it has others with which images were refined."""
    path = folder / "settings.json"
    there = None
    if path.exists():
        with contextlib.suppress(ValueError):
            there = json.loads(path.read_bytes())
        if not isinstance(there, dict):
            raise FileError(f"{path}: expected settings as JSON, got something else")
        differing = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        if differing and used:
            words = "; ".join(f"{n}: {_shown(there.get(n))} there, {_shown(settings.get(n))} now" for n in differing)
            raise FileError(f"{folder}: expected a folder without images of other settings, got {words}")
    if there != settings:
        write(path, json.dumps(settings, indent=2).encode() + b"\n")


def _shown(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def digest(settings: Mapping[str, Any]) -> str:
    """What tells settings from others, in 16 characters."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether an image is of this shard, from 1, of so many: by its name alone, so that all machines agree."""
    number, count = shard
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % count == number - 1

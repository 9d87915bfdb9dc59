"""The records in an output folder: the settings of its images, and the result for each of them.

OUT/settings.json           everything that determines the outputs, written before any image
OUT/manifest.jsonl          one line per image, appended when its outputs are complete
OUT/manifest-2-of-8.jsonl   the same for a shard; all manifests are read together
OUT/records/NAME.json       instead of lines on an object store, which cannot append; uploads need no lock
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

SHOWN = 40  # characters of a setting in an error message
UPLOADS = 16  # simultaneous uploads of records


@dataclass(frozen=True)
class Record:
    """The result for an image.

    Attributes:
        name: the name of its `Entry`.
        settings: the digest of the settings.
        seconds: time to read, refine and write it; None if its outputs were found without a record.
        changed: the share of its pixels whose label changed; None if it failed.
        error: the error in one line, or None.
    """

    name: str
    settings: str
    seconds: float | None
    changed: float | None
    error: str | None = None

    def line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None if a power failure or a full disk left it incomplete."""
    try:
        record = Record(**json.loads(line))
    except (TypeError, ValueError):
        return None
    return record if isinstance(record.name, str) else None


def _whole(lines: bytes) -> bytes:
    """The lines without an incomplete last one."""
    return lines[: lines.rfind(b"\n") + 1]


class Manifest(Protocol):
    """The records of a folder, one per image."""

    records: dict[str, Record]

    def add(self, record: Record) -> None:
        """Add the record of an image that failed or has complete outputs."""


class _Lines:
    """The records in the manifest files of a folder, one of which is appended to."""

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
    """One small file per record, uploaded in the background."""

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
    """The manifest of a folder, locked for one run; other shards have their own.

    Args:
        folder: a folder that exists, or an address.
        settings: everything that determines the outputs, by option; values for JSON.
        shard: the number of this shard, from 1, and the number of shards.

    Raises:
        FileError: another run uses the folder, or its images have other settings.
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
    """Write the settings of a folder; raise an error if it has images with other settings."""
    path = folder / "settings.json"
    there = None
    if path.exists():
        with contextlib.suppress(ValueError):
            there = json.loads(path.read_bytes())
        if not isinstance(there, dict):
            raise FileError(f"{path}: expected settings as JSON, got something else")
        differing = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        if differing and used:
            words = "; ".join(f"{n}: {_shown(there.get(n))} before, {_shown(settings.get(n))} now" for n in differing)
            raise FileError(f"{folder}: expected a folder without images refined with other settings, got {words}")
    if there != settings:
        write(path, json.dumps(settings, indent=2).encode() + b"\n")


def _shown(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def digest(settings: Mapping[str, Any]) -> str:
    """A digest of settings in 16 characters."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether an image belongs to a shard (number, count), by its name alone, so that all machines agree."""
    number, count = shard
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % count == number - 1

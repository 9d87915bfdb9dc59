"""Manifests of data sets: what a line says is kept, whatever became of the run; one run a folder, one a shard."""

import json
import subprocess
import sys

import pytest

from tritoncrf.datasets.manifest import Record, digest, in_shard, opened
from tritoncrf.files import FileError

SETTINGS = {"tritoncrf": "0.1.0", "--iterations": 5, "--theta-space": "5%", "--confidence": None}
OTHERS = {"image 1": 0.25, "día/è ü": 0.0, "\udcff": 1.0}  # spaces, folders, letters, and bytes that are no letters


def record(name, error=None, seconds=0.5):
    return Record(name, digest(SETTINGS), seconds, None if error else OTHERS.get(name, 0.125), error)


def added(folder, *records, shard=None):
    with opened(folder, SETTINGS, shard) as manifest:
        for one in records:
            manifest.add(one)


def read(folder, shard=None):
    with opened(folder, SETTINGS, shard) as manifest:
        return dict(manifest.records)


def test_records_come_back(tmp_path):
    records = [record(name) for name in OTHERS] + [record("b", error="b.png: expected a picture, got none")]
    added(tmp_path, *records)
    assert read(tmp_path) == {one.name: one for one in records}
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [*OTHERS, "b"]
    assert all(set(line) == {"name", "settings", "seconds", "changed", "error"} for line in lines)


def test_the_last_of_two_lines_counts(tmp_path):
    added(tmp_path, record("a", error="out of memory"), record("a"))
    assert read(tmp_path) == {"a": record("a")}


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_torn_line_is_cut_off(tmp_path, kept):
    """Wherever a machine stopped in the last line: it is gone, and the next line is one."""
    added(tmp_path, record("a"), record("b"))
    path = tmp_path / "manifest.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    added(tmp_path, record("c"))
    assert path.read_bytes() == first + record("c").line()
    assert set(read(tmp_path)) == {"a", "c"}


def test_a_line_without_its_end_is_torn_too(tmp_path):
    added(tmp_path, record("a"))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(tmp_path) == {} and path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"\0\0\0", b"{}", b"[1]", b'{"name": 3}', b"null", b"\xff"])
def test_lines_that_are_none_are_passed_over(tmp_path, line):
    added(tmp_path, record("a"))
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(line + b"\n" + record("b").line())
    assert set(read(tmp_path)) == {"a", "b"}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with open("/dev/full", "ab", buffering=0) as full, opened(tmp_path, SETTINGS) as manifest:
        manifest._file = full
        with pytest.raises(OSError, match="No space left on device: '?/dev/full"):
            manifest.add(record("a"))
        assert manifest.records == {}


# Settings ---------------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(tmp_path):
    added(tmp_path, record("a"))
    changed = {**SETTINGS, "--iterations": 10, "--confidence": 0.95, "--save": "labels"}
    del changed["--theta-space"]
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(FileError) as caught, opened(tmp_path, changed):
        pass
    words = "--iterations: 5 before, 10 now; --theta-space: 5% before, none now; --confidence: none before, 0.95 now"
    assert str(caught.value) == (
        f"{tmp_path}: expected a folder without images refined with other settings, got {words}; --save: none before, labels now"
    )
    assert (tmp_path / "settings.json").read_bytes() == before and set(read(tmp_path)) == {"a"}


def test_settings_change_while_all_have_failed(tmp_path):
    added(tmp_path, record("a", error="expected the size of a.png"))
    with opened(tmp_path, {"--resize": True}) as manifest:
        assert set(manifest.records) == {"a"}  # of other settings, which its digest says
    assert json.loads((tmp_path / "settings.json").read_bytes()) == {"--resize": True}
    with pytest.raises(FileError, match="--iterations: none before, 5 now"), opened(tmp_path, SETTINGS, (1, 2)):
        pass  # another shard may have begun with those that are there


def test_a_long_setting_is_shown_in_part(tmp_path):
    added(tmp_path, record("a"))
    with pytest.raises(FileError, match=r"--theta-space: 5% before, x{40}\.\.\. now$"):
        opened(tmp_path, {**SETTINGS, "--theta-space": "x" * 500}).__enter__()


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_settings_that_are_none(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(FileError, match=r"settings\.json: expected settings as JSON, got something else"):
        read(tmp_path)


def test_the_digest_follows_every_value_and_no_order():
    assert digest(SETTINGS) == digest(dict(reversed(SETTINGS.items())))
    assert len({digest({**SETTINGS, name: "other"}) for name in SETTINGS} | {digest(SETTINGS)}) == len(SETTINGS) + 1


# Shards -----------------------------------------------------------------------------------------------------------


def test_every_image_is_in_one_shard():
    names = [f"folder/{n:06}" for n in range(1000)] + list(OTHERS)
    for count in 1, 2, 7, 64:
        owners = [[shard for shard in range(1, count + 1) if in_shard(name, (shard, count))] for name in names]
        assert all(len(owner) == 1 for owner in owners)
        assert {owner[0] for owner in owners} == set(range(1, count + 1))


def test_shards_are_the_same_on_all_machines():
    """What a stable hash says; Python's own differs from process to process."""
    assert [in_shard("2007_000032", (shard, 4)) for shard in (1, 2, 3, 4)] == [False, False, False, True]


def test_shards_write_side_by_side_and_are_read_as_one(tmp_path):
    with opened(tmp_path, SETTINGS, (1, 2)) as one, opened(tmp_path, SETTINGS, (2, 2)) as two:
        one.add(record("a"))
        two.add(record("b", error="no"))
        two.add(record("c"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "settings.json", "manifest-1-of-2.jsonl", "manifest-2-of-2.jsonl",
    }  # fmt: skip
    added(tmp_path, record("b"))
    assert read(tmp_path) == {name: record(name) for name in "abc"}
    assert read(tmp_path, (2, 2))["b"] == record("b")  # though its own file has the error


# One run at a time --------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from tritoncrf.datasets.manifest import opened
shard = (1, 2) if sys.argv[2] == "shard" else None
with opened(Path(sys.argv[1]), {}, shard):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="no such locks on Windows")
def test_two_runs_in_one_folder(tmp_path):
    def hold(kind):
        return subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def refused(shard):
        with pytest.raises(FileError) as caught, opened(tmp_path, {}, shard):
            pass
        assert "for this run alone, got one in use by another" in str(caught.value)

    with hold("whole") as holder:
        assert holder.stdout.readline() == "held\n"
        refused(None)
        refused((1, 2))
        holder.stdin.close()
    with hold("shard") as holder:
        assert holder.stdout.readline() == "held\n"
        refused(None)
        refused((1, 2))
        with opened(tmp_path, {}, (2, 2)):
            pass
        holder.stdin.close()
    with opened(tmp_path, {}):
        pass


# Addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store():
    upath = pytest.importorskip("upath", reason="universal-pathlib is not installed")
    folder = upath.UPath("memory://manifests/out")
    yield folder
    folder.fs.rm("/manifests", recursive=True)


def test_an_object_store_has_a_small_file_a_record(store):
    assert read(store) == {}
    added(store, record("a"), record("day 1/b"), record("c", error="no"))
    assert [path.removeprefix("/manifests/out/") for path in sorted(store.fs.find("/manifests/out"))] == [
        "records/a.json", "records/c.json", "records/day 1/b.json", "settings.json",
    ]  # fmt: skip
    added(store, record("c"))
    assert read(store) == {name: record(name) for name in ("a", "day 1/b", "c")}
    with pytest.raises(FileError, match="--iterations: 5 before, 6 now"):
        opened(store, {**SETTINGS, "--iterations": 6}).__enter__()


def test_many_records_at_a_time(store):
    records = [record(f"{n:03}") for n in range(300)]
    added(store, *records)
    assert read(store) == {one.name: one for one in records}


def test_an_upload_that_fails_is_an_error(store, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), opened(store, SETTINGS) as manifest:
        monkeypatch.setattr(type(store.fs), "pipe_file", full)
        manifest.add(record("a"))

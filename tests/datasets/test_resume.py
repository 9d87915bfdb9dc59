"""A run over a data set that is killed goes on with the same command: nothing is lost, nothing is done twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tritoncrf import cli

COUNT, JOBS = 24, 2
OPTIONS = [
    "--probabilities",
    "scores",
    "--method",
    "lattice",
    "--theta-color",
    "20",
    "--iterations",
    "10",
    "--device",
    "cpu",
]

# The real command, whose processes write down which image they begin to refine, and from the ninth on wait for as long as
# there is a file that holds them.
SCRIPT = """
import os, sys, time, zlib
from tritoncrf import cli
from tritoncrf.datasets import command
from tritoncrf.datasets.file_stages import FileStages

class Logged(FileStages):
    def refine(self, loaded):
        with open("log", "ab", buffering=0) as log:
            for one in loaded:
                log.write(b"%d\\n" % zlib.crc32(one.image.tobytes()))
        while os.path.exists("held") and len(open("log").readlines()) > 8:
            time.sleep(0.01)
        return super().refine(loaded)

if __name__ == "__main__":
    command.FileStages = Logged
    sys.exit(cli.main(sys.argv[1:]))
"""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform == "win32", reason="no process groups on Windows"),
]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A working directory of small images and scores; the images' names by their checksums."""
    monkeypatch.chdir(tmp_path)
    Path("logged.py").write_text(SCRIPT)
    Path("log").touch()
    Path("images").mkdir()
    Path("scores").mkdir()
    generator = np.random.default_rng(0)
    found = {}
    for n in range(COUNT):
        image = generator.integers(0, 256, (24 + n % 3, 32, 3), dtype=np.uint8)
        found[zlib.crc32(image.tobytes())] = f"image {n:02}"
        Image.fromarray(image).save(f"images/image {n:02}.png")
        p = generator.dirichlet(np.ones(4), image.shape[:2]).transpose(2, 0, 1)
        np.save(f"scores/image {n:02}.npy", p.astype(np.float32))
    return found


def started(out="out"):
    command = [sys.executable, "logged.py", "refine", "images", *OPTIONS, "-o", out, "--jobs", str(JOBS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, text=True, preexec_fn=heeding_interrupts, **pipes
    )


def heeding_interrupts():
    """What a shell starts in the background ignores them, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(out):
    """The command in this process, to its end."""
    return cli.main(["refine", "images", *OPTIONS, "-o", out, "--jobs", "0"])


def written():
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("out").glob("[!.]*.png")}


def wait_for(process, outputs):
    """Until there are so many outputs."""
    while len(written()) < outputs and process.poll() is None:
        time.sleep(0.001)


def begun(names):
    """How often each image was begun."""
    return Counter(names[int(line)] for line in Path("log").read_text().split())


def everything(out):
    """The files of a folder; of the manifest what does not depend on time or order."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("manifest.jsonl").splitlines()]
    assert len({line["name"] for line in lines}) == len(lines)
    return files, {line["name"]: (line["settings"], line["changed"], line["error"]) for line in lines}


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(names, kills):
    assert finished("whole") == 0
    chance = random.Random(kills)
    done, times = {}, Counter()
    for outputs in sorted(chance.sample(range(COUNT - 6), kills)):
        process = started()
        wait_for(process, outputs)
        time.sleep(chance.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
        before, done = done, written()
        times_before, times = times, begun(names)
        assert before.items() <= done.items(), "a finished output was written again"
        assert all(times[name] == times_before[name] for name in before), "a finished image was refined again"
        in_work = [name for name in times - times_before if name not in done]
        assert len(in_work) <= JOBS, f"in work at the kill: {in_work}"
        for name in done:
            Image.open(f"out/{name}.png").load()
    assert done
    assert finished("out") == 0
    assert done.items() <= written().items()
    assert everything("out") == everything("whole")


def test_interrupted_from_the_keyboard(names):
    Path("held").touch()  # images are left, however late the signal comes
    process = started()
    wait_for(process, 3)
    os.killpg(process.pid, signal.SIGINT)
    Path("held").unlink()
    out, err = process.communicate()
    line = err.splitlines()[-1]
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert line.startswith("tritoncrf: interrupted, ") and line.endswith(
        f" of {COUNT} images are done; run the same command to resume"
    )
    before = written()
    assert 3 <= len(before) < COUNT
    assert finished("out") == 0 and finished("whole") == 0
    assert before.items() <= written().items() and everything("out") == everything("whole")

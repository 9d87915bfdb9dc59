"""The benchmark suite as a command: behind a gate, in a time box, with a report at the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import report
from tritoncrf.commands import device_found

ROOT = Path(__file__).parent.parent
KEYWORDS = "window or lattice or exact or guided or box or conv_crf or crfrnn or guidance_crf or densecrf or mean_field"


def run_suite(out: Path, *, quick=False, commit=None, photos=None, seconds=None) -> int:
    """Benchmarks behind a green gate: a wrong kernel's time is no time."""
    deadline = None if seconds is None else time.monotonic() + seconds
    if status := gate(seconds):
        print("The equivalence tests are not green on this device; nothing is timed.", file=sys.stderr)
        return status
    environment = report.environment(commit)
    out.mkdir(parents=True, exist_ok=True)
    rows = out.resolve() / "rows.jsonl"  # grows while the suite runs, and stays only if this process is ended
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "bench", "--rows", str(rows), "--benchmark-sort=fullname"]
    command += ["--benchmark-columns=median,iqr,rounds"] + ["--quick"] * quick
    command += ["--photos", str(photos.resolve())] if photos else []
    # What was measured before the time was up, or before a benchmark failed, is a report all the same.
    status = run_boxed(command, None if deadline is None else deadline - time.monotonic())
    written = report.write(out, environment, report.read_rows(rows))
    rows.unlink(missing_ok=True)
    print(written.read_text())
    return status


def gate(seconds=None) -> int:
    """The tests that hold what is timed. On a GPU those at the sizes that are timed: all others compile hundreds of
    kernels, and are a stage of their own. On a CPU those of the PyTorch path and the loop."""
    tests = ["tests", "--ignore=tests/kernels", "-k", KEYWORDS]
    if device_found().type == "cuda":
        tests = ["tests/kernels", "-k", "on_gpu or on_a_gpu"]
    return run_boxed([sys.executable, "-m", "pytest", "-q", "-x", *tests, "-m", "not slow"], seconds)


def run_boxed(command: list[str], seconds: float | None = None, log: Path | None = None, environment=None) -> int:
    """Run in a process group of its own, ended when the time is up; 124 then. Output goes to `log` as well as here."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}), start_new_session=True,
        stdout=subprocess.PIPE if log else None, stderr=subprocess.STDOUT if log else None,
    )  # fmt: skip
    tee = subprocess.Popen(["tee", str(log)], stdin=process.stdout) if log else None
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"time is up after {seconds:.0f} s: {' '.join(command[:4])} ...", file=sys.stderr)
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if tee:
            process.stdout.close()
            tee.wait()

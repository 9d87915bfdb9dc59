"""The benchmark suite as a command: each filter behind a gate of its own, in a time box, with a report at the end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import ROOT, measurements, plots
from tritoncrf import files, reports
from tritoncrf.devices import device_found

# Other versions of torch and triton deprecate other things: on a machine that is only measured that is no error.
PYTEST = [sys.executable, "-m", "pytest", "-W", "default"]
BENCHMARKS = [f"bench/test_{name}.py" for name in ("splat", "crf", "pipelines", "growth")]

# The tests that hold what is timed of each filter, in pytest's words. On a CPU those of the PyTorch path, and of the
# loop, without which no filter is timed. On a GPU those at the sizes that are timed: all others compile hundreds of
# kernels, and are a stage of their own.
LOOP = "loop"
TESTS_ON_CPU = {
    "window": ["tests/test_window.py", "tests/test_conv_crf.py"],
    "lattice": ["tests/test_lattice.py", "tests/test_crfrnn.py", "tests/test_densecrf.py"],
    "guided": ["tests/test_guided.py", "tests/test_box.py", "tests/test_guidance_crf.py"],
    "exact": ["tests/test_exact.py"],
    LOOP: ["tests/test_filters.py", "tests/test_mean_field.py"],
}
_ON_GPU = "tests/kernels/test_on_gpu.py"
TESTS_ON_GPU = {
    "window": [_ON_GPU, "-k", "not (lattice or guided or guidance or exact)"],
    "lattice": [_ON_GPU, "-k", "lattice"],
    "guided": [_ON_GPU, "-k", "guided or guidance"],
    "exact": [_ON_GPU, "tests/kernels/test_exact.py", "-k", "exact and (test_on_gpu or on_a_gpu)"],
}


def run_suite(out: Path, *, quick=False, commit=None, photos=None, seconds=None) -> int:
    """Benchmark the filters whose tests pass, since timing a wrong kernel is meaningless; 1 if any is refused."""
    deadline = None if seconds is None else time.monotonic() + seconds
    tests = gate(TESTS_ON_GPU if device_found().type == "cuda" else TESTS_ON_CPU, seconds)
    green = [name for name, found in tests.items() if found == GREEN]
    if not green:
        print("No filter's equivalence tests are green on this device; nothing is timed.", file=sys.stderr)
        return 1
    environment = measurements.environment(commit) | {"tests": tests}
    out.mkdir(parents=True, exist_ok=True)
    rows = out.resolve() / "rows.jsonl"  # grows while the suite runs, and stays only if this process is ended
    rows.unlink(missing_ok=True)
    command = [*PYTEST, *BENCHMARKS, "-m", " or ".join(green), "--rows", str(rows)]
    command += ["--benchmark-sort=fullname", "--benchmark-columns=median,iqr,rounds"] + ["--quick"] * quick
    command += ["--photos", str(photos.resolve())] if photos else []
    # What was measured before the time was up, or before a benchmark failed, is a report all the same.
    status = run_boxed(command, None if deadline is None else deadline - time.monotonic())
    written = write(out / reports.slug(environment), environment, measurements.read(rows))
    rows.unlink(missing_ok=True)
    print(written.read_text())
    return status or int(len(green) < len(tests))


def write(name: Path, environment: dict, rows: list[dict]) -> Path:
    """name.json, name.md and the figures that there are rows for, name-growth.png and name-times.png; returns the
    Markdown's path."""
    text = measurements.markdown(environment, rows, plots.draw(name, rows))
    data = json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n"
    files.write(name.with_suffix(".json"), data.encode())
    files.write(name.with_suffix(".md"), text.encode())
    return name.with_suffix(".md")


def gate(tests: dict[str, list[str]], seconds=None) -> dict[str, str]:
    """What came of each filter's tests: a process for each, as many at a time as there are cores. Their tensors are
    small: more threads would only wait for each other."""

    def run(name: str) -> str:
        log = Path(logs) / name
        command = [*PYTEST, "-q", "-x", "-p", "no:cacheprovider", *tests[name], "-m", "not slow"]
        found = outcome(run_boxed(command, seconds, log, {"OMP_NUM_THREADS": "1"}, echo=False))
        lines = log.read_text().strip().splitlines()
        print(f"Equivalence tests, {name}:", *(lines[-1:] if found == GREEN else ["", *lines]), sep="\n", flush=True)
        return found

    with tempfile.TemporaryDirectory() as logs, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(tests, pool.map(run, tests)))
    loop = found.pop(LOOP, GREEN)
    return {name: own if loop == GREEN else f"{loop}, the loop's" for name, own in found.items()}


def outcome(status: int) -> str:
    """pytest's exit status in words."""
    return {0: "green", 5: "no tests", 124: "time was up"}.get(status, f"red (status {status})")


GREEN = outcome(0)


def run_boxed(
    command: list[str], seconds: float | None = None, log: Path | None = None, environment=None, echo=True
) -> int:
    """Run in a process group of its own, ended when the time is up; 124 then. Output goes to `log` as well as here, and
    without `echo` only there."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}), start_new_session=True,
        stdout=subprocess.PIPE if log else None, stderr=subprocess.STDOUT if log else None,
    )  # fmt: skip
    screen = None if echo else subprocess.DEVNULL
    tee = subprocess.Popen(["tee", str(log)], stdin=process.stdout, stdout=screen) if log else None
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

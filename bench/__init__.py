"""Benchmarks with their floors and peers, and reports of compiled kernels; run as `python -m bench`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
sys.path.append(str(ROOT / "tests"))  # for the emulator, `ptx`

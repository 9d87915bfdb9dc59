"""Benchmarks, floors and peers, and the compile reports; run as `python -m bench`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
sys.path.append(str(ROOT / "tests"))  # the emulator, `ptx`, is there

"""Benchmarks, floors and peers, and the compile reports; run as `python -m bench`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent

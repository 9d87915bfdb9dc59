"""Benchmarks, floors, peers and the compile report; run as `python -m bench`."""

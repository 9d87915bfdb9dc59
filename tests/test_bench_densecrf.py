"""The comparison with pydensecrf: energies, ratios within a round, and what it needs."""

import types

import numpy as np
import pytest

from bench import densecrf
from bench.__main__ import main
from bench.densecrf import Times


def test_energies_are_those_of_probabilities():
    image = np.zeros((20, 33, 3), np.uint8)
    found = densecrf.energies(image, 5)
    assert found.shape == (5, 20 * 33) and found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(np.exp(-found).sum(0) - 1).max() < 1e-5


def test_ratios_are_taken_within_a_round():
    pairs = [(Times(1.0, 0.5), Times(2.0, 1.0)), (Times(4.0, 2.0), Times(4.0, 8.0)), (Times(2.0, 1.0), Times(6.0, 2.0))]
    text, rows = densecrf.report({(5, 1): pairs}, (20, 33))
    assert "2.00 (1.00 to 3.00)" in text and "2.00 (2.00 to 4.00)" in text
    assert len(rows) == 3 and rows[1]["pydensecrf_loop"] == 8.0


def test_both_run_the_same_lines(monkeypatch, capsys):
    monkeypatch.setattr(densecrf, "CLASSES", (3,))
    monkeypatch.setattr(densecrf, "THREADS", (1,))
    monkeypatch.setattr(densecrf, "photo", lambda: np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    monkeypatch.setattr(densecrf.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(densecrf.importlib, "import_module", lambda name: densecrf.ours)
    assert densecrf.run(None, rounds=2) == 0
    assert "20 x 24, 5 iterations" in capsys.readouterr().out


def test_without_pydensecrf_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(
        densecrf, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    )
    assert main(["densecrf"]) == 2
    assert "pydensecrf: expected an installed package" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["0", "-1"])
def test_rounds_are_at_least_one(rounds, capsys):
    assert main(["densecrf", "--rounds", rounds]) == 2
    assert "--rounds: expected at least 1" in capsys.readouterr().err

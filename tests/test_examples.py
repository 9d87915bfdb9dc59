"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

from optional import imported

ROOT = Path(__file__).parent.parent
FOLDERS = {"tritoncrf": ROOT / "tritoncrf", "tritoncrf.models": ROOT / "models"}

OPTIONAL = {"tritoncrf.models.torchmetrics": "torchmetrics"}  # modules that are of no use without a package


def modules_with_examples() -> list[str]:
    return sorted(
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
        if ">>> " in path.read_text()
    )


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    if name in OPTIONAL:
        imported(OPTIONAL[name])
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.attempted > 0 and results.failed == 0

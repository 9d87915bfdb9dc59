"""models/README.md keeps its word: its Python runs, its commands are understood, its configurations exist."""

import re
import shlex
from pathlib import Path

import pytest

from tritoncrf.cli import _parser
from tritoncrf.models import config

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "models" / "README.md").read_text()
BOTH = TEXT + (ROOT / "README.md").read_text()


def commands() -> list[str]:
    return sorted(
        set(
            re.findall(
                r"^(?:tritoncrf|.*-m tritoncrf\.models) ((?:train|evaluate|predict|experiments) .*)$", BOTH, re.M
            )
        )
    )


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
def test_python(block):
    exec(compile(block, "models/README.md", "exec"), {})


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    options = _parser().parse_args(shlex.split(command.split("#")[0]))
    if command.startswith("train"):
        config.load(options.config, options.changes)


def test_every_command_is_shown():
    assert {command.split()[0] for command in commands()} == {"train", "evaluate", "predict", "experiments"}


def test_changes_that_are_named_are_understood():
    for change in re.findall(r"--set (\S+?)[`\s]", TEXT):
        config.load("crfrnn" if change.startswith("crf.") else "convcrf_unary", [change])


def test_every_configuration_is_named():
    named = re.findall(r"`([a-z0-9_*]+)`", TEXT)
    suffixed = [name.replace("_", "convcrf_decoupled_", 1) for name in named if name.startswith("_")]
    for path in config.BUNDLED.glob("*.toml"):
        assert path.stem in [*named, *suffixed] or path.stem.startswith("small_"), path.stem


def test_configurations_name_commands_that_are_understood():
    for path in config.BUNDLED.glob("*.toml"):
        text = re.sub(r" \\\n# +", " ", path.read_text())  # lines that go on
        for command in re.findall(r"^#.*tritoncrf (train .*)$", text, re.MULTILINE):
            options = _parser().parse_args(shlex.split(command))
            assert options.config == path.stem
        for changes in re.findall(r"^#.*?((?: --set \S+)+)$", path.read_text(), re.MULTILINE):
            found = config.load(path, re.findall(r"--set (\S+)", changes))
            config.build(config.parse({**found.table(), "network": {**found.network, "width": 0.1}}, "test"), 3, "test")

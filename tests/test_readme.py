"""The README keeps its word: its Python runs, and its commands are understood and work."""

import re
import shlex
from pathlib import Path

import pytest

from tritoncrf import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every `tritoncrf ...` line."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tritoncrf ")]


PYTHON = blocks("python")
[EXAMPLE] = [block for block in PYTHON if "probabilities.npy" in block]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", ["demo", "refine", "info"])
def test_every_command_is_shown(name):
    assert name in [arguments[0] for arguments in commands()]


def test_the_commands_work_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    for arguments in commands():
        assert cli.main(arguments) == 0, capsys.readouterr().err
        written = [Path(value) for option, value in zip(arguments, arguments[1:]) if option in ("-o", "--figure")]
        assert all(path.stat().st_size > 0 for path in written), arguments


def test_every_option_named_exists(capsys):
    """Beside the commands above, options in running text."""
    with pytest.raises(SystemExit):
        cli.main(["refine", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    prose = re.findall(r"tritoncrf[^`\n]*?(--[a-z-]+)", README)
    assert set(prose) <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).is_file(), target

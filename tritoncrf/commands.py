"""What the command lines share: every bad input ends with exit code 2 and one line on stderr."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["CommandError", "Parser", "add_device", "check_output", "run"]


class CommandError(Exception):
    """What the user gave does not work; the message is the one line to print."""


def _refusals() -> tuple[type[Exception], ...]:
    """What bad input raises here and in the library; anything else is a bug and shows its traceback."""
    torch = sys.modules.get("torch")  # which a command that only parses does not import
    return CommandError, ValueError, TypeError, OSError, MemoryError, *([torch.OutOfMemoryError] if torch else [])


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage, and name what may have been meant."""

    def error(self, message: str) -> NoReturn:
        words = re.findall(r"(?:unrecognized arguments: |invalid choice: ')([^\s'=]+)", message)
        meant = [name for word in words for name in difflib.get_close_matches(word, _names(self), n=1)]
        raise CommandError(message + "".join(f"; did you mean {name}?" for name in meant))


def _names(parser: argparse.ArgumentParser) -> list[str]:
    """The options and commands of a parser and of those below it."""
    found = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += [name, *_names(below)]
    return found


def run(parser: Parser, arguments: Sequence[str] | None = None) -> int:
    """Parse, and call `options.run(options)`; 0 if it worked, 2 if not."""
    try:
        options = parser.parse_args(arguments)
        options.run(options)
    except _refusals() as error:
        name = parser.prog.split()[-1]
        print(f"{name}: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def add_device(command: argparse.ArgumentParser) -> None:
    """The option of a command that computes."""
    command.add_argument("--device", metavar="NAME", help="where: cuda, cuda:1, cpu (the GPU if there is one)")


def check_output(option: str, path: Path, extensions: Sequence[str]) -> None:
    """An error unless `path` can be written, before any work is done for it."""
    if path.suffix.lower() not in extensions:
        raise CommandError(f"{option}: expected a file name ending in {' or '.join(extensions)}, got {path}")
    if not path.parent.is_dir():
        raise CommandError(f"{option}: expected a file in a folder that exists, got {path}")
    if path.is_dir():
        raise CommandError(f"{option}: expected a file, got the folder {path}")
    if not os.access(path.parent, os.W_OK):
        raise CommandError(f"{option}: expected a folder that can be written to, got {path}")

"""What the command lines share. Every bad input ends with exit code 2 and one line on stderr."""

import argparse
import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

__all__ = ["CommandError", "Parser", "add_device", "check_output", "make_folder", "run", "stderr_closed"]

# What PyTorch says where memory or a disk is full, in errors that have no type of their own.
FULL = re.compile(r"DefaultCPUAllocator: [^.]*|not enough memory[^.]*|[^:]*: No space left on device")


class CommandError(Exception):
    """The user's input is wrong; the message is the one line to print."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, without the usage, that suggest what may have been meant."""

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


def _refusal(error: Exception, parser: Parser) -> str | None:
    """The line that reports bad input or a lack of memory; None for a bug, which shows its traceback."""
    said = " ".join(str(error).split())
    torch = sys.modules.get("torch")  # a command that only parses does not import it
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return f"out of memory: {said}" if said else "out of memory"
    if isinstance(error, (ValueError, TypeError)):
        said = _by_options(said, _names(parser))
    missing = isinstance(error, ImportError) and error.name is None  # names the extra to install: not a bug
    if missing or isinstance(error, (CommandError, ValueError, TypeError, OSError)):
        return said or type(error).__name__
    full = FULL.search(said) if isinstance(error, RuntimeError) else None
    return full and full[0].replace("DefaultCPUAllocator: ", "out of memory: ")


def _by_options(message: str, names: Sequence[str]) -> str:
    """A function's message about its arguments, "name, other: ..." or "name=value", with the names of the options."""

    def option(match: re.Match[str]) -> str:
        found = f"--{match[1].replace('_', '-')}"
        return match[0] if found not in names else found if match[2] == "=" else found + match[2]

    said = re.sub("^[a-z_]+(?:, [a-z_]+)*:", lambda head: re.sub("([a-z_]+)([,:])", option, head[0]), message)
    return re.sub(r"(?<![\w/.-])([a-z_]+)(=[\w'\"(\[{-]|=)", option, said)


def run(parser: Parser, arguments: Sequence[str] | None = None) -> int:
    """Parse and call `options.run(options)`; returns its status, 0 if it returns none, and 2 for bad input."""
    try:
        options = parser.parse_args(arguments)
        with warnings.catch_warnings():
            # Pillow warns of photos of 90 megapixels and more, and refuses those of twice as many.
            warnings.filterwarnings("ignore", "Image size .* exceeds limit")
            return options.run(options) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = _refusal(error, parser)
        if message is None:
            raise
        print(f"{parser.prog.split()[-1]}: error: {message}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Discard what C libraries, or their threads, write to stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def add_device(command: argparse.ArgumentParser) -> None:
    """Add --device, the option of a command that computes."""
    command.add_argument(
        "--device", metavar="NAME", help="where to compute: cpu, cuda or cuda:1 (default: the GPU if there is one)"
    )


def check_output(option: str, path: Path, extensions: Sequence[str]) -> None:
    """Raise an error unless `path` can be written, before any work is done."""
    if path.suffix.lower() not in extensions:
        raise CommandError(f"{option}: expected a file name ending in {' or '.join(extensions)}, got {path}")
    if not path.parent.is_dir():
        raise CommandError(f"{option}: expected a file in a folder that exists, got {path}")
    if path.is_dir():
        raise CommandError(f"{option}: expected a file, got the folder {path}")
    special = path.exists() and not path.is_file()  # a device or a pipe, which is written in place
    if not os.access(path if special else path.parent, os.W_OK):
        raise CommandError(f"{option}: expected a folder that can be written to, got {path}")
    try:
        path.stat()
    except FileNotFoundError:
        return
    except OSError as error:  # links in a circle, a name that is too long
        raise CommandError(f"{option}: expected a usable file name, got {path}: {error.strerror}") from error


def make_folder(option: str, path: Path) -> None:
    """Create a folder for outputs unless it exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{option}: expected a folder that can be created, got {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise CommandError(f"{option}: expected a folder that can be written to, got {path}")

"""TOML tables: changed by "key=value", and read strictly into frozen dataclasses.

A library would not make this shorter: msgspec accepts unknown keys of a dataclass, and infinity as a number; rewording
pydantic's errors in terms of a configuration takes as many lines as finding them.
"""

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from tritoncrf.files import FileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEEPEST = 8  # nesting of tables and lists


def load(path: Path) -> dict[str, Any]:
    """The table of a file.

    Raises:
        FileError: not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, or numbers with thousands of digits
        raise FileError(f"{path}: expected TOML, unreadable: {error}") from error


def change(table: Any, text: str) -> None:
    """Set one key of a table: "key=value" in TOML, in which dots select tables, or entries of lists by name."""
    key, equals, given = text.partition("=")
    try:
        value = tomllib.loads(f"value = {given}")["value"]
    except RecursionError:
        raise FileError(f"--set {key}: expected a value, got one nested too deeply") from None
    except ValueError:
        value = given  # an unquoted word: network.name=FCN8s
    if not equals or not all(key.split(".")):
        raise FileError(f"--set {text}: expected key=value, such as data.workers=4 or phases.unary.epochs=3")
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(table, list):
            table = next((entry for entry in table if isinstance(entry, dict) and entry.get("name") == parent), None)
        else:
            table = table.setdefault(parent, {})
        if not isinstance(table, (dict, list)):
            raise FileError(f"--set {text}: expected a key inside a table, got nothing of that name at {parent!r}")
    if isinstance(table, list):
        raise FileError(f"--set {text}: expected the name of a phase and its key")
    table[last] = value


def expect_plain(value: Any, source: str, key: str = "", depth: int = 0) -> None:
    """Raise an error for tables nested too deeply, and for numbers that TOML does not have."""
    if isinstance(value, (dict, list, tuple)):
        if depth > DEEPEST:
            raise FileError(f"{source}: {key}: expected at most {DEEPEST} nested tables or lists, got more")
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            expect_plain(entry, source, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FileError(f"{source}: {key}: expected a number of at most 64 bits, got {value.bit_length()} bits")


def read(kind: Any, value: Any, source: str, key: str = "") -> Any:
    """`value` as a dataclass or a type of its fields: tuples, unions with None, literals, tables and numbers.

    Raises:
        FileError: an unknown key, a missing key, or a value of another type; the message begins with `source` and the
            key.
    """

    def refused(wanted: str) -> FileError:
        return FileError(f"{source}: {key}: expected {wanted}, got {value!r}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else read(arguments[0], value, source, key)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise refused(f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        repeated = arguments[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (repeated or len(value) == len(arguments)):
            raise refused("a list" if repeated else f"a list of {len(arguments)}")
        inner = arguments[:1] * len(value) if repeated else arguments
        return tuple(read(i, v, source, f"{key}[{n}]") for n, (i, v) in enumerate(zip(inner, value)))
    if origin is dict:
        if not isinstance(value, dict):
            raise refused("a table")
        return {k: v if arguments[1] is Any else read(arguments[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise refused("a table")
        return _read_table(kind, value, source, key)
    plain = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not plain or (kind is not bool and isinstance(value, bool)) or (kind is float and not math.isfinite(value)):
        raise refused({int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}[kind])
    return kind(value)


def _read_table(kind: Any, table: dict[str, Any], source: str, key: str) -> Any:
    fields, hints = dataclasses.fields(kind), typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in table:
        if name not in hints:
            raise FileError(f"{source}: {prefix}{name}: unknown key{hint(name, hints)}")
    for entry in fields:
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in table:
            raise FileError(f"{source}: {prefix}{entry.name}: expected a value, got none")
    if key.endswith("]") and "name" in hints:  # an entry of a list: its name says more than its index
        prefix = f"{key.rpartition('[')[0]}.{table.get('name', '')}."
    return kind(**{name: read(hints[name], value, source, f"{prefix}{name}") for name, value in table.items()})


def hint(name: str, known: Collection[str]) -> str:
    """A suggestion for an unknown key."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def plain(value: Any) -> Any:
    """`value` with lists for its tuples."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

"""Packages whose public names are imported when they are first used."""

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

__all__ = ["load_lazily"]


class LazyPackage(ModuleType):
    """A package with a table of names."""

    _modules: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._modules:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{self.__name__}.{self._modules[name]}")
        setattr(self, name, module)
        return vars(self)[name]

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a module in its package once it is imported. Where something in it has the module's name, as the
        # function `refine` in refine.py has, that is what the package shows, whoever imports what first.
        if isinstance(value, ModuleType) and name in self._modules:
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._modules})


def load_lazily(package: str, modules: Mapping[str, str]) -> None:
    """Makes the names of `package` those of the table.

    Args:
        package: its `__name__`.
        modules: the module of the package that each name is in, or that it is the name of.
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    vars(module)["_modules"] = modules

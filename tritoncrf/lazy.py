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
        # Python makes an imported module an attribute of its package. If something in the module has the module's name,
        # like the function `refine` in refine.py, the attribute must be that, in any order of imports.
        if isinstance(value, ModuleType) and name in self._modules:
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._modules})


def load_lazily(package: str, modules: Mapping[str, str]) -> None:
    """Make the names in the table attributes of `package`.

    Args:
        package: its `__name__`.
        modules: for each name, the module of the package that contains it, or that has this name.
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    vars(module)["_modules"] = modules

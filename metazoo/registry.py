"""Finding methods: the modules of `metazoo.algorithms`, entry points of installed packages, and plugin files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from metazoo.algorithm import Algorithm
from metazoo.backbones import Backbone
from metazoo.errors import UserError, unknown
from metazoo.schema import parse

GROUP = "metazoo.algorithms"
"""Package the built-in methods live in, and the entry-point group of pip-installed ones."""


class Catalogue:
    """The methods found so far, and what could not be imported with its error."""

    def __init__(self) -> None:
        self.methods: dict[str, type[Algorithm]] = {}
        self.failures: dict[str, str] = {}

    def discover(self) -> None:
        """Read the built-in modules and the entry points; one that fails is listed and the others still work."""
        package = importlib.import_module(GROUP)
        for module in pkgutil.iter_modules(package.__path__, f"{GROUP}."):
            self._attempt(module.name, lambda name=module.name: importlib.import_module(name))
        for point in entry_points(group=GROUP):
            self._attempt(f"entry point {point.name}", point.load)

    def add(self, member: object) -> list[type[Algorithm]]:
        """Register the named methods a module defines (or one class); returns them."""
        classes = [member] if inspect.isclass(member) else _defined_in(member) if inspect.ismodule(member) else []
        found = [cls for cls in classes if issubclass(cls, Algorithm) and cls.name]
        for cls in found:
            known = self.methods.get(cls.name)
            if known is not None and inspect.getfile(known) != inspect.getfile(cls):
                raise UserError(
                    f"Two methods are called '{cls.name}': one in {inspect.getfile(known)}, one in "
                    f"{inspect.getfile(cls)}. Give one of them another name."
                )
            self.methods[cls.name] = cls
        return found

    def _attempt(self, name: str, load: Any) -> None:
        try:
            self.add(load())
        except UserError as error:
            self.failures[name] = str(error)
        except Exception as error:  # whatever a plugin raises, it must not take the others with it
            self.failures[name] = f"{type(error).__name__}: {error}"


@cache
def _catalogue() -> Catalogue:
    catalogue = Catalogue()
    catalogue.discover()
    return catalogue


def algorithms() -> dict[str, type[Algorithm]]:
    """Every method by name, in alphabetical order."""
    return dict(sorted(_catalogue().methods.items()))


def failures() -> dict[str, str]:
    """Plugins that could not be imported, with their errors."""
    return dict(_catalogue().failures)


def algorithm(name: str) -> type[Algorithm]:
    """The method of that name; an unknown one is a UserError that names the nearest."""
    known = algorithms()
    if name not in known:
        raise unknown("method", name, known)
    return known[name]


def create(name: str, backbone: Backbone, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """A method on a backbone; unknown settings are a UserError, a pair that cannot work an Incompatible."""
    method = algorithm(name)
    return method(backbone, parse(method.Settings, settings or {}, f"settings of {name}"))


def load_plugin(path: Path) -> list[type[Algorithm]]:
    """Register the methods a Python file defines; returns them.

    Raises:
        UserError: when there is no such file, it cannot be imported, or it defines no named method.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"There is no plugin file {path}.")
    name = f"metazoo_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; a plugin is one .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"The plugin {path} could not be imported: {type(error).__name__}: {error}.") from None
    found = _catalogue().add(module)
    if not found:
        raise UserError(f"The plugin {path} defines no method: a subclass of metazoo.Algorithm with a `name`.")
    return found


def _defined_in(module: ModuleType) -> list[type]:
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]

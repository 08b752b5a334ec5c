"""Have a module of ours imported as soon as somebody imports a library that it extends, and not before."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]


def when_imported(library: str, extension: str) -> None:
    """Import `extension` right after `library`, or now if that is imported already.

    An extension that cannot be imported leaves the library as it is, with a warning.
    """
    if library in sys.modules:
        _extend(library, extension)
    else:
        sys.meta_path.insert(0, _Finder(library, extension))


def _extend(library: str, extension: str) -> None:
    try:
        importlib.import_module(extension)
    except ImportError as error:
        warnings.warn(f"{extension} does not extend {library}: {error}", stacklevel=2)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the library as the other finders do, and has the extension imported behind it."""

    def __init__(self, library: str, extension: str) -> None:
        self.library, self.extension = library, extension
        self._asking = False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.library or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_both(module: ModuleType) -> None:
            sys.meta_path.remove(self)  # not earlier: many only ask whether the library is there
            load(module)
            _extend(self.library, self.extension)

        spec.loader.exec_module = load_both
        return spec

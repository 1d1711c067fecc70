"""Starting fast: what makes importing torch, transformers and lm-eval cheaper. Stdlib only."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which finds nothing there and takes a sixth of the time.

    What was imported lives as long as the process, so later collections need not look at it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


class ImportedOnUse(ModuleType):
    """Stands in ``sys.modules`` for a module until one of its names is asked for.

    For what another package imports at its top and rarely needs, such as `datasets` (with pandas)
    by lm-eval's tasks. importlib's LazyLoader doesn't do: its module loads at the next ``import``.
    """

    def __getattr__(self, attribute: str) -> Any:
        """The attribute of the real module, ``__path__`` for submodules included."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


def import_on_use(name: str) -> None:
    """Make ``import name`` cost nothing until something of the module is used."""
    spec = importlib.util.find_spec(name) if name not in sys.modules else None
    if spec is not None:  # a module that is not there says so when it is imported
        stand_in = ImportedOnUse(name)
        stand_in.__spec__ = spec
        sys.modules[name] = stand_in

"""Other people's packages that tests compare with or need: absent they skip a test at home, and fail it in CI."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


def peer(name: str) -> ModuleType:
    """The module `name`. With CI=true it has to be there: a check that skips proves nothing."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name)


@contextmanager
def bare(name: str) -> Iterator[Callable[[str], ModuleType]]:
    """Imports modules of the package `name` without what its `__init__` imports; they are forgotten at the end."""
    package = ModuleType(name)
    package.__path__ = [peer_path(name)]
    sys.modules[name] = package
    try:
        yield lambda module: importlib.import_module(f"{name}.{module}")
    finally:
        for known in [known for known in sys.modules if known.split(".")[0] == name]:
            del sys.modules[known]


def peer_path(name: str) -> str:
    """Where the package `name` lies, of which only parts are imported; absent as `peer` has it."""
    found = importlib.util.find_spec(name)
    if found is None:
        return str(peer(name).__path__[0])
    return next(iter(found.submodule_search_locations or ()))

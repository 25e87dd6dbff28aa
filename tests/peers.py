"""Other people's packages that tests compare with or need: absent they skip a test at home, and fail it in CI."""

import importlib
import os
from types import ModuleType

import pytest


def peer(name: str) -> ModuleType:
    """The module `name`. With CI=true it has to be there: a check that skips proves nothing."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name)

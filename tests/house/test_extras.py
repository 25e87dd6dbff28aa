"""The core install stands alone: every module imports without any extra, and a missing extra is named."""

import ast
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from house.sources import FILES, PACKAGE, ROOT, calls, imports

# What a distribution is called when it is imported, where the names differ.
IMPORT_NAMES = {
    "huggingface_hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "espeakng-loader": "espeakng_loader",
    "praat-parselmouth": "parselmouth",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in (Requirement(text).name for text in texts)}
    for extra, texts in PROJECT["optional-dependencies"].items()
    if extra != "dev"
}
NEEDING = ("serving",)  # floors that need their extra
OPTIONAL = {package for packages in EXTRAS.values() for package in packages}


def test_every_module_imports_with_the_core_alone():
    """But for the floors whose whole purpose is an extra: there the import itself names it."""
    modules = []
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__main__":
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    code = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Blocked())
from vivavoce.errors import MissingExtra
for module in {modules!r}:
    try:
        importlib.import_module(module)
    except MissingExtra:
        if module.split('.')[1] not in {NEEDING!r}:
            raise
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_asked_for_by_the_right_extra(path):
    """`need(package, extra, ...)` names the extra that brings the package, and goes before any direct import of it."""
    asked = set()
    floor = PACKAGE / path.relative_to(PACKAGE).parts[0] / "__init__.py"
    for call in [*calls(path, "need"), *(calls(floor, "need") if floor.is_file() else [])]:
        values = [argument.value for argument in call.args[:2] if isinstance(argument, ast.Constant)]
        if len(values) == 2:
            package = values[0].split(".")[0]
            assert package in EXTRAS.get(values[1], set()), f"line {call.lineno}: {values[1]} does not bring {package}"
            asked.add(package)
    direct = {module.split(".")[0] for _, module in imports(path)} & OPTIONAL
    assert direct <= asked, f"{direct - asked} imported without need(...), so that its extra would not be named"

"""The house of floors: imports run downwards, files stay readable, everything public is explained."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

from house.sources import FILES, PACKAGE, ROOT, imports, tree

# From below; floors that share a line may use each other.
FLOORS = [
    {"errors"},
    {"hub", "ray_cluster"},
    {"schema"},
    {"audio"},
    {"nn"},
    {"pretrained"},
    {"quantizers"},
    {"layouts"},
    {"encoders"},
    {"codecs", "vocoders"},
    {"tokenizers"},
    {"lm"},
    {"dialogue"},
    {"systems"},
    {"data"},
    {"training"},
    {"evaluation", "doctor"},
    {"serving"},
    {"atlas"},  # facts: uses nothing but errors, and only the commands use it
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
FACE = {"__init__", "__main__"}  # the package's own face may reach every floor


def floor_of(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_folder_is_a_floor():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders - {"recipes"} <= RANK.keys(), "name the new floor's place in FLOORS"
    assert {floor_of(path) for path in FILES} <= RANK.keys() | FACE | {"recipes"}


def test_imports_run_downwards():
    faults = []
    for path in FILES:
        here = floor_of(path)
        if here in FACE:
            continue
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] != "vivavoce" or len(parts) == 1:
                continue
            there = parts[1]
            if there in RANK and RANK[there] > RANK[here] and there != here:
                faults.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {module}, from a higher floor")
            if there not in RANK and here != "cli" and there != "__version__":
                faults.append(f"{path.relative_to(ROOT)}:{line}: {here} imports the face '{module}'")
    assert not faults, "\n".join(faults)


def test_the_atlas_knows_no_floor_and_the_schema_no_torch():
    for path in FILES:
        if floor_of(path) == "atlas":
            used = {m.split(".")[1] for _, m in imports(path) if m.startswith("vivavoce.")}
            assert used <= {"atlas", "errors"}, path
        if floor_of(path) == "schema":
            assert not [m for _, m in imports(path) if m.split(".")[0] == "torch"], path
        if floor_of(path) == "layouts":
            assert not [m for _, m in imports(path) if m.startswith("torch.nn")], f"{path}: layouts move indices only"


def test_no_file_is_a_warehouse():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes = {
        name: len((ROOT / name).read_text().splitlines()) for name in tracked.stdout.split() if (ROOT / name).exists()
    }
    long = {name: size for name, size in sizes.items() if size > 600}
    assert not long, f"a file is one idea; split {long}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_public_is_explained(path):
    """Every module, public class and public function at the top of a module has a docstring."""
    bare = [] if ast.get_docstring(tree(path)) else ["the module"]
    for node in tree(path).body:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named and any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list):
            continue  # the implementation below it explains
        if named and not node.name.startswith("_") and not ast.get_docstring(node):
            bare.append(f"{node.name} (line {node.lineno})")
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_the_face_and_the_floors_export_what_they_say():
    import vivavoce

    modules = [vivavoce, *(importlib.import_module(f"vivavoce.{p.parent.name}") for p in PACKAGE.glob("*/__init__.py"))]
    for module in modules:
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name}, which is not there"
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"


@pytest.mark.parametrize(
    "arguments", [["ruff", "check", "--no-cache", "."], ["mypy", "--no-error-summary"]], ids=lambda a: a[0]
)
def test_the_checkers_run_clean(arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

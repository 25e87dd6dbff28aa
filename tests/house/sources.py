"""The package's own source files and what they import, for the house rules."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "vivavoce"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# A registry's "vivavoce.codecs.mimi:Mimi" is an import too; an event's "vivavoce.queue" names no module.
FLOORS = "|".join(sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}))
LAZY = re.compile(rf"vivavoce\.({FLOORS})(\.\w+)*(:\w+)?")


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import anywhere in the file, inside functions and registries too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            if node.module == "vivavoce":  # from vivavoce import codecs
                yield from ((node.lineno, f"vivavoce.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = path.relative_to(PACKAGE.parent).parts[: -node.level]
            yield node.lineno, ".".join([*parts, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY.fullmatch(node.value):
            yield node.lineno, node.value.split(":")[0]


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    """Each call of the plain function `name` in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node

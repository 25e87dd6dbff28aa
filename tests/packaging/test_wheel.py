"""The wheel that a stranger installs: it holds the package's data and works in an empty folder."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = {".csv", ".yaml", ".json", ".onnx", ".safetensors", ".model", ".html", ".js", ".css", ".flac", ".txt", ".typed"}


def shipped(suffixes: set[str]) -> set[str]:
    """Files under src/ that git knows, as paths inside the wheel."""
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in listed.stdout.splitlines() if Path(line).suffix in suffixes and (ROOT / line).is_file()]
    return {line.removeprefix("src/") for line in lines}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of what git tracks, built offline from a copy (an in-tree build/ would smuggle in old files)."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout to build from")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "src", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "-w", str(out), str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_every_tracked_file_of_the_package_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    missing = shipped(DATA | {".py"}) - inside
    assert not missing, sorted(missing)
    assert "vivavoce/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests/", "examples/"))]


def test_tracked_data_has_a_known_suffix():
    """A file of a new kind must be named in pyproject.toml's package-data, or it is left out of the wheel."""
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    strange = [line for line in listed.stdout.splitlines() if Path(line).suffix not in DATA | {".py"}]
    assert all(Path(line).name in {"LICENSE", "README.md", "NOTICE"} or line.endswith(".md") for line in strange), (
        strange
    )


def test_files_stay_small(wheel):
    sizes = {entry.filename: entry.compress_size for entry in zipfile.ZipFile(wheel).infolist()}
    assert sum(sizes.values()) < 23e6, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_it_works_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "VIVAVOCE_OFFLINE": "1"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import vivavoce; print(vivavoce.__file__)").startswith(str(site))
    assert "systems" in python("-m", "vivavoce", "--help")
    rows = json.loads(python("-m", "vivavoce", "systems", "--json"))
    assert len(rows) == 449
    question = ROOT / "examples" / "recordings" / "three-four-george-joined.wav"
    answer = json.loads(python("-m", "vivavoce", "ask", str(question), "-o", "answer.wav", "--json"))
    assert answer["text"] and (empty / "answer.wav").stat().st_size > 10_000


def test_the_atlas_ships_with_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for table, count in (("lm", 215), ("codec", 148), ("eval", 86)):
            text = archive.read(f"vivavoce/atlas/systems_{table}.csv").decode()
            assert len(list(csv.DictReader(io.StringIO(text)))) == count


def test_direct_dependencies_are_few_and_pinned():
    """At most twelve direct dependencies, each pinned by requirements/core.txt within what pyproject.toml allows."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for name in ("core.txt", "test.txt"):
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                package, _, version = line.partition("==")
                assert version, f"requirements/{name}: '{line}' is not an exact pin"
                pins[package.lower().replace("_", "-")] = (name, version)
    assert len(project["dependencies"]) <= 12
    for text in project["dependencies"]:
        need = Requirement(text)
        name, version = pins[need.name.lower().replace("_", "-")]
        assert name == "core.txt" and need.specifier.contains(version), text
    for extra, texts in project["optional-dependencies"].items():
        for text in texts:
            need = Requirement(text)
            assert need.specifier.contains(pins[need.name.lower().replace("_", "-")][1]), f"{extra}: {text}"

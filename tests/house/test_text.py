"""What is written: no traces of anybody's machine, no half-finished places, recipes that hold."""

import re
import subprocess

import pytest

from house.sources import ROOT

# Assembled from pieces so that this file does not trip over itself.
TRACES = re.compile(
    r"(?<![\w.$}/])/(?:work|root|tmp|home)" + r"/\w|\b(?i:issues?) #?\d+\b|\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"
)
TEXT = ("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.txt", "*.html", "Makefile", ".ci/run")


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nothing_speaks_of_a_machine_or_of_unfinished_work():
    faults = []
    for name in tracked(*TEXT):
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            if found := TRACES.search(line):
                faults.append(f"{name}:{number}: {found[0]}")
    assert not faults, "\n".join(faults)


def test_the_pattern_finds_what_it_should():
    for bad in ("see /" + "work/x", "'/" + "tmp/a'", "# TO" + "DO: later", "fixes issue" + " #3"):
        assert TRACES.search(bad), bad
    for good in (
        "tmp_path / 'a'",
        "$(HOME)/x",
        "the home page",
        "https://example.org/" + "home/x",
        "issues open",
        "for job in todo",
    ):
        assert not TRACES.search(good), good


def recipes() -> list[str]:
    return tracked("src/vivavoce/recipes/*.yaml", "src/vivavoce/recipes/**/*.yaml")


@pytest.mark.parametrize("name", sorted(set(recipes())))
@pytest.mark.parametrize("size", ["full", "smoke"])
def test_every_recipe_is_valid(name, size):
    from vivavoce.schema import read_recipe

    recipe = read_recipe(ROOT / name, size=size)
    assert recipe.system


def test_no_big_files_are_tracked():
    sizes = {name: (ROOT / name).stat().st_size for name in tracked()}
    examples = sum(size for name, size in sizes.items() if name.startswith("examples/"))
    assert examples <= 2_100_000, f"examples/ holds {examples} bytes"
    assert not {name: size for name, size in sizes.items() if size > 20e6}

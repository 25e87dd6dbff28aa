"""Levels follow from tests: known answers for the rule, and the plugin that writes the shipped table."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from vivavoce.atlas import load_systems
from vivavoce.atlas.levels import LEVELS, REQUIRED, Proof, compute, kind_of

TESTS = Path(__file__).resolve().parents[1]
KINDS = {"lm/a": "model", "codec/e": "encoder", "eval/9": "evaluation"}


def level(*proofs: tuple, key: str = "lm/a") -> str:
    made = [Proof(key, lv, check, f"t{i}", outcome) for i, (lv, check, outcome) in enumerate(proofs)]
    return compute(made, KINDS).get(key, {"level": "listed"})["level"]


RECIPE = [("recipe", check, "passed") for check in ("builds", "trains", "generates")]


@pytest.mark.parametrize(
    ("proofs", "expected"),
    [
        ([], "listed"),
        (RECIPE[:2], "listed"),  # a required check is missing
        (RECIPE, "recipe"),
        ([("recipe", None, "passed")], "recipe"),  # one test for the whole level
        ([("recipe", None, "skipped")], "listed"),
        ([*RECIPE, ("recipe", "trains", "failed")], "listed"),  # one failed test of the level takes it away
        ([("mechanism", None, "passed")], "listed"),  # nothing beneath it
        ([*RECIPE, ("weights", None, "passed")], "recipe"),  # a gap at mechanism
        ([*RECIPE, ("mechanism", None, "passed"), ("weights", "loads", "passed")], "mechanism"),
        ([*RECIPE, ("mechanism", None, "passed"), ("weights", None, "passed"), ("result", None, "passed")], "result"),
    ],
)
def test_a_level_holds_when_its_checks_passed_and_those_beneath_hold(proofs, expected):
    assert level(*proofs) == expected


def test_kinds_have_their_own_checks():
    assert level(("recipe", "features", "passed"), key="codec/e") == "recipe"
    assert level(("recipe", "fixture", "passed"), ("mechanism", "rule", "passed"), key="eval/9") == "mechanism"
    with pytest.raises(ValueError, match="no check 'trains'"):
        level(("recipe", "trains", "passed"), key="eval/9")
    with pytest.raises(ValueError, match="no row 'lm/nobody'"):
        level(("recipe", None, "passed"), key="lm/nobody")
    assert all(tuple(required) == LEVELS[1:] for required in REQUIRED.values())


@cache
def module_of(source):
    """A file of tests that makes some of them in a loop."""
    spec = importlib.util.spec_from_file_location(source.stem, source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_levels_belong_to_rows_and_tests_that_exist():
    """The shipped table names only rows of the atlas and tests that are still there."""
    for system in load_systems():
        assert system.level in LEVELS
        for tests in system.proofs.values():
            for test in tests:
                file, _, name = test.partition("::")
                source = TESTS.parent / file
                assert source.is_file(), f"{system.key}: {test}"
                last = name.split("::")[-1]
                assert last in source.read_text() or hasattr(module_of(source), last), f"{system.key}: {test}"
    assert kind_of("codec", "ssl-encoder") == "encoder" and kind_of("codec", "vocoder") == "model"


@pytest.fixture
def suite(tmp_path):
    """A little suite of its own that uses the plugin; gives a function that runs it."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "src/vivavoce/atlas").mkdir(parents=True)
    for name in ("proof_plugin.py", "proves.py"):
        shutil.copy(TESTS / name, tmp_path / "tests" / name)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\nmarkers = proves: x\n")
    (tmp_path / "tests/conftest.py").write_text(
        "import sys, os; sys.path.insert(0, os.path.dirname(__file__))\npytest_plugins = ['proof_plugin']\n"
    )

    def run(body: str, *arguments: str, ci: bool = False) -> tuple[int, str, dict | None]:
        (tmp_path / "tests/test_it.py").write_text("import pytest\nfrom proves import proves\n" + body)
        environment = {**os.environ, "CI": "true" if ci else "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        table = tmp_path / "src/vivavoce/atlas/levels.json"
        return done.returncode, done.stdout + done.stderr, json.loads(table.read_text()) if table.exists() else None

    return run


GOOD = "@proves('moshi', 'recipe')\n@pytest.mark.parametrize('n', [1, 2])\ndef test_smoke(n): pass\n"
ENTRY = {"lm/moshi": {"level": "recipe", "proofs": {"recipe": ["tests/test_it.py::test_smoke"]}}}


def test_a_passing_run_writes_the_table_and_ci_finds_a_stale_one(suite):
    code, out, table = suite(GOOD, ci=True)
    assert code == 1 and "stale (lm/moshi)" in out and table is None
    code, out, table = suite(GOOD)
    assert code == 0 and table == ENTRY
    assert suite(GOOD, "-p", "xdist.plugin", "-n", "2", ci=True)[0] == 0  # the same table from two workers
    assert suite("def test_nothing(): pass\n", ci=True)[0] == 1  # the proof is gone
    assert suite("def test_nothing(): pass\n")[2] == {}


def test_skipped_tests_keep_the_shipped_entry_failed_and_partial_runs_write_nothing(suite):
    suite(GOOD)
    skipped = GOOD.replace("pass\n", "pytest.skip('no data')\n")
    assert suite(skipped, ci=True)[0] == 0
    assert suite(GOOD.replace("pass\n", "assert 0\n"))[2] == ENTRY
    assert suite("def test_nothing(): pass\n", "tests/test_it.py")[2] == ENTRY
    assert suite("def test_nothing(): pass\n", "-k", "nothing")[2] == ENTRY


def test_proves_option_and_wrong_claims(suite):
    code, out, _ = suite(GOOD + "def test_other(): pass\n", "--proves", "moshi")
    assert code == 0 and "2 passed" in out and "1 deselected" in out
    code, out, table = suite(GOOD + "def test_other(): assert 0\n", "--proves", "all")
    assert code == 0 and "2 passed" in out and table == ENTRY
    code, out, _ = suite("@proves('moshi', 'recipe', 'sings')\ndef test_it(): pass\n")
    assert code != 0 and "no check 'sings'" in out

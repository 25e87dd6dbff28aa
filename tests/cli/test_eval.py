"""`vivavoce eval`: tables, lines, resuming, one-line errors with exit codes."""

import json
from functools import partial

import pytest

import vivavoce
from fake_models import Talker


@pytest.fixture
def run(command):
    return partial(command, "eval")


@pytest.fixture
def talker(monkeypatch):
    model = Talker("seven")
    monkeypatch.setitem(vivavoce.__dict__, "load", lambda name, **options: model)
    return model


QUICK = ("--set", "digits.groups=digits", "--set", "digits.judge=false", "--limit", 2)


def test_a_table_with_targets(run, talker, pack):
    code, out, _ = run("fake", "--task", "digits", "--data", pack, *QUICK)
    assert code == 0
    assert "fake: digits" in out and "digits correct" in out and ">= 97 MISSED" in out


def test_json_lines_and_a_folder_that_goes_on(run, talker, pack, tmp_path):
    arguments = ("fake", "--task", "digits", "--data", pack, *QUICK, "--json", "--out", tmp_path / "run")
    code, out, _ = run(*arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {"task", "metric", "value", "low", "high", "count", "target", "reached"} <= rows[0].keys()
    assert [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()] == rows
    asked = talker.asked
    code, again, _ = run(*arguments)
    assert code == 0 and again == out and talker.asked == asked


def test_the_default_is_the_recipes_own_tasks(run, talker, pack):
    talker.recipe = type("Recipe", (), {"evaluation": ["digits"]})()
    code, out, _ = run("fake", "--data", pack, *QUICK)
    assert code == 0 and "fake: digits" in out


@pytest.mark.parametrize(
    "arguments,code,message",
    [
        (("fake",), 2, "names no tasks of its own: give --task"),
        (("fake", "--task", "nothing"), 2, "task 'nothing' does not exist"),
        (("fake", "--task", "digits", "--set", "digits"), 2, "write TASK.KEY=VALUE"),
        (("fake", "--task", "digits", "--set", "digits.colour=red"), 2, "colour"),
        (("fake", "--task", "digits", "--set", "digits.groups=colours"), 2, "no group"),
        (("fake", "--task", "digits", "--set", "digits.groups=no"), 2, "groups"),
        (("fake", "--task", "digits", "--set", "digits.rows=[1"), 2, "not YAML"),
        (("fake", "--task", "digits", "--set", "digits.rows=abc"), 2, "task digits: rows"),
        (("fake", "--task", "digits", "--set", "digits.rows=0"), 2, "task digits: rows"),
        (("fake", "--task", "digits", "--set", "digits.seed=x"), 2, "task digits: seed"),
        (("fake", "--task", "digits", "--set", "digits.seed=-1"), 2, "task digits: seed"),
        (("fake", "--task", "digits", "--set", "digits.groups=quiet,quiet"), 2, "'quiet/0' would be asked 2 times"),
        (("fake", "--task", "resynthesis", "--set", "resynthesis.clips=x"), 2, "task resynthesis: clips"),
        (("fake", "--task", "resynthesis", "--set", "resynthesis.clips=-3"), 2, "task resynthesis: clips"),
        (("fake", "--task", "resynthesis", "--set", "resynthesis.seconds=x"), 2, "task resynthesis: seconds"),
        (("fake", "--task", "resynthesis", "--set", "resynthesis.seconds=.nan"), 2, "task resynthesis: seconds"),
        (("fake", "--task", "pairwise_likelihood", "--set", "pairwise_likelihood.batch=x"), 2, "likelihood: batch"),
        (("fake", "--task", "intelligibility", "--set", "intelligibility.sentences=[1,2]"), 2, "sentences[0]"),
        (("fake", "--task", "footprint", "--set", "footprint.steps=none"), 2, "task footprint: steps"),
        (("fake", "--task", "resynthesis"), 2, "needs the verb 'resynth'"),
        (("fake", "--task", "digits", "--data", "nowhere"), 1, "nowhere: no such folder"),
        (("fake", "--task", "digits", "--set", "digits.groups=digits"), 1, "--data"),
        (("fake", "--limit", "0"), 2, "limit"),
    ],
)
def test_wrong_requests_are_one_line(run, talker, monkeypatch, arguments, code, message):
    monkeypatch.delenv("VIVAVOCE_DATA", raising=False)
    left, _, err = run(*arguments)
    assert left == code and message in err
    assert err.startswith("error: ") and err.count("\n") == 1

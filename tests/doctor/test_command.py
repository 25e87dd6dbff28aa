"""`vivavoce doctor`: what it prints, its exit codes, and what it refuses in one line."""

import json
from functools import partial

import pytest
import soundfile

from doctor.planted import RATE, audio, change, corpus
from vivavoce.doctor.findings import CHECKS, KINDS, check, examine, fault, look
from vivavoce.doctor.findings import Report as Found
from vivavoce.errors import DataError


@pytest.fixture
def doctor(command):
    """The command's own: exit code, stdout, stderr."""
    return partial(command, "doctor")


def test_healthy_leaves_with_0_and_a_fault_with_1(doctor, tmp_path):
    folder = corpus(tmp_path / "c")
    code, out, err = doctor(folder)
    assert code == 0 and out.endswith("12 checks: nothing found\n") and err.startswith("listen: ")
    change(folder, 2, license="unknown")
    code, out, _ = doctor(folder)
    assert code == 0 and "LOOK  licences: " in out and "0 faults, 1 worth a look" in out
    for number in range(7):
        path, samples = audio(folder, number)
        soundfile.write(path, samples + 0.1, RATE)
    code, out, _ = doctor(folder)
    assert code == 1 and out.index("FAULT offset: ") < out.index("LOOK  licences: ")
    where = next(line for line in out.splitlines() if "where: 7: c/00 (0.100); " in line)
    assert where.endswith("and 2 more") and "      do: subtract the mean" in out


def test_json_has_the_same(doctor, tmp_path):
    folder = corpus(tmp_path / "c")
    change(folder, 2, duration=7.0)
    code, out, err = doctor(folder, "--json")
    told = json.loads(out)
    assert code == 1 and err == "" and told["healthy"] is False and told["kind"] == "corpus"
    (finding,) = told["findings"]
    assert finding.keys() == {"severity", "what", "remedy", "where", "count", "check"}
    assert (finding["check"], finding["severity"], finding["count"]) == ("durations", "fault", 1)
    assert "silence" in told["checked"] and told["unchecked"] == {}


def test_a_recipes_batches_are_shown(doctor):
    code, out, _ = doctor("layout-flat")
    assert code == 0 and "cells scored" not in out
    code, out, _ = doctor("layout-flat", "--show-batch")
    assert code == 0 and "phase patterns, first batch:" in out and "cells scored" in out and "v0.0=" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "'nowhere': nothing of that name"),
        (["layout-flat", "mini"], 2, "kind recipe, run: one of corpus"),
        (["layout-flat", "--size", "huge"], 2, "size 'huge'"),
        (["layout-flat", "--sample", "0"], 2, "--sample"),
        (["mini", "--kind", "house"], 2, "kind house: one of corpus, store, recipe, run"),
        (["TMP/empty.jsonl"], 1, "no audio found"),
        (["TMP/bad.jsonl"], 1, "line 1: not JSON"),
        (["TMP/bad.yaml"], 2, "not readable as YAML"),
        (["TMP/store"], 1, "store.json: damaged"),
        (["TMP/store", "--kind", "corpus"], 1, "no audio found"),
        (["TMP/empty.jsonl", "--recipe", "none.yaml"], 2, "no recipe 'none.yaml'"),
    ],
)
def test_bad_input_is_one_line(doctor, tmp_path, arguments, code, said):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "bad.yaml").write_text("a: [1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text("{")
    got, out, err = doctor(*(text.replace("TMP", str(tmp_path)) for text in arguments))
    assert got == code and said in err and out == ""
    assert err.count("\n") == 1 and err.startswith("error: ") and "a fault of vivavoce" not in err


def test_a_check_that_fails_leaves_the_others(monkeypatch):
    monkeypatch.setitem(CHECKS, "corpus", {})

    @check("corpus")
    def first_one(subject):
        yield look("a", "b", ["c"])
        raise DataError("the loader says no")

    @check("corpus")
    def second(subject):
        yield fault("d", "e")

    report = examine("corpus", None, Found("x", "corpus"))
    assert [(f.check, f.what) for f in report.findings] == [
        ("first-one", "a"), ("first-one", "the loader says no"), ("second", "d"),
    ]  # fmt: skip
    assert report.checked == ["first-one", "second"]


def test_every_kind_has_its_checks_each_with_an_explanation():
    import vivavoce.doctor.corpus
    import vivavoce.doctor.run
    import vivavoce.doctor.store  # noqa: F401

    assert {kind: len(CHECKS[kind]) for kind in KINDS} == {"corpus": 12, "store": 12, "recipe": 11, "run": 15}
    assert all(function.__doc__ for checks in CHECKS.values() for function in checks.values())

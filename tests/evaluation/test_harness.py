"""The harness: artefacts before scores, resuming, limits, errors of single items, results as lines."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vivavoce.audio import Audio
from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation import Item, Result, Task, estimate, evaluate, task
from vivavoce.evaluation.report import as_lines, interval, number, table


@dataclass(frozen=True)
class Question:
    path: Path
    number: int


class Echo:
    verbs = ("echo",)

    def __init__(self, fingerprint="a", die_at=None):
        self.fingerprint, self.die_at, self.asked = fingerprint, die_at, []

    def echo(self, value):
        if self.die_at is not None and len(self.asked) == self.die_at:
            raise KeyboardInterrupt
        self.asked.append(value)
        return Audio(np.full((1, 4), value / 100, np.float32), 8000)


class Halves(Task):
    name, verb = "halves", "echo"

    def __init__(self, count=10):
        self.count, self.settings = count, {"count": count}

    def items(self, data):
        return [Item(f"item/{i}", i, i % 2, f"group{i % 2}") for i in range(self.count)]

    def answers(self, model, items):
        for item in items:
            if item.given == 3:
                yield item, {"error": "unusable"}
            else:
                yield item, {"audio": model.echo(item.given), "n": item.given}

    def score(self, item, artefact):
        return {"value": float(artefact["audio"].samples[0, 0]) * 100}

    def summarize(self, scored):
        return [Result.of(self.name, "mean", "", estimate([s.scores["value"] for s in scored]), "", target=4.0)]


def test_items_answers_scores_and_what_failed():
    model = Echo()
    mean, failed = evaluate(model, Halves())
    assert mean.value == pytest.approx(42 / 9, abs=1e-3) and mean.count == 9 and mean.reached is True
    assert failed.value == 1 and "item/3: unusable" in failed.note
    assert model.asked == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_a_killed_evaluation_goes_on_and_gives_the_same(tmp_path):
    whole = evaluate(Echo(), Halves())
    with pytest.raises(KeyboardInterrupt):
        evaluate(Echo(die_at=4), Halves(), out=tmp_path)
    journal = tmp_path / "halves/artefacts.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])  # the kill came while a line was written
    again = Echo()
    resumed = evaluate(again, Halves(), out=tmp_path)
    assert len(again.asked) == 6
    assert [r.row() | {"value": 0, "low": 0, "high": 0} for r in resumed] == [
        r.row() | {"value": 0, "low": 0, "high": 0} for r in whole
    ]
    assert resumed[0].value == pytest.approx(whole[0].value, abs=0.01)
    third = Echo()
    evaluate(third, Halves(), out=tmp_path)
    assert third.asked == []


def test_answers_of_another_model_or_other_settings_are_refused(tmp_path):
    evaluate(Echo(), Halves(), out=tmp_path)
    with pytest.raises(DataError, match="another model or other settings"):
        evaluate(Echo("b"), Halves(), out=tmp_path)
    with pytest.raises(DataError, match="another model or other settings"):
        evaluate(Echo(), Halves(5), out=tmp_path)


def test_answers_to_other_data_of_the_same_names_are_refused(tmp_path):
    class Files(Halves):
        def items(self, data):
            return [Item(path.name, [Question(path, 1)], group="g") for path in sorted(data.iterdir())]

        def answers(self, model, items):
            for item in items:
                size = len(item.given[0].path.read_bytes())
                yield item, {"audio": model.echo(size)} if size < 50 else {"error": "unusable"}

    for name, second in (("one", b"22"), ("copy", b"22"), ("other", b"3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")
        (tmp_path / name / "b").write_bytes(second)
        (tmp_path / name / "c").write_bytes(b"-" * 60)
    out, model = tmp_path / "out", Echo()
    evaluate(model, Files(), tmp_path / "one", out, limit=1)
    evaluate(model, Files(), tmp_path / "one", out)
    evaluate(model, Files(), tmp_path / "copy", out)
    assert model.asked == [1, 2]
    (tmp_path / "copy" / "c").write_bytes(b"333")  # mended: asked again
    assert [result.metric for result in evaluate(model, Files(), tmp_path / "copy", out)] == ["mean"]
    with pytest.raises(DataError, match="its answer to 'b' is one to other data"):
        evaluate(model, Files(), tmp_path / "other", out)


def test_names_that_look_alike_on_disk_keep_their_own_answers(tmp_path):
    class Alike(Halves):
        def items(self, data):
            return [Item(name, i, 0) for i, name in enumerate(("a/b", "a_b", "a b"))]

    (mean,) = evaluate(Echo(), Alike(), out=tmp_path)
    assert mean.value == pytest.approx(1.0, abs=0.01)


def test_no_usable_item_is_an_error_and_an_item_twice_too():
    class Unusable(Halves):
        def answers(self, model, items):
            yield from ((item, {"error": "no audio"}) for item in items)

    with pytest.raises(DataError, match="none of 10 items could be used; first: item/0: no audio"):
        evaluate(Echo(), Unusable())

    class Twice(Halves):
        def items(self, data):
            return super().items(data) * 2

    with pytest.raises(RequestError, match="'item/0' would be asked 2 times"):
        evaluate(Echo(), Twice())


@pytest.mark.parametrize("line", [b"5\n", b"[1]\n", b'{"id": "a"}\n', b'{"id": [], "artefact": {}}\n', b"\xff\n"])
def test_damaged_answers_are_named(tmp_path, line):
    evaluate(Echo(), Halves(), out=tmp_path)
    journal = tmp_path / "halves/artefacts.jsonl"
    journal.write_bytes(line + journal.read_bytes())
    with pytest.raises(DataError, match=r"artefacts\.jsonl, line 1"):
        evaluate(Echo(), Halves(), out=tmp_path)
    (tmp_path / "halves/identity.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="another model"):
        evaluate(Echo(), Halves(), out=tmp_path)


def test_limits_are_for_each_group():
    model = Echo()
    with pytest.raises(RequestError, match="limit is 0"):
        evaluate(model, Halves(20), limit=0)
    evaluate(model, Halves(20), limit=2)
    assert len(model.asked) == 4 and {v % 2 for v in model.asked} == {0, 1}


def test_wrong_requests_are_named():
    with pytest.raises(RequestError, match="needs the verb 'echo'; this model has sing"):
        evaluate(type("M", (), {"verbs": {"sing": "native"}})(), Halves())
    with pytest.raises(RequestError, match="task 'nothing' does not exist: one of codec, digits"):
        task("nothing")
    with pytest.raises(RequestError, match=r"task resynthesis: .*colour"):
        task("resynthesis", colour="red")
    with pytest.raises(RequestError, match="nothing to ask"):
        evaluate(Echo(), Halves(0))


def test_results_as_lines_and_as_a_table():
    results = [
        Result("t", "share", "g", 97.25, 95.0, 99.0, 40, "%", target=97.0),
        Result("t", "onset", "", 0.612, 0.5, 0.7, 40, "s", target=0.5, higher_is_better=False),
        Result("t", "nothing", "", math.nan, math.nan, math.nan, 0, target=1.0),
    ]
    assert [r.reached for r in results] == [True, False, None]
    rows = [json.loads(line) for line in as_lines(results).splitlines()]
    assert rows[0]["value"] == 97.25 and rows[1]["reached"] is False and rows[2]["value"] is None
    assert number(97.25, "%") == "97.2 %" and number(0.6123, "s") == "0.612 s" and number(math.nan) == "-"
    assert interval(results[0]) == "95.0 - 99.0" and interval(results[2]) == ""
    from rich.console import Console

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(results, "title"))
    text = console.export_text()
    assert "0.612 s" in text and "MISSED" in text and ">= 97 reached" in text

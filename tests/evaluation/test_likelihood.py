"""Pairwise likelihood: the official rule, the four scores, and a model whose preferences are known."""

import json
import math

import numpy as np
import pytest

from vivavoce.audio import Audio, write
from vivavoce.errors import DataError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.likelihood import preference


class PrefersLoud:
    """Log-probability of an utterance = tokens x (level - 1); its own vocabulary doubles it; text is sure."""

    verbs = ("loglik",)
    fingerprint = "loud"

    def __init__(self):
        self.batches = []

    def loglik(self, items, vocabulary="full"):
        self.batches.append(len(items))
        rows = []
        for segments in items:
            row = {}
            for modality, content, scored in segments:
                if scored and modality == "audio":
                    count = len(content) // 100
                    row["units"] = (
                        count * (float(content.samples.max()) - 1) * (2 if vocabulary == "stream" else 1),
                        count,
                    )
                elif scored:
                    row["text"] = (0.0, len(content.split()))
            rows.append(row)
        return rows


@pytest.fixture
def pairs(tmp_path):
    rows = []
    for number, (right, wrong, longer) in enumerate([(0.9, 0.1, 1), (0.1, 0.9, 1), (0.5, 0.5, 1), (0.5, 0.4, 3)]):
        write(tmp_path / f"{number}_a.wav", Audio(np.full(1000 * longer, right, np.float32), 16000))
        write(tmp_path / f"{number}_b.wav", Audio(np.full(1000, wrong, np.float32), 16000))
        rows.append(
            {"id": f"{number}", "positive": f"{number}_a.wav", "negative": f"{number}_b.wav", "group": "ab"[number % 2]}
        )
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(r) for r in reversed(rows)))
    return tmp_path


def results_of(model, folder, **settings):
    return {(r.metric, r.group): r for r in evaluate(model, task("pairwise_likelihood", **settings), folder)}


def test_sum_and_mean_differ_where_lengths_do(pairs):
    found = results_of(PrefersLoud(), pairs)
    # Pairs: right, wrong, a tie, and one where only the mean over tokens is right.
    assert found["mean/full", "all pairs"].value == pytest.approx(100 * (1 + 0 + 0.5 + 1) / 4)
    assert found["sum/full", "all pairs"].value == pytest.approx(100 * (1 + 0 + 0.5 + 0) / 4)
    assert found["sum/stream", "a"].value == 75 and found["mean/stream", "b"].value == 50
    assert found["sum/full", "a"].count == 2


def test_the_result_does_not_depend_on_the_batch(pairs):
    one, many = PrefersLoud(), PrefersLoud()
    assert results_of(one, pairs, batch=2) == results_of(many, pairs, batch=100)
    assert max(one.batches) == 2 and max(many.batches) == 8


def test_segments_may_be_context_only(pairs):
    row = {
        "id": "x",
        "positive": [{"text": "once upon", "scored": False}, {"audio": "0_a.wav"}],
        "negative": [{"audio": "0_b.wav"}, {"text": "a time"}],
    }
    (pairs / "pairs.jsonl").write_text(json.dumps(row))
    assert results_of(PrefersLoud(), pairs)["sum/full", ""].value == 100


def test_the_rule():
    assert [preference(1, 0), preference(0, 1), preference(1, 1)] == [1.0, 0.0, 0.5]
    assert math.isnan(preference(math.nan, 1))


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "line 1"),
        ('{"id": 1}', "positive"),
        ('{"id": 1, "positive": 2, "negative": 3}', "line 1"),
        ('{"id": 1, "positive": [{"text": 3}], "negative": "b.wav"}', "line 1.*3 is no text"),
        ('{"id": 1, "positive": [], "negative": "b.wav"}', "line 1.*scored"),
        ("\udcff", "pairs.jsonl: not text in UTF-8"),
    ],
)
def test_broken_pairs_are_named(tmp_path, content, message):
    (tmp_path / "pairs.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        results_of(PrefersLoud(), tmp_path)


def test_missing_pairs_and_missing_audio(pairs, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        results_of(PrefersLoud(), tmp_path / "nothing")
    (pairs / "0_a.wav").unlink()
    found = results_of(PrefersLoud(), pairs)
    assert found["items that could not be used", ""].value == 1 and found["sum/full", "a"].count == 1

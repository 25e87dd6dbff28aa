"""The task `units`: counts by their definitions, and a model whose units are known."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.cli import main
from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation import evaluate
from vivavoce.evaluation import task as task_named
from vivavoce.evaluation.unit_statistics import (
    cluster_purity,
    edit_distance,
    entropy,
    joint_counts,
    phone_purity,
    pnmi,
    runs,
)
from vivavoce.systems.codec_model import Frames

HOP = 160


def test_purities_and_mutual_information_are_their_definitions():
    chance = np.random.default_rng(0)
    phones = [chance.integers(-1, 4, 90) for _ in range(3)]
    units = [np.where(chance.random(len(p)) < 0.6, 2 * p + 2, chance.integers(0, 10, len(p))) for p in phones]
    units[1] = units[1][:70]
    joint = joint_counts(phones, units, (4, 10))
    pairs = Counter((p, u) for one, two in zip(phones, units) for p, u in zip(one, two) if p >= 0)
    assert joint.sum() == sum(pairs.values()) and all(joint[key] == count for key, count in pairs.items())
    total = sum(pairs.values())
    of_p, of_u = Counter(), Counter()
    for (p, u), count in pairs.items():
        of_p[p] += count
        of_u[u] += count
    best_p = sum(max(pairs[p, u] for p in range(4)) for u in of_u)
    best_u = sum(max(pairs[p, u] for u in range(10)) for p in of_p)
    assert phone_purity(joint) == pytest.approx(best_p / total)
    assert cluster_purity(joint) == pytest.approx(best_u / total)
    information = sum(c / total * math.log(c * total / of_p[p] / of_u[u]) for (p, u), c in pairs.items())
    uncertainty = -sum(c / total * math.log(c / total) for c in of_p.values())
    assert pnmi(joint) == pytest.approx(information / uncertainty)
    assert pnmi(np.eye(5)) == pytest.approx(1) and pnmi(np.ones((5, 3))) == pytest.approx(0)
    assert entropy(np.array([1, 1, 0, 2])) == pytest.approx(1.5)
    assert math.isnan(phone_purity(np.zeros((2, 2))))


def test_runs_and_edits():
    units, lasting = runs(np.array([3, 3, 1, 1, 1, 3]))
    assert units.tolist() == [3, 1, 3] and lasting.tolist() == [2, 3, 1]
    assert not len(runs(np.zeros(0, np.int64))[0])

    def slow(a, b):
        table = {(i, j): max(i, j) for i in range(len(a) + 1) for j in range(len(b) + 1) if not i * j}
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                changed = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
                table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, changed)
        return table[len(a), len(b)]

    chance = np.random.default_rng(1)
    for _ in range(40):
        one, two = (chance.integers(0, 3, chance.integers(0, 12)) for _ in range(2))
        assert edit_distance(one, two) == slow(one, two)


@pytest.fixture
def run_cli(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert left.value.code == 0, said.err
        return said.out

    return call


class Pitches:
    """Frames: which of four tones sounds (one-hot, and how loud); units: its number."""

    sample_rate, verbs, device = 16000, {"features": "native"}, torch.device("cpu")
    fingerprint = "pitches"
    frame_rate, hop, codebook_size = 100.0, HOP, 4

    def __init__(self):
        self.system = self
        self.codec = self

    def features(self, audio, layer=None):
        wave = audio.samples[0][: len(audio.samples[0]) // HOP * HOP].reshape(-1, HOP)
        turns = np.exp(-2j * np.pi * np.arange(HOP)[:, None] * np.arange(5, 25, 5) / HOP)
        return Frames(np.abs(wave @ turns).astype(np.float32) + 1e-3, 100.0)

    def encode(self, wave, lengths=None):
        frames = self.features(vivavoce.Audio(wave[0].numpy(), 16000)).values
        return torch.from_numpy(frames.argmax(1))[None, None]


@pytest.fixture
def corpus(tmp_path):
    """Three speakers say tones; what they say stands in the manifest."""
    rows = []
    chance = np.random.default_rng(2)
    for speaker in range(3):
        for number in range(2):
            tones = chance.integers(0, 4, 30)
            tones = tones[np.concatenate([[True], tones[1:] != tones[:-1]])]
            turns = 2 * np.pi * 5 * np.arange(6 * HOP) / HOP
            wave = np.concatenate([0.3 * np.sin(turns * (t + 1) + speaker) for t in tones])
            name = f"s{speaker}-{number}"
            vivavoce.write(tmp_path / f"{name}.flac", vivavoce.Audio(wave[None].astype(np.float32), 16000))
            phones = [["ABCD"[t], round(i * 0.06, 4), round(i * 0.06 + 0.06, 4)] for i, t in enumerate(tones)]
            row = {"id": name, "audio": f"{name}.flac", "duration": len(wave) / 16000, "license": "CC0", "source": "x"}
            rows.append({**row, "speaker": f"s{speaker}", "phones": phones})
    place = tmp_path / "corpus.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_model_whose_units_are_the_phones_is_perfect_until_it_is_disguised(corpus, tmp_path):
    found = evaluate(Pitches(), task_named("units"), corpus, tmp_path / "out")
    values = {(row.metric, row.group): row for row in found}
    for kind in ("triphone", "phoneme"):
        for what in ("frames", "units"):
            for mode in ("within", "across"):
                row = values[f"ABX error, {kind}", f"{what}, {mode} speakers"]
                assert row.value == pytest.approx(0, abs=1e-9) and row.low <= row.value <= row.high and row.count > 10
    for metric in ("PNMI", "phone purity", "cluster purity"):
        assert values[metric, ""].value == pytest.approx(100)
    lasting = values["a unit lasts", "mean"]
    assert [lasting.value, lasting.low, lasting.high] == pytest.approx([60, 60, 60])
    assert values["units of one frame", ""].value == 0
    assert values["consistency", "0.5 s alone"].value == 100
    assert values["unit edit distance", "noise 20 dB"].value == 0
    assert values["unit edit distance", "pitch 1.25"].value > 20, "another tone is another unit"
    every, once = (values["bitrate", g].value for g in ("every frame", "without repetitions"))
    assert every == pytest.approx(6 * once, rel=0.05) and 150 < every <= 200, "two bits, a hundred times a second"
    assert evaluate(Pitches(), task_named("units"), corpus, tmp_path / "out")[0] == found[0], "answers are kept"


class Halves(Pitches):
    """Two tones to a unit, and twice as many frames."""

    name = "halves"
    frame_rate, hop = 200.0, HOP // 2

    def features(self, audio, layer=None):
        values = super().features(audio).values
        return Frames(np.repeat(values[:, :2] + values[:, 2:], 2, axis=0), 200.0)


def test_another_model_hears_the_same_clips(corpus, monkeypatch):
    monkeypatch.setattr("vivavoce.systems.load", lambda name, device: Halves() if name == "runs/halves" else None)
    found = evaluate(Pitches(), task_named("units", robustness=False, against="runs/halves"), corpus)
    values = {(row.metric, row.group): row for row in found}
    theirs = {(row.metric, row.group): row for row in evaluate(Halves(), task_named("units", robustness=False), corpus)}
    for metric, group in (("ABX error, triphone", "frames, across speakers"), ("PNMI", ""),
                          ("ABX error, phoneme", "units, within speakers"), ("phone purity", "")):  # fmt: skip
        row = values[metric, f"{group}, less halves" if group else "less halves"]
        assert row.value == pytest.approx(values[metric, group].value - theirs[metric, group].value, abs=1e-9)
        assert row.low <= row.value <= row.high and (row.high < -10 if group else row.low > 10)


def test_rules_distances_and_item_files_are_chosen(corpus, tmp_path, run_cli):
    from vivavoce.evaluation.abx import read_items

    run_cli("data", "items", corpus, "-o", tmp_path / "tones.item")
    tokens = read_items(tmp_path / "tones.item")
    assert {t.phone for t in tokens} == set("ABCD") and {t.speaker for t in tokens} == {"s0", "s1", "s2"}
    assert all(t.offset - t.onset == pytest.approx(0.18, abs=1e-3) for t in tokens)
    options = {"robustness": False, "rules": "librilight", "distance": "euclidean"}
    found = evaluate(Pitches(), task_named("units", items=str(tmp_path / "tones.item"), **options), corpus)
    rows = [row for row in found if row.metric.startswith("ABX")]
    assert {row.metric for row in rows} == {"ABX error, items"}
    assert "euclidean, context within, librilight" in rows[0].note
    assert not [row for row in found if row.metric == "unit edit distance"]
    with pytest.raises(RequestError, match="there are"):
        task_named("units", distance="taxi")
    with pytest.raises(DataError, match="data phones"):
        evaluate(Pitches(), task_named("units"), None)


def test_phones_come_from_textgrids_too(corpus, tmp_path, run_cli):
    grid = tmp_path / "grids"
    grid.mkdir()
    text = ('File type = "ooTextFile"\nitem []:\n item [1]:\n  class = "IntervalTier"\n  name = "phones"\n'
            "  intervals: size = 2\n  intervals [1]:\n   xmin = 0\n   xmax = 0.2\n   text = \"AH\"\n"
            "  intervals [2]:\n   xmin = 0.2\n   xmax = 0.4\n   text = \"\"\n")  # fmt: skip
    (grid / "s0-0.TextGrid").write_text(text)
    said = run_cli("data", "phones", corpus, "-o", tmp_path / "timed.jsonl", "--by", f"textgrid:{grid}")
    assert "1 clips with phones, 5 skipped" in said
    (row,) = [json.loads(line) for line in (tmp_path / "timed.jsonl").read_text().splitlines()]
    assert row["phones"] == [["AH", 0.0, 0.2]]


def test_pocketsphinx_says_when_phones_are_said(tmp_path, run_cli):
    sound = Path(__file__).resolve().parents[2] / "examples" / "recordings" / "seven-george.wav"
    row = {"id": "seven", "audio": str(sound), "duration": vivavoce.read(sound).duration, "license": "x", "source": "x"}
    source = tmp_path / "one.jsonl"
    source.write_text(json.dumps({**row, "text": "seven"}) + "\n" + json.dumps({**row, "id": "what"}) + "\n")
    said = run_cli("data", "phones", source, "-o", tmp_path / "timed.jsonl")
    assert "1 clips with phones, 1 skipped" in said
    phones = json.loads((tmp_path / "timed.jsonl").read_text())["phones"]
    assert [p[0] for p in phones] == ["S", "EH", "V", "AH", "N"]
    assert all(a[1] < a[2] <= b[1] + 1e-6 for a, b in pairwise(phones))

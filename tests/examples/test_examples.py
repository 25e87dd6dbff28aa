"""The shipped recordings are what they are said to be, and the demo shows them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from evaluation.fake_model import FakeModel
from vivavoce.audio import read

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS = json.loads((EXAMPLES / "recordings.json").read_text())
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
NUMBERS += "sixteen seventeen eighteen".split()


def test_every_file_is_listed_with_licence_and_attribution():
    listed = {row["file"] for row in ROWS}
    assert listed == {f"recordings/{file.name}" for file in (EXAMPLES / "recordings").iterdir()}
    licences = (EXAMPLES / "LICENSES.md").read_text()
    assert all(row["licence"] and row["source"].split()[0] in licences for row in ROWS)
    assert all(Path(row["file"]).name in (EXAMPLES / "README.md").read_text() for row in ROWS)


def test_what_the_demo_must_show_is_there():
    digits = [row for row in ROWS if row["said"] in NUMBERS]
    sums = [row for row in ROWS if len(row["said"].split()) == 2]
    assert len({row["speaker"] for row in digits}) >= 3 and len({row["speaker"] for row in sums}) == 2
    assert all(row["joined"] and "-joined" in row["file"] for row in sums)
    assert any(not row["expected"] for row in ROWS)
    for row in sums:
        first, second = (NUMBERS.index(word) for word in row["said"].split())
        assert row["expected"].split() == [NUMBERS[first], "plus", NUMBERS[second], "is", NUMBERS[first + second]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: Path(row["file"]).stem)
def test_recordings_equal_their_sources(row, pack):
    """Sample for sample the pack's clips; sums with 0.25 s of digital silence between, of the official test split."""
    folder = "fsdd" if "Digit" in row["source"] else "librispeech_other"
    clips = [read(pack / "audio" / folder / f"{clip}.flac").samples[0] for clip in row["clips"]]
    parts = [clips[0]] + [part for clip in clips[1:] for part in (np.zeros(4000, np.float32), clip)]
    audio = read(EXAMPLES / row["file"])
    assert audio.sample_rate == 16000 and np.array_equal(audio.samples[0], np.concatenate(parts))
    assert folder != "fsdd" or all(int(clip.split("_")[-1]) <= 4 for clip in row["clips"])


def test_demo_writes_answers_and_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vivavoce, "load", lambda name: FakeModel(), raising=False)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    shown = capsys.readouterr().out
    for row in ROWS:
        name = Path(row["file"]).stem
        line = next(line for line in shown.splitlines() if line.startswith(name))
        assert "ms" in line or "sentence" in name
        assert read(tmp_path / "out" / f"{name}-answer.wav").duration > 1
    assert (tmp_path / "out" / "index.html").stat().st_size > 100_000
    assert "three plus four" in shown and str(tmp_path / "out" / "index.html") in shown

"""Recorded speech in memory: speakers apart, what cannot be read is skipped and said."""

import json

import numpy as np
import pytest
import torch

from vivavoce.audio import Audio, write
from vivavoce.data.recordings import excerpts, read_recordings, spoken
from vivavoce.errors import DataError, RequestError


@pytest.fixture
def corpus(tmp_path):
    """A manifest of four tones by three speakers, the last one's file cut short."""
    rows = []
    for number, speaker in enumerate(("ann", "ben", "ben", "cat")):
        samples = 0.1 * np.sin(np.arange(4000 + number) * 0.1)[None].astype(np.float32)
        write(tmp_path / f"{number}.flac", Audio(np.repeat(samples, 1 + number % 2, axis=0), 16000))
        row = {"id": f"tones/{number}", "audio": f"{number}.flac", "duration": 0.25, "license": "CC0", "source": "made"}
        rows.append({**row, "speaker": speaker})
    (tmp_path / "3.flac").write_bytes((tmp_path / "3.flac").read_bytes()[:60])
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "tones.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_held_out_speakers_are_apart_and_bad_files_counted(corpus):
    found = read_recordings(["tones"], 16000, ["ben"], corpus)
    assert [wave.shape for wave in found.clips] == [(1, 4000)]
    assert [wave.shape for wave in found.held_out] == [(1, 4001), (1, 4002)]
    assert found.clips[0].dtype == torch.float32 and found.clips[0].abs().max() > 0.09
    assert [name for name, _ in found.skipped] == ["tones/3"]
    half = read_recordings([str(corpus / "manifests" / "tones.jsonl")], 8000)
    assert [wave.shape[1] for wave in half.clips] == [2000, 2001, 2001]
    both = read_recordings(["tones"], 16000, (), corpus, channels=2)  # one of the recordings has two, the others one
    assert [wave.shape for wave in both.clips] == [(2, 4000), (2, 4001), (2, 4002)]
    assert all(torch.equal(*wave) for wave in both.clips)


def test_synthetic_voices_say_the_texts():
    texts, voices = ["good morning", "", "seven", "good morning", "how are you"], ["espeak:en-us+m1", "espeak:es+f2"]
    found = spoken(texts, voices, 2, 16000)
    assert len(found) == 4 and all(wave.shape[0] == 1 and 3000 < wave.shape[1] < 40_000 for wave in found)
    assert all(0.01 < float(wave.square().mean().sqrt()) < 0.5 for wave in found)
    again = spoken(texts, voices[1:], 2, 16000)
    assert [wave.shape for wave in again] != [wave.shape for wave in found[2:]], "the second voice says other texts"
    assert all(torch.equal(one, two) for one, two in zip(spoken(texts, voices, 2, 16000), found, strict=True))
    assert not spoken(texts, [], 2, 16000)
    with pytest.raises(RequestError, match="nothing to say"):
        spoken([""], voices, 2, 16000)


def test_excerpts_are_of_long_clips_and_few():
    waves = [torch.arange(float(size))[None] for size in (5, 9, 10, 11, 12, 13)]
    assert [e.tolist() for e in excerpts(waves, 8, 2, 2)] == [[[8.0, 9.0]]] * 2
    assert len(excerpts(waves, 8, 2, 9)) == 4
    assert excerpts(waves, 9, 9, 2) == []


@pytest.mark.parametrize(
    "corpora, held_out, message",
    [
        (["tones"], ["bob"], "no clip of tones is by 'bob'"),
        (["tones"], ["ann", "ben"], "no recordings to learn from in tones; the first of 1 skipped: tones/3"),
        (["waves"], [], "neither a path nor a manifest"),
        (["no/where.jsonl"], [], "no such file or folder"),
    ],
)
def test_nothing_to_learn_from_is_an_error(corpus, corpora, held_out, message):
    with pytest.raises(DataError, match=message):
        read_recordings(corpora, 16000, held_out, corpus)

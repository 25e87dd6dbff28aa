"""Dialogues in moshi-finetune's format: what a list and a folder hold, what is skipped, windows of tokens, channels."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vivavoce.audio import Audio, read, write
from vivavoce.data.channels import apart, mixed, turns_of
from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.corpora import detect, open_corpus
from vivavoce.data.stereo_dialogues import read_stereo, write_stereo
from vivavoce.data.tokens import TokenRow
from vivavoce.data.windows import Rows, Windows
from vivavoce.errors import DataError

RATE = 8000
MAIN, USER = "SPEAKER_MAIN", "SPEAKER_USER"
SAID = [["Hello", [0.4, 0.72], MAIN], ["mm", [0.5, 0.6], USER], ["there", [2.0, 2.4], MAIN]]


def dialogue(folder, name, seconds=3.0, said=SAID, channels=2):
    path = folder / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.full((channels, int(seconds * RATE)), 0.25, np.float32)
    wave[-1] = -0.25
    write(path, Audio(wave, RATE))
    if said is not None:
        path.with_suffix(".json").write_text(json.dumps({"alignments": said}))
    return {"path": f"{name}.wav", "duration": seconds}


def listed(folder, rows):
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def test_a_list_is_read_as_moshi_finetune_reads_it(tmp_path):
    place = listed(tmp_path, [dialogue(tmp_path, "stereo/a"), dialogue(tmp_path, "stereo/b", said=[])])
    corpus = read_stereo(place)
    first, second = corpus.clips
    assert (first.id, first.channels, first.duration) == ("stereo/a", 2, 3.0) and not corpus.skipped
    by_channel = {c: [w.text for s in first.segments if s.channel == c for w in s.words] for c in (0, 1)}
    assert by_channel == {0: ["Hello", "there"], 1: ["mm"]}
    assert [segment.speaker for segment in first.segments] == ["SPEAKER_MAIN", "SPEAKER_MAIN", "SPEAKER_USER"]
    assert second.words == () and second.text is None  # nobody speaks: that is learned, too
    assert detect(place) == detect(tmp_path) == "stereo"
    assert [clip.id for clip in open_corpus(tmp_path).clips] == ["stereo/a", "stereo/b"]
    assert open_corpus(place, license="mine").clips[0].license == "mine"


def test_what_does_not_fit_is_skipped_and_says_why(tmp_path):
    rows = [
        dialogue(tmp_path, "good"), dialogue(tmp_path, "mono", channels=1), dialogue(tmp_path, "bare", said=None),
        dialogue(tmp_path, "late", said=[["bye", [9.0, 9.5], "SPEAKER_MAIN"]]),
        {**dialogue(tmp_path, "long"), "duration": 8.0}, {"path": "gone.wav", "duration": 1.0},
    ]  # fmt: skip
    corpus = read_stereo(listed(tmp_path, rows))
    why = dict(corpus.skipped)
    assert [clip.id for clip in corpus.clips] == ["good"] and set(why) == {"mono", "bare", "late", "long", "gone"}
    assert "mono.wav: 1 channel(s); two are needed: left the model, right the user" in why["mono"]
    assert "bare.json is missing" in why["bare"]
    assert "late.json: word 0, 'bye', from 9 to 9.5 s: outside of the sound, which lasts 3 s" in why["late"]
    assert "long.wav: 3.00 s long; " in why["long"] and "says 8.00" in why["long"]
    assert "gone.wav: not readable as audio" in why["gone"]


def test_places_and_speakers_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_stereo(tmp_path / "nothing")
    with pytest.raises(DataError, match="no stereo wav with a JSON beside it"):
        read_stereo(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"path": 3}\n')
    with pytest.raises(DataError, match=r"bad.jsonl, line 1: .*\"path\": …, \"duration\": seconds"):
        read_stereo(tmp_path / "bad.jsonl")
    dialogue(tmp_path, "a")
    with pytest.raises(DataError, match="no word is MOSHI's; there are SPEAKER_MAIN, SPEAKER_USER"):
        read_stereo(tmp_path, "MOSHI")
    user = read_stereo(tmp_path, "SPEAKER_USER").clips[0]
    assert [w.text for s in user.segments if s.channel == 0 for w in s.words] == ["mm"]


def test_written_dialogues_are_those_that_are_read(tmp_path):
    dialogue(tmp_path / "in", "a/x")
    corpus = read_stereo(tmp_path / "in")
    untimed = replace(corpus.clips[0], id="untimed", segments=(Segment(0.0, 1.0, "Hello"),))
    away = replace(corpus.clips[0], id="../x")
    made = write_stereo([*corpus.clips, untimed, away], tmp_path / "out")
    assert [name for name, _ in made.skipped] == ["untimed", "../x"]
    assert "'vivavoce data align' finds them" in made.skipped[0][1] and not (tmp_path / "x.wav").exists()
    (again,) = read_stereo(tmp_path / "out" / "data.jsonl").clips
    assert again.id == "stereo/a/x"
    assert [(w.text, w.start, w.end) for w in again.words] == [(w.text, w.start, w.end) for w in corpus.clips[0].words]
    assert np.array_equal(again.load().samples, corpus.clips[0].load().samples)
    data = json.loads((tmp_path / "out" / "stereo" / "a" / "x.json").read_text())
    assert data["alignments"][0] == ["Hello", [0.4, 0.72], "SPEAKER_MAIN"]
    assert data["alignments"][1][2] == "SPEAKER_OTHER"


def talk(folder, channels=1, segments=(), **more):
    wave = np.linspace(0.1, 0.9, 2 * RATE, dtype=np.float32)[None].repeat(channels, 0)
    write(folder / "talk.wav", Audio(wave, RATE))
    return Clip("m/talk", "talk.wav", 2.0, "l", "s", channels=channels, segments=segments, root=str(folder), **more)


ANN = Segment(0.0, 1.0, "good day", "ann", 0, (Word("good", 0.2, 0.5), Word("day", 0.5, 0.9)))
BOB = Segment(0.75, 1.5, "hi", "bob", 0, (Word("hi", 0.8, 1.0),))


def test_a_diarised_recording_is_one_speaker_beside_all_others(tmp_path):
    first, second = apart(talk(tmp_path, segments=(ANN, BOB)))
    assert [first.id, second.id] == ["m/talk#ann", "m/talk#bob"] and first.channels == 2
    whole = read(tmp_path / "talk.wav").samples[0]
    for part, (start, end) in ((first, (0.0, 1.0)), (second, (0.75, 1.5))):
        own, other = part.load().samples
        inside = np.zeros(len(whole), bool)
        inside[round(start * RATE) : round(end * RATE)] = True
        assert np.array_equal(own, whole * inside) and np.array_equal(other, whole * ~inside)
        blocks = np.concatenate([block.samples for block in part.blocks(0.3, RATE)], axis=1)
        assert np.allclose(blocks, np.stack([own, other]), atol=1e-4)
    assert [w.text for s in first.segments if s.channel == 0 for w in s.words] == ["good", "day"]
    assert [w.text for s in second.segments if s.channel == 1 for w in s.words] == ["good", "day"]


def test_turns_of_a_diarisation_take_the_words_that_they_overlap(tmp_path):
    said = (Word("good", 0.2, 0.5), Word("hi", 1.3, 1.6))
    clip = talk(tmp_path, segments=(Segment(0.0, 2.0, "good hi", None, 0, said),))
    turns = turns_of(clip, {"talk": [Segment(0.1, 1.0, speaker="ann"), Segment(1.1, 1.5, speaker="bob")]})
    ann, bob = apart(clip, turns)
    assert [w.text for s in ann.segments if s.channel == 0 for w in s.words] == ["good"]
    assert [w.text for s in bob.segments if s.channel == 0 for w in s.words] == ["hi"]


def test_recordings_that_cannot_be_told_apart(tmp_path):
    nameless = replace(ANN, speaker=None)
    for clip, message in (
        (talk(tmp_path, segments=(nameless,)), "one channel, and nothing says who speaks when"),
        (talk(tmp_path, segments=(replace(ANN, words=()),)), "words without times; 'vivavoce data align' finds them"),
        (talk(tmp_path, text="good day"), "words without times"),
        (talk(tmp_path, channels=3), "3 channels; one, or one for each of two speakers"),
    ):
        with pytest.raises(DataError, match=message):
            apart(clip)
    both = talk(tmp_path, channels=2, segments=(ANN, replace(BOB, channel=1)))
    assert apart(both) == [both]
    one = mixed(both)
    assert one.load().samples.shape == (1, 2 * RATE) and [w.text for w in one.words] == ["good", "day", "hi"]
    with pytest.raises(DataError, match="no words; 'vivavoce data align'"):
        mixed(talk(tmp_path))


def row(name, frames, channels=2):
    codes = [np.arange(2 * frames).reshape(2, frames) + 100 * c for c in range(channels)]
    said = ((Word("a", 0.0, 0.1), Word("b", 0.8, 1.0)), (Word("c", 0.5, 0.6),))[:channels]
    return TokenRow(name, frames / 12.5, "l", "s", {"voice": codes}, alignment=said)


def test_windows_hold_each_frame_once_and_the_words_that_begin_in_them():
    windows = Windows(Rows([row("x", 25), row("y", 7)]), "voice", 12.5, 10, sides=(0, 1))
    assert len(windows) == 8 and windows.lengths.tolist() == [10, 10, 10, 10, 5, 5, 7, 7]
    second, other = windows[2], windows[3]
    assert second.name == "x, from 0.8 s" and other.name == "x, channel 1, from 0.8 s"
    assert np.array_equal(second.codes, np.array([range(10, 20), range(35, 45)]))
    assert np.array_equal(second.other, second.codes + 100) and np.array_equal(other.codes, second.other)
    assert [(w.text, round(w.start, 3), round(w.end, 3)) for w in second.words] == [("b", 0.0, 0.2)]
    assert [w.text for w in windows[0].words] == ["a"] and [w.text for w in windows[0].other_words] == ["c"]
    assert [w.text for w in windows[1].words] == ["c"]
    alone = Windows(Rows([row("x", 25)]), "voice", 12.5, 100, alone=True)[0]
    assert alone.other is None and [w.text for w in alone.words] == ["a", "c", "b"]
    turns = replace(row("x", 25), alignment=((Word("how are you today", 0.0, 1.0),), ()))
    with pytest.raises(DataError, match="utterance 'x': 'how are you today' is a turn, not a word"):
        Windows(Rows([turns]), "voice", 12.5, 10)[0]
    with pytest.raises(DataError, match="utterance 'x': 1 channel"):
        Windows(Rows([row("x", 25, 1)]), "voice", 12.5, 10)[0]

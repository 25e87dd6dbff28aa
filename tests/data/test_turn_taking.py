"""Dialogues for taking turns: gaps as drawn, format as moshi-finetune reads it, the same by seed."""

import json

import numpy as np
import pytest

import vivavoce
from vivavoce.data import turn_taking
from vivavoce.data.clips import Segment, Word, read_manifest
from vivavoce.data.dialogues import render
from vivavoce.data.turn_taking import MODEL, USER, Manners, alignments, question_dialogues, timed, vocabulary
from vivavoce.errors import RecipeError
from vivavoce.tokenizers.words import WordVocabulary

VOICES = ["espeak:en-us+f3", "espeak:en-gb+m2", "espeak:en+m3"]


def scripts(count=3, **options):
    return question_dialogues(count, VOICES, seed=3, sample_rate=16_000, **options)


def test_the_same_seed_gives_the_same_scripts_and_the_model_one_voice():
    some = scripts(40)
    assert some[:5] == scripts(5) and some != question_dialogues(40, VOICES, seed=4, sample_rate=16_000)
    assert {script.voices[MODEL] for script in some} == {VOICES[0]}
    assert {script.voices[USER] for script in some} == set(VOICES[1:])
    words = WordVocabulary(vocabulary())
    said = [turn for script in some for turn in script.turns]
    assert all(words.encode(turn.text) for turn in said if turn.channel == MODEL)
    assert any(turn.stops for turn in said) and any(turn.text in turn_taking.BACKCHANNELS for turn in said)


def test_gaps_are_drawn_as_the_manners_say():
    drawn = [turn.gap for script in scripts(60) for turn in script.turns if turn.channel == MODEL]
    assert len(drawn) > 300 and min(drawn) >= 0.2 and max(drawn) <= 0.7
    assert np.mean(drawn) == pytest.approx(0.4, abs=0.03) and np.std(drawn) == pytest.approx(0.11, abs=0.03)
    slow = scripts(4, manners=Manners(gap=(1.0, 0.0), gap_within=(0.5, 1.5), barge_in=0.0, backchannel=0.0))
    assert {turn.gap for script in slow for turn in script.turns if turn.channel == MODEL} == {1.0}
    assert not any(turn.stops for script in slow for turn in script.turns)


def test_what_sounds_stands_where_the_script_says():
    (script,) = scripts(1, manners=Manners(barge_in=0.0, backchannel=0.0))
    audio, segments = render(script)
    loud = np.abs(audio.samples) > 0
    for turn, before, segment in zip(script.turns[1:], segments, segments[1:]):
        assert segment.start - before.end == pytest.approx(turn.gap, abs=1e-3) and segment.channel == turn.channel
        first, last = (round(time * 16_000) for time in (segment.start, segment.end))
        heard = np.flatnonzero(loud[segment.channel, first - 1600 : last + 1600]) + first - 1600
        assert abs(heard[0] - first) <= 160 and abs(heard[-1] - last) <= 160
    for channel in (MODEL, USER):  # silence elsewhere
        mine = np.zeros(loud.shape[1], bool)
        for segment in segments:
            if segment.channel == channel:
                mine[round(segment.start * 16_000) - 1 : round(segment.end * 16_000) + 1] = True
        assert not loud[channel][~mine].any()


def test_files_are_those_that_moshi_finetune_reads(tmp_path):
    made = turn_taking.make(scripts(), tmp_path, processes=1, quiet=True)
    clips = list(read_manifest(made.manifest))
    listed = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert [row["path"] for row in listed] == [clip.audio for clip in clips] and made.clips == 3
    for clip, row in zip(clips, listed):
        audio = vivavoce.read(tmp_path / row["path"])
        assert audio.channels == 2 and audio.duration == pytest.approx(row["duration"], abs=1e-5)
        words = json.loads((tmp_path / row["path"]).with_suffix(".json").read_text())["alignments"]
        assert words == sorted(words, key=lambda word: word[1][0])
        assert {speaker for _, _, speaker in words} == {"SPEAKER_MAIN", "SPEAKER_OTHER"}
        for channel, speaker in enumerate(turn_taking.SPEAKERS):
            mine = [(text, span) for text, span, who in words if who == speaker]
            text = " ".join(s.text for s in clip.segments if s.channel == channel)
            assert [t.lower().strip(".,?") for t, _ in mine] == [t.lower().strip(".,?") for t in text.split()]
            assert all(0 <= start < end <= clip.duration for _, (start, end) in mine)
            inside = np.concatenate([audio.channel(channel)[start:end].samples[0] for _, (start, end) in mine])
            assert np.square(audio.samples[channel]).sum() == pytest.approx(np.square(inside).sum(), rel=0.25)
    assert turn_taking.make(scripts(), tmp_path, processes=1, quiet=True).fresh == 0


def test_words_without_times_share_the_sound_by_their_letters():
    segment = Segment(1.0, 2.0, "one three", channel=1)
    assert timed(segment) == (Word("one", 1.0, 1.375), Word("three", 1.375, 2.0))
    assert alignments([segment]) == [["one", [1.0, 1.375], "SPEAKER_OTHER"], ["three", [1.375, 2.0], "SPEAKER_OTHER"]]
    known = Segment(1.0, 2.0, "one two", words=(Word("one", 1.1, 1.4), Word("two", 1.5, 1.9)))
    assert [(w.start, w.end) for w in timed(known)] == [(1.0, 1.4), (1.5, 2.0)]
    cut = Segment(1.0, 2.0, "one", words=(Word("one", 1.1, 1.4),), extra={"stopped": True})
    assert timed(cut) == cut.words and timed(Segment(1.0, 2.0)) == ()


def test_a_model_alone_has_nobody_to_answer():
    with pytest.raises(RecipeError, match="two voices"):
        question_dialogues(1, VOICES[:1])
    with pytest.raises(RecipeError, match="sample_rate"):
        question_dialogues(1, VOICES, sample_rate=3)

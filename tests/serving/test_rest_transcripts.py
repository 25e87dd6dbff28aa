"""When words were said, subtitles, and answers that can be referred to."""

import numpy as np

from vivavoce.audio import Audio
from vivavoce.serving.rest.history import Answer, Kept, TurnsDigest
from vivavoce.serving.rest.transcripts import Word, lines_of, srt, verbose, vtt, words_of


def test_a_word_ends_when_it_was_written_or_when_speech_did():
    words = words_of([(0.64, "three"), (1.36, "four")], [(0.1, 0.5), (0.8, 1.2)], 1.288)
    assert words == [Word("three", 0.1, 0.5), Word("four", 0.8, 1.2)]
    # within one stretch of speech the next begins where the one before ended
    assert words_of([(0.64, "three"), (1.1, "four")], [(0.1, 1.5)], 2.0) == [
        Word("three", 0.1, 0.64), Word("four", 0.64, 1.1)]
    # no speech was found: a word lasts a second at most, and nothing is after the end of the recording
    assert words_of([(5.0, "three"), (9.0, "four")], [], 7.0) == [Word("three", 4.0, 5.0), Word("four", 6.0, 7.0)]
    assert words_of([(-1.0, "three")], [(0.0, 1.0)], 7.0) == [Word("three", 0.0, 0.0)]
    assert words_of([], [(0.0, 1.0)], 1.0) == []


def test_lines_end_at_pauses_and_when_they_are_full():
    words = [Word("one", 0.1, 0.5), Word("two", 0.6, 0.9), Word("three", 2.0, 2.4)]
    assert lines_of(words) == [Word("one two", 0.1, 0.9), Word("three", 2.0, 2.4)]
    many = [Word("x" * 9, 0.1 * n, 0.1 * n + 0.1) for n in range(30)]
    assert all(len(line.text) <= 84 for line in lines_of(many))
    slow = [Word("x", float(n), n + 0.9) for n in range(30)]
    assert all(line.end - line.start <= 7.0 for line in lines_of(slow))
    for some in (many, slow):
        assert " ".join(line.text for line in lines_of(some)).split() == [word.text for word in some]


def test_subtitles():
    lines = [Word("one <two> & three", 0.1, 59.9999), Word("four", 3723.5, 3724.25)]
    assert srt(lines) == (
        "1\n00:00:00,100 --> 00:01:00,000\none <two> & three\n\n2\n01:02:03,500 --> 01:02:04,250\nfour\n\n")
    assert vtt(lines) == (
        "WEBVTT\n\n00:00:00.100 --> 00:01:00.000\none &lt;two&gt; &amp; three\n\n"
        "01:02:03.500 --> 01:02:04.250\nfour\n\n")
    assert srt([]) == "" and vtt([]) == "WEBVTT\n\n"


def test_the_verbose_form_has_what_was_asked_for():
    words = [Word("one", 0.1, 0.5), Word("two", 0.6, 0.9)]
    found = verbose("transcribe", words, 1.0, "en", ["word"])
    assert found["words"] == [{"word": "one", "start": 0.1, "end": 0.5}, {"word": "two", "start": 0.6, "end": 0.9}]
    assert "segments" not in found and found["text"] == "one two" and found["usage"]["seconds"] == 1.0
    segment, = verbose("transcribe", words, 1.0, "en", ["segment"])["segments"]
    assert (segment["start"], segment["end"], segment["text"]) == (0.1, 0.9, "one two")
    assert verbose("transcribe", [], 1.0, "en", ["segment"])["segments"] == []


def audio(value):
    return Audio(np.full((1, 5), value, np.float32), 16_000)


def digest(*turns):
    found = TurnsDigest()
    for turn in turns:
        found.add("user", turn)
    return found.value


def test_turns_are_told_apart():
    kinds = [(), (audio(0.1),), (audio(0.2),), (audio(0.1), audio(0.2)), ("one",), ("one two",), ("one", "two")]
    assert len({digest(*turns) for turns in kinds}) == len(kinds)
    assert digest(audio(0.1), "x") == digest(audio(0.1), "x")


def test_answers_are_kept_for_a_while_for_who_asked():
    now = [100.0]
    kept = Kept(3, 10.0, now=lambda: now[0])
    name, end = kept.reserve()
    assert end == 110 and kept.get(name, "me") is None
    kept.put(name, Answer("three is", "after", 7, "me", end))
    assert kept.get(name, "me").seed == 7 and kept.get(name, "you") is None and kept.get(name, None) is None
    assert kept.said("three  is", "after", "me") and not kept.said("three is", "other", "me")
    assert not kept.said("three", "after", "me") and not kept.said("three is", "after", "you")
    now[0] = 110.0
    assert kept.get(name, "me") is None and kept.said("three is", "after", "me") is None
    for number in range(9):
        kept.put(f"n{number}", Answer("x", "y", 0, None, 120))
        assert len(kept) <= 3  # the oldest go
    assert kept.get("n8", None) and not kept.get("n0", None)
    assert kept.get("n8", None).size == 0
    kept.sound = 1000
    for number in range(4):
        kept.put(f"s{number}", Answer("x", "y", 0, None, 120, np.zeros(200, np.int16)))
    assert len(kept) == 2 and kept.get("s3", None) and not kept.get("s1", None)  # 400 bytes each
    kept.put("huge", Answer("x", "y", 0, None, 120, np.zeros(2000, np.int16)))
    assert len(kept) == 0  # what is too large alone is not kept
    now[0] = 121.0
    kept.put("late", Answer("x", "y", 0, None, 131))
    assert len(kept) == 1  # those that are over go with the next that comes

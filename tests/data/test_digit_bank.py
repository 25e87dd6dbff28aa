"""The clips behind the digit conversations: which recordings and voices, what they say, and where they say it."""

import json

import numpy as np
import pytest

import vivavoce
from vivavoce.data import digit_bank
from vivavoce.data.clips import Word
from vivavoce.data.digit_bank import (
    PRONUNCIATIONS,
    SOUND_LIKE_NUMBERS,
    Reader,
    build_bank,
    clip_of,
    phrases_of,
    recorded,
    synthetic,
)
from vivavoce.data.spectral import PowerClip
from vivavoce.data.sums import DIGITS
from vivavoce.data.synthesis import Speech
from vivavoce.errors import DataError, RequestError
from vivavoce.nn.logmel import StreamingLogMel

RATE, BINS = 16000, 100
FRONT = StreamingLogMel(RATE, 400, 160)
MANIFESTS = ("fsdd", "librispeech_other", "librispeech_tc100", "dialogue_sim")


def tone(seconds: float, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    """A steady tone of 500 Hz, [n] float32."""
    return (level * np.sin(2 * np.pi * 500 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def said(text: str, voice: str, rate: float = 1.0, pitch: float = 1.0) -> Speech:
    """A made-up engine: 0.2 s of tone a word at 8 kHz; pico tells no times, and espeak mishears "nine"."""
    words = [Word(word, 0.2 * n, 0.2 * n + 0.15) for n, word in enumerate(text.split())]
    if "nine" in text.split() and voice.startswith("espeak"):
        words = words[:-1]
    samples = tone(0.2 * len(text.split()), 8000)[None]
    return Speech(samples, 8000, text=text, voice=voice, words=() if voice.startswith("pico") else tuple(words))


@pytest.fixture
def voices(monkeypatch):
    """One accent in its timbres, three other engines of which one is not installed, one foreign language."""
    asked = []

    def synthesize(text, voice, rate=1.0, pitch=1.0):
        assert 0.5 < rate < 2 and 0.5 < pitch < 2
        asked.append((text, voice, pitch))
        return said(text, voice)

    monkeypatch.setattr(digit_bank, "synthesize", synthesize)
    monkeypatch.setattr(digit_bank, "installed", lambda voice: voice != "festival:ked")
    monkeypatch.setattr(digit_bank, "ACCENTS", ("en-us",))
    monkeypatch.setattr(digit_bank, "VOICES", ("flite:rms", "pico:en-US", "festival:ked"))
    monkeypatch.setattr(digit_bank, "FOREIGN", ("de",))
    return asked


@pytest.fixture
def tiny_pack(tmp_path):
    """Three speakers of digits, one of them in the test split, and other speech, the dialogue in two channels."""
    (tmp_path / "manifests").mkdir()
    rows = {name: [] for name in MANIFESTS}
    for speaker, split in (("fsdd_anna", "train"), ("fsdd_ben", "train"), ("fsdd_carl", "test")):
        rows["fsdd"] += [("two", speaker, split, tone(0.5)), ("six", speaker, split, 0 * tone(0.2))]
    rows["librispeech_other"] = [("the river runs over two stones", "ls_1", "test", tone(1.0))]
    rows["librispeech_tc100"] = [(None, None, "train", tone(0.05))]
    rows["dialogue_sim"] = [("left and right speak", "pair", "test", np.stack([tone(1.0), 0 * tone(1.0)]))]
    for name, some in rows.items():
        lines = []
        for number, (text, speaker, split, samples) in enumerate(some):
            audio = f"{name}{number}.wav"
            vivavoce.write(tmp_path / audio, vivavoce.Audio(np.atleast_2d(samples), RATE))
            lines.append(json.dumps({"audio": audio, "text": text, "speaker": speaker, "split": split}))
        (tmp_path / "manifests" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_clip_has_silence_on_both_sides_and_its_words_in_frames():
    clip = clip_of(tone(0.5, 8000), 8000, FRONT, BINS, [("two", 0.0, 0.3), ("six", 0.31, 0.5)], speaker="a", source="s")
    assert clip.power.shape == (70, BINS) and clip.power.dtype == np.float32
    assert clip.words == (("two", 10, 40), ("six", 41, 60))
    assert abs(clip.start - 10) <= 2 and abs(clip.end - 60) <= 3
    assert not clip.power[:8].any() and clip.power[30].argmax() == round(500 / RATE * FRONT.fft_size)


def test_recordings_are_of_the_training_split_and_nobody_left_out(tiny_pack):
    digits, other = recorded(tiny_pack, FRONT, BINS, ())
    assert [(clip.text, clip.speaker) for clip in digits] == [
        *(("two", "fsdd_anna"), ("six", "fsdd_anna"), ("two", "fsdd_ben"), ("six", "fsdd_ben"))
    ]
    assert [(clip.text, clip.speaker) for clip in other] == [
        *(("the river runs over two stones", "ls_1"), ("", "librispeech_tc100"), ("left and right speak", "pair"))
    ]
    # The dialogue is the mean of its channels: half the amplitude, a quarter of the power.
    assert other[2].power.max() == pytest.approx(other[0].power.max() / 4, rel=1e-3)
    assert {clip.speaker for clip in recorded(tiny_pack, FRONT, BINS, ["ben"])[0]} == {"fsdd_anna"}
    for wrong in ("ben", ["fsdd_ben"], ["anna", "dora"]):  # each would leave nobody out
        with pytest.raises(RequestError, match="give a list of some of anna, ben, carl"):
            recorded(tiny_pack, FRONT, BINS, wrong)
    (tiny_pack / "manifests" / "librispeech_other.jsonl").unlink()
    with pytest.raises(DataError, match=r"librispeech_other\.jsonl is missing"):
        recorded(tiny_pack, FRONT, BINS, ())


def test_phrases_are_runs_of_words():
    texts, rng = ["a b c d e f g h", "one two"], np.random.default_rng(0)
    phrases = phrases_of(texts, rng, 50)
    assert len(phrases) == 50 and {len(phrase.split()) for phrase in phrases} == {2, 3, 4, 5, 6}
    assert all(any(phrase in text for text in texts) for phrase in phrases) and len(set(phrases)) > 10


def test_sums_are_kept_where_every_word_has_its_time(voices):
    say = Reader(FRONT, BINS, 0)
    told = say.sums("flite:slt", 40)
    assert len(told) == 40 and any("plus" in clip.text for clip in told) and any("plus" not in c.text for c in told)
    for clip in told:
        first, *middle, second = clip.text.split()
        assert first in DIGITS and second in DIGITS and middle in (["plus"], [])
        assert [word for word, _, _ in clip.words] == clip.text.split()
        assert [start for _, start, _ in clip.words] == [10 + 20 * n for n in range(len(clip.words))]
    assert not say.sums("pico:en-US", 5)
    heard = say.sums("espeak:en-us", 40)
    assert 0 < len(heard) < 40 and not any("nine" in clip.text for clip in heard)


def test_what_sounds_like_a_number_is_no_other_speech(voices):
    clips = Reader(FRONT, BINS, 0).other("flite:slt", ["the heaven was won for river people"], 60, 60)
    assert len(clips) > 60 and not any(set(clip.text.split()) & SOUND_LIKE_NUMBERS for clip in clips)
    lone = [clip.text for clip in clips if " " not in clip.text]
    assert {"river", "people"} <= set(lone) and len(set(lone)) > 20  # half of them of the texts
    assert any(clip.text in ("river people", "the heaven") or "river" in clip.text.split() for clip in clips)


def test_all_voices_are_heard_but_those_of_the_evaluation(voices, monkeypatch):
    def silent(samples, rate, front, bins, words=(), **names):
        spans = tuple((word, 0, 1) for word, _, _ in words)
        return PowerClip(np.zeros((1, bins), np.float32), names["text"], 0, 1, names["speaker"], names["source"], spans)

    monkeypatch.setattr(digit_bank, "clip_of", silent)  # names alone count here
    with pytest.warns(UserWarning, match="without the voices festival:ked"):
        digits, sums, other = synthetic(FRONT, BINS, ["rivers and mountains far away"], seed=1)
    speakers = {clip.speaker for clip in digits}
    assert {"espeak:en-us", "flite:rms", "pico:en-US"} <= speakers
    assert len(speakers) == 21 + 2 and not any("ked" in speaker for speaker in speakers)
    for speaker in speakers:
        assert {clip.text for clip in digits if clip.speaker == speaker} == {*DIGITS, "plus"}
    assert {clip.speaker for clip in sums} == speakers - {"pico:en-US"}
    foreign = {clip.speaker for clip in other} - speakers
    assert len(foreign) == 4 and all(speaker.startswith("espeak:de") for speaker in foreign)
    assert {clip.source for clip in digits} == {"synthetic-espeak", "synthetic-flite", "synthetic-pico"}
    # flite:rms has one pitch; the others are moved.
    assert {pitch for _, voice, pitch in voices if voice == "flite:rms"} == {1.0}
    assert len({pitch for _, voice, pitch in voices if voice == "pico:en-US"}) > 10


def test_accents_are_other_pronunciations_of_the_same_words(voices):
    clips = Reader(FRONT, BINS, 0).accents("espeak:en-us", 3)
    assert [clip.text for clip in clips] == [word for word in (*DIGITS, "plus") for _ in range(3)]
    said = [text for text, *_ in voices]
    for clip, text in zip(clips, said, strict=True):
        assert text[2:-2] in PRONUNCIATIONS[clip.text] and text == f"[[{text[2:-2]}]]" and clip.words == ()
    assert len(set(said)) > 20


def test_voices_of_the_evaluation_are_in_no_list():
    unseen = ("flite:awb", "rhvoice:alan", "flite:kal16", "flite:kal")
    assert not {*digit_bank.VOICES} & {*unseen}
    assert not {"en-029", "en-gb-x-gbcwmd"} & {*digit_bank.ACCENTS, *digit_bank.FOREIGN}
    assert not {*digit_bank.OTHER_WORDS} & {*DIGITS, "plus"}


def test_a_bank_of_recordings_and_voices(tiny_pack, monkeypatch):
    asked = []

    def made(front, bins, texts, seed):
        asked.append(texts)
        names = {"speaker": "v", "source": "s"}
        clips = [clip_of(tone(0.4), RATE, front, bins, text=word, **names) for word in (*DIGITS, "plus")]
        return clips, clips[:3], clips[:1]

    monkeypatch.setattr(digit_bank, "synthetic", made)
    digit_bank._synthetic.cache_clear()
    bank = build_bank(tiny_pack, FRONT, BINS, leave_out=["ben"])
    assert list(bank.words) == [*DIGITS, "plus"] and len(bank.sums) == 3
    assert [clip.speaker for clip in bank.words["two"]] == ["fsdd_anna", "v"]
    assert set(bank.by_speaker) == {"fsdd_anna", "v"}
    # Silence is no digit, and what is shorter than 0.3 s no other speech.
    assert [clip.speaker for clip in bank.words["six"]] == ["v"]
    assert [clip.speaker for clip in bank.other] == ["ls_1", "pair", "v"]
    assert len(build_bank(tiny_pack, FRONT, BINS).words["two"]) == 3
    assert asked == [("the river runs over two stones", "left and right speak")]  # once; running texts only
    digit_bank._synthetic.cache_clear()


def test_the_recorded_speech_pack(pack, tmp_path):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "audio").symlink_to(pack / "audio")
    for name in MANIFESTS:
        lines = (pack / "manifests" / f"{name}.jsonl").read_text().splitlines()
        step = len(lines) // 60 if name == "fsdd" else len(lines)
        (tmp_path / "manifests" / f"{name}.jsonl").write_text("\n".join(lines[::step]) + "\n")
    digits, other = recorded(tmp_path, FRONT, BINS, ["george"])
    assert len(digits) > 20 and {clip.text for clip in digits} <= {*DIGITS}
    assert "fsdd_george" not in {clip.speaker for clip in digits} and len(other) == 3
    for clip in digits:
        assert 8 <= clip.start < clip.end <= len(clip.power) - 5, (clip.speaker, clip.start, clip.end)

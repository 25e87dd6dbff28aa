"""Offline speech synthesis: the same samples for the same request, rate and pitch by measure, words on the audio."""

import time

import numpy as np
import pytest

from fundamental import fundamental
from vivavoce.data import espeak, flite, rhvoice
from vivavoce.data.synthesis import synthesize, voices
from vivavoce.errors import DataError, RequestError

needs_flite = pytest.mark.skipif(flite.program() is None, reason="the program 'flite' is not installed")


def test_espeak_gives_the_same_samples_whatever_it_said_before():
    voices = ("en-us", "en-us+f3", "en-us+whisper", "en-us+klatt")
    first = [synthesize("three plus four", f"espeak:{voice}") for voice in voices]
    synthesize("something else entirely", "espeak:en-gb-scotland+f2")
    time.sleep(1.05 - time.time() % 1)  # its noise is seeded from the clock's seconds
    for voice, before in zip(voices, first, strict=True):
        again = synthesize("three plus four", f"espeak:{voice}")
        assert again.sample_rate == 22_050 and again.samples.shape == (1, len(again))
        assert again.samples.dtype == np.float32 and np.array_equal(before.samples, again.samples), voice


def test_espeak_accents_and_variants_differ():
    spoken = [synthesize("nine", f"espeak:{v}").samples for v in ("en-us", "en-gb-scotland", "en-us+f3", "en-us+m3")]
    for i, one in enumerate(spoken):
        for other in spoken[i + 1 :]:
            assert one.shape != other.shape or not np.allclose(one, other, atol=0.01)


needs_rhvoice = pytest.mark.skipif(rhvoice.program() is None, reason="RHVoice's English voices are not installed")


@pytest.mark.parametrize(
    "voice",
    [
        "espeak:en-us",
        pytest.param("flite:slt", marks=needs_flite),
        pytest.param("rhvoice:clb", marks=needs_rhvoice),
    ],
)
def test_rate_and_pitch_are_ratios(voice):
    text = "mama may amaze all our neighbours"
    normal = synthesize(text, voice)
    quick, high = synthesize(text, voice, rate=1.5), synthesize(text, voice, pitch=1.25)
    assert normal.duration / quick.duration == pytest.approx(1.5, rel=0.12)
    tones = [fundamental(speech.samples[0], speech.sample_rate) for speech in (normal, high)]
    assert tones[1] / tones[0] == pytest.approx(1.25, rel=0.06)


def energy(speech, start: float, end: float) -> float:
    """Mean square between two seconds, 0 where the clip has already ended."""
    samples = speech[start:end].samples
    return float(np.mean(samples**2)) if samples.size else 0.0


@pytest.mark.parametrize("voice", ["espeak:en-us", "espeak:en-gb+klatt2", pytest.param("flite:rms", marks=needs_flite)])
def test_words_lie_where_the_sound_is(voice):
    speech = synthesize("seven, nine.", voice)
    assert [word.text for word in speech.words] == ["seven", "nine"]
    seven, nine = speech.words
    assert 0 <= seven.start < seven.end <= nine.start < nine.end <= speech.duration
    loud = min(energy(speech, seven.start, seven.end), energy(speech, nine.start, nine.end))
    assert energy(speech, nine.end + 0.02, speech.duration) < 0.05 * loud
    # The comma's pause lies between the words, not within them.
    if nine.start - seven.end > 0.05:
        assert energy(speech, seven.end + 0.02, nine.start - 0.02) < 0.1 * loud


def test_voices_in_a_deep_folder_are_found(tmp_path, monkeypatch):
    loader = espeak._loader()
    deep = tmp_path / "/".join(["a-folder-with-a-long-name"] * 8)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(loader.get_data_path())
    expected = synthesize("one", "espeak:en-us+f1")
    monkeypatch.setattr(loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    espeak._data.cache_clear()
    try:
        assert synthesize("one", "espeak:en-us+f1") == expected
    finally:
        espeak._data.cache_clear()


@needs_flite
def test_flite_spells_numbers_out_and_times_them():
    speech = synthesize("3 plus 4 is 7", "flite:slt")
    assert [word.text for word in speech.words] == ["three", "plus", "four", "is", "seven"]
    assert speech.sample_rate == 16_000
    assert synthesize("7", "flite:kal").sample_rate == 8_000
    assert {voice.name: voice.language for voice in voices("en")}["flite:awb"] == "en-gb-scotland"


def test_voices_are_those_that_work():
    names = {voice.name for voice in voices("en")}
    assert {"espeak:en-us", "espeak:en", "espeak:en-gb-scotland"} <= names
    assert ("flite:slt" in names) == (flite.program() is not None)
    assert len(voices()) > 100 and len(voices("en", variants=None)) > 800
    for voice in voices("en", variants=("f4",)):
        assert synthesize("one", voice.name).duration > 0.1, voice
    assert {voice.language for voice in voices("fr")} == {"fr", "fr-be", "fr-ch"}


@pytest.mark.parametrize(
    ("text", "voice", "options", "says"),
    [
        ("", "espeak:en", {}, "empty"),
        ("a\0b", "espeak:en", {}, "zero byte"),
        ("one", "slt", {}, "espeak:LANGUAGE"),
        ("one", "festival:x", {}, "there are ked"),
        ("one", "pico:fr", {}, "en-US, en-GB"),
        ("one", "rhvoice:alan", {}, "there are bdl, clb"),
        ("one", "rhvoice:bdl", {"rate": 3}, "rate 3"),
        ("one", "sapi:x", {}, "espeak:LANGUAGE"),
        ("one", "espeak:tlh", {}, "no language 'tlh'"),
        ("one", "espeak:en+nobody", {}, "no variant 'nobody'"),
        ("one", "flite:bob", {}, "slt, rms"),
        ("one", "espeak:en", {"rate": 9}, "rate 9"),
        ("one", "espeak:en", {"pitch": 0.1}, "pitch 0.1"),
        ("one", "flite:rms", {"pitch": 1.1}, "fixed pitch"),
    ],
)
def test_requests_that_cannot_be_met(text, voice, options, says):
    with pytest.raises(RequestError, match=says):
        synthesize(text, voice, **options)


def test_absent_flite_says_what_to_install(monkeypatch):
    monkeypatch.setattr(flite, "program", lambda: None)
    with pytest.raises(DataError, match="apt-get install flite"):
        synthesize("one", "flite:slt")
    assert not [voice for voice in voices() if voice.name.startswith("flite")]

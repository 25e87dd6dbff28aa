"""Resynthesis: known answers of the measures, and a codec whose loss is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from peers import peer
from vivavoce.audio import Audio, read
from vivavoce.errors import AudioError, DataError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.resynthesis import log_mel_distance, pesq, stoi

peer("pystoi")
peer("pesq")


class Coarse:
    """A "codec" that keeps `bits` bits of each sample."""

    verbs = ("resynth",)

    def __init__(self, bits, shorten=0):
        self.bits, self.shorten, self.fingerprint = bits, shorten, f"coarse{bits}"

    def resynth(self, audio):
        step = 2.0 ** (1 - self.bits)
        samples = np.round(audio.samples / step) * step
        kept = Audio(samples[:, : len(audio) - self.shorten].astype(np.float32), audio.sample_rate)
        return SimpleNamespace(
            audio=kept, codes=None, bits_per_second=self.bits * audio.sample_rate, tokens_per_second=audio.sample_rate
        )


def value(results, metric):
    return next(r for r in results if r.metric == metric).value


def test_more_bits_sound_better(pack):
    folder = pack / "audio/ljspeech"
    fine, coarse = (evaluate(Coarse(b), task("resynthesis", clips=4, seconds=4.0), folder) for b in (16, 6))
    assert value(fine, "STOI") > 0.999 and value(fine, "PESQ (wideband)") > 4.4
    assert value(coarse, "STOI") < value(fine, "STOI")
    assert value(coarse, "PESQ (wideband)") < 2.5 < value(fine, "PESQ (wideband)")
    assert value(coarse, "log-mel distance") > 5 > 1 > value(fine, "log-mel distance")
    assert value(coarse, "bits per second") == pytest.approx(6 * 16000)
    assert all(r.count == 4 for r in coarse)


def test_half_the_level_is_six_decibels(speech_files):
    speech = read(speech_files[0], 16000, mono=True)[:5.0]
    quieter = Audio(speech.samples * 0.5, 16000)
    assert log_mel_distance(speech, quieter) == pytest.approx(6.02, abs=0.1)
    assert log_mel_distance(speech, speech) == 0.0
    assert stoi(speech, quieter) == pytest.approx(1.0, abs=1e-3) and pesq(speech, speech) > 4.6


def test_silence_has_no_value():
    silence = Audio(np.zeros(16000, np.float32), 16000)
    assert math.isnan(stoi(silence, silence)) and math.isnan(pesq(silence, silence))
    assert math.isnan(log_mel_distance(silence[:0.01], silence[:0.01]))


def test_a_codec_that_loses_samples_is_caught(speech_files):
    with pytest.raises(AudioError, match="not as many as it was given"):
        evaluate(Coarse(16, shorten=100), task("resynthesis", clips=1), speech_files[0].parent)


def test_no_recordings(tmp_path):
    with pytest.raises(DataError, match="no audio files"):
        evaluate(Coarse(16), task("resynthesis"), tmp_path)
    with pytest.raises(DataError, match="--data"):
        evaluate(Coarse(16), task("resynthesis"))

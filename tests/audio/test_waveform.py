"""`Audio` and the check that all verbs share."""

import numpy as np
import pytest
import torch

from vivavoce.audio import Audio, check_waveform
from vivavoce.errors import AudioError


def test_audio_is_channels_by_samples_and_cut_in_seconds():
    audio = Audio(np.arange(16000, dtype=np.float64) / 16000, 16000)
    assert audio.samples.shape == (1, 16000) and audio.samples.dtype == np.float32
    assert audio.duration == 1.0 and len(audio) == 16000 and audio.channels == 1
    assert np.array_equal(audio[0.25:0.5].samples, audio.samples[:, 4000:8000])
    assert np.array_equal(audio[-0.5:].samples, audio.samples[:, 8000:])
    assert len(audio[2.0:3.0]) == 0
    with pytest.raises(TypeError, match="seconds"):
        audio[0.5]


def test_mono_channel_tensor_and_equality():
    stereo = Audio(np.stack([np.ones(10), np.zeros(10)]).astype(np.float32), 8000)
    assert np.array_equal(stereo.mono().samples, np.full((1, 10), 0.5, np.float32))
    assert stereo.channel(1) == Audio(np.zeros((1, 10), np.float32), 8000)
    assert stereo != Audio(stereo.samples, 16000)
    assert stereo.tensor().shape == (1, 2, 10) and stereo.tensor().dtype == torch.float32
    with pytest.raises(AudioError, match="channel 2 asked of audio with 2"):
        stereo.channel(2)


def test_resample_has_the_published_length():
    assert len(Audio(np.zeros(1001, np.float32), 44100).resample(16000)) == 363


BAD = {
    "no samples": (np.zeros((1, 0), np.float32), "no samples, at least 1"),
    "NaN": (np.array([0.0, np.nan], np.float32), "sample 1 of channel 0 is nan"),
    "infinite": (np.array([[0.0, 1.0], [-np.inf, 0.0]], np.float32), "sample 0 of channel 1 is -inf"),
    "integers": (np.zeros(10, np.int16), "int16 found, floats .* divide by 32768"),
    "three dimensions": (torch.zeros(1, 1, 10), r"shape \[1, 1, 10\] found"),
    "scalar": (np.float32(1), r"shape \[\] found"),
    "transposed": (np.zeros((16000, 2), np.float32), "was \\[samples, channels\\] given"),
    "no channels": (np.zeros((0, 10), np.float32), "no channels"),
    "not an array": ("q.wav", "floats in"),
}


@pytest.mark.parametrize("waveform,message", BAD.values(), ids=BAD)
def test_bad_waveforms_are_named(waveform, message):
    with pytest.raises(AudioError, match=f"^question: .*{message}"):
        check_waveform(waveform, where="question")


def test_what_a_verb_may_demand():
    audio = Audio(np.zeros((2, 100), np.float32), 16000)
    assert check_waveform(audio, 16000).shape == (2, 100)
    assert check_waveform(torch.zeros(5, dtype=torch.float64)).dtype == np.float32
    with pytest.raises(AudioError, match=r"16000 Hz and 24000 Hz is needed: use .resample\(24000\)"):
        check_waveform(audio, 24000)
    with pytest.raises(AudioError, match=r"2 channels found, 1 needed: use .mono\(\)"):
        check_waveform(audio, channels=1)
    with pytest.raises(AudioError, match="only 100 sample"):
        check_waveform(audio, shortest=400)


@pytest.mark.parametrize("rate", [0, -8000, 999, 16000.5, 10**9, True, None, "16000", float("inf"), float("nan")])
def test_impossible_rates(rate):
    with pytest.raises(AudioError, match="sample rate"):
        Audio(np.zeros(10, np.float32), rate)

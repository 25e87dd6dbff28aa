"""Silero VAD against the silero-vad package, on recorded speech."""

import numpy as np
import pytest
import torch

from peers import peer
from vivavoce.audio import read
from vivavoce.audio.voice_activity import Hysteresis, VoiceActivity, speech_segments

silero_vad = peer("silero_vad")


@pytest.fixture(scope="module")
def package():
    return silero_vad.load_silero_vad(onnx=True)


@pytest.fixture(scope="module")
def recordings(speech_files):
    return [read(f, 16000, mono=True)[:20.0] for f in speech_files]


def test_probabilities(package, recordings):
    for audio in recordings:
        with torch.no_grad():
            theirs = package.audio_forward(torch.from_numpy(audio.samples), 16000)[0].numpy()
        ours = VoiceActivity()(audio)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-3
    assert VoiceActivity()(recordings[0]).max() > 0.9 and VoiceActivity()(recordings[0]).min() < 0.1


@pytest.mark.parametrize(
    "on,silence,speech,pad", [(0.5, 0.1, 0.25, 0.03), (0.7, 0.03, 0.05, 0.1), (0.3, 0.6, 0.5, 0.0)]
)
def test_segments(package, recordings, on, silence, speech, pad):
    total = 0
    for audio in recordings:
        theirs = silero_vad.get_speech_timestamps(
            torch.from_numpy(audio.samples[0]),
            package,
            threshold=on,
            min_silence_duration_ms=round(silence * 1000),
            min_speech_duration_ms=round(speech * 1000),
            speech_pad_ms=round(pad * 1000),
        )
        ours = speech_segments(audio, Hysteresis(on, on - 0.15, silence, speech), pad)
        assert [(round(a * 16000), round(b * 16000)) for a, b in ours] == [(s["start"], s["end"]) for s in theirs]
        total += len(ours)
    assert total > 3

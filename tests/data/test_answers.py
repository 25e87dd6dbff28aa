"""The voice of the spoken-digit task: sentences as codes on the codec's frames, words in their times."""

import shutil

import numpy as np
import pytest

from vivavoce.codecs.spectral import build_spectral_codec
from vivavoce.data.answers import Voice

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="Debian's flite is not installed")


@pytest.fixture(scope="module")
def codec():
    sizes = {"stem": 8, "widths": [8, 8, 16], "dim": 16, "fft_size": 320, "codebooks": 3, "codebook_size": 16}
    return build_spectral_codec({"mels": 20, **sizes}).eval()


@needs_flite
def test_a_sentence_is_as_many_frames_as_its_sound_and_a_rest(codec):
    voice = Voice("flite:slt", 16000, 3, codec)
    for text in ("seven", "three plus four is seven", "is two seven"):
        spoken = voice.spoken(text)
        frames = -(-round(spoken.seconds * 16000) // codec.hop)
        assert spoken.codes.shape == (3, frames + 4) and spoken.codes.max() < 16
        assert " ".join(word for word, _ in spoken.words) == text
        times = [second for _, second in spoken.words]
        assert times[0] == 0 and times == sorted(times) and times[-1] < spoken.seconds
    assert voice.silence.shape == (3,)


@needs_flite
def test_a_voice_without_a_codec_has_the_same_times_and_no_codes(codec):
    spoken, silent = (Voice("flite:slt", 16000, 3, c).spoken("two plus two is four") for c in (codec, None))
    assert silent.words == spoken.words and silent.seconds == spoken.seconds
    assert silent.codes.shape == (3, 0) and not np.any(Voice("flite:slt", 16000, 3).silence)

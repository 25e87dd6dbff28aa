"""Digits in other pronunciations: each sounds, and none is what the evaluation's accents say."""

import numpy as np
import pytest
import torch

from peers import peer
from vivavoce.audio import resample
from vivavoce.data.digit_bank import ACCENTS, OTHER_WORDS, PRONUNCIATIONS, SOUND_LIKE_NUMBERS
from vivavoce.data.sums import DIGITS
from vivavoce.data.synthesis import synthesize
from vivavoce.evaluation.digit_questions import VOICES
from vivavoce.nn.logmel import StreamingLogMel

FRONT = StreamingLogMel(16000, 400, 160, 40, 0.0, 4000.0)
UNSEEN = [voice for voice in VOICES if voice.startswith("espeak:")]
NEAR = 0.7  # times the distance of the nearest plain voice that training hears


def frames(text: str, voice: str) -> np.ndarray:
    """Log-mel frames [T, 40] of the loud part at 20 ms, level removed frame by frame."""
    peer("espeakng_loader")
    said = synthesize(text, voice)
    wave = torch.from_numpy(resample(said.samples, said.sample_rate, 16000))
    mel = FRONT(wave[:, :, None])[0].numpy()
    level = mel.mean(1)
    mel = mel[level > level.max() - 6]
    return (mel - mel.mean(1, keepdims=True))[::2]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Dynamic time warping of two words: RMS of the spectra's difference along the best path."""
    cost = np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))
    best = np.full((len(a) + 1, len(b) + 1), np.inf)
    best[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            best[i + 1, j + 1] = cost[i, j] + min(best[i, j], best[i, j + 1], best[i + 1, j])
    return float(best[-1, -1] / (len(a) + len(b)))


@pytest.mark.parametrize("word", [*DIGITS, "plus"])
def test_none_is_near_to_what_an_unseen_accent_says(word):
    assert len(UNSEEN) == 2
    plain = [frames(word, f"espeak:{accent}") for accent in ACCENTS]
    others = {p: [frames(f"[[{p}]]", f"espeak:{accent}") for accent in ACCENTS] for p in PRONUNCIATIONS[word]}
    for voice in UNSEEN:
        said = frames(word, voice)
        bound = NEAR * min(distance(said, each) for each in plain)
        for phones, several in others.items():
            assert min(distance(said, each) for each in several) >= bound, (voice, phones)


def test_the_measure_finds_an_accent_that_would_be_given_away():
    said = frames("nine", "espeak:en-gb-x-gbcwmd")
    plain = min(distance(said, frames("nine", f"espeak:{accent}")) for accent in ACCENTS)
    given = min(distance(said, frames("[[n'OIn]]", f"espeak:{accent}")) for accent in ACCENTS)
    assert given < 0.6 * NEAR * plain


@pytest.mark.parametrize("accent", ACCENTS)
def test_each_sounds_and_most_sound_different(accent):
    for word, several in PRONUNCIATIONS.items():
        waves = [synthesize(f"[[{phones}]]", f"espeak:{accent}").samples for phones in several]
        assert all(0.15 < wave.shape[1] / 22050 < 0.7 for wave in waves), word
        assert len({wave.tobytes() for wave in waves}) >= len(waves) - 1, word


def test_no_other_word_is_said_as_a_digit_may_be():
    phones = [f"[[{phones}]]" for several in PRONUNCIATIONS.values() for phones in several]
    said = {synthesize(text, "espeak:en-us").samples.tobytes() for text in phones}
    for word in set(OTHER_WORDS) - SOUND_LIKE_NUMBERS:
        assert synthesize(word, "espeak:en-us").samples.tobytes() not in said, word
    assert synthesize("foe", "espeak:en-us").samples.tobytes() in said  # what is alike is found

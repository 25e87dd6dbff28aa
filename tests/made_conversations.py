"""Conversations whose sounds are made: digits as bursts of noise, one band each, by two speakers."""

import numpy as np

from vivavoce.data.conversations import ClipBank, Conversations, Scene, Spoken
from vivavoce.data.spectral import Backgrounds, PowerClip
from vivavoce.data.sums import DIGITS, WORDS, all_answers

IDS = {word: i + 1 for i, word in enumerate(WORDS)}


def maker(front, bins: int, codebooks: int = 2, size: int = 8, sums=(), other=()):
    """`make(frames=100, **scene)` -> Conversations, with answers of `codebooks` codes below `size`."""
    rng = np.random.default_rng(0)

    def clip(word: str, speaker: str) -> PowerClip:
        power = np.zeros((50, bins), np.float32)
        band = slice(10 * DIGITS.index(word), 10 * DIGITS.index(word) + 10) if word in DIGITS else slice(100, bins)
        power[5:45, band] = rng.exponential(1, power[5:45, band].shape)
        return PowerClip(power, word, 5, 45, speaker, "made")

    words = {word: [clip(word, speaker) for speaker in ("ann", "bob")] for word in (*DIGITS, "plus")}
    bank = ClipBank(words, [clip("", "cat"), *other], sums)
    answers = {}
    for text in all_answers():
        words = text.split()
        codes = np.full((codebooks, 6 * len(words)), size - 1)
        answers[text] = Spoken(text, codes, tuple((w, 0.4 * i) for i, w in enumerate(words)), 0.4 * len(words))
    backgrounds = Backgrounds(front, bins, seconds=15)
    silence = np.arange(1, codebooks + 1)

    def make(frames: int = 100, **scene) -> Conversations:
        drawn = Scene(**scene)
        return Conversations(bank, answers, silence, IDS, backgrounds, frames=frames, scene=drawn)

    return make

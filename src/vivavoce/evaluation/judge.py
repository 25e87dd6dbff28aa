"""Closed-vocabulary intelligibility: which of a few known sentences does an offline recogniser hear?

pocketsphinx (its US English model is in the wheel) with a grammar of exactly the sentences that could be said. It
hears clear synthetic voices without an error and gives None for silence and noise; it ranks nothing finely, and is no
word error rate. Every result belongs beside its `controls`: the same sentences by a voice known to be good, with
their 100 ms blocks shuffled, and as silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import RequestError, need

RATE = 16000
NOISE = 1e-4  # RMS: -80 dBFS
BLOCK = 0.1  # seconds of a block that `shuffled` keeps whole


class ClosedVocabulary:
    """`judge(audio)` -> one of `sentences` (lower-case words), or None where none of them was heard.

    Raises `MissingExtra` without pocketsphinx, `RequestError` for sentences with words that its dictionary lacks.
    """

    def __init__(self, sentences: Sequence[str]):
        self.sentences = tuple(sentences)
        sphinx = need("pocketsphinx", "eval", "closed-vocabulary intelligibility")
        self._decoder: Any = sphinx.Decoder(samprate=RATE, lm=None, loglevel="FATAL")
        words = {word for sentence in self.sentences for word in sentence.split()}
        unknown = sorted(word for word in words if self._decoder.lookup_word(word) is None)
        if unknown or not self.sentences:
            raise RequestError(f"the recogniser's dictionary lacks {', '.join(unknown) or 'sentences: none given'}")
        grammar = f"#JSGF V1.0; grammar closed; public <sentence> = {' | '.join(self.sentences)};"
        self._decoder.add_jsgf_string("closed", grammar)
        self._decoder.activate_search("closed")

    def __call__(self, audio: Audio) -> str | None:
        """The sentence heard in audio of any rate (channels averaged); at about 0.03 of its duration."""
        samples = audio.mono().resample(RATE).samples[0]
        # A margin of silence, as the recogniser's model of a sentence has at both ends, and the noise of a quiet
        # microphone: in digital silence it takes flite's own "two" for "zero".
        padded = np.pad(samples, RATE // 5)
        padded = padded + np.random.default_rng(0).normal(0, NOISE, len(padded))
        self._decoder.start_utt()
        self._decoder.process_raw((np.clip(padded, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None and found.hypstr in self.sentences else None


def shuffled(audio: Audio, seed: int = 0) -> Audio:
    """The audio with its 100 ms blocks in another order: no block follows the one that it followed.

    Nothing that is said stays, all that is short does: level, spectrum, voice. Audio of fewer than four blocks is
    cut into four.
    """
    size = max(1, min(round(BLOCK * audio.sample_rate), len(audio) // 4))
    starts = np.arange(0, len(audio) - size + 1, size)
    generator = np.random.default_rng(seed)
    for _ in range(1000):
        order = generator.permutation(len(starts))
        if len(order) < 4 or not (np.diff(order) == 1).any():
            break
    pieces = [audio.samples[:, s : s + size] for s in starts[order]] or [audio.samples]
    return Audio(np.concatenate(pieces, axis=1), audio.sample_rate)


def silent(audio: Audio, seed: int = 0) -> Audio:
    """Silence as long as the audio."""
    return Audio(np.zeros_like(audio.samples), audio.sample_rate)


CONTROLS: dict[str, Callable[..., Audio]] = {
    "natural": lambda audio, seed: audio,
    "shuffled": shuffled,
    "silent": silent,
}


def controls(judge: ClosedVocabulary, sentences: Sequence[str], voice: str = "flite:slt") -> dict[str, list[float]]:
    """For each control, 1.0 for every sentence that the judge hears right in what `voice` says, else 0.0.

    Raises `DataError` where the voice's program is not installed.
    """
    from vivavoce.data.synthesis import synthesize

    hits: dict[str, list[float]] = {name: [] for name in CONTROLS}
    for number, sentence in enumerate(sentences):
        spoken = synthesize(sentence, voice)
        for name, change in CONTROLS.items():
            hits[name].append(float(judge(change(spoken, number)) == sentence))
    return hits

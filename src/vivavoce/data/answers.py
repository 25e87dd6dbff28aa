"""The voice of the spoken-digit task: its 110 answers as clips of one voice, and as codes with their words in time."""

import numpy as np
import torch

from vivavoce.audio import resample
from vivavoce.data.conversations import Spoken
from vivavoce.data.sums import DIGITS, all_answers
from vivavoce.data.synthesis import synthesize
from vivavoce.errors import DataError

LEVEL = 0.08  # RMS of an answer: about -22 dBFS
PHRASES = (
    "she had your dark suit in greasy wash water all year", "please call back later this evening",
    "the quick brown fox jumps over the lazy dog", "we were away a year ago",
    "how much wood would a woodchuck chuck", "thank you very much indeed", "nineteen twenty thirty forty fifty",
)  # fmt: skip


def say(text: str, voice: str, sample_rate: int) -> tuple[np.ndarray, tuple[tuple[str, float], ...]]:
    """`text` by `voice` at `sample_rate`: samples [n] from the first sound to the last, and (word, second)s."""
    speech = synthesize(text, voice)
    if not speech.words:
        raise DataError(f"{voice} gave no word times for '{text}': choose a flite voice")
    samples = speech.samples[0]
    if speech.sample_rate != sample_rate:
        samples = resample(samples[None], speech.sample_rate, sample_rate)[0]
    first, last = speech.words[0].start, speech.words[-1].end
    cut = samples[round(first * sample_rate) : round((last + 0.06) * sample_rate)].astype(np.float32)
    fade = min(len(cut), sample_rate // 50)
    cut[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    cut *= LEVEL / max(float(np.sqrt(np.mean(cut**2))), 1e-6)
    return cut, tuple((word.text, word.start - first) for word in speech.words)


def voice_clips(voice: str, sample_rate: int, lead: float = 0.24, tail: float = 0.4) -> list[torch.Tensor]:
    """Clips [1, n] to learn the voice from: all answers and a few other sentences, with silence around.

    The single digits are there four times: nothing beside them helps one to understand them.
    """
    clips = []
    for text in (*DIGITS * 3, *all_answers(), *PHRASES):
        samples, _ = say(text, voice, sample_rate)
        padded = np.pad(samples, (round(lead * sample_rate), round(tail * sample_rate)))
        clips.append(torch.from_numpy(padded)[None])
    return clips


class Voice:
    """What `name` (a voice of `synthesize`) says, as the codes of `codec`; without a codec as words and times only,
    for a phase that does not train the voice yet. `silence` [codebooks] are the codes of silence."""

    def __init__(self, name: str, sample_rate: int, codebooks: int, codec=None):
        self.name, self.sample_rate, self.codec = name, sample_rate, codec
        self.codebooks = codebooks
        self.silence = np.zeros(codebooks, dtype=np.int64)
        if codec is not None:
            self.silence = self._codes(np.zeros(32 * codec.hop, dtype=np.float32))[:, -1]

    def spoken(self, text: str) -> Spoken:
        """The text as codes [codebooks, frames]: encoded as it will be played, after silence and followed by it, on the
        codec's own frames."""
        samples, words = say(text, self.name, self.sample_rate)
        codes = np.zeros((self.codebooks, 0), dtype=np.int64)
        if self.codec is not None:
            hop, lead, tail = self.codec.hop, 8, 4  # frames of silence around it
            frames = -(-len(samples) // hop)
            wave = np.zeros((lead + frames + tail) * hop, dtype=np.float32)
            wave[lead * hop : lead * hop + len(samples)] = samples
            codes = self._codes(wave)[:, lead:]
        return Spoken(text, codes, words, len(samples) / self.sample_rate)

    def answers(self) -> dict[str, Spoken]:
        """The 110 answers of the task by their texts."""
        return {text: self.spoken(text) for text in all_answers()}

    def _codes(self, wave: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.codec.encode(torch.from_numpy(wave)[None, None])[0].numpy()

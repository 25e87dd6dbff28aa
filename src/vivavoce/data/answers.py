"""The voice of the spoken-digit task: its 110 answers as clips of one voice, and as codes with their words in time."""

from collections.abc import Mapping

import numpy as np
import torch

from vivavoce.audio import resample
from vivavoce.data.conversations import Spoken
from vivavoce.data.sums import all_answers
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
    """Clips [1, n] to learn the voice from: all answers and a few other sentences, with silence around."""
    clips = []
    for text in (*all_answers(), *PHRASES):
        samples, _ = say(text, voice, sample_rate)
        padded = np.pad(samples, (round(lead * sample_rate), round(tail * sample_rate)))
        clips.append(torch.from_numpy(padded)[None])
    return clips


def spoken_answers(codec, voice: str) -> tuple[dict[str, Spoken], np.ndarray]:
    """(text -> Spoken, the codes of silence [codebooks]) of all answers, through `codec`.

    An answer is encoded as it will be played: after silence, on the codec's own frames, followed by silence.
    """
    rate, hop = codec.sample_rate, codec.hop
    lead, tail = 8, 4  # frames of silence around the answer
    with torch.inference_mode():
        silent = codec.encode(torch.zeros(1, 1, 32 * hop))[0]
        answers = {}
        for text in all_answers():
            samples, words = say(text, voice, rate)
            frames = -(-len(samples) // hop)
            wave = np.zeros((lead + frames + tail) * hop, dtype=np.float32)
            wave[lead * hop : lead * hop + len(samples)] = samples
            codes = codec.encode(torch.from_numpy(wave)[None, None])[0].numpy()
            answers[text] = Spoken(text, codes[:, lead:], words, len(samples) / rate)
    return answers, silent[:, -1].numpy()


def silent_answers(codebooks: int, voice: str, sample_rate: int) -> tuple[dict[str, Spoken], np.ndarray]:
    """The same without a voice: texts and times only, for a phase that does not train the voice yet."""
    answers = {}
    for text in all_answers():
        samples, words = say(text, voice, sample_rate)
        codes = np.zeros((codebooks, 0), dtype=np.int64)
        answers[text] = Spoken(text, codes, words, len(samples) / sample_rate)
    return answers, np.zeros(codebooks, dtype=np.int64)


def word_frames(answers: Mapping[str, Spoken], frame_rate: float) -> dict[str, int]:
    """How many frames each word takes in the answers, in the median: for text that is forced on the frame clock."""
    taken: dict[str, list[float]] = {}
    for spoken in answers.values():
        ends = [start for _, start in spoken.words[1:]] + [spoken.seconds]
        for (word, start), end in zip(spoken.words, ends):
            taken.setdefault(word, []).append((end - start) * frame_rate)
    return {word: max(1, round(float(np.median(values)))) for word, values in taken.items()}

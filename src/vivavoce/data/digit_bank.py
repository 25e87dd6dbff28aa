"""The clips behind the simulated digit conversations: recordings of the pack and synthetic voices, as power spectra.

Recordings: FSDD's training split (speakers can be left out), LibriSpeech and simulated dialogues as other speech.
Synthetic: digits and "plus" by espeak-ng and flite voices; isolated words and phrases without numbers as other speech,
because a lone word is what is most easily taken for a digit.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vivavoce.audio import read, resample
from vivavoce.data.conversations import ClipBank
from vivavoce.data.spectral import PowerClip, power_spectrogram, speech_span
from vivavoce.data.sums import DIGITS, NUMBERS
from vivavoce.errors import DataError
from vivavoce.nn.logmel import StreamingLogMel

# Voices that evaluation uses and training must never hear: flite:awb, flite:kal16 (and its kin flite:kal),
# espeak accents en-029 and en-gb-x-gbcwmd.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc")
TIMBRES = ("", "m1", "m3", "m5", "m7", "f1", "f2", "f3", "f4", "croak")
FLITE = ("flite:slt", "flite:rms")
# No homophones of digits (won, ate, for, too): what sounds the same cannot be told apart.
OTHER_WORDS = """
yes no hello stop start left right up down house water dog cat bird tree music play please thanks morning evening
open close door window light turn off now later maybe never always kitchen table river mountain paper pencil coffee
sugar wonder sentence heaven tune free sick fix sex nice line mine fine hive live weather traffic alarm volume louder
quiet again cancel help computer assistant sheila marvin happy learn follow visual forward backward zebra hero nearly
wide dive night site tooth through food core sun fun run pun
""".split()
OTHER_PHRASES = (
    "what is the weather like", "turn off the light", "play some music please", "hey there how are you",
    "good morning everybody", "call my mother", "set an alarm", "the cat sat on the mat", "open the window",
    "I would like a cup of coffee", "where is the station", "stop it right now", "thank you very much",
    "she sells sea shells", "that is not what I meant", "could you repeat that", "never mind", "hey computer",
)  # fmt: skip


def clip_of(samples: np.ndarray, rate: int, front: StreamingLogMel, bins: int, **names: str) -> PowerClip:
    """A PowerClip of samples [n] float32 at `rate` Hz, with 100 ms of silence on both sides."""
    if rate != front.sample_rate:
        samples = resample(samples[None], rate, front.sample_rate)[0]
    pad = np.zeros(front.sample_rate // 10, dtype=np.float32)
    power = power_spectrogram(np.concatenate([pad, samples, pad]), front, bins)
    start, end = speech_span(power)
    return PowerClip(power.astype(np.float32), names.get("text", ""), start, end, names["speaker"], names["source"])


def recorded(
    pack: Path, front: StreamingLogMel, bins: int, leave_out: Sequence[str]
) -> tuple[list[PowerClip], list[PowerClip]]:
    """(digits of FSDD's training split, other speech) of the recorded-speech pack at `pack`."""
    digits: list[PowerClip] = []
    other: list[PowerClip] = []
    for name in ("fsdd", "librispeech_other", "librispeech_tc100", "dialogue_sim"):
        manifest = pack / "manifests" / f"{name}.jsonl"
        if not manifest.is_file():
            raise DataError(f"{manifest} is missing: the recorded-speech pack is needed to train mini")
        for line in manifest.read_text().splitlines():
            row = json.loads(line)
            if name == "fsdd" and (row["split"] == "test" or row["speaker"].removeprefix("fsdd_") in leave_out):
                continue
            audio = read(pack / row["audio"])
            samples = audio.samples.mean(0) if name == "dialogue_sim" else audio.samples[0]
            clip = clip_of(
                samples, audio.sample_rate, front, bins, text=row["text"] or "", speaker=row["speaker"] or name,
                source=name,
            )  # fmt: skip
            (digits if name == "fsdd" else other).append(clip)
    return digits, other


def phrases_of(texts: Sequence[str], rng: np.random.Generator, count: int) -> list[str]:
    """`count` phrases of two to six words from running texts."""
    phrases = []
    for _ in range(count):
        words = texts[int(rng.integers(len(texts)))].split()
        start = int(rng.integers(max(1, len(words) - 2)))
        phrases.append(" ".join(words[start : start + int(rng.integers(2, 7))]))
    return phrases


def synthetic(
    front: StreamingLogMel, bins: int, texts: Sequence[str], seed: int = 0
) -> tuple[list[PowerClip], list[PowerClip]]:
    """(digits and "plus", other words and phrases) by espeak-ng and flite voices at random rates and pitches.

    Phrases come from `texts` as well; what names a number is left out.
    """
    from vivavoce.data.synthesis import synthesize

    rng = np.random.default_rng(seed)
    voices = [f"espeak:{a}" + (f"+{t}" if t else "") for a in ACCENTS for t in TIMBRES]
    digits, other = [], []

    def say(text: str, voice: str, pitch: bool = True) -> PowerClip:
        speech = synthesize(text, voice, rate=rng.uniform(0.7, 1.3), pitch=rng.uniform(0.75, 1.3) if pitch else 1.0)
        source = "synthetic-" + voice.split(":")[0]
        return clip_of(speech.samples[0], speech.sample_rate, front, bins, text=text, speaker=voice, source=source)

    for voice in voices:
        digits += [say(word, voice) for word in (*DIGITS, "plus") for _ in range(2)]
        words = [*rng.choice(OTHER_WORDS, 14, replace=False), *rng.choice(OTHER_PHRASES, 3, replace=False)]
        other += [say(str(text), voice) for text in (*words, *phrases_of(texts, rng, 8))]
    for voice in FLITE:
        pitch = voice != "flite:rms"
        digits += [say(word, voice, pitch) for word in (*DIGITS, "plus") for _ in range(6)]
        other += [say(text, voice, pitch) for text in (*OTHER_WORDS, *OTHER_PHRASES, *phrases_of(texts, rng, 60))]
    return digits, [clip for clip in other if not set(clip.text.split()) & set(NUMBERS)]


def build_bank(
    pack: Path,
    front: StreamingLogMel,
    bins: int,
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> ClipBank:
    """All clips for training: about 6,000, 40 MB; half a minute of work on one core."""
    digits, other = recorded(pack, front, bins, leave_out)
    texts = [clip.text for clip in other if len(clip.text.split()) > 3]
    more, others = synthetic(front, bins, texts, seed)
    digits, other = digits + more, other + others
    words: dict[str, list[PowerClip]] = {word: [] for word in (*DIGITS, "plus")}
    for clip in digits:
        if clip.end > clip.start:
            words[clip.text].append(clip)
    return ClipBank(words, [clip for clip in other if len(clip.power) > 30])

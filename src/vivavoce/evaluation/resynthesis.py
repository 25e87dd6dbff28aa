"""What a model's tokens keep of a waveform: STOI, PESQ, log-mel distance, and what they cost in bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.audio import Audio, read
from vivavoce.errors import AudioError, DataError, need
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.statistics import estimate
from vivavoce.schema.arguments import Positive

RATE = 16000  # at which STOI, PESQ and the mel distance are taken
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class Resynthesis(Task):
    """`resynth(audio)` against the audio. Data: a folder of audio files, or one with `manifests/*.jsonl`.

    `seconds`: clips are cut to this length (0: whole); `clips`: at most so many, evenly chosen. Channels are
    averaged before: STOI and PESQ are measures of one channel.
    """

    name = "resynthesis"
    verb = "resynth"

    def __init__(self, clips: Positive = 100, seconds: Annotated[float, Field(ge=0)] = 10.0):
        self.clips, self.seconds = clips, seconds
        self.settings = {"clips": clips, "seconds": seconds}

    def items(self, data: Path | None) -> list[Item]:
        if data is None:
            raise DataError("resynthesis needs recordings: give a folder of audio files (--data)")
        files = sorted(p for p in Path(data).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise DataError(f"{data}: no audio files ({', '.join(AUDIO_SUFFIXES)})")
        chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(self.clips, len(files)))]
        return [Item(p.relative_to(data).as_posix(), p) for p in dict.fromkeys(chosen)]

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        for item in items:
            try:
                result = model.resynth(self._reference(item))
            except AudioError as error:
                yield item, {"error": str(error)}
                continue
            yield (
                item,
                {
                    "audio": result.audio,
                    "bits_per_second": float(result.bits_per_second),
                    "tokens_per_second": float(result.tokens_per_second),
                },
            )

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        reference, audio = self._reference(item), artefact["audio"]
        if len(audio) != len(reference.resample(audio.sample_rate)):
            raise AudioError(f"{item.id}: resynth gave {len(audio)} samples, not as many as it was given")
        one, other = (a.mono().resample(RATE) for a in (reference, audio))
        return {
            "stoi": stoi(one, other),
            "pesq": pesq(one, other),
            "log_mel": log_mel_distance(one, other),
            "bits": artefact["bits_per_second"],
            "tokens": artefact["tokens_per_second"],
        }

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        lines = (
            ("stoi", "STOI", "", True),
            ("pesq", "PESQ (wideband)", "MOS-LQO", True),
            ("log_mel", "log-mel distance", "dB", False),
            ("bits", "bits per second", "", False),
            ("tokens", "tokens per second", "", False),
        )
        results = []
        for key, metric, unit, up in lines:
            values = [s.scores[key] for s in scored]
            lost = sum(math.isnan(v) for v in values)
            note = f"{lost} clips without a value (silent or too short)" if lost else ""
            results.append(Result.of(self.name, metric, "", estimate(values), unit, higher_is_better=up, note=note))
        return results

    def _reference(self, item: Item) -> Audio:
        audio = read(item.given).mono()
        return audio[: self.seconds] if self.seconds else audio


def stoi(reference: Audio, audio: Audio) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), 0 to 1; NaN for silence and too little speech."""
    import warnings

    pystoi = need("pystoi", "eval", "STOI")
    if not reference.samples.any():
        return math.nan
    with warnings.catch_warnings():
        # Too few frames of speech: pystoi warns and returns 1e-5, which would count as a value.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(*_aligned(reference, audio), reference.sample_rate))
        except (RuntimeWarning, ValueError):
            return math.nan


def pesq(reference: Audio, audio: Audio) -> float:
    """Wideband PESQ (ITU-T P.862.2), 1.04 to 4.64, at 16 kHz; NaN for silence and where it finds no utterance."""
    package = need("pesq", "eval", "PESQ")
    if not reference.samples.any() or not audio.samples.any():
        return math.nan
    try:
        return float(package.pesq(reference.sample_rate, *_aligned(reference, audio), "wb"))
    except (package.PesqError, ValueError):
        return math.nan


def log_mel_distance(reference: Audio, audio: Audio) -> float:
    """Mean absolute difference in dB of 80 mel bands (power, 64 ms windows every 16 ms, floor -100 dB), or NaN."""
    import torch

    from vivavoce.nn.logmel import StreamingLogMel

    front = StreamingLogMel(reference.sample_rate, 1024, 256, 80, fmax=None, floor=1e-10)
    both = np.stack(_aligned(reference, audio))
    mels = front(torch.from_numpy(both)[..., None]).numpy() * (10 / math.log(10))
    return float(np.abs(mels[0] - mels[1]).mean()) if mels.shape[1] else math.nan


def _aligned(reference: Audio, audio: Audio) -> tuple[np.ndarray, np.ndarray]:
    """Both as [samples], cut to the shorter: resampling may differ by a sample."""
    size = min(len(reference), len(audio))
    return reference.samples[0, :size], audio.samples[0, :size]

"""Spoken corpora made offline: texts said by many voices into a folder of flac files and a manifest.

Resumable: a finished clip is in the journal with a digest of what was asked, so that the next call makes only what is
missing. Every clip depends on its own request alone, never on order or on the number of processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.jobs import Made, run
from vivavoce.data.synthesis import LICENSES, Rate, Speech, language, sample_rate, slug, synthesize, voices
from vivavoce.errors import RequestError
from vivavoce.schema.arguments import arguments_of


@dataclass(frozen=True)
class Utterance:
    """One clip to make: `margin` seconds of silence are kept around the speech (None: as the engine gives it),
    `augment` is a recipe for `vivavoce.data.augment`, `seed` is for its chances."""

    id: str
    text: str
    voice: str
    rate: float = 1.0
    pitch: float = 1.0
    sample_rate: Rate | None = None
    margin: Annotated[float, Field(ge=0, le=60)] | None = None
    augment: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    seed: int = 0


def plan(
    texts: Sequence[str],
    speakers: Sequence[str],
    name: str = "spoken",
    each: int = 1,
    rate: tuple[float, float] = (1.0, 1.0),
    pitch: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
    **options: Any,
) -> list[Utterance]:
    """Every text by every voice of `speakers`, `each` times, with rate and pitch uniform in the logarithm.

    Voices whose pitch is fixed keep it. `options` go to every `Utterance` (sample_rate, margin, augment). Raises
    `RequestError` where there is no voice, no text, or an option is not of its kind.
    """
    if not texts or not speakers:
        raise RequestError("nothing to say: give a text and a voice or more")
    arguments_of(Utterance).check({"id": name, "text": texts[0], "voice": speakers[0], **options}, "clips")
    pitched = {voice.name: voice.pitched for voice in voices()}
    jobs = []
    for voice in speakers:
        for index, text in enumerate(texts):
            for take in range(each):
                # The draw hangs on the utterance, so that adding a voice or a text changes no other clip.
                key = f"{seed}/{voice}/{index}/{text}/{take}"
                draw = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16))
                speed, tone = (round(float(np.exp(draw.uniform(*np.log(span)))), 3) for span in (rate, pitch))
                jobs.append(
                    Utterance(
                        f"{name}/{slug(voice)}/{index:05d}-{slug(text)[:32]}-{take}",
                        *(text, voice, speed, tone if pitched.get(voice, True) else 1.0),
                        **{"seed": int(draw.integers(2**31)), **options},
                    )
                )
    return jobs


def say(job: Utterance) -> Speech:
    """The utterance as audio: spoken, trimmed, resampled, augmented. Words' times follow, but for a changed speed."""
    speech = synthesize(job.text, job.voice, job.rate, job.pitch)
    samples, words = speech.samples, speech.words
    if job.margin is not None:
        samples, cut = _trim(samples, speech.sample_rate, job.margin)
        length = samples.shape[1] / speech.sample_rate
        words = tuple(Word(w.text, max(0.0, w.start - cut), min(length, w.end - cut)) for w in words)
    speech = Speech(samples, speech.sample_rate, job.text, job.voice, words)
    if job.sample_rate is not None and job.sample_rate != speech.sample_rate:
        speech = Speech(speech.resample(job.sample_rate).samples, job.sample_rate, job.text, job.voice, words)
    if job.augment:
        from vivavoce.data.augment import augment

        changed = augment(speech.samples[0], speech.sample_rate, job.augment, np.random.default_rng(job.seed))
        stretch = len(changed) / max(1, len(speech))
        timed = tuple(Word(w.text, w.start * stretch, w.end * stretch) for w in words)
        speech = Speech(changed[None], speech.sample_rate, job.text, job.voice, timed)
    return speech


def make(
    jobs: Iterable[Utterance], out: str | os.PathLike, processes: int = 2, quiet: bool = False, source: str = ""
) -> Made:
    """Say all `jobs` into `out/audio/*.flac` and `out/manifest.jsonl`; what is there already is kept.

    With more than one process a calling script must guard its main module (`if __name__ == "__main__":`), as for
    all of Python's multiprocessing. Texts that a voice cannot say are skipped, counted and reported in the result.
    """
    jobs = list(jobs)
    for voice in {job.voice for job in jobs}:
        synthesize("a", voice)  # a voice that is not there is an error of the whole, not of each of its clips
    return run(jobs, make_one, out, processes, quiet, source)


def make_one(job: Utterance, out: Path, digest: str, source: str) -> Clip:
    """Say one job and write its flac file under `out`; the clip that describes it, with its words' times."""
    from vivavoce.audio import write

    speech = say(job)
    name = Path("audio", f"{job.id}.flac")
    (out / name.parent).mkdir(parents=True, exist_ok=True)
    write(out / name, speech)
    engine = job.voice.partition(":")[0]
    start, end = (speech.words[0].start, speech.words[-1].end) if speech.words else (0.0, speech.duration)
    request = {"voice": job.voice, "rate": job.rate, "pitch": job.pitch}
    if job.augment:
        request |= {"augment": job.augment, "seed": job.seed}
    return Clip(
        *(job.id, name.as_posix(), speech.duration),
        *(LICENSES[engine], source or f"synthesized by {engine}"),
        *(job.text, slug(job.voice), language(job.voice)),
        # The engine's rate bounds the bandwidth, whatever the file's rate is.
        orig_sample_rate=min(speech.sample_rate, sample_rate(job.voice)),
        segments=(Segment(start, end, job.text, slug(job.voice), words=speech.words),),
        extra={"simulated": True, "synthesis": request, "request": digest},
        root=str(out),
    )


def _trim(samples: np.ndarray, rate: int, margin: float) -> tuple[np.ndarray, float]:
    """Cut to where 10 ms frames are within 40 dB of the loudest, `margin` seconds wider; seconds cut at the front."""
    hop = max(1, rate // 100)
    frames = samples[0, : samples.shape[1] // hop * hop].reshape(-1, hop)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    if not len(power) or power.max() == 0:
        return samples, 0.0
    loud = np.flatnonzero(power > 1e-4 * power.max())
    first = max(0, int(loud[0]) * hop - round(margin * rate))
    last = min(samples.shape[1], (int(loud[-1]) + 1) * hop + round(margin * rate))
    return samples[:, first:last], first / rate

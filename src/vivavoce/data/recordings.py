"""Speech as waveforms in memory, some speakers kept apart: what codecs are trained on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vivavoce.data.clips import Clip
from vivavoce.data.corpora import open_corpus
from vivavoce.errors import AudioError, DataError


@dataclass
class Recordings:
    """Waveforms [channels, samples] by the speakers to learn from, and by those held out; what was not read, and why.
    speakers, texts: of each of `clips`, "" where not known; held_out_texts likewise. corpora: which each of `clips` is
    of."""

    clips: list[Tensor] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    held_out_texts: list[str] = field(default_factory=list)
    corpora: list[str] = field(default_factory=list)
    held_out: list[Tensor] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_recordings(
    corpora: Sequence[str],
    sample_rate: int,
    held_out: Sequence[str] = (),
    pack: Path | None = None,
    channels: int = 1,
) -> Recordings:
    """All clips of `corpora` at `sample_rate`, float32 (230 MB an hour at 16 kHz): in `channels`, if a recording has as
    many, else its mean in each of them.

    corpora: places that `open_corpus` takes, or names of the recorded-speech pack's manifests. held_out: speakers whose
    clips are kept apart; one that no clip has is an error, since its clips would be trained on. A clip that cannot be
    read is skipped. Raises `DataError` where nothing is left to learn from.
    """
    found = Recordings()
    missing = set(held_out)
    for name in corpora:
        corpus = open_corpus(corpus_place(name, pack))
        found.skipped += corpus.skipped
        for clip in corpus.clips:
            missing.discard(clip.speaker or "")
            wave = _wave(clip, sample_rate, channels, found.skipped)
            if wave is not None:
                apart = clip.speaker in held_out
                (found.held_out if apart else found.clips).append(wave)
                (found.held_out_texts if apart else found.texts).append(clip.text or "")
                found.speakers += [] if apart else [clip.speaker or ""]
                found.corpora += [] if apart else [name]
    if missing:
        raise DataError(f"held_out: no clip of {', '.join(corpora)} is by '{sorted(missing)[0]}'")
    if not found.clips:
        why = f"; the first of {len(found.skipped)} skipped: {': '.join(found.skipped[0])}" if found.skipped else ""
        raise DataError(f"no recordings to learn from in {', '.join(corpora) or 'no corpora'}{why}")
    return found


def spoken(texts: Collection[str], voices: Sequence[str], sentences: int, sample_rate: int) -> list[Tensor]:
    """`sentences` of the texts said by each of the synthetic `voices` ([1, samples], mono), at rates of 0.87 to 1.15
    and pitches of 0.8 to 1.25 times the voice's own.

    The voices say different texts as long as there are enough. Same arguments, same samples. Raises `RequestError` for
    an unknown voice or where no text can be said, `DataError` for one whose program is not installed.
    """
    from vivavoce.data.spoken import plan, say

    some = sorted({text for text in texts if text.strip()})
    found = []
    for number, voice in enumerate(voices):
        turned = [some[(number * sentences + i) % len(some)] for i in range(min(sentences, len(some)))]
        jobs = plan(turned, [voice], rate=(0.87, 1.15), pitch=(0.8, 1.25), sample_rate=sample_rate, margin=0.1)
        found += [torch.from_numpy(say(job).mono().samples) for job in jobs]
    return found


def excerpts(waves: Sequence[Tensor], start: int, size: int, count: int) -> list[Tensor]:
    """`size` samples from `start` on of at most `count` of the waves that are so long, evenly chosen."""
    long = [wave for wave in waves if wave.shape[1] >= start + size]
    return [wave[:, start : start + size] for wave in long[:: max(1, -(-len(long) // count))]]


def corpus_place(name: str, pack: Path | None) -> Path:
    """A path, or the manifest of that name in the recorded-speech pack; `DataError` where there is neither."""
    if pack is not None and (pack / "manifests" / f"{name}.jsonl").is_file():
        return pack / "manifests" / f"{name}.jsonl"
    if not Path(name).exists() and "/" not in name:
        where = f"in {pack / 'manifests'}" if pack else "(VIVAVOCE_TEST_DATA names no recorded-speech pack)"
        raise DataError(f"corpus '{name}': neither a path nor a manifest {where}")
    return Path(name)


def _wave(clip: Clip, sample_rate: int, channels: int, skipped: list[tuple[str, str]]) -> Tensor | None:
    try:
        audio = clip.load(sample_rate)
        samples = audio.samples if audio.channels == channels else audio.mono().samples.repeat(channels, 0)
    except AudioError as error:
        skipped.append((clip.id, str(error)))
        return None
    return torch.from_numpy(samples)

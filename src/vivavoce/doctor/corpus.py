"""Checks of a corpus: what its rows say, and what is heard in its audio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vivavoce.data.clips import Clip
from vivavoce.data.corpora import check_ids, detect, open_corpus
from vivavoce.data.progress import progress
from vivavoce.doctor.findings import Finding, NotChecked, Report, check, examine, fault, look
from vivavoce.doctor.listening import FIGURES, listen
from vivavoce.doctor.splits import Item, copies, is_apart, leaks, speakers_of
from vivavoce.errors import AudioError, DataError


@dataclass
class HeardCorpus:
    """`clips`, the manifest that each is from (`sources`), what the loader left out (`skipped`: id, reason), and of the
    clips that were listened to (`sample`: their numbers) the figures of `listening`. sample_rate: the recipe's."""

    clips: list[Clip]
    sources: list[str]
    skipped: list[tuple[str, str]]
    sample: np.ndarray
    heard: np.ndarray
    sample_rate: int | None = None
    unread: list[tuple[str, str]] = field(default_factory=list)
    plain: bool = False  # a folder whose format has no licences

    def where(self, bad: np.ndarray, shown: Callable[[int], str] | None = None) -> Iterator[str]:
        """The ids of the clips heard of which `bad` is true, with what is `shown` of each (a number in `heard`)."""
        for number in np.flatnonzero(bad):
            name = self.clips[int(self.sample[number])].id
            yield name if shown is None else f"{name} ({shown(int(number))})"

    @cached_property
    def items(self) -> list[Item]:
        """Every clip as what a split is judged by."""
        digests = np.zeros(len(self.clips), np.uint64)
        audible = self.heard["peak"] > 0
        digests[self.sample[audible]] = self.heard["digest"][audible]
        return [
            Item(
                clip.id,
                is_apart(clip.extra, source),
                speakers_of(clip.speaker, *(segment.speaker for segment in clip.segments)),
                int(digest),
                str(clip.path),
            )
            for clip, source, digest in zip(self.clips, self.sources, digests, strict=True)
        ]


def look_at_corpus(
    places: Sequence[str | Path], sample: int | None = None, sample_rate: int | None = None, quiet: bool = False
) -> Report:
    """Check a corpus, of one place or of several (its parts); `sample`: listen to so many clips, evenly chosen.

    sample_rate: Hz of the recipe that is to learn from it. Raises as `open_corpus` does for what is no corpus.
    """
    clips: list[Clip] = []
    sources: list[str] = []
    skipped: list[tuple[str, str]] = []
    parts = [part for place in places for part in _parts(Path(place))]
    for part in parts:
        corpus = open_corpus(part, license="unknown", source=str(part))
        clips += corpus.clips
        sources += [str(part)] * len(corpus.clips)
        skipped += corpus.skipped
    numbers = np.arange(len(clips))
    if sample is not None and sample < len(clips):
        numbers = np.unique(np.linspace(0, len(clips) - 1, sample).round().astype(int))
    subject = HeardCorpus(clips, sources, skipped, numbers, np.zeros(0, FIGURES), sample_rate)
    subject.plain = all(part.is_dir() and detect(part) == "folder" for part in parts)
    _hear(subject, quiet)
    name = " ".join(str(place) for place in places)
    heard = subject.heard
    hours = sum(clip.duration for clip in clips) / 3600
    facts = [f"{len(clips)} clips, {hours:.3f} hours; {len(heard)} heard"]
    if len(heard):
        rates = ", ".join(f"{rate} Hz" for rate in np.unique(heard["rate"]))
        levels = 20 * np.log10(np.maximum(np.percentile(heard["level"], [5, 50, 95]), 1e-10))
        silent = float((heard["silent"] * heard["seconds"]).sum() / heard["seconds"].sum())
        low, middle, high = (f"{level:.0f}" for level in levels)
        facts.append(f"{rates}; level {middle} dB ({low} to {high}); silence {silent:.0%}")
    return examine("corpus", subject, Report(name, "corpus", facts))


def _parts(place: Path) -> list[Path]:
    """A folder's manifests by themselves: their names may be those of a split."""
    several = sorted((place / "manifests").glob("*.jsonl")) if place.is_dir() else []
    return several if several and not (place / "manifest.jsonl").exists() else [place]


def _hear(corpus: HeardCorpus, quiet: bool) -> None:
    total = sum(corpus.clips[int(n)].duration for n in corpus.sample) / 3600
    figures = np.zeros(len(corpus.sample), FIGURES)
    numbers: list[int] = []
    with progress("listen", total, "h", quiet=quiet) as advance:
        for number in corpus.sample:
            clip = corpus.clips[int(number)]
            try:
                figures[len(numbers)] = listen(clip)
                numbers.append(int(number))
            except AudioError as error:
                corpus.unread.append((clip.id, str(error)))
            advance(clip.duration / 3600)
    corpus.sample, corpus.heard = np.array(numbers, np.int64), figures[: len(numbers)]


@check("corpus")
def unreadable(corpus: HeardCorpus) -> Iterator[Finding]:
    """Files that are missing, empty, damaged, cut short, not audio, or hold NaN."""
    if bad := [*corpus.skipped, *corpus.unread]:
        yield fault(
            "clips that cannot be read: every command leaves them out",
            "fetch or export them again, or take them out of the manifest",
            (reason if name in reason else f"{name}: {reason}" for name, reason in bad),
        )


@check("corpus")
def ids(corpus: HeardCorpus) -> Iterator[Finding]:
    """One id for two clips."""
    try:
        check_ids(corpus.clips)
    except DataError as error:
        yield fault(str(error), "give every clip an id of its own: `vivavoce tokenize` refuses the corpus")


@check("corpus")
def sample_rates(corpus: HeardCorpus) -> Iterator[Finding]:
    """Rates that differ, or lie below the recipe's: what is above half a file's rate is missing."""
    rates = Counter(corpus.heard["rate"].tolist())
    if len(rates) > 1:
        rare = min(rates, key=lambda rate: rates[rate])
        said = ", ".join(f"{rate} Hz: {count}" for rate, count in sorted(rates.items()))
        yield look(
            f"clips of {len(rates)} sample rates ({said}): the model hears which part a clip is from",
            "take the rate that all have at least (every command resamples), or leave the others out",
            corpus.where(corpus.heard["rate"] == rare, lambda n: f"{corpus.heard['rate'][n]} Hz"),
        )
    if corpus.sample_rate is not None:
        recorded = [corpus.clips[int(n)].orig_sample_rate or corpus.heard["rate"][i]
                    for i, n in enumerate(corpus.sample)]  # fmt: skip
        band = np.minimum(np.array(recorded, np.int64), corpus.heard["rate"])
        if (low := band < corpus.sample_rate).any():
            yield look(
                f"clips recorded below the recipe's {corpus.sample_rate} Hz: their upper band is empty",
                "take recordings of that rate, or a recipe of theirs",
                corpus.where(low, lambda n: f"{band[n]} Hz"),
            )


@check("corpus")
def clipping(corpus: HeardCorpus) -> Iterator[Finding]:
    """Waveforms whose tops are cut flat."""
    share = corpus.heard["clipped"]
    if (bad := share >= 1e-3).any():
        yield fault(
            "clipped clips: a thousandth of their samples or more stand at the very peak",
            "record or export again with less gain; what was cut off does not come back",
            corpus.where(bad, lambda n: f"{share[n]:.1%}"),
        )


@check("corpus")
def silence(corpus: HeardCorpus) -> Iterator[Finding]:
    """Clips without sound, or with little of it."""
    peak, silent = corpus.heard["peak"], corpus.heard["silent"]
    if (mute := peak < 1e-4).any():
        yield fault("clips that are silent from end to end", "leave them out", corpus.where(mute))
    if (much := (silent > 0.7) & ~mute).any():
        yield look(
            "clips that are silent for more than 70 % of their length: tokens are spent on nothing",
            "trim them, or cut them at their pauses",
            corpus.where(much, lambda n: f"{silent[n]:.0%}"),
        )
    if (quiet := (peak < 0.01) & ~mute).any():
        yield look(
            "very quiet clips: their peak is below -40 dB of full scale",
            "check the gain they were exported with; scale them up",
            corpus.where(quiet, lambda n: f"{20 * np.log10(peak[n]):.0f} dB"),
        )


@check("corpus")
def offset(corpus: HeardCorpus) -> Iterator[Finding]:
    """A constant added to the waveform."""
    mean, level = corpus.heard["offset"], corpus.heard["level"]
    if (bad := (mean >= 0.01) & (mean >= 0.1 * level)).any():
        yield fault(
            "clips with an offset (DC): their mean is not zero",
            "subtract the mean, or filter out what is below 20 Hz",
            corpus.where(bad, lambda n: f"{mean[n]:.3f}"),
        )


@check("corpus")
def too_short(corpus: HeardCorpus) -> Iterator[Finding]:
    """Clips in which nobody can say anything."""
    seconds = corpus.heard["seconds"]
    if (bad := seconds < 0.05).any():
        yield fault(
            "clips shorter than 50 ms: most tokenizers have no frame of them",
            "leave them out",
            corpus.where(bad, lambda n: f"{1000 * seconds[n]:.1f} ms"),
        )


@check("corpus")
def durations(corpus: HeardCorpus) -> Iterator[Finding]:
    """What rows say of time, against the audio: durations, and turns and words that end behind it."""
    said = np.array([corpus.clips[int(n)].duration for n in corpus.sample])
    seconds = corpus.heard["seconds"]
    if (bad := np.abs(seconds - said) > 0.05 + 0.01 * said).any():
        yield fault(
            "clips that are not as long as their rows say: batches are planned by what rows say",
            "write the manifest anew (`vivavoce data import`)",
            corpus.where(bad, lambda n: f"{said[n]:.2f} s said, {seconds[n]:.2f} s there"),
        )
    outside = [
        f"{clip.id} ({end:.2f} s of {clip.duration:.2f} s)"
        for clip in corpus.clips
        if (end := max([0.0, *(s.end for s in clip.segments), *(w.end for w in clip.words)])) > clip.duration + 0.1
        or min([0.0, *(s.start for s in clip.segments)]) < -0.1
        or any(w.end < w.start for w in clip.words)
    ]
    if outside:
        yield fault(
            "turns or words that lie outside their clip, or end before they begin",
            "times are seconds from the clip's start: align again",
            outside,
        )


@check("corpus")
def texts(corpus: HeardCorpus) -> Iterator[Finding]:
    """Texts that cannot be what is said: far more or fewer letters a second than in the other clips."""
    rows, rates, tongues = [], [], []
    for n, number in enumerate(corpus.sample):
        clip = corpus.clips[int(number)]
        letters = sum(c.isalnum() for c in clip.text or "")
        if letters:
            rows.append(n)
            rates.append(letters / max(float(corpus.heard["seconds"][n]), 1e-3))
            tongues.append(clip.language or "")
    if not rows:
        raise NotChecked("no clip has a text")
    at, rate = np.array(rows), np.array(rates)
    mute = corpus.heard["peak"][at] < 1e-4
    impossible = (rate > 40) | mute
    if impossible.any():
        yield fault(
            "texts that nobody can have said in that time: more than 40 letters a second, or silence",
            "the text is another clip's, or the clip was cut: align again or leave it out",
            (f"{name} ({rate[i]:.0f} letters a second)" for i, name in _named(corpus, at, impossible)),
        )
    far = np.zeros(len(at), bool)
    for tongue in set(tongues):
        mine = np.array([t == tongue for t in tongues]) & ~impossible
        if mine.sum() < 20:
            continue
        logs = np.log(rate[mine])
        spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        far[np.flatnonzero(mine)[np.abs(logs - np.median(logs)) > max(np.log(3), 5 * spread)]] = True
    if far.any():
        yield look(
            "texts far longer or shorter for their clip than the others (letters a second)",
            "listen to them: is it their text, is it whole?",
            (f"{name} ({rate[i]:.1f} letters a second)" for i, name in _named(corpus, at, far)),
        )


def _named(corpus: HeardCorpus, at: np.ndarray, bad: np.ndarray) -> Iterable[tuple[int, str]]:
    return ((int(i), corpus.clips[int(corpus.sample[at[i]])].id) for i in np.flatnonzero(bad))


@check("corpus")
def splits(corpus: HeardCorpus) -> Iterator[Finding]:
    """Speakers and recordings in the training part and in a held-out one."""
    if not {True, False} <= {item.apart for item in corpus.items}:
        raise NotChecked("no row is of a training part and another of a held-out one (split, or the manifest's name)")
    yield from leaks(corpus.items, "clips")


@check("corpus")
def duplicates(corpus: HeardCorpus) -> Iterator[Finding]:
    """The same samples under two ids."""
    yield from copies(corpus.items, "clips")


@check("corpus")
def licences(corpus: HeardCorpus) -> Iterator[Finding]:
    """Rows that say nothing of their licence."""
    if corpus.plain:
        raise NotChecked("a plain folder says none: `vivavoce data import --license …` writes them into a manifest")
    if unknown := [clip.id for clip in corpus.clips if clip.license.lower() in ("unknown", "none", "?")]:
        yield look(
            "clips without a licence: a model of them cannot be given away with a good conscience",
            "find out, and write it into the rows (`vivavoce data import --license …`)",
            unknown,
        )

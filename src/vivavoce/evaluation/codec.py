"""A codec measured: what its codes keep of speech, by Codec-SUPERB's or VERSA's rules, and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vivavoce.audio import Audio, read
from vivavoce.errors import AudioError, DataError, RequestError
from vivavoce.evaluation.codec_rules import OURS, Column, measures_under
from vivavoce.evaluation.codec_superb import sinc_resample
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.resynthesis import AUDIO_SUFFIXES
from vivavoce.evaluation.statistics import Estimate, estimate
from vivavoce.schema.arguments import Positive

CLOSED = "closed"


class CodecQuality(Task):
    """`resynth(audio)` against the audio, at the recording's own rate, in one channel; intervals over speakers.

    rules: whose definitions. measures: only these (stoi, pesq, si_sdr, f0, mel, stft, voicing; with versa also estoi;
    default: all). Data: a folder of audio files, or of the recorded-speech pack with `corpora`: names of its manifests,
    `NAME` or `NAME/SPEAKER`. clips: at most so many of each corpus, evenly chosen; seconds: clips are cut to this
    length (0: whole). recogniser, speaker: models by path or hub id for word errors (of clips that have texts) and for
    the similarity of voices. recogniser `closed`: pocketsphinx, which knows the sentences of the chosen clips and no
    other; the share of clips of which the right one is heard.
    """

    name = "codec"
    verb = "resynth"

    def __init__(
        self,
        rules: Literal["codec-superb", "versa"] = "versa",
        measures: tuple[str, ...] = (),
        corpora: tuple[str, ...] = (),
        clips: Positive = 100,
        seconds: Annotated[float, Field(ge=0)] = 8.0,
        recogniser: str | None = None,
        speaker: str | None = None,
    ):
        known = measures_under(rules)
        unknown = [name for name in measures if name not in known]
        if unknown:
            raise RequestError(f"measures: '{unknown[0]}' is not one of {', '.join(known)}")
        self.rules, self.corpora = rules, tuple(corpora)
        self.measures = {name: known[name] for name in (measures or known)}
        self.clips, self.seconds = clips, seconds
        self.recogniser, self.speaker = recogniser, speaker
        # what the answers hang on; measures can be taken anew
        self.settings = {"corpora": list(self.corpora), "clips": clips, "seconds": seconds}
        self._made: dict[str, Any] = {}
        self._sentences: list[str] = []

    def items(self, data: Path | None) -> list[Item]:
        found = self._found(data)
        self._sentences = sorted({_words((item.expected or {}).get("text") or "") for item in found} - {""})
        return found

    def _found(self, data: Path | None) -> list[Item]:
        if data is None:
            raise DataError("task codec needs recordings: give a folder of audio files (--data)")
        if self.corpora:
            return [item for name in self.corpora for item in self._chosen(self._manifest(data, name))]
        files = sorted(p for p in Path(data).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise DataError(f"{data}: no audio files ({', '.join(AUDIO_SUFFIXES)})")
        return self._chosen([Item(p.relative_to(data).as_posix(), p, {}) for p in files])

    def _manifest(self, data: Path, name: str) -> list[Item]:
        from vivavoce.data.clips import read_manifest

        corpus, _, speaker = name.partition("/")
        path = Path(data) / "manifests" / f"{corpus}.jsonl"
        if not path.is_file():
            raise DataError(f"corpora: {path} does not exist")
        clips = [clip for clip in read_manifest(path) if speaker in ("", clip.speaker)]
        if not clips:
            raise DataError(f"corpora: no clip of {corpus} is by '{speaker}'")
        told = [{"speaker": clip.speaker or clip.id, "text": clip.text} for clip in clips]
        return [Item(clip.id, clip.path, about, group=corpus) for clip, about in zip(clips, told)]

    def _chosen(self, items: list[Item]) -> list[Item]:
        places = np.linspace(0, len(items) - 1, min(self.clips, len(items)))
        return [items[at] for at in dict.fromkeys(int(place) for place in places)]

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        import torch

        sizes = [int(size) for size in getattr(model, "codebook_sizes", ())]
        delay = float(getattr(model, "delay", math.nan))
        for item in items:
            try:
                reference = self._reference(item)
                start = time.perf_counter()
                found = model.resynth(reference)
            except AudioError as error:
                yield item, {"error": str(error)}
                continue
            spent = time.perf_counter() - start
            yield (
                item,
                {
                    "audio": found.audio,
                    "bits_per_second": float(found.bits_per_second),
                    "tokens_per_second": float(found.tokens_per_second),
                    "real_time_factor": spent / (len(reference) / reference.sample_rate),
                    "threads": torch.get_num_threads(),
                    "delay": delay,
                    "codes": None if found.codes is None else np.asarray(found.codes).tolist(),
                    "codebook_sizes": sizes,
                },
            )

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        reference = self._reference(item)
        one = np.ascontiguousarray(reference.samples[0])
        other = self._heard(artefact["audio"].mono(), reference)
        scores: dict[str, float] = {}
        for measure, columns in self.measures.values():
            found = measure(one, other, reference.sample_rate)
            scores |= dict(found) if isinstance(found, Mapping) else {name_of(columns): found}
        estimate = Audio(other[None], reference.sample_rate)
        if self.recogniser is not None and item.expected and item.expected.get("text"):
            text = item.expected["text"]
            if self.recogniser == CLOSED:
                scores["sentence"] = float(self._once(CLOSED, self._closed)(estimate) == _words(text))
            else:
                scores["errors"], scores["words"] = self._word_errors(text, estimate)
        if self.speaker is not None:
            embed = self._once("speaker", self._speaker)
            scores["voice"] = float(np.dot(embed(reference), embed(estimate)))
        plain = ("bits_per_second", "tokens_per_second", "real_time_factor", "delay")
        return {**scores, **{name: float(artefact[name]) for name in plain}}

    def _heard(self, audio: Audio, reference: Audio) -> np.ndarray:
        """The estimate [samples] at the reference's rate and of its length: by the resampler that the rules have."""
        wave, rate = audio.samples[0], reference.sample_rate
        if audio.sample_rate != rate:
            codec_superb = self.rules == "codec-superb"
            wave = sinc_resample(wave, audio.sample_rate, rate) if codec_superb else audio.resample(rate).samples[0]
        if abs(len(wave) - len(reference)) > max(2, 0.02 * rate):
            raise AudioError(f"resynth gave {len(wave)} samples for {len(reference)} at {rate} Hz")
        wave = wave[: len(reference)]
        return np.pad(wave, (0, len(reference) - len(wave))).astype(np.float32)

    def _word_errors(self, text: str, audio: Audio) -> tuple[float, float]:
        """Words wrong and words said, by the recogniser."""
        from vivavoce.errors import need

        jiwer = need("jiwer", "eval", "word errors")
        said, heard = (_words(each) for each in (text, self._once("recogniser", self._recogniser)(audio)))
        if not said:
            return math.nan, math.nan
        found = jiwer.process_words(said, heard or " ")
        return float(found.substitutions + found.deletions + found.insertions), float(len(said.split()))

    def _once(self, kind: str, make: Callable[[], Any]) -> Any:
        if kind not in self._made:
            self._made[kind] = make()
        return self._made[kind]

    def _closed(self) -> Any:
        from vivavoce.evaluation.judge import ClosedVocabulary

        return ClosedVocabulary(self._sentences)

    def _recogniser(self) -> Any:
        from vivavoce.evaluation.transcribers import load_transcriber

        return load_transcriber(str(self.recogniser))

    def _speaker(self) -> Any:
        from vivavoce.evaluation.speakers import load_speaker_encoder

        return load_speaker_encoder(str(self.speaker))

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        speakers = [(s.item.expected or {}).get("speaker", s.item.id) for s in scored]
        results = []
        for column, name in self.columns():
            values = [s.scores.get(name, math.nan) for s in scored]
            lost = sum(math.isnan(v) for v in values)
            note = f"{lost} clips without a value" if 0 < lost < len(values) else ""
            if lost < len(values):
                found = estimate(values, clusters=speakers)
                results.append(self._result(column, found, note))
        if self.recogniser not in (None, CLOSED):
            results.append(self._word_error_rate(scored, speakers))
        return results + self._codebooks([s.artefact for s in scored])

    def columns(self) -> list[tuple[Column, str]]:
        """What is measured of every clip, with its name in the scores."""
        found = [(column, name) for _, columns in self.measures.values() for name, column in columns.items()]
        if self.speaker is not None:
            found.append((Column(f"speaker similarity ({self.speaker})", OURS), "voice"))
        if self.recogniser == CLOSED:
            found.append((Column(f"sentence heard, of {len(self._sentences)}", OURS), "sentence"))
        return found + [
            (Column("bits per second", OURS, up=False), "bits_per_second"),
            (Column("tokens per second", OURS, up=False), "tokens_per_second"),
            (Column("real-time factor", OURS, up=False), "real_time_factor"),
            (Column("delay", OURS, "s", up=False), "delay"),
        ]

    def _result(self, column: Column, found: Estimate, note: str = "") -> Result:
        return Result.of(self.name, column.label, "", found, column.unit, higher_is_better=column.up, note=note)

    def _word_error_rate(self, scored: Sequence[Scored], speakers: Sequence[str]) -> Result:
        """Errors over words of all clips together."""
        column = Column(f"word error rate ({self.recogniser})", OURS, "%", up=False)
        kept = [n for n, s in enumerate(scored) if not math.isnan(s.scores.get("words", math.nan))]
        errors, words = (np.array([scored[n].scores[key] for n in kept]) for key in ("errors", "words"))

        def rate(places: np.ndarray) -> float:
            at = places.astype(int)
            return float(errors[at].sum() / words[at].sum())

        found = estimate(list(range(len(kept))), rate, [speakers[n] for n in kept])
        return self._result(column, found, "" if kept else "no clip has a text")

    def _codebooks(self, artefacts: Sequence[Mapping[str, Any]]) -> list[Result]:
        """Use of each codebook over all clips: entries that occur, and the perplexity of their frequencies."""
        import torch

        from vivavoce.training.codec_task import codebook_use

        rows = [artefact for artefact in artefacts if artefact.get("codes")]
        results = []
        for level in range(min((len(row["codes"]) for row in rows), default=0)):
            codes = torch.tensor([code for row in rows for code in row["codes"][level]])
            used, perplexity = codebook_use(codes)
            size = rows[0]["codebook_sizes"][level] if level < len(rows[0]["codebook_sizes"]) else 0
            for title, value in (("entries in use", float(used)), ("perplexity", perplexity)):
                nothing = math.nan
                note = f"of {size}" if size else ""
                results.append(
                    Result(self.name, f"codebook {title} [{OURS}]", f"codebook {level}", value, nothing, nothing,
                           len(codes), note=note)
                )  # fmt: skip
        return results

    def _reference(self, item: Item) -> Audio:
        audio = read(item.given).mono()
        return audio[: self.seconds] if self.seconds else audio


def name_of(columns: Mapping[str, Column]) -> str:
    """The one name of a measurement that gives one number."""
    (name,) = columns
    return name


def _words(text: str) -> str:
    """Lower-case words without punctuation but apostrophes, one space between them."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return " ".join(kept.split())

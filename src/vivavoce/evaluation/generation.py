"""Is what a textless model goes on with language, and is it more than one sentence again and again?

A model is given the first seconds of a recording and goes on; a recogniser writes down what was said; a text language
model says how likely those words are, and n-grams how much they repeat. The recording's own end goes the same way,
which is what a perfect model could reach. Perplexity alone is best where a model repeats itself: both are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.audio import Audio
from vivavoce.data.clips import Clip
from vivavoce.data.corpora import check_ids, open_corpus
from vivavoce.errors import AudioError, DataError, RequestError
from vivavoce.evaluation.diversity import auto_bleu, repeated_ngrams, self_bleu, spoken_words, vert, written_words
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.statistics import Estimate, estimate
from vivavoce.evaluation.text_lm import TextLM
from vivavoce.evaluation.transcribers import load_transcriber
from vivavoce.lm.sampling import Sampling
from vivavoce.schema.arguments import Count, Positive

CONTINUE = "continue"
RECORDED, GENERATED = "recorded", "generated"


class Generation(Task):
    """`reply` (task `continue`) to the first `prompt` seconds of recordings: GenPPL, auto-BLEU, self-BLEU, VERT.

    Data: what `open_corpus` takes (a folder of recordings, a manifest); of its recordings of at least `shortest`
    seconds `clips`, evenly chosen. transcriber: as `load_transcriber` has it. lm: a causal text model by path or hub id
    (null: no perplexity). seconds: how long the model may go on (0: as long as the recording does). whole: the prompt,
    through the model's own voice, is written down with what follows it. sampling: changes of the recipe's
    `decode.sampling`. temperatures: each gives results of its own. words: perplexity is of texts with at least so many.
    The defaults are Slam's but for `shortest` and `seconds`, which are GSLM's.
    """

    name = "generation"
    verb = "reply"

    def __init__(
        self,
        transcriber: str = "openai/whisper-large-v3-turbo",
        lm: str | None = "meta-llama/Llama-3.2-1B",
        prompt: Annotated[float, Field(gt=0)] = 3.0,
        seconds: Annotated[float, Field(ge=0)] = 0.0,
        shortest: Annotated[float, Field(gt=0)] = 6.0,
        clips: Positive = 1000,
        whole: bool = True,
        sampling: Mapping[str, Any] | None = None,
        temperatures: Sequence[Annotated[float, Field(ge=0)]] = (),
        words: Count = 1,
        seed: int = 0,
    ):
        self.transcriber, self.lm, self.prompt, self.seconds, self.shortest = transcriber, lm, prompt, seconds, shortest
        self.clips, self.whole, self.words, self.seed = clips, whole, words, seed
        self.sampling, self.temperatures = dict(sampling or {}), tuple(temperatures)
        if len(set(self.temperatures)) < len(self.temperatures):
            raise RequestError(f"task {self.name}: temperatures {list(temperatures)}: name each once")
        # what answers depend on: another text model, or another count, needs none of them again
        self.settings = {
            **{"transcriber": transcriber, "prompt": prompt, "seconds": seconds, "whole": whole, "seed": seed},
            **{"sampling": self.sampling},
        }
        self._judge: TextLM | None = None
        self._device = "cpu"

    def items(self, data: Path | None) -> list[Item]:
        if data is None:
            raise DataError(f"task {self.name} needs recordings to go on with: give a folder or a manifest (--data)")
        corpus = open_corpus(data, license="unknown", source="unknown")
        long = [clip for clip in corpus.clips if clip.duration >= self.shortest and clip.duration > self.prompt]
        if not long:
            most = max((clip.duration for clip in corpus.clips), default=0.0)
            raise DataError(
                f"{data}: no recording of {self.shortest:g} s (the longest of {len(corpus.clips)} has {most:.1f} s): "
                "give a smaller generation.shortest and generation.prompt"
            )
        chosen = [long[int(i)] for i in np.linspace(0, len(long) - 1, min(self.clips, len(long)))]
        check_ids(chosen, data)
        items = []
        for group, temperature in [(RECORDED, None), *self._groups]:
            for number, clip in enumerate(chosen):
                given = (clip.path, clip.start, clip.duration, group == RECORDED, temperature, self.seed + number)
                items.append(Item(f"{group}/{clip.id}", given, clip, group))
        return items

    def items_of(self, model: Any, data: Path | None) -> list[Item]:
        if CONTINUE not in getattr(model, "tasks", {}):
            raise RequestError(f"task {self.name} asks a model to go on with what it hears (its task '{CONTINUE}'): "
                               f"this one has {', '.join(getattr(model, 'tasks', {})) or 'none'}")
        items = self.items(data)
        self._device = str(getattr(model, "device", "cpu"))
        written_words("")  # before anything is generated: what is missing is told at once
        if self.lm is not None:
            self._judge = TextLM(self.lm, self._device)
        return items

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        write_down = load_transcriber(self.transcriber, self._device)
        for item in items:
            try:
                if item.group == RECORDED:
                    audio, kept = self._recorded(item.expected), {}
                else:
                    audio = self._generated(model, item)
                    kept = {"audio": audio}
                yield item, {**kept, "seconds": audio.duration, "text": write_down(audio)}
            except AudioError as error:
                yield item, {"error": str(error)}

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """Of one text: its words, how much it repeats, and nats a token by both conventions (NaN: nothing to score)."""
        text, words = artefact["text"], spoken_words(artefact["text"])
        scores = {
            "words": float(len(words)),
            "repeats/slam": repeated_ngrams(written_words(text)),
            "repeats/gslm": auto_bleu(words),
            "nats/slam": math.nan,
            "nats/gslm": math.nan,
        }
        if self._judge is not None and len(words) >= max(self.words, 1):
            ((total, count),) = self._judge.nats([text])
            scores["nats/slam"] = total / count if count else math.nan
            ((total, count),) = self._judge.nats([" ".join(words)], ends=True)
            scores["nats/gslm"] = total / count if count else math.nan
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        results = []
        for group in dict.fromkeys(one.item.group for one in scored):
            results += self._summary(group, [one for one in scored if one.item.group == group])
        return results

    @property
    def _groups(self) -> list[tuple[str, float | None]]:
        """What is generated: name of the group, temperature (None: the model's own)."""
        return [(f"temperature {t:g}", t) for t in self.temperatures] or [(GENERATED, None)]

    def _summary(self, group: str, scored: Sequence[Scored]) -> list[Result]:
        def column(name: str) -> list[float]:
            return [one.scores[name] for one in scored]

        def row(metric: str, found: Estimate, unit: str = "", note: str = "", up: bool = False) -> Result:
            return Result.of(self.name, metric, group, found, unit, note=note, higher_is_better=up)

        results = []
        if self._judge is not None:
            slam, gslm = column("nats/slam"), column("nats/gslm")
            unscored = sum(map(math.isnan, slam))
            note = f"{unscored} of {len(slam)} texts too short" if unscored else ""
            results = [
                row("GenPPL (slam)", estimate(slam, lambda nats: float(np.exp(nats.mean()))), note=note),
                row("PPX (gslm), mean", estimate(np.exp(gslm).tolist()), note=note),
                row("PPX (gslm), median", estimate(np.exp(gslm).tolist(), _median), note=note),
            ]
        texts = [spoken_words(one.artefact["text"]) for one in scored]
        each, own = np.array(self_bleu(texts)), np.array(column("repeats/gslm"))
        which = list(range(len(scored))) if len(scored) > 1 else []

        def verts(at: np.ndarray) -> float:
            return vert(each[at.astype(int)], own[at.astype(int)])

        results += [
            row("auto-BLEU-2 (slam)", estimate(column("repeats/slam")), "%"),
            row("auto-BLEU-2 (gslm)", estimate(own.tolist()), "%"),
            row("self-BLEU-2 (gslm)", estimate(each.tolist()), "%"),
            row("VERT-2 (gslm)", estimate(which, verts), "%"),
            row("words", estimate(column("words"), _mean), up=True),
        ]
        return results

    # -- what is written down --

    def _recorded(self, clip: Clip) -> Audio:
        audio = clip.load().mono()
        return audio[0.0 if self.whole else self.prompt : self.prompt + self._length(clip)]

    def _generated(self, model: Any, item: Item) -> Audio:
        clip: Clip = item.expected
        *_, temperature, seed = item.given
        heard = clip.load().mono()[: self.prompt]
        with _sampling(model, self.sampling, temperature):
            said = model.reply([("user", heard)], task=CONTINUE, seed=seed, seconds=self._length(clip)).audio
        if not self.whole:
            return said
        before = model.resynth(heard).audio if "resynth" in model.verbs else heard
        before = before.resample(said.sample_rate)
        return Audio(np.concatenate([before.samples, said.samples], axis=1), said.sample_rate)

    def _length(self, clip: Clip) -> float:
        """Seconds that follow the prompt."""
        return self.seconds or clip.duration - self.prompt


@contextmanager
def _sampling(model: Any, changes: Mapping[str, Any], temperature: float | None) -> Iterator[None]:
    """The model's own sampling with changes, as long as it lasts."""
    more = dict(changes) if temperature is None else {**changes, "temperature": temperature}
    if not more:
        yield
        return
    system: Any = getattr(model, "system", None)
    if not isinstance(getattr(system, "sampling", None), Mapping):
        raise RequestError("generation.sampling, generation.temperatures: this model does not choose by our sampling")
    own = system.sampling
    try:
        where = "generation.sampling"
        system.sampling = {name: Sampling.of({**asdict(found), **more}, where) for name, found in own.items()}
        yield
    finally:
        system.sampling = own


def _mean(values: np.ndarray) -> float:
    return float(values.mean())  # not numpy's own, which stands for shares in intervals


def _median(values: np.ndarray) -> float:
    return float(np.median(values))

"""How good are units, and the frames that they are made of? Phones told apart, phones told by units, cost, robustness.

ABX (`evaluation.abx`) of frames and of units; purity and mutual information of units with phones; bits a second and how
long units last; how many units change under noise, at another speed or pitch (unit edit distance), and when a stretch
is heard alone (consistency). Intervals are over speakers: whole speakers are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.audio import Audio
from vivavoce.data.clips import Clip, Word
from vivavoce.data.corpora import open_corpus
from vivavoce.data.phones import KINDS, abx_tokens, phones_of
from vivavoce.errors import AudioError, DataError, RequestError
from vivavoce.evaluation.abx import DISTANCES, RULES, Token, abx, read_items
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.statistics import Estimate
from vivavoce.evaluation.unit_statistics import (
    cluster_purity,
    drawn,
    edit_distance,
    entropy,
    joint_counts,
    of_replicates,
    phone_purity,
    pnmi,
    ratio,
    replicates,
    runs,
    table_replicates,
)
from vivavoce.schema.arguments import Positive

DISGUISES: dict[str, dict[str, Any]] = {
    "noise 20 dB": {"noise": {"snr": 20.0}},
    "noise 10 dB": {"noise": {"snr": 10.0}},
    "noise 0 dB": {"noise": {"snr": 0.0}},
    "speed 0.9": {"stretch": {"factor": 0.9}},
    "speed 1.1": {"stretch": {"factor": 1.1}},
    "pitch 0.8": {"pitch": {"factor": 0.8}},
    "pitch 1.25": {"pitch": {"factor": 1.25}},
}


class Units(Task):
    """`features` and codes of a corpus whose rows have phones and speakers (`vivavoce data phones`).

    --data: its manifest. items: an item file, in the place of tokens made of the phones (`tokens`: triphone, phoneme or
    both); its files are named by the rows' ids, or by the last part of these. distance, rules, context, largest_group,
    most_speakers, seed: of `abx`; 0 of a number means all. layer: of the frames (default: that of the units). level:
    which of a codec's codebooks. robustness: whether units are heard disguised. excerpt: seconds of a stretch that is
    heard alone (0: none). speakers: only these; clips: at most so many, evenly chosen. against: another model, as
    `vivavoce.load` takes it, that hears the same clips: lines of the differences, ours less its.
    """

    name = "units"
    verb = "features"

    def __init__(
        self,
        items: str | None = None,
        tokens: list[str] | None = None,
        distance: str = "angular",
        rules: str = "corrected",
        context: str = "within",
        largest_group: Annotated[int, Field(ge=0)] = 10,
        most_speakers: Annotated[int, Field(ge=0)] = 5,
        layer: int | None = None,
        level: Annotated[int, Field(ge=0)] = 0,
        robustness: bool = True,
        excerpt: Annotated[float, Field(ge=0)] = 0.5,
        clips: Positive = 10_000,
        speakers: list[str] | None = None,
        against: str | None = None,
        seed: int = 0,
    ):
        kinds = tuple(tokens) if tokens is not None else KINDS
        if distance not in DISTANCES or rules not in RULES or not set(kinds) <= set(KINDS):
            raise RequestError(f"task units: distance {distance}, rules {rules}, tokens {', '.join(kinds)}: there are "
                               f"{', '.join(DISTANCES)}; {', '.join(RULES)}; {', '.join(KINDS)}")  # fmt: skip
        self.items_file, self.kinds, self.distance, self.rules = items, kinds, distance, rules
        self.context, self.layer, self.level, self.seed = context, layer, level, seed
        self.largest, self.most = largest_group or None, most_speakers or None
        self.robustness, self.excerpt, self.clips = robustness, excerpt, clips
        self.speakers, self.against = tuple(speakers or ()), against
        # what answers hang on; how they are scored may change
        self.settings = {"layer": layer, "level": level, "robustness": robustness, "excerpt": excerpt}
        self._model: Any = None
        self._other: Any = None
        self._said: dict[str, np.ndarray] = {}  # the other one's units of each clip
        self._chosen: list[Clip] = []

    def items(self, data: Path | None) -> list[Item]:
        if data is None:
            raise DataError("task units needs a manifest with phones (--data): vivavoce data phones makes one")
        corpus = open_corpus(data)
        chosen = [clip for clip in corpus.clips if not self.speakers or clip.speaker in self.speakers]
        if not chosen:
            raise DataError(f"{data}: no clip is by {', '.join(self.speakers) or 'anybody'}")
        self._chosen = [chosen[int(i)] for i in np.linspace(0, len(chosen) - 1, min(self.clips, len(chosen)))]
        return [Item(clip.id, clip.path, {"phones": phones_of(clip), "speaker": clip.speaker or clip.id, "clip": clip})
                for clip in self._chosen]  # fmt: skip

    def items_of(self, model: Any, data: Path | None) -> list[Item]:
        self._model = model
        if self.against is not None:
            from vivavoce.systems import load

            self._other, self._said = load(self.against, device=str(model.device)), {}
        return self.items(data)

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        for item in items:
            try:
                audio = item.expected["clip"].load(model.sample_rate).mono()
                plain = self._codes(model, audio)
                found: dict[str, Any] = {"units": plain.tolist(), "seconds": audio.duration}
                found["disguised"] = {name: self._codes(model, each).tolist() for name, each in self._disguised(audio)}
                found["alone"] = self._alone(model, audio, plain)
            except AudioError as error:
                yield item, {"error": str(error)}
                continue
            yield item, found

    def _codes(self, model: Any, audio: Audio) -> np.ndarray:
        """Codes [T] of the chosen level."""
        import torch

        codec = getattr(model.system, "codec", None)
        if codec is None or not hasattr(codec, "encode"):
            raise RequestError("task units: this model has no tokenizer of audio")
        with torch.inference_mode():
            codes = codec.encode(torch.from_numpy(audio.samples[None]).to(model.device))[0]
        if self.level >= len(codes):
            raise RequestError(f"task units: level {self.level}: the tokenizer has {len(codes)} codebooks")
        return codes[self.level].cpu().numpy()

    def _disguised(self, audio: Audio) -> Iterator[tuple[str, Audio]]:
        from vivavoce.data.augment import augment

        for name, recipe in DISGUISES.items() if self.robustness else ():
            chance = np.random.default_rng(self.seed)
            yield name, Audio(augment(audio.samples[0], audio.sample_rate, recipe, chance)[None], audio.sample_rate)

    def _alone(self, model: Any, audio: Audio, plain: np.ndarray) -> list[int] | None:
        """Frames of a stretch in the middle whose code is the same when it is heard alone, and how many there are."""
        codec = model.system.codec
        hop, frames = int(codec.hop), round(self.excerpt * codec.frame_rate)
        first = (len(plain) - frames) // 2
        if not frames or first < 1:
            return None
        piece = audio.samples[:, first * hop : (first + frames) * hop]
        alone = self._codes(model, Audio(piece, audio.sample_rate))
        return [int((alone == plain[first : first + len(alone)]).sum()), len(alone)]

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """Edits for every disguise, and how many units there are without repetitions."""
        plain, lasting = runs(np.asarray(artefact["units"], np.int64))
        scores = {"frames": float(len(artefact["units"])), "runs": float(len(plain)), "seconds": artefact["seconds"]}
        scores["single"] = float((lasting == 1).sum())
        for name, codes in artefact["disguised"].items():
            scores[name] = float(edit_distance(plain, runs(np.asarray(codes, np.int64))[0]))
        if artefact.get("alone"):
            scores["same alone"], scores["alone"] = (float(number) for number in artefact["alone"])
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        by_speaker: dict[str, list[Scored]] = {}
        for one in scored:
            by_speaker.setdefault(one.item.expected["speaker"], []).append(one)
        results = [*self._abx(scored), *self._phones(by_speaker), *self._cost(by_speaker)]
        return [result for result in results if result.count]

    def _row(self, metric: str, group: str, found: Estimate, unit: str = "", note: str = "", **more: Any) -> Result:
        said = "; ".join(part for part in (note, "interval over speakers") if part)
        return Result.of(self.name, metric, group, found, unit, note=said, **more)

    # -- ABX --

    def _abx(self, scored: Sequence[Scored]) -> Iterator[Result]:
        wanted = {"items": read_items(self.items_file)} if self.items_file else {
            kind: [Token(*token) for token in abx_tokens([s.item.expected["clip"] for s in scored], kind)]
            for kind in self.kinds
        }  # fmt: skip
        names = {one.item.id.replace(" ", "_"): one for one in scored}
        names |= {one.item.id.split("/")[-1]: one for one in scored} if self.items_file else {}
        used = {token.file for tokens in wanted.values() for token in tokens}
        named = {name: one for name, one in names.items() if name in used}
        ours, other = (self._heard(model, named) if model is not None else None for model in (self._model, self._other))
        assert ours is not None
        for kind, tokens in wanted.items():
            for mode in ("within", "across"):
                for what, distance in (("frames", self.distance), ("units", "identical")):
                    table, *second = (
                        abx(tokens, each[what], each["rate"], mode, distance, self.rules, self.context, self.largest,
                            self.most, self.seed)
                        for each in (ours, other) if each is not None
                    )  # fmt: skip
                    note = f"{distance}, context {self.context}, {self.rules}"
                    metric, group = f"ABX error, {kind}", f"{what}, {mode} speakers"
                    spread = table_replicates(table, self.seed)
                    found = of_replicates(table.error(), spread, table.triplets)
                    yield self._row(metric, group, found, "%", note, higher_is_better=False)
                    for theirs in second:
                        apart = table.error() - theirs.error(), spread - table_replicates(theirs, self.seed)
                        found = of_replicates(*apart, table.triplets)
                        yield self._row(metric, f"{group}, {self._less}", found, "%", note, higher_is_better=False)

    @property
    def _less(self) -> str:
        return f"less {self._other.name}"

    def _heard(self, model: Any, named: Mapping[str, Scored]) -> dict[str, Any]:
        """Frames and units of every clip, and how many frames a model has a second."""
        clips = {one.item.id: one for one in named.values()}
        frames, units = {}, {}
        for key, one in clips.items():
            audio = one.item.expected["clip"].load(model.sample_rate).mono()
            frames[key] = np.asarray(model.features(audio, self.layer if model is self._model else None).values)
            units[key] = self._units(model, one)
        rate = float(model.features(Audio(np.zeros((1, 16000), np.float32), 16000)).frame_rate)
        by_name = {name: one.item.id for name, one in named.items()}
        return {"frames": {name: frames[key] for name, key in by_name.items()},
                "units": {name: units[key] for name, key in by_name.items()}, "rate": rate}  # fmt: skip

    def _units(self, model: Any, one: Scored) -> np.ndarray:
        """A clip's units [T]: what the model answered, or what the other one says now."""
        if model is self._model:
            return np.asarray(one.artefact["units"], np.int64)
        if one.item.id not in self._said:
            audio = one.item.expected["clip"].load(model.sample_rate).mono()
            self._said[one.item.id] = self._codes(model, audio).astype(np.int64)
        return self._said[one.item.id]

    # -- phones --

    def _phones(self, by_speaker: Mapping[str, Sequence[Scored]]) -> Iterator[Result]:
        every = [one for some in by_speaker.values() for one in some if one.item.expected["phones"]]
        names = sorted({phone.text for one in every for phone in one.item.expected["phones"]})
        if not names:
            return
        ours, *second = (
            self._phone_counts(model, by_speaker, names) for model in (self._model, self._other) if model is not None
        )
        count = int(ours.sum())
        note = f"{int((ours.sum((0, 1)) > 0).sum())} units of {len(names)} phones, silences left out"
        for metric, statistic in (("PNMI", pnmi), ("phone purity", phone_purity), ("cluster purity", cluster_purity)):
            point, spread = statistic(ours.sum(0)), replicates(ours, statistic, self.seed)
            yield self._row(metric, "", of_replicates(point, spread, count), "%", note)
            for theirs in second:
                apart = point - statistic(theirs.sum(0)), spread - replicates(theirs, statistic, self.seed)
                yield self._row(metric, self._less, of_replicates(*apart, count), "%", note)

    def _phone_counts(self, model: Any, by_speaker: Mapping[str, Sequence[Scored]], names: list[str]) -> np.ndarray:
        """How often a unit meets a phone: [speakers, phones, units]."""
        rate, tables = float(model.system.codec.frame_rate), []
        heard = {who: [one for one in some if one.item.expected["phones"]] for who, some in by_speaker.items()}
        units = {who: [self._units(model, one) for one in some] for who, some in heard.items()}
        size = 1 + max((int(u.max(initial=0)) for some in units.values() for u in some), default=0)
        for who, some in heard.items():
            said = [one.item.expected["phones"] for one in some]
            labels = [frame_phones(phones, names, len(u), rate) for phones, u in zip(said, units[who])]
            tables.append(joint_counts(labels, units[who], (len(names), size)))
        return np.stack(tables)

    # -- cost and robustness --

    def _cost(self, by_speaker: Mapping[str, Sequence[Scored]]) -> Iterator[Result]:
        def sums(name: str) -> np.ndarray:
            return np.array([sum(one.scores.get(name, 0.0) for one in some) for some in by_speaker.values()])

        every = [one for some in by_speaker.values() for one in some]
        size = 1 + max((max(one.artefact["units"], default=0) for one in every), default=0)
        counts = np.zeros((2, len(by_speaker), size))
        for row, some in enumerate(by_speaker.values()):
            for one in some:
                units = np.asarray(one.artefact["units"], np.int64)
                counts[0, row] += np.bincount(units, minlength=size)
                counts[1, row] += np.bincount(runs(units)[0], minlength=size)
        seconds, frames, single = sums("seconds"), sums("frames"), sums("single")
        for name, each in zip(("every frame", "without repetitions"), counts):
            both = np.concatenate([each, seconds[:, None]], axis=1)
            found = drawn(both, bits_per_second, int(each.sum()), self.seed)
            yield self._row("bitrate", name, found, "bit/s", "entropy of the units x units a second",
                            higher_is_better=False)  # fmt: skip
        rate = frames.sum() / max(seconds.sum(), 1e-9)
        yield self._row("a unit lasts", "mean", ratio(1000 * frames / rate, sums("runs"), self.seed), "ms")
        yield self._row("units of one frame", "", ratio(single, sums("runs"), self.seed), "%")
        for name in DISGUISES if self.robustness else ():
            yield self._row("unit edit distance", name, ratio(sums(name), sums("runs"), self.seed), "%",
                            "edits a unit, repetitions left out", higher_is_better=False)  # fmt: skip
        yield self._row("consistency", f"{self.excerpt:g} s alone", ratio(sums("same alone"), sums("alone"), self.seed),
                        "%", "codes that are the same")  # fmt: skip


def bits_per_second(counts: np.ndarray) -> float:
    """Counts of every unit, and last how many seconds they took: their entropy times their number, a second."""
    return entropy(counts[:-1]) * float(counts[:-1].sum()) / float(counts[-1])


def frame_phones(phones: Sequence[Word], names: Sequence[str], frames: int, rate: float) -> np.ndarray:
    """The number of the phone in the middle of each of so many frames, `rate` a second, -1 where there is none."""
    numbers = {name: number for number, name in enumerate(names)}
    middles = (np.arange(frames) + 0.5) / rate
    found = np.full(frames, -1, np.int64)
    for phone in phones:
        found[(middles >= phone.start) & (middles < phone.end)] = numbers[phone.text]
    return found

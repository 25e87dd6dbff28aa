"""Does a live model take its turns? The user's channel of held-out dialogues is fed to `duplex`, frame by frame.

A turn that the recording answers is answered by the model if it begins to speak from `early` seconds before its end to
`within` seconds after it, and before the user's next turn. The gap is from the turn's end to that beginning. What is
said to a frame is heard from the frame's end on, as in a room; how long the model computes is left out.

Two controls, in the same run by the same rules: the same model hears the user of another dialogue (`exchanged`), and a
model with the same ears and voice but a stage that has learned nothing (`untrained`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio, read
from vivavoce.dialogue.turns import joined as together
from vivavoce.errors import AudioError, DataError, RequestError
from vivavoce.evaluation.calls import Call, drive
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.statistics import Estimate, estimate
from vivavoce.evaluation.two_channels import (
    Dialogue,
    beginning,
    pieces,
    plain,
    read_dialogues,
    sounding,
)
from vivavoce.schema.arguments import Positive

MODEL, DATA, EXCHANGED, UNTRAINED = "model", "data", "exchanged", "untrained"
CONTROLS = {EXCHANGED: "the same model hears another dialogue's user", UNTRAINED: "a stage that has learned nothing"}
SHARE, GAP = 80.0, 0.2  # targets: per cent of turns that are answered; seconds from the data's median gap
NAN = float("nan")


class TurnTaking(Task):
    """Settings: `early` and `within` in seconds, `controls` (names with commas between; none: ""), `rows` in lockstep,
    `level` in dBFS from which 10 ms count as sound, in the recording and in what the model says.

    `--data`: a folder of stereo files with JSON as moshi-finetune has them, the model left and the user right.
    """

    name = "turn_taking"
    verb = "duplex"

    def __init__(
        self,
        early: float = 0.2,
        within: float = 1.0,
        controls: Sequence[str] | str = tuple(CONTROLS),
        rows: Positive = 8,
        level: float = -50.0,
        seed: int = 0,
    ):
        wanted = [c for c in controls.split(",") if c] if isinstance(controls, str) else list(controls)
        if unknown := [c for c in wanted if c not in CONTROLS]:
            raise RequestError(f"task {self.name}: no control '{unknown[0]}'; there are {', '.join(CONTROLS)}")
        if not (0 <= early <= 5 and 0 < within <= 30):
            raise RequestError(f"task {self.name}: early is {early}, within {within}: seconds, 0 to 5 and up to 30")
        self.early, self.within, self.controls, self.rows = float(early), float(within), wanted, rows
        self.level, self.seed = float(level), seed
        self.settings = {"early": self.early, "within": self.within, "level": self.level, "seed": seed}

    def items(self, data: Path | None) -> list[Item]:
        """Every dialogue that answers a turn or more, asked by its own user and once for each control."""
        if data is None:
            raise RequestError(f"task {self.name} needs dialogues: name their folder (--data)")
        found = [each for each in read_dialogues(Path(data), self.level, self.early, self.within) if each.asked]
        if not found:
            raise DataError(f"{data}: no dialogue in which the left channel answers a turn of the right one")
        if EXCHANGED in self.controls and len(found) < 2:
            raise DataError(f"{data}: one dialogue has no other user to exchange for (--set {self.name}.controls=)")
        items = []
        for group in (MODEL, *self.controls):
            for number, dialogue in enumerate(found):
                heard = found[(number + 1) % len(found)] if group == EXCHANGED else dialogue
                items.append(Item(f"{group}/{dialogue.id}", (heard.path, dialogue.path), dialogue, group))
        return items

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        by_name, unusable = {item.id: item for item in items}, []

        def calls(some: Sequence[Item]) -> Iterator[Listener]:
            for item in some:
                try:
                    yield self._call(item, model.sample_rate)
                except (AudioError, DataError) as error:
                    unusable.append((item, {"error": str(error)}))

        plain_items = [item for item in items if item.group != UNTRAINED]
        for who, some in ((model, plain_items), (None, [item for item in items if item.group == UNTRAINED])):
            if some:
                rows = min(self.rows, len(some))
                for call in drive(who if who is not None else untrained(model, self.seed), calls(some), rows):
                    spans = sounding(np.concatenate(call.played), call.rate, self.level)
                    late = call.frame_seconds
                    yield by_name[call.name], {
                        "sounds": [(round(start + late, 3), round(end + late, 3)) for start, end in spans],
                        "pieces": [(round(at, 3), text) for at, text in call.written],
                        "voice": call.whole(),
                    }
        yield from unusable

    def _call(self, item: Item, rate: int) -> Listener:
        heard, dialogue = item.given[0], item.expected
        wave = read(heard).channel(1).resample(rate).samples[0]
        size = round(dialogue.seconds * rate)
        wave = np.pad(wave[:size], (0, max(0, size - len(wave))))
        name = item.id.partition("/")[2]
        return Listener(item.id, wave, rate, dialogue.seconds, seed=zlib.crc32(f"{self.seed}/{name}".encode()))

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """Of every turn k that is due an answer: `answered k`, `gap k` (seconds), `begun k` (into the turn), `over k`
        (share of the turn that is talked over), `words k` (the answer's are those of the recording)."""
        dialogue: Dialogue = item.expected
        spoken = pieces(artefact["sounds"])
        scores: dict[str, float] = {}
        for k, turn in enumerate(dialogue.asked):
            onset = beginning(spoken, turn.end - self.early, turn.limit)
            begun = beginning(spoken, turn.start + 0.1, turn.end - self.early)
            over = sum(max(0.0, min(end, turn.end) - max(start, turn.start)) for start, end in spoken)
            until = dialogue.asked[k + 1].start if k + 1 < len(dialogue.asked) else np.inf
            said = plain(together([text for at, text in artefact["pieces"] if turn.end - self.early <= at < until]))
            theirs = beginning(dialogue.answers, turn.end - self.early, turn.limit)
            scores |= {
                f"answered {k}": float(onset is not None),
                f"gap {k}": NAN if onset is None else onset - turn.end,
                f"begun {k}": float(begun is not None),
                f"over {k}": over / (turn.end - turn.start),
                f"words {k}": float(said == turn.words) if turn.words else NAN,
                f"data {k}": NAN if theirs is None else theirs - turn.end,
            }
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        groups = [group for group in (MODEL, *CONTROLS) if any(one.item.group == group for one in scored)]
        turns = {group: Turns([one for one in scored if one.item.group == group]) for group in groups}
        results = []
        for group, mine in turns.items():
            more: dict[str, Any] = {"target": SHARE} if group == MODEL else {"note": CONTROLS[group]}
            results.append(self._row("turns answered", group, mine.mean("answered"), "%", **more))
        for control in groups[1:]:
            ahead = turns[MODEL].paired(turns[control], "answered")
            results.append(self._row("answered, ahead", f"of {control}", ahead, "%", target=0.0))
        first = turns[groups[0]]
        results.append(self._row("gap, median", DATA, first.median("data"), "s", note="of the recordings"))
        for group, mine in turns.items():
            results.append(self._row("gap, median", group, mine.median("gap"), "s"))
        for group, mine in turns.items():
            more = {"target": GAP, "note": "of the medians"} if group == MODEL else {}
            results.append(self._row("gap, off the data's", group, mine.off(), "s", higher_is_better=False, **more))
        for metric, key in (("turns broken into", "begun"), ("of turns, talked over", "over")):
            for group, mine in turns.items():
                results.append(self._row(metric, group, mine.mean(key), "%", higher_is_better=False))
        if not np.isnan(first.values("words")).all():
            for group, mine in turns.items():
                results.append(self._row("answers in the data's words", group, mine.mean("words"), "%"))
        return results

    def _row(self, metric: str, group: str, found: Estimate, unit: str, **more: Any) -> Result:
        more = {"note": "interval over dialogues", **more}
        return Result.of(self.name, metric, group, found, unit, **more)


class Turns:
    """The scores of one group, turn by turn; intervals are over dialogues, whole ones being drawn."""

    def __init__(self, scored: Sequence[Scored]):
        self.scores: dict[tuple[str, str], float] = {}
        self.turns: list[str] = []  # a turn's dialogue and number, in order
        for one in scored:
            dialogue = one.item.id.partition("/")[2]
            for key, value in one.scores.items():
                name, _, number = key.rpartition(" ")
                self.scores[name, f"{dialogue} {number}"] = value
                if name == "answered":
                    self.turns.append(f"{dialogue} {number}")

    def values(self, name: str, turns: Sequence[str] | None = None) -> np.ndarray:
        """One score of every turn."""
        return np.array([self.scores[name, turn] for turn in (self.turns if turns is None else turns)])

    def _estimate(self, values: np.ndarray, turns: Sequence[str], statistic: Callable[[np.ndarray], float]) -> Estimate:
        return estimate(values.tolist(), statistic, [turn.rpartition(" ")[0] for turn in turns])

    def mean(self, name: str) -> Estimate:
        """The mean over turns."""
        return self._estimate(self.values(name), self.turns, np.mean)

    def median(self, name: str) -> Estimate:
        """The median over turns."""
        return self._estimate(self.values(name), self.turns, np.median)

    def off(self) -> Estimate:
        """How far the median gap is from that of the recordings."""
        mine, theirs = self.values("gap"), self.values("data")
        answered = ~np.isnan(mine)

        def apart(which: np.ndarray) -> float:
            at = which.astype(np.int64)
            there = at[answered[at]]
            return abs(float(np.median(mine[there]) - np.median(theirs[at]))) if len(there) else NAN

        if not answered.any():
            return Estimate(NAN, NAN, NAN, 0)
        found = self._estimate(np.arange(len(mine), dtype=np.float64), self.turns, apart)
        return Estimate(found.value, found.low, found.high, int(answered.sum()))

    def paired(self, other: Turns, name: str) -> Estimate:
        """The mean difference to another group, on the same turns."""
        both = [turn for turn in self.turns if (name, turn) in other.scores]
        return self._estimate(self.values(name, both) - other.values(name, both), both, np.mean)


class Listener(Call):
    """A caller who says a whole channel, whatever is answered. `written`: the model's text as it came, with times."""

    def __init__(self, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self.written: list[tuple[float, str]] = []

    def hear(self, out: Any, took: float) -> None:
        """As `Call` does it; how long the step took does not count."""
        super().hear(out, 0.0)
        if out is not None and out.text:
            self.written.append((self.now, out.text))

    @property
    def done(self) -> bool:
        return self.asked >= len(self.wave)

    @property
    def frame_seconds(self) -> float:
        """Seconds of a frame: by so much what is played is later than what was heard with it."""
        return len(self.played[0]) / self.rate

    def whole(self) -> Audio:
        """The whole of the model's voice, in time with the caller's wave."""
        wave = np.concatenate([np.zeros_like(self.played[0]), *self.played])
        return Audio(np.clip(wave, -1, 1)[None], self.rate)


def untrained(model: Any, seed: int = 0) -> Any:
    """The model with a stage that has learned nothing; what hears and what speaks stay. `RequestError` for a model
    without a recipe to build it from."""
    from vivavoce.systems import assemble

    recipe = getattr(model, "recipe", None)
    if recipe is None or not hasattr(getattr(model, "system", None), "stage"):
        raise RequestError(
            f"the control '{UNTRAINED}' needs a model with a recipe: --set turn_taking.controls={EXCHANGED}"
        )
    other = assemble(recipe, seed)
    learned = {name: tensor for name, tensor in model.system.state_dict().items() if not name.startswith("stage.")}
    other.system.load_state_dict({**other.system.state_dict(), **learned})
    return other.to(model.device)


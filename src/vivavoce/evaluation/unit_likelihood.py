"""What does a unit language model know of speakers that it has never heard, beyond what n-grams know?

Of the held-out speakers of the phase that it was trained by: how many nats a unit costs it, and n-gram models of the
same training units in all smoothings; and how often it finds a recording likelier than the same one with pieces as long
as words exchanged (`vivavoce.evaluation.splices`), within the clip or against another speaker's. The exchanges keep
what neighbours tell: within a clip every pair of neighbouring units. The n-gram models judge the same pairs.

Intervals are over speakers: whole speakers are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.likelihood import preference
from vivavoce.evaluation.ngrams import NGram
from vivavoce.evaluation.splices import Runs, exchanged, replaced, runs_of
from vivavoce.evaluation.statistics import Estimate, estimate
from vivavoce.schema.arguments import Positive

MODEL = "model"
KINDS = {"within": "pieces exchanged within the clip", "between": "pieces of another speaker"}
_TRIES = 8  # of a draw that finds no pieces which fit


class UnitLikelihood(Task):
    """`loglik` of the units of held-out speakers, and of real and spliced clips, beside n-gram models.

    The recipe's phase `phase` says which recordings were learned from and which speakers were not (data `recordings`);
    `--data` is the folder of the recorded-speech pack where its corpora are named by its manifests. pairs: spliced
    clips of each kind for every real one of at least `shortest` seconds. exchanges: pieces exchanged in each, of
    `piece` to `piece_to` seconds. clips: spliced of each speaker at most, evenly chosen. order: of the longest n-gram.
    """

    name = "unit_likelihood"
    verb = "loglik"

    def __init__(
        self,
        phase: str = "lm",
        pairs: Positive = 8,
        exchanges: Positive = 2,
        piece: float = 0.3,
        piece_to: float = 0.5,
        shortest: float = 2.5,
        clips: Positive = 4,
        order: Annotated[int, Field(ge=3)] = 5,
        batch: Positive = 16,
        seed: int = 0,
    ):
        self.phase, self.pairs, self.exchanges, self.clips, self.order = phase, pairs, exchanges, clips, order
        self.piece, self.shortest, self.batch, self.seed = (piece, piece_to), shortest, batch, seed
        self.settings = {
            **{"phase": phase, "pairs": pairs, "exchanges": exchanges, "piece": list(self.piece)},
            **{"shortest": shortest, "clips": clips, "order": order, "seed": seed},
        }

    def items(self, data: Path | None) -> list[Item]:
        raise RequestError(f"task {self.name} asks what a model was not trained on: it needs the model")

    def items_of(self, model: Any, data: Path | None) -> list[Item]:
        train, apart, stream = self._recordings(model, data)
        size, rate = model.system.streams[stream].size, model.system.streams[stream].spec.rate
        if rate is None:
            raise RequestError(f"task {self.name}: the stream '{stream}' has no rate: pieces are measured in seconds")
        heard = {row.id: runs_of(row.streams[stream][0][0], rate) for row in apart.rows}
        fakes = self._fakes(apart.rows, heard)
        models = ngrams(train.rows, stream, size, self.order)
        sides = {row.id: {"real": heard[row.id].units, **fakes[row.id]} for row in apart.rows}
        every = [units for each in sides.values() for units in each.values()]
        totals = {name: iter(model.totals(every)) for name, model in models.items()}
        items = []
        for row in apart.rows:
            given = tuple((kind, tuple(units.tolist())) for kind, units in sides[row.id].items())
            expected = {name: {kind: next(found) for kind, _ in given} for name, found in totals.items()}
            items.append(Item(row.id, (stream, given), {"speaker": row.speaker[0], **expected}))
        return items

    def _recordings(self, model: Any, data: Path | None) -> tuple[Any, Any, str]:
        """What was learned from, what was held out, and the name of the stream of units."""
        from vivavoce.training.assembly import default_pack
        from vivavoce.training.unit_plans import recorded

        recipe = model.recipe
        named = {phase.name: phase for phase in recipe.training}
        if self.phase not in named or named[self.phase].data.kind != "recordings" or not hasattr(model, "tokens"):
            raise RequestError(
                f"task {self.name}: '{recipe.system}' has no phase '{self.phase}' on data of kind recordings that it "
                "hears by units: name one (--set unit_likelihood.phase=NAME)"
            )
        pack = Path(data) if data is not None else default_pack()
        train, apart = recorded(model, named[self.phase].data.options, pack)
        if not len(apart):
            raise DataError(f"task {self.name}: training.{self.phase}.data.held_out names no speakers to ask about")
        return train, apart, recipe.interaction.speaks

    def _fakes(self, rows: Sequence[Any], heard: Mapping[str, Runs]) -> dict[str, dict[str, np.ndarray]]:
        """Spliced clips of every row that is long enough: row -> `within 0`, `between 3`, … -> units."""
        long = [row for row in rows if row.duration >= self.shortest]
        spliced: list[Any] = []
        for speaker in dict.fromkeys(row.speaker[0] for row in long):
            own = [row for row in long if row.speaker[0] == speaker]
            spliced += own[:: -(-len(own) // self.clips)]
        found: dict[str, dict[str, np.ndarray]] = {row.id: {} for row in rows}
        for number, row in enumerate(spliced):
            chance = np.random.default_rng((self.seed, number))
            others = [other for other in long if other.speaker[0] != row.speaker[0]]
            same = [other for other in others if other.source == row.source]
            for kind in KINDS:
                for pair in range(self.pairs):
                    donors = [heard[other.id] for other in same or others]
                    units = self._fake(kind, heard[row.id], donors, chance)
                    if units is not None:
                        found[row.id][f"{kind} {pair}"] = units
        return found

    def _fake(self, kind: str, clip: Runs, donors: list[Runs], chance: np.random.Generator) -> np.ndarray | None:
        for _ in range(self.exchanges):
            made = None
            for _ in range(_TRIES):
                if kind == "within":
                    made = exchanged(clip, self.piece, chance)
                elif donors:
                    made = replaced(clip, donors[chance.integers(len(donors))], self.piece, chance)
                if made is not None:
                    break
            if made is None:
                return None
            clip = made
        return clip.units

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        for item in items:
            stream, sides = item.given
            scores: dict[str, Any] = {}
            for start in range(0, len(sides), self.batch):
                part = sides[start : start + self.batch]
                rows = [[(stream, np.array(units, np.int64), True)] for _, units in part]
                for (kind, units), found in zip(part, model.loglik(rows, vocabulary="stream"), strict=True):
                    total, count = found[stream]
                    if count != len(units):
                        raise RequestError(f"{item.id}: {count} of {len(units)} units have a probability")
                    scores[kind] = [total, count]
            yield item, scores

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """Nats of the real clip and wins in pairs, of the model and of each n-gram model."""
        scores = {"units": float(artefact["real"][1])}
        judges = {MODEL: {kind: value[0] for kind, value in artefact.items()}}
        judges |= {name: found for name, found in item.expected.items() if name != "speaker"}
        for judge, found in judges.items():
            scores[f"{judge}/nats"] = -found["real"]
            for kind in KINDS:
                # an exchange leaves a bigram model nothing but rounding to go by
                pairs = [(found["real"], value) for name, value in found.items() if name.split(" ")[0] == kind]
                wins = [preference(round(real, 5), round(fake, 5)) for real, fake in pairs]
                scores[f"{judge}/{kind}"] = float(np.sum(wins))
                scores[f"{kind}/pairs"] = float(len(wins))
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        # folds with few speakers have no Jelinek-Mercer models
        common = set.intersection(*(set(one.scores) for one in scored))
        judges = [n.removesuffix("/nats") for n in scored[0].scores if n.endswith("/nats") and n in common]
        table = _Table(scored)
        costs = {judge: table.ratio(f"{judge}/nats", "units") for judge in judges}
        best = _best_of_orders(costs)
        results = []
        for judge in (MODEL, *best.values()):
            results.append(self._row("nats a unit", judge, costs[judge], higher_is_better=False))
        rival = min(best.values(), key=lambda judge: costs[judge].value)
        for judge in dict.fromkeys((*(best[n] for n in sorted(best) if n <= 3), rival)):
            gain = table.difference(f"{judge}/nats", f"{MODEL}/nats", "units")
            results.append(self._row("nats saved", f"against {judge}", gain, target=0.0))
        shown = [MODEL, best[2], best[3], *(judge for judge in (best[max(best)], rival) if judge != best[3])]
        for kind, title in KINDS.items():
            if not table.sum(f"{kind}/pairs"):
                continue
            shares = {judge: table.ratio(f"{judge}/{kind}", f"{kind}/pairs") for judge in dict.fromkeys(shown)}
            results += [self._row(title, judge, share, unit="%") for judge, share in shares.items()]
            ahead = table.difference(f"{MODEL}/{kind}", f"{best[3]}/{kind}", f"{kind}/pairs")
            apart = shares[MODEL].low > shares[best[3]].high or shares[MODEL].high < shares[best[3]].low
            note = f"over speakers; the two intervals {'do not ' if not apart else ''}lie apart"
            results.append(self._row(f"{title}, ahead", f"of {best[3]}", ahead, unit="%", target=0.0, note=note))
        return results

    def _row(self, metric: str, group: str, found: Estimate, unit: str = "", **more: Any) -> Result:
        return Result.of(self.name, metric, group, found, unit, **{"note": "interval over speakers", **more})


class _Table:
    """Sums over items with intervals over speakers."""

    def __init__(self, scored: Sequence[Scored]):
        self.scored = scored
        self.speakers = [one.item.expected["speaker"] for one in scored]

    def column(self, name: str) -> np.ndarray:
        return np.array([one.scores[name] for one in self.scored])

    def sum(self, name: str) -> float:
        return float(self.column(name).sum())

    def ratio(self, above: str, below: str) -> Estimate:
        """Sum of one score over the sum of another."""
        return self._estimate(self.column(above), self.column(below))

    def difference(self, more: str, less: str, below: str) -> Estimate:
        """Sum of (more - less) over the sum of another, of the same items."""
        return self._estimate(self.column(more) - self.column(less), self.column(below))

    def _estimate(self, above: np.ndarray, below: np.ndarray) -> Estimate:
        kept = np.flatnonzero(below > 0)

        def share(which: np.ndarray) -> float:
            at = which.astype(np.int64)
            return float(above[at].sum() / below[at].sum())

        statistic: Callable[[np.ndarray], float] = share
        found = estimate(kept.tolist(), statistic, [self.speakers[i] for i in kept])
        return Estimate(found.value, found.low, found.high, int(below.sum()))


def ngrams(rows: Sequence[Any], stream: str, size: int, order: int) -> dict[str, NGram]:
    """N-gram models of all orders and smoothings of the rows' units without repetitions; "3-gram kneser-ney" -> model.

    Jelinek-Mercer's weights are fitted to every tenth speaker, with counts of the others; then all are counted.
    """
    units = [runs_of(row.streams[stream][0][0], 1.0).units for row in rows]
    speakers = list(dict.fromkeys(row.speaker[0] or row.id.split("@")[0] for row in rows))
    apart = set(speakers[::10])
    tune = [one for one, row in zip(units, rows) if (row.speaker[0] or row.id.split("@")[0]) in apart]
    rest = [one for one, row in zip(units, rows) if (row.speaker[0] or row.id.split("@")[0]) not in apart]
    found: dict[str, NGram] = {}
    for n in range(1, order + 1):
        for smoothing in ("kneser-ney", "witten-bell"):
            found[f"{n}-gram {smoothing}"] = NGram(units, size, n, smoothing, repeats=False)
        if rest:
            fitted = NGram(rest, size, n, "jelinek-mercer", held_out=tune, repeats=False)
            found[f"{n}-gram jelinek-mercer"] = NGram(units, size, n, "jelinek-mercer", weights=fitted.weights,
                                                      repeats=False)
    return found


def _best_of_orders(costs: Mapping[str, Estimate]) -> dict[int, str]:
    """Of each order the smoothing that costs least on what is asked: the n-grams are given that advantage."""
    orders: dict[int, list[str]] = {}
    for judge in costs:
        if judge != MODEL:
            orders.setdefault(int(judge.partition("-")[0]), []).append(judge)
    return {n: min(judges, key=lambda judge: costs[judge].value) for n, judges in sorted(orders.items())}

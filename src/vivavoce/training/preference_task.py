"""Preference optimisation of a language model over tokens: of two continuations of a prompt, towards the better one."""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.data.preferences import SIDES, Pair, shuffled
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.lm.grid import Prediction
from vivavoce.lm.lora import OWN, adapted, adapters_off
from vivavoce.systems.token_system import PROMPT, Cells, TokenSystem
from vivavoce.training.batches import to_device
from vivavoce.training.objectives import Weight, level_weights, stream_losses
from vivavoce.training.preferences import KINDS, RowLogprobs, preference_loss, row_logprobs
from vivavoce.training.task import share
from vivavoce.training.token_task import TokenBatch, TokenTask, taken

REFERENCES = ("frozen", "adapters", "precomputed", "given", "none")


@dataclass
class PairBatch(TokenBatch):
    """Twice as many rows as pairs: all chosen ones, then all rejected ones. known: the prompts; pairs: their numbers
    [pairs]; given: log-probabilities of the reference [pairs, 2] that the data hold (0: none)."""

    pairs: Tensor | None = None
    given: Tensor | None = None


class PreferenceTask(TokenTask):
    """Train the stage on `pairs` of continuations in one task of its own.

    loss: dpo, ipo, hinge, simpo, with `beta`, `margin`, `label_smoothing` as `preference_loss` has them. normalised:
    log-probabilities are means a token (simpo: always). likelihood: what the nats a token of the chosen continuations
    are added with (arXiv:2404.19733: 1). loss_weights: of streams and levels in a row's log-probability.
    reference: `frozen`, a copy of the network as the phase begins; `adapters`, the network without its adapters (only
    they may train); `precomputed`, the log-probabilities of all pairs once, before the first step; `given`, those in
    the data; `none` (simpo). batch: pairs a step.
    """

    counts_tokens = False

    def __init__(
        self,
        name: str,
        system: TokenSystem,
        pairs: Sequence[Pair],
        batch_size: int,
        task: str | None = None,
        loss: str = "dpo",
        beta: float = 0.1,
        margin: float = 0.0,
        length_normalised: bool = False,
        label_smoothing: float = 0.0,
        likelihood: float = 0.0,
        reference: str | None = None,
        loss_weights: Mapping[str, Weight] | None = None,
        held_out: Sequence[Pair] = (),
        pack: int | None = None,
        ends: bool = True,
        seed: int = 0,
        module: str = "stage",
    ):
        where = f"training.{name}.objective"
        task = task or next(iter(system.tasks))
        super().__init__(name, system, _no_cells, {task: 1.0}, loss_weights, pack=pack, seed=seed, module=module)
        if loss not in KINDS:
            raise RecipeError(f"{where}.loss: '{loss}' is none of {', '.join(KINDS)}")
        reference = reference or ("none" if loss == "simpo" else "frozen")
        if reference not in REFERENCES:
            raise RecipeError(f"{where}.reference: '{reference}' is none of {', '.join(REFERENCES)}")
        numbers = {"beta": (beta, math.inf), "margin": (margin, math.inf), "likelihood": (likelihood, math.inf),
                   "label_smoothing": (label_smoothing, 0.5)}  # fmt: skip
        for option, (value, most) in numbers.items():
            fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < most
            if not fine or (option == "beta" and not value):
                least = "greater than 0" if option == "beta" else "at least 0"
                raise RecipeError(f"{where}.{option}: {value!r:.60}: a number, {least}, less than {most:g}")
        if (reference == "none") != (loss == "simpo"):
            raise RecipeError(f"{where}.reference: '{reference}': simpo takes none, dpo, ipo and hinge need one")
        self.task, self.kind, self.reference, self.ends = task, loss, reference, ends
        self.beta, self.margin, self.smoothing, self.likelihood = beta, margin, label_smoothing, likelihood
        self.normalised = length_normalised or loss == "simpo"
        self.train_pairs, self.test_pairs, self.batch_size = list(pairs), list(held_out), batch_size
        for pair in (*self.train_pairs, *self.test_pairs):
            self._check(pair)
        self._copy: TokenSystem | None = None
        if reference == "frozen" and self.train_pairs:
            self._copy = system.with_stage(copy.deepcopy(system.stage).requires_grad_(False).eval())
        self._scores: Tensor | None = None  # [pairs, 2, sums and counts]

    # -- rows --

    def _check(self, pair: Pair) -> None:
        """That a pair's streams are those of the task, its ids theirs."""
        about = self.system.tasks[self.task]
        given = {name.removesuffix(PROMPT) for name in about.given}
        for side in ("prompt", *SIDES):
            for name, ids in getattr(pair, side).items():
                where = f"{pair.place}: {side}.{name}"
                if name not in (*given, *about.fills) or (side != "prompt" and name not in about.fills):
                    takes = ", ".join([*sorted(given), *about.fills] if side == "prompt" else about.fills)
                    raise DataError(f"{where}: task '{self.task}' has {takes} there")
                try:
                    self.system.streams[name].values(ids, where)
                except RequestError as error:
                    raise DataError(str(error)) from error
        if self.reference == "given" and pair.reference is None:
            raise DataError(f"{pair.place}: no reference, and training.{self.name}.objective.reference is 'given'")

    def rows(self, pairs: Sequence[Pair], numbers: Sequence[int]) -> PairBatch:
        """Pairs as rows: prompt and continuation, with its end token where the stream has one."""
        values: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        known: dict[str, Tensor] = {}
        about = self.system.tasks[self.task]
        for name in dict.fromkeys((*(n.removesuffix(PROMPT) for n in about.given), *about.fills)):
            spec = self.system.streams[name].spec
            rows, before = [], []
            for side in SIDES:
                for pair in pairs:
                    said = getattr(pair, side)
                    prompt = pair.prompt.get(name, np.zeros((spec.levels, 0), np.int64))
                    parts = [prompt, said[name]] if name in said else [prompt]
                    if spec.end is not None and self.ends and not _is_ended(parts[-1], spec.end):
                        parts.append(np.full((spec.levels, max(spec.ratios or (1,))), spec.end))
                    rows.append(torch.from_numpy(np.concatenate(parts, axis=1)))
                    frames = (prompt if name in said else np.concatenate(parts, axis=1)).shape[1]
                    before.append(frames // max(spec.ratios or (1,)))
            longest = max(row.shape[1] for row in rows)
            values[name] = torch.stack([F.pad(row, (0, longest - row.shape[1]), value=-1) for row in rows])
            ratio = max(spec.ratios or (1,))
            lengths[name] = torch.tensor([row.shape[1] // ratio for row in rows])
            if name in about.fills:
                known[name] = torch.tensor(before)
        given = torch.tensor([pair.reference or (0.0, 0.0) for pair in pairs])
        # Layouts with chance place both sides of a pair by one seed.
        seeds = torch.tensor(list(numbers)).repeat(2)
        cells = Cells(values, lengths, seeds=seeds)
        return PairBatch(cells, (self.task,) * len(rows), True, known, torch.tensor(list(numbers)), given)

    def batch(self, step: int, rank: int, world: int) -> PairBatch:
        drawn = shuffled(len(self.train_pairs), step, self.batch_size, self.seed)
        mine = [drawn[row] for row in share(self.batch_size, rank, world)]
        return self.rows([self.train_pairs[n] for n in mine], mine)

    def title(self, batch: TokenBatch, row: int) -> str:
        assert isinstance(batch, PairBatch) and batch.pairs is not None
        half = len(batch.tasks) // 2
        return f"pair {int(batch.pairs[row % half])}, {SIDES[row // half]}"

    def show(self, batch: TokenBatch) -> list[str]:
        what = "mean log-probabilities a token" if self.normalised else "sums of log-probabilities"
        about = f"{self.kind} of {what}, beta {self.beta:g}"
        half = len(batch.tasks) // 2
        rows = [row for pair in range(half) for row in (pair, half + pair)]  # the two sides of a pair together
        cells, known = taken(batch.cells, rows), {n: frames[rows] for n, frames in (batch.known or {}).items()}
        cells, places = self.system.placed(cells, self.task, known)
        return [
            f"{half} pairs: {about}; reference: {self.reference}",
            *self._shown(self.task, self._grid(self.task, cells, places, [self.title(batch, row) for row in rows])),
        ]

    # -- losses --

    def logprobs(self, batch: PairBatch, system: TokenSystem | None = None) -> tuple[RowLogprobs, dict[str, Any]]:
        """Of every row, the log-probability of its continuation; and what `predict` gives."""
        predictions = self.predict(batch, system)
        return row_logprobs(predictions, len(batch.tasks), self.weights), predictions

    def referred(self, batch: PairBatch) -> RowLogprobs | None:
        """The same by the reference; None without one."""
        if self.reference == "none":
            return None
        device = next(self.system.stage.parameters()).device
        assert batch.pairs is not None and batch.given is not None
        if self.reference == "given":
            sums = batch.given.T.flatten().to(device)
            return RowLogprobs(sums, self._counts(batch).to(device))
        if self.reference == "precomputed":
            if self._scores is None:
                self._scores = self._precomputed(device)
            mine = self._scores.to(device)[batch.pairs.to(device)].transpose(0, 1).flatten(0, 1)
            return RowLogprobs(mine[:, 0], mine[:, 1])
        with torch.no_grad(), self._as_reference(device) as system:
            return self.logprobs(batch, system)[0]

    def _as_reference(self, device: torch.device) -> Any:
        if self.reference == "frozen":
            assert self._copy is not None
            self._copy.stage.to(device)
            return nullcontext(self._copy)
        self._check_adapters()
        return _Off(self.system)

    def _check_adapters(self) -> None:
        stage = self.system.stage
        where = f"training.{self.name}"
        if not adapted(stage):
            raise RecipeError(f"{where}.objective.reference: 'adapters', but the phase has none: give it `lora`")
        names = stage.named_parameters()
        if free := [name for name, p in names if p.requires_grad and name.rsplit(".", 1)[-1] not in OWN]:
            raise RecipeError(
                f"{where}.objective.reference: 'adapters', but '{free[0]}' trains too: without its adapters the "
                "network is no longer what it was; take reference: frozen"
            )

    def _precomputed(self, device: torch.device) -> Tensor:
        """Log-probabilities of all pairs [pairs, 2, sums and counts] by the network as it is now."""
        was = self.system.stage.training
        self.system.stage.eval()
        found = []
        with torch.no_grad():
            for first in range(0, len(self.train_pairs), self.batch_size):
                numbers = range(first, min(first + self.batch_size, len(self.train_pairs)))
                batch = to_device(self.rows([self.train_pairs[n] for n in numbers], numbers), device)
                scores, _ = self.logprobs(batch)
                found.append(torch.stack([scores.sums, scores.counts], dim=1).view(2, len(numbers), 2).transpose(0, 1))
        self.system.stage.train(was)
        return torch.cat(found).cpu()

    def _counts(self, batch: PairBatch) -> Tensor:
        """The weights' sums of the rows' continuations, without a network."""
        _, places = self.system.placed(batch.cells, self.task, batch.known)
        total = torch.zeros(len(batch.tasks))
        for name in self.system.tasks[self.task].fills:
            weight = self.weights.get(name, 1.0)
            levels = self.system.streams[name].spec.levels
            each = torch.tensor(level_weights(weight, levels, name), device=places.level.device)
            here = (places.stream == places.number(name)) & (places.loss > 0)
            total += torch.where(here, each[places.level.clamp(0, levels - 1)], 0.0).sum(1).cpu()
        return total

    def compare(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every pair [N], and means to log: rewards, their margin, how often the chosen one's is larger."""
        ours, predictions = self.logprobs(batch)
        theirs, half = self.referred(batch), len(batch.tasks) // 2
        mine = ours.of(self.normalised)
        refs = theirs.of(self.normalised) if theirs is not None else None
        first, second = (refs[:half], refs[half:]) if refs is not None else (None, None)
        each = preference_loss(
            self.kind, mine[:half], mine[half:], first, second, self.beta, self.margin, self.smoothing
        )
        rewards = self.beta * (mine - (refs if refs is not None else 0)).detach()
        margin = rewards[:half] - rewards[half:]
        logged = {"chosen": rewards[:half].mean(), "rejected": rewards[half:].mean(), "margin": margin.mean(),
                  "accuracy": (margin > 0).float().mean()}  # fmt: skip
        if self.likelihood:
            chosen = {name: [_upto(one, half) for one in several] for name, several in predictions.items()}
            nats = stream_losses(chosen, self.weights).total
            each, logged["nats"] = each + self.likelihood * nats, nats.detach()
        return each, logged

    def loss(self, batch: PairBatch, step: int) -> dict[str, Tensor]:  # type: ignore[override]
        each, logged = self.compare(batch)
        return {"loss": each.mean(), **logged}

    def evaluate(self, step: int) -> dict[str, float]:
        """Loss, margin and accuracy on held-out pairs."""
        if not self.test_pairs or self.reference == "precomputed":
            return {}
        device = next(self.system.stage.parameters()).device
        batch = to_device(self.rows(self.test_pairs, range(len(self.test_pairs))), device)
        with torch.no_grad():
            each, logged = self.compare(batch)
        return {"loss": float(each.mean()), **{key: float(value) for key, value in logged.items()}}

    def state_dict(self) -> dict[str, Any]:
        return {} if self._scores is None else {"reference": self._scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scores = state.get("reference")


class _Off:
    """The system without its adapters, as a context."""

    def __init__(self, system: TokenSystem):
        self.system, self._off = system, adapters_off(system.stage)

    def __enter__(self) -> TokenSystem:
        self._off.__enter__()
        return self.system

    def __exit__(self, *error: Any) -> None:
        self._off.__exit__(*error)


def _no_cells(step: int) -> Cells:
    raise RuntimeError("pairs are rows by themselves")


def _is_ended(ids: np.ndarray, end: int) -> bool:
    return ids.shape[1] > 0 and bool((ids[:, -1] == end).all())


def _upto(prediction: Prediction, rows: int) -> Prediction:
    """A prediction in which only the rows before `rows` count."""
    return replace(prediction, loss=prediction.loss & (prediction.rows < rows)[..., None])

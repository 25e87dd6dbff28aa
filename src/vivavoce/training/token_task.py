"""Next-token training of a language model over tokens: every cell that its layout marks with loss, in any layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import DataError, RecipeError
from vivavoce.lm.grid import Prediction
from vivavoce.systems.token_system import Cells, TokenSystem
from vivavoce.training.task import Task, step_seed


@dataclass
class TokenBatch:
    """Cells, and the task that they are an example of. counts: whether they do; a share that no row is left for has
    one all the same, since the network needs something to work on."""

    cells: Cells
    task: str
    counts: bool = True


class TokenTask(Task):
    """Train the `stage` of `system` on the cells that `source(step)` gives: the whole batch, of any number of rows.

    tasks: task of the stage -> weight; each batch is one task's, chosen by weight. loss_weights: stream -> weight, or
    one a level. held_out: as source, for `evaluate`.
    """

    def __init__(
        self,
        name: str,
        system: TokenSystem,
        source: Callable[[int], Cells],
        tasks: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float | Sequence[float]] | None = None,
        held_out: Callable[[int], Cells] | None = None,
        seed: int = 0,
    ):
        self.name, self.system, self.source, self.held_out, self.seed = name, system, source, held_out, seed
        self.tasks = dict(tasks or {key: task.weight for key, task in system.tasks.items()})
        for task in self.tasks:
            if task not in system.tasks:
                raise RecipeError(f"training.{name}.tasks: no task '{task}'; there are {', '.join(system.tasks)}")
        if not sum(self.tasks.values()) > 0:
            raise RecipeError(f"training.{name}.tasks: {self.tasks}: at least one weight is greater than 0")
        for stream in loss_weights or {}:
            if stream not in system.filled:
                known = ", ".join(system.filled)
                raise RecipeError(f"training.{name}.loss_weights: no stream '{stream}' is filled; there are {known}")
        self.weights: dict[str, list[float]] = {}
        for stream in system.filled:
            weight = (loss_weights or {}).get(stream, 1.0)
            levels = system.streams[stream].spec.levels
            each = [float(weight)] * levels if isinstance(weight, int | float) else [float(w) for w in weight]
            if len(each) != levels:
                raise RecipeError(f"training.{name}.loss_weights.{stream}: {len(each)} weights for {levels} levels")
            self.weights[stream] = each

    def modules(self):
        return {"stage": self.system.stage}

    def batch(self, step: int, rank: int, world: int) -> TokenBatch:
        draw = np.random.default_rng(step_seed(self.seed, self.name, step))  # all ranks draw the same task
        weights = np.array(list(self.tasks.values()), dtype=np.float64)
        task = list(self.tasks)[int(draw.choice(len(weights), p=weights / weights.sum()))]
        cells = self.source(step)
        if world == 1:
            return TokenBatch(cells, task)
        count = next(iter(cells.lengths.values())).shape[0]
        first, last = count * rank // world, count * (rank + 1) // world
        return TokenBatch(_rows(cells, first, max(last, first + 1)), task, counts=last > first)

    def loss(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        predictions = self.system(batch.cells, batch.task)
        total, weight, logged = self._sum(predictions)
        loss = total / weight.clamp(min=1e-9)
        return {"loss": loss, "weight": weight if batch.counts else torch.zeros_like(weight), **logged}

    def _sum(self, predictions: Mapping[str, Prediction]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Weighted sum of nats, sum of the weights, and for each stream its mean (nats a token)."""
        total = weight = torch.zeros((), device=next(self.system.stage.parameters()).device)
        logged: dict[str, Tensor] = {}
        for name, prediction in predictions.items():
            nats, count = total.new_zeros(()), 0
            for k, slot in enumerate(self.system.stage.slots[name]):
                here = prediction.loss[..., k]
                if not bool(here.any()):
                    continue
                logits, goal = prediction.logits[k][here].float(), prediction.targets[..., k][here]
                each = F.cross_entropy(logits, goal, reduction="sum")
                share = self.weights[name][slot.level]
                found = int(here.sum())
                total, weight = total + share * each, weight + share * found
                nats, count = nats + each.detach(), count + found
            if count:
                logged[name] = nats / count
        return total, weight, logged

    def evaluate(self, step: int) -> dict[str, float]:
        """Nats a token of held-out cells, of all streams together and of each."""
        if self.held_out is None:
            return {}
        figures: dict[str, float] = {}
        for task in self.tasks:
            with torch.no_grad():
                total, weight, each = self._sum(self.system(self.held_out(0), task))
            prefix = "" if len(self.tasks) == 1 else f"{task}_"
            figures[f"{prefix}nats"] = float(total / weight.clamp(min=1e-9))
            figures.update({f"{prefix}{name}_nats": float(value) for name, value in each.items()})
        return figures


def _rows(cells: Cells, first: int, last: int) -> Cells:
    """Rows `first` to `last - 1` of a batch, padded as the whole batch is."""
    values, lengths, counts, frames = (
        {name: value[first:last] for name, value in part.items()}
        for part in (cells.values, cells.lengths, cells.counts, cells.frames)
    )
    return Cells(values, lengths, counts, None if cells.seeds is None else cells.seeds[first:last], frames)


def with_ends(system: TokenSystem, streams: Mapping[str, Tensor], lengths: Mapping[str, Tensor], where: str) -> Cells:
    """Codes [B, levels, T] of a store as cells of the system's streams, each with its end token where it has one:
    a last frame whose cells are all that token. `lengths`: [B], or [B, levels] where levels differ in rate. Frames
    [B, T, width] stay as they are.

    Raises `DataError` for a stream that is missing or whose codes or frames do not fit.
    """
    values: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    for name, stream in system.streams.items():
        if name not in streams:
            raise DataError(f"{where}: no stream '{name}', which the recipe names; there are {', '.join(streams)}")
        codes, frames = streams[name], lengths[name]
        if stream.width is not None:
            if not codes.is_floating_point() or codes.shape[2] != stream.width:
                raise DataError(f"{where}: stream '{name}' is {list(codes.shape)}: frames of {stream.width} are needed")
            vectors[name], sizes[name] = codes.float(), frames
            continue
        levels = stream.spec.levels
        if codes.is_floating_point() or codes.shape[1] < levels:
            raise DataError(f"{where}: stream '{name}' is {list(codes.shape)}: {levels} levels of codes are needed")
        ratios = torch.tensor(stream.spec.ratios)
        codes = F.pad(codes[:, :levels], (0, int(ratios.max())))
        cells = frames[:, :levels] if frames.dim() == 2 else frames[:, None].expand(-1, levels)
        if not bool((cells == cells[:, :1] // ratios[0] * ratios).all()):
            raise DataError(
                f"{where}: stream '{name}' has levels of {cells[0].tolist()} codes, no frames of the recipe's "
                f"ratios {ratios.tolist()}"
            )
        at = torch.arange(codes.shape[2])
        if int(torch.where(at < cells[..., None], codes, 0).max()) >= stream.size:
            raise DataError(f"{where}: stream '{name}' holds ids beyond {stream.size - 1}, the recipe's largest")
        if stream.spec.end is not None:
            after = cells + ratios
            codes = torch.where((at >= cells[..., None]) & (at < after[..., None]), stream.spec.end, codes)
            cells = after
        frames = cells if frames.dim() == 2 else cells[:, 0]
        values[name], sizes[name] = codes, frames
    return Cells(values, sizes, seeds=torch.arange(next(iter(sizes.values())).shape[0]), frames=vectors)

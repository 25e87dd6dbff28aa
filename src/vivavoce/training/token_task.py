"""Next-token training of a language model over tokens: every cell that its layout marks with loss, in any layout."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.layouts import Places
from vivavoce.lm.grid import Prediction
from vivavoce.lm.packed import WHOLE
from vivavoce.systems.token_system import PROMPT, Cells, TokenSystem
from vivavoce.training.batches import to_device
from vivavoce.training.objectives import Mean, Scored, StreamLosses, Weight, level_weights, next_cell, stream_losses
from vivavoce.training.show_batch import Grid, cell_weights, grid_lines, packed_lines
from vivavoce.training.task import Task, step_seed


@dataclass
class TokenBatch:
    """Cells, and the task that each row is an example of. counts: whether they do; a share that no row is left for has
    one all the same, since the network needs something to work on. known: stream -> leading frames that are given
    [rows]."""

    cells: Cells
    tasks: tuple[str, ...]
    counts: bool = True
    known: Mapping[str, Tensor] | None = None


class TokenTask(Task):
    """Train the `stage` of `system` on the cells that `source(step)` gives: the whole batch, of any number of rows.

    tasks: task of the stage -> weight; by weight each batch is one task's (`mix` batches), or each row (rows).
    loss_weights: stream -> weight, or one a level; mean: as `stream_losses` has it. With `streams`, processes that
    share a batch average their own part of it each. held_out: as source, for `evaluate`. The backbone reads rows one
    behind another, none seeing another, without padding; pack: columns that it sees at most: longer rows are cut (None:
    whole rows). module: what the trained network is called in the run directory. pad_weight: weight of the ids of text
    that say no word (`pad`, `end_of_pad` of its tokenizer) against those of words, for all texts or by stream.
    """

    counts_tokens = True

    def __init__(
        self,
        name: str,
        system: TokenSystem,
        source: Callable[[int], Cells],
        tasks: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, Weight] | None = None,
        held_out: Callable[[int], Cells] | None = None,
        seed: int = 0,
        mean: Mean = "tokens",
        mix: str = "batches",
        label_smoothing: float = 0.0,
        pack: int | None = None,
        module: str = "stage",
        pad_weight: float | Mapping[str, float] = 1.0,
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
        self.weights: dict[str, Weight] = dict(loss_weights or {})
        for stream, weight in self.weights.items():
            try:
                level_weights(weight, system.streams[stream].spec.levels, f"training.{name}.loss_weights.{stream}")
            except RequestError as error:
                raise RecipeError(str(error)) from error
        for option, value, choices in (("mean", mean, ("tokens", "streams")), ("mix", mix, ("batches", "rows"))):
            if value not in choices:
                raise RecipeError(f"training.{name}.objective.{option}: '{value}' is none of {', '.join(choices)}")
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"training.{name}.objective.label_smoothing: {label_smoothing}: at least 0, less than 1")
        self.mean, self.mix, self.module = mean, mix, module
        self.even = mix == "batches" or len(self.tasks) == 1
        self.each: Callable[[Scored], Tensor] = partial(next_cell, label_smoothing=label_smoothing)
        self.pack = pack
        self.pads = pad_weights(system, pad_weight, f"training.{name}.objective.pad_weight")

    def modules(self):
        return {self.module: self.system.stage}

    def batch(self, step: int, rank: int, world: int) -> TokenBatch:
        cells = self.source(step)
        count = next(iter(cells.lengths.values())).shape[0]
        tasks = self._drawn(step, count)
        if world == 1:
            return TokenBatch(cells, tasks)
        first, last = count * rank // world, count * (rank + 1) // world
        rows = range(first, max(last, first + 1))
        return TokenBatch(taken(cells, rows), tuple(tasks[row] for row in rows), counts=last > first)

    def _drawn(self, step: int, count: int) -> tuple[str, ...]:
        """The task of every row; all ranks draw the same."""
        draw = np.random.default_rng(step_seed(self.seed, self.name, step))
        weights = np.array(list(self.tasks.values()), dtype=np.float64)
        drawn = draw.choice(len(weights), size=count if self.mix == "rows" else 1, p=weights / weights.sum())
        names = list(self.tasks)
        return tuple(names[int(n)] for n in np.broadcast_to(drawn, count))

    def loss(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        predictions = self.predict(batch)
        losses = self.losses(predictions, batch)
        weight = losses.weight if batch.counts else torch.zeros_like(losses.weight)
        tokens = scored(predictions) * batch.counts
        return {"loss": losses.total, "weight": weight, "tokens": tokens, **losses.means()}

    def losses(self, predictions: Mapping[str, Sequence[Prediction]], batch: TokenBatch) -> StreamLosses:
        """What is minimised, of predictions of the batch."""
        return stream_losses(predictions, self.weights, self._columns(predictions), mean=self.mean, each=self.each)

    def _columns(self, predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, list[Tensor]]:
        """The weights of columns in which texts say no word."""
        return {
            name: [torch.where(_any_of(one.targets[..., 0], ids), weight, 1.0) for one in predictions[name]]
            for name, (ids, weight) in self.pads.items()
            if name in predictions
        }

    def predict(self, batch: TokenBatch, system: TokenSystem | None = None) -> dict[str, list[Prediction]]:
        """The predictions of every stream (one for each task) in the columns that are learned."""
        system = system or self.system
        found: dict[str, list[Prediction]] = {}
        for task in dict.fromkeys(batch.tasks):
            rows = [row for row, mine in enumerate(batch.tasks) if mine == task]
            cells, known = batch.cells, batch.known
            if len(rows) < len(batch.tasks):
                cells, known = taken(cells, rows), {n: frames[rows] for n, frames in (known or {}).items()}
            read = system.read(cells, task, with_left_out(system, cells, known), self.pack or WHOLE)
            for name in system.stage.order:
                one = system.stage.predict(name, read, read.loss[name].any(-1))
                found.setdefault(name, []).append(one)
        return found

    def evaluate(self, step: int) -> dict[str, float]:
        """Nats a token of held-out cells, of all streams together and of each."""
        if self.held_out is None:
            return {}
        figures: dict[str, float] = {}
        device = next(self.system.stage.parameters()).device
        for task in self.tasks:
            cells = to_device(self.held_out(0), device)
            count = next(iter(cells.lengths.values())).shape[0]
            with torch.no_grad():
                predictions = self.predict(TokenBatch(cells, (task,) * count))
                losses = stream_losses(predictions, self.weights)
            prefix = "" if len(self.tasks) == 1 else f"{task}_"
            figures[f"{prefix}nats"] = float(losses.total)
            figures.update({f"{prefix}{name}_nats": float(value) for name, value in losses.means().items()})
        return figures

    # -- to look at --

    def show(self, batch: TokenBatch) -> list[str]:
        lines: list[str] = []
        for task, grid in self.grids(batch):
            lines += [*([""] if lines else []), *self._shown(task, grid)]
        return lines

    def grids(self, batch: TokenBatch) -> list[tuple[str, Grid]]:
        """Of each task in a batch, where the cells of its rows stand and what of them is scored."""
        found = []
        for task in dict.fromkeys(batch.tasks):
            rows = [row for row, mine in enumerate(batch.tasks) if mine == task]
            cells, known = batch.cells, batch.known
            if len(rows) < len(batch.tasks):
                cells, known = taken(cells, rows), {n: frames[rows] for n, frames in (known or {}).items()}
            cells, places = self.system.placed(cells, task, with_left_out(self.system, cells, known))
            found.append((task, self._grid(task, cells, places, [self.title(batch, row) for row in rows])))
        return found

    def title(self, batch: TokenBatch, row: int) -> str:
        """What a row of a batch is called."""
        return f"row {row}" + (f" ({batch.cells.names[row]})" if batch.cells.names else "")

    def _grid(self, task: str, cells: Cells, places: Places, titles: list[str]) -> Grid:
        weights, ids = cell_weights(places, self.weights), places.gather(cells.values)
        for name, (pads, weight) in self.pads.items():
            here = (places.stream == places.number(name)) & _any_of(ids, pads)
            weights = torch.where(here, weights * weight, weights)
        values = {**cells.values, **cells.frames}
        return Grid(places, values, weights, self.system.vocabularies, self.system.literals(task), titles)

    def _shown(self, task: str, grid: Grid) -> list[str]:
        places, titles = grid.places, grid.titles
        own = "its own layout" if task in self.system.layouts else "the stage's layout"
        lines = [f"task {task}, in {own}; mean over {self.mean}", *grid_lines(grid)]
        if self.pack is not None:
            columns = places.columns if self.system.stage.begins else (places.columns - 1).clamp(min=0)
            lines += ["", *packed_lines(columns.tolist(), self.pack, lambda row: titles[row])]
        return lines


def scored(predictions: Mapping[str, Sequence[Prediction]]) -> Tensor:
    """How many cells are learned."""
    return torch.stack([one.loss.sum() for each in predictions.values() for one in each]).sum()


def pad_weights(
    system: TokenSystem, said: float | Mapping[str, float], where: str
) -> dict[str, tuple[tuple[int, ...], float]]:
    """Text that is filled -> the ids that say no word, and their weight, where that is not 1. `RecipeError` for a
    stream without such ids."""
    ids = {
        name: tuple(i for i in (text.pad, getattr(text, "end_of_pad", None)) if i is not None)
        for name, text in system.vocabularies.items()
        if name in system.filled and getattr(text, "pad", None) is not None
    }
    if not isinstance(said, Mapping):
        said = dict.fromkeys(ids, said)
    for name, weight in said.items():
        if name not in ids:
            there = ", ".join(ids) or "none"
            raise RecipeError(f"{where}: '{name}' is no text with pads that is filled; there is {there}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
            raise RecipeError(f"{where}: {weight!r:.60}: a number from 0 on is expected")
    return {name: (ids[name], float(weight)) for name, weight in said.items() if weight != 1}


def _any_of(ids: Tensor, some: Sequence[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(some, device=ids.device))


def with_left_out(
    system: TokenSystem, cells: Cells, known: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What is `known` of a batch, and the cells of its texts that are -1: those are not learned."""
    found = dict(known or {})
    for name in system.vocabularies:
        if name not in cells.values or system.streams[name].spec.levels > 1:
            continue
        ids = cells.values[name][:, 0]
        at = torch.arange(ids.shape[1], device=ids.device)
        inside = at < cells.lengths[name].reshape(len(ids), -1)[:, :1]
        if bool((nothing := (ids < 0) & inside).any()):
            if name in found:
                nothing = nothing | (found[name] if found[name].dim() == 2 else at < found[name][:, None])
            found[name] = nothing
    return found


def streams_of(system: TokenSystem, tasks: Collection[str]) -> set[str]:
    """The streams that tasks give or fill."""
    named = [cells for task in tasks for cells in (*system.tasks[task].given, *system.tasks[task].fills)]
    return {name.removesuffix(PROMPT) for name in named}


def taken(cells: Cells, rows: Sequence[int]) -> Cells:
    """Some rows of a batch, padded as the whole batch is."""
    device = next(iter(cells.lengths.values())).device
    at = torch.tensor(list(rows), dtype=torch.int64, device=device)
    values, lengths, counts, frames = (
        {name: value[at] for name, value in part.items()}
        for part in (cells.values, cells.lengths, cells.counts, cells.frames)
    )
    names = tuple(cells.names[row] for row in rows) if cells.names else ()
    return Cells(values, lengths, counts, None if cells.seeds is None else cells.seeds[at], frames, names)


def with_ends(
    system: TokenSystem,
    streams: Mapping[str, Tensor],
    lengths: Mapping[str, Tensor],
    where: str,
    needed: Collection[str] | None = None,
) -> Cells:
    """Codes [B, levels, T] of a store as cells of the system's streams, each with its end token where it has one:
    a last frame whose cells are all that token. `lengths`: [B], or [B, levels] where levels differ in rate. Frames
    [B, T, width] stay as they are. needed: the streams that must be there (None: all of the system's).

    Raises `DataError` for a stream that is missing or whose codes or frames do not fit.
    """
    values: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    for name, stream in system.streams.items():
        if name not in streams:
            if needed is not None and name not in needed:
                continue
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

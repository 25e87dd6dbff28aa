"""Checks of a built model: a row by itself and in a batch, a signal in pieces and whole. Of recipes and runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.doctor.findings import Finding, NotChecked, check, fault
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.layouts import Given
from vivavoce.lm.decoding import Generator
from vivavoce.lm.grid import Prediction
from vivavoce.nn.streaming import State, Streaming, join_rows, valid
from vivavoce.systems.chain import ChainSystem
from vivavoce.systems.token_system import Cells, TokenSystem

SIZES = (7, 12, 3)  # chunks of the rows that are compared
CLOSE = 1e-3  # of the largest value: float32 in another order, and no more
REMEDY = "a part looks at its neighbours, at padding or beyond its state: docs/add-a-part.md has the contract"


@dataclass
class Watched(Generator):
    """A generator that keeps the hidden state [B, D] before every column."""

    hidden: list[Tensor] = field(default_factory=list)

    def fill(self, column: Any, state: State, *args: Any, **context: Any) -> tuple[Tensor, State]:
        """As `Generator.fill`."""
        self.hidden.append(state["hidden"])
        return super().fill(column, state, *args, **context)


def token_systems(model: Any) -> dict[str, TokenSystem]:
    """The language models of a system, by the stage's name."""
    system = getattr(model, "system", None)
    if isinstance(system, ChainSystem):
        return dict(system.stages)
    return {model.recipe.stages[0].name: system} if isinstance(system, TokenSystem) else {}


def streaming_parts(model: Any) -> dict[str, tuple[Streaming, int]]:
    """The streaming parts of a model and the width of what each takes, by name; those that hear whole signals only are
    left out."""
    found: dict[str, tuple[Any, int]] = {}
    for name, tokens in token_systems(model).items():
        found[f"stages.{name}.backbone"] = (tokens.stage.backbone, tokens.stage.backbone.width)
    system = getattr(model, "system", None)
    codec: Any = getattr(system, "codec", None)
    ear: Any = getattr(system, "encoder", None)
    if isinstance(getattr(codec, "encoder", None), Streaming):
        found["codec.encoder"] = (codec.encoder, int(codec.channels))
        found["codec.decoder"] = (codec.decoder, int(codec.quantizer.width))
    if isinstance(ear, Streaming):
        found["encoder"] = (ear, 1)
    return {name: part for name, part in found.items() if _streams(part[0])}


def _streams(part: Any) -> bool:
    try:
        return isinstance(part, Streaming) and part.initial_state(1) is not None
    except RequestError:
        return False


def rows_for(part: Streaming, width: int) -> list[Tensor]:
    """Rows of noise [T, width] of a few of the part's chunks each."""
    home = next(part.parameters(), torch.zeros(1))
    chance = torch.Generator().manual_seed(0)
    size = max(1, int(part.chunk))
    return [
        (0.3 * torch.randn(count * size, width, generator=chance)).to(home.device, home.dtype) for count in SIZES
    ]


def differs(one: Tensor, other: Tensor) -> str | None:
    """How far two results [T, D] are apart, where that is more than rounding."""
    if one.shape != other.shape:
        return f"{one.shape[0]} frames and {other.shape[0]}"
    most = float(other.abs().max()) if other.numel() else 0.0
    apart = float((one - other).abs().max()) if other.numel() else 0.0
    return None if apart <= CLOSE * max(1.0, most) else f"{apart:.3g} apart where values reach {most:.3g}"


@check("recipe", "run")
def parts_in_batches(subject: Any) -> Iterator[Finding]:
    """Batch = single: every streaming part gives a row the same alone and in a padded batch."""
    with torch.inference_mode(), evaluating(built(subject)) as model:
        if bad := list(_parts_in_batches(model)):
            yield fault("a row gives something else in a batch than by itself", REMEDY, bad)


@check("recipe", "run")
def parts_in_pieces(subject: Any) -> Iterator[Finding]:
    """Streaming = offline: every streaming part gives the same for a signal in pieces as whole."""
    with torch.inference_mode(), evaluating(built(subject)) as model:
        if bad := list(_parts_in_pieces(model)):
            yield fault("a signal gives something else in pieces than whole", REMEDY, bad)


@check("recipe", "run")
def rows_in_batches(subject: Any) -> Iterator[Finding]:
    """Batch = single: the language model scores a row of made-up cells the same alone and among others."""
    with torch.inference_mode(), evaluating(built(subject)) as model:
        if bad := list(_systems_in_batches(model, _patterns(subject))):
            yield fault("a row is scored otherwise in a batch than by itself", REMEDY, bad)


@check("recipe", "run")
def column_by_column(subject: Any) -> Iterator[Finding]:
    """Streaming = offline: column by column, the language model is where it is when it reads the whole row."""
    with torch.inference_mode(), evaluating(built(subject)) as model:
        if bad := list(_systems_by_columns(model, _patterns(subject))):
            yield fault("a row read column by column is read otherwise than whole", REMEDY, bad)


def built(subject: Any) -> Any:
    """The model of a recipe or run that is checked."""
    if subject.model is None:
        raise NotChecked("there is no model to run")
    if not streaming_parts(subject.model) and not token_systems(subject.model):
        raise NotChecked("no part of it streams")
    return subject.model


class evaluating:
    """With all parts of a model in eval mode; as they were afterwards."""

    def __init__(self, model: Any):
        self.model = model
        self.modules = list(model.system.modules()) if isinstance(model.system, nn.Module) else []

    def __enter__(self) -> Any:
        self.were = [module.training for module in self.modules]
        for module in self.modules:
            module.training = False
        return self.model

    def __exit__(self, *error: Any) -> None:
        for module, was in zip(self.modules, self.were):
            module.training = was


def _parts_in_batches(model: Any) -> Iterator[str]:
    for name, (part, width) in streaming_parts(model).items():
        rows = rows_for(part, width)
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        together = part(batch, lengths)
        for row, mine in zip(rows, together):
            alone = part(row[None])[0]
            if why := differs(mine[: len(alone)], alone):
                yield f"{name}: {why}"
                break


def _parts_in_pieces(model: Any) -> Iterator[str]:
    for name, (part, width) in streaming_parts(model).items():
        row = rows_for(part, width)[0][None]
        size = max(1, int(part.chunk))
        state = part.initial_state(1)
        pieces = []
        for start in range(0, row.shape[1], size):
            y, state = part.step(row[:, start : start + size], state)
            pieces.append((y, state.emitted))
        y, state = part.flush(state)
        streamed = join_rows([*pieces, (y, state.emitted)])[0][0]
        if why := differs(streamed, part(row)[0]):
            yield f"{name}: {why}"


# -- language models: whole rows of made-up cells, in the layouts of their tasks --


def _patterns(subject: Any) -> dict[str, Any]:
    """Options of made-up cells, where a phase of the recipe says some."""
    recipe = subject.model.recipe
    said = next((dict(p.data.options) for p in recipe.training if p.data.kind == "token_patterns"), {})
    return {name: value for name, value in said.items() if name not in ("pack", "context")}


def made_up(tokens: TokenSystem, patterns: Mapping[str, Any], rows: int = 3) -> Cells:
    """Cells of the streams of a language model: ids of a made-up process (`patterns`: its options), and noise for
    streams of frames. Raises `NotChecked` where there are none for its streams."""
    from vivavoce.data.token_patterns import TokenPatterns

    specs = {name: (stream.spec, stream.size) for name, stream in tokens.streams.items() if stream.width is None}
    if not specs:
        raise NotChecked("it has no stream of tokens")
    try:
        cells = TokenPatterns(specs, **patterns).batch(0, rows)
    except (RecipeError, TypeError) as error:
        raise NotChecked(f"no made-up cells for these streams: {error}") from error
    home = next(tokens.parameters()).device
    frames, lengths = dict(cells.frames), dict(cells.lengths)
    chance = torch.Generator().manual_seed(0)
    count = next((frames_of(tokens, name, length) for name, length in lengths.items()
                  if tokens.streams[name].spec.rate is not None), torch.full((rows,), 6))  # fmt: skip
    for name, stream in tokens.streams.items():
        if stream.width is not None:
            frames[name] = torch.randn(rows, int(count.max()), stream.width, generator=chance)
            lengths[name] = count
    counts = dict(cells.counts)
    counts |= {name.replace("word/", "turn/"): each for name, each in counts.items()}  # of layouts that have turns
    values, lengths, counts, frames = (
        {name: each.to(home) for name, each in part.items()} for part in (cells.values, lengths, counts, frames)
    )
    return Cells(values, lengths, counts, torch.arange(rows, device=home), frames)


def frames_of(tokens: TokenSystem, name: str, lengths: Tensor) -> Tensor:
    """Frames [B] of lengths [B] or [B, levels]."""
    if lengths.dim() == 1:
        return lengths
    return lengths[:, 0].div(tokens.streams[name].spec.cells(0), rounding_mode="floor")


@contextmanager
def _laid_out() -> Iterator[None]:
    """Cells that a layout cannot place (it needs counts that only its own data have) are no fault."""
    try:
        yield
    except (RequestError, DataError) as error:
        raise NotChecked(f"made-up cells do not fit its layout: {error}") from error


def _tasks(model: Any) -> list[tuple[str, TokenSystem, str]]:
    found = [(name, tokens, task) for name, tokens in token_systems(model).items() for task in tokens.tasks]
    if not found:
        raise NotChecked("it has no language model")
    return found


def _systems_in_batches(model: Any, patterns: Mapping[str, Any]) -> Iterator[str]:
    for name, tokens, task in _tasks(model):
        cells = made_up(tokens, patterns)
        with _laid_out():
            together = tokens(cells, task)
        for row in range(3):
            if why := _logits_differ(together, tokens(_alone(cells, row), task), row):
                yield f"stages.{name}, task {task}, row {row}: {why}"
                break


def _alone(cells: Cells, row: int) -> Cells:
    """One row, without the padding that the others gave it."""
    one = slice(row, row + 1)
    lengths = {name: each[one] for name, each in cells.lengths.items()}
    values = {name: each[one, :, : int(lengths[name].max())] for name, each in cells.values.items()}
    frames = {name: each[one, : int(lengths[name].max())] for name, each in cells.frames.items()}
    counts = {name: each[one] for name, each in cells.counts.items()}
    return Cells(values, lengths, counts, None if cells.seeds is None else cells.seeds[one], frames)


def _logits_differ(together: Mapping[str, Prediction], alone: Mapping[str, Prediction], row: int) -> str | None:
    for stream, mine in together.items():
        own = alone[stream]
        for k, logits in enumerate(own.logits):
            here = own.loss[0, :, k]
            there = mine.loss[row, :, k]
            if int(here.sum()) != int(there.sum()):
                return f"{int(there.sum())} cells of '{stream}' are scored, {int(here.sum())} by itself"
            if why := differs(mine.logits[k][row][there], logits[0][here]):
                return f"logits of '{stream}': {why}"
    return None


def _systems_by_columns(model: Any, patterns: Mapping[str, Any]) -> Iterator[str]:
    for name, tokens, task in _tasks(model):
        layout = tokens.layout_of(task)
        with _laid_out():
            cells, _ = tokens.placed(made_up(tokens, patterns), task)
        lengths = {stream: frames_of(tokens, stream, each) for stream, each in cells.lengths.items()}
        known = {stream: lengths[stream] for stream in tokens.filled}
        values = {stream: each for stream, each in cells.values.items() if each.shape[2]}
        frames = {stream: each for stream, each in cells.frames.items() if each.shape[1]}
        seeds = cells.seeds if cells.seeds is not None else torch.zeros(len(next(iter(lengths.values()))))
        walk = Watched(tokens.stage.on(layout), lockstep=True)
        with _laid_out():
            _, places = walk.generate(lengths, values, frames, Given(values, cells.counts, known), seeds, limit=2000)
        if not walk.hidden:
            continue
        whole = tokens.stage.read(places, cells.values, cells.frames, None, layout).hidden
        streamed = torch.stack(walk.hidden, dim=1)
        inside = valid(places.columns, streamed.shape[1])
        if why := differs(streamed[inside], whole[:, : streamed.shape[1]][inside]):
            yield f"stages.{name}, task {task}: {why}"

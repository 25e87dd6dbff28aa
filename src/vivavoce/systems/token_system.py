"""A language model over the streams of a recipe, in any layout: one stage whose columns are cells of streams.

    predictions = system(cells, task)                  # teacher forcing: where the cells stand is the layout's business
    filled, places = system.generate(task, cells, …)   # column by column, through the layout's `next`

GSLM's deduplicated units, MusicGen's delayed codebooks, SpiRit-LM's interleaved words, SpeechGPT's chain of modality
differ in their layout and tasks only; a full-duplex system is one whose columns come with the clock.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import Given, Layout, Places, build_layout
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.decoding import Generator
from vivavoce.lm.grid import GridLM, Prediction, Read
from vivavoce.lm.sampling import Sampling
from vivavoce.schema import Stage, Task
from vivavoce.systems.token_streams import TokenStream

PROMPT = "[:prompt]"


@dataclass
class Cells:
    """A batch of streams; what a stream lacks here has length 0.

    values: stream -> ids [B, levels, T] int64, any behind each row's end. lengths: stream -> frames [B], or cells of
    each level [B, levels]. counts: as `Given.counts` (frames of words, chunks, turns). seeds: [B] int64, of layouts
    with chance. frames: stream of frames -> [B, T, width] float32, any behind each row's end. names: of the rows, for
    those who look at them. A text's id of -1 is nothing: nothing stands there, and nothing is learned.
    """

    values: dict[str, Tensor]
    lengths: dict[str, Tensor]
    counts: dict[str, Tensor] = field(default_factory=dict)
    seeds: Tensor | None = None
    frames: dict[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@contextmanager
def _inside(where: str) -> Iterator[None]:
    """Recipe errors of a part, with the path of the part before them."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from error


class TokenSystem(nn.Module):
    """`stage`: a grid language model over the streams of a recipe's stage, in the layout of each of its tasks.

    parts: modules that the streams are read and spoken with, by the name that a checkpoint knows them by; `codec` is
    the one that speaks. where: the stage's path in the recipe, for errors. begin, std: as `GridLM` has them.
    """

    def __init__(
        self,
        stage: Stage,
        streams: Mapping[str, TokenStream],
        parts: Mapping[str, nn.Module] | None = None,
        where: str = "stage",
        begin: bool | Literal["blanks"] = True,
        std: float | None = None,
    ):
        super().__init__()
        for name in stage.heads:
            if name not in streams:
                raise RecipeError(f"{where}.heads: no stream '{name}'; there are {', '.join(streams)}")
        heads = {name: {"kind": head.kind, **head.options} for name, head in stage.heads.items()}
        self.streams = {
            name: replace(
                stream,
                spec=replace(stream.spec, given=name not in heads),
                spare=heads.get(name, {}).pop("spare", 0),
                end_frame=heads.get(name, {}).pop("end_frame", None),
            )
            for name, stream in streams.items()
        }
        self.filled = list(stage.heads)
        self.tasks = dict(stage.tasks)
        self.length = stage.decode.length
        self._check(stage, where)
        self.layouts = self._layouts(stage, where)
        shared = (stage.layout.options if stage.layout else {}).get("literals") or {}
        self._literals: dict[str | None, dict[str, int]] = {
            name: {**shared, **((task.layout.options if task.layout else {}).get("literals") or {})}
            for name, task in stage.tasks.items()
        }
        self._literals[None] = dict(shared)
        shared_by = [task for each, task in self.tasks.items() if each not in self.layouts]
        for own, layout in self.layouts.items():
            with _inside(where if own is None else f"{where}.tasks.{own}"):
                self._check_layout(layout, heads, shared_by if own is None else [self.tasks[own]])
        nowhere = [name for name in heads if not any(_lanes(layout, name) for layout in self.layouts.values())]
        if nowhere:
            raise RecipeError(f"{where}.layout: '{nowhere[0]}' has a head, but no place in this layout")
        with _inside(where):
            options = dict(stage.backbone.options)
            begin = begin if options.pop("begin", True) else False
            decoder = Decoder.of(options)
            tokens = {name: s.vocabulary for name, s in self.streams.items() if s.width is None}
            widths = {name: s.width for name, s in self.streams.items() if s.width is not None}
            others = [layout for name, layout in self.layouts.items() if name is not None]
            self.stage: GridLM = GridLM(decoder, self.layouts[None], tokens, heads, widths, begin, std, others)
            self.sampling = Sampling.of_streams(stage.decode.sampling, self.filled, "decode.sampling")
            self._check_bias(self.sampling)
        self.codec: Any = None
        for name, part in (parts or {}).items():
            setattr(self, name, part)

    def _check(self, stage: Stage, where: str) -> None:
        """What a recipe may say elsewhere, but not of such a stage."""
        if stage.backbone.kind != "decoder":
            raise RecipeError(f"{where}.backbone: '{stage.backbone.kind}': this stage takes a decoder")
        if stage.decode.order != "ar":
            raise RecipeError(f"{where}.decode.order: '{stage.decode.order}': columns are chosen in their order, `ar`")
        if self.length not in ("end", "clock", "requested", *self.streams):
            known = ", ".join(["end", "clock", "requested", *self.streams])
            raise RecipeError(f"{where}.decode.length: '{self.length}' is none of {known}")
        for name, entry in stage.inputs.items():
            if entry.enters != "grid" or entry.encoder or entry.adapter:
                raise RecipeError(f"{where}.inputs.{name}: streams enter by the grid, as the stream's encoder has them")
        for name, task in stage.tasks.items():
            for cells in (*(text.removesuffix(PROMPT) for text in task.given), *task.fills):
                if cells not in self.streams:
                    hint = f"name whole streams, or STREAM{PROMPT} as given"
                    raise RecipeError(f"{where}.tasks.{name}: '{cells}': {hint}")

    def _layouts(self, stage: Stage, where: str) -> dict[str | None, Layout]:
        """The stage's layout (None; the first task's, where the stage has none), and those that tasks have of their
        own."""
        specs = [stream.spec for stream in self.streams.values()]
        found: dict[str | None, Layout] = {}
        if stage.layout is not None:
            with _inside(where):
                found[None] = build_layout(stage.layout.model_dump(), specs)
        for name, task in stage.tasks.items():
            if task.layout is not None or task.template is not None:
                with _inside(f"{where}.tasks.{name}"):
                    found[name] = build_layout(own_layout(stage, task), specs)
        return found if None in found else {None: next(iter(found.values())), **found}

    def _check_layout(self, layout: Layout, heads: Mapping[str, Mapping[str, Any]], tasks: Sequence[Task]) -> None:
        """That it can be learned, and places what its tasks fill and are given."""
        slots = [slot for block in layout.program.blocks for slot in block.slots]
        if any(slot.channel < 0 and slot.loss and slot.literal >= 0 for slot in slots):
            raise RecipeError("layout: literals are forced, no head predicts them: leave out `learn_tags` and `loss`")
        wanted = {name: "has a head" for task in tasks for name in task.fills}
        wanted |= {name: "is given" for task in tasks for name in task.given if name not in wanted}
        for name, what in wanted.items():
            if not _lanes(layout, name.removesuffix(PROMPT)):
                raise RecipeError(f"layout: '{name}' {what}, but no place in this layout")
        for name, head in heads.items():
            lanes = _lanes(layout, name)
            if head["kind"] == "depth" and len(set(lanes)) < len(lanes):
                raise RecipeError(f"heads.{name}: depth: the layout puts the levels of '{name}' into one lane, in turn")
            if self.streams[name].width is not None and len(lanes) > 1:
                raise RecipeError(f"layout: '{name}', frames that are predicted, stand in lanes {lanes}: one only")

    def _check_bias(self, sampling: Mapping[str, Sampling]) -> None:
        for name, settings in sampling.items():
            if self.streams[name].width is not None:
                continue
            size = self.streams[name].vocabulary[0]
            if (most := max(settings.logit_bias, default=0)) >= size:
                raise RecipeError(f"decode.sampling.{name}.logit_bias: id {most}: '{name}' has 0 to {size - 1}")

    @property
    def layout(self) -> Layout:
        """Where cells stand, in tasks that have no layout of their own."""
        return self.layouts[None]

    def layout_of(self, task: str | None) -> Layout:
        """Where cells stand in a task (None: no task)."""
        return self.layouts.get(task, self.layout)

    @property
    def vocabularies(self) -> dict[str, Any]:
        """Tokenizers of text, by stream."""
        return {name: stream.tokenizer for name, stream in self.streams.items() if stream.modality == "text"}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint has to agree on beside the recipe: the layouts' maps, as this version of it makes them."""
        return {f"layout of {n}" if n else "layout": layout.fingerprint for n, layout in self.layouts.items()}

    def literals(self, task: str | None = None) -> dict[int, str]:
        """The names of a task's literals (of the stage's layout, and its own), by id."""
        return {number: name for name, number in self._literals.get(task, self._literals[None]).items()}

    def with_stage(self, stage: GridLM) -> "TokenSystem":
        """The same system over another network of the same form, such as a frozen copy."""
        other = copy.copy(self)
        other._modules = {**self._modules, "stage": stage}
        return other

    def task(self, name: str) -> Task:
        """A task by name."""
        if name not in self.tasks:
            raise RequestError(f"no task '{name}'; there are {', '.join(self.tasks)}")
        return self.tasks[name]

    # -- teacher forcing --

    def forward(
        self,
        cells: Cells,
        task: str | None = None,
        known: Mapping[str, Tensor] | None = None,
        pack: int | None = None,
    ) -> dict[str, Prediction]:
        """Predictions of all streams with a head; arguments as `read` has them. Packed, only in columns with a cell
        that has loss, and of streams with such."""
        stage, read = self.stage, self.read(cells, task, known, pack)
        if pack is None:
            return {name: stage.predict(name, read) for name in stage.order}
        where = {name: read.loss[name].any(-1) for name in stage.order}
        return {name: stage.predict(name, read, here) for name, here in where.items() if bool(here.any())}

    def read(
        self,
        cells: Cells,
        task: str | None = None,
        known: Mapping[str, Tensor] | None = None,
        pack: int | None = None,
    ) -> Read:
        """Whole rows, read in the layout of the task. What the task gives, or what is `known` (as `Given.known`), has
        no loss; a stream that the task neither gives nor fills is left out. pack: as `GridLM.read` has it."""
        cells, places = self.placed(cells, task, known)
        return self.stage.read(places, cells.values, cells.frames, pack, self.layout_of(task))

    def placed(
        self, cells: Cells, task: str | None = None, known: Mapping[str, Tensor] | None = None
    ) -> tuple[Cells, Places]:
        """What `read` reads: the cells that take part, and their places."""
        found = dict(known or {})
        if task is not None:
            given, fills = self.task(task).given, self.task(task).fills
            used = {*fills, *(name.removesuffix(PROMPT) for name in given)}
            values, lengths, frames = (
                {name: value for name, value in part.items() if name in used}
                for part in (cells.values, cells.lengths, cells.frames)
            )
            cells = replace(cells, values=values, lengths=lengths, frames=frames)
            found |= {n: self._frames(n, cells.lengths[n]) for n in given if n in self.filled and n not in fills}
        cells = self.complete(cells, task)
        return cells, self.places(cells, found, task)

    def places(self, cells: Cells, known: Mapping[str, Tensor] | None = None, task: str | None = None) -> Places:
        """Where whole cells stand in a task; `known`: as `Given.known`."""
        given = Given(cells.values, cells.counts, known or {})
        return self.layout_of(task).place(cells.lengths, given, cells.seeds)

    def complete(self, cells: Cells, task: str | None = None) -> Cells:
        """The cells of a task with every stream of the system; those that were missing are empty."""
        if unknown := sorted({*cells.values, *cells.frames} - set(self.streams)):
            raise RequestError(f"no stream '{unknown[0]}'; there are {', '.join(self.streams)}")
        batch, device = next((v.shape[0], v.device) for v in cells.lengths.values())
        values, lengths = dict(cells.values), dict(cells.lengths)
        for name, stream in self.streams.items():
            if stream.width is None and name not in values:
                values[name] = torch.full((batch, stream.spec.levels, 0), -1, device=device)
            lengths.setdefault(name, torch.zeros(batch, dtype=torch.int64, device=device))
        return replace(cells, values=values, lengths=lengths)

    def _frames(self, name: str, lengths: Tensor) -> Tensor:
        """Frames [B] of lengths [B] or [B, levels]."""
        if lengths.dim() == 1:
            return lengths
        return lengths[:, 0].div(self.streams[name].spec.cells(0), rounding_mode="floor")

    # -- generation --

    def generator(self, task: str | None = None) -> Generator:
        """The decoding loop in the layout of a task, with this system's sampling; an end token stands at a frame's
        first level only."""
        rules = {
            name: _ends_first(end)
            for name in self.filled
            if (end := self.streams[name].spec.end) is not None and self.streams[name].spec.levels > 1
        }
        return Generator(self.stage.on(self.layout_of(task)), self.sampling, rules)

    def generate(
        self, task: str, cells: Cells, lengths: Mapping[str, Tensor], seeds: Tensor, limit: int = 10_000
    ) -> tuple[dict[str, Tensor], Places]:
        """Fill the streams of a task: stream -> ids [B, levels, T] (-1: nothing there) or frames [B, T, width]
        (nan: nothing there), and their places.

        cells: the given streams and prompts, with their lengths. lengths: frames [B] of the filled streams, prompts
        included (`OPEN`: until the end token); a filled stream without lengths is open, one that the task does not name
        is empty. seeds: [B]. `RequestError` after `limit` columns.
        """
        wanted, known = dict(lengths), {}
        for name in self.task(task).given:
            plain = name.removesuffix(PROMPT)
            if plain not in cells.lengths:
                if name == plain:
                    raise RequestError(f"task '{task}': '{name}' is to be given")
                continue
            if plain in self.filled:
                known[plain] = self._frames(plain, cells.lengths[plain])
            if name == plain:
                wanted[plain] = cells.lengths[plain]
        for name in self.streams:
            if name not in wanted and name not in self.task(task).fills:
                wanted[name] = torch.zeros_like(seeds)
        values = {name: value for name, value in cells.values.items() if value.shape[2]}
        given = Given(values, cells.counts, known)
        frames = {name: value for name, value in cells.frames.items() if value.shape[1]}
        ends = {name: self.streams[name].end_frame for name in self.task(task).fills}
        follows = dict.fromkeys(self.followers(task), self.length)
        if self.length in lengths:  # the leader may stop there without an end token
            wanted.update(dict.fromkeys(follows, lengths[self.length]))
        return self.generator(task).generate(wanted, values, frames, given, seeds, limit, follows=follows, ends=ends)

    def followers(self, task: str) -> list[str]:
        """The filled streams of a task that end where the filled stream named by the recipe's `decode.length` does, by
        its end token."""
        fills, leader = self.task(task).fills, self.streams.get(self.length)
        if leader is None or self.length not in fills or leader.spec.end is None:
            return []
        return [name for name in fills if name != self.length and self.streams[name].spec.end is None]


def _ends_first(end: int) -> Any:
    """A rule that forbids the end token at levels beyond the first."""

    def rule(logits: Tensor, level: Any, index: Tensor) -> Tensor:
        if int(level) == 0:
            return logits
        return logits.index_fill(-1, torch.tensor([end], device=logits.device), -torch.inf)

    return rule


def _lanes(layout: Layout, name: str) -> list[int]:
    """The lanes of a stream's levels, one after another."""
    return [lane for lane, cells in enumerate(layout.lane_cells) for cell in cells if cell[0] == name]


def own_layout(stage: Stage, task: Task) -> dict[str, Any]:
    """The specification of a task's own layout: its template, with its layout, or the stage's, for `layout`."""
    both = [part.model_dump() for part in (stage.layout, task.layout) if part is not None]
    inner: dict[str, Any] = dict(both[-1]) if both else {}
    if task.template is None:
        return inner
    # What a layout says at its outermost level holds for the template around it.
    outer: dict[str, Any] = {key: inner.pop(key) for key in ("lanes", "positions", "literals") if key in inner}
    literals = {name: number for part in both for name, number in (part.get("literals") or {}).items()}
    order = [inner if item == "layout" else item for item in task.template]
    return {**outer, "literals": literals, "kind": "template", "order": order}

"""A language model over the grid of any layout: tables for what stands in it, a backbone over columns, heads.

Column c is predicted from the columns before it; before column 0 stands a learned begin vector, so that every cell has
a probability (models without one, such as published text LMs, predict from column 1 on).

Every slot of a stream (see `slots`) has a table and a head of its own. Streams of frames (vectors) stand in the grid as
well; they are given, or predicted by a density. `GridLM.on` is the same network over another layout.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import LITERAL, PADDING, Layout, Places
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.depth_decoder import DepthDecoder
from vivavoce.lm.embeddings import NOTHING, StreamEmbeddings, embed
from vivavoce.lm.heads import DensityHead, DepthHead, LinearHead, make_density, make_head
from vivavoce.lm.packed import through
from vivavoce.lm.slots import NOWHERE, Slot, Slots, common_slots
from vivavoce.nn.streaming import State


@dataclass
class Prediction:
    """Of a stream: for every slot logits [B, C, vocabulary]; the ids there [B, C, slots] (-1: none); which to learn;
    the row of the batch that each column belongs to [B, C]; the slots' levels.

    Of picked columns (see `GridLM.predict`) all have one dimension for the two, [N, …]. Of a stream of frames, `logits`
    are the parameters of a `density`, and the targets frames [B, C, slots, width]. teacher: another network's logits in
    the same places, where it is learned from.
    """

    logits: list[Tensor]
    targets: Tensor
    loss: Tensor
    rows: Tensor
    levels: Sequence[int]
    density: DensityHead | None = None
    teacher: list[Tensor] | None = None


@dataclass
class Read:
    """Whole rows, read: hidden [B, C, D] predicts each column; what stands in the streams' slots, ids [B, C, slots]
    (-1: none) or, of filled streams of frames, [B, C, slots, width]; which of it to learn (bool [B, C, slots]); the row
    of the batch of each column [B, C].

    Packed rows are one row of all columns, [1, N, …].
    """

    hidden: Tensor
    codes: dict[str, Tensor]
    loss: dict[str, Tensor]
    rows: Tensor


def joint_heads(heads: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Streams whose levels go on in the depth transformer of another one's head -> that stream."""
    found = {name: str(options["of"]) for name, options in heads.items() if "of" in options}
    for name, owner in found.items():
        where = f"heads.{name}"
        if owner in found or heads.get(owner, {}).get("kind") != "depth" or heads[name].get("kind") != "depth":
            raise RecipeError(f"{where}.of: '{owner}' has no depth transformer of its own for '{name}' to follow in")
        if strange := sorted(set(heads[name]) - {"kind", "of"}):
            raise RecipeError(f"{where}: '{strange[0]}' is said by the head of '{owner}': leave it out")
    return found


class GridLM(nn.Module):
    """Tables, backbone and heads over the grid of `layout`.

    vocabularies: stream of tokens -> sizes of its levels, end tokens included; a `blank` beyond them gets a row of the
    stream's tables too. widths: stream of frames -> width. heads: stream that the model fills -> {"kind": "linear" |
    "depth", options}; `after` names a stream whose token of the same column is chosen first; of frames, "regression" or
    "density". begin: whether there is a begin vector; `blanks`: it is a column in which each stream shows its blank
    (Moshi's initial tokens). std: of the tables' first values (None: as `StreamEmbeddings` says). others: further
    layouts that the network is to be used `on`.
    """

    def __init__(
        self,
        backbone: Decoder,
        layout: Layout,
        vocabularies: Mapping[str, Sequence[int]],
        heads: Mapping[str, Mapping[str, Any]],
        widths: Mapping[str, int] | None = None,
        begin: bool | Literal["blanks"] = True,
        std: float | None = None,
        others: Sequence[Layout] = (),
    ):
        super().__init__()
        self.backbone = backbone
        self.numbers = {spec.name: i for i, spec in enumerate(layout.streams)}
        order = common_slots([layout, *others])
        self._grids = {each.fingerprint: Slots(each, order) for each in (*others, layout)}
        self._grid = self._grids[layout.fingerprint]
        for name in self.numbers:
            levels = layout.streams[self.numbers[name]].levels
            if name in vocabularies and len(vocabularies[name]) != levels:
                raise RecipeError(f"vocabulary of '{name}': {len(vocabularies[name])} sizes for {levels} levels")
        width = backbone.width
        sizes = {name: [vocabularies[name][slot.level] for slot in self.slots[name]] for name in vocabularies}
        blanks = {name: -1 if (blank := self._blank(name)) is None else blank for name in sizes}
        rows = {name: [max(size, blanks[name] + 1) for size in each] for name, each in sizes.items()}
        self.tables = StreamEmbeddings(rows, width, std)
        self.adapters = nn.ModuleDict({name: nn.Linear(size, width) for name, size in (widths or {}).items()})
        blocks = [block for each in (layout, *others) for block in each.program.blocks]
        literals = [slot.literal for block in blocks for slot in block.slots if slot.channel < 0]
        self.literals = nn.Embedding(max(literals) + 1, width) if literals else None
        self.begins = begin
        self.begin = nn.Parameter(torch.randn(width)) if begin is True else None
        self.linear, self.depth, self.density = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self._joined_to = joint_heads(heads)
        for name, given in heads.items():
            if name in self._joined_to:
                continue
            options = dict(given)
            kind = options.pop("kind")
            if name in self.adapters:
                self.density[name] = make_density(kind, width, name, (widths or {})[name], options)
                continue
            parts = [name, *(other for other, owner in self._joined_to.items() if owner == name)]
            joint = {name: [n for part in parts for n in sizes.get(part, ())]} if len(parts) > 1 else {}
            head = make_head(kind, width, name, {**sizes, **joint}, options)
            if isinstance(head, DepthDecoder) and head.tied:
                head.tie(cast(nn.ModuleList, self.tables[name]))
            (self.linear if isinstance(head, LinearHead) else self.depth)[name] = head
        self.filled = list(heads)
        self.order = self._order()

    @property
    def layout(self) -> Layout:
        """Where cells stand."""
        return self._grid.layout

    @property
    def slots(self) -> dict[str, list[Slot]]:
        """The slots of every stream."""
        return self._grid.slots

    def on(self, layout: Layout) -> "GridLM":
        """The same network, every weight shared, over another of its layouts (`others`)."""
        if layout is self.layout:
            return self
        if layout.fingerprint not in self._grids:
            raise RequestError("this network was not built for that layout: name it among `others`")
        view = copy.copy(self)  # its dictionaries of parameters and modules are this one's own
        view._grid = self._grids[layout.fingerprint]
        return view

    def _blank(self, name: str) -> int | None:
        return self.layout.streams[self.numbers[name]].blank

    def lanes(self, name: str, device: torch.device | None = None) -> Tensor:
        """The lanes of a stream's slots [slots] (0 where the layout leaves one out), on this device or the model's."""
        return self._grid.tensor("lanes", name, self.backbone.home()["device"] if device is None else device)

    def head(self, stream: str) -> LinearHead | DepthHead | DepthDecoder | DensityHead:
        """The head of a stream that the model fills."""
        if stream not in self.filled:
            raise RequestError(f"'{stream}' has no head; the model fills {', '.join(self.filled) or 'nothing'}")
        owner = self._joined_to.get(stream, stream)
        heads = next(each for each in (self.linear, self.depth, self.density) if owner in each)
        return cast(LinearHead | DepthHead | DepthDecoder | DensityHead, heads[owner])

    def before(self, stream: str) -> list[str]:
        """The streams whose levels come before this one's in a depth transformer that they share."""
        owner = self._joined_to.get(stream, stream)
        parts = [owner, *(other for other, own in self._joined_to.items() if own == owner)]
        return parts[: parts.index(stream)]

    def _order(self) -> list[str]:
        """Filled streams such that each stands behind the one that it is `after`."""
        order: list[str] = []
        waiting = list(self.filled)
        while waiting:
            ready = [n for n in waiting if not {self.head(n).after, *self.before(n)} & set(waiting)]
            if not ready:
                raise RecipeError(f"heads: {', '.join(waiting)} wait for each other: `after` makes a circle")
            order += ready
            waiting = [name for name in waiting if name not in ready]
        return order

    # -- the grid's values --

    def here(self, name: str, stream: Tensor, level: Tensor) -> Tensor:
        """Which of a stream's slots hold its cell: bool [B, slots, …]; arguments [B, lanes, …]."""
        lanes, levels = (self._grid.tensor(what, name, stream.device) for what in ("lanes", "levels"))
        shape = (-1, *[1] * (level.dim() - 2))
        return (stream[:, lanes] == self.numbers[name]) & (level[:, lanes] == levels.view(shape))

    def codes(self, name: str, stream: Tensor, level: Tensor, values: Tensor) -> Tensor:
        """Ids in a stream's slots [B, C, slots], -1 where another cell or none stands; arguments [B, lanes, C]."""
        found = values[:, self._grid.tensor("lanes", name, values.device)]
        return torch.where(self.here(name, stream, level), found, NOTHING).transpose(1, 2)

    def columns(
        self, stream: Tensor, level: Tensor, index: Tensor, values: Tensor, frames: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Embedded columns [B, C, D]. stream, level, index, values: [B, lanes, C]; frames: name -> [B, T, width]."""
        total = torch.zeros(stream.shape[0], stream.shape[2], self.backbone.width, **self.backbone.home())
        for name, number in self.numbers.items():
            lanes = self._grid.tensor("lanes", name, stream.device)
            if name in self.adapters:
                for lane in {slot.lane: None for slot in self.slots[name] if slot.lane != NOWHERE}:
                    here = stream[:, lane] == number
                    total = total + self._frames(name, torch.where(here, index[:, lane], -1), frames or {})
            elif name in self.tables:
                here = self.here(name, stream, level)
                if self._blank(name) is not None:
                    here |= self._grid.tensor("shows", name, stream.device)[:, None] & (stream[:, lanes] == PADDING)
                ids = torch.where(here, values[:, lanes], NOTHING)
                # Where it costs no waiting for a device: whether every id is one, so that none has to be blotted out.
                whole = ids.device.type == "cpu" and bool((ids >= 0).all())
                for k in range(ids.shape[1]):
                    total = total + self.tables.level(name, k, ids[:, k], whole)
        if self.literals is not None:
            for lane in range(stream.shape[1]):
                total = total + embed(self.literals, torch.where(stream[:, lane] == LITERAL, values[:, lane], NOTHING))
        return total

    def _frames(self, name: str, index: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
        """Adapted frames [B, C, D] at `index` [B, C], zero where it is negative."""
        if name not in frames:
            return torch.zeros((), device=index.device)
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        picked = self.adapters[name](frames[name][rows, index.clamp(min=0)].to(self.backbone.home()["dtype"]))
        return torch.where((index < 0)[..., None], torch.zeros((), dtype=picked.dtype, device=picked.device), picked)

    # -- teacher forcing --

    def forward(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None = None, **context: Any
    ) -> dict[str, Prediction]:
        """Predictions of all filled streams, whole rows at once; arguments as `read` has them."""
        read = self.read(places, values, frames, **context)
        return {name: self.predict(name, read) for name in self.order}

    def read(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None = None,
        pack: int | None = None, layout: Layout | None = None, **context: Any,
    ) -> Read:
        """Read whole rows, in another `layout` if one is given.

        values: stream -> ids [B, levels, T] of token streams (one that is left out shows not even blanks); frames:
        stream -> [B, T, width] of the others; context: as `Transformer.forward` takes it (memory, condition, …).
        pack: the backbone reads the rows one behind another, without padding, in pieces of so many columns at most (see
        `packed`): what is predicted is the same. None: rows side by side, padded to the longest.
        """
        return (self if layout is None else self.on(layout))._read(places, values, frames, pack, context)

    def _read(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None, pack: int | None,
        context: dict[str, Any],
    ) -> Read:
        stream, level, index, learn = (places.mask(field) for field in ("stream", "level", "index", "loss"))
        blanks = [self._blank_of(lane, values) for lane in range(places.lanes)]
        grid = places.grid(values, blanks)
        inside = torch.arange(stream.shape[2], device=grid.device)[None] < places.columns[:, None]
        grid = torch.where(inside[:, None], grid, NOTHING)
        rows = torch.arange(stream.shape[0], device=grid.device)[:, None].expand(inside.shape)
        positions = self._positions(places)
        frames = dict(frames or {})
        if pack is not None:
            stream, level, index, grid, learn = (
                each.transpose(1, 2)[inside].transpose(0, 1)[None] for each in (stream, level, index, grid, learn)
            )
            first, rows = places.columns, rows[inside][None]
            index = self._joined(index, stream, rows, frames)
            frames = {name: value.flatten(0, 1)[None] for name, value in frames.items()}
            x = self.columns(stream, level, index, grid, frames)
            hidden = self._through(x[0], first, None if positions is None else positions[inside], pack, context)
        else:
            x = self.columns(stream, level, index, grid, frames)
            hidden = self._hidden(x, places, positions, context)
        codes = {name: self.codes(name, stream, level, grid) for name in self.tables}
        codes |= {name: self._goal(name, stream, level, index, frames) for name in self.density}
        loss = {name: self.codes(name, stream, level, learn) > 0 for name in self.filled}
        if not self.begins:  # nothing comes before a row's first column
            first = torch.ones_like(rows, dtype=torch.bool)
            first[:, 1:] = rows[:, 1:] != rows[:, :-1]
            loss = {name: each & ~first[..., None] for name, each in loss.items()}
        return Read(hidden, codes, loss, rows)

    def predict(self, name: str, read: Read, where: Tensor | None = None) -> Prediction:
        """The prediction of one filled stream; of the columns `where` [B, C] bool alone, if it is given."""
        head = self.head(name)
        hidden, codes, loss, rows = read.hidden, read.codes[name], read.loss[name], read.rows
        prefix = None if head.after is None else read.codes[head.after][..., 0]
        if where is not None:
            hidden, codes, loss, rows = hidden[where], codes[where], loss[where], rows[where]
            prefix = None if prefix is None else prefix[where]
        density = head if isinstance(head, DensityHead) else None
        levels = [slot.level for slot in self.slots[name]]
        told = [read.codes[other] if where is None else read.codes[other][where] for other in self.before(name)]
        first = sum(each.shape[-1] for each in told)
        logits = head(hidden, torch.cat([*told, codes], dim=-1) if told else codes, prefix)[first:]
        return Prediction(logits, codes, loss, rows, levels, density)

    def _positions(self, places: Places) -> Tensor | None:
        """Position of every column [B, C], where it is not its number."""
        if self.layout.program.positions == "column":
            return None
        return places.mask("position").amax(1).clamp(min=0)

    def _hidden(self, x: Tensor, places: Places, positions: Tensor | None, context: dict[str, Any]) -> Tensor:
        """Hidden [B, C, D] that predicts each of the columns x [B, C, D]; zero for column 0 without a begin vector."""
        nothing = x.new_zeros(x.shape[0], min(x.shape[1], 1), x.shape[2])
        before, size, first = x[:, :-1], places.columns, self.beginning()
        if first is not None:
            before = torch.cat([nothing + first.to(x.dtype), before], dim=1)
        else:
            size = (size - 1).clamp(min=0)
        if positions is not None:
            at = positions[:, :-1]
            zero = at.new_zeros(at.shape[0], nothing.shape[1])
            context["positions"] = at if first is None else torch.cat([zero, at + 1], dim=1)
        hidden = self.backbone(before, None if bool((size == before.shape[1]).all()) else size, **context)
        return hidden if first is not None else torch.cat([nothing, hidden], dim=1)

    def beginning(self) -> Tensor | None:
        """The vector [D] before column 0, None without one."""
        if self.begins != "blanks":
            return self.begin
        one = torch.zeros(1, 1, dtype=torch.int64, device=self.backbone.home()["device"])
        total: Tensor | None = None
        for name in self.tables:
            blank = self._blank(name)
            for k, _ in enumerate(self.slots[name] if blank is not None else ()):
                part = self.tables.level(name, k, one + (blank or 0))[0, 0]
                total = part if total is None else total + part
        return total

    def _through(
        self, x: Tensor, columns: Tensor, positions: Tensor | None, pack: int, context: dict[str, Any]
    ) -> Tensor:
        """As `_hidden`, for the columns x [N, D] of all rows, one row behind another (`columns` [B] each), packed:
        hidden [1, N, D]."""
        if context:
            raise RequestError(f"packed rows share a window: they take no {', '.join(context)} of their own")
        starts = (columns.cumsum(0) - columns)[columns > 0]
        before, at, first = x.roll(1, 0), None, self.beginning()
        if positions is not None:
            at = positions.roll(1, 0) + (first is not None)
            at = at.index_fill(0, starts, 0)
        if first is not None:
            begin = first.to(x.dtype).expand(len(starts), -1)
            return through(self.backbone, before.index_copy(0, starts, begin), columns, at, pack)[None]
        follows = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill(0, starts, False)
        at = None if at is None else at[follows]
        some = through(self.backbone, before[follows], (columns - 1).clamp(min=0), at, pack)
        return torch.zeros_like(x).masked_scatter(follows[:, None], some)[None]

    def _joined(self, index: Tensor, stream: Tensor, rows: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
        """Indices [1, lanes, N] into the frames of all rows, one row behind another; others stay."""
        for name, value in frames.items():
            here = stream == self.numbers[name]
            index = torch.where(here, index + rows[:, None] * value.shape[1], index)
        return index

    def _goal(self, name: str, stream: Tensor, level: Tensor, index: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
        """The frames that stand in a stream's slots [B, C, slots, width], zero where none does."""
        at = self.codes(name, stream, level, index)
        width = cast(nn.Linear, self.adapters[name]).in_features
        if name not in frames or not frames[name].shape[1]:
            return torch.zeros(*at.shape, width, device=at.device)
        rows = torch.arange(at.shape[0], device=at.device)[:, None, None]
        return torch.where((at >= 0)[..., None], frames[name][rows, at.clamp(min=0)].float(), 0.0)

    def _blank_of(self, lane: int, present: Mapping[str, Tensor]) -> int:
        blanks = [self._blank(name) for name, _ in self.layout.lane_cells[lane] if name in present]
        return next((blank for blank in blanks if blank is not None), NOTHING)

    # -- column by column --

    def start(self, batch: int, **options: Any) -> tuple[Tensor, State]:
        """Hidden [B, D] after the begin vector (zero without one), which predicts column 0, and the backbone's state.

        options: keywords of the backbone's step; `initial`: those of its first state (a prefix).
        """
        initial, first = options.pop("initial", {}), self.beginning()
        if first is None:
            state = self.backbone.transformer.initial_state(batch, **initial)
            return torch.zeros(batch, self.backbone.width, **self.backbone.home()), state
        if options or initial:
            state = self.backbone.transformer.initial_state(batch, **initial)
            hidden, state = self.backbone.step(first.expand(batch, 1, -1), state, **options)
            return hidden[:, 0], state
        # The same for all rows: computed for one, so that a row begins to the bit as it would alone.
        hidden, state = self.backbone.step(first.expand(1, 1, -1), self.backbone.transformer.initial_state(1))
        rows = state.map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]).clone())
        return hidden[:, 0].expand(batch, -1).clone(), rows

    def step(
        self, cells: Mapping[str, Tensor], state: State, active: Tensor | None = None,
        frames: Mapping[str, Tensor] | None = None, **context: Any,
    ) -> tuple[Tensor, State]:
        """Read a filled column: hidden [B, D], which predicts the next one, and the state.

        cells: stream, level, position and values [B, lanes] of the column. frames: stream -> [B, width], that of this
        column. Rows that are not `active` [B] bool are held (None: no row is).
        """
        whole = {name: cells[name][..., None] for name in ("stream", "level", "position", "values")}
        now = {name: frame[:, None] for name, frame in (frames or {}).items()}
        hidden, after = self.steps(whole, state, None if active is None else active.long(), now, **context)
        return hidden[:, 0], after

    def steps(
        self, cells: Mapping[str, Tensor], state: State, lengths: Tensor | None = None,
        frames: Mapping[str, Tensor] | None = None, **context: Any,
    ) -> tuple[Tensor, State]:
        """Read filled columns: hidden [B, C, D], each of which predicts the column behind it, and the state.

        As `step`, with cells [B, lanes, C] and frames [B, C, width]; of each row the first `lengths` [B] columns.
        """
        stream = cells["stream"]
        number = torch.arange(stream.shape[2], device=stream.device)
        index = torch.where(stream == PADDING, -1, number)
        x = self.columns(stream, cells["level"], index, cells["values"], frames)
        if self.layout.program.positions != "column":
            context["positions"] = cells["position"].amax(1).clamp(min=0) + bool(self.begins)
        return self.backbone.step(x, state, lengths, **context)

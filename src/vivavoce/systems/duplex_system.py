"""A full-duplex system in lockstep: ear -> columns -> backbone -> heads -> decoder, all state in one tree.

Step c hears frame c of the given stream, completes column c with what was chosen before, and chooses the filled cells
that the layout puts into column c + 1. A filled cell that stands one column later than what is heard is cell c; where
the layout has it in the same column it is cell c + 1 (Moshi's text and first level: what is said begins before anything
is heard). The frame that a step gives out is the newest of which every level has been chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import Column, Places, build_layout
from vivavoce.lm.decoding import Generator, cells_of, taken
from vivavoce.lm.embeddings import NOTHING
from vivavoce.lm.grid import Prediction
from vivavoce.lm.rules import Rule
from vivavoce.nn.streaming import State, Streaming
from vivavoce.schema import Interaction, Stage
from vivavoce.systems.ears import CodeEar, Ear, VectorEar
from vivavoce.systems.token_streams import TokenStream
from vivavoce.systems.token_system import Cells, TokenSystem


@dataclass
class Spoken:
    """One step of all rows: audio [rows, frame_size], tokens stream -> ids [rows, levels] of the frame that is given
    out (-1 in a row that has none yet), chosen stream -> ids [rows, levels] that this step has chosen."""

    audio: Tensor
    tokens: dict[str, Tensor]
    chosen: dict[str, Tensor]


class DuplexSystem(TokenSystem):
    """A token system whose columns come with the clock: one ear for what it hears, one codec for what it says.

    What it hears are vectors of an encoder that streams, or codes of a codec; a head for codes that are heard predicts
    them (in `loglik`, in training), and what comes in stands there in a conversation. A cell that a stream does not
    have, at the very beginning, is a blank: an id of its own, behind the stream's others; where filled cells stand in
    the first column, a column of blanks is before it.

    lead: filled stream -> of each level, how many frames ahead of the one that is heard its newest cell is.
    """

    encoder: Streaming
    codec: Any

    def __init__(
        self, interaction: Interaction, stage: Stage, streams: Mapping[str, TokenStream], where: str = "stage"
    ):
        hears, speaks = streams[interaction.hears], streams[interaction.speaks]
        if hears.width is not None and not isinstance(getattr(hears.encoder, "module", None), Streaming):
            raise RecipeError(f"{where}: '{interaction.hears}' is heard while it comes: its encoder has to stream")
        if hears.width is None and hears.modality != "audio":
            raise RecipeError(f"{where}: '{interaction.hears}' is heard: its tokenizer has to be a codec")
        if vectors := [name for name in stage.heads if streams.get(name, speaks).width is not None]:
            raise RecipeError(f"{where}.heads: '{vectors[0]}': a full-duplex stage fills streams of tokens, not frames")
        if speaks.modality != "audio":
            raise RecipeError(f"{where}: '{interaction.speaks}' is spoken: its tokenizer has to be a codec")
        blanks = {
            name: stream if stream.width is not None else replace(stream, spec=replace(stream.spec, blank=stream.size))
            for name, stream in streams.items()
        }
        parts = {} if hears.width is None else {"encoder": hears.encoder.module}
        parts["codec"] = speaks.tokenizer
        if hears.width is None and hears.tokenizer is not speaks.tokenizer:
            parts["ear_codec"] = hears.tokenizer
        begin: Literal["blanks", False] = "blanks" if begins_with_them(stage, interaction, blanks, where) else False
        super().__init__(stage, blanks, parts, where, begin, std=0.02 * len(streams) ** -0.5)
        self.interaction = interaction
        delays = self.layout.delays
        self.ear: Ear = (
            VectorEar(self.encoder, int(hears.encoder.sample_rate))
            if hears.width is not None
            else CodeEar(hears.tokenizer, delays[interaction.hears])
        )
        self.sample_rate, self.frame_size = self.ear.sample_rate, self.ear.frame_size
        if (own := (int(self.codec.sample_rate), int(self.codec.hop))) != (self.sample_rate, self.frame_size):
            raise RecipeError(
                f"{where}: '{interaction.speaks}' has frames of {own[1]} samples at {own[0]} Hz, '{interaction.hears}' "
                f"of {self.frame_size} at {self.sample_rate}: both stand on one clock"
            )
        self.says = [name for name in self.filled if name != interaction.hears]
        self.lead = {name: [1 - delay for delay in delays[name]] for name in self.says}
        self.first = min(delay for name in self.filled for delay in delays[name])
        leads = [lead for name in self.says for lead in self.lead[name]]
        self._behind = min(0, *leads)  # the frame that step c gives out is c plus this
        self._waits = max(leads) - self._behind  # columns for which a value waits for the rest of its frame

    # -- one frame --

    @torch.no_grad()
    def initial_state(self, rows: int, seeds: Tensor, forced: Mapping[str, Tensor] | None = None) -> State:
        """State of `rows` conversations that have heard nothing; forced: as `step` has it, for what is said before."""
        generator = self.generator()
        column, stage = generator.look(generator.start(rows, seeds=seeds))
        given = self._forced(forced or {}, None, column.stream)[0]
        values = self._begun(generator, column, stage, given)
        state = State(
            encoder=self.ear.start(rows),
            stage=stage,
            column=cells_of(column, values),
            decoder=self.codec.decoder_state(rows),
            emitted=torch.zeros_like(seeds),
        )
        if self._waits:
            nothing = values.new_full((rows, values.shape[1], self._waits), NOTHING)
            state["waiting"] = torch.cat([nothing[..., 1:], values[..., None]], dim=2)
        return state

    def _begun(self, generator: Generator, column: Column, stage: State, given: Tensor | None) -> Tensor:
        """The values [rows, lanes] of the first column. Each row chooses alone, as in a batch of one: a row that is
        reset begins to the bit as one that began with the others."""
        if not self.stage.begins:
            return generator.choose(column, stage, given)
        told = self._unchosen(column, given)
        light = State({key: value for key, value in stage.items() if key not in ("decoder", "layout")})
        rows = []
        for row in range(len(column.done)):
            own = taken(column, torch.tensor([row]))
            rows.append(generator.choose(own, light.take([row]), told if told is None else told[row : row + 1]))
        return torch.cat(rows)

    def step(
        self, frames: Tensor, state: State, active: Tensor, forced: Mapping[str, Tensor] | None = None,
        thresholds: Tensor | None = None,
    ) -> tuple[Spoken, State]:
        """Hear frames [rows, frame_size], speak as many. Rows that are not active [rows] bool are held.

        forced: stream -> ids [rows, levels] that it is to say, -1 where it chooses. thresholds [rows]: what is forced
        into the text stream comes where the probability of a word reaches this, else pad; see `scripted`. `state` is
        used up: its rings of keys and values become the next state's.
        """
        everybody = bool(active.all())  # then no part needs to look at single rows
        some = None if everybody else active
        one = active.long()
        after = State(emitted=one)
        heard, after["encoder"] = self.ear.hear(frames, state["encoder"], some)
        generator = self.generator()
        cells, given = state["column"], None
        if self.ear.vectors:
            given = {self.interaction.hears: heard}
        else:
            cells = State({**cells, "values": self._with_heard(cells, heard)})
        stage = generator.read(cells, state["stage"], given, some, consume=True)
        column, stage = generator.look(stage, some)
        told, rules = self._forced(forced or {}, thresholds, column.stream)
        values = generator.choose(column, stage, self._unchosen(column, told), rules)
        cells = cells_of(column, values)
        after["stage"], after["column"] = stage, cells if everybody else state["column"].where(active, cells)
        chosen = {name: values[:, self.stage.lanes(name, values.device)] for name in self.says}
        tokens = chosen
        if self._waits:
            line = torch.cat([state["waiting"], values[..., None]], dim=2)
            tokens = {name: self._frame(name, line) for name in self.says}
            late = line[..., 1:]
            after["waiting"] = late if everybody else torch.where(active[:, None, None], late, state["waiting"])
        codes = torch.where(active[:, None], tokens[self.interaction.speaks], 0)
        silent = (codes < 0).any(1) if self._behind else None  # rows whose first frame is not complete
        steps = None if everybody else one
        if silent is not None:
            codes, steps = codes.clamp(min=0), one * ~silent
        wave, after["decoder"] = self.codec.decode_step(codes[..., None], state["decoder"], steps)
        if silent is not None:
            if wave.shape[2] == 0:
                wave = wave.new_zeros(*wave.shape[:2], self.frame_size)
            wave = torch.where(silent[:, None, None], torch.zeros((), dtype=wave.dtype, device=wave.device), wave)
        return Spoken(wave[:, 0], tokens, chosen), after

    def _with_heard(self, cells: Mapping[str, Tensor], heard: Tensor) -> Tensor:
        """The values [rows, lanes] of a column with the codes [rows, slots] that are heard."""
        name = self.interaction.hears
        lanes = self.stage.lanes(name, heard.device)
        here = self.stage.here(name, cells["stream"][..., None], cells["level"][..., None])[..., 0]
        values = cells["values"].clone()
        values[:, lanes] = torch.where(here, heard, values[:, lanes])
        return values

    def _frame(self, name: str, line: Tensor) -> Tensor:
        """Ids [rows, levels] of the frame that is given out (-1: not chosen yet); line [rows, lanes, waits + 1]:
        values, the newest last."""
        newest = line.shape[2] - 1
        lanes = [slot.lane for slot in self.stage.slots[name]]
        each = zip(lanes, self.lead[name], strict=True)
        ids = torch.stack([line[:, lane, newest - (lead - self._behind)] for lane, lead in each], dim=1)
        return torch.where(ids >= self.streams[name].size, NOTHING, ids) if self._behind else ids

    def _unchosen(self, column: Column, given: Tensor | None) -> Tensor | None:
        """Ids for the lanes of a column, in which what is going to be heard needs no choice (it is 0 until then)."""
        name = self.interaction.hears
        if name not in self.filled:
            return given
        given = torch.full_like(column.stream, NOTHING) if given is None else given.clone()
        given[:, self.stage.lanes(name, given.device)] = 0
        return given

    def _forced(
        self, forced: Mapping[str, Tensor], thresholds: Tensor | None, like: Tensor
    ) -> tuple[Tensor | None, dict[str, Rule]]:
        """Ids for the lanes of a column, as `like` [rows, lanes], and rules for its streams."""
        if not forced:
            return None, {}
        ids = torch.full_like(like, NOTHING)
        rules: dict[str, Rule] = {}
        for name, values in forced.items():
            if name == self.interaction.writes and thresholds is not None:
                rules[name] = partial(scripted, values[:, 0], thresholds, self.pad)
            else:
                ids[:, self.stage.lanes(name)] = values
        return ids, rules

    # -- whole streams --

    def complete(self, cells: Cells, task: str | None = None) -> Cells:
        """All streams as long as the longest, as the clock has them: they hear silence, say nothing, are silent. (Not
        in a task with a layout of its own, which has no clock.)"""
        cells = super().complete(cells)
        if task in self.layouts and task is not None:
            return cells
        ends = {name: self._frames(name, lengths) for name, lengths in cells.lengths.items()}
        frames = torch.stack(list(ends.values())).amax(0)
        longest = int(frames.max())
        values, given = dict(cells.values), dict(cells.frames)
        for name, stream in self.streams.items():
            missing = frames > ends[name]
            if not bool(missing.any()):
                continue
            rest = self._rest(name, longest)
            if stream.width is not None:
                inside = torch.arange(longest, device=frames.device) < ends[name][:, None]
                mine = torch.zeros(len(frames), longest, stream.width, device=frames.device)
                if name in given:
                    mine[:, : given[name].shape[1]] = given[name][:, :longest]
                given[name] = torch.where(inside[..., None], mine, rest)
            else:
                inside = torch.arange(longest, device=frames.device) < ends[name][:, None]
                ids = torch.nn.functional.pad(values[name], (0, longest - values[name].shape[2]))
                values[name] = torch.where(inside[:, None], ids, rest[:, None])
        return replace(cells, values=values, frames=given, lengths=dict.fromkeys(cells.lengths, frames))

    def forward(
        self,
        cells: Cells,
        task: str | None = None,
        known: Mapping[str, Tensor] | None = None,
        pack: int | None = None,
    ) -> dict[str, Prediction]:
        """As `TokenSystem.forward`; what completes a stream has no loss."""
        longest = max(int(lengths.max()) for lengths in cells.lengths.values())
        known = {
            name: mask if mask.dim() == 1 else torch.nn.functional.pad(mask, (0, longest - mask.shape[1]), value=True)
            for name, mask in (known or {}).items()
        }
        return super().forward(cells, task, known, pack)

    @torch.inference_mode()
    def _rest(self, name: str, frames: int) -> Tensor:
        """What stands in a stream where nothing happens: frames [T, width] of silence, or ids [levels]."""
        stream, device = self.streams[name], next(self.parameters()).device
        if stream.width is not None:
            return self.encoder(torch.zeros(1, frames * self.frame_size, 1, device=device))[0]
        if stream.modality == "audio":
            return stream.tokenizer.encode(torch.zeros(1, 1, 32 * self.frame_size, device=device))[0, :, -1]
        pad = getattr(stream.tokenizer, "pad", 0)
        return torch.full((stream.spec.levels,), pad, dtype=torch.int64, device=device)

    def places(self, cells: Cells, known: Mapping[str, Tensor] | None = None, task: str | None = None) -> Places:
        """As `TokenSystem.places`. Where levels are late, cells behind the last column that all streams reach have no
        loss: when they are said, the stream goes on, and here it has ended."""
        places = super().places(cells, known, task)
        if task in self.layouts and task is not None:
            return places
        frames = torch.stack(list(cells.lengths.values())).amax(0)
        whole = places.column < frames[:, None] + self.first
        return replace(places, loss=places.loss * whole)

    def prompt(self, values: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """A prompt as it is fed: samples [frames, frame_size] that it hears, and ids [levels, frames] of the others."""
        ids: dict[str, Tensor] = {}
        samples = torch.zeros(0)
        for name, value in values.items():
            where = f"prompt: '{name}'"
            if name == self.interaction.hears:
                from vivavoce.systems.codec_model import mono_samples

                samples = torch.from_numpy(mono_samples(value, self.sample_rate, where))
            elif name in self.says:
                if isinstance(value, str):
                    raise RequestError(f"{where}: give ids frame by frame, {self.pad} where nothing is said")
                ids[name] = self.streams[name].values(value, where)
            else:
                takes = ", ".join([self.interaction.hears, *self.says])
                raise RequestError(f"{where}: no such stream; there are {takes}")
        frames = max([-(-len(samples) // self.frame_size), *(each.shape[1] for each in ids.values())])
        heard = torch.nn.functional.pad(samples, (0, frames * self.frame_size - len(samples)))
        return heard.view(frames, self.frame_size), ids

    # -- text --

    @property
    def vocabularies(self) -> dict[str, Any]:
        """Tokenizers of text, by stream."""
        return {name: stream.tokenizer for name, stream in self.streams.items() if stream.modality == "text"}

    @property
    def pad(self) -> int:
        """The id for "nothing is said" in the text that the model writes."""
        return int(getattr(self.vocabularies.get(self.interaction.writes or ""), "pad", 0))

    def text_of(self, tokens: Mapping[str, list[int]], role: str) -> str:
        """The text that a step's tokens carry in the stream of `role` (writes, transcribes), "" for none."""
        name = getattr(self.interaction, role)
        return self.vocabularies[name].text(tokens[name]) if name is not None else ""

    def script(self, text: str | Sequence[int]) -> list[int]:
        """Ids of the words of `text`, one behind another; ids are checked."""
        if isinstance(text, str):
            return [i for word in self.spoken(text) for i in word]
        words = self.vocabularies[self.interaction.writes or ""]
        ids = [int(i) for i in text]
        if bad := [i for i in ids if not 0 <= i < len(words)]:
            raise RequestError(f"text: id {bad[0]}: the vocabulary has 0 to {len(words) - 1}, {self.pad} for nothing")
        return ids

    def spoken(self, text: str) -> list[list[int]]:
        """Ids of each word of `text`, those of a word in consecutive frames."""
        return self.vocabularies[self.interaction.writes or ""].spoken(text)


def begins_with_them(
    stage: Stage, interaction: Interaction, streams: Mapping[str, TokenStream], where: str
) -> bool:
    """Whether filled cells stand in the first column, before anything is heard; `RecipeError` where they stand earlier
    than what is heard, which has to begin in that column."""
    if stage.layout is None:
        raise RecipeError(f"{where}.layout: a full-duplex stage has one, on the frame clock")
    specs = [stream.spec for stream in streams.values()]
    delays = build_layout(stage.layout.model_dump(), specs).delays
    if min(delays[interaction.hears], default=1) != 0:
        raise RecipeError(f"{where}.layout.delays: '{interaction.hears}' is heard without delay: its first level has 0")
    return any(delay == 0 for name in stage.heads if name != interaction.hears for delay in delays[name])


def scripted(words: Tensor, thresholds: Tensor, pad: int, logits: Tensor, level: int, index: Tensor) -> Tensor:
    """A rule of text under scripts: logits [rows, vocabulary] that leave the word that is next, or `pad`, alone.

    A word comes where the probability of a word, 1 - P(pad), reaches its threshold [rows]. A row is free where words
    [rows] is negative.
    """
    due = (1 - logits.float().softmax(-1)[:, pad] >= thresholds) | (thresholds <= 0)
    said = torch.where(due, words, pad).clamp(min=0)
    only = torch.full_like(logits, -torch.inf).scatter(1, said[:, None], 0.0)
    return torch.where((words < 0)[:, None], logits, only)

"""A full-duplex system in lockstep: encoder -> columns -> backbone -> heads -> decoder, all state in one tree.

Step c hears frame c of the given stream, completes column c with what was chosen before, and chooses the filled cells
that the layout puts into column c + 1: cell c of every filled stream (they are one column later than what is heard).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError, RequestError
from vivavoce.lm.decoding import cells_of
from vivavoce.lm.embeddings import NOTHING
from vivavoce.lm.grid import Prediction
from vivavoce.lm.rules import Rule
from vivavoce.nn.streaming import State, Streaming
from vivavoce.schema import Interaction, Stage
from vivavoce.systems.token_streams import TokenStream
from vivavoce.systems.token_system import Cells, TokenSystem


@dataclass
class Spoken:
    """One step of all rows: audio [rows, frame_size], tokens stream -> ids [rows, levels]."""

    audio: Tensor
    tokens: dict[str, Tensor]


class DuplexSystem(TokenSystem):
    """A token system whose columns come with the clock: one encoder for what it hears, one codec for what it says.

    A cell that a stream does not have, at the very beginning, is a blank: an id of its own, behind the stream's others.
    """

    encoder: Streaming
    codec: Any

    def __init__(
        self, interaction: Interaction, stage: Stage, streams: Mapping[str, TokenStream], where: str = "stage"
    ):
        hears, speaks = streams[interaction.hears], streams[interaction.speaks]
        if not isinstance(getattr(hears.encoder, "module", None), Streaming):
            raise RecipeError(f"{where}: '{interaction.hears}' is heard while it comes: its encoder has to stream")
        if speaks.modality != "audio":
            raise RecipeError(f"{where}: '{interaction.speaks}' is spoken: its tokenizer has to be a codec")
        blanks = {
            name: stream if stream.width is not None else replace(stream, spec=replace(stream.spec, blank=stream.size))
            for name, stream in streams.items()
        }
        parts = {"encoder": hears.encoder.module, "codec": speaks.tokenizer}
        super().__init__(stage, blanks, parts, where, begin=False, std=0.02 * len(streams) ** -0.5)
        self.interaction, self.sample_rate = interaction, int(hears.encoder.sample_rate)
        self.frame_size = int(self.encoder.hop)
        delays = self.layout.delays
        late = delays[interaction.hears][0] + 1
        if any(delay != late for name in self.filled for delay in delays[name]):
            raise RecipeError(f"{where}.layout.delays: what a full-duplex stage fills stands {late} columns late")

    # -- one frame --

    def initial_state(self, rows: int, seeds: Tensor) -> State:
        """State of `rows` conversations that have heard nothing."""
        generator = self.generator()
        column, stage = generator.look(generator.start(rows, seeds=seeds))
        return State(
            encoder=self.encoder.initial_state(rows),
            stage=stage,
            column=cells_of(column, generator.choose(column, stage)),
            decoder=self.codec.decoder_state(rows),
            emitted=torch.zeros_like(seeds),
        )

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
        lengths, steps = (None, None) if everybody else (one * self.frame_size, one)
        after = State(emitted=one)
        heard, after["encoder"] = self.encoder.step(frames[..., None], state["encoder"], lengths)
        if heard.shape[1] == 0:  # nobody is active
            heard = heard.new_zeros(frames.shape[0], 1, heard.shape[2])
        generator = self.generator()
        given = {self.interaction.hears: heard[:, 0]}
        stage = generator.read(state["column"], state["stage"], given, some, consume=True)
        column, stage = generator.look(stage, some)
        values = generator.choose(column, stage, *self._forced(forced or {}, thresholds, column.stream))
        cells = cells_of(column, values)
        after["stage"], after["column"] = stage, cells if everybody else state["column"].where(active, cells)
        chosen = {name: values[:, self.stage.lanes(name)] for name in self.filled}
        codes = torch.where(active[:, None], chosen[self.interaction.speaks], 0)
        wave, after["decoder"] = self.codec.decode_step(codes[..., None], state["decoder"], steps)
        return Spoken(wave[:, 0], chosen), after

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
                rules[name] = partial(scripted, values[:, 0], thresholds)
            else:
                ids[:, self.stage.lanes(name)] = values
        return ids, rules

    # -- whole streams --

    def complete(self, cells: Cells) -> Cells:
        """All streams as long as the longest, as the clock has them: they hear silence, say nothing, are silent."""
        cells = super().complete(cells)
        frames = torch.stack(list(cells.lengths.values())).amax(0)
        longest = int(frames.max())
        values, given = dict(cells.values), dict(cells.frames)
        for name, stream in self.streams.items():
            missing = frames > cells.lengths[name]
            if not bool(missing.any()):
                continue
            rest = self._rest(name, longest)
            if stream.width is not None:
                inside = torch.arange(longest, device=frames.device) < cells.lengths[name][:, None]
                mine = torch.zeros(len(frames), longest, stream.width, device=frames.device)
                if name in given:
                    mine[:, : given[name].shape[1]] = given[name][:, :longest]
                given[name] = torch.where(inside[..., None], mine, rest)
            else:
                inside = torch.arange(longest, device=frames.device) < cells.lengths[name][:, None]
                ids = torch.nn.functional.pad(values[name], (0, longest - values[name].shape[2]))
                values[name] = torch.where(inside[:, None], ids, rest[:, None])
        return replace(cells, values=values, frames=given, lengths=dict.fromkeys(cells.lengths, frames))

    def forward(
        self, cells: Cells, task: str | None = None, known: Mapping[str, Tensor] | None = None
    ) -> dict[str, Prediction]:
        """As `TokenSystem.forward`; what completes a stream has no loss."""
        longest = max(int(lengths.max()) for lengths in cells.lengths.values())
        known = {
            name: torch.nn.functional.pad(mask, (0, longest - mask.shape[1]), value=True)
            for name, mask in (known or {}).items()
        }
        return super().forward(cells, task, known)

    @torch.inference_mode()
    def _rest(self, name: str, frames: int) -> Tensor:
        """What stands in a stream where nothing happens: frames [T, width] of silence, or ids [levels]."""
        stream, device = self.streams[name], next(self.parameters()).device
        if stream.width is not None:
            return self.encoder(torch.zeros(1, frames * self.frame_size, 1, device=device))[0]
        if stream.modality == "audio":
            return self.codec.encode(torch.zeros(1, 1, 32 * self.frame_size, device=device))[0, :, -1]
        return torch.zeros(stream.spec.levels, dtype=torch.int64, device=device)

    def prompt(self, values: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """A prompt as it is fed: samples [frames, frame_size] that it hears, and ids [levels, frames] of the others."""
        ids: dict[str, Tensor] = {}
        samples = torch.zeros(0)
        for name, value in values.items():
            where = f"prompt: '{name}'"
            if name == self.interaction.hears:
                from vivavoce.systems.codec_model import mono_samples

                samples = torch.from_numpy(mono_samples(value, self.sample_rate, where))
            elif name in self.filled:
                if isinstance(value, str):
                    raise RequestError(f"{where}: give ids frame by frame, 0 where nothing is said")
                ids[name] = self.streams[name].values(value, where)
            else:
                takes = ", ".join([self.interaction.hears, *self.filled])
                raise RequestError(f"{where}: no such stream; there are {takes}")
        frames = max([-(-len(samples) // self.frame_size), *(each.shape[1] for each in ids.values())])
        heard = torch.nn.functional.pad(samples, (0, frames * self.frame_size - len(samples)))
        return heard.view(frames, self.frame_size), ids

    # -- text --

    @property
    def vocabularies(self) -> dict[str, Any]:
        """Tokenizers of text, by stream."""
        return {name: stream.tokenizer for name, stream in self.streams.items() if stream.modality == "text"}

    def text_of(self, tokens: Mapping[str, list[int]], role: str) -> str:
        """The text that a step's tokens carry in the stream of `role` (writes, transcribes), "" for none."""
        name = getattr(self.interaction, role)
        return self.vocabularies[name].text(tokens[name]) if name is not None else ""

    def script(self, text: str | Sequence[int]) -> list[int]:
        """Ids of the words of `text`; ids are checked."""
        words = self.vocabularies[self.interaction.writes or ""]
        if isinstance(text, str):
            return words.encode(text)
        ids = [int(i) for i in text]
        if bad := [i for i in ids if not 0 <= i < len(words)]:
            raise RequestError(f"text: id {bad[0]}: the vocabulary has 0 (nothing) to {len(words) - 1}")
        return ids


def scripted(words: Tensor, thresholds: Tensor, logits: Tensor, level: int, index: Tensor) -> Tensor:
    """A rule of text under scripts: logits [rows, vocabulary] that leave the word that is next, or pad (0), alone.

    A word comes where the probability of a word, 1 - P(pad), reaches its threshold [rows]. A row is free where words
    [rows] is negative.
    """
    due = (1 - logits.float().softmax(-1)[:, 0] >= thresholds) | (thresholds <= 0)
    only = torch.full_like(logits, -torch.inf).scatter(1, torch.where(due, words, 0).clamp(min=0)[:, None], 0.0)
    return torch.where((words < 0)[:, None], logits, only)

"""A full-duplex system in lockstep: encoder -> columns -> backbone -> heads -> decoder, all state in one tree.

Step c hears frame c of the given stream, completes column c with what was chosen before, and chooses the filled cells
that the layout puts into column c + 1: cell c of every filled stream (their delays are one column).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivavoce.codecs import Codec
from vivavoce.errors import RequestError
from vivavoce.lm.sampling import Sampling, sample
from vivavoce.nn.streaming import State, Streaming
from vivavoce.schema import Interaction
from vivavoce.systems.stage import Stage
from vivavoce.tokenizers.words import WordVocabulary


@dataclass
class Spoken:
    """One step of all rows: audio [rows, frame_size], tokens stream -> ids [rows, levels]."""

    audio: Tensor
    tokens: dict[str, Tensor]


class DuplexSystem(nn.Module):
    """Joins the parts of a full-duplex recipe: one encoder for what it hears, one stage, one codec for what it says."""

    def __init__(
        self,
        interaction: Interaction,
        encoder: Streaming,
        stage: Stage,
        codec: Codec,
        vocabularies: Mapping[str, WordVocabulary],
        sampling: Mapping[str, Sampling],
        sample_rate: int,
    ):
        super().__init__()
        self.interaction = interaction
        self.encoder: Streaming = encoder
        self.stage: Stage = stage
        self.codec: Codec = codec
        self.vocabularies, self.sampling = dict(vocabularies), dict(sampling)
        self.sample_rate = sample_rate
        self.frame_size = int(encoder.hop)

    def initial_state(self, rows: int, seeds: Tensor) -> State:
        """State of `rows` conversations that have heard nothing."""
        state = State(
            encoder=self.encoder.initial_state(rows),
            backbone=self.stage.backbone.initial_state(rows),
            decoder=self.codec.decoder_state(rows),
            seed=seeds.clone(),
            counter=torch.zeros(rows, dtype=torch.int64),
        )
        for name in self.stage.filled:
            blank = torch.full((rows, self.stage.shapes[name].levels), -1, dtype=torch.int64)
            state[f"last_{name}"] = blank
        state["emitted"] = torch.zeros(rows, dtype=torch.int64)
        return state

    def step(
        self, frames: Tensor, state: State, active: Tensor, forced: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Spoken, State]:
        """frames [rows, frame_size]; `forced`: text, see `scripted`. Rows that are not active are held.

        `state` is used up: its rings of keys and values become the next state's.
        """
        one = active.long()
        everybody = bool(active.all())  # then no part needs to look at single rows
        lengths, steps = (None, None) if everybody else (one * self.frame_size, one)
        after = State(seed=state["seed"], counter=state["counter"] + one, emitted=one)
        heard, after["encoder"] = self.encoder.step(frames[..., None], state["encoder"], lengths)
        if heard.shape[1] == 0:
            heard = heard.new_zeros(frames.shape[0], 1, heard.shape[2])
        cells: dict[str, Tensor] = {self.interaction.hears: heard}
        for name in self.stage.filled:
            cells[name] = state[f"last_{name}"][..., None]
        columns = self.stage.embed(cells)
        hidden, after["backbone"] = self.stage.backbone.step(columns, state["backbone"], steps, consume=True)
        chosen = self._choose(hidden[:, 0], state, forced)
        for name, ids in chosen.items():
            after[f"last_{name}"] = ids if everybody else torch.where(active[:, None], ids, state[f"last_{name}"])
        codes = chosen[self.interaction.speaks][..., None]
        wave, after["decoder"] = self.codec.decode_step(codes, state["decoder"], steps)
        return Spoken(wave[:, 0], chosen), after

    def _choose(self, hidden: Tensor, state: State, forced: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
        """Fill the next column: hidden [rows, width] -> stream -> ids [rows, levels]."""
        chosen: dict[str, Tensor] = {}
        draw = 0
        for name in self.stage.filled:
            levels = self.stage.shapes[name].levels

            def pick(level: int, logits: Tensor, name: str = name, base: int = draw) -> Tensor:
                counter = state["counter"] * 64 + base + level
                return sample(logits, self.sampling[name], state["seed"], counter)

            if name in self.stage.linear:
                logits = [head(hidden) for head in self.stage.linear[name]]
                ids = [pick(k, level) for k, level in enumerate(logits)]
                if forced is not None and name == self.interaction.writes:
                    ids[0] = scripted(logits[0], ids[0], *forced)
                chosen[name] = torch.stack(ids, dim=1)
            else:
                after = self.stage.after[name]
                prefix = chosen[after][:, 0] if after else None
                chosen[name] = self.stage.depth[name].generate(hidden, pick, prefix)
            draw += levels
        return chosen

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


def scripted(logits: Tensor, free: Tensor, words: Tensor, thresholds: Tensor) -> Tensor:
    """Text ids [rows] under scripts: the word that is next, or pad (0); `free` [rows] where words [rows] is negative.

    A word comes where the probability of a word, 1 - P(pad) by logits [rows, vocabulary], reaches its threshold [rows].
    """
    due = (1 - logits.float().softmax(-1)[:, 0] >= thresholds) | (thresholds <= 0)
    return torch.where(words < 0, free, torch.where(due, words, 0))

"""Next-token training of a stage on conversations: weighted cross entropy per stream, the encoder included."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.data.conversations import Conversation
from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.errors import RecipeError
from vivavoce.layouts import Places
from vivavoce.lm.grid import GridLM, Prediction, Read
from vivavoce.training.objectives import stream_losses
from vivavoce.training.show_batch import Grid, cell_weights, grid_lines
from vivavoce.training.task import Task, share, step_seed


class ConversationTask(Task):
    """Train `encoder` and `stage` to fill `streams` of simulated conversations.

    loss_weights: stream -> weight, or one weight a level. `pad_weight`: weight of a frame in which a text stream says
    nothing against one with a word, for all or by stream. The voice is learned on a share `voice_frames` of the frames
    that sound, at random, and on as many of all: its depth transformer costs most there and needs them least. texts:
    tokenizers of text streams, for those who look at batches.
    """

    def __init__(
        self,
        name: str,
        encoder: CausalMelEncoder,
        stage: GridLM,
        conversations: Callable[[int], Conversation],
        streams: Sequence[str],
        batch_size: int,
        loss_weights: Mapping[str, float | Sequence[float]] | None = None,
        pad_weight: float | Mapping[str, float] = 0.5,
        seed: int = 0,
        held_out: Callable[[int], Conversation] | None = None,
        mask: float = 0.5,
        voice_frames: float = 1.0,
        texts: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.encoder: CausalMelEncoder = encoder
        self.stage: GridLM = stage
        self.conversations, self.held_out = conversations, held_out
        self.streams, self.batch_size = tuple(streams), batch_size
        self.loss_weights, self.seed, self.mask = dict(loss_weights or {}), seed, mask
        if isinstance(pad_weight, int | float):
            pad_weight = dict.fromkeys(self.streams, float(pad_weight))
        self.pad_weight = dict(pad_weight)
        self.voice_frames, self.texts = voice_frames, dict(texts or {})
        unknown = [stream for stream in self.streams if stream not in stage.filled]
        if unknown:
            known = ", ".join(stage.filled)
            raise RecipeError(f"training.{name}.objective.streams: no '{unknown[0]}' is filled; there is {known}")
        for place, named in (("objective.pad_weight", self.pad_weight), ("loss_weights", self.loss_weights)):
            unknown = sorted(set(named) - set(self.streams))
            if unknown:
                raise RecipeError(f"training.{name}.{place}: {', '.join(unknown)} is not trained")
        for stream, weight in self.loss_weights.items():
            levels = len(stage.slots[stream])
            if isinstance(weight, Sequence) and len(weight) != levels:
                raise RecipeError(f"training.{name}.loss_weights.{stream}: {len(weight)} weights for {levels} levels")

    def modules(self):
        return {"encoder": self.encoder, "stage": self.stage}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rows = share(self.batch_size, rank, world)
        return collate([self.conversations(step * self.batch_size + row) for row in rows])

    def loss(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        read = self.read(batch, masked=True)
        losses: dict[str, Tensor] = {}
        total = read.hidden.new_zeros(())
        for stream in self.streams:
            loss = self.stream_loss(stream, read, batch["decided"])
            losses[stream] = loss.detach()
            weight = self.loss_weights.get(stream, 1.0)
            total = total + loss * (weight if isinstance(weight, int | float) else 1.0)
        return {"loss": total, **losses}

    def read(self, batch: Mapping[str, Tensor], masked: bool = False) -> Read:
        """The conversations, read by the stage: column c + 1 holds the filled cells of frame c."""
        power = batch["user"]
        if masked:
            power = hide_bands(power, self.mask)
        user = self.encoder.from_power(power)
        places, values = self.placed(batch)
        return self.stage.read(places.to(user.device), values, {"user": user})

    def placed(self, batch: Mapping[str, Tensor]) -> tuple[Places, dict[str, Tensor]]:
        """Where the conversations' cells stand, and those of token streams."""
        values = {name: batch[name] for name in self.stage.filled if name in self.streams or name != "voice"}
        frames = torch.full(batch["heard"].shape[:1], batch["heard"].shape[2])
        lengths = {name: frames if name in values else frames * 0 for name in self.stage.filled}
        return self.stage.layout.place({"user": frames, **lengths}), values

    def show(self, batch: Mapping[str, Tensor]) -> list[str]:
        lines = grid_lines(self.grids(batch)[0][1])
        if "voice" in self.streams and self.voice_frames < 1:
            share = f"{self.voice_frames:.0%}"
            lines.append(f"of the voice's columns that sound, {share} are learned, drawn anew each step")
        return lines

    def grids(self, batch: Mapping[str, Tensor]) -> list[tuple[str, Grid]]:
        """Where the cells of the rows stand and what of them is scored; of the one task that there is."""
        places, values = self.placed(batch)
        weights = cell_weights(places, {name: self.loss_weights.get(name, 1.0) for name in self.streams})
        rows = torch.arange(len(weights))[:, None].expand_as(weights)
        for name in self.stage.filled:
            here = places.stream == places.number(name)
            if name not in self.streams:
                weights[here] = 0.0
            elif name != "voice":
                index = places.index[here]
                pads = torch.where(values[name][rows[here], 0, index] > 0, 1.0, self.pad_weight.get(name, 0.5))
                decided = batch["decided"][rows[here], index] if name == "text" else torch.ones_like(pads)
                weights[here] *= pads * decided
        if places.stream.numel():
            weights[places.column == 0] = 0.0  # nothing comes before it
        return [("duplex", Grid(places, values, weights, self.texts))]

    def stream_loss(self, stream: str, read: Read, decided: Tensor) -> Tensor:
        """Weighted mean cross entropy of a stream's cells (nats a cell)."""
        levels = self.loss_weights.get(stream, 1.0)
        weights = {stream: levels} if isinstance(levels, list | tuple) else None
        if stream == "voice":
            draw = torch.rand(2, *read.codes["voice"].shape[:2], device=read.hidden.device)
            where = self.sounding(read) & (draw[0] < self.voice_frames)
            some = draw[1] < where[:, 1:].float().mean().clamp(min=0.02)
            found = self.stage.predict(stream, read, where | (some & read.loss[stream][..., 0]))
            return stream_losses({stream: found}, weights, mean="streams").total
        found = self.words(stream, read)
        weight = torch.where(found.targets[:, 0] > 0, 1.0, self.pad_weight.get(stream, 0.5))
        if stream == "text":
            weight = weight * decided.flatten()
        return stream_losses({stream: found}, weights, {stream: weight}, "streams").total

    def words(self, stream: str, read: Read) -> Prediction:
        """The prediction of a stream of words in all its cells [B * T]."""
        return self.stage.predict(stream, read, read.loss[stream][..., 0])

    @staticmethod
    def sounding(read: Read) -> Tensor:
        """[B, C] bool: does the voice sound in a column? It is silent in the first that it has, column 1."""
        codes = read.codes["voice"]
        return (codes != codes[:, 1:2]).any(-1) & (codes[..., 0] >= 0)

    def evaluate(self, step: int) -> dict[str, float]:
        """Teacher-forced accuracy on held-out conversations: of words where one is due, and of silence elsewhere."""
        if self.held_out is None:
            return {}
        device = next(self.stage.parameters()).device
        batch = {name: cells.to(device) for name, cells in collate([self.held_out(i) for i in range(64)]).items()}
        read = self.read(batch)
        figures: dict[str, float] = {}
        for stream in self.streams:
            if stream == "voice":
                found = self.stage.predict(stream, read, self.sounding(read))
                right = torch.stack([level.argmax(-1) for level in found.logits], 1) == found.targets
                figures["voice_accuracy"] = float(right.float().mean())
                figures["voice_first_accuracy"] = float(right[:, 0].float().mean())
                continue
            words = self.words(stream, read)
            flat, goal = words.logits[0], words.targets[:, 0]
            guess = flat.argmax(-1)
            mine = torch.ones_like(goal, dtype=torch.bool)
            if stream == "text":
                mine = batch["decided"].flatten()
            due = (goal > 0) & mine
            figures[f"{stream}_words"] = float((guess == goal)[due].float().mean())
            figures[f"{stream}_pads"] = float((guess == 0)[(goal == 0) & mine].float().mean())
            if stream == "heard":
                # Which word, whenever it is said: the pad's logit left out.
                figures["heard_which"] = float((flat[:, 1:].argmax(-1) + 1 == goal)[due].float().mean())
        return figures


def collate(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
    """user [B, T * 8, bins] float32; heard, text [B, 1, T], voice [B, codebooks, T] int64; decided [B, T] bool."""
    return {
        "user": torch.from_numpy(np.stack([c.user for c in conversations])),
        "heard": torch.from_numpy(np.stack([c.heard for c in conversations]))[:, None],
        "text": torch.from_numpy(np.stack([c.text for c in conversations]))[:, None],
        "voice": torch.from_numpy(np.stack([c.voice for c in conversations])),
        "decided": torch.from_numpy(np.stack([c.decided for c in conversations])),
    }


def hide_bands(power: Tensor, chance: float) -> Tensor:
    """Mask two random bands of frequency (each up to an eighth) in a share `chance` of the rows (SpecAugment)."""
    batch, _, bins = power.shape
    gain = torch.ones(batch, bins)
    for _ in range(2):
        width = torch.randint(0, bins // 8 + 1, (batch, 1))
        start = (torch.rand(batch, 1) * (bins - width)).long()
        at = torch.arange(bins)[None]
        hidden = (at >= start) & (at < start + width) & (torch.rand(batch, 1) < chance)
        gain = torch.where(hidden, 1e-3, gain)
    return power * gain[:, None].to(power.device)


def conversation_seed(seed: int, phase: str) -> int:
    """The seed of a phase's conversations: phases never repeat each other's."""
    return step_seed(seed, phase) % 2**31

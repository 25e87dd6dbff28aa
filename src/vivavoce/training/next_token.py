"""Next-token training of a stage on conversations: weighted cross entropy per stream, the encoder included."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.data.conversations import Conversation
from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.systems.stage import Stage
from vivavoce.training.task import Task, step_seed


class ConversationTask(Task):
    """Train `encoder` and `stage` to fill `streams` of simulated conversations.

    loss_weights: stream -> weight, or one weight a level. `pad_weight`: weight of a frame in which a text stream says
    nothing against one with a word. The voice is learned on the frames that sound, and on as many silent ones.
    """

    def __init__(
        self,
        name: str,
        encoder: CausalMelEncoder,
        stage: Stage,
        conversations: Callable[[int], Conversation],
        streams: Sequence[str],
        batch_size: int,
        loss_weights: Mapping[str, float | Sequence[float]] | None = None,
        pad_weight: float = 0.5,
        seed: int = 0,
        held_out: Callable[[int], Conversation] | None = None,
        mask: float = 0.5,
    ):
        self.name = name
        self.encoder: CausalMelEncoder = encoder
        self.stage: Stage = stage
        self.conversations, self.held_out = conversations, held_out
        self.streams, self.batch_size = tuple(streams), batch_size
        self.loss_weights, self.pad_weight, self.seed, self.mask = dict(loss_weights or {}), pad_weight, seed, mask

    def modules(self):
        return {"encoder": self.encoder, "stage": self.stage}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        first = (step * world + rank) * self.batch_size
        return collate([self.conversations(first + i) for i in range(self.batch_size)])

    def loss(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        hidden, grid = self.hidden(batch, masked=True)
        losses: dict[str, Tensor] = {}
        total = hidden.new_zeros(())
        for stream in self.streams:
            loss = self.stream_loss(stream, hidden, grid, batch["decided"])
            losses[stream] = loss.detach()
            weight = self.loss_weights.get(stream, 1.0)
            total = total + loss * (weight if isinstance(weight, int | float) else 1.0)
        return {"loss": total, **losses}

    def hidden(self, batch: Mapping[str, Tensor], masked: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden columns [B, T, width] and the grid that they were made of."""
        power = batch["user"]
        if masked:
            power = hide_bands(power, self.mask)
        values: dict[str, Tensor] = {"user": self.encoder.from_power(power)}
        for stream in self.stage.filled:
            if stream in self.streams or stream != "voice":
                values[stream] = batch[stream]
        return self.stage(values)

    def stream_loss(self, stream: str, hidden: Tensor, grid: Mapping[str, Tensor], decided: Tensor) -> Tensor:
        """Weighted mean cross entropy of a stream's cells (nats a cell)."""
        if stream == "voice":
            where = self.sounding(grid[stream])
            where |= torch.rand(where.shape, device=where.device) < where.float().mean().clamp(min=0.02)
            logits, goal = self.stage.predict(stream, hidden, grid, where)
            weights = self.loss_weights.get(stream, 1.0)
            each = [F.cross_entropy(level.float(), goal[:, k], ignore_index=-1) for k, level in enumerate(logits)]
            levels = list(weights) if isinstance(weights, list | tuple) else [1.0] * len(each)
            return torch.stack([w * e for w, e in zip(levels, each)]).sum() / sum(levels)
        (flat,), goal = self.stage.predict(stream, hidden, grid)
        goal = goal[:, 0]
        weight = torch.where(goal > 0, 1.0, self.pad_weight)
        if stream == "text":
            weight = weight * decided.flatten()
        loss = F.cross_entropy(flat.float(), goal, reduction="none", ignore_index=-1)
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    @staticmethod
    def sounding(cells: Tensor) -> Tensor:
        """[B, C - 1] bool: does the voice sound in column c + 1? It is silent in the first that it has."""
        cells = cells[:, :, 1:]
        return (cells != cells[:, :, :1]).any(1)

    def evaluate(self, step: int) -> dict[str, float]:
        """Teacher-forced accuracy on held-out conversations: of words where one is due, and of silence elsewhere."""
        if self.held_out is None:
            return {}
        batch = collate([self.held_out(i) for i in range(64)])
        hidden, grid = self.hidden(batch)
        figures: dict[str, float] = {}
        for stream in self.streams:
            if stream == "voice":
                logits, goals = self.stage.predict(stream, hidden, grid, self.sounding(grid[stream]))
                right = torch.stack([level.argmax(-1) for level in logits], 1) == goals
                figures["voice_accuracy"] = float(right.float().mean())
                figures["voice_first_accuracy"] = float(right[:, 0].float().mean())
                continue
            (flat,), goals = self.stage.predict(stream, hidden, grid)
            goal, guess = goals[:, 0], flat.argmax(-1)
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

"""Supervised training of an encoder alone: each word that the user says, at the first frame by which it is heard whole.

No language model runs, so that a step costs a third of a whole system's, and every kind of word counts: lone words that
mean nothing to the system have classes of their own, which keeps them apart from those that do. The linear layer on top
serves this phase only.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.data.conversations import Conversation, frame_deciding
from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.training.next_token import hide_bands
from vivavoce.training.task import Task, share


class WordTask(Task):
    """Train `encoder` to tell the words of conversations: class 0 is no word, class i + 1 is `words[i]`.

    `known`: the words that a score is given for (all others are distractors). `wait`: seconds from the end of a word to
    its label. `pad_weight`: weight of a frame without a word against one with a word.
    """

    def __init__(
        self,
        name: str,
        encoder: CausalMelEncoder,
        conversations: Callable[[int], Conversation],
        words: Sequence[str],
        known: Sequence[str],
        batch_size: int,
        wait: float,
        pad_weight: float = 0.5,
        held_out: Callable[[int], Conversation] | None = None,
        mask: float = 0.5,
    ):
        self.name, self.encoder, self.conversations, self.held_out = name, encoder, conversations, held_out
        self.classes = {word: i + 1 for i, word in enumerate(dict.fromkeys(words))}
        self.known = torch.tensor(sorted(self.classes[word] for word in known))
        self.batch_size, self.wait, self.pad_weight, self.mask = batch_size, wait, pad_weight, mask
        self.head = nn.Linear(encoder.width, 1 + len(self.classes))

    def modules(self):
        return {"encoder": self.encoder, "word_head": self.head}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rows = share(self.batch_size, rank, world)
        return self._collate([self.conversations(step * self.batch_size + row) for row in rows])

    def _collate(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        """user [B, T * 8, bins] float32, words [B, T] int64: classes."""
        words = torch.zeros(len(conversations), len(conversations[0].heard), dtype=torch.int64)
        for row, conversation in zip(words, conversations):
            for kind, _, end, text in conversation.events:
                frame = frame_deciding(round(end * 100), self.wait)
                if kind in ("word", "other") and text in self.classes and frame < len(row):
                    row[frame] = self.classes[text]
        return {"user": torch.from_numpy(np.stack([c.user for c in conversations])), "words": words}

    def show(self, batch: Mapping[str, Tensor]) -> list[str]:
        words = {number: word for word, number in self.classes.items()}
        rows, frames = batch["words"].shape
        due = int((batch["words"] > 0).sum())
        lines = [f"{rows} rows of {frames} frames, every frame is learned: {due} with a word (weight 1), "
                 f"{rows * frames - due} without (weight {self.pad_weight:g})"]  # fmt: skip
        for row, classes in enumerate(batch["words"].tolist()):
            said = [f"{frame}:'{words[number]}'" for frame, number in enumerate(classes) if number]
            lines.append(f"row {row}: " + (" ".join(said) or "no word"))
        return lines

    def loss(self, batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        logits = self.head(self.encoder.from_power(hide_bands(batch["user"], self.mask)))
        goal = batch["words"].flatten()
        each = F.cross_entropy(logits.flatten(0, 1).float(), goal, reduction="none")
        weight = torch.where(goal > 0, 1.0, self.pad_weight)
        return {"loss": (each * weight).sum() / weight.sum()}

    def evaluate(self, step: int) -> dict[str, float]:
        """On held-out conversations, shares of frames: `words` of the known ones told where due; `false_words`, any of
        them told elsewhere, a frame early or late included; `which`, the right one of them where one is due."""
        if self.held_out is None:
            return {}
        batch = self._collate([self.held_out(i) for i in range(64)])
        logits = self.head(self.encoder.from_power(batch["user"].to(self.head.weight.device))).cpu()
        goal, guess = batch["words"], logits.argmax(-1)
        due = torch.isin(goal, self.known)
        which = self.known[logits[..., self.known].argmax(-1)]
        return {
            "words": float((guess == goal)[due].float().mean()),
            "false_words": float(torch.isin(guess, self.known)[~due].float().mean()),
            "which": float((which == goal)[due].float().mean()),
        }

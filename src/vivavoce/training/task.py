"""What the loop trains: a `Task` gives modules, batches by step number, and losses. It knows no optimizer, no disk.

A task is told the step and answers as a pure function of it. That is what makes a killed run resume bit for bit
without replaying its data: batch 10,000 is asked for, not reached.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError

MAIN = "main"


class Task:
    """Subclass it: only `name`, `modules`, `batch` and one of `loss` and `updates` must be given."""

    name: str
    counts_tokens = False  # whether `loss` says how many "tokens" it is of
    even = True  # whether all shares of a step call the networks equally often: processes that shard them must

    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained and saved, by name. A frozen helper (a teacher) need not be here, but is then not saved."""
        raise NotImplementedError

    def batch(self, step: int, rank: int, world: int) -> Any:
        """Share `rank` of `world` of the batch of `step` (from 0): a pure function of these (see `step_seed`).

        The batch of a step is the same however many share it (see `share`); with `world` 1 it is all of it.

        Runs in data workers when the phase has some: CPU tensors in dicts, lists, tuples, dataclasses.
        """
        raise NotImplementedError

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars: "loss" is minimised, the others are logged. An optional "weight" (such as the number of tokens)
        makes the loss a weighted mean over ranks and accumulated batches; without it each counts the same. Optional
        "tokens": how many it is of, summed over ranks, batches and steps."""
        raise NotImplementedError

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Updates of one step in order, as (optimizer name, losses); each is applied before the next is asked for.

        The sequence of names may depend on the step only, so that all ranks agree.
        """
        yield MAIN, self.loss(batch, step)

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        """Optimizer name -> names of the modules that it owns. The first one's modules are averaged by the EMA."""
        return {MAIN: tuple(self.modules())}

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Figures on held-out data; called in eval mode without gradients, with the averaged weights if there are."""
        return {}

    def samples(self, directory: Path, step: int) -> None:
        """Write .wav and .png files for the report into `directory`."""

    def show(self, batch: Any) -> list[str]:
        """Lines that say what a batch holds, as a person reads it, and what of it is learned."""
        from vivavoce.training.show_batch import tensor_lines

        return tensor_lines(batch)

    def state_dict(self) -> dict[str, Any]:
        """State besides the modules that a resumed run needs: a tree of tensors and JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def share(size: int, rank: int, world: int) -> range:
    """The rows of a batch of `size` that share `rank` of `world` has; `RecipeError` where they do not divide it."""
    if size % world:
        raise RecipeError(f"a batch of {size} cannot be shared by {world} processes: choose a multiple")
    return range(rank * (size // world), (rank + 1) * (size // world))


def step_seed(*numbers: int | str) -> int:
    """A seed of 63 bits that any change of any number changes: `step_seed(seed, step, rank)`."""
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random: each step does so, so that its dropout and noise depend on its number only."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)

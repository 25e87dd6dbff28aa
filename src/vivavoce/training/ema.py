"""Averaged weights: an exponential moving average beside the trained ones, saved in the same form."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vivavoce.training.sharding import local


class WeightAverage:
    """Average of the state of `modules`: shadow = decay * shadow + (1 - decay) * weights after every step.

    The first steps use min(decay, (1 + step) / (10 + step)), as TensorFlow's average does, so that a random
    beginning is forgotten. Buffers (codebooks, running statistics) are copied: they have averages of their own.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        self.modules = dict(modules)
        self.decay = decay
        self.shadow: dict[str, dict[str, Tensor]] = {
            name: {key: value.detach().clone() for key, value in module.state_dict().items()}
            for name, module in self.modules.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, module in self.modules.items():
            shadow = self.shadow[name]
            averaged = {key for key, parameter in module.named_parameters(remove_duplicate=False)}
            mine, theirs = [], []
            for key, value in module.state_dict().items():
                if key in averaged:
                    mine.append(local(shadow[key]))
                    theirs.append(local(value))
                else:
                    shadow[key].copy_(value)
            if mine:
                torch._foreach_lerp_(mine, theirs, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The modules hold the averaged weights inside, the trained ones afterwards, to the bit."""
        own = {
            name: {key: value.detach().clone() for key, value in module.state_dict().items()}
            for name, module in self.modules.items()
        }
        self._load(self.shadow)
        try:
            yield
        finally:
            self._load(own)

    def _load(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(states[name])

"""A teacher that is a moving average of its pupil, as data2vec has it (arXiv:2202.03555, section 3.2).

It shares the pupil's local half and follows only what comes behind the mask: position, norms and blocks.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_task import copied

SHARED = ("front", "projection")  # beginnings of the names of what the teacher takes from the pupil


class Teacher:
    """decays: (at first, at last, steps from one to the other, linearly). freeze: the step from which it stays as it
    is. layers: how many of its last blocks its targets are of."""

    def __init__(self, trunk: Trunk, layers: int, decays: tuple[float, float, int], freeze: int | None = None):
        if not 1 <= layers <= trunk.layers:
            raise RecipeError(f"average: {layers} of the encoder's {trunk.layers} blocks")
        first, last, steps = decays
        if not (0 <= first <= 1 and 0 <= last <= 1 and steps >= 0):
            raise RecipeError(f"decays: {tuple(decays)}: two shares and a number of steps")
        self.layers, self.decays, self.freeze = layers, (first, last, int(steps)), freeze
        self.trunk: Trunk | None = None

    def decay(self, step: int) -> float:
        """Of the average at a step."""
        first, last, steps = self.decays
        if self.freeze is not None and step >= self.freeze:
            return 1.0
        return last if step >= steps else last - (last - first) * (1 - step / steps)

    @torch.no_grad()
    def follow(self, trunk: Trunk, step: int) -> None:
        """Move a little towards the pupil; the first time, become it."""
        if self.trunk is None:
            self.trunk = copied(trunk)
            return
        decay = self.decay(step)
        if decay == 1.0:
            return
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for (name, own), pupil in zip(self.trunk.named_parameters(), trunk.parameters(), strict=True):
            if not name.startswith(SHARED):
                mine.append(own)
                theirs.append(pupil)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @torch.no_grad()
    def targets(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        """Of frames before the mask [B, T, D]: what the feed-forward parts of the last blocks give, each dimension
        brought to zero mean and unit variance over the row's own frames (instance norm), [B, T, D] each."""
        assert self.trunk is not None
        self.trunk.to(x.device)
        found = self.trunk.feedforwards(x.detach(), counts)[-self.layers :]
        return [instance_norm(each.float(), counts) for each in found]

    def state(self) -> dict[str, Tensor]:
        """Its weights, for a checkpoint."""
        return {} if self.trunk is None else {k: v.cpu() for k, v in self.trunk.state_dict().items()}

    def load(self, state: Mapping[str, Tensor], like: Trunk) -> None:
        """Take back what `state` gave, into a copy of `like`."""
        if state:
            self.trunk = copied(like)
            self.trunk.load_state_dict(dict(state))


def instance_norm(frames: Tensor, counts: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Frames [B, T, D], each dimension of zero mean and unit (biased) variance over the row's frames; 0 beyond them."""
    inside = valid(counts, frames.shape[1])[..., None]
    count = counts.clamp(min=1).view(-1, 1, 1)
    mean = (frames * inside).sum(1, keepdim=True) / count
    centred = (frames - mean) * inside
    return centred * (centred.square().sum(1, keepdim=True) / count + epsilon).rsqrt()


def squared_distance(found: Tensor, targets: Tensor) -> Tensor:
    """Mean over frames [N, D] of the squared distance, over sqrt(D) (data2vec's scale)."""
    distance: Any = F.mse_loss(found.float(), targets.float(), reduction="none").sum(-1)
    return distance.mean() / targets.shape[-1] ** 0.5 if len(targets) else found.sum() * 0

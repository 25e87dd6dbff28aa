"""A teacher that is a moving average of its pupil, as data2vec has it (arXiv:2202.03555, section 3.2) and BYOL
(arXiv:2006.07733, section 3.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_task import copied

SHARED = ("front", "projection")  # beginnings of the names of what data2vec's teacher takes from the pupil
Followed = TypeVar("Followed", bound=nn.Module)


class MovingAverage(Generic[Followed]):
    """A frozen copy of a module whose weights follow the module's own, those apart whose names begin with `shared`.

    decays: (at first, at last, steps from one to the other). curve: of the way between, `linear` or `cosine`. freeze:
    the step from which it stays as it is.
    """

    def __init__(
        self,
        decays: tuple[float, float, int],
        curve: str = "linear",
        freeze: int | None = None,
        shared: Sequence[str] = (),
    ):
        first, last, steps = decays
        if not (0 <= first <= 1 and 0 <= last <= 1 and steps >= 0):
            raise RecipeError(f"decays: {tuple(decays)}: two shares and a number of steps")
        if curve not in ("linear", "cosine"):
            raise RecipeError(f"curve: {curve!r} is neither linear nor cosine")
        self.decays, self.curve, self.freeze, self.shared = (first, last, int(steps)), curve, freeze, tuple(shared)
        self.copy: Followed | None = None

    def decay(self, step: int) -> float:
        """Of the average at a step."""
        first, last, steps = self.decays
        if self.freeze is not None and step >= self.freeze:
            return 1.0
        if step >= steps:
            return last
        gone = step / steps
        return last - (last - first) * (1 - gone if self.curve == "linear" else (1 + math.cos(math.pi * gone)) / 2)

    @torch.no_grad()
    def follow(self, module: Followed, step: int) -> None:
        """Move a little towards the module; the first time, become it."""
        if self.copy is None:
            self.copy = copied(module)
            return
        decay = self.decay(step)
        if decay == 1.0:
            return
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for (name, own), pupil in zip(self.copy.named_parameters(), module.parameters(), strict=True):
            if not name.startswith(self.shared):
                mine.append(own)
                theirs.append(pupil)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Its weights, for a checkpoint."""
        return {} if self.copy is None else {k: v.cpu() for k, v in self.copy.state_dict().items()}

    def load(self, state: Mapping[str, Tensor], like: Followed) -> None:
        """Take back what `state` gave, into a copy of `like`."""
        if state:
            self.copy = copied(like)
            self.copy.load_state_dict(dict(state))


class Teacher(MovingAverage[Trunk]):
    """A moving average of an encoder, whose last `layers` blocks give targets. shared: see `MovingAverage`; data2vec's
    teacher follows only what comes behind the mask: position, norms and blocks."""

    def __init__(
        self,
        trunk: Trunk,
        layers: int,
        decays: tuple[float, float, int],
        freeze: int | None = None,
        shared: Sequence[str] = SHARED,
    ):
        if not 1 <= layers <= trunk.layers:
            raise RecipeError(f"average: {layers} of the encoder's {trunk.layers} blocks")
        super().__init__(decays, freeze=freeze, shared=shared)
        self.layers = layers

    @property
    def trunk(self) -> Trunk | None:
        """The teacher's encoder; None before the first step."""
        return self.copy

    @torch.no_grad()
    def targets(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        """Of frames before the mask [B, T, D]: what the feed-forward parts of the last blocks give, each dimension
        brought to zero mean and unit variance over the row's own frames (instance norm), [B, T, D] each."""
        assert self.trunk is not None
        self.trunk.to(x.device)
        found = self.trunk.feedforwards(x.detach(), counts)[-self.layers :]
        return [instance_norm(each.float(), counts) for each in found]


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

"""LightHuBERT's objective: an encoder, and any part of it, tells the frames of a larger one from what it hears of the
sound (arXiv:2203.15610, sections 2.2 and 2.3)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vivavoce.encoders.base import Encoder, Trunk
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.encoders.subnets import Sizes, Space, Subnet, config_of, parameters_of, skeleton
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.schema.parts import configured, tuples
from vivavoce.training.ssl_masked_labels import scaled_gradient
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_task import Objective
from vivavoce.training.task import step_seed


class FrameDistillation(Objective):
    """Mean L1 distance, over hidden frames, of a linear map of the last frames from the mean of the teacher's last
    `average` blocks, which hear all of the sound.

    teacher: an encoder, as a recipe names it, of the learner's rate; it stays as it is. space: of `Space`; `subnets`
    parts of the learner are drawn at every step, the same on every process, and with `sandwich` the largest and the
    smallest come with them. Without it the learner is heard whole, as it is wherever it is evaluated.
    """

    def __init__(
        self,
        trunk: Trunk,
        teacher: Mapping[str, Any],
        mask: Mapping[str, Any] | None = None,
        average: int = 1,
        space: Mapping[str, Any] | None = None,
        subnets: int = 1,
        sandwich: bool = False,
        local_gradient: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(trunk, SpeechTransformer) or isinstance(trunk, Subnet):
            raise RecipeError("objective: parts can be cut out of an encoder of kind lighthubert (or hubert) alone")
        self.masking = Masking(**{"prob": 0.65, **(mask or {})})
        self.space = None if space is None else configured("space", Space, tuples(space))
        for sizes in () if self.space is None else (self.space.smallest, self.space.largest):
            config_of(trunk.config, sizes)
        if subnets < 0 or (self.space is not None and not (subnets or sandwich)):
            raise RecipeError(f"subnets: {subnets}: at least 1, or a sandwich")
        with torch.random.fork_rng(devices=[]):  # one without `source` is the same when the run goes on
            torch.manual_seed(seed)
            theirs = build_encoder(teacher).requires_grad_(False).eval()
        if (theirs.sample_rate, theirs.frame_rate) != (trunk.sample_rate, trunk.frame_rate):
            raise RecipeError(f"teacher: {theirs.frame_rate:g} frames a second of {theirs.sample_rate} Hz, the learner "
                              f"has {trunk.frame_rate:g} of {trunk.sample_rate}")  # fmt: skip
        if not 1 <= average <= theirs.layers:
            raise RecipeError(f"average: {average} of the teacher's {theirs.layers} blocks")
        self.average, self.subnets, self.sandwich, self.seed = average, subnets, sandwich, seed
        self.local_gradient = local_gradient
        object.__setattr__(self, "_teacher", theirs)  # it is no part of what is learned and kept
        self.mask_vector = nn.Parameter(torch.rand(trunk.width))
        self.head = nn.Linear(trunk.width, theirs.width, bias=False)

    @property
    def teacher(self) -> Encoder:
        """The encoder that is told."""
        return self._teacher  # type: ignore[return-value]

    def drawn(self, step: int) -> list[Sizes | None]:
        """What is heard at a step: sizes of parts, None for the whole."""
        if self.space is None or not self.training:
            return [None]
        ends: list[Sizes | None] = [self.space.largest, self.space.smallest] if self.sandwich else []
        return [*ends, *(self.space.draw(step_seed(self.seed, step, number)) for number in range(self.subnets))]

    @torch.no_grad()
    def targets(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Of waveforms [B, S]: [B, T, D]."""
        return self.teacher.to(wave.device)(wave, lengths, "all")[:, -self.average :].mean(1)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, SpeechTransformer)
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        frames = scaled_gradient(frames, self.local_gradient)
        targets = self.targets(batch["wave"], batch["lengths"]).float()
        size = min(frames.shape[1], targets.shape[1])
        mask = batch["mask"] & valid(counts.clamp(max=size), batch["mask"].shape[1])
        losses = []
        for sizes in self.drawn(step):
            y = self.heard(trunk, frames, counts, mask, sizes)
            found = F.linear(y[mask], self.head.weight[:, : y.shape[2]]).float()
            goals = targets[:, :size][mask[:, :size]]
            losses.append(F.l1_loss(found, goals) if len(goals) else y.sum() * 0)
        return {"loss": torch.stack(losses).mean(), "target_spread": targets[mask[:, :size]].std()}

    def heard(
        self, trunk: SpeechTransformer, frames: Tensor, counts: Tensor, mask: Tensor, sizes: Sizes | None
    ) -> Tensor:
        """Last frames [B, T, width] of local ones, some hidden, by a part of the encoder, or by all of it."""
        through: nn.Module = _Through(trunk if sizes is None else skeleton(trunk, sizes).train(trunk.training))
        given = (frames, counts, mask, self.mask_vector)
        if sizes is None:
            return through(*given)  # type: ignore[no-any-return]
        parts = {f"trunk.{name}": value for name, value in parameters_of(trunk, sizes).items()}
        return functional_call(through, parts, given)


class _Through(nn.Module):
    def __init__(self, trunk: SpeechTransformer):
        super().__init__()
        self.trunk = trunk

    def forward(self, frames: Tensor, counts: Tensor, mask: Tensor, vector: Tensor) -> Tensor:
        x = self.trunk.embed(self.trunk.local_norm(frames))
        return self.trunk.context(torch.where(mask[..., None], vector[: x.shape[2]].to(x.dtype), x), counts)

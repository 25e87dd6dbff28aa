"""Objectives that make speech out of noise by flow matching: of what little is told of it (SpeechFlow,
arXiv:2310.16338), of what an encoder has made of it, while it learns (UniWav, arXiv:2503.00733)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.flow_transformer import FlowNet, FlowTransformer, log_mel
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.training.ssl_clusters import OnlineClusters
from vivavoce.training.ssl_masking import grown
from vivavoce.training.ssl_task import Objective

SIGMA = 1e-5  # what is left of the noise at the end of the way


def flow_loss(net: FlowNet, frames: Tensor, told: Tensor, counts: Tensor, chances: Sequence[torch.Generator]) -> Tensor:
    """Mean squared distance of the net's velocity from that of the straight way from noise to frames [B, T, mels], over
    the valid ones, counts [B] of each row; its moment and its noise are of the row's own chance."""
    times = torch.stack([torch.rand((), generator=chance) for chance in chances]).to(frames.device)
    noise = torch.zeros(frames.shape)
    for row, count, chance in zip(noise, counts.tolist(), chances):
        row[:count] = torch.randn(count, frames.shape[2], generator=chance)
    noise = noise.to(frames)
    share = times[:, None, None].to(frames.dtype)
    noisy = (1 - (1 - SIGMA) * share) * noise + share * frames
    velocity = net(noisy, told, times, counts).float()
    apart = (velocity - (frames - (1 - SIGMA) * noise).float()).square() * valid(counts, frames.shape[1])[..., None]
    return apart.sum() / (counts.sum() * frames.shape[2]).clamp(min=1)


class MaskedFlow(Objective):
    """SpeechFlow: `flow_loss` of mel frames, of which some are told, the others are zeros there.

    drop: share of the rows that are told nothing. hidden: from and to which share of a row's frames is not told, in
    spans of at least `length`.
    """

    def __init__(
        self, trunk: Trunk, drop: float = 0.1, hidden: tuple[float, float] = (0.7, 1.0), length: int = 10
    ):
        super().__init__()
        if not isinstance(trunk, FlowTransformer):
            raise RecipeError("objective: flow matching is learned by an encoder of kind flow_transformer")
        least, most = hidden
        if not (0 <= drop < 1 and 0 < least <= most <= 1 and length >= 1):
            raise RecipeError(f"drop {drop}, hidden {list(hidden)}, length {length}: shares, from the least to the "
                              "most, and at least one frame")  # fmt: skip
        self.drop, self.hidden, self.length = drop, (least, most), length

    def told(self, frames: int, chance: torch.Generator) -> Tensor:
        """Which of `frames` are told: bool [frames]."""
        draws = torch.rand(2, generator=chance).tolist()
        share = self.hidden[0] + draws[1] * (self.hidden[1] - self.hidden[0])
        hidden = spans(frames, share, self.length, chance)
        return torch.zeros_like(hidden) if draws[0] < self.drop else ~hidden

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, FlowTransformer)
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        chances = [torch.Generator().manual_seed(seed) for seed in batch["seeds"].tolist()]
        known = [self.told(count, chance) for count, chance in zip(counts.tolist(), chances)]
        inside = torch.zeros(frames.shape[:2], dtype=torch.bool)
        for row, some in zip(inside, known):
            row[: len(some)] = some
        inside = inside.to(frames.device)
        loss = flow_loss(trunk.net, frames, frames * inside[..., None], counts, chances)
        return {"loss": loss, "told": inside.sum() / counts.sum().clamp(min=1)}


def spans(frames: int, share: float, length: int, chance: torch.Generator) -> Tensor:
    """Spans of `length` of `frames` that begin at one place after another, until they are at least `share` of them:
    bool [frames]. Where they meet they are one."""
    length, needed = min(length, frames), round(share * frames)
    order = torch.randperm(frames - length + 1, generator=chance) if frames else torch.zeros(0, dtype=torch.int64)
    low, high = 0, len(order)
    while low < high:  # the fewest that suffice
        middle = (low + high) // 2
        enough = int(grown(order[:middle], frames, length).sum()) >= needed
        low, high = (low, middle) if enough else (middle + 1, high)
    return grown(order[:low], frames, length)


class ClustersAndFlow(OnlineClusters):
    """UniWav: DinoSR's loss of the encoder, plus `weight` times `flow_loss` of a decoder that is told the encoder's
    blocks, each by a learned share of one. What is hidden from the encoder the decoder is not told either.

    decoder: sizes of `FlowNet`, `mels` bands at the encoder's frame rate. Other options: `OnlineClusters`'.
    """

    def __init__(self, trunk: Trunk, decoder: Mapping[str, Any] | None = None, weight: float = 0.25, **options: Any):
        super().__init__(trunk, **options)
        self.decoder = FlowNet(trunk.width, **(decoder or {}))
        self.weight, self.shares = weight, nn.Parameter(torch.zeros(trunk.layers + 1))

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        x, counts, mask, targets = self.asked(trunk, batch, step)
        layers = trunk.context(x, counts, "all")
        figures = self.answered(layers[:, -1][mask], targets)
        told = torch.einsum("l,bltd->btd", self.shares.softmax(0).to(layers.dtype), layers)
        hop = round(trunk.sample_rate / trunk.frame_rate)
        mel = log_mel(batch["wave"], trunk.sample_rate, hop, self.decoder.mels)[:, : x.shape[1]]
        chances = [torch.Generator().manual_seed(seed) for seed in batch["seeds"].tolist()]
        flow = flow_loss(self.decoder, zero_padding(mel, counts).to(told), told, counts, chances)
        return {**figures, "loss": figures["loss"] + self.weight * flow, "clusters": figures["loss"].detach(),
                "flow": flow.detach()}  # fmt: skip

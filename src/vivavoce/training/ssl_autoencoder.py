"""MAE-AST's objective: hidden frames from the visible ones, which alone the encoder hears (arXiv:2203.16691)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.speech_transformer import Block, SpeechTransformerConfig, through_blocks
from vivavoce.nn.positions import SinusoidalPositions
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_masking import Masking, only, put_back
from vivavoce.training.ssl_task import Objective


class MaskedAutoencoder(Objective):
    """Of hidden local frames, `reconstruction` times their mean squared distance from what one head of the decoder
    tells, plus the cross entropy of finding each among the hidden ones of its row by its product with another's.

    The encoder's blocks hear the visible frames alone, with their positions; the decoder, `layers` blocks with
    sinusoidal positions, hears these at their places and one learned vector at all others.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        layers: int = 2,
        heads: int = 12,
        hidden: int = 3072,
        reconstruction: float = 10.0,
    ):
        super().__init__()
        self.masking = Masking(**{"kind": "blocks", "prob": 0.75, "length": 1, **(mask or {})})
        config = SpeechTransformerConfig(width=trunk.width, heads=heads, hidden=hidden, position_groups=1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        self.position, self.mask_vector = SinusoidalPositions(trunk.width), nn.Parameter(torch.rand(trunk.width))
        self.told, self.found = (nn.Linear(trunk.width, trunk.local_width) for _ in range(2))
        self.reconstruction = reconstruction

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        inside = valid(counts, frames.shape[1])
        hidden = batch["mask"] & inside
        shown = inside & ~hidden
        x = trunk.embed(trunk.local_norm(frames))
        placed = trunk.place(torch.where(hidden[..., None], torch.zeros_like(x), x), counts)
        heard, some, at = only(placed, shown)
        whole = put_back(trunk.attend_some(heard, some, at[..., 0]), at, shown, self.mask_vector.to(x.dtype))
        whole = whole + self.position(torch.arange(x.shape[1], device=x.device)[None]).to(x)
        z = through_blocks(self.blocks, whole, counts, None)
        if not bool(hidden.any()):
            return {"loss": z.sum() * 0}
        distance = F.mse_loss(self.told(z[hidden]).float(), frames[hidden].float())
        losses, right = [], []
        for mine, goals, where in zip(self.found(z).float(), frames.float(), hidden):
            logits = mine[where] @ goals[where].t()
            own = torch.arange(len(logits), device=logits.device)
            losses.append(F.cross_entropy(logits, own, reduction="none"))
            right.append((logits.argmax(1) == own).float())
        contrast = torch.cat(losses).mean()
        return {
            "loss": contrast + self.reconstruction * distance,
            "contrastive": contrast.detach(),
            "distance": distance.detach(),
            "accuracy": torch.cat(right).mean(),
        }

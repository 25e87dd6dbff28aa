"""Objectives that tell the spectrum itself: of a frame to come (APC, VQ-APC), under alterations (TERA), or of hidden
frames through a codebook (DeCoAR 2.0)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.gumbel import GumbelQuantizer
from vivavoce.training.ssl_masking import Alteration, Masking
from vivavoce.training.ssl_task import Objective


class FutureFrame(Objective):
    """APC (arXiv:1904.03240): mean L1 distance of the local frame `ahead` frames later from what a linear map makes of
    the encoder's frame, which must hear the past only.

    codes: {entries, temperature} of a codebook between encoder and map, chosen by Gumbel softmax (VQ-APC,
    arXiv:2005.08392).
    """

    def __init__(self, trunk: Trunk, ahead: int = 5, codes: Mapping[str, Any] | None = None):
        super().__init__()
        if ahead < 1:
            raise RecipeError(f"ahead: {ahead}: at least 1")
        self.ahead = ahead
        options: dict[str, Any] = {"entries": 512, "temperature": 0.5, **(codes or {})}
        self.quantizer = None if codes is None else GumbelQuantizer(trunk.width, trunk.width, 1, **options)
        self.project = nn.Linear(trunk.width, trunk.local_width)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.context(trunk.embed(trunk.local_norm(frames)), counts)
        inside = valid(counts, x.shape[1])[:, self.ahead :]
        figures: dict[str, Tensor] = {}
        if self.quantizer is not None:
            chosen = self.quantizer(x, valid(counts, x.shape[1]))
            x, figures["perplexity"] = chosen.vectors, chosen.perplexity.detach()
        if not bool(inside.any()):
            return {"loss": x.sum() * 0, **figures}
        found = self.project(x[:, : -self.ahead])[inside]
        return {"loss": F.l1_loss(found.float(), frames[:, self.ahead :][inside].float()), **figures}


class AlteredFrames(Objective):
    """TERA (arXiv:2007.06028): mean L1 distance, over all that is silenced or replaced in time or in frequency, of the
    spectrum from what a head of two layers makes of the encoder's frames, which hear it altered (`Alteration`)."""

    def __init__(self, trunk: Trunk, alteration: Mapping[str, Any] | None = None):
        super().__init__()
        self.alteration = Alteration(**(alteration or {}))
        self.head = nn.Sequential(
            nn.Linear(trunk.width, trunk.width), nn.GELU(), nn.LayerNorm(trunk.width),
            nn.Linear(trunk.width, trunk.local_width),
        )  # fmt: skip

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        altered, mask = torch.zeros_like(frames), torch.zeros_like(frames, dtype=torch.bool)
        for row, (count, seed) in enumerate(zip(counts.tolist(), batch["seeds"].tolist())):
            chance = torch.Generator().manual_seed(seed)
            some, hidden = self.alteration.row(frames[row, :count].cpu(), chance)
            altered[row, :count], mask[row, :count] = some.to(frames), hidden.to(frames.device)
        x = self.head(trunk.context(trunk.embed(trunk.local_norm(altered)), counts))
        if not bool(mask.any()):
            return {"loss": x.sum() * 0}
        return {"loss": F.l1_loss(x[mask].float(), frames[mask].float()), "altered": mask.float().mean()}


class CodedFrames(Objective):
    """DeCoAR 2.0 (arXiv:2012.06659): mean L1 distance of hidden local frames from what a head of two layers makes of
    the codebook entries that the encoder's frames choose, plus `diversity` times the share of entries not in use, as
    wav2vec 2.0 has it. Hidden frames are heard as zeros.

    quantizer: groups, entries, width of `quantizers.gumbel`; temperatures: (at first, at last, factor a step).
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        quantizer: Mapping[str, Any] | None = None,
        temperatures: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        diversity: float = 0.1,
    ):
        super().__init__()
        self.masking = Masking(**(mask or {}))
        sizes: dict[str, Any] = {"groups": 2, "entries": 320, "width": trunk.width, **(quantizer or {})}
        self.quantizer = GumbelQuantizer(trunk.width, temperature=temperatures[0], **sizes)
        self.temperatures, self.diversity = temperatures, diversity
        self.head = nn.Sequential(
            nn.Linear(sizes["width"], trunk.width), nn.ReLU(), nn.Linear(trunk.width, trunk.local_width)
        )

    def before_step(self, trunk: Trunk, step: int) -> None:
        first, last, factor = self.temperatures
        self.quantizer.temperature = max(first * factor**step, last)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        inside = valid(counts, frames.shape[1])
        mask = batch["mask"] & inside
        heard = torch.where(mask[..., None], 0.0, frames)
        chosen = self.quantizer(trunk.context(trunk.embed(trunk.local_norm(heard)), counts), inside)
        size = self.quantizer.groups * self.quantizer.entries
        figures = {"perplexity": chosen.perplexity.detach()}
        if not bool(mask.any()):
            return {"loss": chosen.vectors.sum() * 0, **figures}
        distance = F.l1_loss(self.head(chosen.vectors[mask]).float(), frames[mask].float())
        loss = distance + self.diversity * (size - chosen.perplexity) / size
        return {"loss": loss, "distance": distance.detach(), **figures}

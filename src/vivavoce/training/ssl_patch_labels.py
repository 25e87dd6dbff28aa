"""BEATs' objectives: labels of hidden patches from the visible ones, and the tokenizer that makes the next iteration's
labels (arXiv:2212.09058, sections 3.2 and 3.3)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.beats import Beats, DeepBlocks
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.base import perplexity
from vivavoce.quantizers.random_projection import RandomProjectionQuantizer
from vivavoce.training.ssl_masking import Masking, only, put_back
from vivavoce.training.ssl_task import Objective, copied


def beats(trunk: Trunk) -> Beats:
    """The encoder as what it must be; `RecipeError` otherwise."""
    if not isinstance(trunk, Beats):
        raise RecipeError("objective: labels of patches are learned by an encoder of kind beats")
    return trunk


class PatchLabels(Objective):
    """Cross entropy of the labels of hidden patches. The encoder hears the visible ones alone, at their places; a
    predictor of `layers` blocks, and zeros for what is hidden, tell the labels.

    labels: `random`, of a projection and a codebook that never learn (the first iteration); `tokenizer`, of the
    encoder's own tokenizer of patches as it is when the phase begins, which stays so. codes: width, entries, seed of
    the random ones. The paper does not give the predictor's size: two blocks, as espnet's `BeatsPretrainingPredictor`.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        labels: str = "random",
        codes: Mapping[str, Any] | None = None,
        layers: int = 2,
    ):
        super().__init__()
        if labels not in ("random", "tokenizer"):
            raise RecipeError(f"objective.labels: {labels!r} is neither random nor tokenizer")
        if codes is not None and labels == "tokenizer":
            raise RecipeError("objective.codes: the tokenizer has its own")
        config = beats(trunk).config
        self.masking = Masking(**{"kind": "blocks", "prob": 0.75, "length": 1, "adjust": 0.0, **(mask or {})})
        self.quantizer: RandomProjectionQuantizer | None = None
        if labels == "random":
            size = {"entries": 1024, "width": 256, **(codes or {})}
            self.quantizer = RandomProjectionQuantizer(trunk.local_width, **size)
            entries = self.quantizer.entries
        else:
            if not config.codes:
                raise RecipeError("objective.labels: this encoder has no tokenizer of patches: give it `codes`")
            entries = config.codes
            object.__setattr__(self, "tokenizer", copied(trunk))
        self.predictor, self.norm = DeepBlocks(config, layers), nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, entries)

    @torch.no_grad()
    def told(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Labels [B, T] of local frames [B, T, C]."""
        if self.quantizer is not None:
            return self.quantizer(frames)[:, 0]
        return beats(self.tokenizer).to(frames.device).codes(frames, counts)  # type: ignore[arg-type]

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        labels = self.told(frames, counts)
        inside = valid(counts, frames.shape[1])
        hidden = batch["mask"] & inside
        shown = inside & ~hidden
        x = trunk.embed(frames)
        placed = trunk.place(torch.where(hidden[..., None], torch.zeros_like(x), x), counts)
        heard, some, at = only(placed, shown)
        y = trunk.attend_some(heard, some, at[..., 0])
        z = self.predictor(put_back(y, at, shown, y.new_zeros(y.shape[2])), counts)
        logits, goals = self.head(self.norm(z[hidden])).float(), labels[hidden]
        used = torch.bincount(goals, minlength=logits.shape[1]).float()
        return {
            "loss": F.cross_entropy(logits, goals) if len(goals) else z.sum() * 0,
            "accuracy": (logits.argmax(-1) == goals).sum() / max(len(goals), 1),
            "perplexity": perplexity(used),
        }


class PatchTokenizer(Objective):
    """The encoder learns, with its tokenizer of patches, to be told by its codes: an estimator of `layers` blocks makes
    of these what the encoder as it was when the phase began gives of the same patches.

    The loss is minus the cosine of both, and the mean squared distance of the mapped patches from their entries,
    weighed by `commitment`; entries are moving averages. `fresh: true`: the encoder that learns begins anew.
    """

    def __init__(self, trunk: Trunk, layers: int = 3, commitment: float = 1.0):
        super().__init__()
        config = beats(trunk).config
        if not config.codes:
            raise RecipeError("objective: this encoder has no tokenizer of patches: give it `codes`")
        self.commitment = commitment
        object.__setattr__(self, "teacher", copied(trunk))
        self.widen = nn.Linear(config.code_width, config.width)
        self.estimator, self.norm = DeepBlocks(config, layers), nn.LayerNorm(config.width)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        tokenizer = beats(trunk).tokenizer
        assert tokenizer is not None
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        inside = valid(counts, frames.shape[1])
        with torch.no_grad():
            teacher = beats(self.teacher).to(frames.device)  # type: ignore[arg-type]
            goals = teacher.context(teacher.embed(frames), counts)[inside]
        y = trunk.context(trunk.embed(frames), counts)
        quantized, codes, distance = tokenizer(y[inside])
        x = y.new_zeros(*y.shape[:2], self.widen.out_features)
        x[inside] = self.widen(quantized).to(x.dtype)
        cosine = F.cosine_similarity(self.norm(self.estimator(x, counts)[inside]).float(), goals.float(), dim=-1).mean()
        used = torch.bincount(codes, minlength=tokenizer.codebook.size).float()
        return {
            "loss": self.commitment * distance - cosine,
            "cosine": cosine.detach(),
            "distance": distance.detach(),
            "perplexity": perplexity(used),
        }

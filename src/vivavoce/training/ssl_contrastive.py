"""wav2vec 2.0's objective: among a hidden frame's own quantized vector and others of its utterance, tell its own
(arXiv:2006.11477, section 3.2); and w2v-BERT's, which asks for its code too."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.data.augment import check
from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.gumbel import Chosen, GumbelQuantizer
from vivavoce.training.ssl_masked_labels import mean_square, scaled_gradient
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_mixing import PlainAndDisguised
from vivavoce.training.ssl_task import Objective


class MaskedContrastive(PlainAndDisguised, Objective):
    """Contrastive loss of hidden frames (equation 3), plus `diversity` times the share of entries not in use (equation
    4: (G V - perplexity) / (G V)), plus `penalty` times the mean square of the local frames.

    quantizer: groups, entries, width of `quantizers.gumbel`. negatives: other hidden frames of the same row, drawn for
    each. temperatures: the quantizer's, (at first, at last, factor a step). shown: frames that are not hidden are asked
    too. disguise: as `MaskedLabels` has it; the vectors are of the plain voice.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        quantizer: Mapping[str, Any] | None = None,
        projected: int = 256,
        negatives: int = 100,
        temperature: float = 0.1,
        temperatures: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        diversity: float = 0.1,
        penalty: float = 10.0,
        local_gradient: float = 0.1,
        shown: bool = False,
        disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if disguise is not None:
            check(disguise, "objective.disguise")
        self.shown, self.disguise = shown, disguise
        self.masking = Masking(**{"prob": 0.65, **(mask or {})})
        sizes: dict[str, Any] = {"groups": 2, "entries": 320, "width": 256, **(quantizer or {})}
        self.quantizer = GumbelQuantizer(trunk.local_width, temperature=temperatures[0], **sizes)
        self.project_target = nn.Linear(sizes["width"], projected)
        self.project = nn.Linear(trunk.width, projected)
        self.mask_vector = nn.Parameter(torch.rand(trunk.width))
        self.negatives, self.temperature, self.temperatures = negatives, temperature, temperatures
        self.diversity, self.penalty, self.local_gradient = diversity, penalty, local_gradient

    def before_step(self, trunk: Trunk, step: int) -> None:
        first, last, factor = self.temperatures
        self.quantizer.temperature = max(first * factor**step, last)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        penalty = mean_square(frames, counts)
        local = trunk.local_norm(scaled_gradient(frames, self.local_gradient))
        counts = self.heard(counts)
        inside = valid(counts, frames.shape[1])
        mask = self.heard(batch["mask"]) & inside
        x = trunk.embed(self.heard(local))
        x = torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)
        return self.judged(trunk, x, counts, self.plain(local), inside if self.shown else mask, batch["seeds"], penalty)

    def judged(
        self, trunk: Trunk, x: Tensor, counts: Tensor, local: Tensor, mask: Tensor, seeds: Tensor, penalty: Tensor
    ) -> dict[str, Tensor]:
        """What `forward` gives, of frames x [B, T, D] whose hidden ones are replaced, of those that are asked, `mask`
        [B, T], and of the normed local frames [B, T, C]."""
        return self.told_apart(trunk.context(x, counts), self.quantizer(local, mask), mask, seeds, penalty)

    def told_apart(self, x: Tensor, chosen: Chosen, mask: Tensor, seeds: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        """The losses of frames in context x [B, T, D], hidden at `mask` [B, T], and what was chosen for each."""
        targets, found = self.project_target(chosen.vectors), self.project(x)
        indices = other_hidden(mask, self.negatives, seeds)
        logits = contrast(found[mask], targets, indices, mask) / self.temperature
        contrastive = F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
        size = self.quantizer.groups * self.quantizer.entries
        unused = (size - chosen.perplexity) / size
        return {
            "loss": contrastive + self.diversity * unused + self.penalty * penalty,
            "contrastive": contrastive.detach(),
            "accuracy": (logits.argmax(-1) == 0).float().mean().detach(),
            "perplexity": chosen.perplexity.detach(),
            "local_square": penalty.detach(),
        }


class ContrastAndLabels(MaskedContrastive):
    """w2v-BERT's (arXiv:2108.06209, section 3.2): the contrast is asked of the frames behind block `middle`, and of
    those behind the last one the codes that the same quantizer gives hidden frames: cross entropy of linear heads, one
    for each group, weighed by `labels`, beside the contrastive loss and the diversity's."""

    def __init__(self, trunk: Trunk, middle: int, labels: float = 1.0, **contrastive: Any):
        quantizer = {"groups": 1, "entries": 1024, "width": 1024, **contrastive.pop("quantizer", {})}
        super().__init__(trunk, quantizer=quantizer, **contrastive)
        if not isinstance(middle, int) or not 1 <= middle < trunk.layers:
            raise RecipeError(f"middle: {middle!r}: one of the encoder's blocks 1 to {trunk.layers - 1}")
        self.middle, self.labels_weight = middle, labels
        self.heads = nn.ModuleList(nn.Linear(trunk.width, quantizer["entries"]) for _ in range(quantizer["groups"]))

    def judged(self, trunk, x, counts, local, mask, seeds, penalty):
        layers, chosen = trunk.context(x, counts, "all"), self.quantizer(local, mask)
        found = self.told_apart(layers[:, self.middle], chosen, mask, seeds, penalty)
        last, codes = layers[:, -1][mask], chosen.codes.unbind(1)
        each = [F.cross_entropy(head(last).float(), mine[mask]) for head, mine in zip(self.heads, codes)]
        told = torch.stack(each).mean() if len(last) else last.sum() * 0
        return {**found, "loss": found["loss"] + self.labels_weight * told, "labels": told.detach()}


def other_hidden(mask: Tensor, count: int, seeds: Tensor) -> Tensor:
    """For each hidden frame of mask [B, T], `count` other hidden frames of its row, drawn with replacement: their flat
    places in [B x T], int64 [hidden, count]. A row with one hidden frame only has that one."""
    found = [torch.zeros(0, count, dtype=torch.int64)]
    for row, (hidden, seed) in enumerate(zip(mask.cpu(), seeds.tolist())):
        places = hidden.nonzero()[:, 0]
        number = len(places)
        if not number:
            continue
        chance = torch.Generator().manual_seed(seed)
        draws = torch.randint(max(number - 1, 1), (number, count), generator=chance)
        if number > 1:
            draws = draws + (draws >= torch.arange(number)[:, None])
        found.append(places[draws] + row * mask.shape[1])
    return torch.cat(found).to(mask.device)


def contrast(found: Tensor, targets: Tensor, indices: Tensor, mask: Tensor) -> Tensor:
    """Cosine of what was found at each hidden frame [N, D] with its own target and with those at flat `indices`
    [N, K] of targets [B, T, D]: [N, 1 + K], float32. A negative that is the same vector as the target is -inf."""
    own, others = targets[mask], targets.flatten(0, 1)[indices]
    every = torch.cat([own[:, None], others], dim=1).float()
    logits = F.cosine_similarity(found.float()[:, None], every, dim=-1)
    same = (others == own[:, None]).all(-1)
    return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(same, float("-inf"))], dim=1)

"""Next-token objectives: cross entropy per stream and level, with masks and weights, in float32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError

Weight = float | Sequence[float]


@dataclass
class StreamLosses:
    """Cross entropies of a batch. `sums` and `counts`: stream -> [levels]; `correct`: hits of the largest logit."""

    total: Tensor  # the weighted mean that is minimised
    sums: dict[str, Tensor]  # nats, before weighting
    counts: dict[str, Tensor]
    correct: dict[str, Tensor]

    def logs(self) -> dict[str, Tensor]:
        """Means to log: "text" and "text/accuracy" of one level, "voice/0", "voice/1", … of several."""
        logs = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].clamp(min=1)
            means, hits = sums / counts, self.correct[name] / counts
            for level in range(len(means)):
                key = name if len(means) == 1 else f"{name}/{level}"
                logs[key], logs[f"{key}/accuracy"] = means[level].detach(), hits[level]
        return logs


def stream_cross_entropy(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Weight] | None = None,
    label_smoothing: float = 0.0,
) -> StreamLosses:
    """Cross entropy of named streams: logits [B, K, T, V] (or [B, T, V]), targets and masks [B, K, T] (or [B, T]).

    Within a stream the mean is over all its scored tokens, weighted by level where `weights` gives a list; the total
    is the sum of these means, times the stream's weight where it gives a number. So {"text": 1, "voice": [100, 1, …]}
    is Moshi's loss (arXiv:2410.00037, section 3.4.4): text + Σ a_k CE_k / Σ a_k. A stream without a scored token
    counts 0. Masked targets may hold any value.
    """
    masks, weights = masks or {}, weights or {}
    unknown = [name for name in weights if name not in logits]
    if unknown:
        known = ", ".join(logits)
        raise RequestError(f"loss_weights name '{unknown[0]}', which is not predicted; predicted are {known}")
    found = StreamLosses(torch.zeros(()), {}, {}, {})
    terms = []
    for name, scores in logits.items():
        target, mask = targets[name], masks.get(name)
        if scores.shape[:-1] != target.shape:
            raise RequestError(f"stream '{name}': logits {tuple(scores.shape)} for targets {tuple(target.shape)}")
        if target.dim() == 2:
            scores, target = scores[:, None], target[:, None]
            mask = mask[:, None] if mask is not None else None
        chosen = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.bool()
        kept, wanted = scores[chosen].float(), target[chosen]
        each = F.cross_entropy(kept, wanted, reduction="none", label_smoothing=label_smoothing)
        levels = target.shape[1]
        level = torch.arange(levels, device=target.device)[None, :, None].expand_as(target)[chosen]
        counts = torch.zeros(levels, device=each.device).index_add(0, level, torch.ones_like(each))
        sums = torch.zeros(levels, device=each.device).index_add(0, level, each)
        hits = (kept.argmax(-1) == wanted).float().detach()
        found.sums[name], found.counts[name] = sums, counts
        found.correct[name] = torch.zeros(levels, device=each.device).index_add(0, level, hits)
        weight = weights.get(name, 1.0)
        if isinstance(weight, Sequence):
            if len(weight) != levels:
                raise RequestError(f"loss_weights.{name}: {len(weight)} weights for {levels} levels")
            shares, scale = torch.tensor(weight, dtype=torch.float32, device=each.device), 1.0
        else:
            shares, scale = torch.ones(levels, device=each.device), float(weight)
        scored = (shares * counts).sum()
        terms.append(scale * (shares * sums).sum() / torch.where(scored == 0, torch.ones_like(scored), scored))
    found.total = torch.stack(terms).sum()
    return found

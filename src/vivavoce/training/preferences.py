"""Losses of preference: a continuation that is preferred against one that is not, of the same prompt.

    chosen = row_logprobs(predictions, rows)               # log-probabilities of whole rows, in any layout
    loss = preference_loss("dpo", chosen, rejected, reference_chosen, reference_rejected, beta=0.1)

With d = log p(chosen) - log p(rejected), the same of a reference subtracted, and beta = b:

| kind | loss | source |
|---|---|---|
| dpo | -log sigmoid(b d) | Rafailov et al., arXiv:2305.18290, equation 7 |
| ipo | (d - 1 / (2 b))^2 | Azar et al., arXiv:2310.12036, equation 17 |
| hinge | max(0, 1 - b d) | Zhao et al., arXiv:2305.10425 (SLiC); with a reference: Liu et al., arXiv:2309.06657 |
| simpo | -log sigmoid(b d - margin), d of means a token, no reference | Meng et al., arXiv:2405.14734, equation 6 |

Length-normalised, each log-probability is divided by its number of tokens: long continuations weigh no more than short
ones (of DPO: Lambert et al., arXiv:2411.15124, section 5; what SimPO always does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.lm.grid import Prediction
from vivavoce.training.objectives import Weight, level_weights, scored

KINDS = ("dpo", "ipo", "hinge", "simpo")


@dataclass
class RowLogprobs:
    """Of every row, the weighted sum of its scored tokens' log-probabilities [R] (nats), and of their weights [R]."""

    sums: Tensor
    counts: Tensor

    def of(self, normalised: bool) -> Tensor:
        """The sums, or the means a token."""
        return self.sums / self.counts.clamp(min=1e-9) if normalised else self.sums

    def __getitem__(self, rows: slice) -> "RowLogprobs":
        return RowLogprobs(self.sums[rows], self.counts[rows])


def row_logprobs(
    predictions: Mapping[str, Prediction | Sequence[Prediction]], rows: int, weights: Mapping[str, Weight] | None = None
) -> RowLogprobs:
    """Log-probabilities of whole rows, of all streams with a weight (default 1; or one a level). Raises `RequestError`
    for streams of frames: a density is no probability."""
    sums = counts = None
    for name, several in predictions.items():
        for prediction in [several] if isinstance(several, Prediction) else several:
            weight = (weights or {}).get(name, 1.0)
            levels = 1 + max(prediction.levels, default=0)
            share = level_weights(weight, levels, f"loss_weights.{name}")
            if not any(share):
                continue
            if prediction.density is not None:
                raise RequestError(f"loss_weights.{name}: a density is no probability: give it weight 0 here")
            for part in scored(prediction, share):
                nats = F.cross_entropy(part.logits, part.targets, reduction="none")
                nothing = nats.new_zeros(rows)
                one = nothing.index_add(0, part.rows, -nats * part.weights)
                mass = nothing.index_add(0, part.rows, part.weights)
                sums, counts = (one, mass) if sums is None or counts is None else (sums + one, counts + mass)
    if sums is None or counts is None:
        raise RequestError("no stream is scored: give one a weight")
    return RowLogprobs(sums, counts)


def preference_loss(
    kind: str,
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    beta: float = 0.1,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of each pair [N], of log-probabilities [N] (sums or means a token, see `RowLogprobs.of`).

    beta: how strongly it holds to the reference (less: more freely). margin: of simpo, gamma; in the unit of beta times
    a difference. label_smoothing: of dpo, the share of pairs that are taken to be the wrong way round (conservative
    DPO, arXiv:2305.18290, appendix; Mitchell 2023).
    """
    if kind not in KINDS:
        raise RequestError(f"loss '{kind}' is none of {', '.join(KINDS)}")
    difference = chosen - rejected
    if kind == "simpo":
        return -F.logsigmoid(beta * difference - margin)
    if reference_chosen is None or reference_rejected is None:
        raise RequestError(f"loss '{kind}' needs a reference; simpo does without")
    difference = difference - (reference_chosen - reference_rejected)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)).square()
    if kind == "hinge":
        return torch.relu(1 - beta * difference)
    right, wrong = F.logsigmoid(beta * difference), F.logsigmoid(-beta * difference)
    return -(1 - label_smoothing) * right - label_smoothing * wrong

"""Log-probabilities of given tokens: sums in float64 with counts, per row and level, the same in any batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.lm.grid import Prediction


@dataclass
class Score:
    """Sums of log-probabilities (nats, float64) and numbers of scored tokens; both [B], or [B, slots] of a grid.

    windows: how many windows each row was read in (1: all at once).
    """

    sums: Tensor
    counts: Tensor
    windows: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """Nats per token; nan where none was scored."""
        return self.sums / self.counts


def token_logprobs(logits: Tensor, ids: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Log-probability [...] float64 of ids [...] under logits [..., V]; a negative id gives 0.

    allowed: [V] bool, the vocabulary that is scored over (a stream's own part of a larger one).
    """
    scores = logits.float()
    if allowed is not None:
        scores = torch.where(allowed, scores, -torch.inf)
    each = scores.log_softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0].double()
    return torch.where(ids < 0, torch.zeros_like(each), each)


def score_predictions(predictions: Mapping[str, Prediction], rows: int) -> dict[str, Score]:
    """Score of every filled stream per slot, [rows, slots], of whole columns or of picked ones (`GridLM.predict`).

    Of frames the sums are of log densities; they are never to be mixed with those of tokens.
    """
    found = {}
    for name, prediction in predictions.items():
        keep, targets, density = prediction.loss, prediction.targets, prediction.density
        sums = torch.zeros(rows, keep.shape[-1], dtype=torch.float64, device=keep.device)
        counts = torch.zeros_like(sums, dtype=torch.int64)
        for k, logits in enumerate(prediction.logits):
            here = keep[..., k]
            if density is not None:
                each = torch.where(here, density.log_density(logits, targets[..., k, :]), 0.0).double()
            else:
                each = token_logprobs(logits, torch.where(here, targets[..., k], -1))
            owners = prediction.rows.flatten()
            sums[:, k] = sums[:, k].index_add(0, owners, each.flatten())
            counts[:, k] = counts[:, k].index_add(0, owners, here.flatten().long())
        found[name] = Score(sums, counts)
    return found


def score_text(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    ids: Tensor,
    lengths: Tensor,
    scored: Tensor | None = None,
    context: int | None = None,
    stride: int | None = None,
    allowed: Tensor | None = None,
) -> Score:
    """Score rows of ids [B, T] by a model that gives logits_of(ids, lengths) [B, T, V]; the first id is never scored.

    scored: [B, T] bool, which ids count (default all). Rows longer than `context` are read in windows that start
    `stride` ids apart (default: half the context); each window scores what the former did not, so that an id has at
    least context - stride ids before it (but at the row's start). A window reads the same ids in any batch.
    """
    longest = int(lengths.max()) if lengths.numel() else 0
    if context is None:
        context = max(longest, 1)
    stride = stride or max(context // 2, 1)
    if not 1 <= stride <= context or (context < 2 and longest > 1):
        raise RequestError(f"windows of {context} ids, {stride} apart: take 2 ids at least, and 1 <= stride <= context")
    keep = torch.ones_like(ids, dtype=torch.bool) if scored is None else scored.clone()
    keep &= torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]
    sums = torch.zeros(ids.shape[0], dtype=torch.float64, device=ids.device)
    counts, windows = torch.zeros_like(lengths), torch.zeros_like(lengths)
    done, start = 1, 0
    while start == 0 or done < longest:
        end = min(start + context, longest)
        active = (lengths > done) if start else lengths > 0
        rows = active.nonzero()[:, 0]
        if rows.numel() and end > start:
            piece, size = ids[rows, start:end], (lengths[rows] - start).clamp(max=end - start)
            logits = logits_of(piece, size)[:, :-1]
            fresh = keep[rows, start + 1 : end].clone()
            fresh[:, : max(done - start - 1, 0)] = False
            each = token_logprobs(logits, torch.where(fresh, piece[:, 1:], -1), allowed)
            sums[rows] += each.sum(1)
            counts[rows] += fresh.sum(1)
            windows[rows] += 1
        done = max(end, done)
        start += stride
        if end >= longest:
            break
    return Score(sums, counts, windows)

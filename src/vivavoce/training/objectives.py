"""Objectives: small functions of what is predicted, what stands there, and what of it counts; in float32.

    parts = scored(prediction, weights)        # the one place of masks: scored cells alone, with their weights
    each = cross_entropy(parts[0])             # one number a cell: nats, an error, a divergence
    losses = stream_losses({"units": prediction, …}, weights)     # and their weighted mean

All work on a system's predictions by stream, whatever its layout. `preferences` has those that compare two rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.lm.grid import Prediction
from vivavoce.lm.heads import DensityHead

Weight = float | Sequence[float]
Mean = Literal["tokens", "streams"]


@dataclass
class Scored:
    """The cells of one slot that count: logits [N, vocabulary] float32 and ids [N], or a density's parameters and
    frames [N, width]; their weights [N], and the rows of the batch that they belong to [N]."""

    logits: Tensor
    targets: Tensor
    weights: Tensor
    rows: Tensor
    level: int
    density: DensityHead | None = None
    teacher: Tensor | None = None  # another network's logits of the same cells


def level_weights(weight: Weight, levels: int, where: str) -> list[float]:
    """One weight for each level, of a number for all or a list."""
    each = [float(weight)] * levels if isinstance(weight, int | float) else [float(w) for w in weight]
    if len(each) != levels:
        raise RequestError(f"{where}: {len(each)} weights for {levels} levels")
    return each


def scored(prediction: Prediction, weights: Sequence[float] | None = None, cells: Tensor | None = None) -> list[Scored]:
    """Each slot's cells that have loss and a weight. weights: of the levels; cells: of columns, [B, C] as the
    prediction has them (0: not scored). The order is that of the columns."""
    found = []
    for k, (logits, level) in enumerate(zip(prediction.logits, prediction.levels, strict=True)):
        here = prediction.loss[..., k]
        if cells is not None:
            here = here & (cells != 0)
        goal = prediction.targets[..., k] if prediction.density is None else prediction.targets[..., k, :]
        weight = torch.full((), 1.0 if weights is None else weights[level], device=here.device).expand(here.shape)
        weight = weight if cells is None else weight * cells
        rows = prediction.rows[here]
        teacher = None if prediction.teacher is None else prediction.teacher[k][here].float()
        found.append(Scored(logits[here].float(), goal[here], weight[here], rows, level, prediction.density, teacher))
    return found


def cross_entropy(part: Scored, label_smoothing: float = 0.0) -> Tensor:
    """Nats of every cell [N]."""
    return F.cross_entropy(part.logits, part.targets, reduction="none", label_smoothing=label_smoothing)


def density_error(part: Scored) -> Tensor:
    """Of every frame [N], the negative log density without its constant: for a fixed scale the absolute error (L1), or
    half the squared one, summed over its numbers."""
    assert part.density is not None
    return part.density.errors(part.logits, part.targets).sum(-1)


def next_cell(part: Scored, label_smoothing: float = 0.0) -> Tensor:
    """`cross_entropy` of tokens, `density_error` of frames."""
    return cross_entropy(part, label_smoothing) if part.density is None else density_error(part)


def divergence(student: Tensor, teacher: Tensor, direction: str = "forward", temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of every cell, logits [N, V] -> nats [N], times temperature^2.

    forward: KL(teacher | student), which covers what the teacher says; reverse: KL(student | teacher), which keeps to
    what it says most. Hinton et al., arXiv:1503.02531, section 2 (its scale with the temperature); the directions:
    Gu et al., arXiv:2306.08543.
    """
    if temperature <= 0:
        raise RequestError(f"temperature {temperature}: divide logits by a positive one")
    ours, theirs = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher.detach()))
    if direction == "forward":
        each = F.kl_div(ours, theirs, reduction="none", log_target=True)
    elif direction == "reverse":
        each = F.kl_div(theirs, ours, reduction="none", log_target=True)
    else:
        raise RequestError(f"direction '{direction}' is none of forward, reverse")
    return each.sum(-1) * temperature**2


@dataclass
class StreamLosses:
    """Losses of a batch. `sums` and `counts`: stream -> [levels], of the cells' weights (without those of streams and
    levels); `correct`: of tokens, weighted hits of the largest logit."""

    total: Tensor  # the weighted mean that is minimised
    weight: Tensor  # what the total is a mean over
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]
    correct: dict[str, Tensor]

    def logs(self) -> dict[str, Tensor]:
        """Means to log: "text" and "text/accuracy" of one level, "voice/0", "voice/1", … of several."""
        logs = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].clamp(min=1e-9)
            means, hits = sums / counts, self.correct[name] / counts
            for level in range(len(means)):
                key = name if len(means) == 1 else f"{name}/{level}"
                logs[key], logs[f"{key}/accuracy"] = means[level].detach(), hits[level]
        return logs

    def means(self) -> dict[str, Tensor]:
        """Of every stream that has scored cells, the mean over all of them."""
        sums = {name: (sums.detach().sum(), self.counts[name].sum()) for name, sums in self.sums.items()}
        return {name: total / count for name, (total, count) in sums.items() if bool(count > 0)}


def stream_losses(
    predictions: Mapping[str, Prediction | Sequence[Prediction]],
    weights: Mapping[str, Weight] | None = None,
    cells: Mapping[str, Tensor | Sequence[Tensor]] | None = None,
    mean: Mean = "tokens",
    each: Callable[[Scored], Tensor] = next_cell,
) -> StreamLosses:
    """The weighted mean of a loss over all scored cells of all streams.

    predictions: stream -> one or several (of rows in different layouts). weights: stream -> number, or one a level;
    default 1. cells: stream -> weight of each column [B, C], or a list of them, one for each of several predictions.
    mean: `tokens`: sum of weight x loss over the sum of weights, so that a stream with more cells counts more;
    `streams`: the sum over streams of (number) x (mean over its cells, weighted by level where a list is given). So
    {"text": 1, "voice": [100, 1, …]} is Moshi's loss (arXiv:2410.00037, section 3.4.4): text + Σ a_k CE_k / Σ a_k. A
    stream without a scored cell counts 0.
    """
    weights, cells = weights or {}, cells or {}
    if unknown := [name for name in weights if name not in predictions]:
        raise RequestError(
            f"loss_weights name '{unknown[0]}', which is not predicted; predicted are {', '.join(predictions)}"
        )
    if mean not in ("tokens", "streams"):
        raise RequestError(f"mean '{mean}' is none of tokens, streams")
    found = StreamLosses(torch.zeros(()), torch.zeros(()), {}, {}, {})
    terms: list[Tensor] = []
    masses: list[Tensor] = []
    for name, several in predictions.items():
        several = [several] if isinstance(several, Prediction) else list(several)
        levels = 1 + max((level for one in several for level in one.levels), default=0)
        share = level_weights(weights.get(name, 1.0), levels, f"loss_weights.{name}")
        columns = cells.get(name)
        each_weight = [columns] * len(several) if columns is None or isinstance(columns, Tensor) else columns
        parts = [part for one, mine in zip(several, each_weight, strict=True) for part in scored(one, None, mine)]
        device = several[0].loss.device
        sums, counts, hits = (torch.zeros(3, levels, device=device)).unbind(0)
        for part in parts:
            losses, at = each(part) * part.weights, torch.tensor([part.level], device=device)
            sums = sums.index_add(0, at, losses.sum()[None])
            counts = counts.index_add(0, at, part.weights.sum()[None])
            if part.density is None:
                right = (part.logits.detach().argmax(-1) == part.targets) * part.weights
                hits = hits.index_add(0, at, right.sum()[None])
        found.sums[name], found.counts[name], found.correct[name] = sums, counts, hits
        each_level = torch.tensor(share, device=device)
        total, mass = (each_level * sums).sum(), (each_level * counts).sum()
        if mean == "streams":
            number = weights.get(name, 1.0)
            scale = float(number) if isinstance(number, int | float) else 1.0
            total, mass = scale * total / torch.where(mass == 0, 1.0, mass), torch.ones_like(mass)
        terms.append(total)
        masses.append(mass)
    whole, mass = torch.stack(terms).sum(), torch.stack(masses).sum()
    found.weight = mass if mean == "tokens" else torch.ones_like(mass)
    found.total = whole / found.weight.clamp(min=1e-9)
    return found


def stream_cross_entropy(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Weight] | None = None,
    label_smoothing: float = 0.0,
) -> StreamLosses:
    """`stream_losses` by streams of plain tensors: logits [B, K, T, V] (or [B, T, V]), targets and masks [B, K, T] (or
    [B, T]). Masked targets may hold any value."""
    predictions = {}
    for name, scores in logits.items():
        target, mask = targets[name], (masks or {}).get(name)
        if scores.shape[:-1] != target.shape:
            raise RequestError(f"stream '{name}': logits {tuple(scores.shape)} for targets {tuple(target.shape)}")
        mask = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.bool()
        if target.dim() == 2:
            scores, target, mask = scores[:, None], target[:, None], mask[:, None]
        rows = torch.arange(len(target), device=target.device)[:, None].expand(len(target), target.shape[2])
        slots = list(range(target.shape[1]))
        predictions[name] = Prediction(
            list(scores.unbind(1)), target.transpose(1, 2), mask.transpose(1, 2), rows, slots
        )
    return stream_losses(
        predictions, weights, mean="streams", each=lambda part: cross_entropy(part, label_smoothing)
    )

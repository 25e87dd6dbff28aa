"""Rules of what may stand in a stream: functions (logits [B, V], level, index of the cell [B]) -> logits.

A forbidden id gets -inf. The decoding loop takes one rule a stream; `both` joins several.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Rule = Callable[[Tensor, int, Tensor], Tensor]


def _marked(ids: Iterable[int], logits: Tensor) -> Tensor:
    """Mask [V] bool of the ids."""
    mask = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    mask[torch.as_tensor(list(ids), dtype=torch.int64, device=logits.device)] = True
    return mask


def only(ids: Iterable[int]) -> Rule:
    """Nothing but these ids."""
    allowed = list(ids)
    return lambda logits, level, index: torch.where(_marked(allowed, logits), logits, -torch.inf)


def never(ids: Iterable[int]) -> Rule:
    """All but these ids."""
    forbidden = list(ids)
    return lambda logits, level, index: torch.where(_marked(forbidden, logits), -torch.inf, logits)


def not_before(first: int, ids: Iterable[int]) -> Rule:
    """These ids only from cell `first` on: an end token that must not come at once."""
    late = list(ids)

    def rule(logits: Tensor, level: int, index: Tensor) -> Tensor:
        early = (index < first)[:, None] & _marked(late, logits)
        return torch.where(early, -torch.inf, logits)

    return rule


def both(*rules: Rule) -> Rule:
    """All of the rules, one after the other."""

    def rule(logits: Tensor, level: int, index: Tensor) -> Tensor:
        for each in rules:
            logits = each(logits, level, index)
        return logits

    return rule

"""Choosing tokens from logits. A row's choice depends on its own logits, seed and counter: never on its neighbours.

Randomness is Gumbel noise (argmax of logits + noise is a sample of the softmax) from a hash of (seed, counter, index in
the vocabulary), so the same row gives the same token in any batch, at any place in it, on any device.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.nn.chance import GOLDEN, key, keyed


@dataclass(frozen=True)
class Sampling:
    """How a stream's tokens are chosen.

    temperature: 0 = the largest logit. top_k, top_p, min_p: keep the k likeliest; the likeliest until their sum reaches
    p (Holtzman et al., arXiv:1904.09751); those of at least p times the likeliest (arXiv:2407.01082). They apply in
    this order, after the temperature. repetition_penalty: divides (multiplies, if negative) the logits of tokens in the
    history (Keskar et al., arXiv:1909.05858). repetition_threshold: a token whose share of the history is larger is
    drawn again without cuts (repetition-aware sampling of VALL-E 2, arXiv:2406.05370: 0.1 of 10). window: ids of
    history (0: 64 for a penalty, 10 for a threshold, else none). logit_bias: id -> what is added to its logit before
    all this: more for a pad makes a text stream say less (Moshi's padding bonus).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    repetition_threshold: float | None = None
    window: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.temperature < 0:
            raise RecipeError(f"sampling.temperature {self.temperature} is negative; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"sampling.top_k {self.top_k}: keep at least 1 (leave it out to keep all)")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise RecipeError(f"sampling.{name} {value} is no share in (0, 1]")
        if self.repetition_penalty <= 0:
            raise RecipeError(f"sampling.repetition_penalty {self.repetition_penalty} must be positive; 1 is none")
        try:  # JSON has no keys but text
            bias = {int(i): float(value) for i, value in self.logit_bias.items()}
        except (AttributeError, TypeError, ValueError):
            bias = {-1: 0.0}
        if min(bias, default=0) < 0:
            raise RecipeError(f"sampling.logit_bias {self.logit_bias}: give numbers by ids of tokens, as {{0: 1.5}}")
        object.__setattr__(self, "logit_bias", bias)
        if self.window == 0:
            default = 64 if self.repetition_penalty != 1 else 10 if self.repetition_threshold is not None else 0
            object.__setattr__(self, "window", default)

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str = "sampling") -> "Sampling":
        """From a recipe's options; `RecipeError` names an unknown one."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise RecipeError(f"{where}: option '{name}' is unknown; there are {', '.join(known)}")
        return cls(**options)

    @classmethod
    def of_streams(
        cls, options: Mapping[str, Any], streams: Iterable[str], where: str = "sampling"
    ) -> dict[str, "Sampling"]:
        """Of each stream: the options that hold for all, and over them those under the stream's own name."""
        names = list(streams)
        common = {key: value for key, value in options.items() if key not in names}
        return {name: cls.of(common | dict(options.get(name, {})), f"{where}.{name}") for name in names}


def sample(
    logits: Tensor, sampling: Sampling, seed: Tensor, counter: Tensor, history: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Choose a token for each row: logits [B, V] -> ids [B] int64.

    seed, counter: [B] int64. history: earlier ids [B, N], newest last, -1 where there is none; its last `window` count.
    Logits of -inf are never chosen (unless a row has no other). keys: `vivavoce.nn.chance.key` of seed and counter [B],
    where it is there.
    """
    if history is not None:
        history = history[:, max(history.shape[1] - sampling.window, 0) :]
    scores = penalised(biased(logits.float(), sampling.logit_bias), history, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return scores.argmax(-1)
    keys = key(seed, counter) if keys is None else keys
    ids = gumbel_argmax(*candidates(scores, sampling), keys)
    if history is None or sampling.repetition_threshold is None:
        return ids
    share = (history == ids[:, None]).float().mean(1)
    again = gumbel_argmax(*candidates(scores, Sampling(sampling.temperature)), key(seed ^ GOLDEN, counter))
    return torch.where(share > sampling.repetition_threshold, again, ids)


def biased(scores: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Scores [B, V] with what `bias` adds to some ids; an id outside the vocabulary is a `RecipeError`."""
    if not bias:
        return scores
    if max(bias) >= scores.shape[1]:
        raise RecipeError(f"sampling.logit_bias: id {max(bias)} is not in a vocabulary of {scores.shape[1]}")
    added = scores.new_zeros(scores.shape[1])
    added[list(bias)] = torch.tensor(list(bias.values()), dtype=scores.dtype, device=scores.device)
    return scores + added


def penalised(scores: Tensor, history: Tensor | None, penalty: float) -> Tensor:
    """Scores [B, V] with those of the history's tokens made less likely."""
    if history is None or penalty == 1 or history.shape[1] == 0:
        return scores
    extended = torch.cat([scores, scores.new_zeros(scores.shape[0], 1)], dim=1)
    index = torch.where(history < 0, scores.shape[1], history)
    seen = extended.gather(1, index)
    return extended.scatter(1, index, torch.where(seen > 0, seen / penalty, seen * penalty))[:, :-1]


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Scores [B, V] -> those that may be chosen, after temperature and cuts: [B, N], with their vocabulary ids [B, N].

    Cut ones have -inf. Of equal scores at the edge of top-k, the lower id stays.
    """
    scores = scores / sampling.temperature
    cut = sampling.top_p is not None or sampling.min_p is not None
    size = scores.shape[1]
    keep = min(sampling.top_k or size, size)
    if cut or keep < size:
        few = None if cut else largest(scores, keep)
        if few is None:
            scores, ids = scores.sort(dim=-1, descending=True, stable=True)
            scores, ids = scores[:, :keep], ids[:, :keep]
        else:
            scores, ids = few
    else:
        ids = torch.arange(size, device=scores.device).expand_as(scores)
    if cut:
        shares = scores.softmax(-1)
        kept = torch.ones_like(scores, dtype=torch.bool)
        if sampling.top_p is not None:
            before = shares.cumsum(-1) - shares
            kept &= before < sampling.top_p
        if sampling.min_p is not None:
            kept &= shares >= sampling.min_p * shares[:, :1]
        kept[:, 0] = True
        scores = torch.where(kept, scores, -torch.inf)
    return scores, ids


def largest(scores: Tensor, keep: int) -> tuple[Tensor, Tensor] | None:
    """The `keep` largest scores [B, keep] and their ids, in no certain order of equals; None where a row has equals at
    the edge, so that a sort has to say which of them stay. Some times quicker than a sort of all."""
    values, ids = scores.topk(keep + 1, dim=-1)
    if bool((values[:, keep - 1] == values[:, keep]).any()):
        return None
    return values[:, :keep], ids[:, :keep]


def gumbel_argmax(scores: Tensor, ids: Tensor, keys: Tensor) -> Tensor:
    """A sample of softmax(scores) [B, N], as one of `ids` [B, N], by `keys` [B]; of equal perturbed scores the first
    stands."""
    noise = perturbation(keyed(keys[:, None].to(ids.device), ids))
    return ids.gather(1, (scores + noise).argmax(-1, keepdim=True))[:, 0]


def gumbel(seed: Tensor, counter: Tensor, index: Tensor) -> Tensor:
    """Standard Gumbel noise float32 for int64 tensors that broadcast together; the same on every device."""
    return perturbation(keyed(key(seed, counter), index))


def perturbation(u: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers."""
    return -torch.log(-torch.log1p(-u))

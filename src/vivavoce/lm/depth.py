"""Depth transformer: the levels of one column, one after another, given the backbone's hidden column (RQ-Transformer).

Step k reads the hidden column through its own projection plus the embedding of the token chosen before (of level k - 1;
at step 0 that of a prefix token, such as the column's text), and predicts level k. Weights may differ from step to
step; they are stored stacked [sets, out, in], so that teacher forcing is one batched product over the steps.

Sources: Lee et al., arXiv:2203.01941; Moshi's depth transformer, arXiv:2410.00037, section 3.4.1.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.lm.embeddings import LowRankEmbedding, embed
from vivavoce.nn.feedforward import activation
from vivavoce.nn.norms import NormKind, make_norm

Choose = Callable[[int, Tensor], Tensor]


class StepLinear(nn.Module):
    """Linear maps by step: weight [sets, out, in]; step k uses set schedule[k]."""

    def __init__(self, inputs: int, width: int, schedule: Sequence[int], std: float | None = None):
        super().__init__()
        self.schedule = list(schedule)
        self.sets = max(schedule) + 1
        self.weight = nn.Parameter(torch.empty(self.sets, width, inputs))
        nn.init.normal_(self.weight, std=inputs**-0.5 if std is None else std)

    def forward(self, x: Tensor) -> Tensor:
        """The first steps at once: x [K, N, in] -> [K, N, out]."""
        if self.sets == 1:
            return F.linear(x, self.weight[0])
        weight: Tensor = self.weight
        if self.schedule != list(range(self.sets)):
            weight = weight[torch.tensor(self.schedule[: x.shape[0]], device=weight.device)]
        return torch.bmm(x, weight[: x.shape[0]].transpose(1, 2))

    def at(self, step: int, x: Tensor) -> Tensor:
        """One step: x [N, in] -> [N, out]."""
        return F.linear(x, self.weight[self.schedule[step]])


class DepthLayer(nn.Module):
    """A pre-norm layer over steps: causal attention, gated feed-forward; norms are shared by the steps."""

    def __init__(
        self, width: int, heads: int, feedforward: int, schedule: Sequence[int], act: str, norm: NormKind, eps: float,
        std: float,
    ):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.attention_norm, self.feedforward_norm = make_norm(norm, width, eps), make_norm(norm, width, eps)
        self.qkv = StepLinear(width, 3 * width, schedule)
        self.out = StepLinear(width, width, schedule, std * width**-0.5)
        self.inner = StepLinear(width, 2 * feedforward, schedule)
        self.outer = StepLinear(feedforward, width, schedule, std * feedforward**-0.5)
        self.activation = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """x [K, N, D] -> [K, N, D]."""
        steps, rows = x.shape[:2]
        joint = self.qkv(self.attention_norm(x)).view(steps, rows, 3, self.heads, self.head_dim)
        q, k, v = joint.permute(2, 1, 3, 0, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.permute(2, 0, 1, 3).reshape(steps, rows, -1))
        gate, value = self.inner(self.feedforward_norm(x)).chunk(2, dim=-1)
        return x + self.outer(self.activation(gate) * value)

    def at(self, step: int, x: Tensor, store: Tensor) -> Tensor:
        """One step x [N, D]; `store` [2, N, heads, K, head_dim] holds keys and values, and gets this step's."""
        rows = x.shape[0]
        joint = self.qkv.at(step, self.attention_norm(x)).view(rows, 3, self.heads, 1, self.head_dim)
        store[:, :, :, step] = joint[:, 1:, :, 0].transpose(0, 1)
        seen = store[:, :, :, : step + 1]
        y = F.scaled_dot_product_attention(joint[:, 0], seen[0], seen[1])
        x = x + self.out.at(step, y.reshape(rows, -1))
        gate, value = self.inner.at(step, self.feedforward_norm(x)).chunk(2, dim=-1)
        return x + self.outer.at(step, self.activation(gate) * value)


class DepthTransformer(nn.Module):
    """Predicts the levels of a column from its hidden vector.

    inputs: width of hidden columns. levels: vocabulary of each level. prefix: vocabulary of the token that comes first
    (None: none). weights_per_step: True, False, or for every step the number of the set of weights that it uses
    (Moshi's schedule). entry_per_step: whether the projections of the hidden column differ from step to step as the
    other weights do, or are one. positions: whether each step has a learned vector (None: where it shares all weights
    with the others). feedforward: inner width of the gated layers (default 8/3 of the width, rounded up to 32).
    final_norm: before the heads: one, one for each step (`per_step`), or none (Moshi's); of final_norm_kind and
    final_norm_eps (None: as the layers' norms are). low_rank: width of the tables
    of tokens, which a matrix each brings to the transformer's (None: they have it). blanks: each table has one row
    more, for a token that is not there (a negative id); else that is zero.
    """

    engine: Any = None  # what computes `generate` in torch's place (see `vivavoce.lm.engine`)

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int,
        heads: int,
        levels: Sequence[int],
        prefix: int | None = None,
        feedforward: int | None = None,
        weights_per_step: bool | Sequence[int] = True,
        activation: str = "silu",
        norm_eps: float = 1e-5,
        final_norm: bool | Literal["per_step"] = True,
        norm: NormKind = "rms",
        final_norm_kind: NormKind | None = None,
        final_norm_eps: float | None = None,
        entry_per_step: bool = True,
        positions: bool | None = None,
        low_rank: int | None = None,
        blanks: bool = False,
    ):
        super().__init__()
        steps = len(levels)
        if width % heads:
            raise RecipeError(f"depth: width {width} is no multiple of {heads} heads")
        if isinstance(weights_per_step, bool):
            schedule = list(range(steps)) if weights_per_step else [0] * steps
        else:
            schedule = [int(n) for n in weights_per_step]
        if len(schedule) != steps or sorted(set(schedule)) != list(range(max(schedule, default=-1) + 1)):
            raise RecipeError(
                f"depth.weights_per_step {schedule}: give the set of each of {steps} levels: 0, 1, … without gaps"
            )
        self.levels, self.width, self.head_dim, self.blanks = list(levels), width, width // heads, blanks
        inner = feedforward or -(-width * 8 // 3 // 32) * 32
        std = (2 * layers) ** -0.5

        def table(size: int) -> nn.Module:
            rows = size + blanks
            return nn.Embedding(rows, width) if low_rank is None else LowRankEmbedding(rows, low_rank, width)

        self.entry = StepLinear(inputs, width, schedule if entry_per_step else [0] * steps)
        self.vocabulary = prefix
        self.prefix = table(prefix) if prefix is not None else None
        self.embeddings = nn.ModuleList(table(size) for size in levels[:-1])
        placed = max(schedule) == 0 and steps > 1 if positions is None else positions
        self.steps = nn.Parameter(torch.zeros(steps, width)) if placed else None
        self.layers = nn.ModuleList(
            DepthLayer(width, heads, inner, schedule, activation, norm, norm_eps, std) for _ in range(layers)
        )
        if final_norm not in (True, False, "per_step"):
            raise RecipeError(f"depth.final_norm: {final_norm!r} is none of true, false, per_step")
        norms = {True: 1, False: 0, "per_step": steps}[final_norm]
        last = final_norm_kind or norm, width, norm_eps if final_norm_eps is None else final_norm_eps
        self.norm = make_norm(*last) if norms == 1 else nn.Identity()
        self.norms = nn.ModuleList(make_norm(*last) for _ in range(norms)) if norms > 1 else None
        self.heads = nn.ModuleList(nn.Linear(width, size, bias=False) for size in levels)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        if self.steps is not None:
            nn.init.normal_(self.steps, std=0.5)

    def forward(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """Teacher forcing: hidden [..., D], codes [..., K] int64, prefix [...] int64 -> K logits [..., vocabulary].

        Level k is predicted from the hidden column, the prefix and codes 0 … k - 1. Negative ids stand for nothing.
        Fewer codes than levels: the first levels alone.
        """
        shape = hidden.shape[:-1]
        steps = codes.shape[-1]
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        codes = codes.reshape(-1, codes.shape[-1])
        x = self.entry(flat.expand(steps, -1, -1))
        said = [self._prefix(prefix, flat[0])]
        said += [self._said(k, codes[:, k]) for k in range(steps - 1)]
        x = x + torch.stack(said)
        if self.steps is not None:
            x = x + self.steps[:steps, None]
        for layer in self.layers:
            x = layer(x)
        return [self._logits(k, x[k]).view(*shape, -1) for k in range(steps)]

    def generate(
        self, hidden: Tensor, choose: Choose, prefix: Tensor | None = None, steps: int | None = None
    ) -> Tensor:
        """Level by level: hidden [B, D], prefix [B] -> ids [B, K]. choose(k, logits [B, V]) -> ids [B].

        steps: how many levels (None: all).
        """
        rows, steps = hidden.shape[0], len(self.levels) if steps is None else steps
        if self.engine is not None and self.engine.takes(hidden):
            return self.engine.generate(hidden, choose, prefix, steps)
        layers = cast(list[DepthLayer], list(self.layers))
        heads = self.width // self.head_dim
        stores = [hidden.new_empty(2, rows, heads, steps, self.head_dim) for _ in layers]
        said = self._prefix(prefix, hidden)
        chosen: list[Tensor] = []
        for k in range(steps):
            x = self.entry.at(k, hidden) + said
            if self.steps is not None:
                x = x + self.steps[k]
            for layer, store in zip(layers, stores):
                x = layer.at(k, x, store)
            chosen.append(choose(k, self._logits(k, x)))
            if k + 1 < steps:
                said = self._said(k, chosen[k])
        return torch.stack(chosen, dim=1)

    def _logits(self, step: int, x: Tensor) -> Tensor:
        """Logits [N, vocabulary] of a step's outputs [N, D]."""
        return self.heads[step](self.norm(x) if self.norms is None else self.norms[step](x))

    def _said(self, level: int, ids: Tensor) -> Tensor:
        """Embedding [N, width] of the ids [N] chosen for a level."""
        return self._embedded(self.embeddings[level], ids, self.levels[level])

    def _prefix(self, prefix: Tensor | None, like: Tensor) -> Tensor:
        """Embedding [N, width] of the token before the first level."""
        if self.prefix is None or self.vocabulary is None or prefix is None:
            return like.new_zeros(like.shape[0], self.width)
        return self._embedded(self.prefix, prefix.reshape(-1), self.vocabulary)

    def _embedded(self, table: nn.Module, ids: Tensor, blank: int) -> Tensor:
        return table(torch.where(ids < 0, blank, ids)) if self.blanks else embed(table, ids)

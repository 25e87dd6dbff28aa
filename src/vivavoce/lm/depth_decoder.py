"""A depth decoder: the levels of one column by a small decoder whose weights all steps share, as CSM has it.

Level 0 is predicted from the hidden column by a matrix. The others by a transformer with positions over the hidden
column, then the tokens of levels 0, 1, …, all brought to its width by one matrix; every level has a matrix of its own
behind it. The tokens' tables may be those of the grid (`tied`).

Source: Sesame's CSM as transformers has it (modeling_csm.py); its temporal part is Llama's form.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.embeddings import embed
from vivavoce.nn.transformer import TransformerConfig

Choose = Callable[[int, Tensor], Tensor]


class DepthDecoder(nn.Module):
    """Predicts the levels of a column from its hidden vector.

    inputs: width of hidden columns and of the tokens' tables. levels: vocabulary of each level, two at least. tied: the
    tables are those that `tie` is given; else its own. options: fields of `TransformerConfig`.
    """

    after: str | None = None
    engine: Any = None  # what computes `choose` in torch's place (see `vivavoce.lm.engine`)

    def __init__(self, inputs: int, levels: Sequence[int], tied: bool = False, **options: Any):
        super().__init__()
        if len(levels) < 2:
            raise RecipeError("depth_decoder: one level has no depth: take a linear head")
        config = TransformerConfig.of(options, "depth_decoder")
        if not config.causal or config.memory is not None or config.condition is not None:
            raise RecipeError("depth_decoder: it is a causal transformer without memory and condition")
        self.levels, self.tied = list(levels), tied
        self.first = nn.Linear(inputs, levels[0], bias=False)
        self.embeddings = None if tied else nn.ModuleList(nn.Embedding(size, inputs) for size in levels[:-1])
        self.enter = nn.Linear(inputs, config.width, bias=False)
        self.decoder = Decoder(config)
        self.heads = nn.ModuleList(nn.Linear(config.width, size, bias=False) for size in levels[1:])
        self._tables: list[nn.ModuleList] = []  # in a list, so that they stay the grid's

    def tie(self, tables: nn.ModuleList) -> None:
        """Take the grid's tables of the stream, one a level, for its own."""
        if len(tables) != len(self.levels):
            raise RecipeError(f"depth_decoder.tied: {len(tables)} tables for {len(self.levels)} levels")
        self._tables = [tables]

    def _said(self, level: int, ids: Tensor) -> Tensor:
        """Embedding [N, inputs] of the ids [N] of a level."""
        tables = self.embeddings if self.embeddings is not None else self._tables[0]
        return embed(tables[level], ids)

    def forward(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """Teacher forcing: hidden [..., D], codes [..., K] int64 -> K logits [..., vocabulary]; negative ids stand for
        nothing."""
        shape, flat, steps = hidden.shape[:-1], hidden.reshape(-1, hidden.shape[-1]), codes.shape[-1]
        codes = codes.reshape(-1, steps)
        x = torch.stack([flat, *(self._said(k, codes[:, k]) for k in range(steps - 1))], dim=1)
        y = self.decoder(self.enter(x))
        each = [self.first(flat), *(self.heads[k - 1](y[:, k]) for k in range(1, steps))]
        return [logits.view(*shape, -1) for logits in each]

    def _logits(self, level: int, x: Tensor) -> Tensor:
        """Logits [B, vocabulary] of a level from what its matrix reads, x [B, width]."""
        return (self.first if level == 0 else cast(nn.Linear, self.heads[level - 1]))(x)

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None, levels: int | None = None) -> Tensor:
        """Level by level: hidden [B, D] -> ids [B, K], picked by pick(level, logits [B, vocabulary]) -> [B]."""
        steps = len(self.levels) if levels is None else levels
        if self.engine is not None and self.engine.takes(hidden):
            return self.engine.choose(hidden, pick, steps)
        chosen = [pick(0, self._logits(0, hidden))]
        x, state = hidden[:, None], self.decoder.initial_state(len(hidden))
        for k in range(1, steps):
            x = torch.cat([x, self._said(k - 1, chosen[-1])[:, None]], dim=1)
            y, state = self.decoder.step(self.enter(x), state)
            chosen.append(pick(k, self._logits(k, y[:, -1])))
            x = x[:, :0]
        return torch.stack(chosen, dim=1)

"""A text language model: one vocabulary in, one out, around our decoder. Published ones load into it (`pretrained`)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.lm.decoder import Decoder
from vivavoce.nn.streaming import State
from vivavoce.nn.transformer import TransformerConfig

Init = Literal["normal", "mean"]


class TextLM(nn.Module):
    """Table -> decoder -> logits.

    tied: the head's matrix is the table. embedding: width of the table where it is not the decoder's (OPT-350m);
    two projections without bias stand between. source: the published configuration that it was loaded from.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocabulary: int,
        tied: bool = False,
        final_norm: bool = True,
        embedding: int | None = None,
        source: dict[str, Any] | None = None,
    ):
        super().__init__()
        width = embedding or config.width
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.decoder = Decoder(config, final_norm)
        self.enter = nn.Linear(width, config.width, bias=False) if width != config.width else None
        self.leave = nn.Linear(config.width, width, bias=False) if width != config.width else None
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        self.source = source

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self.table.num_embeddings

    @property
    def tied(self) -> bool:
        """Whether the head's matrix is the table."""
        return self.head is None

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> columns [B, T, D] for the decoder."""
        x = self.table(ids)
        return x if self.enter is None else self.enter(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden columns [..., D] -> logits [..., vocabulary] of the next id."""
        x = hidden if self.leave is None else self.leave(hidden)
        return nn.functional.linear(x, self.table.weight) if self.head is None else self.head(x)

    def forward(self, ids: Tensor, lengths: Tensor | None = None, **context: Any) -> Tensor:
        """Whole rows of ids [B, T] -> logits [B, T, vocabulary] of the ids that follow."""
        return self.logits(self.decoder(self.embed(ids), lengths, **context))

    def initial_state(self, batch: int, device: Any = None, dtype: Any = None, **start: Any) -> State:
        """State of `batch` rows without a past; `start`: as the transformer's takes it."""
        return self.decoder.transformer.initial_state(batch, device, dtype, **start)

    def step(self, ids: Tensor, state: State, lengths: Tensor | None = None, **context: Any) -> tuple[Tensor, State]:
        """The next ids [B, T] of every row -> logits [B, T, vocabulary] and state."""
        hidden, after = self.decoder.step(self.embed(ids), state, lengths, **context)
        return self.logits(hidden), after

    def replace_vocabulary(self, size: int, keep: int = 0, init: Init = "normal", seed: int = 0) -> None:
        """Another vocabulary of `size` ids, the first `keep` of them the old ones.

        init of new rows: `normal` (mean 0 and the old table's spread) or `mean` (the mean of the old rows with a
        thousandth of their spread, so that new ids start equally likely; Hewitt 2021). Speech units usually replace a
        text vocabulary (TWIST, arXiv:2305.13009) or extend it (`extend_vocabulary`).
        """
        if not 0 <= keep <= min(size, self.vocabulary) or size < 1:
            raise RequestError(f"keep {keep} ids of {self.vocabulary} in a vocabulary of {size}: impossible")
        matrices: list[nn.Embedding | nn.Linear] = [self.table] if self.head is None else [self.table, self.head]
        for number, matrix in enumerate(matrices):
            old = matrix.weight.detach()
            noise = torch.randn(size, old.shape[1], generator=torch.Generator().manual_seed(seed + number)).to(old)
            spread = old.float().std(0).nan_to_num(0.02).to(old)
            new = noise * spread.square().mean().sqrt() if init == "normal" else old.mean(0) + noise * spread * 1e-3
            new[:keep] = old[:keep]
            matrix.weight = nn.Parameter(new)
        self.table.num_embeddings = size
        if self.head is not None:
            self.head.out_features = size

    def extend_vocabulary(self, more: int, init: Init = "mean", seed: int = 0) -> None:
        """`more` ids behind the old ones."""
        self.replace_vocabulary(self.vocabulary + more, self.vocabulary, init, seed)

"""Codecs whose decoder draws noise: each row's hangs on a seed that may be given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.errors import RequestError
from vivavoce.nn.noise import seeded
from vivavoce.nn.streaming import State


class SeededCodec(Codec):
    """Base; without seeds, the noise of every row is that of seed 0."""

    def decoder_state(self, batch: int, seeds: Sequence[int] | Tensor | None = None) -> State:
        """State of `batch` signals of which nothing has been decoded yet; seeds [batch]: of each one's noise."""
        state = super().decoder_state(batch)
        if seeds is None:
            return state
        if len(seeds) != batch:
            raise RequestError(f"{len(seeds)} seeds for {batch} rows: give one a row")
        return seeded(state, torch.as_tensor(seeds, dtype=torch.int64))

    @torch.no_grad()
    def decode(
        self, codes: Tensor, lengths: Tensor | None = None, seeds: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """As any codec's; seeds [B]: of each row's noise."""
        codes = self._checked(codes)
        return self._decoded(codes, lengths, self.decoder_state(len(codes), seeds))

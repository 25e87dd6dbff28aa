"""Codes of which the first is a pitch: of decoders that are given one (`nn.harmonics`)."""

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.harmonics import PITCHES
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.quantizers import Quantized, Quantizer
from vivavoce.quantizers.base import health

CLOSE = 1e-4  # of two scores, between which rounding may decide


class PitchFirst(Quantizer):
    """Latents [B, T, PITCHES + D] -> codes [B, 1 + K, T]: the pitch of the highest score, then those of `rest`.

    Quantized, a frame's pitch is 1 and the others 0. The scores have no gradient: a loss of their own teaches them.
    """

    def __init__(self, rest: Quantizer):
        super().__init__()
        self.rest = rest
        self.width, self.codebook_sizes = PITCHES + rest.width, (PITCHES, *rest.codebook_sizes)

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        found = self.rest(latents[..., PITCHES:], lengths, self._others(codebooks))
        codes = self._pitch(latents, lengths)
        y = torch.cat([self._chosen(codes).to(found.latents.dtype), found.latents], dim=-1)
        heard = codes[:, 0] if lengths is None else codes[:, 0][valid(lengths, codes.shape[-1])]
        usage, perplexity = health(heard, PITCHES, self.training)
        return Quantized(
            zero_padding(y, lengths),
            torch.cat([codes, found.codes], dim=1),
            found.loss,
            torch.cat([usage[None], found.usage]),
            torch.cat([perplexity[None], found.perplexity]),
        )

    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        rest = self.rest.encode(latents[..., PITCHES:], lengths, self._others(codebooks))
        return torch.cat([self._pitch(latents, lengths), rest], dim=1)

    def decode(self, codes):
        self.check_codes(codes)
        if codes.shape[1] < 2:
            raise RequestError("codes of a pitch alone: at least two codebooks make a sound")
        return torch.cat([self._chosen(codes[:, :1]), self.rest.decode(codes[:, 1:])], dim=-1)

    def ties(self, latents, codes=None):
        best = latents[..., :PITCHES].topk(2, dim=-1).values
        close = (best[..., 0] - best[..., 1])[:, None] < CLOSE
        rest = self.rest.ties(latents[..., PITCHES:], None if codes is None else codes[:, 1:])
        return torch.cat([close, rest], dim=1)

    def levels_used(self, codebooks):
        used = super().levels_used(codebooks)
        if used < 2:
            raise RequestError("codebooks=1: the first is the pitch alone; use two at least")
        return used

    def _others(self, codebooks: int | None) -> int:
        return self.levels_used(codebooks) - 1

    def _pitch(self, latents: Tensor, lengths: Tensor | None) -> Tensor:
        return zero_padding(latents[..., :PITCHES].argmax(-1), lengths)[:, None]

    def _chosen(self, codes: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(codes[:, 0], PITCHES).float()


def placed(latents: Tensor) -> Tensor:
    """What `PitchFirst` gives, [B, T, PITCHES + D] -> [B, T, 1 + D]: the pitch as its place between -1 and 1."""
    places = 2 * torch.arange(PITCHES, device=latents.device) / PITCHES - 1
    return torch.cat([latents[..., :PITCHES] @ places.to(latents.dtype)[:, None], latents[..., PITCHES:]], dim=-1)

"""Quantizers side by side for what speech is made of: prosody, content, and what these leave over (FACodec)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer

FACTORS = ("prosody", "content", "residual")


class FactorQuantizer(Quantizer):
    """Latents [B, T, width] -> codes [B, prosody + content + residual, T] (NaturalSpeech 3, arXiv:2403.03100, 3.2).

    Prosody and content each quantize the latents; the residual what their sum leaves over, through which no gradient
    goes back to them. The quantized latents are the sum of all three. books: how many codebooks each has.
    detail_dropout: share of the training rows that go without the residual, so that the first two say what they can.
    Further options are those of `FactorizedResidualVectorQuantizer`, for each.
    """

    def __init__(
        self,
        width: int,
        books: Sequence[int] = (1, 2, 3),
        codebook_size: int = 1024,
        codebook_width: int = 8,
        detail_dropout: float = 0.5,
        **options: Any,
    ):
        super().__init__()
        if len(books) != len(FACTORS) or min(books) < 1:
            raise RequestError(f"books {list(books)}: one number, from 1, for each of {', '.join(FACTORS)}")
        self.width, self.books, self.detail_dropout = width, tuple(books), detail_dropout
        self.codebook_sizes = (codebook_size,) * sum(books)
        self.prosody, self.content, self.residual = (
            FactorizedResidualVectorQuantizer(width, count, codebook_size, codebook_width, **options) for count in books
        )

    def shares(self, codebooks: int | None) -> list[int]:
        """How many of the first `codebooks` codebooks belong to each factor."""
        used, shares = self.levels_used(codebooks), []
        for count in self.books:
            shares.append(min(used, count))
            used -= shares[-1]
        return shares

    def factors(self, latents: Tensor, lengths: Tensor | None = None, codebooks: int | None = None):
        """Factor -> its `Quantized` (float32), of those that the first `codebooks` codebooks reach."""
        found: dict[str, Quantized] = {}
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            for name, share in zip(FACTORS, self.shares(codebooks)):
                if share:
                    heard = latents if name != "residual" else latents - self._sum(found).detach()
                    found[name] = getattr(self, name)(heard, lengths, share)
        return found

    @staticmethod
    def _sum(found: Mapping[str, Quantized]) -> Tensor:
        parts = [part.latents for part in found.values()]
        return torch.stack(parts).sum(0)

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws which rows go without the residual; None: torch's global one."""
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            whole = self.joined(self.factors(latents, lengths, codebooks), generator)
        return replace(whole, latents=whole.latents.to(latents.dtype))

    def joined(self, found: Mapping[str, Quantized], generator: torch.Generator | None = None) -> Quantized:
        """What `factors` gave, as one."""
        whole = found
        if self.training and "residual" in found:
            left_out = torch.rand(len(found["residual"].latents), generator=generator) < self.detail_dropout
            detail = found["residual"]
            kept = detail.latents * ~left_out.to(detail.latents.device)[:, None, None]
            whole = {**found, "residual": replace(detail, latents=kept)}
        parts = list(found.values())
        return Quantized(
            self._sum(whole),
            torch.cat([part.codes for part in parts], dim=1),
            torch.stack([part.loss for part in parts]).sum(),
            torch.cat([part.usage for part in parts]),
            torch.cat([part.perplexity for part in parts]),
        )

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        shares = self.shares(codebooks)
        latents = zero_padding(latents.float(), lengths)
        codes, sums = [], torch.zeros_like(latents)
        for name, share in zip(FACTORS, shares):
            if share:
                part: FactorizedResidualVectorQuantizer = getattr(self, name)
                codes.append(part.encode(latents - sums if name == "residual" else latents, lengths, share))
                sums = sums + part.decode(codes[-1])
        return torch.cat(codes, dim=1)

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        total, start = None, 0
        for name, share in zip(FACTORS, self.shares(codes.shape[1])):
            if share:
                part = getattr(self, name).decode(codes[:, start : start + share])
                total, start = part if total is None else total + part, start + share
        return total

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """As any quantizer's; the residual follows `codes` of the others."""
        self.check_latents(latents)
        followed = self.encode(latents) if codes is None else codes
        found, sums, start = [], torch.zeros_like(latents.float()), 0
        for name, share in zip(FACTORS, self.shares(followed.shape[1])):
            if share:
                part, own = getattr(self, name), followed[:, start : start + share]
                found.append(part.ties(latents.float() - sums if name == "residual" else latents, own))
                sums, start = sums + part.decode(own), start + share
        return torch.cat(found, dim=1)

"""Split residual vector quantization: a semantic and an acoustic quantizer side by side on the same latents."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.quantizers.base import Quantized, Quantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer


class SplitResidualVectorQuantizer(Quantizer):
    """Mimi's quantizer (Moshi, arXiv:2410.00037, section 3.3.3): codes [B, semantic_codebooks + acoustic, T].

    `semantic` hears the latents and so does `acoustic`: it quantizes them, not what the semantic codebook left over,
    so that the semantic one is free to follow a teacher. Their outputs are summed. `dropout` concerns the acoustic
    codebooks only; the other options are those of `ResidualVectorQuantizer`, for both.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 8,
        codebook_size: int | Sequence[int] = 2048,
        codebook_width: int | None = 256,
        semantic_codebooks: int = 1,
        dropout: float = 0.0,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__()
        if not 1 <= semantic_codebooks < codebooks:
            raise RequestError(f"{semantic_codebooks} semantic of {codebooks} codebooks: leave at least one acoustic")
        sizes = [codebook_size] * codebooks if isinstance(codebook_size, int) else list(codebook_size)
        if len(sizes) != codebooks:
            raise RequestError(f"{codebooks} codebooks with {len(sizes)} sizes: give one size, or one each")
        first = semantic_codebooks
        options.setdefault("project", True)
        self.semantic = ResidualVectorQuantizer(width, first, sizes[:first], codebook_width, seed=seed, **options)
        self.acoustic = ResidualVectorQuantizer(
            width, codebooks - first, sizes[first:], codebook_width, dropout=dropout, seed=seed + 1, **options
        )
        self.width, self.codebook_sizes = width, tuple(sizes)

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """As the residual quantizer; `loss` is the mean of the two, each a mean over its codebooks."""
        first, second = self._shares(codebooks)
        semantic = self.semantic(latents, lengths, first, generator)
        if not second:
            return semantic
        acoustic = self.acoustic(latents, lengths, second, generator)
        return Quantized(
            semantic.latents + acoustic.latents,
            torch.cat([semantic.codes, acoustic.codes], dim=1),
            (semantic.loss + acoustic.loss) / 2,
            torch.cat([semantic.usage, acoustic.usage]),
            torch.cat([semantic.perplexity, acoustic.perplexity]),
        )

    def _shares(self, codebooks: int | None) -> tuple[int, int]:
        used = self.levels_used(codebooks)
        first = min(used, self.semantic.codebooks)
        return first, used - first

    def encode(self, latents, lengths=None, codebooks=None):
        first, second = self._shares(codebooks)
        codes = self.semantic.encode(latents, lengths, first)
        if not second:
            return codes
        return torch.cat([codes, self.acoustic.encode(latents, lengths, second)], dim=1)

    def decode(self, codes):
        self.check_codes(codes)
        first = self.semantic.codebooks
        total = self.semantic.decode(codes[:, :first])
        return total + self.acoustic.decode(codes[:, first:]) if codes.shape[1] > first else total

    def ties(self, latents: Tensor, codes: Tensor | None = None) -> Tensor:
        first = self.semantic.codebooks
        if codes is None:
            return torch.cat([self.semantic.ties(latents), self.acoustic.ties(latents)], dim=1)
        parts = [self.semantic.ties(latents, codes[:, :first])]
        if codes.shape[1] > first:
            parts.append(self.acoustic.ties(latents, codes[:, first:]))
        return torch.cat(parts, dim=1)

"""Group-residual vector quantization: the channels in groups, each with a residual quantizer of its own
(HiFi-Codec)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.quantizers.base import Quantized, Quantizer
from vivavoce.quantizers.residual import ResidualVectorQuantizer


class GroupedResidualVectorQuantizer(Quantizer):
    """Latents [B, T, width] in `groups` equal parts of their channels -> codes [B, K, T] (GRVQ, arXiv:2305.02765).

    The K codebooks are divided among the groups: code k is of group k mod groups, level k // groups, the order of
    AcademiCodec's models; of fewer codes than K, what a group lacks is zero. One level (K = groups) is product
    quantization. Further options are those of `ResidualVectorQuantizer`.
    """

    part: type[Any] = ResidualVectorQuantizer  # of a group

    def __init__(
        self,
        width: int,
        codebooks: int = 4,
        codebook_size: int | Sequence[int] = 1024,
        groups: int = 2,
        seed: int = 0,
        **options: Any,
    ):
        super().__init__()
        if groups < 1 or width % groups or codebooks % groups or codebooks < groups:
            raise RequestError(
                f"{codebooks} codebooks and frames of width {width} cannot be divided into {groups} equal groups"
            )
        sizes = [codebook_size] * codebooks if isinstance(codebook_size, int) else list(codebook_size)
        if len(sizes) != codebooks:
            raise RequestError(f"{codebooks} codebooks with {len(sizes)} sizes: give one size, or one each")
        self.width, self.codebook_sizes = width, tuple(sizes)
        self.groups = nn.ModuleList(
            self.part(
                width // groups, codebooks // groups, sizes[group::groups], seed=seed * groups + group, **options
            )
            for group in range(groups)
        )

    def parts(self) -> list[ResidualVectorQuantizer]:
        """The groups' quantizers in order."""
        return cast(list[ResidualVectorQuantizer], list(self.groups))

    def _shares(self, used: int) -> list[int]:
        """Codebooks of each group among the first `used`."""
        return [len(range(group, used, len(self.groups))) for group in range(len(self.groups))]

    def _split(self, latents: Tensor) -> tuple[Tensor, ...]:
        return latents.chunk(len(self.groups), dim=-1)

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """As the residual quantizer; `loss` is the mean of the groups'."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        pieces, losses = [], []
        codes = torch.zeros(len(latents), used, latents.shape[1], dtype=torch.int64, device=latents.device)
        usage, spread = torch.zeros(2, used, device=latents.device)
        for group, (part, piece, share) in enumerate(zip(self.parts(), self._split(latents), self._shares(used))):
            if not share:
                pieces.append(torch.zeros_like(piece))
                continue
            found = part(piece, lengths, share, generator)
            pieces.append(found.latents)
            losses.append(found.loss)
            at = slice(group, used, len(self.groups))
            codes[:, at], usage[at], spread[at] = found.codes, found.usage, found.perplexity
        with torch.autocast(latents.device.type, enabled=False):  # it cannot join float16
            joined = torch.cat(pieces, dim=-1)
        return Quantized(joined, codes, torch.stack(losses).mean(), usage, spread)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        codes = torch.zeros(len(latents), used, latents.shape[1], dtype=torch.int64, device=latents.device)
        for group, (part, piece, share) in enumerate(zip(self.parts(), self._split(latents), self._shares(used))):
            if share:
                codes[:, group :: len(self.groups)] = part.encode(piece, lengths, share)
        return codes

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        pieces = []
        for group, (part, share) in enumerate(zip(self.parts(), self._shares(codes.shape[1]))):
            silent = torch.zeros(len(codes), codes.shape[2], part.width, device=codes.device)
            pieces.append(part.decode(codes[:, group :: len(self.groups)]) if share else silent)
        return torch.cat(pieces, dim=-1)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        found = torch.zeros(len(latents), used, latents.shape[1], dtype=torch.bool, device=latents.device)
        for group, (part, piece, share) in enumerate(zip(self.parts(), self._split(latents), self._shares(used))):
            if share:
                at = slice(group, used, len(self.groups))
                found[:, at] = part.ties(piece, None if codes is None else codes[:, at])[:, :share]
        return found

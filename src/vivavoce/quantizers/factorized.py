"""Factorized residual vector quantization: nearest entries by angle, in a few dimensions, learned by gradient.

Sources: DAC (arXiv:2306.06546, section 3.3; dac/nn/quantize.py), which has the lookup in 8 dimensions and the
normalisation from ViT-VQGAN (arXiv:2110.04627).
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer, drawn_depths, health
from vivavoce.quantizers.nearest import nearest, ties

ROUNDING = 5e-7  # of squared distances of vectors of length 1, in float32


class FactorizedCodebook(nn.Module):
    """`size` entries of `inner` dimensions, and the linear maps (with bias) from `width` to them and back.

    What is looked up is the direction: point and entries are compared at length 1. What is given back is the entry
    itself, at its own length.
    """

    def __init__(self, width: int, size: int, inner: int):
        super().__init__()
        self.size = size
        self.input_projection, self.output_projection = nn.Linear(width, inner), nn.Linear(inner, width)
        self.entries = nn.Parameter(torch.randn(size, inner))

    @torch.no_grad()
    def search(self, z: Tensor) -> Tensor:
        """Codes of projected points [..., inner] -> [...] int64."""
        directions = F.normalize(z, dim=-1).flatten(0, -2)
        return nearest(directions, F.normalize(self.entries, dim=-1)).view(z.shape[:-1])

    def entry(self, codes: Tensor) -> Tensor:
        """The entries of codes [...], [..., inner]."""
        return self.entries[codes]

    def lookup(self, codes: Tensor) -> Tensor:
        """What codes [...] stand for, [..., width]."""
        return self.output_projection(self.entries[codes])

    @torch.no_grad()
    def ties(self, z: Tensor) -> Tensor:
        """Where the code of projected points [..., inner] is not certain, bool [...].

        Distances come of cosines near 1, which float32 rounds by some 1e-7 however near an entry is.
        """
        return ties(F.normalize(z.double(), dim=-1), F.normalize(self.entries.double(), dim=-1), floor=ROUNDING)


class FactorizedResidualVectorQuantizer(Quantizer):
    """K factorized codebooks in series (DAC): latents [B, T, width] -> codes [B, K, T].

    codebook_size, codebook_width: entries and their dimensions, one number or one for each codebook. dropout: share of
    the training rows that use only their first n codebooks, n uniform over `dropout_levels` (default 1..K). commitment,
    codebook: weights of the two halves of the loss, squared distances of the projected latents to their entries that
    move the encoder and the entries (0.25 and 1 in DAC), summed over the codebooks. Gradients pass the lookup straight
    through.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 9,
        codebook_size: int | Sequence[int] = 1024,
        codebook_width: int | Sequence[int] = 8,
        dropout: float = 0.0,
        dropout_levels: Sequence[int] | None = None,
        commitment: float = 0.25,
        codebook: float = 1.0,
    ):
        super().__init__()
        sizes, widths = (
            [given] * codebooks if isinstance(given, int) else list(given) for given in (codebook_size, codebook_width)
        )
        if codebooks < 1 or len(sizes) != codebooks or len(widths) != codebooks:
            raise RequestError(
                f"{codebooks} codebooks with {len(sizes)} sizes and {len(widths)} widths: give one, or one each"
            )
        self.width, self.codebook_sizes = width, tuple(sizes)
        if dropout_levels is not None and not all(1 <= level <= codebooks for level in dropout_levels):
            raise RequestError(f"dropout_levels {list(dropout_levels)}: each must be from 1 to {codebooks}")
        self.dropout, self.commitment, self.codebook = dropout, commitment, codebook
        self.dropout_levels = tuple(dropout_levels or range(1, codebooks + 1))
        inner = self._parts(torch.zeros(1, 1, width)).shape[-1]
        self.levels = nn.ModuleList(self._book(inner, *each) for each in zip(sizes, widths))

    def _book(self, inner: int, size: int, width: int) -> nn.Module:
        """A level for residuals of `inner` dimensions: `size` entries of `width`."""
        return FactorizedCodebook(inner, size, width)

    def books(self) -> list[FactorizedCodebook]:
        """The codebooks in order."""
        return cast(list[FactorizedCodebook], list(self.levels))

    # What differs where levels hear several frames at once (see `multi_scale`).

    def _parts(self, latents: Tensor) -> Tensor:
        """Latents [B, T, width] as the levels divide them among their residuals: [B, T, (n,) D]."""
        return latents

    def _pooled(self, residual: Tensor, level: int) -> Tensor:
        """What a level quantizes of the residual [B, T, (n,) D]: a point for each of its codes, [B, T, (r,) D]."""
        return residual

    def _spread(self, points: Tensor, level: int) -> Tensor:
        """The way back: [B, T, (r,) D] -> [B, T, (n,) D]."""
        return points

    def _joined(self, codes: list[Tensor], inside: Tensor) -> Tensor:
        """Codes of each level [B, T, (r)] as one tensor, whatever is not `inside` [B, T] blank."""
        return torch.stack([level * inside for level in codes], dim=1)

    def _codes(self, codes: Tensor, level: int) -> Tensor:
        """Codes of one level [B, T, (r)] in the tensor of all."""
        return codes[:, level]

    # The interface.

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws dropout; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        dropout = self.dropout if self.training else 0.0
        depth = drawn_depths(len(latents), used, self.dropout_levels, dropout, generator).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            residual = self._parts(zero_padding(latents.float(), lengths))
            quantized, loss = torch.zeros_like(residual), residual.new_zeros(())
            codes, seen = [], []
            for level, book in enumerate(self.books()[:used]):
                z = book.input_projection(self._pooled(residual, level))
                chosen = book.search(z)
                entries = book.entry(chosen)
                active = inside & (depth > level)[:, None]
                losses = self.commitment * F.mse_loss(z, entries.detach(), reduction="none")
                losses = losses + self.codebook * F.mse_loss(entries, z.detach(), reduction="none")
                loss = loss + (losses.flatten(2).mean(2) * active).sum() / inside.sum().clamp(min=1)
                y = self._spread(book.output_projection(z + (entries - z).detach()), level)
                residual = residual - y
                quantized = quantized + y * active.view(*active.shape, *[1] * (y.dim() - 2))
                codes.append(chosen)
                seen.append(health(chosen[active], book.size, self.training))
            frames = zero_padding(quantized.flatten(2), lengths)
        usage, spread = torch.stack([torch.stack(pair) for pair in seen], dim=1)
        return Quantized(frames.to(latents.dtype), self._joined(codes, inside), loss, usage, spread)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = [chosen for _, chosen in self.walk(latents, used)]
        return self._joined(codes, valid(lengths_of(latents, lengths), latents.shape[1]))

    def walk(self, latents: Tensor, used: int, codes: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of `used` levels its projected points [B, T, (r,) inner] and the codes that it gives them.

        With `codes`, as `encode` gives them, each level hears what those before it have left over (teacher-forced).
        """
        residual = self._parts(latents.float())
        for level, book in enumerate(self.books()[:used]):
            z = book.input_projection(self._pooled(residual, level))
            chosen = book.search(z)
            yield z, chosen
            if level + 1 < used:
                followed = chosen if codes is None else self._codes(codes, level)
                residual = residual - self._spread(book.lookup(followed), level)

    def said(self, latents: Tensor, codes: Tensor) -> list[Tensor]:
        """What each level says of latents [B, T, width] by its `codes`, [B, T, (r,) D], gradients passed straight
        through."""
        found = []
        with torch.autocast(latents.device.type, enabled=False):
            residual = self._parts(latents.float())
            for level, book in enumerate(self.books()[: codes.shape[1]]):
                z = book.input_projection(self._pooled(residual, level))
                entries = book.entry(self._codes(codes, level))
                found.append(book.output_projection(z + (entries - z).detach()))
                residual = residual - self._spread(found[-1], level)
        return found

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            levels = enumerate(self.books()[: codes.shape[1]])
            parts = (self._spread(book.lookup(self._codes(codes, level)), level) for level, book in levels)
            quantized = next(parts)
            for part in parts:
                quantized = quantized + part
        return quantized.flatten(2)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """As any quantizer's; squared distances are those of the normalised points and entries."""
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            found = [book.ties(z) for book, (z, _) in zip(self.books(), self.walk(latents, used, codes))]
        return self._joined(found, torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device))

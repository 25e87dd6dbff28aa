"""Vector and residual vector quantization: each codebook quantizes what those before it have left over."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid
from vivavoce.quantizers.base import Quantized, Quantizer, drawn_depths
from vivavoce.quantizers.codebook import Codebook
from vivavoce.quantizers.nearest import ties


class ResidualVectorQuantizer(Quantizer):
    """K codebooks in series (SoundStream, arXiv:2107.03312): latents [B, T, width] -> codes [B, K, T].

    codebook_size: entries, one number or one for each codebook. codebook_width: width of the entries; if it is not
    `width`, or if `project` says so, linear maps (1x1 convolutions, no bias) lead in and out. dropout: share of the
    training rows that use only their first n codebooks, n uniform over `dropout_levels` (default 1..K), the others
    neither heard nor updated by those rows. bypass: share of the training rows whose latents pass unquantized, the
    codebooks learning nevertheless (Mimi has 0.5). Further options are `Codebook`'s.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 8,
        codebook_size: int | Sequence[int] = 1024,
        codebook_width: int | None = None,
        project: bool | None = None,
        dropout: float = 0.0,
        dropout_levels: Sequence[int] | None = None,
        bypass: float = 0.0,
        **codebook: Any,
    ):
        super().__init__()
        sizes = [codebook_size] * codebooks if isinstance(codebook_size, int) else list(codebook_size)
        if codebooks < 1 or len(sizes) != codebooks:
            raise RequestError(f"{codebooks} codebooks with {len(sizes)} sizes: give one size, or one each")
        inner = width if codebook_width is None else codebook_width
        project = inner != width if project is None else project
        if inner != width and not project:
            raise RequestError(f"entries of width {inner} for latents of width {width} need projections")
        if dropout_levels is not None and not all(1 <= level <= codebooks for level in dropout_levels):
            raise RequestError(f"dropout_levels {list(dropout_levels)}: each must be from 1 to {codebooks}")
        self.width, self.codebook_sizes = width, tuple(sizes)
        self.dropout, self.bypass = dropout, bypass
        self.dropout_levels = tuple(dropout_levels or range(1, codebooks + 1))
        self.input_projection = nn.Linear(width, inner, bias=False) if project else nn.Identity()
        self.output_projection = nn.Linear(inner, width, bias=False) if project else nn.Identity()
        seed = codebook.pop("seed", 0)
        self.levels = nn.ModuleList(
            [Codebook(size, inner, seed=seed * 1009 + i, **codebook) for i, size in enumerate(sizes)]
        )

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws dropout and bypass; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        dropout = self.dropout if self.training else 0.0
        depth = drawn_depths(len(latents), used, self.dropout_levels, dropout, generator).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            points = self.input_projection(latents.float()[inside])
            quantized, codes, loss, health = self._quantize(points, depth[:, None].expand_as(inside)[inside], used)
            straight = points + (quantized - points).detach()
            if self.training and self.bypass:
                passes = torch.rand(len(latents), generator=generator).to(latents.device) < self.bypass
                straight = torch.where(passes[:, None].expand_as(inside)[inside][:, None], points, straight)
            y = self.output_projection(straight)
        frames = y.new_zeros(latents.shape).index_put(inside.nonzero(as_tuple=True), y)
        grid = codes.new_zeros(*inside.shape, used).index_put(inside.nonzero(as_tuple=True), codes)
        usage, perplexity = torch.stack([torch.stack(pair) for pair in health], dim=1)
        return Quantized(frames.to(latents.dtype), grid.transpose(1, 2).contiguous(), loss, usage, perplexity)

    def books(self) -> list[Codebook]:
        """The codebooks in order."""
        return cast(list[Codebook], list(self.levels))

    def heard(self, points: Tensor, residual: Tensor, level: int) -> Tensor:
        """What a level quantizes: the residual [..., D], unless a subclass takes something of the points themselves."""
        return residual

    def _quantize(self, points: Tensor, depth: Tensor, used: int):
        """Points [N, D] by the first depth [N] codebooks: sum [N, D], codes [N, used], loss, [(usage, perplexity)]."""
        residual, quantized = points, torch.zeros_like(points)
        codes, losses, health = [], [], []
        for level, codebook in enumerate(self.books()[:used]):
            active = depth > level
            here = self.heard(points, residual, level)
            plain = here.detach()
            if self.training:
                codebook.start(plain[active])
            chosen = codebook.search(plain)
            entries = codebook.lookup(chosen)
            heard = entries * active[:, None]
            if self.training:
                codebook.update(plain[active], chosen[active])
                health.append(codebook.health())
            else:
                health.append(codebook.health(torch.bincount(chosen, minlength=codebook.size)))
            error = F.mse_loss(here, entries, reduction="none").mean(1)
            losses.append((error * active).sum() / active.sum().clamp(min=1))
            residual = residual - heard
            quantized = quantized + heard
            codes.append(chosen)
        return quantized, torch.stack(codes, dim=1), torch.stack(losses).mean(), health

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            points = residual = self.input_projection(latents.float()).flatten(0, 1)
            codes = []
            for level, codebook in enumerate(self.books()[:used]):
                codes.append(codebook.search(self.heard(points, residual, level)))
                if level + 1 < used:
                    residual = residual - codebook.lookup(codes[-1])
        grid = torch.stack(codes).view(used, *latents.shape[:2]).transpose(0, 1)
        if lengths is None:
            return grid.contiguous()
        return grid * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            books = self.books()
            total = books[0].lookup(codes[:, 0])
            for level in range(1, codes.shape[1]):
                total = total + books[level].lookup(codes[:, level])
            return self.output_projection(total)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            points = residual = self.input_projection(latents.float())
            uncertain = []
            for level in range(self.codebooks if codes is None else codes.shape[1]):
                codebook, here = self.books()[level], self.heard(points, residual, level)
                uncertain.append(ties(here, codebook.embedding))
                chosen = codebook.search(here.flatten(0, 1)).view(here.shape[:2])
                residual = residual - codebook.lookup(chosen if codes is None else codes[:, level])
        return torch.stack(uncertain, dim=1)


class VectorQuantizer(ResidualVectorQuantizer):
    """A single codebook (VQ-VAE, arXiv:1711.00937): latents [B, T, width] -> codes [B, 1, T]."""

    def __init__(self, width: int, codebook_size: int = 1024, codebook_width: int | None = None, **options: Any):
        super().__init__(width, 1, codebook_size, codebook_width, **options)

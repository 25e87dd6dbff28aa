"""Ordered product quantization: streams of codes side by side, of which the first say most (SoCodec).

Source: Guo et al., arXiv:2409.00933, section 2.2; hhguo/SoCodec, socodec/networks/vqvae/vector_quantization.py.
"""

import math
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


class OrderedProductQuantizer(Quantizer):
    """Latents [B, T, width] -> codes [B, K, T] of `codebooks` streams, each of other channels of a linear map of them.

    heads: entries of the small codebooks whose product a stream's codebook is: its code is first + size of the first x
    second + …; head_width: channels of each. While training, each row keeps its first n streams, n uniform over 1..K,
    and zeros stand for the others (nested dropout), so that what is needed most comes first; all codebooks learn from
    all rows nevertheless. Of fewer codes than K, the streams that are missing are zeros too. Usage is the mean of a
    stream's codebooks, perplexity their product. Further options are `Codebook`'s.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 4,
        heads: Sequence[int] = (128, 128),
        head_width: int = 128,
        seed: int = 0,
        **codebook: Any,
    ):
        super().__init__()
        if codebooks < 1 or not heads or min(heads) < 2 or head_width < 1:
            raise RequestError(
                f"{codebooks} streams of heads {list(heads)}, {head_width} wide: one stream at least, of heads of two "
                "entries at least"
            )
        self.width, self.heads, self.head_width = width, tuple(heads), head_width
        self.codebook_sizes = (math.prod(heads),) * codebooks
        inner = codebooks * len(self.heads) * head_width
        self.input_projection, self.output_projection = nn.Linear(width, inner), nn.Linear(inner, width)
        self.levels = nn.ModuleList(
            Codebook(size, head_width, seed=seed * 1009 + number, **codebook)
            for number, size in enumerate(self.heads * codebooks)
        )

    def stream(self, number: int) -> list[Codebook]:
        """The codebooks of a stream."""
        count = len(self.heads)
        return cast(list[Codebook], list(self.levels[number * count : (number + 1) * count]))

    def _split(self, latents: Tensor) -> list[list[Tensor]]:
        """What each codebook of each stream hears of latents [..., width]: [..., head_width]."""
        parts = self.input_projection(latents.float()).split(self.head_width, dim=-1)
        count = len(self.heads)
        return [list(parts[at : at + count]) for at in range(0, len(parts), count)]

    def _whole(self, streams: Sequence[Tensor], like: Tensor) -> Tensor:
        """Quantized streams, each [N, channels], and zeros for those that are missing -> [N, width]."""
        known = torch.cat(list(streams), dim=-1)
        missing = like.new_zeros(*known.shape[:-1], self.output_projection.in_features - known.shape[-1])
        return self.output_projection(torch.cat([known, missing], dim=-1))

    def _joined(self, codes: Sequence[Tensor]) -> Tensor:
        """Codes of a stream's codebooks as one."""
        joined = torch.zeros_like(codes[0])
        for code, size in zip(reversed(codes), reversed(self.heads)):
            joined = joined * size + code
        return joined

    def _apart(self, codes: Tensor) -> list[Tensor]:
        """The way back."""
        found = []
        for size in self.heads:
            found.append(codes % size)
            codes = codes // size
        return found

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws how many streams each row keeps; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        dropout = 1.0 if self.training else 0.0
        depth = drawn_depths(len(latents), used, range(1, used + 1), dropout, generator).to(latents.device)
        depth = depth[:, None].expand_as(inside)[inside]
        streams, codes, losses, usage, spread = [], [], [], [], []
        with torch.autocast(latents.device.type, enabled=False):
            for number, parts in enumerate(self._split(latents[inside])[:used]):
                made, chosen, health = [], [], []
                for points, book in zip(parts, self.stream(number)):
                    plain = points.detach()
                    if self.training:
                        book.start(plain)
                    code = book.search(plain)
                    entries = book.lookup(code)
                    if self.training:
                        book.update(plain, code)
                    health.append(book.health(None if self.training else torch.bincount(code, minlength=book.size)))
                    losses.append(F.mse_loss(points, entries, reduction="none").sum() / max(points.numel(), 1))
                    made.append(points + (entries - points).detach())
                    chosen.append(code)
                streams.append(torch.cat(made, dim=-1) * (depth > number)[:, None])
                codes.append(self._joined(chosen))
                usage.append(torch.stack([share for share, _ in health]).mean())
                spread.append(torch.stack([each for _, each in health]).prod())
            y = self._whole(streams, streams[0])
        where = inside.nonzero(as_tuple=True)
        frames = y.new_zeros(latents.shape).index_put(where, y)
        grid = torch.zeros(*inside.shape, used, dtype=torch.int64, device=latents.device)
        grid = grid.index_put(where, torch.stack(codes, dim=1)).transpose(1, 2).contiguous()
        loss = torch.stack(losses).mean()
        return Quantized(frames.to(latents.dtype), grid, loss, torch.stack(usage), torch.stack(spread))

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used, codes = self.levels_used(codebooks), []
        with torch.autocast(latents.device.type, enabled=False):
            for number, parts in enumerate(self._split(latents)[:used]):
                chosen = [book.search(part.flatten(0, 1)) for part, book in zip(parts, self.stream(number))]
                codes.append(self._joined(chosen).view(latents.shape[:2]))
        return torch.stack(codes, dim=1) * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            streams = []
            for number in range(codes.shape[1]):
                heads = zip(self._apart(codes[:, number]), self.stream(number))
                streams.append(torch.cat([book.lookup(code) for code, book in heads], dim=-1))
            return self._whole(streams, streams[0])

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            found = []
            for number, parts in enumerate(self._split(latents)[:used]):
                heads = [ties(part, book.embedding) for part, book in zip(parts, self.stream(number))]
                found.append(torch.stack(heads).any(0))
        return torch.stack(found, dim=1)

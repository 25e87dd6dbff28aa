"""Residual quantizers whose codebooks learn by gradient: what those with entries of an unusual kind have in common."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer, drawn_depths, health


class LearnedCodebook(nn.Module):
    """`size` entries for points of `width` dimensions; a subclass says which entry a point gets and what it learns."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size, self.width = size, width

    def entries(self) -> Tensor:
        """What the codes stand for, [size, width], with its gradient."""
        raise NotImplementedError

    def scores(self, points: Tensor) -> Tensor:
        """The higher, the better an entry fits: points [N, width] -> [N, size], in the points' dtype."""
        raise NotImplementedError

    def drawn(self, codes: Tensor) -> Tensor:
        """What training decodes of codes [...], [..., width]: the entries, unless a subclass draws around them."""
        return self.entries()[codes]

    def distance(self, points: Tensor, codes: Tensor) -> Tensor:
        """What the entries learn by, for each point and its code: [N]. Points bring no gradient."""
        return (self.entries()[codes] - points).square().mean(-1)

    @torch.no_grad()
    def search(self, points: Tensor) -> Tensor:
        """The code of each point [..., width] -> [...] int64; of equally good ones the first."""
        return self.scores(points.flatten(0, -2)).argmax(1).view(points.shape[:-1])

    @torch.no_grad()
    def ties(self, points: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Where the two best scores are closer than `tolerance` of themselves: points [..., width] -> bool [...]."""
        if self.size < 2:
            return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
        best = self.scores(points.flatten(0, -2).double()).topk(2, dim=1).values
        return (best[:, 0] - best[:, 1] <= tolerance * best[:, 0].abs()).view(points.shape[:-1])


class LearnedResidualVectorQuantizer(Quantizer):
    """Codebooks in series: latents [B, T, width] -> codes [B, K, T]; each quantizes what those before have left over.

    commitment: weight of the squared distance that draws the encoder to its entries; what the entries learn by has
    weight 1, and both are means over the codebooks. dropout: share of the training rows that use only their first n
    codebooks, n uniform over 1..K. Gradients pass the lookup straight through.
    """

    def __init__(self, books: Sequence[LearnedCodebook], commitment: float = 0.25, dropout: float = 0.0):
        super().__init__()
        if not books:
            raise RequestError("a quantizer has at least one codebook")
        self.levels = nn.ModuleList(books)
        self.width, self.codebook_sizes = books[0].width, tuple(book.size for book in books)
        self.commitment, self.dropout = commitment, dropout

    def books(self) -> list[LearnedCodebook]:
        """The codebooks in order."""
        return cast(list[LearnedCodebook], list(self.levels))

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws dropout; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        dropout, levels = self.dropout if self.training else 0.0, range(1, self.codebooks + 1)
        depth = drawn_depths(len(latents), used, levels, dropout, generator).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            points = zero_padding(latents.float(), lengths)
            residual, quantized, losses = points, torch.zeros_like(points), []
            codes, seen = [], []
            for level, book in enumerate(self.books()[:used]):
                chosen = book.search(residual)
                active = inside & (depth > level)[:, None]
                said = book.drawn(chosen) if self.training else book.entries()[chosen]
                pull = F.mse_loss(residual, book.entries()[chosen].detach(), reduction="none").mean(-1)
                learned = book.distance(residual.detach(), chosen)
                losses.append(((self.commitment * pull + learned) * active).sum() / active.sum().clamp(min=1))
                heard = said.detach() * active[..., None]
                residual, quantized = residual - heard, quantized + heard
                codes.append(chosen * inside)
                seen.append(health(chosen[active], book.size, self.training))
            y = zero_padding(points + (quantized - points).detach(), lengths)
        usage, spread = torch.stack([torch.stack(pair) for pair in seen], dim=1)
        return Quantized(y.to(latents.dtype), torch.stack(codes, dim=1), torch.stack(losses).mean(), usage, spread)

    def walk(self, latents: Tensor, used: int, codes: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of `used` levels its points [B, T, width] and the codes that it gives them.

        With `codes`, each level hears what those before it have left over (teacher-forced).
        """
        residual = latents.float()
        for level, book in enumerate(self.books()[:used]):
            chosen = book.search(residual)
            yield residual, chosen
            residual = residual - book.entries()[chosen if codes is None else codes[:, level]]

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            codes = torch.stack([chosen for _, chosen in self.walk(latents, self.levels_used(codebooks))], dim=1)
        return codes * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            books = self.books()[: codes.shape[1]]
            return torch.stack([book.entries()[codes[:, level]] for level, book in enumerate(books)]).sum(0)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            walk = self.walk(latents, used, codes)
            return torch.stack([book.ties(points) for book, (points, _) in zip(self.books(), walk)], dim=1)

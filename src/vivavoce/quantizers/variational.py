"""Residual codebooks as a mixture of normal distributions, learned by a bound of the latents' likelihood (CLaM-TTS).

Source: Kim et al., arXiv:2404.02781, section 3.2 (probabilistic residual vector quantization). A latent is normal
around the sum of its entries, of one variance in all dimensions, and every combination of codes is as likely as any.
The codes' posterior is factorised, one factor a level, each computed with the codes of the other levels as the plain
residual search finds them; so every entry that could be meant learns, not the nearest alone, and none is left behind.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.streaming import lengths_of, valid
from vivavoce.quantizers.codebook import Codebook
from vivavoce.quantizers.collective import gathered
from vivavoce.quantizers.learned import LearnedCodebook, LearnedResidualVectorQuantizer

LEAST = 1e-4  # deviation of points that do not differ

class MixtureCodebook(LearnedCodebook):
    """`size` entries that learn by gradient, but not by `distance`; they begin by k-means over the first batch."""

    initialized: Tensor

    def __init__(self, size: int, width: int, seed: int = 0):
        super().__init__(size, width)
        self.free = nn.Parameter(torch.randn(size, width) / width**0.5)
        self.seed = seed
        self.register_buffer("initialized", torch.zeros(1))

    def entries(self):
        return self.free

    def scores(self, points):
        entries = self.free.to(points.dtype)
        return points @ entries.t() - entries.square().sum(1) / 2

    def distance(self, points, codes):
        return points.new_zeros(points.shape[:-1])

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """Before the first update: entries by k-means over `points` [N, width] of all processes."""
        book = Codebook(self.size, self.width, seed=self.seed).to(points.device)
        book.start(points)
        if bool(book.initialized):
            self.free.copy_(book.embedding)
            self.initialized.fill_(1)


class VariationalResidualVectorQuantizer(LearnedResidualVectorQuantizer):
    """K codebooks in series: latents [B, T, width] -> codes [B, K, T]; codes are those of a plain residual search.

    loss: `commitment` times the squared distance that draws the encoder to its entries, and `bound` times the negative
    evidence lower bound of the latents in nats a dimension, of which entries and variance learn, and not the encoder.
    deviation: where the variance's root begins, in deviations of the first batch.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 32,
        codebook_size: int = 1024,
        commitment: float = 0.25,
        bound: float = 1.0,
        deviation: float = 0.3,
        seed: int = 0,
    ):
        books = [MixtureCodebook(codebook_size, width, seed * 1009 + level) for level in range(codebooks)]
        super().__init__(books, commitment)
        self.weight, self.deviation = bound, deviation
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        with torch.autocast(latents.device.type, enabled=False):
            points = latents.detach().float()[inside]
            if self.training:
                self._start(points, used)
            found = super().forward(latents, lengths, codebooks, generator)
            codes = found.codes.transpose(1, 2)[inside]
            return replace(found, loss=found.loss + self.weight * self.negative_bound(points, codes))

    @torch.no_grad()
    def _start(self, points: Tensor, used: int) -> None:
        """Entries of levels that have heard nothing, from what those before have left over."""
        residual = points
        for level, book in enumerate(self.books()[:used]):
            assert isinstance(book, MixtureCodebook)
            if not bool(book.initialized):
                if level == 0:
                    self._narrow(gathered(points))
                book.start(residual)
            residual = residual - book.entries()[book.search(residual)]

    def _narrow(self, points: Tensor) -> None:
        """The variance begins at a share of that of points [N, width]."""
        if len(points) > 1:
            around = max(float(points.var(0).mean().sqrt()), LEAST)
            self.log_variance.fill_(2 * math.log(self.deviation * around))

    def posteriors(self, points: Tensor, codes: Tensor) -> list[Tensor]:
        """For each level of codes [N, K], how likely its entries are for points [N, width], the other levels' codes
        given: [N, size] each, of sum 1, without gradient."""
        with torch.no_grad():
            chosen = [book.entries()[codes[:, level]] for level, book in enumerate(self.books()[: codes.shape[1]])]
            left = points - torch.stack(chosen).sum(0)
            scores = [book.scores(left + entry) for book, entry in zip(self.books(), chosen)]
            return [(each / self.log_variance.exp()).softmax(-1) for each in scores]

    def negative_bound(self, points: Tensor, codes: Tensor) -> Tensor:
        """Of points [N, width] and the codes [N, K] that the search gives them, the mean in nats a dimension; 0 where
        there are none. The expectation over all combinations of codes is exact, since levels are independent."""
        if not len(points):
            return self.log_variance.sum() * 0
        mean, spread, apart = torch.zeros_like(points), points.new_zeros(len(points)), points.new_zeros(len(points))
        for book, shares in zip(self.books(), self.posteriors(points, codes)):
            expected = shares @ book.entries()
            mean = mean + expected
            spread = spread + shares @ book.entries().square().sum(1) - expected.square().sum(1)
            apart = apart + torch.special.xlogy(shares, shares).sum(1) + math.log(book.size)
        error = F.mse_loss(mean, points, reduction="none").sum(1) + spread
        nats = error / (2 * self.log_variance.exp()) + apart
        return nats.mean() / self.width + (math.log(2 * math.pi) + self.log_variance) / 2

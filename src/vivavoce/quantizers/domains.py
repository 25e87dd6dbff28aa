"""One codebook whose entries are shared out among domains: speech, music and sound (UniCodec).

Source: Jiang et al., arXiv:2502.20067, section 3.2; Jiang-Yidi/UniCodec, encoder/quantization/simvq_moe.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.quantizers.learned import LearnedResidualVectorQuantizer
from vivavoce.quantizers.sim_vq import SimCodebook

UNKNOWN = -1  # a domain that is not told: all entries are searched


class DomainCodebook(SimCodebook):
    """SimVQ's entries, divided among domains one behind another: `sizes` of each. While `domains` [B] are set, a point
    of row b gets the best of that domain's entries."""

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__(sum(sizes), width)
        self.sizes, self.domains = sizes, torch.zeros(0, dtype=torch.int64)

    def outside(self, points: Tensor) -> Tensor | None:
        """Which entries rows of points [B, T, width] may not have, [B, size]; None: they may have any."""
        if not len(self.domains):
            return None
        if points.dim() != 3 or len(points) != len(self.domains):
            raise RequestError(f"{len(self.domains)} domains for points {tuple(points.shape)}: one a row is needed")
        owner = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes)).to(points.device)
        told = self.domains.to(points.device)[:, None]
        return (owner != told) & (told != UNKNOWN)

    @torch.no_grad()
    def search(self, points):
        return self._scored(points).argmax(-1)

    @torch.no_grad()
    def ties(self, points, tolerance=1e-5):
        if self.size < 2:
            return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
        best = self._scored(points.double()).topk(2, dim=-1).values
        return best[..., 0] - best[..., 1] <= tolerance * best[..., 0].abs()

    def _scored(self, points: Tensor) -> Tensor:
        scores, outside = self.scores(points.flatten(0, -2)).unflatten(0, points.shape[:-1]), self.outside(points)
        return scores if outside is None else scores.masked_fill(outside[:, None], -torch.inf)


class DomainVectorQuantizer(LearnedResidualVectorQuantizer):
    """Latents [B, T, width] -> codes [B, 1, T]: SimVQ with entries for each of `domains`, name -> how many, in order.

    `within(names)` says of what domain each row of a batch is; only that domain's entries are then searched, and only
    they are drawn to its points. Untold, all are. commitment: the paper's beta.
    """

    def __init__(self, width: int, domains: Mapping[str, int] | None = None, commitment: float = 0.25):
        named = {"speech": 4096, "music": 4096, "sound": 8192} if domains is None else dict(domains)
        if not named or min(named.values()) < 1:
            raise RequestError(f"domains {named}: at least one, with an entry each at least")
        super().__init__([DomainCodebook(tuple(named.values()), width)], commitment)
        self.domains = tuple(named)

    @property
    def book(self) -> DomainCodebook:
        """The codebook, by its type."""
        found = self.books()[0]
        assert isinstance(found, DomainCodebook)
        return found

    def numbers(self, names: list[str | None]) -> Tensor:
        """Domains as numbers [B], -1 of None. `RequestError` names one that there is not."""
        unknown = [name for name in names if name is not None and name not in self.domains]
        if unknown:
            raise RequestError(f"domain '{unknown[0]}': there are {', '.join(self.domains)}")
        return torch.tensor([UNKNOWN if name is None else self.domains.index(name) for name in names])

    @contextmanager
    def within(self, domains: list[str | None] | Tensor) -> Iterator[None]:
        """Inside, rows of batches are of these domains: names (None: not known), or numbers [B]."""
        before, self.book.domains = self.book.domains, (
            domains if isinstance(domains, Tensor) else self.numbers(domains)
        )  # fmt: skip
        try:
            yield
        finally:
            self.book.domains = before

    def domain_of(self, codes: Tensor) -> Tensor:
        """The domain's number of each code, in the codes' shape."""
        ends = torch.tensor(self.book.sizes, device=codes.device).cumsum(0)
        return torch.bucketize(codes, ends, right=True)

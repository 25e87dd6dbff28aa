"""Residual quantization on the sphere: a direction, and reflections that turn it towards the one that is meant.

Gull's SRVQ (Luo et al., arXiv:2404.04947, section III-C; yluo42/SRVQ, SRVQ.py): what the shape of a band is has no
length, so that what a codebook leaves over is no difference but a turn. The first codebook has unit vectors, moving
averages as anywhere; an entry of the others is the Householder reflection y - 2 (y r) r by a unit vector r, which
learns by gradient, or no reflection at all (entry 0).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid
from vivavoce.quantizers.base import Quantized, Quantizer, drawn_depths, health
from vivavoce.quantizers.codebook import Codebook
from vivavoce.quantizers.grouped import GroupedResidualVectorQuantizer
from vivavoce.quantizers.nearest import TIE, ties

EPSILON = 1e-6  # length below which a vector has no direction
CERTAIN = 1e-6  # difference of squared distances between unit vectors that rounding does not make


class SphericalCodebook(Codebook):
    """Entries are the directions of the moving averages."""

    def _derive(self):
        with torch.no_grad():
            entries = F.normalize(self.embedding_sum, dim=1, eps=EPSILON)
            return entries, entries.square().sum(1) / 2


class Reflections(nn.Module):
    """`size` ways to turn a vector of `width` numbers; the first leaves it as it is."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size = size
        self.axes = nn.Parameter(torch.randn(size, width))

    def normals(self) -> Tensor:
        """Unit vectors [size, width], the first zero."""
        found = F.normalize(self.axes, dim=1, eps=EPSILON)
        return torch.cat([torch.zeros_like(found[:1]), found[1:]])

    @torch.no_grad()
    def distances(self, points: Tensor, said: Tensor) -> Tensor:
        """How far points [..., width] are from each turn of `said`, but for what all of them have in common: squared
        distances [..., size], of unit vectors."""
        normals = self.normals().to(points.dtype)
        return 4 * (points @ normals.T) * (said @ normals.T)

    def turned(self, said: Tensor, codes: Tensor) -> Tensor:
        """`said` [..., width] by the reflections of codes [...]."""
        normals = self.normals()[codes]
        return said - 2 * (said * normals).sum(-1, keepdim=True) * normals


class SphericalResidualQuantizer(Quantizer):
    """Directions of latents [B, T, width] -> codes [B, K, T]; quantized latents have length 1.

    dropout: share of the training rows that use only their first n codebooks, n uniform over `dropout_levels` (default
    1..K). loss: mean over codebooks of the mean squared distance to what each prefix of codes says, half of it by the
    encoder and half by the reflections. Further options are the first codebook's (`Codebook`).
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 4,
        codebook_size: int | Sequence[int] = 1024,
        dropout: float = 0.0,
        dropout_levels: Sequence[int] | None = None,
        **codebook: Any,
    ):
        super().__init__()
        sizes = [codebook_size] * codebooks if isinstance(codebook_size, int) else list(codebook_size)
        if len(sizes) != codebooks or min(sizes, default=0) < 2:
            raise RequestError(f"{codebooks} codebooks of sizes {sizes}: give one size or one each, from 2 up")
        self.width, self.codebook_sizes, self.dropout = width, tuple(sizes), dropout
        self.dropout_levels = tuple(dropout_levels or range(1, codebooks + 1))
        self.first = SphericalCodebook(sizes[0], width, **codebook)
        self.levels = nn.ModuleList(Reflections(size, width) for size in sizes[1:])

    def turns(self, used: int) -> list[Reflections]:
        """Of all but the first of `used` codebooks."""
        return cast(list[Reflections], list(self.levels)[: used - 1])

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws dropout; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        dropout = self.dropout if self.training else 0.0
        depths = drawn_depths(len(latents), used, self.dropout_levels, dropout, generator).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            points = F.normalize(latents.float()[inside], dim=-1, eps=EPSILON)
            said, codes, loss, seen = self._quantize(points, depths[:, None].expand_as(inside)[inside], used)
        places = inside.nonzero(as_tuple=True)
        frames = said.new_zeros(latents.shape).index_put(places, said)
        grid = codes.new_zeros(*inside.shape, used).index_put(places, codes)
        usage, spread = torch.stack([torch.stack(pair) for pair in seen], dim=1)
        return Quantized(frames.to(latents.dtype), grid.transpose(1, 2).contiguous(), loss, usage, spread)

    def _quantize(self, points: Tensor, depths: Tensor, used: int):
        """Unit vectors [N, D] by the first depths [N] codebooks: what is said [N, D], codes [N, used], loss, health."""
        plain = points.detach()
        if self.training:
            self.first.start(plain)
        chosen = self.first.search(plain)
        entries = self.first.lookup(chosen)
        if self.training:
            self.first.update(plain, chosen)
            seen = [self.first.health()]
        else:
            seen = [self.first.health(torch.bincount(chosen, minlength=self.first.size))]
        said = points + (entries - points).detach()
        codes, losses = [chosen], [(points - entries).square().mean(1).sum() / max(1, len(points))]
        for level, book in enumerate(self.turns(used), 1):
            active = depths > level
            chosen = book.distances(plain, said.detach()).argmin(1)
            said = torch.where(active[:, None], book.turned(said, chosen), said)
            apart = (points - said.detach()).square() + (plain - said).square()
            losses.append((apart.mean(1) * active).sum() / (2 * active.sum().clamp(min=1)))
            seen.append(health(chosen[active], book.size, self.training))
            codes.append(chosen)
        return said, torch.stack(codes, dim=1), torch.stack(losses).mean(), seen

    def _walk(self, latents: Tensor, used: int, codes: Tensor | None):
        """For each level the unit vectors, what the levels before say of them (of `codes`, where given), and its own
        codes; float32."""
        points = F.normalize(latents.float(), dim=-1, eps=EPSILON)
        chosen = self.first.search(points.flatten(0, 1)).view(points.shape[:2])
        yield points, None, chosen
        said = self.first.lookup(chosen if codes is None else codes[:, 0])
        for level, book in enumerate(self.turns(used), 1):
            chosen = book.distances(points, said).argmin(-1)
            yield points, said, chosen
            said = book.turned(said, chosen if codes is None else codes[:, level])

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            walk = self._walk(latents, self.levels_used(codebooks), None)
            codes = torch.stack([chosen for _, _, chosen in walk], dim=1)
        return codes if lengths is None else codes * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        with torch.autocast(codes.device.type, enabled=False):
            said = self.first.lookup(codes[:, 0])
            for level, book in enumerate(self.turns(codes.shape[1]), 1):
                said = book.turned(said, codes[:, level])
            return said

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        used, found = self.codebooks if codes is None else codes.shape[1], []
        with torch.autocast(latents.device.type, enabled=False):
            for level, (points, said, _) in enumerate(self._walk(latents, used, codes)):
                if said is None:
                    found.append(ties(points, self.first.embedding, floor=CERTAIN))
                    continue
                points, said = points.double(), said.double()
                common = (points - said).square().sum(-1, keepdim=True)
                apart = common + self.turns(used)[level - 1].distances(points, said)
                best = apart.topk(2, dim=-1, largest=False).values
                found.append(best[..., 1] - best[..., 0] <= (TIE * best[..., 1]).clamp(min=CERTAIN))
        return torch.stack(found, dim=1)


class GroupedSphericalQuantizer(GroupedResidualVectorQuantizer):
    """Latents [B, T, width] in `groups` equal parts, each by a spherical quantizer of its own; codes in the order of
    `GroupedResidualVectorQuantizer`."""

    part = SphericalResidualQuantizer

"""One learned codebook: entries as running means of the vectors that chose them.

Exponential moving averages as in van den Oord et al. 2017 (arXiv:1711.00937, appendix A.1), k-means start and
replacement of dead entries as in SoundStream (arXiv:2107.03312) and EnCodec (arXiv:2210.13438).
"""

import torch
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.quantizers.base import perplexity
from vivavoce.quantizers.collective import gathered, total
from vivavoce.quantizers.kmeans import kmeans, sample
from vivavoce.quantizers.nearest import nearest

EPSILON = 1e-5
NOT_FINITE = (
    "latents are not finite (NaN or infinite), the codebooks stay as they were: the training has run away, or a "
    "recording of the batch is broken"
)


class Codebook(nn.Module):
    """`size` entries [size, width] = embedding_sum / cluster_usage, both moving averages over training batches.

    decay: of the averages. smoothing: Laplace's, of the usage (EnCodec has 1e-5; Mimi none: 0). Until the first
    training batch (`initialized` is 0) entries are random; that batch starts them by k-means. Every
    `replace_every` updates, an entry whose usage is below `dead_ratio` of the mean is replaced by a vector of the
    batch, and its averages with it. In a data-parallel training the statistics are those of the joint batch, so that
    all processes keep the same codebook. `seed` with the number of updates decides every random choice.
    """

    embedding_sum: Tensor
    cluster_usage: Tensor
    initialized: Tensor
    updates: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        decay: float = 0.99,
        smoothing: float = EPSILON,
        dead_ratio: float = 0.1,
        replace_every: int = 5,
        start_iterations: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        self.size, self.width = size, width
        self.decay, self.smoothing = decay, smoothing
        self.dead_ratio, self.replace_every = dead_ratio, replace_every
        self.start_iterations, self.seed = start_iterations, seed
        self.register_buffer("embedding_sum", torch.randn(size, width) / width**0.5)
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("initialized", torch.zeros(1))
        self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))
        self._derived: tuple | None = None
        self._searched: tuple[Tensor, Tensor] | None = None

    @property
    def embedding(self) -> Tensor:
        """The entries [size, width]."""
        return self.derived()[0]

    def derived(self) -> tuple[Tensor, Tensor]:
        """Entries and half their squared norms, recomputed only when the averages have changed."""
        source = (self.embedding_sum, self.cluster_usage)
        if any(tensor.is_inference() for tensor in source):
            return self._derive()
        versions = tuple(tensor._version for tensor in source)
        kept = self._derived
        if kept is None or kept[0] is not source[0] or kept[1] is not source[1] or kept[2] != versions:
            kept = (*source, versions, self._derive())
            self._derived = kept
        return kept[3]

    def _derive(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            entries = self.embedding_sum / self._divisor(self.cluster_usage)[:, None]
            return entries, entries.square().sum(1) / 2

    def _divisor(self, usage: Tensor) -> Tensor:
        if self.smoothing:
            mass = usage.sum()
            usage = (usage + self.smoothing) / (mass + self.size * self.smoothing) * mass
        return usage.clamp(min=EPSILON)

    def search(self, points: Tensor) -> Tensor:
        """Nearest entry of points [N, width] float32 -> [N] int64."""
        entries, half_norms = self.derived()
        if self._searched is None or self._searched[0] is not entries:
            # With the width first in memory: a few points then read all entries at twice the speed.
            self._searched = (entries, entries.t().contiguous().t())
        return nearest(points, self._searched[1], half_norms)

    def lookup(self, codes: Tensor) -> Tensor:
        """Entries of codes [...] -> [..., width]."""
        return self.derived()[0][codes]

    @torch.no_grad()
    def load(self, entries: Tensor, usage: Tensor | None = None) -> None:
        """Take published entries [size, width], with their `usage` [size] if the format keeps it."""
        if entries.shape != self.embedding_sum.shape:
            raise CheckpointError(
                f"codebook of {tuple(entries.shape)} in the checkpoint, {tuple(self.embedding_sum.shape)} in the model"
            )
        if usage is None or not bool((usage > 0).any()):
            usage = torch.ones(self.size)
        self.cluster_usage.copy_(usage)
        self.embedding_sum.copy_(entries.to(self.embedding_sum) * self._divisor(self.cluster_usage)[:, None])
        self.initialized.fill_(1)

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """Before the first update: entries by k-means over `points` [N, width] of all processes."""
        if bool(self.initialized):
            return
        joint = gathered(points)
        if joint.shape[0] == 0:
            return
        if not bool(joint.isfinite().all()):
            raise RequestError(NOT_FINITE)
        generator = self._generator()
        if joint.shape[0] < self.size:
            spread = joint.std(0, unbiased=False) * 0.01
            centers = sample(joint, self.size, generator)
            centers += spread * torch.randn(centers.shape, generator=generator).to(centers)
            counts = torch.ones(self.size)
        else:
            joint = sample(joint, min(joint.shape[0], 64 * self.size), generator)
            found = kmeans(joint, self.size, self.seed, iterations=self.start_iterations, start="sample")
            centers, counts = found.centers, found.counts
        self.cluster_usage.copy_(counts.clamp(min=1))
        self.embedding_sum.copy_(centers * self._divisor(self.cluster_usage)[:, None])
        self.initialized.fill_(1)

    @torch.no_grad()
    def update(self, points: Tensor, codes: Tensor) -> None:
        """Move the averages by a batch: points [N, width] and the codes [N] they chose.

        Raises `RequestError`, and moves nothing, where a point is not finite: the averages would never be rid of it.
        """
        chosen = torch.zeros(self.size, self.width + 1, device=points.device)
        chosen.index_add_(0, codes, torch.cat([points, points.new_ones(points.shape[0], 1)], dim=1))
        chosen = total(chosen)
        heard, finite = torch.stack([(chosen[:, -1] > 0).any(), chosen.isfinite().all()]).tolist()
        if not finite:
            raise RequestError(NOT_FINITE)
        if not heard:
            return
        self.cluster_usage.lerp_(chosen[:, -1], 1 - self.decay)
        self.embedding_sum.lerp_(chosen[:, :-1], 1 - self.decay)
        self.updates += 1
        if int(self.updates) % self.replace_every == 0:
            self._replace_dead(points)

    def _replace_dead(self, points: Tensor) -> None:
        mean = self.cluster_usage.mean()
        dead = self.cluster_usage < self.dead_ratio * mean
        if not bool(dead.any()):
            return
        fresh = sample(gathered(points), self.size, self._generator())
        usage = torch.where(dead, mean, self.cluster_usage)
        self.embedding_sum.copy_(
            torch.where(dead[:, None], fresh * self._divisor(usage)[:, None], self.embedding_sum)
        )
        self.cluster_usage.copy_(usage)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.updates))

    def health(self, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Usage (share of entries that are not dead) and perplexity; of a batch's `counts` [size], or the averages."""
        if counts is not None:
            return (counts > 0).float().mean(), perplexity(counts.float())
        usage = self.cluster_usage
        return (usage >= self.dead_ratio * usage.mean()).float().mean(), perplexity(usage)

"""Codes that are normal distributions, which keeps a margin between them: NDVQ.

Source: Niu et al., arXiv:2409.12717: a point gets the code whose distribution gives it the highest density; training
decodes a sample of it, inference its mean. The paper's weights of the losses are not public: see `NormalCodebook`.
"""

import torch
from torch import Tensor, nn

from vivavoce.quantizers.learned import LearnedCodebook, LearnedResidualVectorQuantizer


class NormalCodebook(LearnedCodebook):
    """`size` normal distributions of independent dimensions: `mean` and `log_deviation` [size, width].

    Means learn by squared distance, as in VQ-VAE; the deviations by the points' likelihood, of weight `likelihood`.
    Deviations stay above `narrowest`, so that every code keeps a margin.
    """

    def __init__(self, size: int, width: int, deviation: float = 0.3, narrowest: float = 0.05, likelihood: float = 0.1):
        super().__init__(size, width)
        self.mean = nn.Parameter(torch.randn(size, width) / width**0.5)
        self.log_deviation = nn.Parameter(torch.full((size, width), deviation / width**0.5).log())
        self.narrowest, self.likelihood = narrowest / width**0.5, likelihood

    def entries(self):
        return self.mean

    def deviations(self) -> Tensor:
        """Of each code and dimension, [size, width]."""
        return self.log_deviation.exp().clamp(min=self.narrowest)

    def scores(self, points):
        deviation, mean = self.deviations().to(points.dtype), self.mean.to(points.dtype)
        precision = deviation.square().reciprocal()
        constant = -(mean.square() * precision).sum(1) / 2 - deviation.log().sum(1)
        return constant + points @ (mean * precision).t() - points.square() @ precision.t() / 2

    def drawn(self, codes):
        """mean + deviation x noise, of torch's global generator."""
        mean, deviation = self.mean[codes], self.deviations()[codes]
        return mean + deviation * torch.randn_like(mean)

    def distance(self, points, codes):
        apart, deviation = (points - self.mean[codes]).square(), self.deviations()[codes]
        density = apart.detach() / (2 * deviation.square()) + deviation.log()
        return (apart + self.likelihood * density).mean(-1)


class NormalVectorQuantizer(LearnedResidualVectorQuantizer):
    """Latents [B, T, width] -> codes [B, K, T] by the likeliest normal distributions (NDVQ), residual.

    deviation, narrowest: first deviation of the codes and the least, times width^-0.5. Other options: see
    `LearnedResidualVectorQuantizer`.
    """

    def __init__(
        self,
        width: int,
        codebooks: int = 8,
        codebook_size: int = 1024,
        deviation: float = 0.3,
        narrowest: float = 0.05,
        likelihood: float = 0.1,
        commitment: float = 0.25,
        dropout: float = 0.0,
    ):
        options = {"deviation": deviation, "narrowest": narrowest, "likelihood": likelihood}
        books = [NormalCodebook(codebook_size, width, **options) for _ in range(codebooks)]
        super().__init__(books, commitment, dropout)

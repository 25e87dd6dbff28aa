"""SimVQ: a codebook that does not learn, seen through one linear map that does, so that no entry can be left behind.

Source: Zhu et al., arXiv:2411.02038, section 4; youngsheen/SimVQ, taming/modules/vqvae/quantize.py.
"""

import torch
from torch import Tensor, nn

from vivavoce.quantizers.learned import LearnedCodebook, LearnedResidualVectorQuantizer


class SimCodebook(LearnedCodebook):
    """Entries = W c + b of fixed random c: a gradient for one entry moves the space that all entries span."""

    basis: Tensor

    def __init__(self, size: int, width: int):
        super().__init__(size, width)
        self.register_buffer("basis", torch.randn(size, width) / width**0.5)
        self.project = nn.Linear(width, width)

    def entries(self):
        return self.project(self.basis)

    def scores(self, points):
        entries = self.entries().to(points.dtype)
        return points @ entries.t() - entries.square().sum(1) / 2


class SimVectorQuantizer(LearnedResidualVectorQuantizer):
    """Latents [B, T, width] -> codes [B, K, T] by nearest entries of re-parameterised codebooks (SimVQ).

    commitment: the paper's beta. Options: see `LearnedResidualVectorQuantizer`.
    """

    def __init__(
        self, width: int, codebook_size: int = 1024, codebooks: int = 1, commitment: float = 0.25, dropout: float = 0.0
    ):
        super().__init__([SimCodebook(codebook_size, width) for _ in range(codebooks)], commitment, dropout)

"""Masked-channel residual vector quantization: the first codebooks divide the channels among themselves (MCRVQ)."""

from typing import Any

import torch

from vivavoce.errors import RequestError
from vivavoce.quantizers.residual import ResidualVectorQuantizer


class MaskedChannelVectorQuantizer(ResidualVectorQuantizer):
    """K codebooks, of which the first `masked` each hear another part of the channels and nothing else (Language-Codec,
    arXiv:2402.12208, section 3.2); the following hear what all before them have left over.

    So the first codes carry equally much, where those of a plain residual quantizer carry most in the first. Entries
    have all channels; those of masked codebooks are zero outside their part once they have heard a batch. The parts are
    the reference's (encodec/quantization/core_vq.py: from k * width // masked on). Its `encode` forgets the masks, so
    that its codes are not those it was trained with; ours are. Further options are `ResidualVectorQuantizer`'s.
    """

    def __init__(
        self, width: int, codebooks: int = 4, codebook_size: int = 1024, masked: int = 3, **options: Any
    ):
        super().__init__(width, codebooks, codebook_size, **options)
        inner = self.books()[0].width
        if not 1 <= masked <= min(codebooks, inner):
            raise RequestError(
                f"masked={masked}: from 1 to the {codebooks} codebooks, each with some of {inner} channels"
            )
        edges = [part * inner // masked for part in range(masked + 1)]
        masks = torch.zeros(masked, inner)
        for mask, start, end in zip(masks, edges, edges[1:]):
            mask[start:end] = 1
        for book, mask in zip(self.books(), masks):
            book.embedding_sum.mul_(mask)
        self.register_buffer("masks", masks, persistent=False)
        self.masks: torch.Tensor

    def heard(self, points, residual, level):
        return points * self.masks[level] if level < len(self.masks) else residual

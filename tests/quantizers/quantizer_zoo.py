"""One small instance of every registered quantizer, with codebooks that are neither empty nor random noise."""

import torch

from vivavoce.quantizers import build_quantizer

CONFIGS = {
    "vq": {"kind": "vq", "width": 8, "codebook_size": 32},
    "rvq": {"kind": "rvq", "width": 8, "codebooks": 4, "codebook_size": [32, 16, 16, 8]},
    "rvq-projected": {"kind": "rvq", "width": 8, "codebooks": 3, "codebook_size": 16, "codebook_width": 4},
    "split_rvq": {"kind": "split_rvq", "width": 8, "codebooks": 4, "codebook_size": 16, "codebook_width": 6},
    "fsq": {"kind": "fsq", "width": 4, "levels": [8, 5, 4, 3]},
    "fsq-projected": {"kind": "fsq", "width": 8, "levels": [7, 2, 5]},
}


def trained(name: str, steps: int = 12):
    """The quantizer after some training steps on white noise, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    quantizer = build_quantizer(CONFIGS[name])
    for _ in range(steps):
        quantizer(torch.randn(4, 50, quantizer.width, generator=generator))
    return quantizer.eval()

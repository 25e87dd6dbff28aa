"""One small instance of every registered quantizer, with codebooks that are neither empty nor random noise."""

import torch

from vivavoce.quantizers import build_quantizer

CONFIGS = {
    "vq": {"kind": "vq", "width": 8, "codebook_size": 32},
    "rvq": {"kind": "rvq", "width": 8, "codebooks": 4, "codebook_size": [32, 16, 16, 8]},
    "rvq-projected": {"kind": "rvq", "width": 8, "codebooks": 3, "codebook_size": 16, "codebook_width": 4},
    "split_rvq": {"kind": "split_rvq", "width": 8, "codebooks": 4, "codebook_size": 16, "codebook_width": 6},
    "factorized_rvq": {"kind": "factorized_rvq", "width": 12, "codebooks": 3, "codebook_size": [32, 16, 8],
                       "codebook_width": 4},
    "multi_scale_rvq": {"kind": "multi_scale_rvq", "width": 4 * 12, "strides": [4, 2, 1], "codebook_size": 16,
                        "codebook_width": 4},
    "grouped_rvq": {"kind": "grouped_rvq", "width": 8, "codebooks": 4, "codebook_size": [32, 24, 16, 8], "groups": 2},
    "frozen_rvq": {"kind": "frozen_rvq", "width": 4 * 6, "strides": [4, 2, 1], "entries": 20, "inner": 5, "words": 12},
    "ordered_pq": {"kind": "ordered_pq", "width": 8, "codebooks": 3, "heads": [4, 3], "head_width": 5},
    "grouped_fsq": {"kind": "grouped_fsq", "width": 10, "levels": [5, 4, 3], "groups": 2, "residuals": 2},
    "masked_channel_rvq": {"kind": "masked_channel_rvq", "width": 9, "codebooks": 4, "codebook_size": 16},
    "normal_vq": {"kind": "normal_vq", "width": 6, "codebooks": 2, "codebook_size": 12},
    "sim_vq": {"kind": "sim_vq", "width": 6, "codebook_size": 24, "codebooks": 2},
    "spherical_rvq": {"kind": "spherical_rvq", "width": 8, "codebooks": 6, "codebook_size": 16, "groups": 2},
    "variational_rvq": {"kind": "variational_rvq", "width": 6, "codebooks": 3, "codebook_size": 12},
    "domain_vq": {"kind": "domain_vq", "width": 6, "domains": {"speech": 8, "music": 6, "sound": 10}},
    "fsq": {"kind": "fsq", "width": 4, "levels": [8, 5, 4, 3]},
    "fsq-projected": {"kind": "fsq", "width": 8, "levels": [7, 2, 5]},
    "factors": {"kind": "factors", "width": 8, "books": [1, 2, 2], "codebook_size": 16, "codebook_width": 4},
    "binary": {"kind": "binary", "width": 6, "bits": 6},
    "binary-projected": {"kind": "binary", "width": 8, "bits": 5, "spherical": False, "commitment": 0.25, "joint": 2},
    "scalar": {"kind": "scalar", "width": 4, "levels": 9},
    "residual_fsq": {"kind": "residual_fsq", "width": 3, "dims": 3, "levels": [5, 3, 3]},
}


def trained(name: str, steps: int = 12):
    """The quantizer after some training steps on white noise, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    quantizer = build_quantizer(CONFIGS[name])
    for _ in range(steps):
        quantizer(torch.randn(4, 50, quantizer.width, generator=generator))
    return quantizer.eval()


def cells(quantizer, codes, frames: int):
    """Codes [..., K, T] -> those of each level in the first `frames` frames, and whatever stands behind them."""
    ratios = getattr(quantizer, "ratios", (1,) * quantizer.codebooks)[: codes.shape[-2]]
    levels = [codes[..., level, :] for level in range(codes.shape[-2])]
    ends = [frames * ratio for ratio in ratios]
    return [row[..., :end] for row, end in zip(levels, ends)], [row[..., end:] for row, end in zip(levels, ends)]


def columns(quantizer, frames: int, used: int | None = None) -> int:
    """The last dimension of the codes of so many frames."""
    return frames * max(getattr(quantizer, "ratios", (1,))[:used])

"""Published codecs of the SEANet family by name, at their published sizes."""

from typing import Any

PUBLISHED: dict[str, dict[str, Any]] = {
    # arXiv:2210.13438; facebookresearch/encodec, encodec_model_24khz. 1.5 kb/s (two codebooks) unless told otherwise.
    "encodec-24khz": {
        "sample_rate": 24000,
        "filters": 32,
        "ratios": [8, 5, 4, 2],
        "dim": 128,
        "true_skip": False,
        "lstm": 2,
        "pad_mode": "reflect",
        "codebooks": 32,
        "codebook_size": 1024,
        "quantizer": {"dropout": 1.0, "dropout_levels": [2, 4, 8, 16, 32], "start_iterations": 50},
        "use_codebooks": 2,
    },
    # arXiv:2210.13438; facebookresearch/encodec, encodec_model_48khz: stereo, in chunks of 1 s that overlap by 10 ms.
    "encodec-48khz": {
        "sample_rate": 48000,
        "channels": 2,
        "filters": 32,
        "ratios": [8, 5, 4, 2],
        "dim": 128,
        "true_skip": False,
        "lstm": 2,
        "causal": False,
        "pad_mode": "reflect",
        "norm": "time",
        "chunk": 48000,
        "stride": 47520,
        "normalize": True,
        "codebooks": 16,
        "codebook_size": 1024,
        "quantizer": {"dropout": 1.0, "dropout_levels": [2, 4, 8, 16], "start_iterations": 50},
        "use_codebooks": 2,
    },
    # arXiv:2410.00037; kyutai-labs/moshi, moshi/models/loaders.py.
    "mimi": {
        "sample_rate": 24000,
        "filters": 64,
        "ratios": [8, 6, 5, 4],
        "dim": 512,
        "last_kernel": 3,
        "codebooks": 32,
        "codebook_size": 2048,
        "quantizer": {"kind": "split_rvq", "codebook_width": 256, "smoothing": 0.0, "dropout": 1.0, "bypass": 0.5},
        "transformer": {"layers": 8, "heads": 8, "feedforward": 2048, "context": 250, "rope_interleaved": True},
        "downsample": 2,
        "upsample_groups": 512,
        "whole_frames": True,
        "use_codebooks": 8,
    },
}

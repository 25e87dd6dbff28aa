"""Published codecs by name, at their published sizes: of the SEANet family, of DAC, of SNAC."""

from typing import Any

_AUDIOCRAFT = {
    "filters": 64,
    "dim": 128,
    "lstm": 2,
    "causal": False,
    "codebooks": 4,
    "codebook_size": 2048,
    "quantizer": {"start_iterations": 50},
}

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
    # arXiv:2306.05284, section 3.1; facebookresearch/audiocraft, config/model/encodec/default.yaml: EnCodec without
    # causality, with MusicGen's strides; all four codebooks.
    "encodec-32khz": {
        "sample_rate": 32000,
        "ratios": [8, 5, 4, 4],
        **_AUDIOCRAFT,
    },
    # facebookresearch/audiocraft, encodec_large_nq4_s320.yaml: AudioGen's (arXiv:2209.15352) as it was published.
    "audiogen-16khz": {
        "sample_rate": 16000,
        "ratios": [8, 5, 4, 2],
        **_AUDIOCRAFT,
    },
    # arXiv:2308.16692; ZhangXInFD/SpeechTokenizer, speechtokenizer/model.py with speechtokenizer_hubert_avg's
    # config.json.
    "speechtokenizer": {
        "sample_rate": 16000,
        "filters": 64,
        "ratios": [8, 5, 4, 2],
        "dim": 1024,
        "true_skip": False,
        "lstm": 2,
        "both_ways": True,
        "causal": False,
        "pad_mode": "reflect",
        "codebooks": 8,
        "codebook_size": 1024,
        "quantizer": {"start_iterations": 50},
    },
    # arXiv:2107.03312, section III and figure 3: strides 2, 4, 5, 8, dilations 1, 3, 9, one model for 3 to 18 kb/s; 6
    # (eight codebooks) unless told otherwise. The width of the latents is our choice.
    "soundstream-24khz": {
        "sample_rate": 24000,
        "filters": 32,
        "ratios": [8, 5, 4, 2],
        "dim": 256,
        "last_kernel": 3,
        "sample_kernel": 7,
        "residual_kernel": 7,
        "residual_layers": 3,
        "dilation_base": 3,
        "compress": 1,
        "codebooks": 24,
        "codebook_size": 1024,
        "quantizer": {"dropout": 1.0},
        "use_codebooks": 8,
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

# arXiv:2306.06546; descriptinc/descript-audio-codec: 6 kb/s at 16 kHz, 24 at 24, 8 at 44.1.
_DAC = {"encoder_dim": 64, "decoder_dim": 1536, "codebook_size": 1024, "quantizer": {"dropout": 0.5}}

PUBLISHED_DAC: dict[str, dict[str, Any]] = {
    "dac-16khz": {
        "sample_rate": 16000,
        "encoder_rates": [2, 4, 5, 8],
        "decoder_rates": [8, 5, 4, 2],
        "codebooks": 12,
        **_DAC,
    },
    "dac-24khz": {
        "sample_rate": 24000,
        "encoder_rates": [2, 4, 5, 8],
        "decoder_rates": [8, 5, 4, 2],
        "codebooks": 32,
        **_DAC,
    },
    "dac-44khz": {
        "sample_rate": 44100,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_rates": [8, 8, 4, 2],
        "codebooks": 9,
        **_DAC,
    },
}

# arXiv:2410.14411; hubertsiuzdak/snac_24khz (of speech), snac_32khz and snac_44khz, which are of one size.
_SNAC = {
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "vq_strides": [8, 4, 2, 1],
    "attn_window_size": 32,
}

PUBLISHED_SNAC: dict[str, dict[str, Any]] = {
    "snac-24khz": {
        "sample_rate": 24000,
        "encoder_dim": 48,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1024,
        "decoder_rates": [8, 8, 4, 2],
        "vq_strides": [4, 2, 1],
        "attn_window_size": None,
    },
    "snac-32khz": {"sample_rate": 32000, **_SNAC},
    "snac-44khz": {"sample_rate": 44100, **_SNAC},
}

"""Small untrained codecs of every shape that there is, with codebooks under which codes differ."""

from typing import Any

import torch

from codec_parity import spread
from vivavoce.codecs import Codec, codec_of
from vivavoce.training.reconstruction import MultiScaleMel

SMALL: dict[str, dict[str, Any]] = {
    "causal": {"kind": "codec", "sample_rate": 8000, "filters": 2, "ratios": [4, 2], "dim": 8, "codebooks": 3,
               "codebook_size": 32},
    "encodec": {"kind": "codec", "sample_rate": 8000, "filters": 4, "ratios": [4, 2], "dim": 8, "codebooks": 2,
                "codebook_size": 32, "pad_mode": "reflect", "lstm": 2, "true_skip": False},
    "mimi": {"kind": "codec", "sample_rate": 8000, "filters": 4, "ratios": [4, 2], "dim": 16, "last_kernel": 3,
             "codebooks": 4, "codebook_size": 32, "quantizer": {"kind": "split_rvq", "codebook_width": 8},
             "transformer": {"layers": 2, "heads": 2, "feedforward": 24, "context": 6}, "downsample": 2,
             "upsample_groups": 16, "whole_frames": True},
    "encodec-48khz": {"kind": "codec", "sample_rate": 8000, "channels": 2, "filters": 4, "ratios": [4, 2], "dim": 8,
                      "causal": False, "norm": "time", "chunk": 800, "stride": 792, "codebooks": 2,
                      "codebook_size": 32, "pad_mode": "reflect"},
    "dac": {"kind": "dac", "sample_rate": 8000, "encoder_dim": 4, "encoder_rates": [4, 2], "decoder_dim": 16,
            "decoder_rates": [2, 4], "codebooks": 2, "codebook_size": 32},
    "snac": {"kind": "snac", "sample_rate": 8000, "encoder_dim": 4, "encoder_rates": [2, 4], "decoder_dim": 16,
             "decoder_rates": [4, 2], "vq_strides": [4, 2, 1], "attn_window_size": None, "codebook_size": 32},
    "spectral": {"kind": "spectral_codec", "sample_rate": 8000, "mels": 12, "stem": 8, "widths": [8, 12], "dim": 8,
                 "residuals": 1, "fft_size": 320, "codebooks": 3, "codebook_size": 32},
}  # fmt: skip


@torch.no_grad()
def small(name: str, **options: Any) -> Codec:
    """The codec `name` of SMALL, but for `options`."""
    torch.manual_seed(0)
    codec = codec_of({**SMALL[name], **options}).eval()
    wave = torch.randn(1, codec.channels, 8 * codec.sample_rate // 10)
    wave *= torch.linspace(0.01, 0.5, wave.shape[2]) * (1 + torch.sin(torch.arange(wave.shape[2]) / 400))
    latents = codec.encode_latents(wave)[0]
    for number, quantizer in enumerate(q for q in codec.quantizer.modules() if hasattr(q, "levels")):
        into = getattr(quantizer, "input_projection", None)
        points = latents if into is None else into(latents)
        for level, book in enumerate(quantizer.levels):
            if hasattr(book, "load"):
                book.load(spread(points, book.size, 10 * number + level))
                points = points - book.lookup(book.search(points))
            elif hasattr(book, "entries"):
                points = points.reshape(-1, book.input_projection.in_features)  # SNAC's lie side by side
                z = book.input_projection(points)
                book.entries.copy_(spread(z, book.size, level))
                points = points - book.lookup(book.search(z[None])[0])
    return codec


def losses_of_learning(codec: Codec, samples: int, steps: int, mel: str) -> list[float]:
    """Two notes of `samples` at 16 kHz are learned by a mel distance: the loss of each step."""
    codec.train()
    time = torch.arange(samples) / 16000
    wave = 0.3 * torch.sin(2 * torch.pi * torch.tensor([220.0, 440.0])[:, None] * time)[:, None]
    distance, optimizer = MultiScaleMel(16000, mel), torch.optim.Adam(codec.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        out = codec(wave)
        loss = distance(out.audio, wave) + out.losses["quantizer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

"""Narrow codecs of every family of `vivavoce.codecs.registry.FAMILIES` and of the scalar SEANet: structure stays."""

import torch
from torch import Tensor, nn

from codec_parity import speech_like, spread
from vivavoce.codecs import Codec, codec_of

SSL = {
    "source": None, "conv_widths": [8] * 7, "width": 16, "layers": 2, "heads": 2, "hidden": 16,
    "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
VOCODER = {"width": 8, "hidden": 12, "layers": 2}
BLOCKS = {"sample_rate": 8000, "width": 8, "hidden": 12, "layers": 2, "dim": 6, "codebook_size": 16}
FOCAL = {
    "features": {**SSL, "relative_buckets": 16}, "layer": 2, "hidden": [12, 8, 6], "past": 8, "dim": 6,
    "quantizer": {"bits": 6}, "vocoder": VOCODER,
}  # fmt: skip
BERT = {"kind": "w2v_bert", "body": {"layers": 1, "width": 12, "heads": 2, "feedforward": 16}}
SEANET = {"filters": 2, "lstm": 1, "dim": 8, "codebook_size": 32}
PRENET = {"vocoder": {**VOCODER, "groups": 4}}
WHISPERS = {"mels": 16, "width": 16, "layers": 1, "heads": 2, "hidden": 16}
FLOW = {
    "width": 8, "heads": 2, "feedforward": 12, "layers": 1, "upper": 1, "channels": 8, "estimator_heads": 2,
    "head_dim": 4, "blocks": 1, "middle": 1, "steps": 2, "left": 1,
}  # fmt: skip
SPOKEN = {
    "flow": {**FLOW, "speaker": 4, "chunk": 3},
    "vocoder": {"inputs": 8, "width": 8, "rates": [20, 12], "kernels": [40, 24], "fft_size": 8, "hop": 2,
                "residual_kernels": [3], "residual_dilations": [[1]], "source_kernels": [3, 3],
                "source_dilations": [[1], [1]], "harmonics": 2, "pitch_width": 6},
    "voice": 8,
}
IMAGES = {
    "sample_rate": 8000, "fft_size": 32, "hop": 8, "filters": 4, "ratios": [[4, 2], [4, 1]], "lstm": 1, "dim": 6,
    "codebooks": 3, "codebook_size": 16, "quantizer": {"dropout_levels": [1, 3]},
}
SPEAKER = {"widths": [8, 8, 12], "kernels": [5, 3, 1], "dilations": [1, 2, 1], "squeezed": 4, "attended": 6}
GAN = {"width": 8, "rates": [20, 8], "kernels": [20, 8], "residual_kernels": [3], "residual_dilations": [[1]]}
NARROW = {
    "bigcodec": {"encoder_dim": 2, "decoder_dim": 16, "encoder_rates": [10, 16], "decoder_rates": [16, 10],
                 "latent_dim": 8, "codebook_size": 32, "lstm": 1, "quantizer": {"codebook_width": 4}},
    "xcodec": {"encoder_dim": 2, "decoder_dim": 16, "encoder_rates": [20, 16], "decoder_rates": [20, 16],
               "latent_dim": 6, "codebooks": 2, "codebook_size": 32,
               "semantic": {"kind": "hubert", **SSL}, "blocks": 1},
    "xcodec2": {"encoder_dim": 2, "encoder_rates": [16, 20], "width": 8, "layers": 1, "heads": 2, "feedforward": 12,
                "groups": 4, "semantic": BERT},
    "wavtokenizer-75": {**SEANET, **PRENET},
    "language-codec": {**SEANET, **PRENET, "codebooks": 4},
    "simvq": {**SEANET, **PRENET},
    "ticodec": {**SEANET, "voice_width": 12, "voice_codes": 4, "voice_size": 16},
    "bicodec": {"decoder_dim": 16, "encoder_rates": [16, 20], "decoder_rates": [20, 16], "latent_dim": 10,
                "codebook_size": 32, "semantic": {"kind": "wav2vec2", **SSL},
                "layers": [0, 2], "width": 8, "hidden": 12, "blocks": 2, "queries": 3, "speaker": 12,
                "quantizer": {"codebook_width": 4}},
    "speechtokenizer": SEANET,
    "focalcodec-50hz": FOCAL,
    "focalcodec-12.5hz": FOCAL,
    "feature_codec": {
        **FOCAL, "features": {"kind": "causal_mel", "widths": [12], "stem": 8, "mels": 12}, "layer": None,
        "causal": True, "ahead": 3, "quantizer": {"kind": "binary", "bits": 6},
        "vocoder": {**VOCODER, "fft_size": 640},
    },
    "repcodec": {"features": SSL, "layer": 1, "hidden": [12, 8], "dim": 8, "quantizer": {"codebook_size": 32},
                 "vocoder": VOCODER},
    "maskgct-semantic": {"features": {**SSL, "kind": "hubert"}, "layer": 1, "hidden": [12], "layers": 2, "inner": 16,
                         "dim": 8, "quantizer": {"codebook_size": 32, "codebook_width": 4}, "vocoder": VOCODER},
    "maskgct-acoustic": {"sample_rate": 8000, "encoder_dim": 2, "latent_dim": 8, "codebooks": 3, "codebook_size": 16,
                         "vocoder": VOCODER},
    "ts3-50hz": {"width": 16, "layers": [2], "heads": 2, "feedforward": 24, "window": 4, "dim": 8,
                 "quantizer": {"codebook_size": 64, "codebook_width": 4}},
    "taae": {"width": 16, "layers": [1, 1], "heads": 2, "feedforward": 24, "window": 4},
    "apcodec": BLOCKS,
    "apcodec, causal": {**BLOCKS, "causal": True},
    "mdctcodec": BLOCKS,
    "mdctcodec, causal": {**BLOCKS, "causal": True},
    "complexdec": {**BLOCKS, "fft_size": 64, "hop": 16, "stride": 2, "codebooks": 3},
    "complexdec, causal": {**BLOCKS, "fft_size": 64, "hop": 16, "codebooks": 3, "causal": True},
    "dmel": {"vocoder": VOCODER},
    "chattts-dvae": {
        "sample_rate": 8000, "mels": 12, "fft_size": 128, "hop": 32, "narrow": 6, "encoder": [[10, 0, 2], [8, 2, 1]],
        "decoder": [[8, 2, 1]], "dim": 16, "vocoder": {"kind": "vocos", **VOCODER, "fft_size": 128},
    },
    "firefly-gan-vq": {
        "sample_rate": 8000, "mels": 12, "fft_size": 128, "hop": 32, "encoder": [[8, 1, 1], [12, 1, 2], [12, 1, 2]],
        "decoder": [[12, 1, 2], [12, 1, 2]], "dim": 12,
        "quantizer": {"kind": "grouped_fsq", "levels": [5, 4], "groups": 3, "residuals": 1},
        "vocoder": {"kind": "hifigan", "width": 8, "rates": [8, 4], "kernels": [16, 8], "residual_kernels": [3],
                    "residual_dilations": [[1, 3]]},
    },
    "facodec": {
        "sample_rate": 8000, "encoder_dim": 2, "decoder_dim": 16, "latent_dim": 8, "codebook_size": 16,
        "timbre": {"layers": 1, "heads": 2, "feedforward": 12}, "quantizer": {"codebook_width": 4},
    },
    "unicodec-unified": {
        "filters": 2, "dim": 8, "transformer": {"layers": 2, "heads": 2, "feedforward": 12},
        "domains": {"speech": 20, "music": 10, "sound": 12}, **PRENET,
    },
    "clamtts-mel-vae": {
        "sample_rate": 8000, "mels": 12, "fft_size": 128, "hop": 32, "narrow": 6, "encoder": [[8, 1, 2], [10, 1, 2]],
        "decoder": [[10, 1, 2], [8, 1, 2]], "dim": 8, "quantizer": {"codebooks": 3, "codebook_size": 16},
        "vocoder": {**GAN, "rates": [8, 4], "kernels": [16, 8]},
    },
    "socodec": {
        "features": SSL, "width": 12, "groups": 3, "down": [2, 3], "mels": 10, "speaker": SPEAKER,
        "quantizer": {"codebooks": 3, "heads": [6, 5], "head_width": 4}, "vocoder": GAN,
    },
    "esc": {"sample_rate": 8000, "fft_size": 46, "window": 32, "hop": 8, "widths": [4, 6, 8], "heads": [2, 2],
            "size": 2, "groups": 2, "codebook_size": 16, "codebook_widths": [4, 4, 4]},
    "freqcodec": IMAGES,
    "freqcodec-angles": {**IMAGES, "causal": True, "norm": "none", "group": 1, "lstm": 0,
                         "pad_mode": "zeros"},
    "gull": {"sample_rate": 8000, "window": 8, "hop": 4, "bands": [[1000, 2], [2000, 2]], "width": 6, "layers": 1,
             "decoder_layers": 2, "levels": 2, "codebook_size": 16},
    "single-codec": {
        "sample_rate": 8000, "mels": 10, "fft_size": 128, "hop": 32, "width": 12, "blocks": 1, "heads": 2, "kernel": 3,
        "dim": 6, "voice": 5, "segment": 20, "channels": [3, 4], "codebook_size": 32,
        "vocoder": {"width": 8, "rates": [8, 4], "kernels": [16, 8], "residual_kernels": [3],
                    "residual_dilations": [[1]]},
    },
    "sqcodec": {"sample_rate": 8000, "rates": [4, 5], "widths": [4, 6, 8], "depths": [1, 1, 1], "decoder_rates": [5, 4],
                "decoder_widths": [8, 6, 4], "decoder_depths": [1, 1], "dim": 8, "frames": 2, "blocks": [1, 1],
                "heads": 2, "window": 7, "quantizer": {"kind": "residual_fsq", "dims": 3, "levels": [7]}},
    "hilcodec": {"sample_rate": 8000, "ratios": [5, 4, 2], "filters": 2, "decoder_filters": 2, "fft_size": 8,
                 "dim": 6, "codebooks": 3, "codebook_size": 16, "quantizer": {"dropout_levels": [1, 3]}},
    "ssr-speech-codec": {"sample_rate": 8000, "filters": 2, "dim": 16, "ratios": [5, 4, 2], "lstm": 1, "codebooks": 2,
                         "codebook_size": 16},
    "promptcodec": {"sample_rate": 8000, "filters": 2, "dim": 8, "ratios": [5, 4, 2], "codebook_size": 16, "mels": 8,
                    "prompt_width": 8, "prompt_hidden": 12, "prompt_layers": 1, "heads": 2, "speaker": 6},
    "flowdec": {
        "codec": {"kind": "dac", "sample_rate": 8000, "encoder_dim": 2, "encoder_rates": [4, 5], "decoder_dim": 16,
                  "decoder_rates": [5, 4], "codebooks": 2, "codebook_size": 16, "quantizer": {"codebook_width": 4}},
        "filter": {"fft_size": 62, "hop": 16, "width": 4, "multiples": [2, 1], "path": {"kind": "flow", "steps": 2}},
    },
    "scoredec": {
        "codec": {"kind": "codec", "sample_rate": 8000, "filters": 2, "ratios": [5, 4], "dim": 8, "codebooks": 2,
                  "codebook_size": 16},
        "filter": {"fft_size": 62, "hop": 16, "width": 4, "multiples": [1, 2], "blocks": 1,
                   "path": {"kind": "score", "steps": 2}},
    },
    "cosyvoice2": {"ears": {"kind": "s3", **WHISPERS, "memory": 5}, **SPOKEN},
    "semanticodec": {
        "ears": {"width": 16, "layers": 3, "heads": 2, "hidden": 20, "mels": 32, "columns": 2, "average": 2},
        "clusters": 24, "layers": 1, "codebook_size": 32, "vocoder": {"width": 32, "residual_kernels": [3],
        "residual_dilations": [[1]]}, "flow": {**FLOW, "chunk": 1}, "latents": {"mels": 8, "width": 6, "narrow": 6,
        "encoder": [[8, 1, 2], [8, 1, 2]], "decoder": [[8, 1, 2], [8, 1, 2]]},
    },
    "baichuan-audio": {"ears": {"kind": "whisper", **WHISPERS, "positions": 100}, "strides": [2], "quantizer":
                       {"kind": "rvq", "codebooks": 3, "codebook_size": [32, 16, 8]}, **SPOKEN},
    "glm-4-voice": {"ears": {**WHISPERS, "block": 8, "left": 1}, "quantizer": {"codebook_size": 32}, **SPOKEN},
    "codec": {"filters": 2, "dim": 8, "ratios": [8, 5, 4, 2], "quantizer": {"kind": "scalar", "levels": 19}},
}  # fmt: skip


# Not in every test: what they have of their own is tested where it belongs.
LIKE_OTHERS = {"cosyvoice-50hz": {"ears": WHISPERS, "quantizer": {"codebook_size": 32}, **SPOKEN}}


@torch.no_grad()
def narrow(name: str, seed: int = 0, **options) -> Codec:
    """A codec whose latents of speech spread over its codes."""
    torch.manual_seed(seed)
    sizes = {**NARROW, **LIKE_OTHERS}[name]
    codec = codec_of({"kind": name.split(",")[0], **sizes, **options}).eval()
    for parameter in codec.parameters():
        if parameter.dim() == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.3)  # gains and biases that begin at the identity
    width = getattr(codec.quantizer, "frames", codec.quantizer).width  # without what comes once
    heavy = [module for module in codec.encoder.modules() if getattr(module, "weight", None) is not None]
    layers = [module for module in heavy if len(module.weight) == width and name != "sqcodec"]
    if layers:
        wave = speech_like(0.5, codec.sample_rate)
        with torch.no_grad():
            latents = codec.encode_latents(wave)[0, :, :width]
            layers[-1].weight.div_(latents.std(0).clamp(min=1e-4).view(-1, *[1] * (layers[-1].weight.dim() - 1)))
            layers[-1].bias.sub_(codec.encode_latents(wave)[0, :, :width].mean(0))
    if name == "semanticodec":  # whose acoustic frames are made of the semantic ones and their centers
        wave, size = speech_like(1.0, codec.sample_rate), codec.quantizer.acoustic.width
        frames = codec.encode_latents(wave)[0, :, :size]
        codec.units.take(spread(frames, codec.codebook_sizes[0], 0), torch.ones(size))
        rest = codec.encode_latents(wave)[0, :, size:]
        codec.quantizer.acoustic.levels[0].load(spread(rest, codec.codebook_sizes[1], 1))
    if name in ("semanticodec", "single-codec"):
        for convolution in codec.decoder.parts[-1].convolutions()[1:]:
            convolution.weight.mul_(10)  # else it begins with silence
    if name == "unicodec-unified":  # whose latents come of a residual stream: its entries go where they are
        book, latents = codec.quantizer.book, codec.encode_latents(speech_like(0.5, codec.sample_rate))[0]
        book.basis.copy_(spread(latents, book.size, 0))
        nn.init.eye_(book.project.weight)
        nn.init.zeros_(book.project.bias)
    if name in ("cosyvoice2", "sqcodec"):  # whose grids have few levels: what leads into them must be as large
        project = codec.quantizer.input_projection
        points = project(codec.encode_latents(speech_like(0.5, codec.sample_rate))[0])
        project.bias.data.sub_(points.mean(0)).div_(points.std(0))
        project.weight.data.div_(points.std(0)[:, None])
    return codec


def hard_signals(rate: int) -> Tensor:
    """Silence, a constant, a full-scale square wave, one click: [4, 1, 0.2 s]."""
    size = rate // 5
    waves = torch.zeros(4, 1, size)
    waves[1] = 1.0
    waves[2, 0] = torch.sign(torch.sin(torch.arange(size) * 0.2) + 1e-9)
    waves[3, 0, size // 2] = 1.0
    return waves

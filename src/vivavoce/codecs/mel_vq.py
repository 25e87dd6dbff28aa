"""Codecs of mel frames: ConvNeXt blocks on both sides of a quantizer, and a vocoder.

ChatTTS's DVAE (2noise/ChatTTS, model/dvae.py; also MiniCPM-o 2.6's): mel frames come back, a Vocos makes them sound,
and a code stands for two frames, which lie side by side in its latent. Fish Speech's Firefly-GAN VQ
(fishaudio/fish-speech, models/vqgan): no mel frames come back, a HiFi-GAN hears the latents. CLaM-TTS's Mel-VAE
(arXiv:2404.02781, section 3.2): mel frames come back from 32 codes that are learned as a mixture.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.feature_codec import FeatureCodec
from vivavoce.codecs.mel_codec import MelFrames
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import EPSILON, convnext_block
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.stacking import Unstack
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.quantizers import build_quantizer
from vivavoce.schema.parts import tuples
from vivavoce.vocoders.bigvgan import BigVGAN
from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.vocoders.vocos import Vocos, VocosConfig

QUIET = 1e-5  # the smallest magnitude of a band
BRANCH = 1e-6  # factor of the blocks' branches at first
GENERATORS: dict[str, type[HiFiGAN] | type[BigVGAN]] = {"hifigan": HiFiGAN, "bigvgan": BigVGAN}

Stage = tuple[int, int, int]


@dataclass(frozen=True)
class MelVQConfig(CodecOptions):
    """The defaults are ChatTTS's. mels, fft_size (of the window too), hop, fmin, fmax: of the mel frames, in Hz.

    encoder, decoder: stages (width, blocks, stride) behind a convolution of kernel 3 of `narrow` channels (None: of the
    first stage's); an encoder's stride comes before its blocks, by a kernel of `reach` strides, a decoder's likewise,
    by a kernel of one. dilation: of the blocks' convolutions. dim: of the latents. fold: how many frames lie side by
    side in a latent, which the decoder takes apart. mel: whether the decoder ends in mel frames, so that it can be
    trained without its vocoder. vocoder: `vocos`, `hifigan` or `bigvgan`, and its options, or `source`: the run of a
    mel vocoder.
    """

    sample_rate: int = 24000
    mels: int = 100
    fft_size: int = 1024
    hop: int = 256
    fmin: float = 0.0
    fmax: float | None = None
    narrow: int | None = 128
    encoder: tuple[Stage, ...] = ((512, 0, 2), (256, 12, 1))
    decoder: tuple[Stage, ...] = ((256, 12, 1),)
    reach: int = 2
    dilation: int = 2
    dim: int = 1024
    fold: int = 2
    mel: bool = True
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "grouped_fsq"})
    vocoder: Mapping[str, Any] = field(default_factory=lambda: {"kind": "vocos"})

    def __post_init__(self):
        for name, stages in (("encoder", self.encoder), ("decoder", self.decoder)):
            if not stages or any(len(stage) != 3 or stage[1] < 0 or stage[2] < 1 for stage in stages):
                raise RecipeError(f"{name}: {stages!r}: stages of (width, blocks, stride), at least one")
        if self.dim % self.fold or _strides(self.encoder) != self.fold * _strides(self.decoder):
            raise RecipeError(
                f"strides of the encoder ({_strides(self.encoder)}) are undone by fold {self.fold}, which divides dim "
                f"{self.dim}, and those of the decoder ({_strides(self.decoder)})"
            )


def _strides(stages: tuple[Stage, ...]) -> int:
    product = 1
    for _, _, stride in stages:
        product *= stride
    return product


def _blocks(config: MelVQConfig, width: int, count: int) -> list[Streaming]:
    return [convnext_block(width, 4 * width, scale=BRANCH, dilation=config.dilation) for _ in range(count)]


def _centred(inputs: int, width: int) -> Conv:
    return Conv(inputs, width, 3, left=1, right=1, complete=False)


def _last(width: int, outputs: int) -> Pointwise:
    return Pointwise(nn.Sequential(nn.LayerNorm(width, EPSILON), PackedLinear(width, outputs)), outputs)


def compressor(config: MelVQConfig) -> Chain:
    """Mel frames [B, T, mels] -> latents [B, T / strides, dim]."""
    width = config.narrow or config.encoder[0][0]
    parts: list[Streaming] = [_centred(config.mels, width)]
    for after, blocks, stride in config.encoder:
        kernel = config.reach * stride if stride > 1 else 1
        parts += [Pointwise(nn.GELU(), width), Conv(width, after, kernel, stride), *_blocks(config, after, blocks)]
        width = after
    return Chain(*parts, _last(width, config.dim))


def decompressor(config: MelVQConfig, outputs: int) -> Chain:
    """Latents [B, T, dim] -> frames [B, T x fold x strides, outputs]."""
    width = config.narrow or config.decoder[0][0]
    apart: list[Streaming] = [Unstack(config.dim, config.fold)] if config.fold > 1 else []
    parts = [*apart, _centred(config.dim // config.fold, width)]
    for after, blocks, stride in config.decoder:
        up = ConvTranspose(width, after, stride, stride) if stride > 1 else _centred(width, after)
        parts += [Pointwise(nn.GELU(), width), up, *_blocks(config, after, blocks)]
        width = after
    return Chain(*parts, _last(width, outputs))


def build_mel_vq(options: Mapping[str, Any] | MelVQConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, MelVQConfig) else MelVQConfig.of(options)
    top = c.fmax if c.fmax is not None else c.sample_rate / 2
    edge = (c.fft_size - c.hop) // 2
    frames = MelFrames(c.sample_rate, c.mels, c.fft_size, c.hop, c.fft_size, c.fmin, top, QUIET, edge)
    ears = Chain(WholeFrames(c.hop * _strides(c.encoder), 1), frames)
    outputs = c.mels if c.mel else c.decoder[-1][0]
    if "source" in c.vocoder:
        from vivavoce.codecs.mel_vocoder import MelForm, vocoder_of

        if not c.mel:
            raise RecipeError("vocoder.source: no mel frames come back in this codec that a vocoder could hear")
        form = MelForm("decades", c.mels, c.fft_size, None, c.hop, c.fmin, c.fmax, QUIET, edge)
        made, found = vocoder_of(c.vocoder, form, c.sample_rate)
        codec = build_mel_vq(dataclasses.replace(c, vocoder=found))
        codec.decoder.parts[1].load_state_dict(made.state_dict())
        return codec
    sizes = dict(c.vocoder)
    kind = sizes.pop("kind", "vocos")
    vocoder: Streaming
    if kind == "vocos":
        about = {"inputs": outputs, "padding": "same", "hop": c.hop, "sample_rate": c.sample_rate}
        vocoder = Vocos(VocosConfig(**{**about, **sizes}))  # type: ignore[arg-type]
    elif kind in GENERATORS:
        vocoder = GENERATORS[kind](HiFiGANConfig(**{"inputs": outputs, **tuples(sizes)}))
    else:
        raise RecipeError(f"vocoder: kind '{kind}' is none of vocos, {', '.join(GENERATORS)}")
    quantizer = build_quantizer({"width": c.dim, **c.quantizer})
    way = Chain(ears, compressor(c)), quantizer, Chain(decompressor(c, outputs), vocoder)
    return (FeatureCodec if c.mel else Codec)(*way, c.sample_rate, config=c)


_FIREFLY_STAGES = [[128, 3, 1], [256, 3, 1], [384, 9, 1], [512, 3, 1], [512, 1, 2], [512, 1, 2]]

PUBLISHED_MEL_VQ: dict[str, dict[str, Any]] = {
    "chattts-dvae": {},
    # arXiv:2404.02781: 80 bands at 22.05 kHz, eight frames in 32 codes of 1024, 10.8 Hz; the stacks' widths are ours,
    # and the vocoder has the sizes of NVIDIA's bigvgan_22khz_80band.
    "clamtts-mel-vae": {
        "sample_rate": 22050,
        "mels": 80,
        "narrow": 256,
        "encoder": [[256, 2, 2], [384, 2, 2], [512, 4, 2]],
        "decoder": [[512, 4, 2], [384, 2, 2], [256, 2, 2]],
        "dilation": 1,
        "dim": 512,
        "fold": 1,
        "quantizer": {"kind": "variational_rvq", "codebooks": 32, "codebook_size": 1024},
        "vocoder": {
            "kind": "bigvgan", "width": 1536, "rates": [4, 4, 2, 2, 2, 2], "kernels": [8, 8, 4, 4, 4, 4],
            "residual_kernels": [3, 7, 11], "residual_dilations": [[1, 3, 5]] * 3,
        },
    },
    # fish-speech 1.4's configs/firefly_gan_vq.yaml: 44.1 kHz, 21.5 frames a second of 8 codes.
    "firefly-gan-vq": {
        "sample_rate": 44100,
        "mels": 160,
        "fft_size": 2048,
        "hop": 512,
        "narrow": None,
        "encoder": _FIREFLY_STAGES,
        "decoder": [[512, 1, 2], [512, 1, 2]],
        "reach": 1,
        "dilation": 1,
        "dim": 512,
        "fold": 1,
        "mel": False,
        "quantizer": {"kind": "grouped_fsq", "levels": [8, 5, 5, 5], "groups": 8, "residuals": 1},
        "vocoder": {"kind": "hifigan", "rates": [8, 8, 2, 2, 2], "kernels": [16, 16, 4, 4, 4]},
    },
}

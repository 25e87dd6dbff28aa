"""UniCodec: speech, music and sound in one stream of codes, each in its part of one codebook.

Source: Jiang et al., arXiv:2502.20067; Jiang-Yidi/UniCodec, configs/unicodec_frame75_10s_…_finetune.yaml and
encoder/modules/seanet.py (whose release has no experts). WavTokenizer's stacks, but a transformer stands where its LSTM
was, with a mixture of experts in every layer. How it learns to tell what is hidden: `training.domain_task`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vivavoce.codecs import seanet
from vivavoce.codecs.seanet_vocos import SEANetVocos, SEANetVocosConfig
from vivavoce.errors import RecipeError
from vivavoce.nn.experts import MixtureOfExperts
from vivavoce.nn.feedforward import FeedForward
from vivavoce.nn.streaming import Chain
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.quantizers import build_quantizer
from vivavoce.quantizers.domains import DomainVectorQuantizer
from vivavoce.schema.parts import configured, made
from vivavoce.vocoders.vocos import Vocos, VocosConfig


@dataclass(frozen=True)
class UniCodecConfig(SEANetVocosConfig):
    """The defaults are the published sizes. transformer: options of `TransformerConfig` beside its width; it sees all
    of the signal. experts: options of `MixtureOfExperts`. domains: name -> entries of the codebook; the quantizer's
    other options stand in `quantizer`, and there are no other codebooks."""

    lstm: int = 0
    transformer: Mapping[str, Any] = field(default_factory=lambda: {"layers": 8, "heads": 8, "feedforward": 2048})
    experts: Mapping[str, Any] = field(default_factory=lambda: {"shared": 1, "routed": 3, "active": 1})
    domains: Mapping[str, int] = field(default_factory=lambda: {"speech": 4096, "music": 4096, "sound": 8192})
    vocoder: Mapping[str, Any] = field(
        default_factory=lambda: {"width": 768, "hidden": 2304, "layers": 12, "prenet": True}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lstm or self.codebooks != 1:
            raise RecipeError("unicodec: a transformer stands where the LSTM was, and there is one codebook")


def contextual(config: UniCodecConfig) -> Transformer:
    """Frames [B, T, dim] -> [B, T, dim], each in the light of all."""
    form = {"norm": "layer", "gated": False, "activation": "gelu", "bias": False, "layer_scale": 0.01, "causal": False}
    sizes = TransformerConfig.of({**form, **config.transformer, "width": config.dim}, "codec.transformer")
    stack = Transformer(sizes)
    for block in stack.blocks:
        block.feedforward = made(  # type: ignore[assignment]
            "codec.experts",
            MixtureOfExperts,
            config.dim,
            lambda: FeedForward(config.dim, sizes.inner, sizes.activation, sizes.bias),
            **config.experts,
        )
    return stack


class UniCodec(SEANetVocos):
    """Waveform [B, 1, S] <-> codes [B, 1, T]; codes say themselves of what domain they are. It hears the signal to its
    end before it gives codes. `quantizer.within([...])` holds codes within domains that are known."""

    quantizer: DomainVectorQuantizer

    def local(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> what the convolutions make of it, [B, T, dim]."""
        x = self._channels_last(wave)
        for part in list(self.encoder)[:-1]:
            x = part(x)
        return x

    def in_context(self, frames: Tensor) -> Tensor:
        """What the convolutions give [B, T, dim] -> latents [B, T, dim]."""
        return self.encoder.parts[-1](frames)


def build_unicodec(options: Mapping[str, Any] | UniCodecConfig) -> UniCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, UniCodecConfig) else UniCodecConfig.of(options)
    kind = {"kind": "domain_vq", "width": config.dim, "domains": config.domains}
    quantizer = build_quantizer({**kind, **config.quantizer})
    sizes = {"inputs": config.dim, "hop": config.hop, "sample_rate": config.sample_rate, "padding": "same"}
    decoder = Vocos(configured("vocoder", VocosConfig, {"fft_size": 4 * config.hop, **sizes, **config.vocoder}))
    encoder = Chain(*seanet.encoder(config), contextual(config))
    return UniCodec(encoder, quantizer, decoder, config.sample_rate, config=config)


PUBLISHED_UNICODEC: dict[str, dict[str, Any]] = {"unicodec-unified": {}}

"""FACodec: speech as prosody, content and detail, each in codes of its own, and a timbre that holds for all of it.

Source: NaturalSpeech 3 (Ju et al., arXiv:2403.03100, section 3.2 and appendix B); the sizes are those of Amphion's
ns3_codec. DAC's stacks; the timbre is the mean of a transformer over the latents, and scales and shifts what the
decoder hears, normed. Which factor says what is a matter of training: `vivavoce.training.factor_task`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs import dac
from vivavoce.codecs.codec import Codec, Reconstruction
from vivavoce.codecs.snake_stack import SnakeConfig
from vivavoce.errors import RequestError
from vivavoce.nn.norms import LayerNorm
from vivavoce.nn.streaming import Chain, State, Streaming, lengths_of, valid, zero_padding
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.quantizers import build_quantizer


@dataclass(frozen=True)
class FACodecConfig(SnakeConfig):
    """The stacks' sizes; `timbre`: layers, heads, feedforward of the transformer that finds the timbre."""

    sample_rate: int = 16000
    encoder_dim: int = 32
    encoder_rates: tuple[int, ...] = (2, 4, 5, 5)
    decoder_dim: int = 1024
    decoder_rates: tuple[int, ...] = (5, 5, 4, 2)
    latent_dim: int | None = 256
    timbre: Mapping[str, Any] = field(default_factory=lambda: {"layers": 4, "heads": 4, "feedforward": 1024})


class TimbreNorm(Streaming):
    """Conditional layer norm: norm(x) * gain + shift, both of the row's timbre, which stands in its state.

    Of a timbre of zeros, the voice of nobody, it is the norm alone (until it has learned another).
    """

    def __init__(self, width: int):
        super().__init__()
        self.inputs = self._width = width
        self.norm = LayerNorm(width, affine=False)
        self.style = nn.Linear(width, 2 * width)
        with torch.no_grad():
            self.style.bias[:width], self.style.bias[width:] = 1, 0

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        """`style` [B, 2 x D]: gain and shift."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(style=self.style(torch.zeros(batch, self._width, **home)), emitted=zero)

    def step(self, x, state, lengths=None):
        gain, shift = state["style"][:, None].chunk(2, dim=-1)
        return self.norm(x) * gain + shift, State(style=state["style"], emitted=lengths_of(x, lengths))


class Timbre(nn.Module):
    """Latents [B, T, D] -> timbre [B, D]: a transformer over all frames, and their mean."""

    def __init__(self, width: int, options: Mapping[str, Any]):
        super().__init__()
        sizes = {"width": width, "causal": False, "norm": "layer", "gated": False, "activation": "gelu", "bias": True}
        self.transformer = Transformer(TransformerConfig.of({**sizes, **options}, "codec.timbre"))

    def forward(self, latents: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in latents; a row without any has a timbre of zeros."""
        y = zero_padding(self.transformer(latents, lengths), lengths)
        return y.sum(1) / lengths.clamp(min=1)[:, None]


class FACodec(Codec):
    """A codec whose codes are prosody, content and detail, and that needs a timbre [B, D] beside them to decode.

    The timbre of a signal is known when it has ended; codes stream. Another speaker's timbre gives the same codes
    that speaker's voice. Without any, they are in nobody's.
    """

    config: FACodecConfig

    def __init__(self, *parts: Any, timbre: Timbre, **options: Any):
        super().__init__(*parts, **options)
        self.find_timbre = timbre

    @torch.no_grad()
    def timbre(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The timbre [B, D] of whole waveforms [B, 1, S]; `lengths` [B] in samples."""
        latents = self.encode_latents(wave, lengths)
        return self.timbre_of(latents, None if lengths is None else self.frames(lengths))

    def timbre_of(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The timbre [B, D] of latents [B, T, D], with its gradient."""
        return self.find_timbre(latents, lengths_of(latents, lengths))

    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """What is transmitted beside the codes, as `decode` takes it."""
        return {"timbre": self.timbre(wave, lengths)}

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Reconstruction:
        latents = self.encode_latents(wave, lengths)
        counts = None if lengths is None else self.encoder.frames(lengths)
        quantized = self.quantize(latents, counts)
        state = self.decoder_state(len(latents), self.timbre_of(latents, counts))
        audio = self.decode_latents(quantized.latents, counts, state)[..., : wave.shape[-1]]
        if lengths is not None:
            audio = audio * valid(lengths, audio.shape[-1])[:, None]
        return Reconstruction(audio, quantized.codes, {"quantizer": quantized.loss}, latents)

    def decoder_state(self, batch: int, timbre: Tensor | None = None) -> State:
        """State of `batch` signals of which nothing has been decoded yet, in the voice of `timbre` [batch, D]."""
        state = super().decoder_state(batch)
        if timbre is None:
            return state
        norm: Any = self.decoder.parts[0]
        if timbre.shape != (batch, norm.width):
            raise RequestError(f"timbre {tuple(timbre.shape)}: [{batch}, {norm.width}] expected, one a row")
        own = norm.style.weight
        return State({**state, "0": State({**state["0"], "style": norm.style(timbre.to(own.device, own.dtype))})})

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Tensor:
        """As any codec's, in the voice of `timbre` [B, D]."""
        codes = self._checked(codes)
        return self._decoded(codes, lengths, self.decoder_state(len(codes), timbre))


def build_facodec(options: Mapping[str, Any] | FACodecConfig) -> FACodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, FACodecConfig) else FACodecConfig.of(options)
    width = config.latent_dim or config.encoded
    kind = {"kind": "factors", "width": width, "codebook_size": config.codebook_size, **config.quantizer}
    sizes = {"encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates", "latent_dim", "codebook_size"}
    stacks = dac.DACConfig(config.sample_rate, **{name: getattr(config, name) for name in sizes})
    return FACodec(
        dac.encoder(stacks),
        build_quantizer(kind),
        Chain(TimbreNorm(width), *dac.decoder(stacks)),
        config.sample_rate,
        timbre=Timbre(width, config.timbre),
        config=config,
    )


PUBLISHED_FACODEC: dict[str, dict[str, Any]] = {
    # open-mmlab/Amphion, models/codec/ns3_codec: 16 kHz, 80 Hz, 6 x 1024: 4.8 kb/s and a timbre.
    "facodec": {},
}

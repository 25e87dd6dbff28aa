"""SemantiCodec: any sound in two tokens at a time, what it means and what else it needs, spoken by latent diffusion.

Source: Liu et al., arXiv:2405.00233; haoheliu/SemantiCodec-inference. The semantic token is the nearest k-means center
of a frozen AudioMAE's patches; a recurrent encoder hears these patches beside their centers, and says by a codebook of
its own what the centers miss. Both lead the diffusion of a mel spectrogram's latents, which a vocoder makes sound.
Trained in parts: AudioMAE, its centers, the latents, the vocoder; last the acoustic codes and the diffusion, together.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.feature_codec import Uncoded, encoder_of
from vivavoce.codecs.mel_latents import LatentConfig, LatentsToMel, MelToLatents
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.seeded_codec import SeededCodec
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RecipeError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.stacking import Stack
from vivavoce.nn.streaming import Chain, Pointwise, State, zero_padding
from vivavoce.nn.whole_signal import BidirectionalLSTM
from vivavoce.quantizers import Quantized, Quantizer, build_quantizer
from vivavoce.quantizers.base import health
from vivavoce.quantizers.nearest import ties
from vivavoce.schema.parts import configured, tuples
from vivavoce.vocoders.flow_encoder import TokenEncoder
from vivavoce.vocoders.flow_matching import FlowConfig, FlowMatching
from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.vocoders.mel import vocoder_mel

MEL_WINDOW = 1024  # samples

# Of the diffusion: 10 s are seen, as published; a guidance of 2 counts from what is said without tokens, so one here.
FLOW = {"chunk": 16, "left": 3, "ahead": 1, "guidance": 1.0, "drop": 0.1}
VOCODER = {"width": 1024, "rates": (5, 4, 2, 2, 2), "kernels": (15, 16, 8, 4, 4)}


@dataclass(frozen=True)
class SemantiCodecConfig(CodecOptions):
    """The defaults are those of 100 tokens a second and 16,384 semantic ones.

    ears: an encoder of `vivavoce.encoders` that stays as it is, with as many frames in every column (`mel_patches`).
    clusters: of its frames. layers: of the acoustic encoder; codebook_size: of its codebook, with further options in
    `quantizer`. latents: of `LatentConfig`; flow: of `FlowConfig`, whose `chunk` counts columns of tokens; vocoder: of
    `HiFiGANConfig`. What follows from the rest (widths, ratios) is not said again.
    """

    sample_rate: int = 16000
    ears: Mapping[str, Any] = field(default_factory=lambda: {"kind": "mel_patches"})
    clusters: int = 16384
    layers: int = 4
    codebook_size: int = 8192
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"decay": 0.9})
    latents: Mapping[str, Any] = field(default_factory=dict)
    flow: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for part, derived in (("flow", ("tokens", "mels", "ratio", "speaker")), ("vocoder", ("inputs",))):
            said = [name for name in derived if name in getattr(self, part)]
            if said:
                raise RecipeError(f"codec.{part}.{said[0]}: it follows from the rest: leave it out")


class SemanticAndAcoustic(WholeSignal):
    """Waveform [B, S, 1] of whole columns -> [B, T, 2 D]: frozen frames, and what an LSTM in both directions makes of
    them beside their centers."""

    inputs = 1

    def __init__(self, units: UnitTokenizer, layers: int):
        super().__init__()
        self.units = units.requires_grad_(False)
        self.size = round(units.sample_rate / units.frame_rate)
        self.hop, self.chunk = Fraction(self.size), self.size * int(units.encoder.frames(1))  # a column
        width = units.encoder.width
        self.recurrent = BidirectionalLSTM(2 * width, layers, skip=False)
        self.linear = nn.Linear(4 * width, width, bias=False)

    @property
    def width(self):
        return 2 * self.units.encoder.width

    def frames(self, length):
        return length // self.size

    def inputs_for(self, outputs):
        return outputs * self.size

    def respond(self, x, lengths):
        counts = self.frames(lengths)
        with torch.no_grad():
            frames = self.units.encoder(x[..., 0], lengths, self.units.layer)
            centers = self.units.center(self.units.nearest(frames)).to(frames.dtype)
        heard = zero_padding(torch.cat([frames, centers], dim=-1), counts)
        return torch.cat([heard[..., : frames.shape[2]], self.linear(self.recurrent(heard, counts))], dim=-1)


class SemanticAndAcousticQuantizer(Quantizer):
    """Latents [B, T, 2 D] -> codes [B, 2, T]: the nearest center of the first D, which never moves, and a learned code
    of the others. Without the second code, zeros stand for the others."""

    def __init__(self, units: UnitTokenizer, acoustic: Quantizer):
        super().__init__()
        self._units = (units,)  # the encoder's own: in a tuple, it is no part of this module
        self.acoustic = acoustic
        self.width = 2 * acoustic.width
        self.codebook_sizes = (units.codebook_size, *acoustic.codebook_sizes)

    @property
    def units(self) -> UnitTokenizer:
        """What has the centers."""
        return self._units[0]

    def _semantic(self, latents: Tensor) -> Tensor:
        """Codes [B, 1, T] of latents [B, T, 2 D]."""
        return self.units.nearest(latents[..., : self.acoustic.width].float())[:, None]

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        codes = self._semantic(latents)
        centers = self.units.center(codes[:, 0]).to(latents.dtype)
        usage, perplexity = ([each] for each in health(codes, self.codebook_sizes[0], self.training))
        rest, loss = torch.zeros_like(centers), latents.new_zeros(())
        if self.levels_used(codebooks) == 2:
            found = self.acoustic(latents[..., self.acoustic.width :], lengths)
            codes, rest, loss = torch.cat([codes, found.codes], dim=1), found.latents, found.loss
            usage, perplexity = [*usage, *found.usage], [*perplexity, *found.perplexity]
        y = zero_padding(torch.cat([centers, rest], dim=-1), lengths)
        kept = zero_padding(codes.transpose(1, 2), lengths).transpose(1, 2)
        return Quantized(y, kept, loss, torch.stack(usage), torch.stack(perplexity))

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        codes = [self._semantic(latents)]
        if self.levels_used(codebooks) == 2:
            codes.append(self.acoustic.encode(latents[..., self.acoustic.width :]))
        return zero_padding(torch.cat(codes, dim=1).transpose(1, 2), lengths).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        centers = self.units.center(codes[:, 0])
        rest = self.acoustic.decode(codes[:, 1:]) if codes.shape[1] == 2 else torch.zeros_like(centers)
        return torch.cat([centers, rest], dim=-1)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        self.check_latents(latents)
        here, rest = latents.float().chunk(2, dim=-1)
        found = [ties(here * self.units.scale, self.units.centers)[:, None]]
        if codes is None or codes.shape[1] == 2:
            found.append(self.acoustic.ties(rest))
        return torch.cat(found, dim=1)


class TokensToLatents(Chain):
    """Quantized tokens [B, T, inputs], `column` of them side by side -> latents [B, T / column x ratio, width], by flow
    matching. A column that lacks tokens is filled with zeros."""

    def __init__(self, inputs: int, column: int, config: FlowConfig):
        c = config
        encoder = TokenEncoder(
            c.width, c.heads, c.feedforward, c.layers, c.upper, c.ratio, c.ahead, c.chunk, mels=c.mels
        )
        embed = Pointwise(nn.Linear(column * inputs, c.width), c.width)
        super().__init__(Stack(inputs, column, complete=True), embed, encoder, FlowMatching(config))
        self.config = config

    def loss(self, tokens: Tensor, target: Tensor, whole: bool = False) -> Tensor:
        """`FlowMatching`'s, of quantized tokens [B, T, inputs] and true latents [B, T / column x ratio, width]."""
        x = tokens
        for part in list(self)[:-1]:
            x = part(x)
        flow, nobody = self.parts[-1], torch.zeros(len(x), dtype=torch.int64, device=x.device)
        assert isinstance(flow, FlowMatching)
        lengths = torch.full_like(nobody, x.shape[1])
        return flow.loss(x, target, lengths, x.new_zeros(len(x), self.config.mels), nobody, whole)


class SemantiCodec(SeededCodec):
    """Waveform [B, 1, S] <-> tokens [B, 2, T]: semantic ones, acoustic ones. Tokens come by columns of 0.16 s or more,
    that of the signal's end whole; what is heard is answered at its end."""

    config: SemantiCodecConfig
    quantizer: SemanticAndAcousticQuantizer

    def __init__(self, config: SemantiCodecConfig):
        encoder, sizes = encoder_of(config.ears)
        config = dataclasses.replace(config, ears=sizes)
        column, hop = int(encoder.frames(1)), round(encoder.sample_rate / encoder.frame_rate)
        if encoder.sample_rate != config.sample_rate or encoder.frames(column * hop) != column:
            raise RecipeError(f"codec.ears: whole columns of frames at {config.sample_rate} Hz are needed")
        latents = configured("codec.latents", LatentConfig, tuples(config.latents))
        vocoder = configured(
            "codec.vocoder", HiFiGANConfig, tuples({"inputs": latents.mels, **VOCODER, **config.vocoder})
        )
        to_wave = HiFiGAN(vocoder)
        ratio, odd = divmod(column * hop, to_wave.samples_per_frame * latents.stride)
        if odd or not ratio:
            raise RecipeError(f"codec: a column of {column * hop} samples is no whole number of latents of "
                              f"{latents.stride} x {to_wave.samples_per_frame}: choose other rates")  # fmt: skip
        derived = {"tokens": 1, "speaker": 1, "mels": latents.width, "ratio": ratio}
        flow = configured("codec.flow", FlowConfig, {**derived, **FLOW, **config.flow})
        units = UnitTokenizer(encoder, torch.randn(config.clusters, encoder.width), None, sizes)
        acoustic = build_quantizer({"kind": "vq", "width": encoder.width, "codebook_size": config.codebook_size,
                                    **config.quantizer})  # fmt: skip
        super().__init__(
            Chain(WholeFrames(column * hop, 1), SemanticAndAcoustic(units, config.layers)),
            SemanticAndAcousticQuantizer(units, acoustic),
            Chain(TokensToLatents(2 * encoder.width, column, flow), LatentsToMel(latents), to_wave),
            config.sample_rate,
            config=config,
        )
        self.to_latents = MelToLatents(latents)
        self.mels, self.mel_hop, self.column = latents.mels, to_wave.samples_per_frame, column

    @property
    def units(self) -> UnitTokenizer:
        """The semantic tokens: the frozen encoder, and the centers of its frames."""
        return self.quantizer.units

    @property
    def diffusion(self) -> TokensToLatents:
        """Tokens to latents."""
        part = self.decoder.parts[0]
        assert isinstance(part, TokensToLatents)
        return part

    @property
    def to_mel(self) -> LatentsToMel:
        """Latents to mel frames."""
        part = self.decoder.parts[1]
        assert isinstance(part, LatentsToMel)
        return part

    def features(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, M, mels] as the vocoder speaks them; zeros fill the last column."""
        whole = F.pad(wave[:, 0], (0, -wave.shape[-1] % (self.column * self.hop)))
        mel = vocoder_mel(whole, self.sample_rate, MEL_WINDOW, self.mel_hop, self.mels, self.sample_rate / 2)
        return mel.to(self._home(self.decoder)[1])

    def vocode(self, mel: Tensor) -> Tensor:
        """Mel frames [B, M, mels] -> waveform [B, 1, S]."""
        return self.decoder.parts[2](mel).transpose(1, 2)

    def latents(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> what the diffusion is to make of its tokens [B, N, width], of about unit deviation."""
        return self.to_latents(self.features(wave))[0] / self.to_mel.scale.deviation

    def uncoded(self) -> Uncoded:
        """The way from waveforms to waveforms through mel frames alone: what the vocoder is trained on."""
        return Uncoded(self)

    def _decoded(self, codes, lengths, state=None):
        wave = super()._decoded(codes, lengths, state)
        return wave if lengths is not None else wave[..., : codes.shape[2] * self.hop]

    @torch.no_grad()
    def decode_flush(self, state, rows=None):
        """As any codec's; of a column that lacks tokens, only the samples of those that came."""
        waiting = state["0"]["0"]["held"]
        wave, state = super().decode_flush(state, rows)
        missing = torch.where(waiting > 0, self.column - waiting, 0) * self.hop
        return wave, State({**state, "emitted": (state.emitted - missing).clamp(min=0)})


def build_semanticodec(options: Mapping[str, Any] | SemantiCodecConfig) -> SemantiCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return SemantiCodec(options if isinstance(options, SemantiCodecConfig) else SemantiCodecConfig.of(options))


PUBLISHED_SEMANTICODEC: dict[str, dict[str, Any]] = {
    # haoheliu/SemantiCodec-inference, semanticodec/config.py: 100, 50 and 25 tokens a second, of which half semantic.
    "semanticodec": {"ears": {"kind": "mel_patches"}},
    "semanticodec-50": {"ears": {"kind": "mel_patches", "group": [2, 1]}, "layers": 3},
    "semanticodec-25": {"ears": {"kind": "mel_patches", "group": [2, 2]}, "layers": 2, "flow": {"chunk": 8}},
}

"""Supervised semantic tokens and their way back to sound: a recogniser's encoder with a quantizer, flow matching, HiFT.

Sources: CosyVoice (arXiv:2407.05407), CosyVoice 2 (arXiv:2412.10117), GLM-4-Voice (arXiv:2412.02612), Baichuan-Audio
(arXiv:2502.17239, of several codebooks). The tokens tell what is said; who says it, a vector tells, or a prompt: some
of that voice's tokens with their mel frames. Trained in three parts, each by a task of its own: the tokens by the text
that must be read from them, mel frames from tokens, and the waveform from mel frames.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.pitch import fundamental
from vivavoce.codecs.bicodec import Speaker
from vivavoce.codecs.codec import Codec, Reconstruction
from vivavoce.codecs.feature_codec import SpeechFeatures, encoder_of
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.encoders.base import Encoder
from vivavoce.encoders.block_whisper import pooled
from vivavoce.encoders.streaming import StreamingEncoder
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.resampling import resampling
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, State, Streaming, lengths_of, zero_padding
from vivavoce.quantizers import Quantized, build_quantizer
from vivavoce.schema.parts import configured, tuples
from vivavoce.vocoders.flow_matching import FlowConfig, TokenToMel
from vivavoce.vocoders.hift import HiFT, HiFTConfig
from vivavoce.vocoders.mel import vocoder_mel

HIGHEST = 8000.0  # Hz: of the mel bands


@dataclass(frozen=True)
class SemanticConfig(CodecOptions):
    """ears: an encoder of `vivavoce.encoders`, with the `layer` whose frames are taken (None: its output), learned with
    the tokens unless `frozen`; `pool`: frames whose mean is one token's; `strides`: of convolutions behind residual
    units that make fewer frames of them. It may hear another rate than the codec's.

    quantizer: the codes of a frame are told to the flow together, as the sum of a vector each. flow: options of
    `FlowConfig`, vocoder: of `HiFTConfig`; what follows from the rest (numbers of tokens and bands, rates) is not said
    again. voice: width of the speaker encoder.
    """

    sample_rate: int = 24000
    ears: Mapping[str, Any] = field(default_factory=lambda: {"kind": "s3"})
    layer: int | None = None
    frozen: bool = False
    pool: int = 1
    strides: tuple[int, ...] = ()
    quantizer: Mapping[str, Any] = field(
        default_factory=lambda: {"kind": "fsq", "levels": [3] * 8, "epsilon": -1e-3}
    )
    flow: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=dict)
    voice: int = 256

    def __post_init__(self):
        for part, derived in (("flow", ("tokens", "mels", "ratio")), ("vocoder", ("sample_rate",))):
            said = [name for name in derived if name in getattr(self, part)]
            if said:
                raise RecipeError(f"codec.{part}.{said[0]}: it follows from the rest: leave it out")


def ears_of(config: SemanticConfig, encoder: Encoder) -> Chain:
    """Waveform [B, S, 1] at the codec's rate -> a frame for each token, begun or not."""
    heard, spoken = encoder.sample_rate, config.sample_rate
    hop = round(heard / encoder.frame_rate) * config.pool * math.prod(config.strides)
    if hop * spoken % heard:
        raise RecipeError(f"codec: a token of {hop} samples at {heard} Hz is no whole number of them at {spoken} Hz")
    parts: list[Streaming] = [WholeFrames(hop * spoken // heard, 1)]
    if heard != spoken:
        parts.append(resampling(spoken, heard))
    if isinstance(encoder, StreamingEncoder):
        if config.frozen or config.layer is not None:
            raise RecipeError("codec: ears that stream have no layers to choose from, and are not frozen")
        parts.append(encoder.module)
    else:
        parts.append(SpeechFeatures(encoder, config.layer, config.frozen))
    return Chain(*parts, *pooled(encoder.width, config.pool), *fewer(encoder.width, config.strides))


def fewer(width: int, strides: Sequence[int]) -> list[Streaming]:
    """Frames [B, T, width] -> one for as many as the strides multiply to: a residual unit and a convolution each."""
    parts: list[Streaming] = []
    for stride in strides:
        heard = Pointwise(nn.GELU(), width), Conv(width, width, 3, left=1, right=1)
        unit = Residual(Chain(*heard, Pointwise(nn.GELU(), width), Conv(width, width, 1)))
        parts += [unit, Conv(width, width, 2 * stride, stride)]
    return parts


class SemanticCodec(Codec):
    """Waveform [B, 1, S] <-> tokens [B, K, T], in most of one codebook. Its decoder's state holds the voice, row by
    row; without one, sound is in nobody's."""

    config: SemanticConfig

    def __init__(self, config: SemanticConfig):
        hearing, sizes = encoder_of(config.ears)
        config = dataclasses.replace(config, ears=sizes)
        encoder = ears_of(config, hearing)
        quantizer = build_quantizer({"width": encoder.width, **config.quantizer})
        vocoder = HiFT(configured("codec.vocoder", HiFTConfig, tuples({"sample_rate": config.sample_rate,
                                                                       **config.vocoder})))  # fmt: skip
        ratio, odd = divmod(int(encoder.hop), vocoder.config.samples)
        if odd or not ratio:
            raise RecipeError(f"codec: a token of {encoder.hop} samples is no whole number of mel frames of "
                              f"{vocoder.config.samples}: choose other rates of the vocoder")  # fmt: skip
        derived = {"tokens": sum(quantizer.codebook_sizes), "mels": vocoder.config.inputs, "ratio": ratio}
        to_mel = TokenToMel(configured("codec.flow", FlowConfig, {**derived, **config.flow}))
        super().__init__(encoder, quantizer, Chain(to_mel, vocoder), config.sample_rate, config=config)
        self.speaker = Speaker(vocoder.config.inputs, config.voice, 1, to_mel.config.speaker)

    @property
    def to_mel(self) -> TokenToMel:
        """Tokens to mel frames."""
        part = self.decoder.parts[0]
        assert isinstance(part, TokenToMel)
        return part

    @property
    def vocoder(self) -> HiFT:
        """Mel frames to waveform."""
        part = self.decoder.parts[1]
        assert isinstance(part, HiFT)
        return part

    def mel(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, T x ratio, mels]; zeros fill the last token's."""
        c = self.vocoder.config
        whole = F.pad(wave[:, 0], (0, -wave.shape[-1] % self.hop))
        top = min(HIGHEST, c.sample_rate / 2)
        mel = vocoder_mel(whole, c.sample_rate, 4 * c.samples, c.samples, c.inputs, top)
        return mel.to(self._home(self.decoder)[1])

    def speaker_of(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S], lengths [B] in samples -> the vector of each voice [B, D]."""
        counts = lengths_of(wave[:, 0], lengths) // self.vocoder.config.samples
        return self.speaker(self.mel(zero_padding(wave.transpose(1, 2), lengths).transpose(1, 2)), counts)

    @torch.no_grad()
    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """What is told beside the tokens, as `decode` takes it: whose voice it is."""
        return {"speaker": self.speaker_of(wave, lengths)}

    def decoder_state(
        self,
        batch: int,
        speaker: Tensor | None = None,
        prompt: Tensor | None = None,
        prompted: Tensor | None = None,
    ) -> State:
        """State of `batch` signals of which nothing has been decoded yet, in the voice of the vectors `speaker` [batch,
        D], or as the mel frames of a prompt [batch, P, mels] (of which `prompted` [batch] are valid) have it, whose
        tokens are to come first. (`vivavoce.nn.noise.seeded` gives its rows other noise.)"""
        state = super().decoder_state(batch)
        return State({**state, "0": self.to_mel.told(state["0"], speaker, prompt, prompted)})

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None, **voice: Tensor) -> Tensor:
        """As any codec's, in a voice as `decoder_state` takes it."""
        codes = self._checked(codes)
        return self._decoded(codes, lengths, self.decoder_state(len(codes), **voice))

    @torch.no_grad()
    def say(self, codes: Tensor, prompt: Tensor) -> Tensor:
        """Tokens [B, K, T] in the voice of prompts [B, 1, S], of whole tokens best -> waveform [B, 1, T x hop]."""
        known = self.encode(prompt)
        told = {"speaker": self.speaker_of(prompt), "prompt": self.mel(prompt)}
        wave = self.decode(torch.cat([known, codes.to(known.device)], dim=-1), **told)
        return wave[..., known.shape[-1] * self.hop :]

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Reconstruction:
        """Waveform [B, 1, S] through its tokens; no gradient passes from the sound to them."""
        said = lengths_of(wave[:, 0], lengths)
        latents = self.encode_latents(wave, lengths)
        quantized = self.quantize(latents, self.encoder.frames(said))
        audio = self.decode(quantized.codes, said, **self.beside(wave, lengths))
        return Reconstruction(audio, quantized.codes, {"quantizer": quantized.loss}, latents)

    def numbers(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> [B, T, K] as numbers among the entries of all codebooks, [B, T] where there is one."""
        if self.quantizer.codebooks == 1:
            return codes[:, 0]
        first = torch.tensor([0, *self.quantizer.codebook_sizes[: codes.shape[1] - 1]], device=codes.device).cumsum(0)
        return codes.transpose(1, 2) + first

    def _latents_of(self, codes, state):
        self.quantizer.check_codes(codes)
        device, dtype = self._home(self.decoder)
        return self.to_mel.embed(self.numbers(codes.to(device))).to(dtype)

    def uncoded(self) -> "Vocoding":
        """The way from waveforms to waveforms through mel frames alone: what the vocoder is trained on."""
        return Vocoding(self)


class Vocoding:
    """A `SemanticCodec`'s vocoder, with the face that training has of any codec; as the quantizer's loss stands how far
    the vocoder's F0 is from that of YIN, in hundreds of Hz (HiFTNet, arXiv:2309.09493, has a network for it)."""

    def __init__(self, codec: SemanticCodec):
        self.codec = codec
        self.hertz: Tensor | None = None

    def encode_latents(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, T, mels]."""
        mel, c = self.codec.mel(wave), self.codec.vocoder.config
        heard = wave.detach().float().cpu().numpy()
        found = [fundamental(row[0], c.sample_rate, c.samples, mel.shape[1]) for row in heard]
        self.hertz = torch.stack([torch.from_numpy(row) for row in found]).to(mel)
        return mel

    def quantize(self, latents: Tensor) -> Quantized:
        """The mel frames as they are."""
        assert self.hertz is not None
        apart = (self.codec.vocoder.pitch(latents)[..., 0] - self.hertz).abs().mean() / 100
        none = latents.new_zeros(0)
        codes = torch.zeros(len(latents), 0, latents.shape[1], dtype=torch.int64, device=latents.device)
        return Quantized(latents, codes, apart, none, none)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Mel frames [B, T, mels] -> waveform [B, 1, S]."""
        return self.codec.vocoder(latents).transpose(1, 2)


def build_semantic_codec(options: Mapping[str, Any] | SemanticConfig) -> SemanticCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return SemanticCodec(options if isinstance(options, SemanticConfig) else SemanticConfig.of(options))


_S3_V1 = {"kind": "s3", "positions": "sinusoidal", "memory": None, "unit": True}
_VQ = {"kind": "vq", "codebook_size": 4096}

PUBLISHED_SEMANTIC: dict[str, dict[str, Any]] = {
    # arXiv:2412.10117; FunAudioLLM/CosyVoice, examples/libritts/cosyvoice2: 6561 tokens at 25 Hz, 24 kHz out.
    "cosyvoice2": {},
    # arXiv:2407.05407: 4096 tokens at 50 or 25 Hz; here behind CosyVoice 2's flow matching and vocoder.
    "cosyvoice-50hz": {"ears": {**_S3_V1, "strides": [1, 2]}, "quantizer": _VQ},
    "cosyvoice-25hz": {"ears": _S3_V1, "quantizer": _VQ},
    # arXiv:2412.02612; zai-org/GLM-4-Voice: 16,384 tokens at 12.5 Hz; here behind CosyVoice 2's decoder.
    "glm-4-voice": {
        "ears": {"kind": "block_whisper"},
        "quantizer": {"kind": "vq", "codebook_size": 16384},
        "flow": {"chunk": 10},
    },
    # arXiv:2502.17239; baichuan-inc/Baichuan-Audio: Whisper-large's encoder, 12.5 Hz, 1.1 kbit/s; here behind CosyVoice
    # 2's decoder.
    "baichuan-audio": {
        "ears": {"kind": "whisper", "mels": 128, "width": 1280, "layers": 32, "heads": 20, "hidden": 5120},
        "strides": [2, 2],
        "quantizer": {"kind": "rvq", "codebooks": 8, "codebook_size": [8192, 4096, 2048, *[1024] * 5]},
        "flow": {"chunk": 10},
    },
    # arXiv:2410.15316; WhisperSpeech's quantizer of a whole Whisper medium: 512 tokens at 25 Hz.
    "ichigo-whispervq": {
        "ears": {"kind": "whisper", "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "frozen": True,
        "pool": 2,
        "quantizer": {"kind": "factorized_rvq", "codebooks": 1, "codebook_size": 512, "codebook_width": 64},
    },
}

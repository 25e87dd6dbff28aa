"""A mel vocoder alone: waveform to mel frames and back, without codes, trained as codecs are and named by those of mel
frames.

Vocos (arXiv:2306.00814; gemelo-ai/vocos, configs/vocos.yaml), HiFi-GAN (arXiv:2010.05646; jik876/hifi-gan), BigVGAN.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import mel_filters
from vivavoce.codecs.mel_codec import MelFrames
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.weights import load_module, read_safetensors
from vivavoce.quantizers import Quantized
from vivavoce.schema.reading import read_recipe
from vivavoce.vocoders.mel import vocoder_mel
from vivavoce.vocoders.registry import build_vocoder


@dataclass(frozen=True)
class MelForm:
    """What mel frames are. of: `vocos` (natural logarithms, HTK's filters, half a window reflected at both ends),
    `hifigan` (natural logarithms, Slaney's, as `vocoder_mel`) or `decades` (log10, Slaney's, as `MelFrames`: zeros of
    `edge` samples at both ends, None: half a spectrum reflected). fmin, fmax in Hz, None: half the rate."""

    of: Literal["vocos", "hifigan", "decades"] = "vocos"
    mels: int = 100
    fft_size: int = 1024
    window: int | None = None
    hop: int = 256
    fmin: float = 0.0
    fmax: float | None = None
    floor: float = 1e-7
    edge: int | None = None

    def __post_init__(self):
        fixed = {"vocos": ("window", "fmin", "fmax", "floor", "edge"), "hifigan": ("window", "fmin", "edge")}
        if self.of not in (*fixed, "decades"):
            raise RecipeError(f"mel.of: '{self.of}' is none of vocos, hifigan, decades")
        told = [name for name in fixed.get(self.of, ()) if getattr(self, name) != getattr(MelForm, name)]
        if told:
            raise RecipeError(f"mel: {', '.join(told)}: fixed in the form '{self.of}'")


@dataclass(frozen=True)
class MelVocoderConfig(CodecOptions):
    """The defaults are vocos-mel-24khz's. mel: `MelForm`'s options. vocoder: `kind` (vocos, hifigan, bigvgan) and its
    sizes, but for what the mel frames say."""

    sample_rate: int = 24000
    mel: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=lambda: {"kind": "vocos"})

    @property
    def form(self) -> MelForm:
        """Of the mel frames."""
        try:
            return MelForm(**self.mel)
        except TypeError as error:
            raise RecipeError(f"mel: {error}") from None


class MelVocoder(nn.Module):
    """Waveform [B, 1, S] -> mel frames [B, T, mels] -> waveform, with the face of a codec that has no codebooks."""

    channels, codebooks, codebook_sizes = 1, 0, ()

    def __init__(self, config: MelVocoderConfig):
        super().__init__()
        self.config, self.form, self.sample_rate = config, config.form, config.sample_rate
        form, about = self.form, dict(config.vocoder)
        kind = about.pop("kind", "vocos")
        own: dict[str, Any] = {"inputs": form.mels}
        if kind == "vocos":
            padding = "center" if form.of == "vocos" else "same"
            own |= {"fft_size": form.fft_size, "hop": form.hop, "padding": padding, "sample_rate": config.sample_rate}
        if kind == "unit_hifigan":
            raise RecipeError("mel_vocoder.vocoder: unit_hifigan hears units; there are vocos, hifigan, bigvgan")
        self.options = {"kind": kind, **own, **about}
        vocoder: Any = build_vocoder(self.options)
        self.decoder, per_frame = vocoder, int(1 / vocoder.hop)
        if per_frame != form.hop:
            told = f"the vocoder gives {per_frame} samples a frame"
            raise RecipeError(f"mel_vocoder: {told}, frames are {form.hop} apart")
        self.frames_of = None
        if form.of == "decades":
            top = form.fmax or config.sample_rate / 2
            window = form.window or form.fft_size
            place = (form.hop, form.fft_size, form.fmin, top, form.floor, form.edge)
            self.frames_of = MelFrames(config.sample_rate, form.mels, window, *place)

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return self.form.hop

    @property
    def frame_rate(self) -> float:
        """Mel frames a second."""
        return self.sample_rate / self.hop

    @property
    def bits_per_second(self) -> float:
        """Of mel frames in float32: nothing is coded."""
        return 32 * self.form.mels * self.frame_rate

    @torch.no_grad()
    def encode_latents(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S], filled with zeros to whole hops -> mel frames [B, T, mels]; they get no gradient."""
        if wave.dim() != 3 or wave.shape[1] != 1:
            raise RequestError(f"waveform {tuple(wave.shape)}: a mel vocoder takes [batch, 1, samples]")
        form = self.form
        x = F.pad(wave[:, 0], (0, -wave.shape[-1] % self.hop)).float()
        x = F.pad(x, (0, max(0, form.fft_size - x.shape[1])))  # what is reflected must be there
        if self.frames_of is not None:
            return self.frames_of(x[..., None])
        if form.of == "hifigan":
            return vocoder_mel(x, self.sample_rate, form.fft_size, form.hop, form.mels, form.fmax)
        edge = form.fft_size // 2
        padded = F.pad(x[:, None], (edge, edge), mode="reflect")[:, 0]
        window = torch.hann_window(form.fft_size, device=x.device)
        spectrum = torch.stft(padded, form.fft_size, form.hop, window=window, center=False, return_complex=True)
        filters = torch.from_numpy(mel_filters(self.sample_rate, form.fft_size, form.mels)).to(x.device)
        return (filters @ spectrum.abs()).clamp(min=form.floor).log().transpose(1, 2)

    def quantize(self, latents: Tensor, lengths: Tensor | None = None) -> Quantized:
        """The frames as they are."""
        none = latents.new_zeros(0)
        codes = torch.zeros(len(latents), 0, latents.shape[1], dtype=torch.int64, device=latents.device)
        return Quantized(latents, codes, latents.new_zeros(()), none, none)

    def decode_latents(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mel frames [B, T, mels] -> waveform [B, 1, S]."""
        return self.decoder(latents, lengths).transpose(1, 2)

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """No codes: [B, 0, T] int64."""
        return self.quantize(self.encode_latents(wave)).codes

    def beside(self, wave: Tensor) -> dict[str, Tensor]:
        """What `decode` needs beside the codes."""
        return {"frames": self.encode_latents(wave)}

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Mel frames [B, T, mels] (`codes` say nothing) -> waveform [B, 1, S], cut to `lengths` [B] in samples."""
        if frames is None:
            raise RequestError("a mel vocoder speaks from mel frames: it has no codes")
        wave = self.decode_latents(frames)
        return wave if lengths is None else wave[..., : int(lengths.max())]


def build_mel_vocoder(options: Mapping[str, Any] | MelVocoderConfig) -> Any:
    """An untrained vocoder; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return MelVocoder(options if isinstance(options, MelVocoderConfig) else MelVocoderConfig.of(options))


def vocoder_of(options: Mapping[str, Any], form: MelForm, sample_rate: int) -> tuple[Any, dict[str, Any]]:
    """The vocoder that a codec of mel frames of `form` names by `source`, the run or model directory of a mel vocoder,
    with its weights, and options that build it without them. `RecipeError` where its frames are others."""
    folder = Path(options["source"])
    if len(options) > 1:
        raise RecipeError(f"vocoder: {', '.join(set(options) - {'source'})} beside `source`: sizes come from there")
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"vocoder.source: {folder} has no recipe.yaml: train one first (vivavoce train vocos)")
    told = {part.kind: part.options for part in read_recipe(folder / "recipe.yaml").tokenizers.values()}
    found = next((build_kind(kind, more) for kind, more in told.items() if kind in KINDS), None)
    if found is None:
        raise RecipeError(f"vocoder.source: {folder} is no mel vocoder: it has {', '.join(told) or 'no tokenizer'}")
    theirs = {"sample_rate": found.sample_rate, **dataclasses.asdict(found.form)}
    ours = {"sample_rate": sample_rate, **dataclasses.asdict(form)}
    other = [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if other:
        raise RecipeError(f"vocoder.source: {folder} speaks from other mel frames: {'; '.join(other)}")
    weights = folder / "model.safetensors"
    tensors = {n.removeprefix("codec."): t for n, t in read_safetensors(weights).items() if n.startswith("codec.")}
    load_module(found, tensors, str(weights))
    return found.decoder, found.options


PUBLISHED_MEL_VOCODER: dict[str, dict[str, Any]] = {
    # gemelo-ai/vocos, configs/vocos.yaml.
    "vocos-mel-24khz": {},
    # jik876/hifi-gan, config_v1.json.
    "hifigan-v1": {
        "sample_rate": 22050,
        "mel": {"of": "hifigan", "mels": 80, "floor": 1e-5, "fmax": 8000.0},
        "vocoder": {"kind": "hifigan", "rates": [8, 8, 2, 2], "kernels": [16, 16, 4, 4]},
    },
    # NVIDIA/BigVGAN, configs/bigvgan_base_24khz_100band.json.
    "bigvgan-base-24khz": {
        "mel": {"of": "hifigan", "mels": 100, "floor": 1e-5, "fmax": 12000.0},
        "vocoder": {"kind": "bigvgan", "rates": [8, 8, 2, 2], "kernels": [16, 16, 4, 4]},
    },
}
KINDS = ("mel_vocoder", *PUBLISHED_MEL_VOCODER)


def build_kind(kind: str, options: Mapping[str, Any]) -> Any:
    """One of `KINDS`, but for `options`."""
    return build_mel_vocoder({**PUBLISHED_MEL_VOCODER.get(kind, {}), **options})

"""Vocos: frames to waveform through a ConvNeXt body and an inverse STFT (Siuzdak 2023, arXiv:2306.00814)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vivavoce.audio.mel import mel_filters
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.pairs import Pair, Published, weight_and_bias
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.weights import check_asked, load_module, read_pickle
from vivavoce.vocoders.attention_prenet import AttentionPrenet
from vivavoce.vocoders.hifigan import centred
from vivavoce.vocoders.istft import TrimmedISTFT

EPSILON = 1e-6


@dataclass(frozen=True)
class VocosConfig:
    """Sizes; the defaults are vocos-mel-24khz's. padding: "center" or "same" (frames x hop samples), as published, or
    "causal": no look-ahead anywhere, frames x hop samples. conditions: settings, such as bitrates, of which the norms
    are told one (0: none). prenet: attention over all frames behind the first convolution, in `groups` of norms
    (WavTokenizer), which makes it hear whole signals."""

    inputs: int = 100
    width: int = 512
    hidden: int = 1536
    layers: int = 8
    fft_size: int = 1024
    hop: int = 256
    padding: Literal["center", "same", "causal"] = "center"
    sample_rate: int = 24000
    conditions: int = 0
    prenet: bool = False
    groups: int = 32

    def __post_init__(self):
        if self.padding not in ("center", "same", "causal"):
            raise RecipeError(f"padding: {self.padding!r} is none of center, same, causal")
        if self.prenet and self.padding == "causal":
            raise RecipeError("prenet: its attention hears whole signals, so that padding cannot be causal")


class Scale(nn.Module):
    """Learned gain for each channel, small at first."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class ConditionedNorm(nn.Module):
    """A layer norm whose gains and biases are those of one of several settings, `which`."""

    def __init__(self, width: int, conditions: int):
        super().__init__()
        self.scale, self.shift = nn.Embedding(conditions, width), nn.Embedding(conditions, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)
        self.which = 0

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        y = nn.functional.layer_norm(x, x.shape[-1:], eps=EPSILON)
        return y * self.scale.weight[self.which] + self.shift.weight[self.which]


def _norm(config: VocosConfig) -> nn.Module:
    if config.conditions:
        return ConditionedNorm(config.width, config.conditions)
    return nn.LayerNorm(config.width, EPSILON)


class Vocos(Chain):
    """Frames [B, T, inputs] -> waveform [B, samples, 1].

    Every non-causal convolution sees 3 frames ahead: the look-ahead of the published size is 27 frames and the
    transform's two.
    """

    def __init__(self, config: VocosConfig):
        width, causal = config.width, config.padding == "causal"
        parts: list[Streaming] = [
            Conv(config.inputs, width, 7) if causal else centred(config.inputs, width, 7),
            *([AttentionPrenet(width, config.groups)] if config.prenet else []),
            Pointwise(_norm(config), width),
        ]
        for _ in range(config.layers):
            left, right = (6, 0) if causal else (3, 3)
            depthwise = Conv(width, width, 7, groups=width, left=left, right=right, complete=False)
            mix = nn.Sequential(
                _norm(config), PackedLinear(width, config.hidden), nn.GELU(),
                PackedLinear(config.hidden, width), Scale(width, 1 / config.layers),
            )
            parts.append(Residual(Chain(depthwise, Pointwise(mix, width))))
        head: Streaming
        if causal:
            head = StreamingISTFT(config.fft_size, config.hop)
        else:
            trim = config.fft_size // 2 if config.padding == "center" else (config.fft_size - config.hop) // 2
            head = TrimmedISTFT(config.fft_size, config.hop, trim)
        last = nn.Sequential(nn.LayerNorm(width, EPSILON), PackedLinear(width, config.fft_size + 2))
        super().__init__(*parts, Pointwise(last, config.fft_size + 2), head)
        self.config = config
        self.sample_rate = config.sample_rate
        for module in self.modules():
            if isinstance(module, Conv | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def condition(self) -> int:
        """The setting that the norms are told, from 0 (WavTokenizer's `bandwidth_id`)."""
        return next((module.which for module in self.modules() if isinstance(module, ConditionedNorm)), 0)

    @condition.setter
    def condition(self, which: int) -> None:
        if not 0 <= which < max(1, self.config.conditions):
            raise RequestError(f"condition {which}: this Vocos is told one of {self.config.conditions}, from 0")
        for module in self.modules():
            if isinstance(module, ConditionedNorm):
                module.which = which

    def log_mel(self, wave: Tensor) -> Tensor:
        """The published front end: wave [B, samples] -> natural logarithm of mel magnitudes [B, T, inputs].

        Whole signals; "center" reflects half a window at the ends (T = samples // hop + 1), the others
        (fft_size - hop) / 2 of it (T = samples // hop).
        """
        config = self.config
        edge = config.fft_size // 2 if config.padding == "center" else (config.fft_size - config.hop) // 2
        padded = nn.functional.pad(wave.float()[:, None], (edge, edge), mode="reflect")[:, 0]
        window = torch.hann_window(config.fft_size, device=wave.device)
        spectrum = torch.stft(padded, config.fft_size, config.hop, window=window, center=False, return_complex=True)
        filters = torch.from_numpy(mel_filters(config.sample_rate, config.fft_size, config.inputs)).to(wave.device)
        return (filters @ spectrum.abs()).clamp(min=1e-7).log().transpose(1, 2)


def load_vocos(directory: str | Path, allow_pickle: bool = False) -> Vocos:
    """A published Vocos (config.yaml, pytorch_model.bin), in evaluation mode.

    The checkpoint is a pickle: it is read only with `allow_pickle`, by weights-only loading. Models over EnCodec's
    codes take its quantized latents and have a `condition`, the bandwidth. Raises `CheckpointError`.
    """
    import yaml

    directory = Path(directory)
    file = directory / "pytorch_model.bin"
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{directory}: no config.yaml that can be read ({error})") from None
    check_asked(file, allow_pickle)
    return from_vocos(config, read_pickle(file, []))


def from_vocos(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Vocos:
    """Our module with the weights of a Vocos config (config.yaml's content) and state dict."""
    try:
        front, body, head = (config[part]["init_args"] for part in ("feature_extractor", "backbone", "head"))
        sizes = VocosConfig(
            inputs=body["input_channels"],
            width=body["dim"],
            hidden=body["intermediate_dim"],
            layers=body["num_layers"],
            fft_size=head["n_fft"],
            hop=head["hop_length"],
            padding=head.get("padding", "same"),
            sample_rate=front.get("sample_rate", 24000),
            conditions=body.get("adanorm_num_embeddings") or 0,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"not a Vocos config: {error} is missing") from None
    model = Vocos(sizes)
    load_module(model, Published(state, "the checkpoint").all(vocos_pairs(model)), "the checkpoint")
    return model.eval()


def vocos_pairs(model: Vocos, ours: str = "") -> Iterator[Pair]:
    """The names of the package's `backbone` and `head`, WavTokenizer's attention among them; ours begin with `ours`."""
    sizes = model.config
    yield from weight_and_bias(f"{ours}parts.0", "backbone.embed")
    first = 1
    if sizes.prenet:
        yield from _prenet_pairs(f"{ours}parts.1", "backbone.pos_net", sizes.width)
        first = 2
    yield from _norm_pairs(sizes, f"{ours}parts.{first}.function", "backbone.norm")
    for number in range(sizes.layers):
        block, theirs = f"{ours}parts.{first + 1 + number}.inner.parts", f"backbone.convnext.{number}"
        inner = f"{block}.1.function"
        yield from weight_and_bias(f"{block}.0", f"{theirs}.dwconv")
        yield from _norm_pairs(sizes, f"{inner}.0", f"{theirs}.norm")
        yield from weight_and_bias(f"{inner}.1", f"{theirs}.pwconv1")
        yield from weight_and_bias(f"{inner}.3", f"{theirs}.pwconv2")
        yield Pair(f"{inner}.4.gain", [f"{theirs}.gamma"])
    last = f"{ours}parts.{first + 1 + sizes.layers}.function"
    yield from weight_and_bias(f"{last}.0", "backbone.final_layer_norm")
    yield from weight_and_bias(f"{last}.1", "head.out")


def _norm_pairs(sizes: VocosConfig, ours: str, theirs: str) -> Iterator[Pair]:
    if not sizes.conditions:
        yield from weight_and_bias(ours, theirs)
        return
    for kind in ("scale", "shift"):
        yield from weight_and_bias(f"{ours}.{kind}", f"{theirs}.{kind}", bias=False)


def _prenet_pairs(ours: str, theirs: str, width: int) -> Iterator[Pair]:
    """Six parts in a row there: two residual blocks, attention, two blocks, a norm."""
    for number, place in enumerate(("before.0", "before.1", "", "behind.0", "behind.1")):
        for part in ("norm1", "conv1", "norm2", "conv2") if place else ():
            yield from weight_and_bias(f"{ours}.{place}.{part}", f"{theirs}.{number}.{part}")
    yield from weight_and_bias(f"{ours}.norm", f"{theirs}.2.norm")
    for kind, behind in (("weight", 1), ("bias", 0)):
        names = [f"{theirs}.2.{name}.{kind}" for name in "qkv"]
        yield Pair(f"{ours}.qkv.{kind}", names, rows=[width] * 3, behind=behind)
        yield Pair(f"{ours}.out.{kind}", [f"{theirs}.2.proj_out.{kind}"], behind=behind)
    yield from weight_and_bias(f"{ours}.last", f"{theirs}.5")

"""X-Codec 2: one scalar codebook of 65,536 for acoustic and semantic features together, and a transformer to speak it.

Source: Ye et al., arXiv:2502.04128, section 3.1 (Llasa); transformers' Xcodec2Model. Two things of the published
weights are kept as they are. The quantizer bounds its input twice. And the decoder's rotary positions turn by the
number of the head, not of the frame: the queries and keys of a head turn alike, which cancels, so that its attention
has no positions at all and learns the order of frames from the convolutions around it alone. Both ends attend to all
of the signal: a stream is answered at its end.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.feature_codec import encoder_of
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.snake_stack import SnakeConfig, centred, downward
from vivavoce.codecs.two_branches import TwoBranches, even
from vivavoce.nn.antialiased import antialiased_snake
from vivavoce.nn.over_time import BetweenResiduals
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.quantizers import FiniteScalarQuantizer
from vivavoce.vocoders.istft import TrimmedISTFT

EPSILON = 1e-6
SIDES = 2  # residual blocks before and behind the transformer


@dataclass(frozen=True)
class XCodec2Config(CodecOptions):
    """Sizes as published. encoder_dim, encoder_rates: of the acoustic stack; width: of its latents and of the decoder.

    semantic: an encoder as recipes name it, whose last layer is heard. levels: of the scalar quantizer. layers, heads,
    feedforward, head_dim: of the decoder's transformer. groups: of its norms over time. window: of the inverse STFT, in
    hops.
    """

    sample_rate: int = 16000
    encoder_dim: int = 48
    encoder_rates: tuple[int, ...] = (2, 2, 4, 4, 5)
    width: int = 1024
    semantic: Mapping[str, Any] = field(default_factory=lambda: {"kind": "w2v_bert", "body": {"layers": 16}})
    levels: tuple[int, ...] = (4,) * 8
    layers: int = 12
    heads: int = 16
    head_dim: int | None = None
    feedforward: int = 4096
    groups: int = 32
    window: int = 4

    @property
    def stack(self) -> SnakeConfig:
        """Of the acoustic encoder."""
        rates = tuple(self.encoder_rates)
        return SnakeConfig(
            self.sample_rate, self.encoder_dim, rates, decoder_dim=2 ** len(rates), decoder_rates=rates[::-1]
        )


class Body(BetweenResiduals):
    """Frames [B, T, width] through residual blocks, a transformer, and residual blocks again."""

    def __init__(self, config: XCodec2Config):
        super().__init__(config.width, config.groups)
        form: dict[str, Any] = {"gated": False, "norm_eps": EPSILON, "causal": False, "positions": "none"}
        form |= {"feedforward": config.feedforward, "head_dim": config.head_dim}
        self.transformer = Transformer(TransformerConfig(config.layers, config.width, config.heads, **form))

    def middle(self, x, lengths):
        return self.transformer(x, lengths)


def adapter(width: int) -> Chain:
    """What the semantic features go through before they meet the acoustic ones."""
    inner = Chain(even(width, width, 3), Pointwise(nn.ReLU(), width), even(width, width, 3))
    first = [even(width, width, 3, bias=False), Pointwise(nn.ReLU(), width)]
    return Chain(*first, Residual(inner), even(width, width, 3, bias=False))


class XCodec2(Codec):
    """X-Codec 2."""

    def __init__(self, config: XCodec2Config):
        stack = config.stack
        last = centred(stack.encoded, config.width, 3)
        acoustic = Chain(*downward(stack, activate=antialiased_snake), antialiased_snake(stack.encoded), last)
        semantic, sizes = encoder_of(config.semantic)
        config = dataclasses.replace(config, semantic=sizes)
        branches = TwoBranches(
            config.sample_rate, stack.hop, acoustic, semantic, adapter, extra=1, semantic_first=True
        )
        quantizer = FiniteScalarQuantizer(branches.width, config.levels, times=2)
        width, size = config.width, config.window * stack.hop
        decoder = Chain(
            Pointwise(nn.Linear(branches.width, width), width),
            even(width, width, 7),
            Body(config),
            Pointwise(nn.Sequential(nn.LayerNorm(width, EPSILON), nn.Linear(width, size + 2)), size + 2),
            TrimmedISTFT(size, stack.hop, (size - stack.hop) // 2),
        )
        super().__init__(Chain(branches), quantizer, decoder, config.sample_rate, config=config)


def build_xcodec2(options: Mapping[str, Any] | XCodec2Config) -> XCodec2:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return XCodec2(options if isinstance(options, XCodec2Config) else XCodec2Config.of(options))

"""Where the tensors of published DAC and SNAC checkpoints stand in our codecs.

Two ways of naming: `original` (the packages descript-audio-codec and snac, whose layers are numbered) and
`transformers` (DacModel). Our chains have their parts in the same order; those without weights are passed over.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.seanet_weights import Style
from vivavoce.codecs.snake_stack import DILATIONS, SnakeConfig
from vivavoce.nn.antialiased import AntiAliased
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.local_attention import LocalAttention
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.noise import Noise
from vivavoce.nn.pairs import Pair, Published, theirs_of, weight_and_bias
from vivavoce.nn.residual import Residual
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.weights import load_module

UNIT = {
    "original": ("block.0", "block.1", "block.2", "block.3"),
    "transformers": ("snake1", "conv1", "snake2", "conv2"),
}


def fill_snake(codec: Codec, tensors: Mapping[str, Tensor], style: Style, where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    source = Published(tensors, where)
    load_module(codec, source.all(_pairs(codec, style)), where)
    source.finish()


def transformers_snake(codec: Codec) -> dict[str, Tensor]:
    """The tensors of a DAC as DacModel names them, without weight normalisation."""
    return theirs_of(_pairs(codec, "transformers"), codec.state_dict())


def _pairs(codec: Codec, style: Style) -> Iterator[Pair]:
    for stack, chain in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        parts = [part for part in chain if any(True for _ in part.parameters())]
        stems = numbered(stack, parts) if style == "original" else named(stack, stack, codec.config)
        yield from stack_pairs(chain, stack, stems, style)
    for number in range(codec.quantizer.codebooks):
        yield from factorized_pairs(f"quantizer.levels.{number}", f"quantizer.quantizers.{number}")


def factorized_pairs(ours: str, theirs: str, codebook: str = "codebook", behind: int = 1) -> Iterator[Pair]:
    """A codebook that is looked up by angle, and its projections, whose weights have `behind` axes of 1 more there."""
    for mine, name in (("input_projection", "in_proj"), ("output_projection", "out_proj")):
        yield Pair(f"{ours}.{mine}.weight", [f"{theirs}.{name}.weight"], behind=behind)
        yield Pair(f"{ours}.{mine}.bias", [f"{theirs}.{name}.bias"])
    yield Pair(f"{ours}.entries", [f"{theirs}.{codebook}.weight"])


def fill_bigcodec(codec: Codec, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load BigCodec's own checkpoint, its encoder's tensors named `encoder.…`, the rest `decoder.…`."""
    source = Published(tensors, where)
    pairs: list[Pair] = []
    for stack, chain in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        parts = [part for part in chain if any(True for _ in part.parameters())]
        pairs += stack_pairs(chain, stack, numbered(stack, parts), "original")
    for number in range(codec.quantizer.codebooks):
        theirs = f"decoder.quantizer.layers.{number}"
        pairs += factorized_pairs(f"quantizer.levels.{number}", theirs, "_codebook", behind=0)
    load_module(codec, source.all(pairs), where)
    source.finish()


def stack_pairs(chain: Chain, ours: str, stems: Iterable[str], style: Style, first: int = 0) -> Iterator[Pair]:
    """The parts of a chain, from `first` on, that have weights, named `ours` here and by `stems`, one each, there."""
    parts = [(place, part) for place, part in enumerate(chain) if any(True for _ in part.parameters())]
    for (place, part), stem in zip([each for each in parts if each[0] >= first], stems, strict=True):
        yield from _part(part, f"{ours}.parts.{place}", stem, style)


def numbered(stack: str, parts: list[Streaming]) -> Iterator[str]:
    """What the packages call each part: a number in the stack, or in a block, which ends or begins with its stride."""
    prefix, number, at = f"{stack}.{'block' if stack == 'encoder' else 'model'}", 0, 0
    while at < len(parts):
        size = _block(parts, at, stack)
        for inside in range(size):
            yield f"{prefix}.{number}.block.{inside}" if size > 1 else f"{prefix}.{number}"
        number, at = number + 1, at + size


def _block(parts: list[Streaming], at: int, stack: str) -> int:
    """Parts of the block that begins at parts[at]; 1 where none does."""
    if stack == "encoder":
        return len(DILATIONS) + 2 if isinstance(parts[at], Residual) else 1
    if at + 1 == len(parts) or not isinstance(parts[at + 1], ConvTranspose):
        return 1
    return len(DILATIONS) + 2 + isinstance(parts[at + 2], Noise)


def named(stack: str, prefix: str, config: SnakeConfig) -> Iterator[str]:
    """What transformers' DacModel calls each part of a stack, `encoder` or `decoder`, which it calls `prefix`."""
    units = [f"res_unit{number}" for number in range(1, len(DILATIONS) + 1)]
    inside = [*units, "snake1", "conv1"] if stack == "encoder" else ["snake1", "conv_t1", *units]
    rates = config.encoder_rates if stack == "encoder" else config.decoder_rates
    yield f"{prefix}.conv1"
    for number in range(len(rates)):
        yield from (f"{prefix}.block.{number}.{name}" for name in inside)
    yield f"{prefix}.snake1"
    yield f"{prefix}.conv2"


def _part(part: Streaming, ours: str, theirs: str, style: Style) -> Iterator[Pair]:
    """A convolution, activation, residual unit, noise or attention."""
    if isinstance(part, Conv | ConvTranspose):
        yield from weight_and_bias(ours, theirs)
    elif isinstance(part, LSTM):
        for name, _ in part.lstm.named_parameters():
            yield Pair(f"{ours}.lstm.{name}", [f"{theirs}.lstm.{name}"])
    elif isinstance(part, AntiAliased):
        for kind in ("alpha", "beta"):
            yield Pair(f"{ours}.parts.1.function.{kind}", [f"{theirs}.act.{kind}"])
    elif isinstance(part, Pointwise) and isinstance(part.function, Snake):
        yield Pair(f"{ours}.function.alpha", [f"{theirs}.alpha"], before=1, behind=1)
    elif isinstance(part, Residual):
        for place, (layer, name) in enumerate(zip(cast(Chain, part.inner), UNIT[style], strict=True)):
            yield from _part(layer, f"{ours}.inner.parts.{place}", f"{theirs}.{name}", style)
    elif isinstance(part, Noise):
        yield Pair(f"{ours}.project.weight", [f"{theirs}.linear.weight"], behind=1)
    elif isinstance(part, LocalAttention):
        yield from weight_and_bias(f"{ours}.norm", f"{theirs}.norm")
        yield Pair(f"{ours}.attention.qkv.weight", [f"{theirs}.to_qkv.weight"])
        yield Pair(f"{ours}.attention.out.weight", [f"{theirs}.to_out.weight"])

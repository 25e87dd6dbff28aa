"""Where the tensors of published DAC and SNAC checkpoints stand in our codecs.

Two ways of naming: `original` (the packages descript-audio-codec and snac, whose layers are numbered) and
`transformers` (DacModel). Our chains have their parts in the same order; those without weights are passed over.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.seanet_weights import Published, Style
from vivavoce.codecs.snake_stack import DILATIONS, SnakeConfig
from vivavoce.nn.antialiased import AntiAliased
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.local_attention import LocalAttention
from vivavoce.nn.noise import Noise
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
    own: dict[str, Tensor] = {}
    for stack, chain in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        parts = [part for part in chain if any(True for _ in part.parameters())]
        stems = numbered(stack, parts) if style == "original" else named(stack, stack, codec.config)
        take_parts(own, source, chain, stack, stems, style)
    for number in range(codec.quantizer.codebooks):
        theirs, ours = f"quantizer.quantizers.{number}", f"quantizer.levels.{number}"
        for mine, name in (("input_projection", "in_proj"), ("output_projection", "out_proj")):
            own[f"{ours}.{mine}.weight"] = source.take(f"{theirs}.{name}.weight").squeeze(-1)
            own[f"{ours}.{mine}.bias"] = source.take(f"{theirs}.{name}.bias")
        own[f"{ours}.entries"] = source.take(f"{theirs}.codebook.weight")
    load_module(codec, own, where)
    source.finish()


def take_parts(
    own: dict[str, Tensor], source: Published, chain: Chain, ours: str, stems: Iterable[str], style: Style
) -> None:
    """The parts of a chain that have weights, named `ours` here and by `stems`, one each, there."""
    parts = [(place, part) for place, part in enumerate(chain) if any(True for _ in part.parameters())]
    for (place, part), stem in zip(parts, stems, strict=True):
        _part(own, source, part, f"{ours}.parts.{place}", stem, style)


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


def _part(
    own: dict[str, Tensor], source: Published, part: Streaming, ours: str, theirs: str, style: Style
) -> None:
    """A convolution, activation, residual unit, noise or attention."""
    if isinstance(part, Conv | ConvTranspose):
        for kind in ("weight", "bias"):
            own[f"{ours}.{kind}"] = source.take(f"{theirs}.{kind}")
    elif isinstance(part, AntiAliased):
        for kind in ("alpha", "beta"):
            own[f"{ours}.parts.1.function.{kind}"] = source.take(f"{theirs}.act.{kind}").flatten()
    elif isinstance(part, Pointwise) and isinstance(part.function, Snake):
        own[f"{ours}.function.alpha"] = source.take(f"{theirs}.alpha").flatten()
    elif isinstance(part, Residual):
        for place, (layer, name) in enumerate(zip(cast(Chain, part.inner), UNIT[style], strict=True)):
            _part(own, source, layer, f"{ours}.inner.parts.{place}", f"{theirs}.{name}", style)
    elif isinstance(part, Noise):
        own[f"{ours}.project.weight"] = source.take(f"{theirs}.linear.weight").squeeze(-1)
    elif isinstance(part, LocalAttention):
        for mine, name in (("norm.weight", "norm.weight"), ("norm.bias", "norm.bias"),
                           ("attention.qkv.weight", "to_qkv.weight"), ("attention.out.weight", "to_out.weight")):
            own[f"{ours}.{mine}"] = source.take(f"{theirs}.{name}")
        if source.has(f"{theirs}.rel_pos.inv_freq"):  # of the positions, which are computed
            source.take(f"{theirs}.rel_pos.inv_freq")

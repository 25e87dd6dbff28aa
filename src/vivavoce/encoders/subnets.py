"""Encoders that are parts of a larger one: once it has learned to work at many sizes, any of them is cut out of it.

LightHuBERT (arXiv:2203.15610, section 2; mechanicalsea/lighthubert, lighthubert/modules): of every matrix the first
rows and columns stay; attention keeps its first heads, and of the feed-forward layer's units those first ones of each
of the groups that are as many as the width. Of 12 blocks the last of each third go first.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.speech_transformer import Block, SpeechTransformer, SpeechTransformerConfig
from vivavoce.errors import RecipeError


@dataclass(frozen=True)
class Sizes:
    """Of one subnet: its width, and of each of its blocks the heads and the units of the feed-forward layer."""

    width: int
    heads: tuple[int, ...]
    hidden: tuple[int, ...]

    @classmethod
    def of(cls, width: int, layers: int, heads: int | Sequence[int], ratio: float | Sequence[float]) -> "Sizes":
        """ratio: of the units to the width; heads and ratio are said once for all blocks, or for each."""
        many = [heads] * layers if isinstance(heads, int) else list(heads)
        ratios = [ratio] * layers if isinstance(ratio, int | float) else list(ratio)
        if len(many) != layers or len(ratios) != layers:
            raise RecipeError(f"subnet: {len(many)} heads and {len(ratios)} ratios for {layers} layers: one for each")
        return cls(width, tuple(many), tuple(int(each * width) for each in ratios))


@dataclass(frozen=True)
class Space:
    """What sizes subnets may have: `layers` and `width` are drawn once, `heads` and `ratio` for each block."""

    width: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    ratio: tuple[float, ...]

    def __post_init__(self):
        if not all(getattr(self, field.name) for field in fields(self)):
            raise RecipeError("space: width, layers, heads, ratio: at least one of each")

    @property
    def count(self) -> int:
        """How many subnets there are."""
        each = len(self.heads) * len(self.ratio)
        return len(self.width) * sum(each**layers for layers in self.layers)

    @property
    def smallest(self) -> Sizes:
        """The least of everything."""
        return Sizes.of(min(self.width), min(self.layers), min(self.heads), min(self.ratio))

    @property
    def largest(self) -> Sizes:
        """The most of everything."""
        return Sizes.of(max(self.width), max(self.layers), max(self.heads), max(self.ratio))

    def draw(self, seed: int) -> Sizes:
        """Sizes that are all equally likely of their kind; the same for a seed."""
        chance = random.Random(seed)
        layers, width = chance.choice(self.layers), chance.choice(self.width)
        ratios = [chance.choice(self.ratio) for _ in range(layers)]
        return Sizes.of(width, layers, [chance.choice(self.heads) for _ in range(layers)], ratios)


@dataclass(frozen=True)
class SubnetConfig(SpeechTransformerConfig):
    """As the whole encoder's, whose `heads` and `hidden` stand for nothing here: block_heads, block_hidden: of every
    block; head_width: of one head."""

    block_heads: tuple[int, ...] = ()
    block_hidden: tuple[int, ...] = ()
    head_width: int = 64

    def __post_init__(self):
        super().__post_init__()
        if not len(self.block_heads) == len(self.block_hidden) == self.layers > 0:
            raise RecipeError(f"block_heads, block_hidden: one entry for each of {self.layers} layers")
        if self.relative_buckets or self.alibi is not None:
            raise RecipeError("a subnet has no relative positions: their heads are not those of every block")


class Subnet(SpeechTransformer):
    """Waveforms [B, samples] -> frames [B, T, width], as a `SpeechTransformer` whose blocks differ in size."""

    config: SubnetConfig

    def __init__(self, config: SubnetConfig):
        super().__init__(config)
        for number, (heads, hidden) in enumerate(zip(config.block_heads, config.block_hidden)):
            own = replace(config, heads=1, hidden=hidden)
            self.blocks[number] = block = Block(own, heads * config.head_width)
            block.heads = heads


def config_of(whole: SpeechTransformerConfig, sizes: Sizes) -> SubnetConfig:
    """The config of a subnet of a whole encoder; `RecipeError` where it is none of it."""
    head = whole.width // whole.heads
    if whole.position_batch_norm:
        raise RecipeError("a subnet of an encoder with batch norm: there is none that would fit all sizes")
    if not (0 < sizes.width <= whole.width and 0 < len(sizes.heads) <= whole.layers):
        raise RecipeError(f"subnet: width {sizes.width} and {len(sizes.heads)} layers: 1 to {whole.width}, 1 to "
                          f"{whole.layers}")  # fmt: skip
    if sizes.width % whole.position_groups:
        raise RecipeError(f"subnet: width {sizes.width} is no multiple of {whole.position_groups} position_groups")
    if not all(0 < heads <= whole.heads for heads in sizes.heads):
        raise RecipeError(f"subnet: heads {list(sizes.heads)}: 1 to {whole.heads} each")
    if not all(sizes.width <= hidden <= whole.hidden * sizes.width / whole.width for hidden in sizes.hidden):
        raise RecipeError(f"subnet: {list(sizes.hidden)} units: 1 to {whole.hidden / whole.width:g} times the width")
    said = {field.name: getattr(whole, field.name) for field in fields(SpeechTransformerConfig)}
    said |= {"width": sizes.width, "layers": len(sizes.heads), "heads": 1, "hidden": max(sizes.hidden)}
    return SubnetConfig(**said, block_heads=sizes.heads, block_hidden=sizes.hidden, head_width=head)


def kept_blocks(layers: int, left: int) -> list[int]:
    """Which of `layers` blocks stay where `left` do: the last one of the last third goes, of the second, of the first,
    and so on."""
    thirds = [list(range(layers * part // 3, layers * (part + 1) // 3)) for part in range(3)]
    gone = layers - left
    while gone:
        for third in reversed(thirds):
            if gone and third:
                third.pop()
                gone -= 1
    return [number for third in thirds for number in third]


def kept_units(whole: SpeechTransformerConfig, width: int, hidden: int) -> Tensor:
    """Which units of a feed-forward layer stay [hidden]: of groups as wide as the whole encoder, each one's first."""
    starts = range(0, whole.hidden, whole.width)
    parts = [torch.arange(start, start + min(width, hidden - number * width))
             for number, start in enumerate(starts) if number * width < hidden]  # fmt: skip
    return torch.cat(parts)


def parameters_of(whole: SpeechTransformer, sizes: Sizes) -> dict[str, Tensor]:
    """The subnet's tensors by the names that they have in a `Subnet`: parts of the whole encoder's, with their
    gradients."""
    return dict(_parts(whole, sizes))


def _parts(whole: SpeechTransformer, sizes: Sizes) -> Iterator[tuple[str, Tensor]]:
    config, width = whole.config, sizes.width
    head, groups = config.width // config.heads, config.position_groups
    blocks = kept_blocks(config.layers, len(sizes.heads))
    for name, value in whole.state_dict(keep_vars=True).items():
        part, _, rest = name.partition(".")
        if part in ("front", "front_norm"):
            yield name, value
        elif part == "position" and name.endswith("weight"):
            yield name, value[:width, : width // groups]
        elif part != "blocks":
            yield name, value[:width]
        elif (number := int(rest.split(".")[0])) in blocks:
            own = blocks.index(number)
            inside = rest.split(".", 1)[1]
            units = kept_units(config, width, sizes.hidden[own]).to(value.device)
            yield f"blocks.{own}.{inside}", _of_block(inside, value, width, sizes.heads[own] * head, units)


def _of_block(name: str, value: Tensor, width: int, inner: int, units: Tensor) -> Tensor:
    part, leaf = name.split(".")
    if part in ("query", "key", "value"):
        return value[:inner, :width] if leaf == "weight" else value[:inner]
    if part == "output" and leaf == "weight":
        return value[:width, :inner]
    if part == "widen":
        return value[units, :width] if leaf == "weight" else value[units]
    if part == "narrow" and leaf == "weight":
        return value[:width, units]
    return value[:width]


def cut(whole: SpeechTransformer, sizes: Sizes) -> Subnet:
    """A subnet with a copy of its weights, in evaluation mode: an encoder by itself. Raises `RecipeError`."""
    found = Subnet(config_of(whole.config, sizes))
    found.load_state_dict({name: value.detach() for name, value in parameters_of(whole, sizes).items()})
    return found.eval()


def parameter_count(whole: SpeechTransformer, sizes: Sizes) -> int:
    """How many parameters a subnet has."""
    return sum(prod(value.shape) for value in parameters_of(whole, sizes).values())


def skeleton(whole: SpeechTransformer, sizes: Sizes) -> Subnet:
    """A subnet without weights of its own, to be called with `parameters_of`."""
    with torch.device("meta"):
        return Subnet(config_of(whole.config, sizes))


def build_lighthubert(subnet: Mapping[str, Any] | None = None, **sizes: Any) -> SpeechTransformer:
    """The whole encoder of random weights; `subnet`: only this part of it, as `Sizes.of` takes it."""
    if "block_heads" in sizes:  # a subnet's own sizes, as it says them
        return Subnet(SubnetConfig(**sizes)).eval()
    whole = SpeechTransformer(SpeechTransformerConfig(**sizes)).eval()
    return whole if subnet is None else cut(whole, Sizes.of(**subnet))
